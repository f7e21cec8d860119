"""What is not here, said when it is used and not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def refuses(what: str) -> Callable[..., Any]:
    """A function that says so when it is called."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{what}, which minifast.compat leaves out: it takes arrays and tables "
            "(ImageClassifierData.from_arrays, ColumnarModelData)"
        )

    return refuse


class Missing:
    """A name of fastai 0.7 that minifast does not have: it can be imported, not used."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name} of fastai 0.7: not in minifast.compat>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Says that it is not here, as every other use of it does."""
        return refuses(f"{self.name} of fastai 0.7 is for files, text or pretrained nets")()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked by notebooks and copiers, which is no use of it
            raise AttributeError(name)
        return self()

    def __mro_entries__(self, bases: Any) -> Any:
        return self()
