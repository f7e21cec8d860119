"""The course's notebooks of 2017-18, unmodified: `fastai` 0.7 answered by minifast.

    %load_ext minifast.compat                  in a notebook's first cell
    python -m minifast.compat script.py        a script
    python -m minifast.compat --check n.ipynb  which cells run, and why others do not

or `minifast.compat.install()` and `uninstall()`. While it is installed, `import fastai` and its
modules are answered as far as arrays go, `.cuda()` goes to the best device there is, and in cells
and scripts run this way `loss.data[0]` of a number is that number.
"""

from __future__ import annotations

from typing import Any

from . import aliases, cuda
from . import core as core
from . import data as data
from . import io as io
from . import layer_optimizer as layer_optimizer
from . import learner as learner
from . import metrics as metrics
from . import pictures as pictures
from . import schedules as schedules
from . import training as training

__all__ = ["install", "uninstall"]


def install() -> None:
    """Answers `import fastai`, and lets `.cuda()` go where it can; twice is once.

    Examples:
        >>> install()
        >>> from fastai.model import fit
        >>> uninstall()
    """
    aliases.install()
    cuda.install()


def uninstall() -> None:
    """Puts all back as it was."""
    aliases.uninstall()
    cuda.uninstall()


def load_ipython_extension(ipython: Any) -> None:
    """What `%load_ext minifast.compat` calls."""
    from .rewrite import DataOfNumbers

    install()
    if not any(isinstance(each, DataOfNumbers) for each in ipython.ast_transformers):
        ipython.ast_transformers.append(DataOfNumbers())


def unload_ipython_extension(ipython: Any) -> None:
    """What `%unload_ext minifast.compat` calls."""
    from .rewrite import DataOfNumbers

    uninstall()
    ipython.ast_transformers[:] = [
        each for each in ipython.ast_transformers if not isinstance(each, DataOfNumbers)
    ]
