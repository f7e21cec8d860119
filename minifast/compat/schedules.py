"""0.7's callbacks: schedules, finders, recorders, averages. Each holds a `LayerOptimizer`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn, optim

from ..core import modes_kept
from ..metrics import metric_names
from ..plugins._monitor import direction
from ..trained import Buffers
from .layer_optimizer import LayerOptimizer, one_for_each

__all__ = [
    "SWA",
    "Callback",
    "CircularLR",
    "CircularLR_beta",
    "CosAnneal",
    "DecayScheduler",
    "DecayType",
    "LR_Finder",
    "LR_Finder2",
    "LR_Updater",
    "LoggingCallback",
    "LossRecorder",
    "OptimScheduler",
    "SaveBestModel",
    "TrainingPhase",
    "WeightDecaySchedule",
    "fix_batchnorm",
    "smooth_curve",
]


class Callback:
    """0.7's callback: seven events without a word about the run; a true return asks to stop."""

    def on_train_begin(self) -> Any:
        """Training begins."""

    def on_phase_begin(self) -> Any:
        """A phase begins."""

    def on_batch_begin(self) -> Any:
        """A batch begins."""

    def on_batch_end(self, metrics: Any) -> Any:
        """A batch is learned: the smoothed training loss, or a list with `all_val`."""

    def on_phase_end(self) -> Any:
        """A phase is used up."""

    def on_epoch_end(self, metrics: Any) -> Any:
        """An epoch is validated: `[val_loss, *metrics]`."""

    def on_train_end(self) -> Any:
        """Training is over."""


def smooth_curve(vals: Sequence[float], beta: float) -> list[float]:
    """The exponential average of a series, debiased.

    Examples:
        >>> [round(v, 3) for v in smooth_curve([1, 2, 3, 4], 0.98)]
        [1.0, 1.505, 2.013, 2.525]
    """
    average, smooth = 0.0, []
    for n, value in enumerate(vals, 1):
        average = beta * average + (1 - beta) * value
        smooth.append(average / (1 - beta**n))
    return smooth


class LossRecorder(Callback):
    """Notes losses, rates and momenta of the batches, losses and metrics of the epochs."""

    def __init__(
        self,
        layer_opt: LayerOptimizer,
        save_path: str = "",
        record_mom: bool = False,
        metrics: Sequence[Any] = (),
    ) -> None:
        self.layer_opt, self.save_path = layer_opt, save_path
        self.record_mom, self.metrics = record_mom, metrics
        self.init_lrs = np.array(layer_opt.lrs)

    def on_train_begin(self) -> Any:
        """Begins anew."""
        self.losses: list[float] = []
        self.lrs: list[float] = []
        self.iterations: list[int] = []
        self.momentums: list[float] = []
        self.epochs: list[int] = []
        self.times: list[float] = []
        self.val_losses: list[float] = []
        self.rec_metrics: list[Any] = []
        self.iteration = self.epoch = 0
        self.start_time = time.perf_counter()

    def on_batch_end(self, metrics: Any) -> Any:
        """Notes the batch."""
        self.iteration += 1
        self.iterations.append(self.iteration)
        self.lrs.append(self.layer_opt.lr)
        self.losses.append(metrics[0] if isinstance(metrics, list) else metrics)
        if self.record_mom:
            self.momentums.append(self.layer_opt.mom)

    def on_epoch_end(self, metrics: Any) -> Any:
        """Notes the epoch."""
        self.epoch += 1
        self.epochs.append(self.iteration)
        self.times.append(time.perf_counter() - self.start_time)
        self.save_metrics(metrics)

    def save_metrics(self, vals: Any) -> None:
        """Notes what validation gave."""
        vals = vals if isinstance(vals, list) else [vals]
        self.val_losses.append(vals[0])
        if len(vals) > 1:
            self.rec_metrics.append(vals[1] if len(vals) == 2 else vals[1:])

    def plot_loss(self, n_skip: int = 10, n_skip_end: int = 5) -> Any:
        """Draws the loss over the batches, without the first and the last few."""
        part = _skipping(len(self.losses), n_skip, n_skip_end)
        return _drawn({"loss": self.losses[part]}, "batch", self.iterations[part])

    def plot_lr(self) -> Any:
        """Draws rates, and momenta if they were noted, over the batches."""
        from ..plots import plot_schedule

        return plot_schedule(self.lrs, self.momentums or None)

    def plot(self, n_skip: int = 10, n_skip_end: int = 5, linear: bool | None = False) -> Any:
        """Draws the loss over the rate."""
        import matplotlib.pyplot as plt

        part = _skipping(len(self.losses), n_skip, n_skip_end)
        figure, ax = plt.subplots(layout="constrained")
        ax.plot(self.lrs[part], self.losses[part])
        ax.set(xlabel="learning rate", ylabel="training loss")
        if not linear:
            ax.set_xscale("log")
        return figure


