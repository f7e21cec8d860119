"""What a net is made of, against counts by hand."""

import pytest
import torch
from torch import nn

from minifast.summary import model_summary


def test_a_convolution_net_by_hand(capsys):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    net[0].weight.requires_grad_(False)
    found = model_summary(net, torch.rand(5, 3, 8, 8))
    conv, norm, _, _, linear = found
    assert [layer.name for layer in found] == ["0", "1", "2", "3", "4"]
    assert (conv.shape, conv.parameters, conv.frozen) == ((5, 8, 8, 8), 3 * 8 * 9 + 8, 216)
    assert conv.macs == 5 * 8 * 64 * 27 and conv.bytes == 5 * 8 * 64 * 4
    assert (norm.parameters, norm.macs) == (16, 0)
    assert (linear.shape, linear.parameters, linear.macs) == ((5, 10), 5130, 5 * 5120)
    assert found.parameters == 224 + 16 + 5130 and found.frozen == 216
    assert found.macs == conv.macs + linear.macs
    assert found.weight_bytes == 4 * (found.parameters + 16) + 8  # means, variances, one int64
    assert found.output_bytes == sum(layer.bytes for layer in found)
    out = capsys.readouterr().out
    assert "5,370 parameters, 216 of them frozen" in out and "5 x 8 x 8 x 8" in out
    assert "5,370 parameters" in repr(found) and "\n" not in repr(found)


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_layers_are_counted(kind, gates):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = kind(16, 32, batch_first=True), nn.Linear(32, 2)

        def forward(self, x):
            return self.out(self.layer(x)[0][:, -1])

    found = model_summary(Net(), torch.rand(4, 7, 16))
    assert found[0].macs == 4 * 7 * gates * (16 * 32 + 32 * 32)
    assert found.macs == found[0].macs + 4 * 64


def test_the_net_is_left_as_it_was_found():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    generator = torch.get_rng_state()
    model_summary(net, (8, 4))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net] == [True, False, True, True]
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    with pytest.raises(RuntimeError):
        model_summary(net, (8, 5))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_layer_called_twice_learns_its_numbers_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, y):
            return self.layer(self.layer(x)) + y

    found = model_summary(Twice(), (torch.rand(2, 3), torch.rand(2, 3)))
    assert [layer.parameters for layer in found] == [12, 0]
    assert found.parameters == 12 and found.macs == 2 * 18
