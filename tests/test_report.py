"""The report, the matrix and the probabilities, against scikit-learn and by hand."""

import re

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import nn

from minifast import ArrayLoader, ImageClassifierData
from minifast.metrics import confusion_matrix, probabilities
from minifast.report import report


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 500)
    return (rng.normal(size=(500, 4)) + 1.5 * np.eye(4)[y]).astype(np.float32), y


def test_the_report_is_sklearns(scores):
    x, y = scores
    found = report(nn.Identity(), ArrayLoader(x, y, bs=64))
    said = x.argmax(axis=1)
    assert found.accuracy == pytest.approx(sklearn.metrics.accuracy_score(y, said))
    np.testing.assert_array_equal(found.matrix, sklearn.metrics.confusion_matrix(y, said))
    p, r, _, n = sklearn.metrics.precision_recall_fscore_support(y, said)
    assert [row["precision"] for row in found.per_class] == pytest.approx(p.tolist())
    assert [row["accuracy"] for row in found.per_class] == pytest.approx(r.tolist())
    assert [row["rows"] for row in found.per_class] == n.tolist()


def test_pairs_and_worst_rows_by_hand(scores):
    x, y = scores
    found = report(nn.Identity(), ArrayLoader(x, y, bs=64), classes="abcd", n_worst=7)
    off = found.matrix * (1 - np.eye(4, dtype=int))
    i, j = np.unravel_index(off.argmax(), off.shape)
    assert found.confused[0] == {
        "truth": "abcd"[i],
        "said": "abcd"[j],
        "rows": off.max(),
        "share": off.max() / found.matrix[i].sum(),
    }
    chance = torch.softmax(torch.from_numpy(x).double(), dim=1).numpy()[np.arange(500), y]
    assert [row["row"] for row in found.worst] == np.argsort(chance, kind="stable")[:7].tolist()
    assert found.worst[0]["of_truth"] == pytest.approx(chance.min())
    assert len(found.worst) == 7 and len(found.confused) == 7


def test_a_class_without_rows_is_told_as_nan():
    x, y = np.eye(3, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 0])
    found = report(nn.Identity(), ArrayLoader(x, y))
    assert [row["rows"] for row in found.per_class] == [2, 1, 0]
    assert np.isnan(found.per_class[2]["accuracy"]) and np.isnan(found.per_class[2]["precision"])


def test_one_file_has_all_and_asks_for_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 64)).astype(np.float32), np.arange(40) % 2
    found = report(nn.Linear(64, 2), ArrayLoader(x, y), classes=["<cat>", "dog"], n_worst=6)
    found.to_html(tmp_path / "report.html", title="Cats & dogs")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http" not in page
    assert "&lt;cat&gt;" in page and "<cat>" not in page and "Cats &amp; dogs" in page
    assert all(f"<td>{row['row']}</td>" in page for row in found.worst)
    assert len(re.findall(r"<img alt=\"[^\"]{10,}\"", page)) == 3


def test_pictures_of_the_worst_rows_are_those_rows():
    x = np.random.default_rng(0).normal(size=(70, 1, 9, 9)).astype(np.float32)
    net = nn.Sequential(nn.Flatten(), nn.Linear(81, 3))
    md = ImageClassifierData.from_arrays("data", (x, np.arange(70) % 3), (x, np.arange(70) % 3))
    found = report(net, md.val_dl, n_worst=5)
    for row, image in zip(found.worst, found.images, strict=True):
        np.testing.assert_array_equal(image, x[row["row"]])
    flat = report(nn.Linear(7, 3), ArrayLoader(x.reshape(-1, 81)[:, :7], np.arange(70) % 3))
    assert flat.images is None


@pytest.mark.parametrize(
    ("targs", "options", "words"),
    [
        (np.zeros((3, 2)), {}, r"targets of shape \(3, 2\)"),
        (np.array([0.5, 1.0, 2.0]), {}, "type float"),
        (np.array([0, 1, 7]), {}, "classes from 0 to 7 for 3 outputs"),
        (np.array([0, 1, 2]), {"classes": "ab"}, "2 names for 3 outputs"),
    ],
)
def test_what_is_no_report_is_told_in_words(targs, options, words):
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match=f"(?s){words}.*fix:"):
        report(nn.Identity(), ArrayLoader(x, targs), **options)


# ---- probabilities -----------------------------------------------------------------------


def test_probabilities_of_all_that_nets_give(scores):
    x = torch.from_numpy(scores[0]).double()
    wanted = x.softmax(dim=1).numpy()
    for preds in x, x.log_softmax(dim=1), x.softmax(dim=1), wanted.tolist():
        np.testing.assert_allclose(probabilities(preds), wanted, atol=1e-12)
    one = torch.linspace(-3, 3, 5)
    for preds in one, one[:, None], one.sigmoid():
        np.testing.assert_allclose(probabilities(preds)[:, 1], one.sigmoid().numpy(), atol=1e-7)
    assert np.isfinite(probabilities([[1000.0, -1000.0]])).all()
    with pytest.raises(ValueError, match=r"(?s)shape \(2, 2, 2\).*fix:"):
        probabilities(np.zeros((2, 2, 2)))


def test_the_matrix_of_classes_and_of_scores(scores):
    x, y = scores
    wanted = sklearn.metrics.confusion_matrix(y, x.argmax(axis=1))
    np.testing.assert_array_equal(confusion_matrix(x, y), wanted)
    np.testing.assert_array_equal(confusion_matrix(x.argmax(axis=1), y), wanted)
    assert confusion_matrix([0, 3], [1, 1]).shape == (4, 4)
