"""A small convolution net that reads more than 99 of 100 handwritten digits.

    python examples/convnet.py           on the 6,000 digits that come with minifast: a few seconds
    python examples/convnet.py --full    on all of MNIST: some minutes, above 99 %

Three blocks of convolution, BatchNorm, ReLU and pooling; one cycle of the rate; and a callback of
ten lines that shifts each batch by a pixel or two, so that no digit is seen twice at one place.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn, optim

from minifast import Callback, ImageClassifierData, Run, accuracy, fit, predict
from minifast.io import get_data, load_mnist, load_mnist_sample
from minifast.plots import plot_top_losses
from minifast.plugins import OneCycle

URL = "http://deeplearning.net/data/mnist/mnist.pkl.gz"


class Shift(Callback):
    """Moves each batch of images by up to `most` pixels, up or down and left or right."""

    changes_training = True

    def __init__(self, most: int = 2) -> None:
        self.most = most

    def on_batch_begin(self, run: Run) -> None:
        down, right = torch.randint(-self.most, self.most + 1, (2,)).tolist()
        run.x = run.x.roll((down, right), dims=(2, 3))


def block(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]


def make_net() -> nn.Module:
    layers = [*block(1, 16), *block(16, 32), *block(32, 64)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 9, 10))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="all of MNIST instead of the sample")
    parser.add_argument("--epochs", type=int, default=6, help="epochs (default: 6)")
    parser.add_argument("--seed", type=int, default=42, help="of weights and shuffling")
    parser.add_argument("--out", default="out", help="folder for the picture (default: out)")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    if args.full:
        data = load_mnist(
            get_data(URL, Path(os.environ.get("MINIFAST_DATA", "data")) / "mnist.pkl.gz")
        )
    else:
        data = load_mnist_sample()
    (x, y), (x_valid, y_valid), _ = data
    mean, std = x.mean(), x.std()
    x, x_valid = (((a - mean) / std).reshape(-1, 1, 28, 28) for a in (x, x_valid))
    md = ImageClassifierData.from_arrays(out, (x, y), (x_valid, y_valid), bs=64)

    net = make_net()
    opt = optim.AdamW(net.parameters(), weight_decay=0.05)
    callbacks = [OneCycle(max_lr=0.01), Shift()]
    fit(net, md, args.epochs, nn.CrossEntropyLoss(), opt, [accuracy], callbacks)

    preds = predict(net, md.val_dl)
    wrong = int(np.sum(preds.argmax(axis=1) != y_valid))
    print(f"{wrong} of {len(y_valid):,} wrong: {1 - wrong / len(y_valid):.2%} right")
    plot_top_losses(x_valid, preds, y_valid, n=12).savefig(out / "worst.png", dpi=80)
    print(out / "worst.png")


if __name__ == "__main__":
    main()
