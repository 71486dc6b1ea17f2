"""Intervals, tolerances and areas against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pnn.devices.axis import line_positions
from keras_pnn.robustness import statistics


@pytest.mark.parametrize(
    "passed, n, expected",
    # As statsmodels gives them.
    [(3, 4, (0.30064, 0.95441)), (0, 20, (0.0, 0.16113)), (20, 20, (0.83887, 1.0))],
)
def test_wilson_interval(passed, n, expected):
    found = statistics.wilson(passed, n)
    assert found == pytest.approx(expected, abs=1e-5)
    # At the ends the bounds are exact.
    assert (found[0] == 0, found[1] == 1) == (passed == 0, passed == n)


def test_summary_of_hand_computed_values():
    found = statistics.summary(np.arange(1.0, 22.0)[:, None] * [1, 10])
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
    ],
)
def test_tolerance_is_the_range_around_0(x, values, spec, mode, expected):
    found = statistics.tolerance(np.array(x, float), np.array(values), spec, mode)
    assert found == pytest.approx(expected, nan_ok=True)
    # Without the sign of −0.0.
    assert all(math.copysign(1, bound) == 1 for bound in found if bound == 0)


@pytest.mark.parametrize("spec", [1e-7, 0.95, 200.0])
def test_rounding_is_relative_to_the_specification(spec):
    values = np.array([spec * (1 - 1e-7), spec * (1 + 1e-7), 1.3 * spec])
    kept = statistics.margin(values, spec, "min") >= 0
    np.testing.assert_array_equal(kept, [True, True, False])


@given(st.floats(0.1, 5.0), st.floats(0.1, 5.0), st.integers(3, 40))
def test_tolerance_of_a_triangle(left, right, points):
    x = np.unique(np.concatenate([np.linspace(-left, right, points), [0.0]]))
    y = np.where(x < 0, 1 + x / left, 1 - x / right)
    kept = x[y >= 0.5 - 1e-6]
    assert statistics.tolerance(x, y, 0.5) == (kept.min(), kept.max())


def test_area_is_the_mean_over_an_uneven_range():
    x = np.array([-1.0, 0.0, 3.0])
    assert statistics.area(x, np.array([0.0, 1.0, 1.0])) == pytest.approx(3.5 / 4)
    assert statistics.area(np.array([2.0]), np.array([7.0])) == 7.0


def test_positions_of_points_on_a_line():
    numbers = np.array([-1.0, 0.0, 2.0])
    assert line_positions(numbers) is not None
    np.testing.assert_array_equal(line_positions(numbers), numbers)
    shifts = np.array([(-3.0, -4.0), (0.0, 0.0), (6.0, 8.0)])
    np.testing.assert_allclose(line_positions(shifts), [-5, 0, 10])
    np.testing.assert_allclose(line_positions(shifts[::-1]), [-10, 0, 5])
    assert line_positions(np.eye(2)) is None
    np.testing.assert_array_equal(line_positions(np.zeros((2, 2))), [0, 0])
