"""The package `fastai` and its modules, answered by minifast while it is installed."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from .outside import Missing

__all__ = ["install", "uninstall"]

STANDARD = (
    "collections contextlib copy datetime gzip itertools json math os pickle random re shutil "
    "string sys threading time warnings pdb"
)
FROM = {
    "abc": "abstractmethod",
    "collections": "Counter OrderedDict",
    "collections.abc": "Iterable",
    "concurrent.futures": "ProcessPoolExecutor ThreadPoolExecutor",
    "functools": "partial",
    "glob": "glob iglob",
    "itertools": "chain",
    "operator": "attrgetter itemgetter",
    "pathlib": "Path",
}
# By the name that 0.7 gave them; those that are not installed are left out.
OTHERS = {
    "animation": "matplotlib.animation",
    "ensemble": "sklearn.ensemble",
    "metrics": "sklearn.metrics",
    "preprocessing": "sklearn.preprocessing",
    "ImageEnhance": "PIL.ImageEnhance",
    "ImageOps": "PIL.ImageOps",
    "FileLink": "IPython.display:FileLink",
    "interactive": "ipywidgets:interactive",
    "fixed": "ipywidgets:fixed",
    "cv2": "cv2",
    "bcolz": "bcolz",
    "graphviz": "graphviz",
    "sklearn_pandas": "sklearn_pandas",
    "np": "numpy",
    "plt": "matplotlib.pyplot",
    "matplotlib": "matplotlib",
    "rcParams": "matplotlib:rcParams",
    "pd": "pandas",
    "scipy": "scipy",
    "sklearn": "sklearn",
    "IPython": "IPython",
    "PIL": "PIL",
    "Image": "PIL.Image",
    "sns": "seaborn",
    "tqdm": "tqdm:tqdm",
    "trange": "tqdm:trange",
    "tnrange": "tqdm:trange",
    "tqdm_notebook": "tqdm:tqdm",
    "interact": "ipywidgets:interact",
    "widgets": "ipywidgets",
}
TORCH = {
    "torch": "torch",
    "nn": "torch.nn",
    "cuda": "torch.cuda",
    "backends": "torch.backends",
    "optim": "torch.optim",
    "F": "torch.nn.functional",
    "Variable": "torch.autograd:Variable",
    "FloatTensor": "torch:FloatTensor",
    "LongTensor": "torch:LongTensor",
    "Dataset": "torch.utils.data:Dataset",
    "TensorDataset": "torch.utils.data:TensorDataset",
    "kaiming_uniform": "torch.nn.init:kaiming_uniform_",
    "kaiming_normal": "torch.nn.init:kaiming_normal_",
    "torchvision": "torchvision",
}
# 0.7's names that are not here, by the module whose star import handed them over.
PICTURES = (
    "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50 resnext101 resnext101_64 vgg16 "
    "vgg19 dn121 dn161 inception_4 wrn ConvnetBuilder tfms_from_model tfms_from_stats "
    "transforms_basic transforms_side_on transforms_top_down RandomRotate RandomFlip RandomCrop "
    "RandomLighting RandomRotateZoom RandomStretch RandomBlur RandomDihedral Scale CenterCrop "
    "NoCrop CropType TfmType ImageData FilesDataset FilesIndexArrayDataset"
)
MISSING = {
    "transforms": PICTURES,
    "conv_learner": PICTURES,
    "column_data": "CollabFilterDataset CollabFilterLearner EmbeddingDotBias StructuredLearner",
    "plots": "ImageModelResults load_img_id plots_from_files plots_raw",
    "nlp": "LanguageModelData TextData TextDataLoader bow_classifer texts_labels_from_folders",
    "text": "LanguageModelData LanguageModelLoader TextDataset Tokenizer",
    "lm_rnn": "RNN_Encoder SequentialRNN get_language_model repackage_var seq2seq_reg",
    "structured": "add_datepart apply_cats display_all fix_missing numericalize proc_df "
    "rf_feat_importance scale_vars set_rf_samples reset_rf_samples train_cats",
}
# What each module takes from ours, and which modules it hands on.
MODULES: dict[str, tuple[str, str]] = {
    "imports": ("", ""),
    "torch_imports": ("", "imports"),
    "core": ("core", "torch_imports"),
    "io": ("io", "torch_imports"),
    "layer_optimizer": ("layer_optimizer", "core"),
    "sgdr": ("schedules", "layer_optimizer"),
    "swa": ("schedules", "sgdr"),
    "model": ("training", "sgdr"),
    "metrics": ("metrics", "core"),
    "plots": ("pictures", "core"),
    "dataloader": ("data", "core"),
    "transforms": ("", "core"),
    "dataset": ("data", "core transforms"),
    "layers": ("", "core"),
    "learner": ("learner", "model metrics dataset"),
    "conv_learner": ("learner", "learner"),
    "column_data": ("data", "learner"),
    "nlp": ("", "column_data"),
    "text": ("", "column_data"),
    "lm_rnn": ("", "column_data"),
    "structured": ("", "torch_imports"),
}
_aside: dict[str, ModuleType] = {}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes `fastai` and `fastai.<anything>` out of ours."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Answers for fastai alone."""
        if fullname.partition(".")[0] != "fastai":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname == "fastai")

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module."""
        name = module.__name__.removeprefix("fastai").lstrip(".")
        module.__doc__ = f"fastai 0.7's {name or 'package'}, by minifast.compat."
        names = dict(_names(name)) if name in MODULES else {}
        module.__dict__.update(names)
        module.__dict__["__all__"] = sorted(names)
        if name:

            def missing(asked: str) -> Any:
                if asked.startswith("__"):
                    raise AttributeError(asked)
                return Missing(f"{name}.{asked}")

            module.__dict__["__getattr__"] = missing


def _names(name: str) -> Iterator[tuple[str, Any]]:
    """What a star import of the module hands over: those it hands on first, so that its own win."""
    own, others = MODULES[name]
    if name == "imports":
        yield from _imports()
        return
    for other in others.split():
        yield from _names(other)
    if name == "torch_imports":
        yield from _taken(TORCH)
        helpers = importlib.import_module("minifast.compat.core")
        for each in ("children", "save_model", "load_model"):
            yield each, getattr(helpers, each)
    yield from ((each, Missing(each)) for each in MISSING.get(name, "").split())
    if own:
        module = importlib.import_module(f"minifast.compat.{own}")
        yield from ((each, getattr(module, each)) for each in module.__all__)


def _imports() -> Iterator[tuple[str, Any]]:
    for name in STANDARD.split():
        yield name, importlib.import_module(name)
    for module, names in FROM.items():
        for name in names.split():
            yield name, getattr(importlib.import_module(module), name)
    yield from _taken(OTHERS)


def _taken(names: dict[str, str]) -> Iterator[tuple[str, Any]]:
    for name, where in names.items():
        module, _, attribute = where.partition(":")
        try:
            value = importlib.import_module(module)
        except ImportError:  # an extra of theirs that is not installed
            continue
        yield name, getattr(value, attribute) if attribute else value


def install() -> None:
    """Puts our `fastai` in the place of any other."""
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    for name in [n for n in sys.modules if n.partition(".")[0] == "fastai"]:
        _aside[name] = sys.modules.pop(name)
    sys.meta_path.insert(0, Finder())


def uninstall() -> None:
    """Takes it away, and puts back what was there."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
    for name in [n for n in sys.modules if n.partition(".")[0] == "fastai"]:
        del sys.modules[name]
    sys.modules.update(_aside)
    _aside.clear()
