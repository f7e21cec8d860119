"""The example for Ray Train, with a worker that is killed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import minifast
from minifast import Run

ray = pytest.importorskip("ray", reason='needs pip install "minifast[ray]"')


pytestmark = [  # of its own doing
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Killed(minifast.Callback):
    """Kills its process at a batch, once."""

    def __init__(self, folder: Path, rank: int, step: int) -> None:
        self.done, self.rank, self.step = folder / "killed", rank, step

    def on_batch_end(self, run: Run) -> None:
        if (run.rank, run.step) == (self.rank, self.step) and not self.done.exists():
            self.done.touch()
            os.kill(os.getpid(), 9)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine: workers of this program's paths, which send nothing to anybody."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    here = str(Path(__file__).parents[2])
    ray.init(num_cpus=3, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": here}})
    yield
    ray.shutdown()


def weights(path: Path) -> torch.Tensor:
    """Those of a file."""
    from minifast.checkpoint import load_weights

    net = torch.nn.Sequential(torch.nn.Linear(784, 10), torch.nn.LogSoftmax(dim=1))
    load_weights(net, path)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_a_worker_of_ray_that_is_killed(tmp_path: Path, cluster: None) -> None:
    from examples.cluster import with_ray

    with_ray.run(tmp_path / "whole")
    with_ray.run(tmp_path / "broken", callbacks=[Killed(tmp_path, 1, 130)])
    assert (tmp_path / "killed").exists()
    whole, broken = (weights(tmp_path / name / "net.pt") for name in ("whole", "broken"))
    torch.testing.assert_close(whole, broken, rtol=0, atol=1e-6)
