"""Summarise many measurements, and compare them with a specification."""

import numpy as np

# Metrics are float32 numbers, in which 19 of 20 are less than 0.95.
_ROUNDING = 1e-6


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
