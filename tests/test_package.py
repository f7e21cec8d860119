"""The package as a whole: names, imports, layers, sizes, the wheel."""

import ast
import importlib
import io
import shutil
import subprocess
import sys
import tokenize
import zipfile
from itertools import chain
from pathlib import Path

import pytest

import minifast

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "minifast"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")

# Protected: a name that goes is a break, a name that comes is a promise.
PUBLIC = {
    "": "ArrayLoader Callback History ImageClassifierData ModelData Run Stepper T V accuracy fit "
    "iter_predict load_weights predict predict_with_targs save_weights set_lrs to_gpu to_np "
    "validate",
    "callback": "Callback EVENTS Run who_listens",
    "checkpoint": "CheckpointError load_weights save_weights snapshot",
    "core": "T V set_lrs to_gpu to_np",
    "dataloader": "ArrayLoader",
    "dataset": "ArraysDataset ImageClassifierData ModelData T V to_np",
    "files": "older whole_file",
    "history": "History",
    "imports": "Path gzip json math np os pickle plt re sys",
    "losses": "weighted_by",
    "io": "get_data gzip load_mnist load_mnist_sample",
    "metrics": "accuracy accuracy_multi accuracy_multi_np accuracy_np accuracy_thresh f1 f1_np "
    "fbeta fbeta_np precision precision_np recall recall_np weighted_by whole_epoch",
    "model": "T V fit iter_predict predict predict_with_targs set_lrs to_np validate",
    "pictures": "plot_lines plot_points plots show to_html",
    "plots": "plot_activations plot_calibration plot_confusion_matrix plot_history plot_lr_find "
    "plot_predictions plot_schedule plot_top_losses plot_weights plots show",
    "plugins": "ActivationStats CSVLogger Checkpoint Compiled CosineRestarts CudaGraph EMA "
    "EarlyStopping Fast Freeze GradAccumulation GradClip GradientStats JSONLogger LabelSmoothing "
    "LivePlot LossRecorder MLflow MixUp MixedPrecision OneCycle Plugin Profile SWA SaveBest "
    "Schedule TensorBoard TerminateOnNaN TimeLimit Warmup available class_weights load lr_find "
    "preview",
    "prediction": "iter_predict predict predict_with_targs",
    "progress": "Progress",
    "report": "Report report",
    "rows": "Rows",
    "stepper": "Stepper",
    "summary": "LayerSummary Summary model_summary",
    "storage": "CheckpointError load_weights save_weights",
    "team": "Team join",
    "testing": "CHECKS STEPPER_CHECKS check example_data example_fit example_net",
    "torch_imports": "DataLoader Dataset F TensorDataset Variable nn optim torch",
}


def public_names(module):
    return sorted(importlib.import_module(f"minifast.{module}".rstrip(".")).__all__)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module):
    assert public_names(module) == sorted(PUBLIC[module].split())


@pytest.mark.parametrize("module", ["model", "dataset", "metrics", "core"])
def test_star_imports_leave_a_notebooks_names_alone(module):
    taken = {"x", "y", "x_valid", "y_valid", "x_imgs", "mean", "std", "path", "show", "plots"}
    assert not (taken | {"metrics", "load_mnist"}) & set(public_names(module))


