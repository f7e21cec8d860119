"""The lesson's second star import: PyTorch under its usual names.

The package itself never imports this module.
"""

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.autograd import Variable
from torch.utils.data import DataLoader, Dataset, TensorDataset

__all__ = ["DataLoader", "Dataset", "F", "TensorDataset", "Variable", "nn", "optim", "torch"]
