"""The stock of callbacks and steppers, one file each, and what others have installed.

    from minifast.plugins import EarlyStopping, OneCycle

A name is imported when it is first asked for. A plug-in of your own is an ordinary class and needs
no registration; entry points only serve to list plug-ins and to choose them by name.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..callback import Callback
from ..core import explain
from ..errors import add_note
from ..stepper import Stepper

if TYPE_CHECKING:
    from .activation_stats import ActivationStats as ActivationStats
    from .checkpoint import Checkpoint as Checkpoint
    from .class_weights import class_weights as class_weights
    from .compiled import Compiled as Compiled
    from .cosine_restarts import CosineRestarts as CosineRestarts
    from .csv_logger import CSVLogger as CSVLogger
    from .cuda_graph import CudaGraph as CudaGraph
    from .early_stopping import EarlyStopping as EarlyStopping
    from .ema import EMA as EMA
    from .fast import Fast as Fast
    from .freeze import Freeze as Freeze
    from .grad_accumulation import GradAccumulation as GradAccumulation
    from .grad_clip import GradClip as GradClip
    from .gradient_stats import GradientStats as GradientStats
    from .json_logger import JSONLogger as JSONLogger
    from .label_smoothing import LabelSmoothing as LabelSmoothing
    from .live_plot import LivePlot as LivePlot
    from .loss_recorder import LossRecorder as LossRecorder
    from .loss_recorder import preview as preview
    from .lr_find import lr_find as lr_find
    from .mixed_precision import MixedPrecision as MixedPrecision
    from .mixup import MixUp as MixUp
    from .mlflow import MLflow as MLflow
    from .one_cycle import OneCycle as OneCycle
    from .profile import Profile as Profile
    from .save_best import SaveBest as SaveBest
    from .schedule import Schedule as Schedule
    from .swa import SWA as SWA
    from .tensorboard import TensorBoard as TensorBoard
    from .terminate_on_nan import TerminateOnNaN as TerminateOnNaN
    from .time_limit import TimeLimit as TimeLimit
    from .warmup import Warmup as Warmup

STOCK = {
    "ActivationStats": "activation_stats",
    "CSVLogger": "csv_logger",
    "Checkpoint": "checkpoint",
    "Compiled": "compiled",
    "CosineRestarts": "cosine_restarts",
    "CudaGraph": "cuda_graph",
    "EMA": "ema",
    "EarlyStopping": "early_stopping",
    "Fast": "fast",
    "Freeze": "freeze",
    "GradAccumulation": "grad_accumulation",
    "GradClip": "grad_clip",
    "GradientStats": "gradient_stats",
    "JSONLogger": "json_logger",
    "LabelSmoothing": "label_smoothing",
    "LivePlot": "live_plot",
    "LossRecorder": "loss_recorder",
    "MLflow": "mlflow",
    "MixUp": "mixup",
    "MixedPrecision": "mixed_precision",
    "OneCycle": "one_cycle",
    "Profile": "profile",
    "SWA": "swa",
    "SaveBest": "save_best",
    "Schedule": "schedule",
    "TensorBoard": "tensorboard",
    "TerminateOnNaN": "terminate_on_nan",
    "TimeLimit": "time_limit",
    "Warmup": "warmup",
    "class_weights": "class_weights",
    "lr_find": "lr_find",
    "preview": "loss_recorder",
}
GROUPS = {
    "minifast.callbacks": "callback",
    "minifast.metrics": "metric",
    "minifast.steppers": "stepper",
}

__all__ = ["Plugin", "available", "load", *STOCK]


def __getattr__(name: str) -> Any:
    """Imports a plug-in of the stock when it is first asked for."""
    if name not in STOCK:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{STOCK[name]}", __name__), name)
    globals()[name] = value
    return value


@dataclass(frozen=True)
class Plugin:
    """A plug-in that is installed, as its package's metadata tell: nothing of it was imported.

    Attributes:
        name: What `load` takes.
        kind: `"callback"`, `"metric"` or `"stepper"`.
        value: Where it is: `module:name`.
        distribution: The package that brought it, with its version.
    """

    name: str
    kind: str
    value: str
    distribution: str

    def summary(self) -> str:
        """The first line of its docstring, read from the source and not by importing it.

        Where the source cannot be read, why: "cannot be read: SyntaxError: ...".
        """
        module, _, name = self.value.partition(":")
        try:
            path = _source(module)
            body = ast.parse(path.read_bytes(), filename=path.name).body if path else []
        except Exception as error:  # whatever is wrong with one, the others are listed
            return f"cannot be read: {type(error).__name__}: {error}"
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                return (ast.get_docstring(node) or "").partition("\n")[0]
        return ""


def available() -> list[Plugin]:
    """The plug-ins that are installed, by kind and name. Imports none of them.

    Examples:
        >>> [plugin.distribution.split()[0] for plugin in available() if plugin.name == "EMA"]
        ['minifast']
    """
    found = []
    for group, kind in GROUPS.items():
        for entry in importlib.metadata.entry_points(group=group):
            dist = f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""
            found.append(Plugin(entry.name, kind, entry.value, dist))
    return sorted(set(found), key=lambda plugin: (plugin.kind, plugin.name, plugin.distribution))


def unread() -> list[str]:
    """What is said of entry points in groups that nothing reads, as their names are misspelled."""
    found = []
    for group in importlib.metadata.entry_points().groups - GROUPS.keys():
        close = difflib.get_close_matches(group, GROUPS, n=1, cutoff=0.8)
        if not (close or group.startswith("minifast.")):
            continue
        meant = close[0] if close else " or ".join(GROUPS)
        for entry in importlib.metadata.entry_points(group=group):
            origin = entry.dist.name if entry.dist else "a package"
            what = f"{entry.name} of {origin} is not listed"
            found.append(f"{what}: its group must be {meant}, not {group}")
    return sorted(set(found))


def load(name: str) -> Any:
    """Imports one installed plugin and returns the class or function.

    Args:
        name: Its name; or `"package:name"`, where several packages have one of that name.

    Raises:
        LookupError: if no installed package has one of this name.
        ValueError: if several have.
        TypeError: if what is there is not a plugin.
        ImportError, AttributeError: if it cannot be imported; a note names its package.

    Examples:
        >>> load("EarlyStopping")(patience=3).patience
        3
        >>> load("minifast:EMA").__name__
        'EMA'
    """
    if not isinstance(name, str):
        raise TypeError(
            explain(
                "name must be the name of a plugin",
                got=type(name).__name__,
                wanted="a string",
                fix='load("EMA")',
                entry="plug-ins",
            )
        )
    package, _, own = name.rpartition(":")
    found = [plugin for plugin in available() if plugin.name == own]
    if package:
        found = [plugin for plugin in found if _package(plugin) == _normal(package)]
    if len(found) != 1:
        if found:
            raise ValueError(_several(name, found))
        raise LookupError(_unknown(name, own))
    (plugin,) = found
    module, _, attribute = plugin.value.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
    except Exception as error:
        add_note(error, f"raised while loading {name}, which {plugin.distribution} declares")
        raise
    return _checked(plugin, value)


def _normal(package: str) -> str:
    return package.lower().replace("_", "-")


def _package(plugin: Plugin) -> str:
    return _normal(plugin.distribution.partition(" ")[0])


def _several(name: str, found: list[Plugin]) -> str:
    return explain(
        f"{name!r} names more than one plug-in",
        got=", ".join(f"{plugin.distribution} ({plugin.value})" for plugin in found),
        wanted="the name of one",
        fix=f'load("{_package(found[0])}:{found[0].name}"), or import the class by itself',
        entry="plug-ins",
    )


def _unknown(name: str, own: str) -> str:
    names = {plugin.name.lower(): plugin.name for plugin in available()}
    close = difflib.get_close_matches(own.lower(), names, n=1)
    misplaced = [text for text in unread() if text.startswith(f"{own} of ")]
    return explain(
        f"{name!r} names no installed plug-in",
        got=", ".join(misplaced) or f"{len(names)} names, and none of them {own}",
        wanted="the name of one",
        fix=(f"did you mean {names[close[0]]}? " if close else "")
        + "python -m minifast plugins lists them; or import the class by itself",
        entry="plug-ins",
    )


def _checked(plugin: Plugin, value: Any) -> Any:
    """The value, if it may be a plugin of its kind; a function may be one that makes it."""
    if plugin.kind == "callback":
        fits, wanted = _is_a(value, Callback), "a subclass of minifast.Callback"
    elif plugin.kind == "stepper":
        is_alike = hasattr(value, "step") and hasattr(value, "forward")
        fits, wanted = _is_a(value, Stepper) or is_alike, "a subclass of minifast.Stepper"
    else:
        fits = callable(value) or hasattr(value, "update")
        wanted = "a function (preds, targs) -> number, or an object or class with update"
    if fits:
        return value
    raise TypeError(
        explain(
            f"{plugin.name} of {plugin.distribution} is not a {plugin.kind}",
            got=f"{plugin.value} is {value!r:.60}",
            wanted=f"{wanted}, as its group of entry points says",
            fix=f"correct the entry point {plugin.name} in that package's pyproject.toml",
            entry="plug-ins",
        )
    )


def _is_a(value: Any, base: type) -> bool:
    return issubclass(value, base) if isinstance(value, type) else callable(value)


def _source(module: str) -> Path | None:
    """The file of a module, found without importing it or the packages it is in.

    None if it is not written in Python.

    Raises:
        ModuleNotFoundError: if there is none.
    """
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise ModuleNotFoundError(f"there is no module {top}")
    found = [Path(spec.origin)] if spec.origin and not inner else []
    for folder in (spec.submodule_search_locations or []) if inner else []:
        path = Path(folder, *inner)
        found += [*path.parent.glob(f"{path.name}.*"), *path.glob("__init__.*")]
    if inner and not found:
        raise ModuleNotFoundError(f"there is no module {module}")
    return next((path for path in found if path.suffix == ".py" and path.is_file()), None)
