import pytest
import torch
from minifast_template import NoisyGradients, WeightNorm, top2

from minifast import plugins
from minifast.testing import CHECKS, STEPPER_CHECKS, example_fit


@pytest.mark.parametrize("check", CHECKS)
def test_weight_norm_keeps_the_contract(check):
    check(WeightNorm)


@pytest.mark.parametrize("check", STEPPER_CHECKS)
def test_noisy_gradients_keeps_the_contract(check):
    check(NoisyGradients)


def test_weight_norm_is_the_length_of_the_weights():
    class Flat(WeightNorm):
        """The same by another way."""

        def on_epoch_end(self, run):
            super().on_epoch_end(run)
            flat = torch.cat([p.detach().flatten() for p in run.net.parameters()])
            run.values["flat"] = flat.norm()

    history = example_fit([Flat()])
    assert history[0]["weight_norm"] == pytest.approx(history[0]["flat"], rel=1e-5)


def test_top2():
    preds = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    assert top2(preds, torch.tensor([1, 2, 2])).item() == pytest.approx(2 / 3)


def test_noisy_gradients_without_noise_is_the_ordinary_step():
    plain = example_fit([], epochs=2)
    noiseless = example_fit([], epochs=2, stepper=NoisyGradients(std=0.0))
    noisy = example_fit([], epochs=2, stepper=NoisyGradients(std=1.0))
    assert noiseless["val_loss"] == plain["val_loss"]
    assert noisy["val_loss"] != plain["val_loss"]


def test_all_three_are_listed_and_load():
    ours = {p.name: p.kind for p in plugins.available() if "minifast-template" in p.distribution}
    assert ours == {"WeightNorm": "callback", "top2": "metric", "NoisyGradients": "stepper"}
    assert plugins.load("WeightNorm") is WeightNorm
