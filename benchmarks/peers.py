"""Other frameworks, as their own documentation has one use them; each is imported when it runs."""

# mypy: disable-error-code="import-untyped,import-not-found,no-any-unimported,unused-ignore"
from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

from .ways import Tutorial, Way


class AsFloats(nn.Module):
    """The net on uint8 rows; the peers have no place for it but the net."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x.float())


class Fastai(Tutorial):
    """A `Learner` on fastai's own loaders, stepping torch's optimizer."""

    package = "fastai"

    def prepare(self, *arrays: NDArray[Any]) -> None:
        import fastai.callback.progress  # noqa: F401 - for no_bar
        from fastai.basics import DataLoaders, Learner, OptimWrapper, accuracy

        x, y, x_valid, y_valid = map(torch.from_numpy, arrays)
        sets = TensorDataset(x, y), TensorDataset(x_valid, y_valid)
        dls = DataLoaders.from_dsets(
            *sets, bs=self.job.bs, num_workers=0, drop_last=False, device="cpu"
        )
        self.learner = Learner(
            dls,
            AsFloats(self.net) if self.job.uint8 else self.net,
            loss_func=self.crit,
            metrics=[accuracy] if self.job.classes else [],
            opt_func=partial(OptimWrapper, opt=self.job.optimizer, **self.job.options),
            lr=self.job.options.get("lr", 1e-3),
        )

    def epoch(self) -> float:
        if self.job.kind == "bar":
            self.learner.fit(1)
        else:
            with self.learner.no_bar(), self.learner.no_logging():
                self.learner.fit(1)
        return float(self.learner.recorder.values[-1][1])


class Lightning(Tutorial):
    """A `LightningModule` and a `Trainer` without logger and checkpoints."""

    package = "lightning"

    def prepare(self, *arrays: NDArray[Any]) -> None:
        super().prepare(*arrays)
        import lightning

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")
        net, crit, opt = AsFloats(self.net) if self.job.uint8 else self.net, self.crit, self.opt
        classes = bool(self.job.classes)

        class Module(lightning.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def training_step(self, batch: Any, _: int) -> Any:
                return crit(self.net(batch[0]), batch[1])

            def validation_step(self, batch: Any, _: int) -> None:
                x, y = batch
                preds = self.net(x)
                self.log("val_loss", crit(preds, y), batch_size=len(y))
                if classes:
                    self.log("accuracy", (preds.argmax(1) == y).float().mean(), batch_size=len(y))

            def configure_optimizers(self) -> Any:
                return opt

        self.module, self.trainer = Module(), lightning.Trainer

    def epoch(self) -> float:
        shown = self.job.kind == "bar"
        trainer = self.trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=shown,
            enable_model_summary=shown,
        )
        trainer.fit(self.module, self.trn, self.val)
        return float(trainer.callback_metrics["val_loss"])


class LogProbabilityLoss(nn.Module):
    """NLLLoss by another name: skorch takes what goes into NLLLoss for probabilities."""

    def forward(self, preds: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.nll_loss(preds, y)


class Skorch(Tutorial):
    """`NeuralNetClassifier`, or `NeuralNetRegressor`, with the validation rows given."""

    package = "skorch"

    def prepare(self, *arrays: NDArray[Any]) -> None:
        from skorch import NeuralNetClassifier, NeuralNetRegressor
        from skorch.dataset import Dataset
        from skorch.helper import predefined_split

        x, y, x_valid, y_valid = arrays
        self.rows = x, y
        options: dict[str, Any] = {
            k if k == "lr" else f"optimizer__{k}": v for k, v in self.job.options.items()
        }
        if self.job.classes:
            make: Any = NeuralNetClassifier
            crit: Any = LogProbabilityLoss
            options |= {"classes": list(range(10)), "predict_nonlinearity": None}
        else:
            make, crit = NeuralNetRegressor, self.job.crit
        self.model = make(
            AsFloats(self.net) if self.job.uint8 else self.net,
            criterion=crit,
            optimizer=self.job.optimizer,
            **{"lr": 1e-3, **options},
            batch_size=self.job.bs,
            iterator_train__shuffle=True,
            verbose=int(self.job.kind == "bar"),
            device="cpu",
            train_split=predefined_split(Dataset(x_valid, y_valid)),
        )
        self.model.initialize()

    def epoch(self) -> float:
        self.model.partial_fit(*self.rows, epochs=1)
        return float(self.model.history[-1, "valid_loss"])


class Ignite(Tutorial):
    """`create_supervised_trainer` and `create_supervised_evaluator`."""

    package = "ignite"

    def prepare(self, *arrays: NDArray[Any]) -> None:
        super().prepare(*arrays)
        from ignite.engine import create_supervised_evaluator, create_supervised_trainer
        from ignite.metrics import Accuracy, Loss

        net = AsFloats(self.net) if self.job.uint8 else self.net
        metrics = {"loss": Loss(self.crit)} | ({"accuracy": Accuracy()} if self.job.classes else {})
        self.trainer = create_supervised_trainer(net, self.opt, self.crit)
        self.evaluator = create_supervised_evaluator(net, metrics=metrics)

    def epoch(self) -> float:
        self.trainer.run(self.trn, max_epochs=self.trainer.state.epoch + 1)
        self.evaluator.run(self.val)
        return float(self.evaluator.state.metrics["loss"])


class Poutyne(Tutorial):
    """`Model.fit`."""

    package = "poutyne"

    def prepare(self, *arrays: NDArray[Any]) -> None:
        from poutyne import Model

        x, y, x_valid, y_valid = map(torch.from_numpy, arrays)
        self.rows, self.valid = (x, y), (x_valid, y_valid)
        net = AsFloats(self.net) if self.job.uint8 else self.net
        metrics = ["accuracy"] if self.job.classes else []
        self.model = Model(net, self.opt, self.crit, batch_metrics=metrics, device="cpu")

    def epoch(self) -> float:
        history = self.model.fit(
            *self.rows,
            validation_data=self.valid,
            epochs=1,
            batch_size=self.job.bs,
            verbose=self.job.kind == "bar",
        )
        return float(history[-1]["val_loss"])


PEERS: dict[str, type[Way]] = {
    "skorch": Skorch,
    "Ignite": Ignite,
    "Poutyne": Poutyne,
    "Lightning": Lightning,
    "fastai 2": Fastai,
}
