"""Bad input gets one clear error before any training: nothing is learned, no callback begun."""

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from minifast import ArrayLoader, Callback, ModelData, accuracy, fit, predict, validate


def loader(y=None):
    return ArrayLoader(np.ones((8, 6)), np.zeros(8, int) if y is None else y, bs=4)


def other_net():
    return optim.Adam(nn.Linear(6, 3).parameters())


FLOATS = np.zeros(8)
CASES = {
    # argument(s) of fit: the error, and what its message must say
    "net is a class": ({"net": nn.Linear}, TypeError, r"net is no nn.Module.*Linear.*Linear\(\)"),
    "net is a function": ({"net": len}, TypeError, "net is no nn.Module"),
    "data is a loader": ({"data": loader()}, TypeError, "data has no trn_dl.*ArrayLoader"),
    "data is arrays": ({"data": (np.ones(3), np.ones(3))}, TypeError, "data has no trn_dl"),
    "data is None": ({"data": None}, TypeError, "data has no trn_dl"),
    "epochs is negative": ({"epochs": -1}, ValueError, "epochs cannot be.*-1"),
    "epochs is a half": ({"epochs": 1.5}, TypeError, "epochs cannot be.*1.5"),
    "epochs is text": ({"epochs": "3"}, TypeError, "epochs cannot be.*'3'"),
    "epochs is a truth value": ({"epochs": True}, TypeError, "epochs cannot be"),
    "epochs is missing": ({"epochs": None}, TypeError, "epochs cannot be.*None"),
    "epochs twice": ({"n_epochs": 2}, TypeError, "epochs and n_epochs are two names"),
    "crit and opt swapped": ({"crit": other_net(), "opt": nn.NLLLoss()}, TypeError,
                             "crit and opt are in each other's place.*crit=Adam, opt=NLLLoss"),
    "crit is a class": ({"crit": nn.NLLLoss}, TypeError, r"crit is no loss.*crit=NLLLoss\(\)"),
    "crit is missing": ({"crit": None}, TypeError, "crit is no loss.*NoneType"),
    "opt is a class": ({"opt": optim.SGD}, TypeError, r"opt is no optimizer.*opt=optim.SGD\(net.p"),
    "opt is missing": ({"opt": None}, TypeError, "opt is no optimizer"),
    "opt of another net": ({"opt": other_net()}, ValueError,
                           "opt is an optimizer of another net.*Adam over 2 parameters"),
    "metrics is a function": ({"metrics": accuracy}, TypeError, r"metrics is no list.*accuracy\]"),
    "metrics holds text": ({"metrics": ["accuracy"]}, TypeError, "metrics holds something else"),
    "callbacks is a callback": ({"callbacks": Callback()}, TypeError, "callbacks is no list"),
    "callbacks is a class": ({"callbacks": Callback}, TypeError, "callbacks is no list"),
    "callbacks holds a class": ({"callbacks": [Callback]}, TypeError,
                                r"callbacks holds something else.*\[Callback\(\)\]"),
    "callbacks holds a function": ({"callbacks": [print]}, TypeError, "callbacks holds something"),
    "float labels": ({"data": ModelData(".", loader(FLOATS))}, TypeError,
                     "the labels y are floats, and NLLLoss wants classes.*float32 of shape .4,."),
    "float labels in a DataLoader": (
        {"data": ModelData(".", DataLoader(TensorDataset(torch.ones(8, 6), torch.zeros(8)), 4))},
        TypeError, "the labels y are floats"),
    "float labels, cross entropy": (
        {"data": ModelData(".", loader(FLOATS)), "crit": nn.CrossEntropyLoss()},
        TypeError, "the labels y are floats, and CrossEntropyLoss"),
    "float labels, a function": ({"data": ModelData(".", loader(FLOATS)), "crit": F.nll_loss},
                                 TypeError, "the labels y are floats, and nll_loss"),
    "batches without targets": ({"data": ModelData(".", ArrayLoader(np.ones((8, 6))))}, TypeError,
                                "batch has no input and target"),
    "batches that are tensors": ({"data": ModelData(".", [torch.ones(4, 6)])}, TypeError,
                                 "batch has no input and target"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_in_words_before_any_training(net, case, capsys):
    changes, error, words = CASES[case]
    before = [p.detach().clone() for p in net.parameters()]
    steps = []

    class Steps(Callback):
        def on_backward_end(self, run):
            steps.append(run.step)

    good = {
        "net": net,
        "data": ModelData(".", loader()),
        "epochs": 1,
        "crit": nn.NLLLoss(),
        "opt": optim.SGD(net.parameters(), lr=0.1),
        "metrics": [accuracy],
        "callbacks": [Steps()],
    }
    with pytest.raises(error, match=f"(?s){words}") as info:
        fit(**good | changes)
    text = str(info.value)
    assert all(part in text for part in ("\n  got:    ", "\n  wanted: ", "\n  fix:    ", "#"))
    assert steps == []
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert capsys.readouterr().out == ""


def test_what_is_right_passes(net):
    opt = optim.SGD(net.parameters(), lr=0.1)
    for crit in nn.NLLLoss(), F.nll_loss, lambda p, y: F.nll_loss(p, y):
        fit(net, ModelData(".", loader()), 1, crit, opt, None, None, progress=False)
    float_targets = ModelData(".", ArrayLoader(np.ones((8, 6)), np.zeros((8, 3))))
    fit(net, float_targets, 1, nn.MSELoss(), opt, progress=False)
    soft_labels = ModelData(".", ArrayLoader(np.ones((8, 6)), np.full((8, 3), 1 / 3)))
    fit(net, soft_labels, 1, nn.CrossEntropyLoss(), opt, progress=False)


def test_an_optimizer_over_some_of_the_parameters_is_fine(net):
    opt = optim.SGD([net[0].bias], lr=0.1)
    fit(net, ModelData(".", loader()), 1, nn.NLLLoss(), opt, progress=False)


@pytest.mark.parametrize("bad", [np.ones((3, 6)), torch.ones(3, 6), None, 5])
def test_predict_and_validate_want_a_loader(net, bad):
    with pytest.raises(TypeError, match=r"(?s)dl is no loader.*fix:"):
        predict(net, bad)
    with pytest.raises(TypeError, match=r"(?s)dl is no loader.*fix:"):
        validate(net, bad, nn.NLLLoss())
