"""The loop that `fit` equals, to the bit, in plain PyTorch: python examples/plain_loop.py

`plain_fit` is all of it. tests/test_equals_plain_loop.py holds that `fit` gives the same weights.
"""

import torch
from torch import Tensor, nn, optim

from minifast.io import load_mnist_sample


def plain_fit(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    x_valid: Tensor,
    y_valid: Tensor,
    epochs: int,
    crit: nn.Module,
    opt: optim.Optimizer,
    bs: int = 64,
) -> list[float]:
    accuracies = []
    for _ in range(epochs):
        net.train()
        for rows in torch.randperm(len(x)).split(bs):
            loss = crit(net(x[rows]), y[rows])
            opt.zero_grad()
            loss.backward()
            opt.step()
        net.eval()
        with torch.no_grad():
            preds = net(x_valid)
        accuracies.append((preds.argmax(dim=1) == y_valid).float().mean().item())
    return accuracies


if __name__ == "__main__":
    torch.manual_seed(0)
    (x, y), (x_valid, y_valid), _ = load_mnist_sample()
    mean, std = x.mean(), x.std()
    net = nn.Sequential(nn.Linear(28 * 28, 10), nn.LogSoftmax(dim=1))
    accuracies = plain_fit(
        net,
        torch.from_numpy((x - mean) / std),
        torch.from_numpy(y),
        torch.from_numpy((x_valid - mean) / std),
        torch.from_numpy(y_valid),
        epochs=3,
        crit=nn.NLLLoss(),
        opt=optim.Adam(net.parameters()),
    )
    print("accuracy after each epoch:", *[f"{accuracy:.4f}" for accuracy in accuracies])
