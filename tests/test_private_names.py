"""Private names of PyTorch that the package uses: each is listed here, and may go."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn, optim

from minifast import ModelData, fit
from minifast.plugins import Fast, Profile, _fused, fast
from minifast.storage import read_state, write_state
from minifast.testing import example_data, example_fit, example_net

REPOSITORY = Path(__file__).parents[1]

# What each is used for, and what happens without it.
KNOWN = {
    "_execution_engine": "Fast: `loss.backward()` in its place",
    "_fused_adam_": "Fast: the ordinary step in its place, with a warning",
    "_fused_adamw_": "Fast, likewise",
    "_fused_sgd_": "Fast, likewise",
    "_foreach_add_": "Fast, likewise",
    "_optimizer_step_pre_hooks": "Fast, likewise: hooks that it cannot see might be there",
    "_optimizer_step_post_hooks": "Fast, likewise",
    "_global_optimizer_pre_hooks": "Fast, likewise",
    "_global_optimizer_post_hooks": "Fast, likewise",
    "_forward_hooks": "whether a loss was changed, what a copy must not call; a callback's traces",
    "_forward_pre_hooks": "likewise",
    "_global_forward_hooks": "whether a loss was changed",
    "_global_forward_pre_hooks": "likewise",
    "_backward_hooks": "a callback's traces, in the conformance tests",
    "_backward_pre_hooks": "likewise",
    "_post_accumulate_grad_hooks": "likewise",
    "_get_default_store": "a group of the program's own: errors end all, without their text",
    "_orig_mod": "the net in one that torch.compile made, as its state_dict names it",
    "_profiler_enabled": "Profile: a second profiler is not refused",
}
# Those of Python, of NumPy's pickles, of fastai 0.7.
OTHERS = {"_codecs", "_cyc_", "_fields", "_getframe", "_reconstruct"}


def test_no_other_private_name_is_used():
    trees = [ast.parse(path.read_text()) for path in (REPOSITORY / "minifast").rglob("*.py")]
    ours = {path.stem for path in (REPOSITORY / "minifast").rglob("_*.py")}
    used = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                ours.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                ours.add(name)
            case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                used.add(name)
            case ast.ImportFrom(names=names):
                used |= {alias.name for alias in names}
    private = {name for name in used if re.fullmatch(r"_[A-Za-z]\w*", name)} - ours
    assert private - OTHERS == set(KNOWN)


def refuses(*args, **kwargs):
    raise TypeError("other arguments")


def does_nothing(*args, **kwargs):
    pass


def trained(stepper, make):
    torch.manual_seed(1)
    net = example_net()
    opt = make(net.parameters())
    data = ModelData(".", list(example_data().trn_dl))
    history = fit(net, data, 2, nn.NLLLoss(), opt, progress=False, stepper=stepper)
    return [*net.state_dict().values()], history["trn_loss"]


KERNELS = {
    "_fused_sgd_": "SGD_KERNEL",
    "_fused_adam_": "ADAM_KERNEL",
    "_fused_adamw_": "ADAMW_KERNEL",
}
CHANGES = [(name, kernel) for name in KERNELS.values() for kernel in (None, refuses, does_nothing)]


@pytest.mark.parametrize(("name", "kernel"), CHANGES)
def test_fast_takes_the_ordinary_step_where_a_kernel_is_gone_or_another(name, kernel, monkeypatch):
    monkeypatch.setattr(_fused, name, kernel)
    stepper = Fast()

    def make(params):
        return optim.SGD(params, lr=0.1, momentum=0.9)

    with pytest.warns(UserWarning, match=r"ordinary step: PyTorch .* has other fused kernels"):
        found = trained(stepper, make)
    plain = trained(None, make)
    assert all(map(torch.equal, found[0], plain[0])) and found[1] == plain[1]


@pytest.mark.parametrize(
    "names",
    [
        (_fused.torch_optimizer, "_global_optimizer_pre_hooks"),
        (_fused.torch_optimizer, "_global_optimizer_post_hooks"),
        (torch, "_foreach_add_"),
    ],
    ids=lambda names: names[1],
)
def test_fast_takes_the_ordinary_step_where_hooks_or_counters_are_gone(names, monkeypatch):
    monkeypatch.delattr(*names)
    stepper = Fast()
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="has other fused kernels"):
        found = trained(stepper, optim.Adam)
    assert all(map(torch.equal, found[0], trained(None, optim.Adam)[0]))


class Other:
    """An engine that is called otherwise."""

    def __init__(self, run_backward):
        self.run_backward = run_backward


@pytest.mark.parametrize("engine", [None, Other(refuses), Other(does_nothing)])
def test_fast_calls_backward_where_the_engine_is_gone_or_another(engine, monkeypatch):
    usual = trained(Fast(), optim.SGD)
    monkeypatch.setattr(fast, "ENGINE", engine)
    found = trained(Fast(), optim.SGD)
    assert all(map(torch.equal, found[0], usual[0])) and found[1] == usual[1]


def test_the_profiler_records_where_it_cannot_ask_for_another(monkeypatch):
    monkeypatch.delattr(torch.autograd, "_profiler_enabled")
    profile = Profile(skip=1, batches=2)
    example_fit([profile])
    assert "aten::addmm" in profile.table


def test_the_package_is_imported_and_trains_where_all_of_them_are_gone(tmp_path):
    """Those that PyTorch itself can do without; the others are in the tests above."""
    code = """
import torch
for name in "_fused_sgd_", "_fused_adam_", "_fused_adamw_":
    delattr(torch, name)
del torch.autograd._profiler_enabled
import minifast, minifast.plugins, minifast.testing, minifast.team
from minifast.plugins import Fast, GradientStats, Profile
minifast.testing.example_fit([GradientStats()])
import warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    minifast.testing.example_fit([], stepper=Fast())
print(*[warning.message for warning in told])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Fast takes the ordinary step") == 1


def test_a_state_that_was_written_is_read_with_the_names_of_this_release(tmp_path):
    values = {
        "parts": [
            torch.arange(6.0).reshape(2, 3).t(),
            torch.tensor(True),
            torch.ones(2).bfloat16(),
        ],
        "complex": torch.ones(2, dtype=torch.complex64),
        "unsigned": torch.ones(2, dtype=torch.uint16),
    }
    write_state(tmp_path / "state", values, read_back=True)
    found = read_state(tmp_path / "state")
    assert all(map(torch.equal, found["parts"], values["parts"]))
