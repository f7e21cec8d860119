"""Makes minifast/data/mnist_sample.npz from the full MNIST: python tests/make_sample.py

It finds mnist.pkl.gz in the folder that MINIFAST_DATA names. tests/test_io.py holds that the
sample in the package is what `sample` gives.
"""

import os
from pathlib import Path

import numpy as np

from minifast.io import Digits, load_mnist

SAMPLE = Path(__file__).parents[1] / "minifast" / "data" / "mnist_sample.npz"


def sample(digits: Digits) -> dict[str, np.ndarray]:
    """The first 500 (100) of each digit from the training (validation) rows, in their order."""
    (x, y), (x_valid, y_valid), _ = digits
    trn, val = first_of_each(y, 500), first_of_each(y_valid, 100)
    return {
        "x": as_bytes(x[trn]),
        "y": y[trn].astype(np.uint8),
        "x_valid": as_bytes(x_valid[val]),
        "y_valid": y_valid[val].astype(np.uint8),
    }


def first_of_each(y: np.ndarray, n: int) -> np.ndarray:
    return np.sort(np.concatenate([np.flatnonzero(y == digit)[:n] for digit in range(10)]))


def as_bytes(x: np.ndarray) -> np.ndarray:
    return np.rint(x * 256).astype(np.uint8)


if __name__ == "__main__":
    arrays = sample(load_mnist(Path(os.environ["MINIFAST_DATA"]) / "mnist.pkl.gz"))
    np.savez_compressed(SAMPLE, **arrays)
    print(f"{SAMPLE}: {SAMPLE.stat().st_size:,} bytes")
