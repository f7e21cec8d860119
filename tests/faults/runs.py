"""The runs that are broken off and resumed, and how two of them are compared."""

import hashlib
import io
import os
import random
from contextlib import redirect_stdout

import numpy as np
import torch
from torch import Tensor, nn, optim

from minifast import ImageClassifierData, accuracy, fit
from minifast.plugins import (
    EMA,
    Checkpoint,
    EarlyStopping,
    GradAccumulation,
    GradClip,
    MixedPrecision,
    MixUp,
    OneCycle,
    Schedule,
)

EPOCHS, ROWS, BS = 3, 75, 8


def half_life(opt):
    return optim.lr_scheduler.ExponentialLR(opt, 0.9)


RUNS = {
    # optimizer, callbacks, stepper
    "sgd": (lambda p: optim.SGD(p, lr=0.05, momentum=0.9), list, None),
    "adam, one-cycle": (lambda p: optim.Adam(p, lr=0.01), lambda: [OneCycle(0.02)], None),
    "accumulation, clipped": (
        lambda p: optim.AdamW(p, lr=0.01),
        lambda: [GradAccumulation(3), GradClip(1.0)],
        None,
    ),
    "mixup, ema": (lambda p: optim.SGD(p, lr=0.05), lambda: [MixUp(0.4), EMA(0.9)], None),
    "bfloat16, schedule": (
        lambda p: optim.Adam(p, lr=0.01),
        lambda: [Schedule(half_life, step="batch"), EarlyStopping(patience=5)],
        MixedPrecision,
    ),
}


def made(name, seed=0):
    """Net, data and the rest of a run, from a seed of all generators."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    optimizer, callbacks, stepper = RUNS[name]
    layers = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    net = nn.Sequential(*layers, nn.LogSoftmax(dim=1))
    rng = np.random.default_rng(1)
    y = np.arange(ROWS + 30) % 3
    x = (2 * rng.normal(size=(3, 6))[y] + rng.normal(size=(ROWS + 30, 6))).astype(np.float32)
    md = ImageClassifierData.from_arrays(".", (x[:ROWS], y[:ROWS]), (x[ROWS:], y[ROWS:]), bs=BS)
    return net, md, optimizer(net.parameters()), callbacks(), stepper and stepper()


def run(name, path=None, resume=None, seed=0, more=(), every=1):
    """The net, optimizer and history of a run, with a checkpoint of each batch at `path`."""
    net, md, opt, callbacks, stepper = made(name, seed)
    if path is not None:
        callbacks.append(Checkpoint(path, every=every))
    with redirect_stdout(io.StringIO()):
        history = fit(
            net,
            md,
            EPOCHS,
            nn.NLLLoss(),
            opt,
            [accuracy],
            [*callbacks, *more],
            stepper=stepper,
            resume=resume,
        )
    return net, opt, history


def fingerprint(net, opt, history):
    """A sum over weights, buffers, optimizer, history and all random generators, to the bit."""
    parts = [
        net.state_dict(),
        opt.state_dict(),
        list(history),
        history.stopped,
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(legacy=False),
    ]
    return hashlib.sha256(repr([bits(part) for part in parts]).encode()).hexdigest()


def bits(value):
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return [(key, bits(part)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [bits(part) for part in value]
    return value.hex() if isinstance(value, float) else repr(value)


def forked(work):
    """Runs `work()` in a process of its own; gives its pid. Its exit status is 1 on an error."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except SystemExit as error:
        status = error.code
    except KeyboardInterrupt:
        status = 130
    finally:
        os._exit(status)
