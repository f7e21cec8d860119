"""What a batch's loss counts: in val_loss, in accumulated gradients; against PyTorch's own sums."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn, optim

from minifast import ArrayLoader, Callback, ModelData, fit, validate
from minifast.batches import batch_size
from minifast.losses import DIVISORS, WeightedLoss, divides_by_rows
from minifast.metrics import WeightedMean, weighted_by
from minifast.plugins import EMA, GradAccumulation, GradClip, LabelSmoothing, MixUp, Schedule

# ---- the table ---------------------------------------------------------------------------


def scores(n: int = 12, c: int = 3) -> Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(n + c))


LABELS = torch.tensor([0, 1, 2, -100, 1, 1, 0, 2, 2, -100, 0, 1])
WEIGHT = torch.tensor([0.2, 1.0, 3.0])
SIGNS = torch.where(LABELS > 0, 1.0, -1.0)

CALLS = {
    "cross_entropy": (F.cross_entropy, (scores(), LABELS), {}),
    "cross_entropy, weights": (F.cross_entropy, (scores(), LABELS), {"weight": WEIGHT}),
    "cross_entropy, ignored": (F.cross_entropy, (scores(), LABELS.clamp(0)), {"ignore_index": 0}),
    "cross_entropy, smoothed": (
        F.cross_entropy,
        (scores(), LABELS),
        {"weight": WEIGHT, "label_smoothing": 0.2},
    ),
    "cross_entropy, probabilities": (
        F.cross_entropy,
        (scores(), scores().softmax(1)),
        {"weight": WEIGHT},
    ),
    "cross_entropy, pixels": (
        F.cross_entropy,
        (scores(24).reshape(4, 3, 3, 2), LABELS.repeat(2).reshape(4, 3, 2)),
        {"weight": WEIGHT},
    ),
    "cross_entropy, one row": (F.cross_entropy, (scores()[0], LABELS[1]), {}),
    "nll_loss": (F.nll_loss, (scores().log_softmax(1), LABELS), {"weight": WEIGHT}),
    "mse_loss": (F.mse_loss, (scores(), scores(12, 3) + 1), {}),
    "mse_loss, weights": (F.mse_loss, (scores(), scores() + 1), {"weight": scores().exp()}),
    "l1_loss": (F.l1_loss, (scores(), scores() + 1), {}),
    "l1_loss, weights": (F.l1_loss, (scores(), scores() + 1), {"weight": scores().exp()}),
    "huber_loss": (F.huber_loss, (scores(), scores() + 1), {}),
    "huber_loss, weights": (F.huber_loss, (scores(), scores() + 1), {"weight": scores().exp()}),
    "smooth_l1_loss": (F.smooth_l1_loss, (scores(), scores() + 1), {}),
    "binary_cross_entropy": (
        F.binary_cross_entropy,
        (scores().sigmoid(), scores().sigmoid()),
        {"weight": WEIGHT},
    ),
    "binary_cross_entropy_with_logits": (
        F.binary_cross_entropy_with_logits,
        (scores(), scores().sigmoid()),
        {"pos_weight": WEIGHT},
    ),
    "kl_div": (F.kl_div, (scores().log_softmax(1), scores().softmax(1) ** 2), {}),
    "kl_div, batchmean": (
        F.kl_div,
        (scores().log_softmax(1), scores().softmax(1) ** 2),
        {"reduction": "batchmean"},
    ),
    "poisson_nll_loss": (F.poisson_nll_loss, (scores(), scores().exp()), {}),
    "gaussian_nll_loss": (F.gaussian_nll_loss, (scores(), scores() + 1, scores().exp()), {}),
    "soft_margin_loss": (F.soft_margin_loss, (scores(12, 1).flatten(), SIGNS), {}),
    "hinge_embedding_loss": (F.hinge_embedding_loss, (scores(12, 1).flatten(), SIGNS), {}),
    "margin_ranking_loss": (
        F.margin_ranking_loss,
        (scores()[:, 0], scores()[:, 1], SIGNS),
        {"margin": 1.0},
    ),
    "cosine_embedding_loss": (F.cosine_embedding_loss, (scores(), scores(12, 3) * 2, SIGNS), {}),
    "multi_margin_loss": (F.multi_margin_loss, (scores(), LABELS.clamp(0)), {}),
    "multilabel_margin_loss": (
        F.multilabel_margin_loss,
        (scores(), torch.tensor([[1, -1, -1]] * 12)),
        {},
    ),
    "multilabel_soft_margin_loss": (
        F.multilabel_soft_margin_loss,
        (scores(), scores().sigmoid()),
        {},
    ),
    "triplet_margin_loss": (F.triplet_margin_loss, (scores(), scores(13)[1:], scores(14)[2:]), {}),
    "triplet_margin_with_distance_loss": (
        F.triplet_margin_with_distance_loss,
        (scores(), scores(13)[1:], scores(14)[2:]),
        {},
    ),
    "ctc_loss": (
        F.ctc_loss,
        (
            torch.randn(7, 2, 4).log_softmax(-1),
            torch.tensor([1, 2, 3]),
            torch.tensor([7, 7]),
            torch.tensor([1, 2]),
        ),
        {},
    ),
}


@pytest.mark.filterwarnings("ignore:.*batchmean")
@pytest.mark.parametrize("name", CALLS)
def test_the_divisor_is_the_sum_over_the_mean(name: str) -> None:
    function, arguments, options = CALLS[name]
    loss = WeightedLoss(lambda preds, targs: function(*arguments, **options))
    mean = loss(arguments[0], arguments[1])
    total = function(*arguments, **{**options, "reduction": "sum"})
    if name == "ctc_loss":  # divides each row by its length first; sum does not
        total = (function(*arguments, reduction="none") / arguments[3]).sum()
    assert torch.equal(mean, function(*arguments, **options))
    assert float(loss.divisor) == pytest.approx(float(total / mean), rel=1e-5)


def test_the_table_has_all_of_pytorchs_losses() -> None:
    names = {name for name in dir(F) if name.endswith(("_loss", "entropy"))}
    names |= {"kl_div", "binary_cross_entropy_with_logits"}
    listed = {function.__name__ for function in DIVISORS}
    assert listed == names
    tried = {name.partition(",")[0] for name in CALLS} | {"linear_cross_entropy"}
    assert tried >= names


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="since PyTorch 2.13")
def test_the_fused_linear_loss_counts_its_labels() -> None:
    loss = WeightedLoss(lambda p, t: F.linear_cross_entropy(p, scores(3, 3), t))
    loss(scores(), LABELS)
    assert loss.divisor == 10


# ---- what val_loss is ----------------------------------------------------------------------


class Focal(nn.CrossEntropyLoss):
    """A subclass with a mean of its own: over rows, not by class weights."""

    def forward(self, p: Tensor, t: Tensor) -> Tensor:
        ce = F.cross_entropy(p, t, self.weight, reduction="none")
        return ((1 - (-ce).exp()) ** 2 * ce).mean()


class Inherited(nn.CrossEntropyLoss):
    """A subclass that adds nothing."""


class Wrapped(nn.Module):
    """A loss that is computed by another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.CrossEntropyLoss(weight=WEIGHT)

    def forward(self, p: Tensor, t: Tensor) -> Tensor:
        return self.inner(p, t)


