import sys

import numpy as np
import pytest

from keras_pnn import plotting

X = np.array([1.0, -1.0, 0.0])
DEVICES = np.array([[0.6, 0.4, 0.9], [0.8, 0.2, 1.0], [0.7, 0.3, 0.8]])


def lines(ax, label):
    return [line for line in ax.lines if line.get_label() == label]


def legend(ax):
    return [text.get_text() for text in ax.figure.legends[0].get_texts()]


def overlap(one, other):
    return (
        min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    )


def test_bands_draws_statistics_in_the_order_of_x():
    curves = {
        "a": {"design": np.array([3.0, 1.0, 2.0]), "devices": DEVICES},
        "b": {"design": None, "devices": DEVICES + 1},
    }
    ax = plotting.bands(X, curves, "shift (px)", "accuracy", spec=0.5)
    (median,) = lines(ax, "a")
    np.testing.assert_array_equal(median.get_xdata(), [-1, 0, 1])
    np.testing.assert_allclose(median.get_ydata(), [0.3, 0.9, 0.7])
    curves = [list(line.get_ydata()) for line in ax.lines]
    assert [1, 2, 3] in curves and [0.2, 0.8, 0.6] in curves
    # The band of the first: 5 % between three values is a tenth of the way.
    bottom = ax.collections[0].get_paths()[0].vertices[:, 1].min()
    assert bottom == pytest.approx(0.2 + 0.1 * 0.1)
    assert legend(ax) == [
        "a",
        "b",
        "median of the devices",
        "5 to 95 % of the devices",
        "worst at each point",
        "design",
        "specification 0.5",
    ]


def test_bands_of_losses_has_the_largest_as_the_worst():
    curves = {"a": {"design": None, "devices": DEVICES}}
    ax = plotting.bands(X, curves, "x", "loss", worst="max")
    assert [0.4, 1.0, 0.8] in [list(line.get_ydata()) for line in ax.lines]


def test_bands_of_designs_alone_are_solid():
    ax = plotting.bands(X, {"a": {"design": X, "devices": None}}, "x", "y")
    assert lines(ax, "a")[0].get_linestyle() == "-"
    assert legend(ax) == ["a"]


def test_yields_has_bars_from_low_to_high():
    share, low, high = np.array([90.0, 50.0]), [80.0, 40.0], [95.0, 60.0]
    ax = plotting.yields([0.0, 1.0], {"a": (share, low, high)}, "σ (rad)")
    segments = ax.collections[0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in segments], [[80, 95], [40, 60]])
    assert legend(ax) == ["a"]


def test_distributions_draws_each_device_and_the_percentiles():
    values = np.arange(21.0)
    ax = plotting.distributions({"a": values}, "loss", spec=3.0, nominal={"a": 1.0})
    dots = next(line for line in ax.lines if len(line.get_ydata()) == 21)
    np.testing.assert_array_equal(dots.get_ydata(), values)
    rest = [line for line in ax.lines if line is not dots]
    ends = {float(y) for line in rest for y in line.get_ydata()}
    assert {1.0, 19.0, 5.0, 15.0, 10.0} <= ends
    assert legend(ax) == ["a", "nominal", "specification 3"]


def test_heat_map_draws_the_specification():
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 7)
    values = 1 - np.hypot(x, y[:, None])
    ax = plotting.heat_map(x, y, values, "x", "y", "accuracy", level=0.25)
    np.testing.assert_array_equal(ax.collections[0].get_array(), values)
    contour = ax.collections[-1].get_paths()[0].vertices
    # Straight between the points, which are 0.5 and 0.67 apart.
    np.testing.assert_allclose(np.hypot(*contour.T), 0.75, atol=0.08)
    corners = ax.collections[0].get_coordinates()
    np.testing.assert_allclose(
        corners[0, :, 0], [-1.25, -0.75, -0.25, 0.25, 0.75, 1.25]
    )
    without = plotting.heat_map(x, y, values, "x", "y", "accuracy", level=7.0)
    assert len(without.collections) == 1


