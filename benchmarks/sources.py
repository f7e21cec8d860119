"""Batches of rows that lie in files of other libraries, by how the rows are shuffled.

    python -m benchmarks.sources --folder DIR

writes the same uint8 rows (784 bytes each, digits repeated) into DIR as numpy, h5py, zarr and Arrow
keep them, goes through each turn by turn, and prints medians. Needs `minifast[test]`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import zarr

from minifast import ArrayLoader
from minifast.io import load_mnist_sample
from minifast.rows import Rows

CHUNK, BATCHES, ROUNDS = 1000, 1500, 3


def of_numpy(x: np.ndarray, path: Path) -> Any:
    """A `.npy` file."""
    np.save(path.with_suffix(".npy"), x)
    return np.load(path.with_suffix(".npy"), mmap_mode="r")


def of_h5py(x: np.ndarray, path: Path, **options: Any) -> Any:
    """A data set of h5py."""
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=x, **options)
    return h5py.File(path)["x"]


def of_zarr(x: np.ndarray, path: Path) -> Any:
    """An array of zarr, compressed as it does by itself."""
    array = zarr.create_array(path, shape=x.shape, dtype=x.dtype, chunks=(CHUNK, x.shape[1]))
    array[:] = x
    return zarr.open_array(path, mode="r")


def of_arrow(x: np.ndarray, path: Path) -> Any:
    """A column of an Arrow file that is mapped into memory."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    table = pa.table({"x": column})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    mapped = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("x").combine_chunks()

    def read(column: Any, begin: int, end: int) -> np.ndarray:
        flat: np.ndarray = column.slice(begin, end - begin).flatten().to_numpy()
        return flat.reshape(end - begin, -1)

    return Rows(mapped, read)


KINDS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "in memory": lambda x, path: x,
    "numpy": of_numpy,
    "h5py": of_h5py,
    "h5py, chunks": lambda x, path: of_h5py(x, path, chunks=(CHUNK, x.shape[1])),
    "h5py, gzip": lambda x, path: of_h5py(
        x, path, chunks=(CHUNK, x.shape[1]), compression="gzip", compression_opts=1
    ),
    "zarr": of_zarr,
    "Arrow": of_arrow,
}


def a_batch(loader: ArrayLoader) -> float:
    """Microseconds of one, in a part of a pass."""
    began, n = time.perf_counter(), 0
    for _ in loader:
        n += 1
        if n == BATCHES:
            break
    return (time.perf_counter() - began) / n * 1e6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/sources"))
    parser.add_argument("--rows", type=int, default=500_000)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    (digits, _), *_ = load_mnist_sample()
    x = np.resize((digits * 255).astype(np.uint8).reshape(len(digits), -1), (args.rows, 784))
    y = np.arange(args.rows) % 10
    sources = {
        name: make(x, args.folder / f"rows-{i}") for i, (name, make) in enumerate(KINDS.items())
    }
    shuffles: tuple[bool | str, ...] = (False, True, "blocks")
    found: dict[tuple[str, Any], list[float]] = {}
    for _ in range(ROUNDS):
        for name, source in sources.items():
            for shuffle in shuffles:
                loader = ArrayLoader(source, y, shuffle=shuffle)
                found.setdefault((name, shuffle), []).append(a_batch(loader))
    print(f"{'us a batch of 64':14}  {'in order':>10}  {'shuffled':>10}  {'blocks':>10}")
    for name in sources:
        costs = [f"{median(found[name, shuffle]):10.0f}" for shuffle in shuffles]
        print(f"{name:16}  " + "  ".join(costs))


if __name__ == "__main__":
    main()
