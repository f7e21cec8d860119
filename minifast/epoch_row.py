"""An epoch's row of the table: what `fit` computes, and the columns that callbacks add."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .batches import seen
from .callback import Run
from .core import explain
from .metrics import metric_names

__all__: list[str] = []  # of use to the package alone


def row_begun(run: Run) -> dict[str, Any]:
    """The row when the epoch's batches are done, with what handlers have put into it meanwhile.

    Raises:
        ValueError: if that includes a column of `fit`, which would overwrite it.
    """
    own = {"epoch", "trn_loss", "val_loss", *metric_names(run.metrics)}
    taken = [name for name in run.values if name in own]
    if taken:
        raise ValueError(_taken(taken[0], f"run.values[{taken[0]!r}] set before the epoch's end"))
    return {"epoch": run.epoch, "trn_loss": run.running_loss.value(), **run.values}


def row_ended(run: Run) -> dict[str, Any]:
    """The row as it goes into the history.

    Raises:
        ValueError: if the number of the epoch was overwritten, or a column has several values.
    """
    if run.values.get("epoch") != run.epoch:
        raise ValueError(_taken("epoch", f"epoch {run.values.get('epoch')!r} in epoch {run.epoch}"))
    for name, value in run.values.items():
        if (value.numel() if isinstance(value, Tensor) else getattr(value, "size", 1)) != 1:
            raise ValueError(
                explain(
                    f"the column {name} must have one value for each epoch",
                    got=seen(value),
                    wanted="a number, or a tensor with one element",
                    fix=f"run.values[{name!r}] = value.mean(), or a column for each element",
                    entry="columns",
                )
            )
    return run.values


def _taken(name: str, got: str) -> str:
    return explain(
        f"a callback overwrites the column {name}, which fit fills",
        got=got,
        wanted="columns of its own, under other names",
        fix=f"run.values['my_{name}'] = ...",
        entry="columns",
    )
