"""What every test has: a seed, a backend without a screen, and the full MNIST where it is."""

import os
from collections.abc import Iterator
from pathlib import Path

# Nets this small are fastest on one thread, and with `-n auto` each core has a process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from torch import nn

from minifast import ImageClassifierData

os.environ["MPLBACKEND"] = "agg"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Processes that share the tests must agree on their names."""
    bad = [item.nodeid for item in items if " at 0x" in item.nodeid]
    assert not bad, f"a name that no other process has, give it an id: {bad[0]}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture
def full_mnist() -> Path:
    path = Path(os.environ.get("MINIFAST_DATA", "")) / "mnist.pkl.gz"
    if not path.is_file():
        pytest.skip("needs the full MNIST: set MINIFAST_DATA to the folder of mnist.pkl.gz")
    return path


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Three classes that a linear net can tell apart: 203 rows to train on, 57 to validate."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(3, 6)) * 4
    y = rng.integers(0, 3, 260)
    x = (centres[y] + rng.normal(size=(260, 6))).astype(np.float32)
    return x[:203], y[:203], x[203:], y[203:]


@pytest.fixture
def md(arrays: tuple[np.ndarray, ...]) -> ImageClassifierData:
    x, y, x_valid, y_valid = arrays
    return ImageClassifierData.from_arrays(".", (x, y), (x_valid, y_valid), bs=16)


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(dim=1))
