"""State in files: written whole or not at all, read as data and never as program."""

from __future__ import annotations

import hashlib
import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .core import explain
from .files import older, whole_file
from .sharded import is_sharded, put_together, taken_apart

__all__ = ["CheckpointError", "load_weights", "save_weights"]

MARK = b"minifast"  # ends a file, behind the sha256 of all that stands before the sum
SUM = hashlib.sha256().digest_size

# All that a pickle of tensors, numbers, strings, lists and dicts names. Whatever else a file names
# is refused before torch sees it.
NAMES = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)"
    r"|torch (\w+Storage|b?float\w+|u?int\d+|complex\d+|bool)"
    r"|torch\.storage (UntypedStorage|TypedStorage)"
)
# The ways of a pickle to name, to build or to fetch something else.
INSTRUCTIONS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
# How often the parts of a state may be shared, on average; PyTorch's own rarely are.
MOST_SHARED = 100
PLAIN = (bool, int, float, str, type(None))


class CheckpointError(ValueError):
    """A file cannot be what it should be, or does not belong to this run."""


# ---- whole states ------------------------------------------------------------------------


def write_state(
    path: Path | str, state: Mapping[str, Any], keep: int = 1, read_back: bool = False
) -> None:
    """Writes a state as one file with its checksum; `keep` - 1 files before it stay beside it.

    Those are `path` with `.1`, `.2` behind it, the younger first. With `read_back` the file is read
    as `read_state` reads it before it takes its name.

    Raises:
        TypeError: if the state holds anything but tensors, numbers, strings, lists and dicts.
        CheckpointError: if it was read back, and cannot be; what stood there before stands there.
        OSError: if it cannot be written; what stood there before stands there still.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state"
        >>> write_state(path, {"weights": torch.ones(2), "epoch": 3})
        >>> read_state(path)
        {'weights': tensor([1., 1.]), 'epoch': 3}
    """
    payload = io.BytesIO()  # so that an error of the disk is the disk's, not torch's
    torch.save(as_data(state, "state"), payload)
    with payload.getbuffer() as raw, whole_file(path, keep=keep) as file:
        file.write(raw)
        file.write(hashlib.sha256(raw).digest() + MARK)
        if read_back:
            file.flush()
            _read_back(Path(file.name), Path(path))


def _read_back(written: Path, path: Path) -> None:
    try:
        _read_whole(written)
    except CheckpointError as error:
        why = str(error.__cause__ or error).split("\n")[0]
        raise CheckpointError(
            explain(
                f"{path} could be written, but not be read again",
                got=f"{why} (PyTorch {torch.__version__})",
                wanted="a file that fit(..., resume=) reads",
                fix="another release of PyTorch, or of minifast; the file before is left as it was",
                entry="read-back",
            )
        ) from error


def read_state(path: Path | str) -> dict[str, Any]:
    """The state in a file, or, if that is damaged or gone, in the one that was kept before it.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if none of them is whole.
    """
    path = Path(path)
    files = [path] if path.is_dir() else [f for f in (path, older(path, 1)) if f.exists()]
    if not files:
        raise FileNotFoundError(2, "no checkpoint there", str(path))
    try:
        return _read_whole(files[0])
    except CheckpointError as damaged:
        if len(files) == 1 or files[0] != path:
            raise
        state = _read_whole(files[1])
        what = str(damaged).split("\n")[0]
        warnings.warn(f"{what}; taken is the one before it, {files[1]}", stacklevel=2)
        return state


def _read_whole(path: Path) -> dict[str, Any]:
    raw = path.read_bytes() if path.is_file() else b""
    payload, digest = raw[: -SUM - len(MARK)], raw[-SUM - len(MARK) : -len(MARK)]
    if not raw.endswith(MARK) or hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(
            explain(
                f"{path} is no whole checkpoint",
                got=_what_it_is(path, raw),
                wanted="a file that Checkpoint or save_weights wrote, as it was written",
                fix=f"take the one before it, {path}.1, or a copy",
                entry="damaged-file",
            )
        )
    return _read_tensors(payload, path)


