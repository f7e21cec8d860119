"""Pictures: what is drawn, and that nothing else happens."""

import base64
import itertools
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from torch import nn

from minifast import History
from minifast.pictures import COLOURS
from minifast.plots import (
    plot_activations,
    plot_calibration,
    plot_confusion_matrix,
    plot_history,
    plot_predictions,
    plot_schedule,
    plot_top_losses,
    plot_weights,
    plots,
    show,
    to_html,
)


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


# ---- predictions of classes --------------------------------------------------------------


@pytest.fixture
def said():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    return rng.random((200, 9, 9)), rng.normal(size=(200, 3)) + 1.2 * np.eye(3)[y], y


def titles(figure):
    return [ax.get_title() for ax in figure.axes]


def test_predictions_say_how_sure_and_frame_the_mistakes(said):
    images, scores, y = said
    figure = plot_predictions(images, scores, y, n=12, classes=["ant", "bee", "cat"])
    chance = torch.softmax(torch.from_numpy(scores), 1)
    for i, ax in enumerate(figure.axes):
        p, c = chance[i].max(0)
        name = ["ant", "bee", "cat"][c]
        wrong = c != y[i]
        assert ax.spines["top"].get_visible() == wrong
        wanted = f"says {name} ({p * 100:.0f} %)\nis {['ant', 'bee', 'cat'][y[i]]}"
        assert ax.get_title() == (wanted if wrong else f"{name} ({p * 100:.0f} %)")
    assert len(figure.axes) == 12
    assert not any("is" in title for title in titles(plot_predictions(images, scores)))


def test_top_losses_are_the_largest(said):
    images, scores, y = said
    loss = nn.CrossEntropyLoss(reduction="none")(torch.from_numpy(scores), torch.from_numpy(y))
    order = loss.argsort(descending=True)[:9]
    figure = plot_top_losses(images, scores, y)
    for i, ax in zip(order, figure.axes, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), images[i])
    assert re.fullmatch(r"says \d \(\d+ %\)\nis \d \(\d+ %\)", titles(figure)[0])


def test_the_matrix_shows_each_count_where_it_belongs():
    cm = np.array([[50, 2, 0], [1, 40, 9], [0, 0, 30]])
    (ax,) = plot_confusion_matrix(cm, ["a", "b", "c"]).axes
    shown = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in ax.texts}
    assert shown == {(i, j): str(n) for (i, j), n in np.ndenumerate(cm) if n}
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]
    (ax,) = plot_confusion_matrix(cm, normalize=True).axes
    assert ".80" in {t.get_text() for t in ax.texts}
    with pytest.raises(ValueError, match=r"(?s)shape \(3,\).*fix:"):
        plot_confusion_matrix([1, 2, 3])


def test_calibration_is_sklearns(said):
    _, scores, y = said
    chance = torch.softmax(torch.from_numpy(scores), 1).numpy()
    right = chance.argmax(1) == y
    hits, sure = calibration_curve(right, chance.max(1), n_bins=10)
    ax, below = plot_calibration(scores, y).axes
    np.testing.assert_allclose(ax.lines[1].get_xydata(), np.stack([sure, hits], 1))
    counts = np.histogram(chance.max(1), 10, (0, 1))[0]
    assert [bar.get_height() for bar in below.patches] == counts.tolist()
    error = (abs(hits - sure) * counts[counts > 0]).sum() / 200
    assert ax.get_title() == f"calibration error {error:.3f}"


# ---- what is inside a net ----------------------------------------------------------------


def test_weights_are_folded_and_gray_is_nothing():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Linear(5, 2))
    figure = plot_weights(net)
    weights = net[1].weight.detach().numpy()
    for i, ax in enumerate(figure.axes):
        np.testing.assert_array_equal(ax.images[0].get_array(), weights[i].reshape(6, 6))
        low, high = ax.images[0].get_clim()
        assert low == -high == pytest.approx(-abs(weights).max())
    assert plot_weights(net[1], shape=(4, 9)).axes[0].images[0].get_array().shape == (4, 9)
    assert len(plot_weights(nn.Conv2d(1, 40, 3), n=7).axes) == 7
    colour = plot_weights(nn.Conv2d(3, 4, 5)).axes[0].images[0].get_array()
    assert colour.shape == (5, 5, 3) and 0 <= colour.min() <= colour.max() <= 1
    for layer in nn.ReLU(), nn.Conv2d(2, 4, 3):
        with pytest.raises(ValueError, match=r"(?s)no weights that can be drawn.*fix:"):
            plot_weights(layer)


def test_activations_are_the_layers_outputs_and_the_net_is_left_alone():
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout())
    x = torch.rand(4, 1, 8, 8)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    generator = torch.get_rng_state()
    histograms = plot_activations(net, x)
    channels = plot_activations(net, x, layer=net[0])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training and torch.equal(torch.get_rng_state(), generator)
    assert not any(m._forward_hooks for m in net)
    with torch.no_grad():
        out = net[0](x)
        relu = net.eval()[:3](x)
    for ax, channel in zip(channels.axes, out[0], strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), channel)
    zero = f"{(relu == 0).float().mean() * 100:.0f} % are 0"
    assert titles(histograms)[2] == f"2 ReLU\n{zero}"
    with pytest.raises(ValueError, match=r"(?s)no such layer.*one of 0, 1, 2, 3"):
        plot_activations(net, x, layer="9")
    with pytest.raises(ValueError, match="layer makes no pictures"):
        plot_activations(nn.Sequential(nn.Linear(3, 3)), torch.rand(2, 3), layer="0")


# ---- over time ---------------------------------------------------------------------------


def test_the_best_epoch_is_marked_and_batches_lie_behind():
    rows = [
        {"epoch": i, "trn_loss": t, "val_loss": v, "accuracy": a}
        for i, (t, v, a) in enumerate([(3, 3, 0.1), (2, 1, 0.5), (1, 2, 0.6)])
    ]
    losses, metrics = plot_history(History(rows), losses=[4.0, 3.5, 3.0, 2.5, 2.0, 1.0]).axes
    marked = [line for line in losses.lines if line.get_label() == "best: epoch 1"]
    assert [line.get_xdata()[0] for line in marked] == [1]
    assert "best: epoch 1" in {line.get_label() for line in metrics.lines}
    thin = min(losses.lines, key=lambda line: line.get_linewidth())
    np.testing.assert_allclose(thin.get_xdata(), [-0.5, 0, 0.5, 1, 1.5, 2])
    assert len(plot_history(History()).axes) == 0
    nothing = History([{"epoch": 0, "trn_loss": float("nan")}])
    assert len(plot_history(nothing).axes) == 1


def test_a_schedule_has_a_panel_for_each():
    rate, momentum = plot_schedule({"body": [1, 2], "head": [2, 3]}, [0.9, 0.8]).axes
    assert [line.get_label() for line in rate.lines] == ["body", "head"]
    assert momentum.get_title() == "momentum"
    assert len(plot_schedule([1, 2]).axes) == 1


def test_colours_differ_in_brightness():
    def brightness(colour):
        r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * r + 0.587 * g + 0.114 * b

    ranked = sorted(map(brightness, COLOURS))
    assert min(b - a for a, b in itertools.pairwise(ranked)) > 5


def test_a_picture_as_html_has_its_pixels_inside():
    html = to_html(show(np.eye(3)), 'a "diagonal"')
    assert 'alt="a &quot;diagonal&quot;"' in html
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    assert data.startswith(b"\x89PNG")
    assert plt.get_fignums() == []
