"""Parts of a net that do not learn, for a while or at all."""

from __future__ import annotations

from torch import nn

from ..callback import Callback, Run
from ..core import explain


class Freeze(Callback):
    """Keeps a part of the net as it is, until an epoch begins or to the end.

    The part's parameters get no gradients and it stays in eval mode, so that BatchNorm's averages
    do not move and dropout drops nothing. Afterwards every parameter is as free as it was.

    Args:
        *parts: Modules of the net, or their names in it (`net.named_modules()`).
        until: The epoch, from 0, from which they learn; None for never in this fit.

    Raises:
        ValueError: when training begins, if a part is not in the net that is trained, or another
            `Freeze` in the list holds some of its parameters.

    Examples:
        >>> from minifast.testing import example_fit
        >>> history = example_fit([Freeze("0", until=1)], epochs=2)
    """

    changes_training = True

    def __init__(self, *parts: nn.Module | str, until: int | None = None) -> None:
        self.parts, self.until = parts, until
        self.modules: list[nn.Module] = []
        self.free: list[nn.Parameter] = []

    def __repr__(self) -> str:
        return f"Freeze({', '.join(map(_name, self.parts))}, until={self.until})"

    def on_train_begin(self, run: Run) -> None:
        """Takes the parts' parameters out of learning."""
        self.modules, self.free = [], []  # an earlier fit's must not be freed, should this one fail
        named = dict(run.net.named_modules())
        known = set(named.values())
        found = [named.get(part) if isinstance(part, str) else part for part in self.parts]
        modules = [module for module in found if module is not None and module in known]
        if not self.parts or len(modules) < len(self.parts):
            raise _refused(
                "Freeze wants parts of the net that is trained",
                got=", ".join(map(_name, self.parts)) or "nothing",
                wanted="modules of net, such as net[0], or their names in it",
            )
        params = dict.fromkeys(p for part in modules for p in part.parameters())
        others = [c for c in run.callbacks if isinstance(c, Freeze) and c is not self]
        if any(p in params for other in others for p in other.free):
            raise _refused(
                "two Freeze callbacks hold the same parameters",
                got=", ".join(map(repr, (*others, self))),
                wanted="each parameter in one of them: the first to free it would free it for all",
            )
        self.modules = modules
        self.free = [p for p in params if p.requires_grad]
        self._let_learn(False)

    def on_epoch_begin(self, run: Run) -> None:
        """Keeps them in eval mode, or lets them learn."""
        if self.until is not None and run.epoch >= self.until:
            self._let_learn(True)
            return
        for module in self.modules:
            module.eval()

    def on_train_end(self, run: Run) -> None:
        """Leaves every parameter as free as it was."""
        self._let_learn(True)
        self.modules, self.free = [], []

    def _let_learn(self, learn: bool) -> None:
        for p in self.free:
            p.requires_grad_(learn)
            if not learn:
                p.grad = None  # a gradient of before would be stepped by


def _refused(problem: str, got: str, wanted: str) -> ValueError:
    fix = "Freeze(net[0], until=2)"
    return ValueError(explain(problem, got=got, wanted=wanted, fix=fix, entry="freezing"))


def _name(part: nn.Module | str) -> str:
    return repr(part) if isinstance(part, str) else type(part).__name__