def _skipping(n: int, first: int, last: int) -> slice:
    """Without the first and the last, but never without all: short runs are drawn whole."""
    return slice(first, n - last) if n - last - first > 1 else slice(0, n)


def _drawn(lines: dict[str, Any], xlabel: str, x: Any) -> Any:
    from ..plots import plot_lines

    return plot_lines({"": lines}, xlabel, x)


class LR_Updater(LossRecorder):  # noqa: N801 - the names are 0.7's
    """Base of schedules: sets rates when training begins and after every batch."""

    def on_train_begin(self) -> Any:
        """Sets the first rate."""
        super().on_train_begin()
        self.update_lr()
        if self.record_mom:
            self.update_mom()

    def on_batch_end(self, metrics: Any) -> Any:
        """Notes the batch and sets the next one's rate."""
        stop = super().on_batch_end(metrics)
        self.update_lr()
        if self.record_mom:
            self.update_mom()
        return stop

    def update_lr(self) -> None:
        """Sets what `calc_lr` says."""
        self.layer_opt.set_lrs(self.calc_lr(self.init_lrs))

    def update_mom(self) -> None:
        """Sets what `calc_mom` says."""
        self.layer_opt.set_mom(self.calc_mom())

    def calc_lr(self, init_lrs: np.ndarray) -> Any:
        """The rates of the next batch."""
        raise NotImplementedError

    def calc_mom(self) -> float:
        """The momentum of the next batch."""
        raise NotImplementedError


class LR_Finder(LR_Updater):  # noqa: N801
    """Raises the rate from batch to batch and stops when the loss runs away."""

    def __init__(
        self,
        layer_opt: LayerOptimizer,
        nb: int,
        end_lr: float = 10,
        linear: bool = False,
        metrics: Sequence[Any] = (),
    ) -> None:
        super().__init__(layer_opt, metrics=metrics)
        self.nb, self.linear, self.stop_dv = nb, linear, True
        self.ratio = end_lr / layer_opt.lr

    def on_train_begin(self) -> Any:
        """Begins anew."""
        self.best = math.inf
        return super().on_train_begin()

    def calc_lr(self, init_lrs: np.ndarray) -> Any:
        """Rising, by a factor a batch, or linearly from 0."""
        part = self.iteration / self.nb
        return init_lrs * (self.ratio * part if self.linear else self.ratio**part)

    def on_batch_end(self, metrics: Any) -> Any:
        """Stops at nan, and at four times the best loss."""
        loss = metrics[0] if isinstance(metrics, list) else metrics
        if self.stop_dv and (math.isnan(loss) or loss > 4 * self.best):
            return True
        if loss < self.best and self.iteration > 10:
            self.best = loss
        return super().on_batch_end(metrics)


class LR_Finder2(LR_Finder):  # noqa: N801
    """An `LR_Finder` that goes on for `nb` batches, with validation losses if `all_val`."""

    def __init__(
        self,
        layer_opt: LayerOptimizer,
        nb: int,
        end_lr: float = 10,
        linear: bool = False,
        metrics: Sequence[Any] = (),
        stop_dv: bool = True,
    ) -> None:
        super().__init__(layer_opt, nb, end_lr, linear, metrics)
        self.stop_dv = stop_dv

    def on_batch_end(self, metrics: Any) -> Any:
        """Stops after `nb` batches too."""
        if self.iteration == self.nb:
            return True
        if isinstance(metrics, list) and len(metrics) > 1:
            self.save_metrics(metrics[1:])
        return super().on_batch_end(metrics)


