"""A small problem, and how a fit of it ends: what the conformance tests try callbacks on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .callback import Callback, Run
from .dataset import ImageClassifierData
from .history import History
from .metrics import accuracy
from .model import fit
from .storage import as_data


def example_data(rows: int = 90, seed: int = 0) -> ImageClassifierData:
    """Three classes of six features, two thirds to train on: 8 batches of 8, the last one short.

    Examples:
        >>> md = example_data()
        >>> len(md.trn_dl), md.c
        (8, 3)
    """
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(3, 6))
    y = np.arange(rows) % 3
    x = (centres[y] + rng.normal(size=(rows, 6))).astype(np.float32)
    n = rows * 2 // 3
    return ImageClassifierData.from_arrays(".", (x[:n], y[:n]), (x[n:], y[n:]), bs=8)


def example_net() -> nn.Sequential:
    """A net for `example_data`, with dropout and BatchNorm.

    Examples:
        >>> example_net()(torch.zeros(2, 6)).shape
        torch.Size([2, 3])
    """
    layers = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    return nn.Sequential(*layers, nn.LogSoftmax(dim=1))


def example_fit(
    callbacks: Sequence[Callback], epochs: int = 1, lr: float = 0.05, **options: Any
) -> History:
    """Fits `example_net` to `example_data` by SGD with momentum, from seed 0.

    The world's random generators are as before afterwards.

    Examples:
        >>> len(example_fit([], epochs=2))
        2
    """
    return trial_fit(callbacks, epochs, lr, **options).history


class Result:
    """How a fit ended."""

    def __init__(self, net: nn.Module, opt: torch.optim.Optimizer) -> None:
        self.net, self.opt = net, opt
        self.settings = [settings_of(opt)]
        self.parts = parts_of(net)
        self.history = History()
        self.weights: dict[str, Tensor] = {}
        self.rng: list[object] = []
        self.error: BaseException | None = None


def trial_fit(
    callbacks: Sequence[Callback],
    epochs: int = 2,
    lr: float = 0.05,
    expect: type[BaseException] | None = None,
    validate: bool = True,
    **options: Any,
) -> Result:
    """Fits as `example_fit` does, and says how the fit ended, also by an error that is expected."""
    with seeded():
        net, data = example_net(), example_data()
        if not validate:
            data.val_dl = None
        opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
        result = Result(net, opt)
        metrics = [accuracy]
        try:
            result.history = fit(
                net, data, epochs, nn.NLLLoss(), opt, metrics, callbacks, progress=False, **options
            )
        except BaseException as error:
            if expect is None or not isinstance(error, expect):
                raise
            result.error = error
        finally:
            result.settings.append(settings_of(opt))
            result.weights = {k: t.detach().clone() for k, t in net.state_dict().items()}
            result.rng = [torch.get_rng_state().tolist(), random.getstate()]
            result.rng.append(str(np.random.get_state(legacy=False)))
    return result


@contextmanager
def seeded() -> Iterator[None]:
    """All random generators begin with seed 0, and are as before afterwards."""
    state = random.getstate(), np.random.get_state(legacy=False)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])


def settings_of(opt: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Learning rates, momenta and the like, of each parameter group."""
    return [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]


def parts_of(net: nn.Module) -> dict[str, list[str]]:
    """The names of all that hangs on the modules of a net: attributes, parameters and buffers."""
    return {
        name: sorted([*vars(module), *module._parameters, *module._buffers, *module._modules])
        for name, module in net.named_modules()
    }


# ---- what the checks have in common -------------------------------------------------------

INTERRUPTED = 1, 6, 11, 15  # of two epochs of 8 batches; not all even, or multiples of three


def same(a: Result, b: Result) -> bool:
    """Whether two fits ended with the same weights and buffers."""
    return all(torch.equal(t, b.weights[name]) for name, t in a.weights.items())


class At(Callback):
    """Does something in the n-th `on_batch_end`."""

    def __init__(self, n: int, action: Callable[[Run], object]) -> None:
        self.n, self.action = n, action

    def on_batch_end(self, run: Run) -> None:
        """Does it, if it is time."""
        if run.step == self.n:
            self.action(run)


def assert_left_alone(plugin: Any, result: Result) -> None:
    """Nothing of a plugin is left on the net, and no parameter is frozen."""
    net = result.net
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    for name, module in net.named_modules():
        hooked = [kind for kind in kinds if getattr(module, kind, None)]
        where = f"module {name!r}" if name else "the net"
        assert not hooked, f"{plugin!r} leaves hooks on {where}: remove them in on_train_end"
        left = sorted({*parts_of(net)[name]} ^ {*result.parts.get(name, ())})
        assert not left, f"{plugin!r} leaves {left[0]!r} on {where}: undo it in on_train_end"
    on_parameters = "_backward_hooks", "_post_accumulate_grad_hooks"
    for name, p in net.named_parameters():
        hooked = [kind for kind in on_parameters if getattr(p, kind, None)]
        assert not hooked, f"{plugin!r} leaves a hook on {name}: remove it in on_train_end"
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert not frozen, f"{plugin!r} leaves {frozen[0]} frozen: free it in on_train_end"


def assert_plain(plugin: Any) -> None:
    """Only what a file may hold as data."""
    try:
        as_data(plugin.state_dict(), "its state_dict()")
    except TypeError as error:
        raise AssertionError(f"{plugin!r} cannot be saved: {error}") from error
