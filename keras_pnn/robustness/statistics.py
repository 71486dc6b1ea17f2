"""Summarise many measurements, and compare them with a specification."""

import numpy as np

# Metrics are float32 numbers, in which 19/20 is slightly less than 0.95.
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
    """Returns the margins of values to a specification, negative if they break it.

    A margin within float32's rounding is 0; NaN stays NaN. In mode `"max"`, values must
    be at least `spec`, in `"min"` at most.
    """
    over = np.asarray(values, "float64") - spec
    over = over if mode == "max" else -over
    # Relative, since a mean square error may be smaller than an accuracy's rounding.
    room = _ROUNDING * (abs(spec) or 1.0)
    return np.where(np.abs(over) <= room, 0.0, over)