@weighted_by(lambda p, t: (t >= 0).sum())
def declared(p: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(p, t, reduction="none")[t >= 0].mean()


CRITS = {
    "module": nn.CrossEntropyLoss(),
    "weights": nn.CrossEntropyLoss(weight=WEIGHT),
    "smoothed": nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1),
    "function": F.cross_entropy,
    "partial": functools.partial(F.cross_entropy, weight=WEIGHT),
    "partial of a partial": functools.partial(
        functools.partial(F.cross_entropy, weight=WEIGHT), ignore_index=-100
    ),
    "lambda": lambda p, t: F.cross_entropy(p.view(-1, 3), t.view(-1), ignore_index=-100),
    "item": lambda p, t: F.cross_entropy(p, t).item(),
    "subclass": Inherited(weight=WEIGHT),
    "wrapped": Wrapped(),
    "declared": declared,
    "scaled": lambda p, t: -(F.cross_entropy(p, t) * -0.5) / 2 + 1,
    "two heads": lambda p, t: F.cross_entropy(p, t) + 0.4 * F.cross_entropy(p.flip(1), t),
    "float": lambda p, t: float(F.cross_entropy(p, t, WEIGHT)),
}


@pytest.mark.parametrize("name", CRITS)
def test_val_loss_is_the_loss_of_all_rows_at_once(name: str) -> None:
    crit = CRITS[name]
    parts = [
        torch.tensor([3, 9]),
        torch.tensor([0, 1, 2]),
        torch.arange(4, 9),
        torch.arange(10, 12),
    ]
    batches = [(scores()[rows], LABELS[rows]) for rows in parts]  # the first counts nothing
    found = validate(nn.Identity(), batches, crit, [crit])
    assert found["val_loss"] == pytest.approx(float(crit(scores(), LABELS)), rel=1e-6)
    assert list(found.values())[1] == found["val_loss"]