class _Cycle(LR_Updater):
    """What schedules in cycles share: the batch within the cycle, and the end of one."""

    nb: int
    cycle_mult = 1
    on_cycle_end: Callable[[Any, int], Any] | None

    def on_train_begin(self) -> Any:
        """Begins a cycle."""
        self.cycle_iter = self.cycle_count = 0
        return super().on_train_begin()

    def next_batch(self) -> None:
        """Goes on by a batch."""
        self.cycle_iter += 1
        if self.cycle_iter >= self.nb:
            self.cycle_iter, self.nb = 0, self.nb * self.cycle_mult
            if self.on_cycle_end:
                self.on_cycle_end(self, self.cycle_count)
            self.cycle_count += 1


class CosAnneal(_Cycle):
    """Down along half a cosine, again from the top at each cycle, after a moment at a hundredth."""

    def __init__(
        self,
        layer_opt: LayerOptimizer,
        nb: int,
        on_cycle_end: Callable[[Any, int], Any] | None = None,
        cycle_mult: int = 1,
    ) -> None:
        super().__init__(layer_opt)
        self.nb, self.on_cycle_end, self.cycle_mult = nb, on_cycle_end, cycle_mult

    def calc_lr(self, init_lrs: np.ndarray) -> Any:
        """The cosine's value."""
        factor = (1 + math.cos(math.pi * self.cycle_iter / self.nb)) / 2
        if self.iteration < self.nb / 20:
            self.cycle_iter += 1
            return init_lrs / 100
        self.next_batch()
        return init_lrs * factor


