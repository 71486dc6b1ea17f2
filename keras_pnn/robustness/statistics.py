"""What many measurements say: intervals, percentiles, tolerances. NumPy only."""

import math

import numpy as np

# Standard normal quantile of a two-sided 95 % interval.
_Z95 = 1.959963984540054


def wilson(passed: int, n: int, z: float = _Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion.

    With p = passed / n:

        (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)

    It stays within [0, 1] and has a width where all or none passed, where the
    interval p ± z √(p(1 − p)/n) has none.

    Args:
        passed: how many passed, from 0 to `n`.
        n: how many there were, at least 1.
        z: quantile of the standard normal distribution; the default is 95 %.

    Returns:
        (low, high).

    Raises:
        ValueError: `n` is below 1, or `passed` outside 0 … `n`.

    Reference:

    - [Wilson, 1927](https://doi.org/10.1080/01621459.1927.10502953)
    """
    if n < 1 or not 0 <= passed <= n:
        raise ValueError(
            f"`passed` must lie between 0 and `n`, and `n` be at least 1. "
            f"Received: passed={passed}, n={n}"
        )
    p, spread = passed / n, z * z / n
    centre = p + spread / 2
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    # At the ends the bounds are exact; rounding would leave 1e-17 there.
    low = 0.0 if passed == 0 else (centre - half) / (1 + spread)
    high = 1.0 if passed == n else (centre + half) / (1 + spread)
    return low, high


def summary(values: np.ndarray, axis: int = 0) -> dict[str, np.ndarray]:
    """Mean, standard deviation, median, 5th and 95th percentile, extremes.

    Args:
        values: an array; percentiles are interpolated linearly.
        axis: the axis that counts the repetitions.
    """
    values = np.asarray(values, "float64")
    p05, median, p95 = np.percentile(values, (5, 50, 95), axis=axis)
    return {
        "mean": values.mean(axis),
        "std": values.std(axis),
        "median": median,
        "p05": p05,
        "p95": p95,
        "min": values.min(axis),
        "max": values.max(axis),
    }


# Metrics are float32 numbers, in which 19 of 20 are less than 0.95.
_ROUNDING = 1e-6


def margin(values: np.ndarray, spec: float, mode: str) -> np.ndarray:
    """By how much values keep a specification: below 0 where they break it.

    Args:
        values: the metric, in any shape.
        spec: the specification.
        mode: `"max"`: the metric must be at least `spec`; `"min"`: at most.

    Returns:
        Float64 array, 0 where a value is the specification but for float32's rounding;
        NaN stays NaN.
    """
    over = np.asarray(values, "float64") - spec
    over = over if mode == "max" else -over
    return np.where(np.abs(over) <= _ROUNDING * max(1.0, abs(spec)), 0.0, over)


def tolerance(
    positions: np.ndarray, values: np.ndarray, spec: float, mode: str = "max"
) -> tuple[float, float]:
    """The interval around 0 within which a curve keeps a specification.

    The curve is taken as straight between its points, and followed from 0 to either
    side up to where it first breaks the specification.

    Args:
        positions: (n,) increasing, deviations from the design.
        values: (n,) the metric.
        spec: the specification.
        mode: `"max"`: the metric must be at least `spec`; `"min"`: at most.

    Returns:
        (low, high). A bound at the end of the range means that the curve keeps the
        specification as far as it was measured. Both are NaN where it breaks it at 0,
        or where 0 is not within the range.
    """
    x = np.asarray(positions, "float64")
    over = margin(values, spec, mode)
    if not (len(x) and x[0] <= 0 <= x[-1]) or not np.interp(0, x, over) >= 0:
        return math.nan, math.nan
    return -_reach(-x[::-1], over[::-1]), _reach(x, over)


def _reach(x, margin) -> float:
    """How far to the right of 0 the margin stays non-negative."""
    last, level = 0.0, float(np.interp(0, x, margin))
    for position, value in zip(x, margin, strict=True):
        if position <= 0:
            continue
        # NaN breaks a specification.
        if not value >= 0:
            if math.isnan(value):
                return last
            return float(last + (position - last) * level / (level - value))
        last, level = float(position), float(value)
    return last


def area(positions: np.ndarray, values: np.ndarray) -> float:
    """The mean of a curve over its range: its area by trapezia, over its width.

    Args:
        positions: (n,) increasing.
        values: (n,).

    Returns:
        The mean; that of the values where the range has no width.
    """
    x, y = np.asarray(positions, "float64"), np.asarray(values, "float64")
    if x[0] == x[-1]:
        return float(y.mean())
    return float(np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)) / (x[-1] - x[0]))


def line_positions(values: np.ndarray) -> np.ndarray | None:
    """Where the points of a sweep lie on a line through 0.

    Args:
        values: (n,), or (n, d) for an imperfection with d elements.

    Returns:
        (n,): the values themselves; or signed lengths along the line that the points
        lie on, positive towards the last. `None` where they are on no such line.
    """
    values = np.asarray(values, "float64")
    if values.ndim == 1:
        return values
    flat = values.reshape(len(values), -1)
    lengths = np.linalg.norm(flat, axis=1)
    if not lengths.any():
        return lengths
    # The farthest point has the direction that rounding matters least for.
    direction = flat[lengths.argmax()] / lengths.max()
    along = flat @ direction
    if np.abs(flat - np.outer(along, direction)).max() > 1e-9 * lengths.max():
        return None
    return along if along[-1] >= along[0] else -along
