"""Summarise many measurements: intervals, percentiles, tolerances, areas."""

import math

import numpy as np

# Metrics are float32 numbers, in which 19 of 20 are less than 0.95.
_ROUNDING = 1e-6


def wilson(passed: int, n: int) -> tuple[float, float]:
    """Returns the Wilson score interval of 95 % of a proportion.

    It stays within [0, 1] and has a width where all or none passed.

    Reference:

    - [Wilson, 1927](https://doi.org/10.1080/01621459.1927.10502953)
    """
    from scipy.stats import binomtest

    low, high = binomtest(passed, n).proportion_ci(method="wilson")
    # At the ends the bounds are exact; rounding would leave 1e-17 there.
    return float(low) if passed else 0.0, float(high) if passed < n else 1.0


def summary(values: np.ndarray) -> dict[str, np.ndarray]:
    """Returns statistics over the first axis, percentiles interpolated linearly."""
    values = np.asarray(values, "float64")
    p05, median, p95 = np.percentile(values, (5, 50, 95), axis=0)
    return {
        "mean": values.mean(0),
        "std": values.std(0),
        "median": median,
        "p05": p05,
        "p95": p95,
        "min": values.min(0),
        "max": values.max(0),
    }


def margin(values: np.ndarray, spec: float, mode: str) -> np.ndarray:
    """Returns by how much values keep a specification: below 0 where they break it.

    It is 0 where a value is the specification but for float32's rounding; NaN stays.
    In mode `"max"` values must be at least `spec`, in `"min"` at most.
    """
    over = np.asarray(values, "float64") - spec
    over = over if mode == "max" else -over
    # Relative: a mean square error may be smaller than the rounding of an accuracy.
    room = _ROUNDING * (abs(spec) or 1.0)
    return np.where(np.abs(over) <= room, 0.0, over)


def tolerance(
    x: np.ndarray, values: np.ndarray, spec: float, mode: str = "max"
) -> tuple[float, float]:
    """Returns the interval around 0 within which a curve keeps a specification.

    The curve is followed over increasing x from 0 to either side, up to the last point
    before it first breaks the specification. Both bounds are NaN where it breaks it at
    0 (between points, on a straight line), or where 0 is not within the range.
    """
    over = margin(values, spec, mode)
    if not x[0] <= 0 <= x[-1] or not np.interp(0, x, over) >= 0:
        return math.nan, math.nan
    # A difference, since −0.0 is no bound.
    return 0.0 - _reach(-x[::-1], over[::-1]), _reach(x, over)


def _reach(x: np.ndarray, over: np.ndarray) -> float:
    """Returns the last position to the right of 0 before the margin is negative."""
    right = x > 0
    # NaN breaks a specification.
    kept = np.logical_and.accumulate(over[right] >= 0)
    return float(x[right][kept].max(initial=0.0))


def area(x: np.ndarray, values: np.ndarray) -> float:
    """Returns the mean of a curve over increasing x, whose range may be one point."""
    from scipy.integrate import trapezoid

    y = np.asarray(values, "float64")
    if x[0] == x[-1]:
        return float(y.mean())
    return float(trapezoid(y, x) / (x[-1] - x[0]))
