"""Pictures: what is drawn, and that nothing else happens."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from minifast import History
from minifast.plots import plots, show


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((28, 28), (28, 28)),
        ((28, 28, 3), (28, 28, 3)),
        ((28, 28, 4), (28, 28, 4)),
        ((28, 28, 1), (28, 28)),
        ((3, 28, 28), (28, 28, 3)),
        ((1, 28, 28), (28, 28)),
        ((3, 28, 3), (3, 28, 3)),  # channels last where both are possible
    ],
)
@pytest.mark.parametrize("kind", [np.random.rand, torch.rand])
def test_gray_and_colour_images(shape, drawn, kind):
    image = kind(*shape)
    (ax,) = show(image, "a title").axes
    assert ax.images[0].get_array().shape == drawn
    assert ax.get_title() == "a title"


def test_what_is_drawn_are_the_pixels_themselves():
    image = np.random.rand(28, 28)
    (ax,) = show(image).axes
    np.testing.assert_array_equal(ax.images[0].get_array(), image)
    # Pixels are seen as they are: black is the least, white the most.
    rgba = ax.images[0].to_rgba(ax.images[0].get_array(), bytes=True)
    assert rgba[np.unravel_index(image.argmin(), image.shape)][:3].tolist() == [0, 0, 0]
    assert rgba[np.unravel_index(image.argmax(), image.shape)][:3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    "ims",
    [
        np.random.rand(8, 28, 28),
        np.random.rand(8, 784).reshape(-1, 28, 28),
        torch.rand(8, 28, 28),
        torch.rand(8, 3, 28, 28),
        np.random.randint(0, 255, (8, 28, 28, 3), dtype=np.uint8),
        [np.random.rand(28, 28), np.random.rand(10, 12, 3)] * 4,
    ],
    ids=lambda ims: str(getattr(ims, "shape", "mixed")),
)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_grid_with_titles(ims, rows):
    figure = plots(ims, rows=rows, titles=np.arange(8))
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == (rows, -(-8 // rows))
    assert [ax.get_title() for ax in figure.axes] == [str(i) for i in range(8)]


def test_one_image_has_one_row():
    assert len(plots([np.eye(3)], rows=2).axes) == 1
    assert len(plots([], rows=2).axes) == 0


def test_mistakes_are_framed_and_bold_so_that_they_show_in_gray_too():
    plain, marked = plots([np.eye(3)] * 2, titles="ab", marked=[1]).axes
    assert not plain.spines["top"].get_visible() and marked.spines["top"].get_visible()
    assert (plain.title.get_fontweight(), marked.title.get_fontweight()) == ("normal", "bold")


def test_limits_put_zero_in_the_middle():
    (ax,) = plots([np.full((2, 2), 0.5)], cmap="RdBu", limits=(-1, 1)).axes
    assert ax.images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: show(np.zeros(784)), r"reshape flat rows: x.reshape\(-1, 28, 28\)"),
        (lambda: plots(np.zeros((3, 784))), r"image 0 .*shape \(784,\)"),
        (lambda: show(np.zeros((5, 28, 28))), r"shape \(5, 28, 28\).*plots\(ims\)"),
        (lambda: show(np.zeros((2, 2, 2, 2))), "cannot be drawn"),
        (lambda: show(3), "cannot be drawn"),
        (lambda: plots([np.eye(2)] * 3, titles=["a"]), "1 titles for 3 images"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_words(draw, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        draw()


def test_nothing_is_shown_written_or_switched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda *args: pytest.fail("plt.show was called"))
    settings, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    history = History([{"epoch": 0, "trn_loss": 1.0, "accuracy": 0.5}])
    for figure in show(np.eye(3)), plots([np.eye(3)]), history.plot():
        assert figure.number in plt.get_fignums()  # a script's own plt.show() shows it
    assert dict(matplotlib.rcParams) == settings
    assert matplotlib.get_backend() == backend
    assert list(tmp_path.iterdir()) == []
