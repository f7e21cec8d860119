"""The table and the bar, as a terminal, a log file and a notebook show them."""

import io
import os
import re
import struct
import subprocess
import sys
import threading

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch import nn

from minifast import fit

REASON = "terminals are tested where there are pseudo-terminals"
fcntl, pty, termios = (pytest.importorskip(m, reason=REASON) for m in ("fcntl", "pty", "termios"))

TRAIN = """
import torch
from torch import nn, optim
from minifast import *
x, y = torch.randn(400, 6), torch.arange(400) % 3
md = ImageClassifierData.from_arrays(".", (x, y), (x, y), bs=4)
net = nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(dim=1))
opt = optim.SGD(net.parameters(), lr=0.1)
history = fit(net, md, 2, nn.NLLLoss(), opt, [accuracy])
"""
HEADER = "epoch  trn_loss  val_loss  accuracy"
ROW = r"    {}  \d\.\d{{6}}  \d\.\d{{6}}  \d\.\d{{6}}"


def run_in_terminal(code):
    """What a terminal receives from the program."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs)
    os.close(theirs)
    received = []
    try:
        while data := os.read(ours, 65536):
            received.append(data)
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return b"".join(received).decode()


def screen(text):
    """The lines that are left on the screen: each \\r goes back to the start of its line."""
    lines = []
    for line in text.split("\n"):
        cells = []
        for part in line.rstrip("\r").split("\r"):
            part = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", part)
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return [line for line in lines if line]


DOWNLOAD = """
import hashlib, os, tempfile
from pathlib import Path
os.environ["TQDM_MININTERVAL"] = "0"
from minifast.io import get_data
from tests.test_io import TLS, Server
os.environ["SSL_CERT_FILE"] = str(TLS / "cert.pem")
server, content = Server(), bytes(3 * 2**16)
server.files["/file"] = content
path = Path(tempfile.mkdtemp()) / "file"
get_data(f"{server.url}/file", path, sha256=hashlib.sha256(content).hexdigest())
"""


def test_a_download_shows_how_much_has_come():
    received = run_in_terminal(DOWNLOAD)
    shown = [int(percent) for percent in re.findall(r"file: +(\d+)%", received)]
    assert shown == [0, 33, 67, 100] and screen(received) == []


def test_a_terminal_shows_one_bar_and_is_left_with_the_table():
    received = run_in_terminal(TRAIN)
    assert re.search(r"epoch 1/2: .*\d+/200 .*loss \d\.\d{4}", received)
    header, *rows = screen(received)
    assert header == HEADER
    assert len(rows) == 2
    assert all(re.fullmatch(ROW.format(i), row) for i, row in enumerate(rows))


def test_a_terminal_is_left_clean_after_an_error():
    failing = TRAIN.replace(
        "history =",
        """
class Fails(Callback):
    def on_epoch_end(self, run):
        raise SystemExit(0)
history =""",
    ).replace("[accuracy])", "[accuracy], [Fails()])")
    assert screen(run_in_terminal(failing)) == []


def test_a_log_file_has_only_whole_rows(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    header, *rows = done.stdout.splitlines()
    assert header == HEADER and len(rows) == 2
    assert all(re.fullmatch(ROW.format(i), row) for i, row in enumerate(rows))
    assert done.stderr == ""


def test_a_console_that_lacks_a_letter_ends_no_training(net, md, monkeypatch):
    """Python's `ascii` and Windows' consoles raise an error for others."""

    def größe(preds, targs):
        return 0.5

    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", console)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    history = fit(net, md, 2, nn.NLLLoss(), opt, [größe])
    console.flush()
    assert list(history[-1]) == ["epoch", "trn_loss", "val_loss", "größe"]
    header, *rows = console.buffer.getvalue().decode("ascii").splitlines()
    assert header.split()[-1] == "gr??e" and len(rows) == 2


def test_no_thread_is_left_behind(net, md, capsys):
    before = threading.active_count()
    run_in_terminal(TRAIN + "import threading; assert threading.active_count() == 1\n")
    assert threading.active_count() == before


# ---- notebooks ---------------------------------------------------------------------------


def run_notebook(*cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    own_backend = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(env=own_backend)
    return [cell.outputs for cell in notebook.cells]


@pytest.fixture(scope="module")
def outputs():
    return run_notebook(
        TRAIN,
        "history",
        "from minifast.plots import show\nimport numpy as np\nshow(np.eye(8), 'last line')",
        "show(np.eye(8))\nfigure = show(np.eye(8))\n'another last line'",
        "figure",
    )


def pictures(cell):
    return [out for out in cell if "image/png" in out.get("data", {})]


def test_a_notebook_is_left_with_the_table(outputs):
    text = "".join(out.text for out in outputs[0] if out.output_type == "stream")
    assert screen(text)[0] == HEADER and len(screen(text)) == 3
    assert all(out.name == "stdout" for out in outputs[0] if out.output_type == "stream")


def test_a_notebook_shows_a_history_as_a_table(outputs):
    (out,) = outputs[1]
    assert "<th>accuracy</th>" in out.data["text/html"]


def test_a_notebook_shows_a_figure_once(outputs):
    assert len(pictures(outputs[2])) == 1


def test_figures_in_the_middle_of_a_cell_are_shown_too(outputs):
    assert len(pictures(outputs[3])) == 2


def test_a_figure_can_be_shown_again_later(outputs):
    assert len(pictures(outputs[4])) == 1
