"""Learn to read handwritten digits, from looking at the data to looking at what was learned.

The lesson in order: look at some digits; normalise them; train a net of one line for an epoch;
predict, and work the accuracy out by hand; look at the mistakes and at what the net looks for in
each digit; write the same net from scratch as a module of your own; lower the rate and go on.

It prints the tables and saves three pictures. Start with

    python examples/lesson8.py

which takes the 6,000 digits that come with minifast and a few seconds. Then try

    python examples/lesson8.py --full         the whole of MNIST: 92 % instead of 88 %
    python examples/lesson8.py --epochs 5     what does going on longer bring?
    python examples/lesson8.py --seed 1       how much of the result is chance?

and read the code: it is the lesson.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn, optim

from minifast.core import set_lrs
from minifast.dataset import ImageClassifierData
from minifast.io import Digits, DownloadError, get_data, load_mnist, load_mnist_sample
from minifast.metrics import accuracy
from minifast.model import fit, predict
from minifast.plots import plot_weights, plots

URL = "http://deeplearning.net/data/mnist/mnist.pkl.gz"  # the lesson's address; see get_data


def main() -> None:
    args = arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    title("The digits")
    ((x, y), (x_valid, y_valid), _), bs, source = load(args.full)
    print(f"{source}\n{len(x):,} to learn from, {len(x_valid):,} to check with")
    print(f"one of them is {x[0].shape[0]} numbers from {x.min()} to {x.max()}")
    images = x_valid.reshape(-1, 28, 28)
    save(
        plots(images[:8], titles=y_valid[:8], maintitle="digits and their labels"),
        out / "digits.png",
    )

    title("Normalised by the training set's mean and standard deviation")
    mean, std = x.mean(), x.std()
    x, x_valid = (x - mean) / std, (x_valid - mean) / std
    print(f"mean {mean:.4f}, std {std:.4f}; afterwards {abs(x.mean()):.4f} and {x.std():.4f}")
    print(f"the validation set by the same two numbers: {x_valid.mean():.4f}, {x_valid.std():.4f}")

    title("A net in one line: Linear, LogSoftmax")
    md = ImageClassifierData.from_arrays(args.out, (x, y), (x_valid, y_valid), bs=bs)
    net = nn.Sequential(nn.Linear(28 * 28, 10), nn.LogSoftmax(dim=1))
    opt = optim.Adam(net.parameters())
    first = fit(net, md, epochs=args.epochs, crit=nn.NLLLoss(), opt=opt, metrics=[accuracy])

    title("What it says")
    log_probs = predict(net, md.val_dl)
    preds = log_probs.argmax(axis=1)
    by_hand = np.mean(preds == y_valid)
    print(f"predict gives {log_probs.shape}: the log-probability of each digit for each image")
    print(f"first five: it says {preds[:5]}, they are {y_valid[:5]}")
    print(f"accuracy by hand {by_hand:.6f}, in the table {first[-1]['accuracy']:.6f}")
    assert abs(by_hand - first[-1]["accuracy"]) < 1e-9
    save(mistakes(images, preds, y_valid), out / "predictions.png")
    picture = plot_weights(net)
    picture.suptitle("what it looks for in each digit: bright speaks for it, dark against it")
    save(picture, out / "weights.png")

    title("The same net, written from scratch")
    net2 = LogReg()
    opt2 = optim.Adam(net2.parameters())
    second = fit(net2, md, epochs=args.epochs, crit=nn.NLLLoss(), opt=opt2, metrics=[accuracy])

    title("On with a lower rate: 0.0002 instead of 0.001")
    set_lrs(opt2, 2e-4)
    third = fit(net2, md, epochs=2, crit=nn.NLLLoss(), opt=opt2, metrics=[accuracy])
    print(f"from {second[-1]['accuracy']:.4f} to {third[-1]['accuracy']:.4f}")

    title("Pictures")
    for name in "digits.png", "predictions.png", "weights.png":
        print(out / name)
    if not args.full:
        print(
            "\nThese were 6,000 digits; `--full` takes all 70,000 of MNIST (a download of 12 MB)."
        )


class LogReg(nn.Module):
    """Logistic regression: `Linear` and `LogSoftmax` by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(28 * 28, 10) / 28)
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x.flatten(1) @ self.weights + self.bias
        return scores - scores.exp().sum(dim=1, keepdim=True).log()


def load(full: bool) -> tuple[Digits, int, str]:
    """The digits, the batch size that suits their number, and what they are in words."""
    if full:
        folder = Path(os.environ.get("MINIFAST_DATA", "data"))
        try:
            path = get_data(URL, folder / "mnist.pkl.gz")
            return load_mnist(path), 64, f"the whole of MNIST, from {path}"
        except DownloadError as error:
            print(f"{error}\n\nWithout the full set, on with the sample:")
    source = "minifast's own sample of MNIST, 6,000 digits (--full takes all of it)"
    return load_mnist_sample(), 16, source  # a tenth of the rows: smaller batches, as many steps


def mistakes(images: np.ndarray, preds: np.ndarray, y: np.ndarray) -> Figure:
    """The first eight images, and the first eight that the net takes for something else."""
    wrong = np.flatnonzero(preds != y)[:8]
    shown = np.concatenate([np.arange(8), wrong])
    titles = [str(preds[i]) if preds[i] == y[i] else f"says {preds[i]}, is {y[i]}" for i in shown]
    marked = np.flatnonzero(preds[shown] != y[shown]).tolist()
    return plots(
        images[shown],
        figsize=(12, 4),
        titles=titles,
        marked=marked,
        maintitle="what it says; framed: wrong",
    )


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=80)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="all of MNIST instead of the sample: "
        "found in the folder $MINIFAST_DATA or ./data, downloaded there once",
    )
    parser.add_argument("--epochs", type=int, default=1, help="epochs for each net (default: 1)")
    parser.add_argument("--out", default="out", help="folder for the pictures (default: out)")
    parser.add_argument(
        "--seed", type=int, default=42, help="of the weights and the shuffling (default: 42)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
