"""`.cuda()` without a GPU of that make: goes to the best device there is, until it is put back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import T

_kept: dict[tuple[Any, str], Any] = {}
_said = False  # whether anything was moved


def best_device() -> torch.device:
    """`mps` where there is one, else the CPU; with CUDA nothing is changed."""
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def install() -> None:
    """Lets `.cuda()` of tensors and modules go there; says so at its first use."""
    if torch.cuda.is_available() or _kept:
        return
    device = best_device()

    def say() -> None:
        global _said
        if not _said:
            _said = True
            print(f"minifast.compat: there is no CUDA here, so .cuda() goes to {device}")

    def tensor_cuda(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        say()
        return self.to(device)

    def module_cuda(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        say()
        return self.to(device)

    def set_device(number: Any) -> None:
        say()

    for owner, name, new in (
        (Tensor, "cuda", tensor_cuda),
        (nn.Module, "cuda", module_cuda),
        (torch.cuda, "set_device", set_device),
    ):
        _kept[owner, name] = vars(owner).get(name)  # None: inherited
        setattr(owner, name, new)


def followed(x: Any) -> Any:
    """A tensor where `.cuda()` went, once it was used here; anything else as it is."""
    if not (_kept and _said) or best_device().type == "cpu":
        return x
    return T(x).to(best_device())


def uninstall() -> None:
    """Puts them back."""
    global _said
    for (owner, name), old in _kept.items():
        if old is None:
            delattr(owner, name)
        else:
            setattr(owner, name, old)
    _kept.clear()
    _said = False