def test_matrices_leaves_out_nan_and_names_rows_and_columns():
    values = np.array([[1.0, np.nan, 3.0], [4.0, 5.0, 6.0]])
    ax = plotting.matrices(
        {"m": values}, "kind", "layer", rows=["conv", "bank"], columns=["a", "b", "c"]
    )
    assert [text.get_text() for text in ax.texts] == ["1", "3", "4", "5", "6"]
    percent = plotting.matrices({"m": 10 * values}, "kind", "layer")
    assert percent.texts[0].get_text() == "10.0"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["conv", "bank"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b", "c"]
    # Dark writing on light colours, and the other way round.
    assert ax.texts[0].get_color() == "white" and ax.texts[-1].get_color() == "black"
    assert plotting.matrices({"m": np.full((1, 1), np.nan)}, "x", "y").texts[:] == []


def test_density_is_logarithmic_and_marks_eigenvalues():
    grid = np.linspace(-1, 9, 50)
    bell = np.exp(-(grid**2))
    curve = {"grid": grid, "density": bell, "eigenvalues": [0.5, 8.0]}
    ax = plotting.density({"a": curve})
    assert ax.get_yscale() == "log"
    (marks,) = (line for line in ax.lines if len(line.get_xdata()) == 2)
    np.testing.assert_array_equal(marks.get_xdata(), [0.5, 8.0])
    low, high = ax.get_ylim()
    assert low < marks.get_ydata()[0] < bell.max() < high
    assert legend(ax) == ["a", "computed eigenvalues"]


def test_landscapes_share_a_scale_and_skip_nan():
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 7)
    loss = x[:, None] ** 2 + y**2
    broken = 2 * loss
    broken[0, 0] = np.nan
    ax = plotting.landscapes({"a": (x, y, loss), "b": (x, y, broken)}, "α", "β")
    assert ax.name == "3d"
    scales = {
        tuple(np.round(axes.get_zlim(), 6))
        for axes in ax.figure.axes
        if axes.name == "3d"
    }
    assert len(scales) == 1
    flat = {"a": (x, y, np.ones((5, 7)))}
    plotting.landscapes(flat, "α", "β").figure.draw_without_rendering()


def test_planes_have_masks_in_colour_and_detectors():
    light = {"encode": np.eye(6)[None], "far": np.zeros((1, 6, 6))}
    phases = {f"mask {i}": np.full((6, 6), 2.0 * i) for i in range(3)}
    ax = plotting.planes(light, phases, {"grey": np.eye(6)}, [(1, 2, 3, 1)])
    ax.figure.draw_without_rendering()
    (frame,) = ax.patches
    assert frame.get_bbox().bounds == (1.5, 0.5, 1, 3)
    shown = [a for a in ax.figure.axes if a.images and a.get_title()]
    assert [a.get_title() for a in shown] == [*phases, "grey", *light]
    assert shown[0].images[0].get_clim() == (0, 2 * np.pi)
    assert len({a.images[0].get_cmap().name for a in shown}) == 3
    alone = plotting.planes(light).figure
    assert not [a for a in alone.axes if a.get_ylabel().startswith("phase")]


def sweeps(count):
    names = [f"a method of training, number {i}" for i in range(count)]
    curves = {n: {"design": X, "devices": DEVICES} for n in names}
    return plotting.bands(X, curves, "temperature (K)", "accuracy (%)", spec=95.0)


def wide_matrix():
    kinds = [f"imperfection_{i}" for i in range(8)]
    layers = [f"mrr_conv2d_{i}" for i in range(6)]
    values = {"a": np.arange(48.0).reshape(6, 8)}
    return plotting.matrices(values, "kind", "layer", rows=layers, columns=kinds)


@pytest.mark.parametrize(
    "draw",
    [lambda: sweeps(1), lambda: sweeps(4), wide_matrix],
    ids=["one curve", "four curves", "matrix"],
)
def test_nothing_is_cut_or_lies_on_a_legend(draw):
    ax = draw()
    figure = ax.figure
    figure.draw_without_rendering()
    renderer, frame = figure.canvas.get_renderer(), figure.bbox
    inside = figure.get_tightbbox(renderer)
    assert inside.x0 >= -0.01 and inside.x1 <= frame.width / figure.dpi + 0.01
    assert inside.y0 >= -0.01 and inside.y1 <= frame.height / figure.dpi + 0.01
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert box.x0 >= 0 and box.x1 <= frame.width
        assert not overlap(box, ax.get_tightbbox(renderer))


def test_a_given_axis_is_drawn_on():
    figure = plotting.new_figure(9.0, 3.0)
    axes = figure.subplots(1, 2)
    assert plotting.sweep(X, {"a": X}, "x", ax=axes[1]) is axes[1]
    assert not axes[0].lines
    assert tuple(figure.get_size_inches()) == (9.0, 3.0)


def test_without_matplotlib(monkeypatch):
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"keras-pnn\[plot\]"):
        plotting.new_figure()