def _what_it_is(path: Path, raw: bytes) -> str:
    if not path.is_file():
        return "a folder" if path.is_dir() else "no ordinary file"
    size = f"{len(raw):,} bytes"
    if raw.endswith(MARK):
        return f"{size} whose sum is another than when they were written"
    return f"{size} without the sum at their end: cut off, or written by another program"


# ---- weights alone -----------------------------------------------------------------------


def save_weights(net: nn.Module, path: Path | str) -> None:
    """Writes the net's weights and buffers, whole or not at all.

    `torch.load(path)` reads them too. A name that ends in `.safetensors` gives that format, which
    other programs read (package `safetensors`, `pip install minifast[safetensors]`). Of a net that
    lies in parts on several processes (`fully_shard`) the first writes the whole; all have to call.

    Raises:
        OSError: if the file cannot be written; the message names it.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "net.pt"
        >>> net, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> save_weights(net, path)
        >>> load_weights(other, path)
        >>> torch.equal(net.weight, other.weight)
        True
    """
    weights = dict(net.state_dict())
    if not is_sharded(net):
        _write_weights(weights, path)
        return
    weights = put_together(weights)
    if torch.distributed.get_rank() == 0:
        _write_weights(weights, path)
    torch.distributed.barrier()  # it is there when any of them goes on


def _write_weights(weights: dict[str, Any], path: Path | str) -> None:
    if Path(path).suffix != ".safetensors":
        write_state(path, weights)
        return
    from safetensors.torch import save

    for name, value in weights.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                explain(
                    f"{name} cannot be written in the format safetensors",
                    got=f"{type(value).__name__}, from get_extra_state of a module",
                    wanted="tensors only",
                    fix=f"save_weights(net, {str(Path(path).with_suffix('.pt'))!r})",
                    entry="another-net",
                )
            )
    plain = as_data(weights, "state")
    own = {name: t.clone().contiguous() for name, t in plain.items()}
    with whole_file(path) as file:
        file.write(save(own))


def load_weights(net: nn.Module, path: Path | str) -> None:
    """Puts the weights in a file into the net, in place: all of them, or, on an error, none.

    Reads what `save_weights` wrote, the net's weights in what `Checkpoint` wrote, what
    `torch.save(net.state_dict(), path)` wrote, and `.safetensors`. Nothing in the file is run,
    imported or called, whoever made it.

    Raises:
        CheckpointError: if the file is damaged, holds anything but weights, or those of another
            net; the message lists what differs.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "net.pt"
        >>> save_weights(nn.Linear(3, 1), path)
        >>> load_weights(nn.Linear(2, 1), path)
        Traceback (most recent call last):
        minifast.storage.CheckpointError: ...
    """
    path = Path(path)
    raw = path.read_bytes() if path.is_file() else None
    if raw is None and not path.exists():
        raise FileNotFoundError(2, "no weights there", str(path))
    if raw is None or raw.endswith(MARK):
        weights = _read_whole(path)
    elif path.suffix == ".safetensors":
        weights = _read_safetensors(raw, path)
    else:
        weights = _read_tensors(raw, path)
    if isinstance(weights.get("net"), dict):  # a whole run's state
        weights = weights["net"]
    put_weights(net, weights, str(path))


def put_weights(net: nn.Module, weights: Mapping[str, Any], origin: str) -> None:
    """Loads them into the net once names, shapes and kinds of number are seen to be the net's."""
    differs = weights_differ(net.state_dict(), weights)
    if differs:
        raise CheckpointError(
            explain(
                f"{origin} has the weights of another net",
                got="; ".join(differs[:5]) + ("; ..." if len(differs) > 5 else ""),
                wanted="the same names, shapes and dtypes as this net's state_dict()",
                fix="build the net as it was when it was saved",
                entry="another-net",
            )
        )
    net.load_state_dict(
        taken_apart(weights, net.state_dict()) if is_sharded(net) else dict(weights)
    )


