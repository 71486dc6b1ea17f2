"""Intervals, tolerances and areas against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pnn.robustness import Scan, Yield
from keras_pnn.robustness.axes import DeviationAxis


def sweep(x, values):
    """A sweep of a metric of the design."""
    axis = DeviationAxis("temperature", "K", np.array(x, float))
    return Scan((axis,), {"metric": np.array(values, float)}, None)


@pytest.mark.parametrize(
    "passed, n, expected",
    # As statsmodels gives them.
    [(3, 4, (0.30064, 0.95441)), (0, 20, (0.0, 0.16113)), (20, 20, (0.83887, 1.0))],
)
def test_wilson_interval(passed, n, expected):
    found = Yield(passed, n).interval
    assert found == pytest.approx(expected, abs=1e-5)
    # At the ends the bounds are exact.
    assert (found[0] == 0, found[1] == 1) == (passed == 0, passed == n)


def test_summary_of_hand_computed_values():
    axis = DeviationAxis("temperature", "K", np.arange(2.0))
    devices = {"metric": np.arange(1.0, 22.0)[:, None] * [1, 10]}
    found = Scan((axis,), None, devices).summary("metric")
    expected = {"mean": 11, "median": 11, "p05": 2, "p95": 20, "min": 1, "max": 21}
    expected["std"] = math.sqrt(110 / 3)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx([value, 10 * value])


UP = [0.5, 0.9, 1.0, 1.0, 0.6]
NONE = (math.nan, math.nan)


@pytest.mark.parametrize(
    "x, values, spec, mode, expected",
    [
        (range(-2, 3), UP, 0.8, "max", (-1, 1)),
        # Whatever the order of the points.
        (range(2, -3, -1), UP[::-1], 0.8, "max", (-1, 1)),
        # The whole range keeps a lower one, and none a higher.
        (range(-2, 3), UP, 0.5, "max", (-2, 2)),
        (range(-2, 3), UP, 1.1, "max", NONE),
        # Between points.
        (range(-1, 2), [3.0, 1.0, 2.0], 1.5, "min", (0, 0)),
        # Up to the first breach.
        (range(4), [1.0, 0.0, 1.0, 1.0], 0.5, "max", (0, 0)),
        # A range that does not hold the design.
        ([0.5, 1.0], [1.0, 1.0], 0.5, "max", NONE),
        # NaN breaks a specification.
        (range(3), [1.0, 1.0, np.nan], 0.5, "max", (0, 1)),
        (range(3), [np.nan] * 3, 0.5, "max", NONE),
        # Points on no line.
        (np.eye(2), [1.0, 1.0], 0.5, "max", NONE),
    ],
)
def test_tolerance_is_the_range_around_0(x, values, spec, mode, expected):
    found = sweep(x, values).tolerance("metric", spec, mode)
    assert found == pytest.approx(expected, nan_ok=True)
    # Without the sign of −0.0.
    assert all(math.copysign(1, bound) == 1 for bound in found if bound == 0)


@given(st.floats(0.1, 5.0), st.floats(0.1, 5.0), st.integers(3, 40))
def test_tolerance_of_a_triangle(left, right, points):
    x = np.unique(np.concatenate([np.linspace(-left, right, points), [0.0]]))
    y = np.where(x < 0, 1 + x / left, 1 - x / right)
    kept = x[y >= 0.5 - 1e-6]
    assert sweep(x, y).tolerance("metric", 0.5, "max") == (kept.min(), kept.max())


@pytest.mark.parametrize("spec", [1e-7, 0.95, 200.0])
def test_rounding_is_relative_to_the_specification(spec):
    values = np.array([spec * (1 - 1e-7), spec * (1 + 1e-7), 1.3 * spec])
    assert Yield.of(values, spec, "min") == Yield(2, 3)


def test_area_is_the_mean_over_an_uneven_range():
    assert sweep([-1, 0, 3], [0, 1, 1]).area("metric") == pytest.approx(3.5 / 4)
    assert sweep([2], [7]).area("metric") == 7.0
    assert math.isnan(sweep(np.eye(2), [1, 1]).area("metric"))


def test_positions_of_points_on_a_line():
    shifts = np.array([(-3.0, -4.0), (0.0, 0.0), (6.0, 8.0)])
    for points, expected in (
        ([-1.0, 0.0, 2.0], [-1, 0, 2]),
        (shifts, [-5, 0, 10]),
        (shifts[::-1], [-10, 0, 5]),
        (np.zeros((2, 2)), [0, 0]),
    ):
        (axis,) = sweep(points, []).axes
        np.testing.assert_allclose(axis.positions, expected)
    assert sweep(np.eye(2), []).axes[0].positions is None
