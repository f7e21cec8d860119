"""0.7's `fit`, `validate`, `predict` and `Stepper`, in its signatures, by minifast's loop."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import model as core
from ..batches import batch_size
from ..callback import Callback, Events, Run
from ..core import device_of, modes_kept
from ..dataset import ModelData
from ..metrics import WeightedMean
from ..metrics import accuracy as accuracy
from ..plugins.grad_clip import GradClip
from ..progress import progress_bar
from ..stepper import Stepper as Plain
from ..stepper import split_batch
from .layer_optimizer import LayerOptimizer
from .schedules import SWA, fix_batchnorm

__all__ = [
    "Stepper",
    "fit",
    "get_prediction",
    "model_summary",
    "predict",
    "predict_batch",
    "predict_with_targs",
    "set_train_mode",
    "validate",
]

OUT = "minifast.compat takes the part of fastai 0.7 that is about arrays: "


def fit(
    model: Any,
    data: Any,
    n_epochs: Any = None,
    opt: Any = None,
    crit: Any = None,
    metrics: Sequence[Any] | None = None,
    callbacks: Sequence[Any] | None = None,
    stepper: Any = None,
    swa_model: Any = None,
    swa_start: int | None = None,
    swa_eval_freq: int | None = None,
    visualize: bool = False,
    *,
    epochs: Any = None,
    clip: float = 0,
    reg_fn: Callable[..., Any] | None = None,
    fp16: bool = False,
    loss_scale: float = 1,
    seq_first: bool = False,
    all_val: bool = False,
    get_ep_vals: bool = False,
    validate_skip: int = 0,
) -> Any:
    """Trains as 0.7's `fit` did: same arguments, same printed table, `[val_loss, *metrics]` back.

    `n_epochs` (or `epochs`) and `data` may be lists, one for each phase; epochs may be fractions.
    """
    n_epochs = epochs if n_epochs is None else n_epochs
    if n_epochs is None:
        raise TypeError("fit needs n_epochs (or epochs): fit(m, md, 1, opt, crit)")
    if callable(opt) and not hasattr(opt, "step") and hasattr(crit, "step"):
        opt, crit = crit, opt  # the order of September 2017
    del seq_first, loss_scale  # rows count as minifast counts them; nothing is scaled
    plan = Plan(n_epochs, data)
    metrics = list(metrics or ())
    table = Table07(metrics, visualize, swa_model is not None)
    followers = [cb for cb in callbacks or () if not isinstance(cb, Callback)]
    if swa_model is not None:
        followers.append(SWA(model, swa_model, swa_start or 1))
    loop = Phases(
        plan,
        opt,
        followers,
        table,
        metrics,
        reg_fn,
        all_val,
        validate_skip,
        _Swa(swa_model, swa_start or 1, swa_eval_freq or 1) if swa_model is not None else None,
    )
    ours = [cb for cb in callbacks or () if isinstance(cb, Callback)]
    clipping = [GradClip(float(clip))] if clip else []
    if not plan.epochs:
        return ([], OrderedDict()) if get_ep_vals else []
    theirs = None
    if stepper not in (None, Stepper):
        theirs = stepper(model, loop.optimizer(), crit, clip=clip, reg_fn=reg_fn)
    loop.stepper = Step07(theirs, fp16)
    core.fit(
        model,
        plan.first(),
        len(plan.epochs),
        crit,
        loop.optimizer(),
        [] if all_val else [Named(m) for m in metrics],
        [loop, *clipping, *ours],
        stepper=loop.stepper,
        progress=False,
        checks="warn",
    )
    vals = None if loop.broken else loop.vals
    return (vals, loop.ep_vals) if get_ep_vals else vals


class Named:
    """A metric of 0.7's under a number, so that two of one name are no trouble."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric
        self.__name__ = name_of(metric)

    def __call__(self, preds: Any, targs: Any) -> Any:
        return self.metric(preds, targs)


def name_of(metric: Any) -> str:
    """What the table calls a metric."""
    while hasattr(metric, "func"):
        metric = metric.func
    return str(getattr(metric, "__name__", type(metric).__name__))


