"""A small `Learner` for array data, as far as 0.7's is about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F  # noqa: N812
from torch import nn

from ..storage import load_weights, save_weights
from ..trained import preserve_state
from . import schedules, training
from .core import BasicModel, SGD_Momentum, SingleModel, children, set_trainable, sum_geom
from .layer_optimizer import LayerOptimizer
from .outside import refuses

__all__ = ["ConvLearner", "Learner"]


class Learner:
    """Data, a model and what they are trained with."""

    def __init__(
        self,
        data: Any,
        models: Any,
        opt_fn: Callable[..., Any] | None = None,
        tmp_name: str = "tmp",
        models_name: str = "models",
        metrics: Sequence[Any] | None = None,
        clip: float | None = None,
        crit: Callable[..., Any] | None = None,
    ) -> None:
        self.data_, self.models = data, models
        self.opt_fn = opt_fn or SGD_Momentum(0.9)
        self.metrics, self.clip, self.reg_fn = list(metrics or ()), clip, None
        self.crit = crit or self._get_crit(data)
        self.models_path = Path(data.path) / models_name
        self.sched: Any = None
        self.swa_model: nn.Module | None = None

    @classmethod
    def from_model_data(cls, m: nn.Module, data: Any, **kwargs: Any) -> Learner:
        """Around any module."""
        return cls(data, BasicModel(m), **kwargs)

    def _get_crit(self, data: Any) -> Callable[..., Any]:
        return F.mse_loss

    @property
    def model(self) -> Any:
        """The module."""
        return self.models.model

    @property
    def data(self) -> Any:
        """The data."""
        return self.data_

    def set_data(self, data: Any) -> None:
        """Goes on with other data."""
        self.data_ = data

    @property
    def children(self) -> list[nn.Module]:
        """The model's parts."""
        return children(self.model)

    def get_layer_groups(self) -> list[Any]:
        """The parts that have rates of their own."""
        return list(self.models.get_layer_groups())

    def get_layer_opt(self, lrs: Any, wds: Any) -> LayerOptimizer:
        """An optimizer over them."""
        return LayerOptimizer(self.opt_fn, self.get_layer_groups(), lrs, wds)

    # ---- training ------------------------------------------------------------------------

    def fit(
        self,
        lrs: Any,
        n_cycle: int,
        wds: Any = None,
        *,
        cycle_len: int | None = None,
        cycle_mult: int = 1,
        metrics: Sequence[Any] | None = None,
        callbacks: Sequence[Any] | None = None,
        use_clr: Sequence[float] | None = None,
        use_clr_beta: Sequence[float] | None = None,
        cycle_save_name: str | None = None,
        best_save_name: str | None = None,
        use_wd_sched: bool = False,
        norm_wds: bool = False,
        wds_sched_mult: Callable[[Any], float] | None = None,
        use_swa: bool = False,
        swa_start: int = 1,
        swa_eval_freq: int = 5,
        **kwargs: Any,
    ) -> Any:
        """Trains for `n_cycle` cycles of `cycle_len` epochs, each `cycle_mult` times the last."""
        layer_opt = self.get_layer_opt(lrs, wds)
        metrics = self.metrics if metrics is None else list(metrics)
        more = list(callbacks or ())
        nb = len(self.data.trn_dl)
        at_end = self._saves(cycle_save_name) if cycle_save_name else None
        if use_wd_sched:
            more.append(
                schedules.WeightDecaySchedule(
                    layer_opt, nb, cycle_len or 1, cycle_mult, n_cycle, norm_wds, wds_sched_mult
                )
            )
        epochs: Any = sum_geom(cycle_len or 1, cycle_mult, n_cycle)
        if use_clr is not None:
            div, cut, *moms = use_clr
            self.sched = schedules.CircularLR(
                layer_opt, nb * (cycle_len or 1), div, cut, at_end, moms or None
            )
        elif use_clr_beta is not None:
            div, pct, *moms = use_clr_beta
            self.sched = schedules.CircularLR_beta(
                layer_opt, nb * (cycle_len or 1), div, pct, at_end, moms or None
            )
        elif cycle_len:
            self.sched = schedules.CosAnneal(layer_opt, nb * cycle_len, at_end, cycle_mult)
        else:
            self.sched = schedules.LossRecorder(layer_opt)
        if best_save_name is not None:
            more.append(schedules.SaveBestModel(self, layer_opt, metrics, best_save_name))
        if use_swa:
            self.swa_model = schedules.copied(self.model)
            kwargs |= {
                "swa_model": self.swa_model,
                "swa_start": swa_start,
                "swa_eval_freq": swa_eval_freq,
            }
        return self._fitted(epochs, layer_opt, metrics, [*more, self.sched], **kwargs)

    def _fitted(
        self,
        epochs: Any,
        layer_opt: Any,
        metrics: Any,
        callbacks: Any,
        data: Any = None,
        **kwargs: Any,
    ) -> Any:
        return training.fit(
            self.model, data or self.data, epochs, layer_opt, self.crit, metrics, callbacks,
            clip=self.clip or 0, reg_fn=self.reg_fn, **kwargs,
        )  # fmt: skip

    def _saves(self, name: str) -> Callable[[Any, int], None]:
        return lambda sched, cycle: self.save(f"{name}_cyc_{cycle}")

    def fit_opt_sched(
        self,
        phases: Sequence[Any],
        cycle_save_name: str | None = None,
        best_save_name: str | None = None,
        stop_div: bool = False,
        data_list: Sequence[Any] | None = None,
        callbacks: Sequence[Any] | None = None,
        metrics: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Trains through phases, with data of their own if `data_list` is given."""
        first = phases[0]
        layer_opt = self.get_layer_opt(
            first.lr[0] if isinstance(first.lr, tuple) else first.lr, None
        )
        layer_opt.set_opt_fn(first.opt_fn)
        data = list(data_list) if data_list else [self.data] * len(phases)
        nb = [len(each.trn_dl) for each in data]
        self.sched = schedules.OptimScheduler(layer_opt, phases, nb, stop_div)
        more = list(callbacks or ())
        metrics = self.metrics if metrics is None else list(metrics)
        if best_save_name is not None:
            more.append(schedules.SaveBestModel(self, layer_opt, metrics, best_save_name))
        epochs = [phase.epochs for phase in phases]
        return self._fitted(epochs, layer_opt, metrics, [*more, self.sched], data, **kwargs)

    def lr_find(
        self,
        start_lr: Any = 1e-5,
        end_lr: float = 10,
        wds: Any = None,
        linear: bool = False,
        **kwargs: Any,
    ) -> None:
        """Tries rates for an epoch; weights and generators are as before afterwards."""
        layer_opt = self.get_layer_opt(start_lr, wds)
        nb = len(self.data.trn_dl)
        self.sched = schedules.LR_Finder(layer_opt, nb, end_lr, linear)
        self._trying(1, layer_opt, **kwargs)

    def lr_find2(
        self,
        start_lr: Any = 1e-5,
        end_lr: float = 10,
        num_it: int = 100,
        wds: Any = None,
        linear: bool = False,
        stop_dv: bool = True,
        **kwargs: Any,
    ) -> None:
        """Tries rates for `num_it` batches."""
        layer_opt = self.get_layer_opt(start_lr, wds)
        epochs = int(np.ceil(num_it / len(self.data.trn_dl)))
        self.sched = schedules.LR_Finder2(layer_opt, num_it, end_lr, linear, self.metrics, stop_dv)
        self._trying(epochs, layer_opt, **kwargs)

    def _trying(self, epochs: int, layer_opt: LayerOptimizer, **kwargs: Any) -> None:
        with preserve_state(self.model, self.crit, layer_opt.opt, self.data.trn_dl):
            self._fitted(epochs, layer_opt, self.metrics, [self.sched], **kwargs)

    # ---- what came of it -----------------------------------------------------------------

    def predict(self, is_test: bool = False, use_swa: bool = False) -> Any:
        """The predictions for the validation rows, or the test rows."""
        dl = self.data.test_dl if is_test else self.data.val_dl
        return training.predict(self._which(use_swa), dl)

    def predict_with_targs(self, is_test: bool = False, use_swa: bool = False) -> Any:
        """The same with the targets."""
        dl = self.data.test_dl if is_test else self.data.val_dl
        return training.predict_with_targs(self._which(use_swa), dl)

    def _which(self, use_swa: bool) -> Any:
        return self.swa_model if use_swa and self.swa_model is not None else self.model

    def predict_dl(self, dl: Any) -> Any:
        """The predictions for a loader's rows."""
        return training.predict(self.model, dl)

    def predict_array(self, arr: Any) -> Any:
        """The predictions for an array."""
        from ..core import T, to_np

        x = T(arr).to(next(self.model.parameters()).device)
        return to_np(training.predict_batch(self.model, x))

    TTA = refuses("TTA is for transforms of images")

    def summary(self) -> Any:
        """Layers, shapes, parameters."""
        *xs, _ = next(iter(self.data.trn_dl))
        return training.model_summary(self.model, [x[:2] for x in xs])

    def __repr__(self) -> str:
        return repr(self.model)

    def save(self, name: str) -> None:
        """Writes the weights to `models/<name>.h5`."""
        self.models_path.mkdir(parents=True, exist_ok=True)
        save_weights(self.model, self._file(name))

    def load(self, name: str) -> None:
        """Reads them back."""
        load_weights(self.model, self._file(name))

    def _file(self, name: str) -> Path:
        return self.models_path / f"{name}.h5"

    # ---- what learns ---------------------------------------------------------------------

    def freeze_to(self, n: int) -> None:
        """Lets only the parts from the n-th on learn."""
        groups = self.get_layer_groups()
        for part in groups:
            set_trainable(part, False)
        for part in groups[n:]:
            set_trainable(part, True)

    def freeze_all_but(self, n: int) -> None:
        """Lets only the n-th part learn."""
        for i, part in enumerate(self.get_layer_groups()):
            set_trainable(part, i == n)

    def freeze(self) -> None:
        """Lets only the last part learn."""
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Lets all learn."""
        self.freeze_to(0)

    def bn_freeze(self, do_freeze: bool) -> None:
        """Marks BatchNorm as frozen: see `set_train_mode`."""
        for part in self.model.modules():
            if hasattr(part, "running_mean"):
                part.bn_freeze = do_freeze


class ConvLearner(Learner):
    """A learner with the loss that suits the labels; pretrained nets are not here."""

    def __init__(self, data: Any, models: Any, **kwargs: Any) -> None:
        super().__init__(data, models, **kwargs)
        if not kwargs.get("metrics") and not data.is_reg:
            self.metrics = [training.accuracy]

    @classmethod
    def from_model_data(cls, m: nn.Module, data: Any, **kwargs: Any) -> ConvLearner:
        """Around any module."""
        return cls(data, SingleModel(m), **kwargs)

    def _get_crit(self, data: Any) -> Callable[..., Any]:
        if data.is_reg:
            return F.l1_loss
        return F.binary_cross_entropy if data.is_multi else F.nll_loss

    pretrained = classmethod(refuses("ConvLearner.pretrained loads nets for images"))
    lsuv_init = refuses("lsuv_init")
