"""The same training in the workers of Ray Train: `pip install "minifast[ray]"`, then

    python examples/cluster/with_ray.py FOLDER

FOLDER is one that all machines see. Ray starts the workers, on one machine or a cluster, makes
their process group and starts all anew when one is lost; `fit` finds the group and goes on from the
checkpoint.
"""

import sys
from pathlib import Path
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train(config: dict[str, Any]) -> None:
    """What each worker does: an ordinary script."""
    import torch
    from torch import nn, optim

    from minifast import ImageClassifierData, accuracy, fit, save_weights
    from minifast.io import load_mnist_sample
    from minifast.plugins import Checkpoint

    torch.manual_seed(0)
    (x, y), (x_valid, y_valid), _ = load_mnist_sample()
    md = ImageClassifierData.from_arrays("data", (x, y), (x_valid, y_valid), bs=32)
    net = nn.Sequential(nn.Linear(784, 10), nn.LogSoftmax(dim=1))
    opt = optim.Adam(net.parameters())
    path = config["checkpoint"]
    callbacks = [*config.get("callbacks", ()), Checkpoint(path, every=20)]
    fit(net, md, 3, nn.NLLLoss(), opt, [accuracy], callbacks, resume=path)
    if ray.train.get_context().get_world_rank() == 0:
        save_weights(net, config["weights"])


def run(folder: Path, **config: Any) -> Any:
    """Two workers on the CPU; a lost one is started again, three times at most."""
    trainer = TorchTrainer(
        train,
        train_loop_config={
            "checkpoint": str(folder / "run.ckpt"),
            "weights": str(folder / "net.pt"),
            **config,
        },
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=3)
        ),
    )
    return trainer.fit()


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    run(folder)
    print("the trained weights are in", folder / "net.pt")