class InBatches:
    """A loader's own batches, as many of them as wanted, and nothing else of it."""

    def __init__(self, dl: Any, n: int | None = None) -> None:
        self.dl, self.n = dl, len(dl) if n is None else n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.dl), self.n)


class Plan:
    """Which data each epoch has, how many of its batches, and where the phases end."""

    def __init__(self, n_epochs: Any, data: Any) -> None:
        lengths = list(n_epochs) if isinstance(n_epochs, Sequence | np.ndarray) else [n_epochs]
        self.data = list(data) if isinstance(data, Sequence) else [data]
        self.data = self.data * len(lengths) if len(self.data) == 1 else self.data
        sizes = [len(each.trn_dl) for each in self.data]
        parts = [n * size for n, size in zip(lengths, sizes, strict=True)]
        # In batches, with their fractions, but without what floats add to 0.3 + 2.7.
        self.ends = np.round(np.cumsum(parts), 6).tolist()
        self.epochs: list[tuple[Any, int]] = []
        total, phase = math.ceil(round(sum(lengths), 6)), 0
        done = 0
        while len(self.epochs) < total and phase < len(lengths):
            now, size, n = self.data[phase], sizes[phase], 0
            while n < size and phase < len(lengths) and self.data[phase] is now:
                left = math.ceil(self.ends[phase]) - done
                take = min(size - n, max(left, 1))
                n, done = n + take, done + take
                phase += done >= self.ends[phase]
            self.epochs.append((now, n))

    def first(self) -> ModelData:
        """The first epoch's data."""
        return self.at(0)

    def at(self, epoch: int, validated: bool = True) -> ModelData:
        """The data of an epoch."""
        data, n = self.epochs[epoch]
        trn = data.trn_dl if n == len(data.trn_dl) else InBatches(data.trn_dl, n)
        val = getattr(data, "val_dl", None)
        # In batches of its own size: the numbers of metrics that are no means depend on it.
        return ModelData(
            getattr(data, "path", "."),
            trn,
            InBatches(val) if validated and val is not None else None,
        )


