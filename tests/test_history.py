"""History: plain data, written whole, read back the same by others."""

import csv
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minifast import History
from minifast.history import RunningLoss


@pytest.fixture
def history():
    return History(
        [
            {"epoch": 0, "trn_loss": 0.5, "val_loss": 1 / 3},
            {"epoch": 1, "trn_loss": 12345.678, "val_loss": float("nan"), "lr": 1e-6},
        ]
    )


def test_rows_and_columns(history):
    assert len(history) == 2
    assert history[0]["trn_loss"] == 0.5
    assert history[-1]["epoch"] == 1
    assert history[:1] == [history[0]]
    assert history["epoch"] == [0, 1]
    assert history["lr"] == [None, 1e-6]
    assert history.columns == ["epoch", "trn_loss", "val_loss", "lr"]
    assert [row["epoch"] for row in history] == [0, 1]


def test_a_column_that_is_not_there_is_told_by_those_that_are(history):
    with pytest.raises(KeyError, match="no column 'acc': there are epoch, trn_loss, val_loss, lr"):
        history["acc"]


def test_numbers_become_pythons_own():
    history = History([{"a": torch.tensor(1.5), "b": np.float32(2), "c": np.int64(3)}])
    assert [type(v) for v in history[0].values()] == [float, float, int]


def test_the_text_is_a_table(history):
    header, first, second = repr(history).splitlines()
    assert header.split() == ["epoch", "trn_loss", "val_loss", "lr"]
    assert first.split() == ["0", "0.500000", "0.333333"]
    assert second.split() == ["1", "1.23e+04", "nan", "1e-06"]
    assert len(header) == len(first) == len(second)
    assert repr(History()) == "History of no epochs"


def test_html_is_escaped():
    assert "&lt;lambda&gt;" in History([{"<lambda>": 1}])._repr_html_()


def test_another_reader_reads_the_csv(history, tmp_path):
    history.to_csv(tmp_path / "h.csv")
    frame = pd.read_csv(tmp_path / "h.csv")
    assert list(frame.columns) == history.columns
    assert frame["val_loss"][0] == pytest.approx(1 / 3, rel=1e-15)
    assert math.isnan(frame["val_loss"][1]) and math.isnan(frame["lr"][0])


@given(st.dictionaries(st.text(min_size=1), st.floats(), min_size=1))
def test_any_names_and_numbers_come_back_from_the_csv(tmp_path_factory, row):
    path = tmp_path_factory.mktemp("csv") / "h.csv"
    History([row]).to_csv(path)
    with path.open(newline="", encoding="utf-8") as file:
        names, values = csv.reader(file)
    assert names == list(row)
    np.testing.assert_array_equal([float(v) for v in values], list(row.values()))


def test_plot_has_a_line_for_each_column(history):
    losses, others = history.plot().axes
    assert [line.get_label() for line in losses.lines] == ["trn_loss", "val_loss"]
    assert [line.get_label() for line in others.lines] == ["lr"]


def test_the_running_loss_is_the_recorded_one():
    # smooth_curve([1, 2, 3, 4], 0.98) of fastai 0.7.
    smooth, found = RunningLoss(), []
    for loss in 1.0, 2.0, 3.0, 4.0:
        smooth.add(torch.tensor(loss))
        found.append(round(smooth.value(), 8))
    assert found == [1.0, 1.50505051, 2.01346756, 2.52525046]


class OnAGPU(torch.Tensor):
    """A tensor that says that it is not on the CPU."""

    is_cpu = False


def test_reading_the_running_loss_seldom_or_often_gives_the_same():
    losses = torch.rand(2500).unbind()
    at_once, often, seldom = RunningLoss(), RunningLoss(), RunningLoss()
    for loss in losses:
        at_once.add(loss)
        often.add(loss.as_subclass(OnAGPU))
        seldom.add(loss.as_subclass(OnAGPU))
        often.value()
        assert len(seldom.unread) < RunningLoss.MOST_UNREAD
    assert at_once.value() == often.value() == seldom.value()


def test_the_running_loss_keeps_no_graph():
    weight = torch.ones((), requires_grad=True)
    smooth = RunningLoss()
    smooth.add((weight * 2).as_subclass(OnAGPU))
    assert not smooth.unread[0].requires_grad


def test_no_loss_yet_is_nan():
    assert math.isnan(RunningLoss().value())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000000"), (0.1234567, "0.123457"), (12.345678, "12.34568"), (9999.123, "9999.123"),
     (-0.1234567, "-0.12346"), (-12.345678, "-12.3457"), (1e-5, "1e-05"), (1.2345e4, "1.23e+04"),
     (math.inf, "inf"), (math.nan, "nan")],
)  # fmt: skip
def test_a_value_takes_eight_characters(value, text):
    table = repr(History([{"value_is": value}]))
    assert table.splitlines()[1] == text.rjust(8)
