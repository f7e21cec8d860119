"""minifast: a small training framework for PyTorch with the manners of fastai 0.7.

    from minifast import ImageClassifierData, accuracy, fit, predict

`fit` in `minifast/model.py` is the loop; everything else is told by name.
"""

from .callback import Callback, Run
from .checkpoint import load_weights, save_weights
from .core import T, V, set_lrs, to_gpu, to_np
from .dataloader import ArrayLoader
from .dataset import ImageClassifierData, ModelData
from .history import History
from .metrics import accuracy
from .model import fit, iter_predict, predict, predict_with_targs, validate
from .stepper import Stepper

__version__ = "0.1.0"

__all__ = [
    "ArrayLoader",
    "Callback",
    "History",
    "ImageClassifierData",
    "ModelData",
    "Run",
    "Stepper",
    "T",
    "V",
    "accuracy",
    "fit",
    "iter_predict",
    "load_weights",
    "predict",
    "predict_with_targs",
    "save_weights",
    "set_lrs",
    "to_gpu",
    "to_np",
    "validate",
]