class Phases(Callback):
    """Tells 0.7's callbacks of phases, batches and epochs, and keeps what `fit` gives back."""

    changes_training = True
    stepper: Any = None

    def __init__(
        self,
        plan: Plan,
        opt: Any,
        followers: Sequence[Any],
        table: Table07,
        metrics: Sequence[Any],
        reg_fn: Callable[..., Any] | None,
        all_val: bool,
        validate_skip: int,
        swa: Any,
    ) -> None:
        self.plan, self.opt, self.followers, self.table = plan, opt, list(followers), table
        self.metrics, self.reg_fn, self.swa = list(metrics), reg_fn, swa
        self.all_val, self.validate_skip = all_val, validate_skip
        self.phase = self.batches = 0
        self.vals: list[float] = []
        self.ep_vals: OrderedDict[int, list[float]] = OrderedDict()
        self.broken = False
        self.next_val: Iterator[Any] = iter(())

    def optimizer(self) -> Any:
        """torch's optimizer of this moment: a phase may begin with another."""
        return self.opt.opt if isinstance(self.opt, LayerOptimizer) else self.opt

    def tell(self, event: str, *arguments: Any) -> bool:
        """Whether anybody answers with a true value; everybody hears it."""
        handlers = [getattr(cb, event, None) for cb in self.followers]
        answers = [bool(handler(*arguments)) for handler in handlers if handler]
        return any(answers)

    def on_train_begin(self, run: Run) -> None:
        """Training, and its first phase, begin."""
        self.tell("on_train_begin")
        self.tell("on_phase_begin")
        run.opt = self.optimizer()

    def on_epoch_begin(self, run: Run) -> None:
        """Brings the epoch's data."""
        by_us = not self.all_val and self.stepper.theirs is None
        run.data = self.plan.at(run.epoch, by_us and run.epoch >= self.validate_skip)
        run.opt = self.optimizer()
        for name in ("trn_sampler", "val_sampler"):
            sampler = getattr(self.plan.epochs[run.epoch][0], name, None)
            if sampler is not None:
                sampler.set_epoch(run.epoch)
        _reset(run.net)
        self.table.begin(run)

    def on_batch_begin(self, run: Run) -> None:
        """A batch begins."""
        self.tell("on_batch_begin")
        run.opt = self.optimizer()

    def on_backward_begin(self, run: Run) -> None:
        """Lets `reg_fn` have its say."""
        if self.reg_fn is not None:
            run.loss = self.reg_fn(run.preds, self.stepper.extra, run.loss)

    def on_batch_end(self, run: Run) -> None:
        """A batch is learned; perhaps a phase is used up."""
        self.batches += 1
        loss: Any = run.running_loss.value()
        self.table.batch(loss)
        if self.all_val:
            self.vals = self._of_next_batch(run)
            loss = [loss, *self.vals]
        if self.tell("on_batch_end", loss):
            self.broken = True
            run.stop("a callback asked for it")
            return
        if self.phase < len(self.plan.ends) and self.batches >= self.plan.ends[self.phase]:
            self.tell("on_phase_end")
            self.phase += 1
            if self.phase < len(self.plan.ends):
                self.tell("on_phase_begin")

    def _of_next_batch(self, run: Run) -> list[float]:
        dl = self.plan.epochs[run.epoch][0].val_dl
        batch = next(self.next_val, None)
        if batch is None:
            self.next_val = iter(dl)
            batch = next(self.next_val)
        with modes_kept(run.net), torch.no_grad():
            run.net.eval()
            return _of_batch(run.net, run.crit, self.metrics, batch)

    def on_validate_begin(self, run: Run) -> None:
        """Clears what a recurrent net remembers."""
        _reset(run.net)

    def on_epoch_end(self, run: Run) -> None:
        """An epoch is over: callbacks first, then its line of the table."""
        if self.all_val:
            return
        data = self.plan.epochs[run.epoch][0]
        if run.epoch < self.validate_skip:
            self.vals = [float("nan")] * (1 + len(self.metrics))
        elif self.stepper.theirs is not None and data.val_dl is not None:
            self.vals = validate(self.stepper.theirs, data.val_dl, self.metrics)
        else:
            self.vals = [float(v) for k, v in run.values.items() if k not in ("epoch", "trn_loss")]
            self.vals = self.vals[: 1 + len(self.metrics)]
        stop = self.tell("on_epoch_end", self.vals)
        shown = list(self.vals)
        if self.swa is not None:
            shown += self.swa.values(run, self.metrics, self.plan)
        trn_loss = float(run.values["trn_loss"])
        self.table.line(run.epoch, [trn_loss, *shown])
        self.ep_vals[run.epoch] = [round(v, 6) for v in [trn_loss, *shown]]
        if stop:
            run.stop("a callback asked for it")

    def on_train_end(self, run: Run) -> None:
        """Everybody ends, however training did."""
        self.table.end()
        self.tell("on_train_end")


def _of_batch(net: Any, crit: Any, metrics: Sequence[Any], batch: Any) -> list[float]:
    x, y = split_batch(batch, device_of(net))
    preds = FirstOutput().forward(net, x)
    return [float(crit(preds, y)), *(float(m(preds.detach(), y)) for m in metrics)]


class _Swa:
    """The columns of the averaged model."""

    def __init__(self, model: nn.Module, start: int, every: int) -> None:
        self.model, self.start, self.every = model, start, every

    def values(self, run: Run, metrics: Sequence[Any], plan: Plan) -> list[float]:
        if run.epoch + 1 < self.start or (run.epoch + 1 - self.start) % self.every:
            return []
        data = plan.epochs[run.epoch][0]
        fix_batchnorm(self.model, data.trn_dl)
        found = core.validate(
            self.model, InBatches(data.val_dl), run.crit, [Named(m) for m in metrics]
        )
        return list(found.values())


