"""What runs on every host of a cluster: an ordinary script, which saves and goes on where it was.

    torchrun --nnodes 2 --nproc-per-node 1 --max-restarts 3 \
        --rdzv-backend c10d --rdzv-endpoint FIRST_HOST:29400 train.py /shared/run.ckpt

All hosts see the checkpoint: the first writes it, and whichever is first after a restart reads it.
"""

import sys

import torch
from torch import nn, optim

from minifast import ImageClassifierData, accuracy, fit
from minifast.io import load_mnist_sample
from minifast.plugins import Checkpoint
from minifast.team import join

checkpoint = sys.argv[1]
join(timeout=30)  # seconds: a host that is silent for longer is lost

torch.manual_seed(0)
(x, y), (x_valid, y_valid), _ = load_mnist_sample()
md = ImageClassifierData.from_arrays("data", (x, y), (x_valid, y_valid), bs=32)
net = nn.Sequential(nn.Linear(784, 10), nn.LogSoftmax(dim=1))
opt = optim.Adam(net.parameters())
fit(
    net, md, 3, nn.NLLLoss(), opt, [accuracy],
    [Checkpoint(checkpoint, every=20)], resume=checkpoint,
)  # fmt: skip
