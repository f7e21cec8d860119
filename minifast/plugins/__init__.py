"""The stock of callbacks and steppers, one file each, and what others have installed.

    from minifast.plugins import EarlyStopping, OneCycle

A name is imported when it is first asked for. A plug-in of your own is an ordinary class and needs
no registration; entry points only serve to list plug-ins and to choose them by name.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import explain
from ..errors import MissingKeyError

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
        """The first line of its docstring, read from the source and not by importing it."""
        module, _, name = self.value.partition(":")
        path = _source(module)
        if path is None:
            return ""
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
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


def load(name: str) -> Any:
    """Imports one installed plug-in and gives the class or function.

    Raises:
        KeyError: if no installed package has one of this name.
        ValueError: if several have.

    Examples:
        >>> load("EarlyStopping")(patience=3).patience
        3
    """
    found = [plugin for plugin in available() if plugin.name == name]
    if len(found) != 1:
        several = ", ".join(f"{plugin.distribution} ({plugin.value})" for plugin in found)
        raise (ValueError if found else MissingKeyError)(
            explain(
                f"{name!r} names {'more than one plug-in' if found else 'no installed plug-in'}",
                got=several or ", ".join(plugin.name for plugin in available()),
                wanted="the name of one",
                fix="python -m minifast plugins lists them; or import the class by itself",
                entry="plug-ins",
            )
        )
    module, _, attribute = found[0].value.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _source(module: str) -> Path | None:
    """The file of a module, found without importing it or the packages it is in."""
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    if not inner:
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or []:
        path = Path(folder, *inner)
        for candidate in path.with_suffix(".py"), path / "__init__.py":
            if candidate.is_file():
                return candidate
    return None