def test_a_mean_of_ones_own_counts_rows() -> None:
    x, y = scores(60, 3), torch.arange(60) // 20
    crit = Focal(weight=torch.tensor([1.0, 10.0, 0.1]))
    found = validate(nn.Identity(), list(zip(x.split(25), y.split(25), strict=True)), crit)
    assert found["val_loss"] == pytest.approx(float(crit(x, y)), rel=1e-6)


def test_sums_of_what_divides_differently_and_products_count_rows() -> None:
    parts = [torch.arange(9), torch.arange(9, 12)]
    batches = [(scores()[rows], LABELS[rows]) for rows in parts]
    for crit in (
        lambda p, t: F.cross_entropy(p, t) + F.cross_entropy(p, t, WEIGHT),
        lambda p, t: F.cross_entropy(p, t) * F.cross_entropy(p, t),
        lambda p, t: F.cross_entropy(p, t) + p.std(),
        lambda p, t: F.cross_entropy(p, t).exp(),
    ):
        each = [float(crit(*batch)) for batch in batches]
        found = validate(nn.Identity(), batches, crit)["val_loss"]
        assert found == pytest.approx(np.average(each, weights=[9, 3]), rel=1e-6)


@pytest.mark.parametrize("axes", [(1, 0), (0, 1)], ids=["sequence first", "batch first"])
def test_means_over_entries_count_entries(axes: tuple[int, int]) -> None:
    t = torch.rand(7, 5)
    parts = [part.permute(axes) for part in (t[:, :3], t[:, 3:])]
    if axes == (0, 1):
        parts = [t[:3], t[3:5, :2]]  # padded to other lengths
    entries = torch.cat([part.flatten() for part in parts])
    for crit in nn.MSELoss(), lambda p, y: ((p - y) ** 2).mean(), F.l1_loss:
        found = validate(nn.Identity(), [(p, torch.zeros_like(p)) for p in parts], crit)
        right = float(crit(entries, torch.zeros_like(entries)))
        assert found["val_loss"] == pytest.approx(right, rel=1e-6)


def test_a_mean_over_columns_counts_rows() -> None:
    """`.mean()` of something that is not as long as the batch says nothing about its rows."""
    x = torch.rand(40, 32)
    crit = lambda p, y: ((p - y) ** 2).mean(0).mean()  # noqa: E731
    parts = x.split(32)  # 32 columns, as the first batch has rows; the second has 8
    found = validate(nn.Identity(), [(p, torch.zeros_like(p)) for p in parts], crit)
    assert found["val_loss"] == pytest.approx(float((x**2).mean()), rel=1e-6)


def test_boxes_texts_dicts_and_sequences_count_their_rows() -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    counts = (9, 1, 1, 1), (1, 1, 1), (1, 1)
    batches = [(torch.randn(len(ks), 3), [torch.ones(k, 2) for k in ks]) for ks in counts]

    def crit(p: Tensor, boxes: list[Tensor]) -> Tensor:
        rows = [((a - t) ** 2).mean() for a, t in zip(p, boxes, strict=True)]
        return sum(rows, torch.zeros(())) / len(rows)

    rows = [crit(net(x)[i : i + 1], y[i : i + 1]).item() for x, y in batches for i in range(len(x))]
    assert validate(net, batches, crit)["val_loss"] == pytest.approx(np.mean(rows), rel=1e-6)
    named = [(x, {"boxes": y, "n": torch.ones(len(y))}) for x, y in batches]
    found = validate(net, named, lambda p, y: crit(p, y["boxes"]))
    assert found["val_loss"] == pytest.approx(np.mean(rows), rel=1e-6)


