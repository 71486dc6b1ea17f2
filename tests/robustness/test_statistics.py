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
    values = np.arange(1.0, 22.0)[:, None] * [1, 10]
    found = statistics.summary(values)
    assert found["mean"] == pytest.approx([11, 110])
    assert found["median"] == pytest.approx([11, 110])
    assert found["p05"] == pytest.approx([2, 20])
    assert found["p95"] == pytest.approx([20, 200])
    assert found["min"] == pytest.approx([1, 10])
    assert found["max"] == pytest.approx([21, 210])
    assert found["std"] == pytest.approx([math.sqrt(110 / 3), math.sqrt(11000 / 3)])


def test_tolerance_ends_at_points():
    x = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    y = np.array([0.5, 0.9, 1.0, 1.0, 0.6])
    low, high = statistics.tolerance(x, y, 0.8)
    assert (low, high) == (-1.0, 1.0)
    # The whole range keeps a lower one, and none a higher.
    assert statistics.tolerance(x, y, 0.5) == (-2.0, 2.0)
    assert all(map(math.isnan, statistics.tolerance(x, y, 1.1)))


def test_tolerance_of_a_loss_is_an_upper_bound():
    x = np.array([-1.0, 0.0, 1.0])
    low, high = statistics.tolerance(x, np.array([3.0, 1.0, 2.0]), 1.5, "min")
    # Between points, and without the sign of −0.0.
    assert (low, high) == (0.0, 0.0) and math.copysign(1.0, low) == 1


def test_tolerance_ends_at_the_first_breach():
    x = np.array([0.0, 1.0, 2.0, 3.0])
    y = np.array([1.0, 0.0, 1.0, 1.0])
    assert statistics.tolerance(x, y, 0.5) == (0.0, 0.0)


def test_tolerance_of_a_range_that_does_not_hold_the_design():
    x = np.array([0.5, 1.0])
    assert all(map(math.isnan, statistics.tolerance(x, np.ones(2), 0.5)))


@pytest.mark.parametrize("spec", [1e-7, 0.95, 200.0])
def test_rounding_is_relative_to_the_specification(spec):
    values = np.array([spec * (1 - 1e-7), spec * (1 + 1e-7), 1.3 * spec])
    kept = statistics.margin(values, spec, "min") >= 0
    np.testing.assert_array_equal(kept, [True, True, False])


def test_nan_breaks_a_specification():
    x = np.arange(3.0)
    assert statistics.tolerance(x, np.array([1.0, 1.0, np.nan]), 0.5) == (0.0, 1.0)
    assert all(map(math.isnan, statistics.tolerance(x, np.full(3, np.nan), 0.5)))


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