class CircularLR(_Cycle):
    """Up from `lr / div` over `nb // cut_div` batches, and down again, linearly."""

    def __init__(
        self,
        layer_opt: LayerOptimizer,
        nb: int,
        div: float = 4,
        cut_div: float = 8,
        on_cycle_end: Callable[[Any, int], Any] | None = None,
        momentums: Sequence[float] | None = None,
    ) -> None:
        super().__init__(layer_opt, record_mom=momentums is not None)
        self.nb, self.div, self.on_cycle_end = nb, div, on_cycle_end
        self.up = max(int(nb // cut_div), 1)
        self.moms = momentums

    def height(self) -> float:
        """How far up, from 0 to 1, the batch is."""
        if self.cycle_iter <= self.up:
            return self.cycle_iter / self.up
        return 1 - (self.cycle_iter - self.up) / max(self.nb - self.up, 1)

    def calc_lr(self, init_lrs: np.ndarray) -> Any:
        """The rate there."""
        factor = (1 + self.height() * (self.div - 1)) / self.div
        self.next_batch()
        return init_lrs * factor

    def calc_mom(self) -> float:
        """The other way; of the batch after, as in 0.7."""
        assert self.moms is not None
        high, low = self.moms
        return high - self.height() * (high - low)


class CircularLR_beta(_Cycle):  # noqa: N801
    """One cycle: up, down, and for the last `pct` per cent on to a hundredth of the first rate."""

    def __init__(
        self,
        layer_opt: LayerOptimizer,
        nb: int,
        div: float = 10,
        pct: float = 10,
        on_cycle_end: Callable[[Any, int], Any] | None = None,
        momentums: Sequence[float] | None = None,
    ) -> None:
        super().__init__(layer_opt, record_mom=momentums is not None)
        self.nb, self.div, self.on_cycle_end = nb, div, on_cycle_end
        self.up = max(int(nb * (1 - pct / 100) / 2), 1)
        self.moms = momentums

    def calc_lr(self, init_lrs: np.ndarray) -> Any:
        """The rate there."""
        at = self.cycle_iter
        if at <= 2 * self.up:
            factor = (1 + (1 - abs(at - self.up) / self.up) * (self.div - 1)) / self.div
        else:
            part = (at - 2 * self.up) / max(self.nb - 2 * self.up, 1)
            factor = (1 - 0.99 * part) / self.div
        self.next_batch()
        return init_lrs * factor

    def calc_mom(self) -> float:
        """The other way, and high at the end; of the batch after, as in 0.7."""
        assert self.moms is not None
        high, low = self.moms
        return high - max(1 - abs(self.cycle_iter - self.up) / self.up, 0) * (high - low)


class DecayType(IntEnum):
    """How a value goes from its start to its end."""

    NO = 1
    LINEAR = 2
    COSINE = 3
    EXPONENTIAL = 4
    POLYNOMIAL = 5


class DecayScheduler:
    """A value on its way from `start_val` to `end_val` in `num_it` steps.

    Examples:
        >>> decay = DecayScheduler(DecayType.LINEAR, 4, 1.0, 0.0)
        >>> [decay.next_val() for _ in range(4)]
        [0.75, 0.5, 0.25, 0.0]
    """

    def __init__(
        self,
        dec_type: DecayType,
        num_it: float,
        start_val: Any,
        end_val: Any = None,
        extra: float | None = None,
    ) -> None:
        if end_val is None and dec_type == DecayType.EXPONENTIAL:
            raise ValueError("an exponential decay needs where to end: lr=(start, end)")
        self.dec_type, self.num_it, self.extra = dec_type, num_it, 1.0 if extra is None else extra
        self.start_val, self.end_val = start_val, 0.0 if end_val is None else end_val
        self.it = 0

    def at(self, it: float) -> Any:
        """The value after so many steps."""
        start, end = self.start_val, self.end_val
        part = min(it / self.num_it, 1.0) if self.num_it else 1.0  # a phase may end within a batch
        if self.dec_type == DecayType.NO:
            return start
        if self.dec_type == DecayType.EXPONENTIAL:
            return start * (end / start) ** part
        left = {
            DecayType.LINEAR: 1 - part,
            DecayType.COSINE: (1 + math.cos(math.pi * part)) / 2,
            DecayType.POLYNOMIAL: (1 - part) ** self.extra,
        }[self.dec_type]
        return end + (start - end) * left

    def next_val(self) -> Any:
        """The value a step on."""
        self.it += 1
        return self.at(self.it)


class TrainingPhase:
    """A stretch of training with an optimizer, rates, momenta and weight decay of its own."""

    def __init__(
        self,
        epochs: float = 1,
        opt_fn: Callable[..., Any] = optim.SGD,
        lr: Any = 1e-2,
        lr_decay: Any = DecayType.NO,
        momentum: Any = 0.9,
        momentum_decay: Any = DecayType.NO,
        beta: float | None = None,
        wds: Any = None,
        wd_loss: bool = True,
    ) -> None:
        self.epochs, self.opt_fn, self.beta = epochs, opt_fn, beta
        self.lr, self.momentum, self.wds, self.wd_loss = lr, momentum, wds, wd_loss
        self.lr_decay, self.momentum_decay = lr_decay, momentum_decay

    def begin(self, layer_opt: LayerOptimizer, nb_batches: float) -> None:
        """Sets all to the phase's first batch."""
        self.layer_opt = layer_opt
        n = self.epochs * nb_batches
        groups = len(layer_opt.layer_groups)
        self.lr_course = _course(self.lr, self.lr_decay, n, groups)
        self.mom_course = _course(self.momentum, self.momentum_decay, n, None)
        layer_opt.set_opt_fn(self.opt_fn)
        layer_opt.set_lrs(self.lr_course.at(0))
        layer_opt.set_mom(self.mom_course.at(0))
        if self.beta is not None:
            layer_opt.set_beta(self.beta)
        if self.wds is not None:
            (layer_opt.set_wds if self.wd_loss else layer_opt.set_wds_out)(self.wds)

    def next_batch(self) -> None:
        """Sets rates and momentum a batch on."""
        self.layer_opt.set_lrs(self.lr_course.next_val())
        self.layer_opt.set_mom(self.mom_course.next_val())


def _course(value: Any, decay: Any, n: float, groups: int | None) -> DecayScheduler:
    kind, extra = decay if isinstance(decay, tuple) else (decay, None)
    start, end = value if isinstance(value, tuple) else (value, None)
    if groups is not None:
        start = np.array(one_for_each(start, groups, "lr"))
        end = None if end is None else np.array(one_for_each(end, groups, "lr"))
    return DecayScheduler(kind, n, start, end, extra)


class OptimScheduler(LossRecorder):
    """Runs training phases one after the other."""

    def __init__(
        self,
        layer_opt: LayerOptimizer,
        phases: Sequence[TrainingPhase],
        nb_batches: Any,
        stop_div: bool = False,
    ) -> None:
        super().__init__(layer_opt, record_mom=True)
        self.phases, self.stop_div = list(phases), stop_div
        self.nb_batches = one_for_each(nb_batches, len(self.phases), "nb_batches")

    def on_train_begin(self) -> Any:
        """Begins the first phase."""
        super().on_train_begin()
        self.phase, self.best, self.begun_at = 0, math.inf, [0]
        self.phases[0].begin(self.layer_opt, self.nb_batches[0])

    def on_batch_end(self, metrics: Any) -> Any:
        """Notes the batch, and goes on."""
        loss = metrics[0] if isinstance(metrics, list) else metrics
        if self.stop_div and (math.isnan(loss) or loss > 4 * self.best):
            return True
        if loss < self.best and self.iteration > 10:
            self.best = loss
        super().on_batch_end(metrics)
        self.phases[self.phase].next_batch()
        return None

    def on_phase_end(self) -> Any:
        """Begins the next phase, if there is one."""
        self.phase += 1
        self.begun_at.append(self.iteration)
        if self.phase < len(self.phases):
            self.phases[self.phase].begin(self.layer_opt, self.nb_batches[self.phase])

    def plot(self, n_skip: int = 10, n_skip_end: int = 5, linear: bool | None = None) -> Any:
        """Draws the loss over the rate, on a linear axis after a linear decay."""
        if linear is None:
            decay = self.phases[-1].lr_decay
            linear = (decay[0] if isinstance(decay, tuple) else decay) == DecayType.LINEAR
        return super().plot(n_skip, n_skip_end, linear)

    def plot_lr(self, show_text: bool = True, show_moms: bool = True) -> Any:
        """Draws rates, and momenta beside them, with the phases' limits and their optimizers."""
        from ..plots import plot_schedule

        figure = plot_schedule(self.lrs, self.momentums if show_moms else None)
        for ax in figure.axes:
            for at in self.begun_at[1:-1]:
                ax.axvline(at - 0.5, linestyle="--", color="#7b8794")
        if show_text:
            for at, phase in zip(self.begun_at, self.phases, strict=False):
                name = getattr(phase.opt_fn, "__name__", type(phase.opt_fn).__name__)
                decay = "" if phase.wds is None else f"\nwds={phase.wds}"
                text = figure.axes[0].get_ylim()[1]
                figure.axes[0].text(at, text, f"{name}{decay}", va="top", fontsize=8)
        return figure


class SaveBestModel(LossRecorder):
    """Saves the model when the first metric is better, or the loss smaller without metrics.

    Better is larger, as in 0.7; smaller for a metric whose name says that it is an error.
    """

    def __init__(
        self, model: Any, layer_opt: LayerOptimizer, metrics: Any, name: str = "best_model"
    ) -> None:
        super().__init__(layer_opt)
        self.model, self.name, self.metrics = model, name, metrics or ()
        self.best: tuple[float, ...] | None = None
        names = metric_names(self.metrics) if self.metrics else [""]
        self.sign = -1.0 if direction(names[0]) == "min" else 1.0

    def on_epoch_end(self, metrics: Any) -> Any:
        """Saves, if it is the best."""
        super().on_epoch_end(metrics)
        loss, *values = metrics if isinstance(metrics, list) else [metrics]
        score = (self.sign * float(values[0]), -loss) if values and self.metrics else (-loss,)
        if not any(map(math.isnan, score)) and (self.best is None or score > self.best):
            self.best = score
            self.model.save(self.name)


class WeightDecaySchedule(Callback):
    """Sets a decoupled weight decay for each batch, normalised by the length of its cycle.

    Loshchilov & Hutter 2017, [arXiv:1711.05101](https://arxiv.org/abs/1711.05101), appendix B.
    """

    def __init__(
        self,
        layer_opt: LayerOptimizer,
        batch_per_epoch: int,
        cycle_len: int,
        cycle_mult: int,
        n_cycles: int,
        norm_wds: bool = False,
        wds_sched_mult: Callable[[Any], float] | None = None,
    ) -> None:
        self.layer_opt, self.batch_per_epoch = layer_opt, batch_per_epoch
        self.norm_wds, self.wds_sched_mult = norm_wds, wds_sched_mult
        self.init_wds, self.init_lrs = np.array(layer_opt.wds), np.array(layer_opt.lrs)
        lengths = [cycle_len * cycle_mult**i for i in range(n_cycles)]
        self.cycle_of_epoch = [length for length in lengths for _ in range(length)]

    def on_train_begin(self) -> Any:
        """Begins anew."""
        self.iteration = self.epoch = 0

    def on_batch_begin(self) -> Any:
        """Sets the decay."""
        wds = self.init_wds
        if self.norm_wds:
            length = self.cycle_of_epoch[min(self.epoch, len(self.cycle_of_epoch) - 1)]
            wds = wds / math.sqrt(self.batch_per_epoch * length)
        if self.wds_sched_mult is not None:
            wds = wds * self.wds_sched_mult(self)
        self.layer_opt.set_wds_out(wds)
        self.iteration += 1

    def on_epoch_end(self, metrics: Any) -> Any:
        """Counts it."""
        self.epoch += 1

    def on_train_end(self) -> Any:
        """Gives the optimizer its own decay back."""
        self.layer_opt.set_wds(self.init_wds)


class LoggingCallback(Callback):
    """Writes a line for each event: time, number, event, metrics, with tabs between."""

    def __init__(self, save_path: str) -> None:
        self.save_path = save_path

    def on_train_begin(self) -> Any:
        """Opens the file, to go on with it."""
        self.batch = self.epoch = self.phase = 0
        self.file = Path(self.save_path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._write(0, "on_train_begin")

    def _write(self, number: int, event: str) -> None:
        self.file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')}\t{number}\t{event}\n")

    def on_phase_begin(self) -> Any:
        """Writes a line."""
        self._write(self.phase, "on_phase_begin")

    def on_phase_end(self) -> Any:
        """Writes a line."""
        self._write(self.phase, "on_phase_end")
        self.phase += 1

    def on_batch_begin(self) -> Any:
        """Writes a line."""
        self._write(self.batch, "on_batch_begin")

    def on_batch_end(self, metrics: Any) -> Any:
        """Writes a line."""
        self._write(self.batch, f"on_batch_end: {metrics}")
        self.batch += 1

    def on_epoch_end(self, metrics: Any) -> Any:
        """Writes a line."""
        self._write(self.epoch, f"on_epoch_end: {metrics}")
        self.epoch += 1

    def on_train_end(self) -> Any:
        """Closes the file."""
        self._write(0, "on_train_end")
        self.file.close()


class SWA(Callback):
    """Keeps the mean of a model's weights in `swa_model`, from epoch `swa_start` (1, ...) on."""

    def __init__(self, model: nn.Module, swa_model: nn.Module, swa_start: int) -> None:
        self.model, self.swa_model, self.swa_start = model, swa_model, swa_start

    def on_train_begin(self) -> Any:
        """Begins anew."""
        self.epoch = self.n = 0

    def on_epoch_end(self, metrics: Any) -> Any:
        """Takes the epoch's weights in."""
        self.epoch += 1
        if self.epoch < self.swa_start:
            return
        with torch.no_grad():
            pairs = zip(self.swa_model.parameters(), self.model.parameters(), strict=True)
            for mean, p in pairs:
                mean.copy_(mean + (p - mean) / (self.n + 1))
        self.n += 1


def fix_batchnorm(swa_model: nn.Module, train_dl: Any) -> None:
    """Estimates the averages of BatchNorm anew, by one pass over the training data."""
    batches = (batch[:-1] for batch in train_dl)
    inputs = (b[0] if len(b) == 1 else list(b) for b in batches)
    momenta = [(m, m.momentum) for m in swa_model.modules() if hasattr(m, "running_mean")]
    buffers = Buffers(swa_model)
    try:
        with modes_kept(swa_model):
            optim.swa_utils.update_bn(_by_first(inputs, swa_model), swa_model)
    except BaseException:  # `update_bn` leaves averages of some batches, and no momentum
        buffers.put_back()
        for module, momentum in momenta:
            module.momentum = momentum
        raise


def _by_first(inputs: Any, net: nn.Module) -> Any:
    device = next(iter(net.parameters())).device
    for x in inputs:
        yield x.to(device) if isinstance(x, torch.Tensor) else x


def copied(model: nn.Module) -> nn.Module:
    """A copy that learns apart."""
    return copy.deepcopy(model)