SIZES = {
    "tensor": (torch.zeros(4, 3), torch.zeros(4), 4),
    "no target": (torch.zeros(4, 3), None, 4),
    "single row": (torch.zeros(3), torch.tensor(1.0), 1),
    "array": (None, np.zeros((4, 2)), 4),
    "texts": (torch.zeros(2, 3), ["long text", "x"], 2),
    "boxes": (torch.zeros(4, 3), [torch.ones(k, 4) for k in (9, 1, 1, 1)], 4),
    "two boxes in one image": (torch.zeros(1, 3), [torch.ones(2, 4)], 1),
    "detection": (torch.zeros(2, 3, 9, 9), ({"boxes": torch.ones(3, 4), "labels": 1},) * 2, 2),
    "images of other sizes": ([torch.zeros(3, 9, 9), torch.zeros(3, 7, 7)], ({"a": 1}, {}), 2),
    "dict": (None, {"kind": torch.zeros(5), "size": torch.zeros(5, 2)}, 5),
    "two targets": (torch.zeros(6, 3), (torch.zeros(6), torch.zeros(6, 2)), 6),
    "two targets, two rows": (torch.zeros(2, 3), (torch.zeros(2), torch.zeros(2, 2)), 2),
    "joined CTC targets": (
        torch.zeros(3, 50, 8),
        (torch.zeros(17), torch.zeros(3), torch.zeros(3)),
        3,
    ),
    "joined CTC targets, sequence first": (
        torch.zeros(50, 3, 8),
        (torch.zeros(17), torch.zeros(3), torch.zeros(3)),
        3,
    ),
    "several inputs": (
        (torch.zeros(4, 3), torch.zeros(4)),
        [torch.ones(k) for k in (1, 2, 3, 4)],
        4,
    ),
    "columns that most agree on": (
        None,
        {"image": torch.zeros(3, 8, 8), "name": ["a", "b"], "weight": [0.5, 1.0]},
        2,
    ),
    "labels of a sequence-first input": (torch.zeros(9, 4, 2), torch.zeros(4), 4),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_number_of_rows(name: str) -> None:
    x, y, n = SIZES[name]
    assert batch_size(x, y) == n


@pytest.mark.parametrize("declared", [False, True])
def test_a_function_says_that_it_sums(declared: bool) -> None:
    """As PyTorch's losses do, by an attribute; several processes must add the parts up."""

    def total(preds: torch.Tensor, targs: torch.Tensor) -> torch.Tensor:
        return ((preds - targs) ** 2 * torch.tensor([1.0, 2.0])).sum()

    if declared:
        total.reduction = "sum"  # type: ignore[attr-defined]
    loss = WeightedLoss(total)
    loss(torch.zeros(3, 2), torch.ones(3, 2))
    assert loss.sums is declared and loss.divisor is None and loss.rows == 3


# ---- accumulated gradients -----------------------------------------------------------------

ROWS = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
TARGETS = {
    "classes": torch.where(torch.arange(50) % 10 > 3, torch.arange(50) % 3, -100),
    "numbers": torch.rand(50, 3, generator=torch.Generator().manual_seed(2)),
}
PENALTY = torch.ones(3)


def picked(p: Tensor, t: Tensor) -> Tensor:
    """The negative log-probability of each label, without those that are ignored."""
    return -p.log_softmax(1).gather(1, t.clamp(0)[:, None])[:, 0]


# The same mean over the labels that are not ignored, as people write it.
MASKED = {
    "chosen, then mean": lambda p, t: picked(p, t)[t != -100].mean(),
    "masked_select": lambda p, t: picked(p, t).masked_select(t != -100).mean(),
    "chosen before": lambda p, t: F.cross_entropy(p[t != -100], t[t != -100]),
    "sum over count": lambda p, t: (picked(p, t) * (t != -100)).sum() / (t != -100).sum(),
    "clamped count": lambda p, t: (
        F.cross_entropy(p, t, reduction="sum") / (t != -100).sum().clamp(min=1)
    ),
    "count and a little": lambda p, t: (
        (picked(p, t) * (t != -100)).sum() / ((t != -100).sum() + 1e-12)
    ),
    "count as a number": lambda p, t: (
        F.cross_entropy(p, t, reduction="none").sum() / (t != -100).sum().item()
    ),
    "float mask": lambda p, t: (picked(p, t) * (t != -100)).sum() / (t != -100).float().sum(),
    "constant factor": lambda p, t: torch.tensor(0.5) * F.cross_entropy(p, t),
    "penalty": lambda p, t: F.cross_entropy(p, t) + 0.1 * PENALTY.square().sum(),
}
ACCUMULATED = {
    **{name: (crit, "classes") for name, crit in MASKED.items()},
    "mse": (nn.MSELoss(), "numbers"),
    "own mse": (lambda p, t: ((p - t) ** 2).mean(), "numbers"),
    "ignored": (nn.CrossEntropyLoss(), "classes"),
    "sum over len": (lambda p, t: F.mse_loss(p, t, reduction="sum") / len(t), "numbers"),
    "sum over columns": (lambda p, t: ((p - t) ** 2).mean(0).sum(), "numbers"),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHT), "classes"),
    "wrapped": (CRITS["lambda"], "classes"),
    "partial": (CRITS["partial"], "classes"),
    "declared": (declared, "classes"),
    "sum": (nn.MSELoss(reduction="sum"), "numbers"),
    "sum, wrapped": (lambda p, t: F.cross_entropy(p, t, reduction="sum"), "classes"),
}