class Table07:
    """0.7's table, to the character, and a bar while an epoch runs."""

    def __init__(self, metrics: Sequence[Any], visualize: bool, swa: bool) -> None:
        names = [name_of(m) for m in metrics]
        swa_names = ["swa_loss", *(f"swa_{name}" for name in names)] if swa else []
        self.names = ["epoch", "trn_loss", "val_loss", *names, *swa_names]
        self.visualize, self.before = visualize, [0.0, 0.0]
        self.bar: Any = None
        self.lines = 0

    def begin(self, run: Run) -> None:
        """Shows the bar of an epoch."""
        self.end()
        self.bar = progress_bar(total=run.n_batches, desc=f"Epoch {run.epoch + 1}", mininterval=0.1)

    def batch(self, loss: float) -> None:
        """Moves it."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss={loss:.4f}", refresh=False)
            self.bar.update()

    def end(self) -> None:
        """Takes it away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def line(self, epoch: int, values: Sequence[float]) -> None:
        """Prints an epoch, under the names if it is the first."""
        self.end()
        if self.lines == 0:
            print("".join(f"{name:10} " for name in self.names))
        self.lines += 1
        text = f"{epoch:^10}" + "".join(f" {round(float(v), 6)!s:10}" for v in values)
        print(text + self._ways(epoch, values), flush=True)
        sys.stdout.flush()

    def _ways(self, epoch: int, values: Sequence[float]) -> str:
        trn, val = values[0], values[1]
        before, self.before = self.before, [trn, val]
        if not self.visualize or epoch == 0 or trn == before[0] or val == before[1]:
            return ""
        return f" {'△' if trn > before[0] else '▼'} {'△' if val > before[1] else '▼'}"


class FirstOutput(Plain):
    """0.7's rule: of several outputs the first is the prediction."""

    def forward(self, net: nn.Module, x: Any) -> Any:
        """The first output, if there are several."""
        out = super().forward(net, x)
        return out[0] if isinstance(out, tuple | list) else out


class Step07(Plain):
    """minifast's step with what 0.7's had beside it: further outputs, decoupled decay."""

    def __init__(self, theirs: Any, fp16: bool) -> None:
        if fp16:
            raise NotImplementedError(
                "fp16=True of fastai 0.7 is not served: minifast.fit has stepper=MixedPrecision()"
            )
        self.extra: Any = ()
        self.theirs = theirs

    def forward(self, net: nn.Module, x: Any) -> Any:
        """The first output; the others wait for `reg_fn`."""
        out = net(*x) if isinstance(x, tuple | list) else net(x)
        if isinstance(out, tuple | list):
            out, *self.extra = out
        return out

    def step(self, run: Run, events: Events) -> Tensor:
        """Learns from a batch, in the user's own way if there is one."""
        if self.theirs is None:
            return super().step(run, events)
        self.theirs.opt = run.opt
        return torch.as_tensor(self.theirs.step(_inputs(run.x), run.y, run.epoch)).detach()

    def update(self, run: Run) -> None:
        """The decoupled decay, then the optimizer's step."""
        for group in run.opt.param_groups:
            decay = group.get("wd", 0)
            if decay:
                with torch.no_grad():
                    for p in group["params"]:
                        p.mul_(1 - group["lr"] * decay)
        super().update(run)


class Stepper:
    """0.7's stepper, for loops by hand: `step(xs, y, epoch)` learns, `evaluate(xs, y)` looks."""

    def __init__(
        self,
        m: nn.Module,
        opt: Any,
        crit: Callable[..., Tensor],
        clip: float = 0,
        reg_fn: Callable[..., Any] | None = None,
        fp16: bool = False,
        loss_scale: float = 1,
    ) -> None:
        Step07(None, fp16)  # says that it is not served
        del loss_scale
        self.m, self.opt, self.crit, self.clip, self.reg_fn = m, opt, crit, clip, reg_fn
        self.reset(True)

    def reset(self, train: bool = True) -> None:
        """Puts the net into train or eval mode, and clears what it remembers."""
        self.m.train(train)
        _reset(self.m)

    def step(self, xs: Any, y: Any, epoch: int = 0) -> float:
        """Learns from a batch; gives the loss."""
        out = self.m(*xs)
        output, *extra = out if isinstance(out, tuple | list) else [out]
        self.opt.zero_grad()
        loss = raw = self.crit(output, y)
        if self.reg_fn is not None:
            loss = self.reg_fn(output, extra, raw)
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.m.parameters(), self.clip)
        self.opt.step()
        return raw.item()

    def evaluate(self, xs: Any, y: Any) -> tuple[Any, Any]:
        """Predictions and loss of a batch."""
        with torch.no_grad():
            preds = get_prediction(self.m(*xs))
            return preds, self.crit(preds, y)


