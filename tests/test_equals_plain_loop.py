"""The anchor: `fit` gives, to the bit, what the plain PyTorch loop gives. Never weaken it."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn, optim

from minifast import Callback, ImageClassifierData, accuracy, fit

plain_fit = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "plain_loop.py"))[
    "plain_fit"
]

NETS = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(dim=1)),
    "dropout": lambda: nn.Sequential(
        nn.Linear(6, 20), nn.ReLU(), nn.Dropout(0.3), nn.Linear(20, 3), nn.LogSoftmax(dim=1)
    ),
    "batchnorm": lambda: nn.Sequential(
        nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3), nn.LogSoftmax(dim=1)
    ),
}
OPTIMIZERS = {
    "sgd with momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p),
    "adamw with groups": lambda p: optim.AdamW(
        [{"params": [q]} for q in p], lr=0.01, weight_decay=0.1
    ),
}


class Listener(Callback):
    """Hears every event and changes nothing."""

    def on_train_begin(self, run): ...
    def on_epoch_begin(self, run): ...
    def on_batch_begin(self, run): ...
    def on_backward_begin(self, run): ...
    def on_backward_end(self, run): ...
    def on_batch_end(self, run): ...
    def on_validate_begin(self, run): ...
    def on_validate_end(self, run): ...
    def on_epoch_end(self, run): ...
    def on_train_end(self, run): ...


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("extras", [False, True], ids=["bare", "everything on"])
def test_fit_equals_the_plain_loop_to_the_bit(arrays, kind, optimizer, extras, capsys):
    x, y, x_valid, y_valid = arrays
    results = []
    for way in "plain", "fit":
        torch.manual_seed(7)
        net = NETS[kind]()
        opt = OPTIMIZERS[optimizer](net.parameters())
        crit = nn.NLLLoss()
        if way == "plain":
            tensors = map(torch.from_numpy, (x, y, x_valid, y_valid))
            accuracies = plain_fit(net, *tensors, epochs=3, crit=crit, opt=opt, bs=16)
        else:
            md = ImageClassifierData.from_arrays(".", (x, y), (x_valid, y_valid), bs=16)
            more = {"metrics": [accuracy], "callbacks": [Listener()], "progress": True}
            history = fit(net, md, 3, crit, opt, **(more if extras else {"progress": False}))
        results.append((net.state_dict(), opt.state_dict(), torch.get_rng_state()))
    (weights, state, rng), (fit_weights, fit_state, fit_rng) = results
    assert same(dict(weights), dict(fit_weights))
    assert same(state, fit_state)
    assert torch.equal(rng, fit_rng)
    if extras:
        assert history["accuracy"] == pytest.approx(accuracies, abs=1e-6)


def test_the_comparison_would_see_a_difference_of_one_bit(arrays):
    a = torch.tensor([1.0, 2.0])
    b = torch.nextafter(a, torch.tensor(9.0))
    assert same({"w": [a]}, {"w": [a.clone()]})
    assert not same({"w": [a]}, {"w": [b]})