class Stream:
    """A loader that does not know its length, or gives a wrong one."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.batches)


class TooLong(Stream):
    def __len__(self) -> int:
        return len(self.batches) + 3


def trained(loader, crit, *callbacks, epochs=2, **options):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    opt = optim.SGD(net.parameters(), lr=options.pop("lr", 0.1), momentum=0.9)
    val = ArrayLoader(ROWS, TARGETS["numbers"]) if options.pop("validate", False) else None
    fit(
        net,
        ModelData(".", loader, val),
        epochs,
        crit,
        opt,
        [],
        callbacks,
        progress=False,
        **options,
    )
    return net.weight.detach().clone()


def batches(bs: int, target: str) -> list[tuple[Tensor, Tensor]]:
    return list(zip(ROWS.split(bs), TARGETS[target].split(bs), strict=True))


@pytest.mark.filterwarnings("ignore:crit sums over")
@pytest.mark.parametrize("name", ACCUMULATED)
def test_accumulated_gradients_are_those_of_the_large_batch(name: str) -> None:
    crit, target = ACCUMULATED[name]
    options = {"lr": 1e-3, "checks": "off"} if name.startswith("sum") else {}
    large = trained(batches(20, target), crit, **options)
    small = trained(batches(5, target), crit, GradAccumulation(4), **options)
    torch.testing.assert_close(small, large, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", MASKED)
def test_val_loss_of_masked_means_is_that_of_all_rows_at_once(name: str) -> None:
    crit = MASKED[name]
    net = nn.Linear(4, 3)
    found = validate(net, batches(20, "classes"), crit)["val_loss"]
    with torch.no_grad():
        assert found == pytest.approx(float(crit(net(ROWS), TARGETS["classes"])), rel=1e-5)


def test_a_divisor_that_follows_from_the_predictions_is_unknown() -> None:
    def dice(p: Tensor, t: Tensor) -> Tensor:
        return (p * t).sum() / p.abs().sum()

    loss = WeightedLoss(dice)
    loss(scores(), torch.ones(12, 3))
    assert loss.divisor is None


@pytest.mark.parametrize("name", ["mse", "ignored"])
def test_accumulated_gradients_are_to_the_bit_those_of_sums_divided(name: str) -> None:
    crit, target = ACCUMULATED[name]
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    opt = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    parts = batches(7, target)
    for window in (parts[:3], parts[3:6], parts[6:]) * 2:
        opt.zero_grad()
        count = 0
        for x, y in window:
            counted = int((y != -100).sum())
            (crit(net(x), y) * counted).backward()
            count += counted
        for p in net.parameters():
            p.grad /= count
        opt.step()
    assert torch.equal(net.weight, trained(parts, crit, GradAccumulation(3)))


class Steps(Callback):
    """The batches after which the weights are others."""

    def on_train_begin(self, run):  # type: ignore[no-untyped-def]
        self.before = run.net.weight.detach().clone()
        self.steps = []

    def on_batch_end(self, run):  # type: ignore[no-untyped-def]
        if not torch.equal(run.net.weight, self.before):
            self.steps.append(run.step)
            self.before = run.net.weight.detach().clone()


@pytest.mark.parametrize("loader", [Stream, TooLong])
@pytest.mark.parametrize(
    "around",
    [
        lambda: [GradAccumulation(4)],
        lambda: [EMA(0.5), GradAccumulation(4)],
        lambda: [GradAccumulation(4), EMA(0.5)],
        lambda: [GradAccumulation(4), GradClip(max_norm=0.01)],
        lambda: [
            GradAccumulation(4),
            Schedule(lambda opt: optim.lr_scheduler.ExponentialLR(opt, 0.5), "batch"),
        ],
    ],
)
@pytest.mark.parametrize("validated", [False, True])
def test_the_last_window_steps_within_the_events(loader, around, validated) -> None:  # type: ignore[no-untyped-def]
    parts, steps = batches(8, "numbers"), [Steps(), Steps()]
    right = trained(parts, nn.MSELoss(), *around(), steps[0], validate=validated)
    found = trained(loader(parts), nn.MSELoss(), *around(), steps[1], validate=validated)
    assert torch.equal(found, right)
    assert steps[0].steps == steps[1].steps == [4, 7, 11, 14]


def test_the_last_window_of_an_epoch_of_so_many_steps() -> None:
    parts, steps = batches(8, "numbers"), Steps()
    trained(Stream(parts * 2), nn.MSELoss(), GradAccumulation(4), steps, steps=6)
    assert steps.steps == [4, 6, 10, 12]


def test_a_window_without_labels_changes_nothing() -> None:
    nothing = [(x, torch.full_like(y, -100)) for x, y in batches(8, "classes")]
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    before = net.weight.detach().clone()
    opt = optim.SGD(net.parameters(), lr=0.1)
    md = ModelData(".", nothing)
    options = {"callbacks": [GradAccumulation(4)], "checks": "off", "progress": False}
    fit(net, md, 1, nn.CrossEntropyLoss(), opt, **options)
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize("first", [True, False])
def test_a_step_that_another_callback_skips_is_skipped(first: bool) -> None:
    class Skips(Callback):
        def on_backward_end(self, run):  # type: ignore[no-untyped-def]
            if run.step == 3:  # the last batch of the first window
                run.skip_step = True

    steps = Steps()
    both = [Skips(), GradAccumulation(4)]
    trained(batches(8, "numbers"), nn.MSELoss(), *(both if first else both[::-1]), steps)
    assert steps.steps == [7, 11, 14]


def test_a_window_of_two_kinds_of_divisors_is_an_error() -> None:
    def crit(p: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(p, t) if (t > 0).any() else p.sum() * 0

    parts = batches(8, "classes")
    parts[1] = parts[1][0], torch.zeros_like(parts[1][1])
    with pytest.raises(ValueError, match="weighted_by"):
        trained(parts, crit, GradAccumulation(4))


def test_mixed_and_smoothed_losses_are_weighted_once() -> None:
    parts = batches(8, "classes")
    clean = [(x, y.clamp(0)) for x, y in parts]
    for callbacks in (lambda: [MixUp(0.4)], lambda: [LabelSmoothing(0.2)]):
        one = trained(clean, nn.CrossEntropyLoss(), *callbacks())
        other = trained(clean, nn.CrossEntropyLoss(), *callbacks(), GradAccumulation(1))
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_only_pytorchs_own_losses_are_known_to_keep_rows_apart() -> None:
    known = nn.MSELoss(), nn.CrossEntropyLoss(weight=WEIGHT), F.nll_loss
    assert all(map(divides_by_rows, known))
    others = Focal(), Inherited(), nn.MSELoss(reduction="sum"), CRITS["partial"], declared
    assert not any(map(divides_by_rows, others))


def test_the_mean_is_not_a_number_without_a_batch() -> None:
    assert np.isnan(WeightedMean(nn.MSELoss()).compute())


def test_a_declared_count_is_what_a_batch_counts() -> None:
    @weighted_by(lambda preds, targs: float(targs[0]))
    def first(preds: Tensor, targs: Tensor) -> float:
        return float(preds[0])

    batches = [(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])), (torch.ones(9) * 3,) * 2]
    found = validate(nn.Identity(), batches, first)["val_loss"]
    assert found == pytest.approx((1 * 1 + 3 * 3) / (1 + 3))