def weights_differ(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What differs between a net's state and one from a file, in words."""
    differs = [f"{name} is missing" for name in ours if name not in theirs]
    differs += [f"{name} is too many" for name in theirs if name not in ours]
    for name in ours:
        a, b = ours[name], theirs.get(name)
        if not isinstance(a, Tensor) or is_lazy(a) or name not in theirs:
            continue
        if not isinstance(b, Tensor):
            differs.append(f"{name} is a {type(b).__name__}")
        elif a.shape != b.shape or a.dtype != b.dtype:
            differs.append(f"{name} is {_shape(b)}, here {_shape(a)}")
    return differs


def has_nan(t: Tensor) -> bool:
    """Whether a tensor of floats holds nan."""
    if is_lazy(t) or t.is_meta or not (t.is_floating_point() or t.is_complex()):
        return False
    try:
        return bool(t.isnan().any())
    except RuntimeError:  # a dtype that cannot be asked
        return False


def _shape(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')}{tuple(t.shape)}"


def _read_safetensors(raw: bytes, path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(raw))
    except SafetensorError as error:
        raise _refused(path, f"not the format safetensors: {error}") from error
    except KeyError as error:  # one that PyTorch's reader does not know
        raise _refused(path, f"a tensor of the dtype {error.args[0]}") from error


# ---- reading as data ---------------------------------------------------------------------


def _read_tensors(raw: bytes | memoryview, path: Path) -> dict[str, Any]:
    """What `torch.save` wrote, if it is plain data; looked through before torch reads it."""
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 10):
        raise _refused(path, f"this is torch {torch.__version__}, whose reader can be overrun")
    try:
        instructions = _check_archive(io.BytesIO(raw))
        state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        _check_shared(state, MOST_SHARED * instructions)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}, not a dict")
        return dict(as_data(state, "it"))
    # Bytes of a stranger can bring any error out of zip, pickle and torch, and all mean the same.
    except Exception as error:
        raise _refused(path, str(error).split("\n")[0]) from error


def _check_archive(file: io.BytesIO) -> int:
    """Returns how many instructions its pickle has."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it has packed parts, which torch.save does not write")
        pickles = [entry for entry in archive.namelist() if entry.endswith("data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} pickles, not one")
        count = 0
        for instruction, argument, _ in pickletools.genops(archive.read(pickles[0])):
            count += 1
            name = instruction.name
            refused = name == "GLOBAL" and not NAMES.fullmatch(str(argument))
            if refused or name in INSTRUCTIONS:
                raise ValueError(f"it wants {str(argument or name)!r}, which is no data")
    return count


def _check_shared(state: Any, most: int) -> None:
    """Refuses lists that contain each other so often that to read them all would take forever."""
    waiting = [state]
    for _ in range(most):
        if not waiting:
            return
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    raise ValueError("its lists or dicts contain each other, or one of them far too often")


def as_data(value: Any, where: str) -> Any:
    """The value as a file may hold it: tensors, Python's numbers, strings, lists, tuples, dicts.

    Examples:
        >>> as_data({"lr": np.float64(0.1)}, "state")
        {'lr': 0.1}
        >>> as_data({"seen": {1, 2}}, "state")
        Traceback (most recent call last):
        TypeError: state['seen'] is a set: only tensors, numbers, strings, lists and dicts ...
    """
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{where} has the key {key!r}: keys are strings or whole numbers")
        return {key: as_data(part, f"{where}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [as_data(part, f"{where}[{i}]") for i, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    if is_lazy(value):
        raise ValueError(
            explain(
                "a lazy net has no weights to save yet",
                got=f"{where}, which is made by the first batch",
                wanted="a net that has seen a batch",
                fix="net(x) with one batch before, or save after the first step",
                entry="lazy-nets",
            )
        )
    if isinstance(value, Tensor):
        plain = value.detach()
        dense = plain.layout == torch.strided and not (plain.is_quantized or plain.is_nested)
        if type(plain) is Tensor and dense:
            return plain
        kind = f"{type(plain).__name__} ({plain.layout})"
        raise TypeError(f"{where} is a {kind}: of tensors only plain dense ones can be saved")
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in PLAIN:
        return value
    kind = type(value).__name__
    wanted = "only tensors, numbers, strings, lists and dicts can be saved"
    raise TypeError(f"{where} is a {kind}: {wanted}")


def _refused(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        explain(
            f"{path} is not read",
            got=why,
            wanted="a file of tensors, numbers, strings, lists and dicts, by save_weights or "
            "torch.save(net.state_dict(), path)",
            fix="if you trust who made it, let them save it again that way",
            entry="unsafe-file",
        )
    )
