"""What the class of a plugin declares: its methods, and what it says about other plugins."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from reprlib import Repr
from types import CodeType
from typing import Any

from .errors import explain

Members = Mapping[str, Sequence[str] | None]

__all__: list[str] = []  # of use to the package alone

# The members of a callback and of a stepper: arguments of a method, None for what is not a method.
CALLBACK: Members = {
    **dict.fromkeys(("changes_training", "first_process_only")),
    **dict.fromkeys(("must_precede", "must_follow", "conflicts_with")),
    "state_dict": (),
    "load_state_dict": ("state",),
    "transform_loss": ("run", "preds", "loss"),
}
STEPPER: Members = {
    "forward": ("net", "x"),
    "step": ("run", "events"),
    "load_state_dict": ("state",),
    **dict.fromkeys(("zero_grad", "backward", "update"), ("run",)),
    "state_dict": (),
}
# What fastai 2 calls its events; a method of that name would never be called.
ELSEWHERE = {
    "before_fit": "on_train_begin",
    "after_fit": "on_train_end",
    "before_epoch": "on_epoch_begin",
    "before_train": "on_epoch_begin",
    "before_batch": "on_batch_begin",
    "after_batch": "on_batch_end",
    "after_loss": "on_backward_begin",
    "after_backward": "on_backward_end",
    "before_validate": "on_validate_begin",
    "after_validate": "on_validate_end",
    "before_step": "on_backward_end",
    "after_epoch": "on_epoch_end",
}
# Facts of a run whose assignment would not change what is trained, and what changes it.
FACTS = {
    "net": "change net in place; or call fit again, with an optimizer over the other net's weights",
    "epochs": "run.stop(reason) ends training sooner; fit(..., epochs=n) says how long it is",
    "callbacks": "fit(..., callbacks=[...]); a callback may do nothing until it is needed",
    "stepper": "fit(..., stepper=...); a stepper may learn differently from epoch to epoch",
}
ALIKE = 0.75  # how similar two names are when one is probably the other, misspelled


def check_handler(
    cls: type, name: str, value: Any, events: Sequence[str], on_object: bool = False
) -> None:
    """Refuses `cls.name` unless it is an event's handler that can be called with `run` alone."""
    if name not in events:
        import difflib  # only on the way to an error

        close = difflib.get_close_matches(name, events, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the events are {', '.join(events)}"
        raise TypeError(f"{cls.__name__}.{name} is no event: {hint}")
    if inspect.isfunction(value) or on_object:
        _check_arguments(cls, name, value, ["run"], not on_object)


def check_members(cls: type, members: Members) -> None:
    """Refuses methods with other arguments than `members` says, and names that were misspelled.

    `members` has the arguments of each method, and None for what is not a method. A name is
    misspelled if it is similar to one of them, can be called like it, and is not used in the class.

    Raises:
        TypeError: when such a class is defined.
    """
    inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
    unknown = []
    for name, value in vars(cls).items():
        if members.get(name) is not None and inspect.isfunction(value):
            _check_arguments(cls, name, value, members[name] or ())
        elif not (name.startswith("_") or name in members or name in inherited):
            unknown.append(name)
    for name in set(unknown) - _names_used(cls) if unknown else ():
        meant = _meant(name, vars(cls)[name], members)
        if meant:
            raise TypeError(
                f"{cls.__name__}.{name} is never called: did you mean {meant}? "
                f"If it is a method of its own, name it _{name}"
                if members.get(meant, ()) is not None
                else f"{cls.__name__}.{name} is never read: did you mean {meant}?"
            )


def _check_arguments(
    cls: type, name: str, value: Any, arguments: Sequence[str], has_self: bool = True
) -> None:
    problem = _cannot_take(value, len(arguments) + has_self)
    if problem:
        call, head = ", ".join(arguments), ", ".join(["self", *arguments])
        raise TypeError(
            f"{cls.__name__}.{name} must be callable as {name}({call}): {problem}. "
            f"Write it as `def {name}({head}):`"
        )


def _cannot_take(value: Any, n: int) -> str:
    """Why a function cannot be called with n arguments; "" if it can."""
    try:  # the function itself, since what it wraps may be called with arguments that it adds
        inspect.signature(value, follow_wrapped=False).bind(*[None] * n)
    except TypeError as error:
        return str(error)
    return ""


def _meant(name: str, value: Any, members: Members) -> str:
    """The member for which the name stands, if it is probably misspelled."""
    import difflib

    method = inspect.isfunction(value)
    if method and members is CALLBACK and name in ELSEWHERE:
        return ELSEWHERE[name]
    kind = [
        member
        for member, arguments in members.items()
        if (arguments is not None) == method
        and not (method and _cannot_take(value, len(arguments or ()) + 1))
        and not name.startswith(f"{member}_")
    ]
    return next(iter(difflib.get_close_matches(name, kind, n=1, cutoff=ALIKE)), "")


def _names_used(cls: type) -> set[str]:
    """The names that the functions of a class use."""
    functions = (getattr(v, "fget", getattr(v, "__wrapped__", v)) for v in vars(cls).values())
    codes = (getattr(function, "__code__", None) for function in functions)
    return {name for code in codes if code is not None for name in _names_in(code)}


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


# ---- one of several ----------------------------------------------------------------------


def check_pair(first: Any, second: Any, all_: Sequence[Any]) -> None:
    """Refuses two callbacks that cannot be in one list, in this order or at all."""
    one, other = type(first).__name__, type(second).__name__
    names = f"[{', '.join(type(callback).__name__ for callback in all_)}]"
    if first is second:
        problem, got = "callbacks holds the same object twice", f"{first!r}, twice"
        wanted = "each object once: its handlers would run twice for every event"
        fix, entry = f"make two: [{one}(...), {one}(...)]", "lists"
    elif _excludes(first, second) or (_precedes(second, first) and _precedes(first, second)):
        problem, got = f"callbacks has {one} and {other}, which cannot be combined", names
        wanted = f"one of them: {one} and {other} would change the same thing, each its own way"
        fix, entry = f"leave out {one} or {other}", "conflicting-callbacks"
    elif _precedes(second, first):
        problem, got = f"callbacks has {one} before {other}, which makes no sense", names
        wanted = f"{other} before {one}: {one} works on what {other} has done"
        fix, entry = f"callbacks=[{other}(...), {one}(...)]", "order-of-callbacks"
    else:
        return
    raise ValueError(explain(problem, got=got, wanted=wanted, fix=fix, entry=entry))


def _precedes(one: Any, other: Any) -> bool:
    """Whether one of the two declares that the first precedes the other."""
    return _is_any(other, one.must_precede) or _is_any(one, other.must_follow)


def _excludes(one: Any, other: Any) -> bool:
    return _is_any(one, other.conflicts_with) or _is_any(other, one.conflicts_with)


def _is_any(callback: Any, kinds: tuple[type | str, ...]) -> bool:
    """Whether the callback is of one of the classes, given themselves or by name."""
    names = {cls.__name__ for cls in type(callback).__mro__}
    return any(isinstance(callback, k) if isinstance(k, type) else k in names for k in kinds)


def check_declarations(callback: Any, events: Sequence[str]) -> None:
    """What a callback says of others names classes; a handler on the object handles an event."""
    for name in ("must_precede", "must_follow", "conflicts_with"):
        kinds = getattr(callback, name)
        if isinstance(kinds, tuple | list) and all(isinstance(k, type | str) for k in kinds):
            continue
        raise TypeError(
            explain(
                f"{type(callback).__name__}.{name} must be a tuple of classes or of their names",
                got=repr(kinds),
                wanted="a tuple, also for a single class",
                fix=f'{name} = ("GradClip",)',
                entry="order-of-callbacks",
            )
        )
    for name, value in vars(callback).items():
        if name.startswith("on_") and callable(value):
            check_handler(type(callback), name, value, events, on_object=True)


# ---- what it looks like ------------------------------------------------------------------

# A plugin may hold a net or a list of losses, and its repr goes into messages.
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def call_of(plugin: Any) -> str:
    """The call that makes one like it, as far as its attributes tell; long values shortened.

    Examples:
        >>> class Halve:
        ...     def __init__(self, times=1):
        ...         self.times = times
        >>> call_of(Halve(3))
        'Halve(times=3)'
    """
    names = [name for name in inspect.signature(type(plugin)).parameters if hasattr(plugin, name)]
    values = (f"{name}={_SHORT.repr(getattr(plugin, name))}" for name in names)
    return " ".join(f"{type(plugin).__name__}({', '.join(values)})".split())


def no_second_loss(callback: Any) -> str:
    """That a callback may change the loss in a way that a second pass cannot repeat."""
    name = type(callback).__name__
    return explain(
        f"the loss of a second pass is not known: {name} may change it in on_backward_begin",
        got=f"{name} without transform_loss",
        wanted="the change as a method, which can be called again",
        fix="def transform_loss(self, run, preds, loss): return ..., called by on_backward_begin",
        entry="the-loss",
    )


# ---- what is fixed -----------------------------------------------------------------------


def fix_fields(record: type) -> None:
    """Lets the constructor alone set the `FACTS` of a record with slots.

    Reading them runs no Python code, and writing the other fields is what it was.
    """
    for name, fix in FACTS.items():
        setattr(record, name, _fixed(getattr(record, name), name, fix))


def _fixed(slot: Any, name: str, fix: str) -> property:
    def set_once(record: Any, value: Any) -> None:
        try:
            slot.__get__(record)
        except AttributeError:
            slot.__set__(record, value)
            return
        raise AttributeError(
            explain(
                f"run.{name} cannot be assigned",
                got=f"{type(value).__name__}, while a fit runs",
                wanted=f"the {name} that fit was given, from the first batch to the last",
                fix=fix,
                entry="facts",
            )
        )

    return property(slot.__get__, set_once)