def _inputs(x: Any) -> list[Any]:
    return list(x) if isinstance(x, tuple | list) else [x]


def _reset(net: Any) -> None:
    reset = getattr(net, "reset", None)
    if callable(reset):
        reset()


def set_train_mode(m: nn.Module) -> None:
    """Puts a net into train mode, but for the parts that are frozen by name.

    Those with `bn_freeze` (BatchNorm) or `drop_freeze` (dropout) stay as in eval mode.
    """
    m.train()
    for part in m.modules():
        frozen = getattr(part, "bn_freeze", False) and hasattr(part, "running_mean")
        if frozen or (getattr(part, "drop_freeze", False) and hasattr(part, "p")):
            part.eval()


def validate(
    stepper: Stepper,
    dl: Any,
    metrics: Sequence[Any] | None,
    epoch: int = 0,
    seq_first: bool = False,
    validate_skip: int = 0,
) -> list[float]:
    """`[loss, *metrics]` over a loader."""
    if epoch < validate_skip:
        return [float("nan")] * (1 + len(metrics or ()))
    losses, *others = [WeightedMean(m) for m in (stepper.crit, *(metrics or ()))]
    device = device_of(stepper.m)
    with modes_kept(stepper.m), torch.no_grad():
        stepper.reset(False)
        for batch in dl:
            x, y = split_batch(batch, device)
            preds, loss = stepper.evaluate(_inputs(x), y)
            losses.add(loss, batch_size(x, y))
            for each in others:
                each.update(preds, y)
    return [float(mean.compute()) for mean in (losses, *others)]


def predict(m: nn.Module, dl: Any) -> Any:
    """The predictions for a loader's rows, in its order, as one numpy array."""
    _reset(m)
    return core.predict(m, dl, stepper=FirstOutput())


def predict_with_targs(m: nn.Module, dl: Any) -> Any:
    """The predictions and the targets, as numpy arrays."""
    _reset(m)
    return core.predict_with_targs(m, dl, stepper=FirstOutput())


def predict_batch(m: nn.Module, x: Any) -> Any:
    """The predictions for one batch, as a tensor."""
    _reset(m)
    with modes_kept(m), torch.no_grad():
        m.eval()
        return get_prediction(m(x))


def get_prediction(x: Any) -> Any:
    """The first of several outputs, without its graph."""
    return (x[0] if isinstance(x, tuple | list) else x).detach()


def model_summary(m: nn.Module, inputs: Any) -> OrderedDict[str, Any]:
    """Layers by name, as 0.7 gave them: shapes with -1 for the batch, `trainable`, `nb_params`.

    `inputs` is a batch, a list of them, or the shape of one without its batch.
    """
    if isinstance(inputs, Tensor):
        xs = [inputs]
    elif all(isinstance(size, int) for size in inputs):
        xs = [torch.rand(2, *inputs)]
    else:
        xs = [x if isinstance(x, Tensor) else torch.rand(2, *x) for x in inputs]
    found: OrderedDict[str, Any] = OrderedDict()

    def shape(out: Any) -> Any:
        return [shape(o) for o in out] if isinstance(out, tuple | list) else [-1, *out.shape[1:]]

    def note(module: nn.Module, args: Any, out: Any) -> None:
        own = [
            p for name, p in module.named_parameters(recurse=False) if name in ("weight", "bias")
        ]
        row: OrderedDict[str, Any] = OrderedDict()
        row["input_shape"] = shape(args[0])
        row["output_shape"] = shape(out)
        if own:
            row["trainable"] = own[0].requires_grad
        row["nb_params"] = sum(p.numel() for p in own)
        found[f"{type(module).__name__}-{len(found) + 1}"] = row

    handles = [
        module.register_forward_hook(note)
        for module in m.modules()
        if module is not m and not isinstance(module, nn.Sequential | nn.ModuleList)
    ]
    if not handles:
        handles = [m.register_forward_hook(note)]
    try:
        with modes_kept(m), torch.no_grad(), torch.random.fork_rng():
            m.eval()
            m(*xs)
    finally:
        for handle in handles:
            handle.remove()
    return found