def python(code, *arguments, **options):
    done = subprocess.run(
        [sys.executable, *arguments, "-c", code], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_light_and_changes_nothing(tmp_path):
    code = """
import os, random, sys, threading, warnings
import numpy, torch
random.seed(1); numpy.random.seed(1); torch.manual_seed(1)
def state():
    return (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist(),
            torch.get_default_dtype(), torch.get_num_threads(), list(warnings.filters),
            numpy.get_printoptions(), threading.active_count(), os.listdir(), dict(os.environ))
before, known = state(), set(sys.modules)
import minifast
assert state() == before
print(*sorted({m.partition('.')[0] for m in set(sys.modules) - known}))
for name in 'matplotlib', 'pandas', 'IPython', 'sklearn', 'PIL', 'tqdm.notebook':
    assert name not in sys.modules, name
from minifast import core, metrics, model, dataset, io
assert state() == before and 'matplotlib' not in sys.modules
import matplotlib
from minifast import imports, torch_imports, plots
assert state() == before
"""
    found = set(python(code, cwd=tmp_path).split()) - sys.stdlib_module_names
    # Which modules of their own Python, NumPy and PyTorch import late differs by version.
    others = {name for name in found if not name.startswith("_")} - {"numpy", "torch"}
    assert others == {"minifast"}


# core <- metrics, dataloader, dataset, callback, history, ... <- stepper, checks <- model
LAYERS = [
    ["errors", "reach"],
    ["declarations"],
    ["arrays"],
    ["core"],
    ["summary", "batches", "rng"],
    ["pickle_as_data", "files", "pictures", "process_group", "sharded", "metric_inputs", "draws"],
    ["rows"],
    ["chunks", "losses"],
    ["history", "metrics", "dataloader", "storage", "torch_losses", "blame"],
    ["mistakes", "dataset", "plots", "trained"],
    ["callback", "differences"],
    ["devices"],
    ["progress", "checkpoint", "epoch_row", "interrupts", "outputs", "nonfinite"],
    ["stepper", "checks", "io", "resume", "agreement"],
    ["single_row_batch", "together"],
    ["run_loaders", "team"],
    ["evaluation", "validation_batches"],
    ["prediction", "try_metrics"],
    ["look"],
    ["model"],
    ["trial", "report"],
    ["stepper_testing"],
    ["testing"],
    ["__init__"],
    ["__main__"],
]
FREE = {"imports", "torch_imports"}  # the user's star imports: never imported by the package


def imported(path, inside_functions):
    """The package's own modules that a module imports (not those for type checkers only)."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    nodes = ast.walk(tree) if inside_functions else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            assert "minifast" not in ast.unparse(node), "import the package's own by a dot"
    return found


def test_imports_go_one_way():
    assert sorted(chain(*LAYERS)) == sorted({*MODULES, "__init__"} - FREE)
    below: set[str] = {"plugins"}  # by __main__ only, as the next test holds
    for layer in LAYERS:
        for module in layer:
            extra = imported(PACKAGE / f"{module}.py", inside_functions=False) - below
            assert not extra, f"{module} imports {extra}"
            assert not imported(PACKAGE / f"{module}.py", inside_functions=True) & FREE
        below |= set(layer)


def test_nothing_below_imports_the_plug_ins():
    for module in MODULES:
        if module != "__main__":
            found = imported(PACKAGE / f"{module}.py", inside_functions=True)
            assert not [name for name in found if name.startswith("plugins")], module


def code_lines(source):
    """Lines with code on them: no docstrings, comments or blank lines."""
    tree, lines = ast.parse(source), set()
    docs = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER):
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docs)


def test_size_is_a_feature():
    path_of_a_batch = ["model", "stepper", "callback", "dataset", "dataloader", "core"]
    sources = {module: (PACKAGE / f"{module}.py").read_text() for module in MODULES}
    stock = {f"plugins/{path.stem}": path.read_text() for path in PACKAGE.glob("plugins/*.py")}
    plugins = {name: source for name, source in stock.items() if "__init__" not in name}
    assert all(code_lines(source) <= 110 for source in plugins.values())
    assert sum(code_lines(sources[module]) for module in path_of_a_batch) <= 900
    for module, source in (sources | stock).items():
        assert code_lines(source) <= 300, module
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                body = ast.get_source_segment(source, node)
                assert code_lines(body) <= 50, f"{module}.{node.name}"
                assert depth(node) <= 4, f"{module}.{node.name}"


def depth(node, level=0):
    nesting = (ast.For, ast.While, ast.If, ast.With, ast.Try)
    inner = [
        depth(child, level + isinstance(child, nesting))
        for child in ast.iter_child_nodes(node)
        if not isinstance(child, ast.FunctionDef | ast.ClassDef)
    ]
    return max([level, *inner])


def test_the_loop_fits_on_one_screen():
    source = (PACKAGE / "model.py").read_text()
    (fit,) = [n for n in ast.parse(source).body if getattr(n, "name", "") == "fit"]
    body = source.splitlines()[fit.body[1].lineno - 1 : fit.end_lineno]
    (epoch,) = [n for n in ast.parse(source).body if getattr(n, "name", "") == "_train_epoch"]
    assert len(body) + epoch.end_lineno - epoch.lineno + 1 <= 50


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path):
    copy = tmp_path / "copy"  # building writes to the folder it builds in
    copy.mkdir()
    for name in "minifast", "pyproject.toml", "README.md", "LICENSE":
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            copy,
        ],
        cwd=tmp_path,
        check=True,
    )
    (wheel,) = tmp_path.glob("minifast-*.whl")
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(unpacked)
    sources = {str(path.relative_to(REPOSITORY)) for path in PACKAGE.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert "minifast/py.typed" in names and "minifast/data/README.md" in names
    assert not [n for n in names if n.startswith(("tests", "examples", "docs"))]
    code = """
import sys; sys.path.insert(0, {site!r})
import minifast
assert minifast.__file__.startswith({site!r}), minifast.__file__
from minifast.io import load_mnist_sample
print(len(load_mnist_sample()[0][0]))
"""
    # -P and the path above: neither the checkout nor its installation is what is imported.
    assert python(code.format(site=str(unpacked)), "-P", cwd=tmp_path).strip() == "5000"


def test_the_version_is_in_the_changelog():
    assert f"## {minifast.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()
