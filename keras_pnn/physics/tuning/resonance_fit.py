"""Fit the resonances of rings to measured weights and spectra."""

import dataclasses
import itertools

import numpy as np

from keras_pnn import _checks
from keras_pnn._display import Shown, Table

_LEAST_POINTS = 8
# The least depth of a resonance: as a multiple of the residual, and as a weight.
_STANDS_OUT, _LEAST_DEPTH = 3.0, 0.02
# Plausible half-widths in nm, and heater efficiencies in nm/mW.
_LEAST_LENGTH, _MOST_LENGTH = 1e-6, 100.0


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TuningFit(Shown):
    """Rings fitted to a measurement.

    Args:
        tunings: a list of one `HeaterTuning` for each ring.
        residuals: array (rings,), the root mean square of fitted minus measured
            weights, or of transmissions relative to the largest.

    Example:

    >>> current = np.linspace(0, 2, 41)
    >>> weight = np.asarray(pnn.HeaterTuning().weight(current))
    >>> found = pnn.HeaterTuning.fit(current, np.stack([weight, weight], axis=1))
    >>> bank = pnn.layers.MRRBank(4, tuning=pnn.RingTunings(found.tunings))
    """

    tunings: list
    residuals: np.ndarray

    @property
    def tuning(self):
        """The tuning of the first ring."""
        return self.tunings[0]

    def to_dict(self) -> dict:
        """Returns the parameters and the residual of each ring."""
        configs = [tuning.get_config() for tuning in self.tunings]
        return {"rings": configs, "residuals": self.residuals.tolist()}

    def _parts(self):
        shown = {
            "offset (nm)": "offset",
            "half-width (nm)": "half_width",
            "efficiency (nm/mW)": "efficiency",
            "through min": "through_min",
            "drop max": "drop_max",
            "FSR (nm)": "free_spectral_range",
        }
        rows = []
        for i, tuning in enumerate(self.tunings):
            values = [getattr(tuning, name) for name in shown.values()]
            cells = ["-" if v is None else f"{v:.4g}" for v in values]
            rows.append((str(i), *cells, f"{self.residuals[i]:.2g}"))
        return [Table("", ("ring", *shown, "residual (rms)"), rows)]


def curves_of(first: str, x, second: str, y) -> tuple[np.ndarray, np.ndarray]:
    """Returns the checked x, and one row of y for each ring."""
    x, y = _checks.array(first, x), _checks.array(second, y)
    if x.ndim != 1 or y.ndim not in (1, 2) or len(x) != len(y):
        raise ValueError(
            f"Arguments `{first}` and `{second}` must have shapes (points,) and "
            f"(points,) or (points, rings). Received: {x.shape} and {y.shape}"
        )
    if len(np.unique(x)) < _LEAST_POINTS:
        expected = f"at least {_LEAST_POINTS} points that differ"
        raise _checks.error(first, expected, f"{len(np.unique(x))} points")
    return x, (y[:, None] if y.ndim == 1 else y).T


def check_units(argument: str, name: str, value: float) -> None:
    """Raises an error if a value is implausible, as from a wrong unit of `argument`."""
    low, high = _LEAST_LENGTH, _MOST_LENGTH
    if not low < value < high:
        expected = f"in this unit: the {name} is then from {low:g} to {high:g}"
        raise _checks.error(argument, expected, f"a fitted {name} of {value:.2g}")


@dataclasses.dataclass(frozen=True)
class Resonance:
    """A fitted resonance, in the unit of x; `period` is `None` for a single one."""

    center: float
    half_width: float
    level: float
    period: float | None
    residual: float


def find_resonance(x, y, port, period, name, scaled=False) -> Resonance:
    """Fits a resonance, `scale · (distant + (level − distant) / (1 + u²))`.

    Args:
        period: `None` or `False` for one resonance, `True` to fit the period, or the
            distance between resonances in the unit of x.
        scaled: whether the scale is fitted; otherwise it is 1.
    """
    from scipy import optimize

    if not y.any():
        raise _checks.error(name, "a curve with a resonance", "only zeros")
    distant = 0.0 if port == "drop" else 1.0
    # The lowest weight of a passive ring.
    low = -1.0 if port == "balanced" else 0.0
    free = period is True
    fixed = None if free else period or None
    span = np.ptp(x)

    def shape(at):
        distance = x - at[0]
        turn = np.exp(-at[2]) if free else fixed and 1 / fixed
        if turn:
            distance = np.sin(np.pi * turn * distance) / (np.pi * turn)
        return 1 / (1 + (distance / np.exp(at[1])) ** 2)

    def solved(at):
        peak = shape(at)
        if not scaled:
            level = distant + (y - distant) @ peak / (peak @ peak)
            level = np.clip(level, low, 1.0)
            return level, distant + (level - distant) * peak - y
        level = 1.0
        if port != "drop":
            columns = np.stack([np.ones_like(x), peak], axis=1)
            scale, height = np.linalg.lstsq(columns, y, rcond=None)[0]
            level = max(1 + height / scale, low)
        curve = distant + (level - distant) * peak
        scale = curve @ y / (curve @ curve)
        return level, (scale * curve - y) / np.abs(y).max()

    grids = [
        np.linspace(x.min() - span / 2, x.max() + span / 2, 81),
        np.log(span * np.geomspace(1 / 300, 1, 14)),
    ]
    if free:
        grids.append(np.log(span * np.geomspace(0.1, 4, 30)))
    ranked = sorted(
        itertools.product(*grids), key=lambda at: np.sum(solved(at)[1] ** 2)
    )
    options = {
        "bounds": [[g[0] - 1e-6 for g in grids], [g[-1] + 1e-6 for g in grids]],
        "x_scale": [span / 10, 1, 1][: len(grids)],
    }
    fits = [
        optimize.least_squares(lambda at: solved(at)[1], start, **options)
        for start in ranked[:5]
    ]
    best = min(fits, key=lambda found: found.cost)
    level, residual = solved(best.x)
    left = float(np.sqrt(np.mean(residual**2)))
    depth = abs(level - distant)
    period = float(np.exp(best.x[2])) if free else fixed
    center = float(best.x[0])
    if period:
        # Of the periodic resonances, take the one nearest to the middle of the points.
        middle = (x.min() + x.max()) / 2
        center = middle + nearest(center - middle, period)
    if scaled and not x.min() <= center <= x.max():
        # The spectrum shows only a slope, no resonance.
        depth = 0.0
    stands_out = depth > max(_STANDS_OUT * left, _LEAST_DEPTH)
    if not stands_out or (level > distant) != (port == "drop"):
        received = (
            f"one that is {depth:.2g} deep, {left:.2g} (rms) away from the nearest"
        )
        raise _checks.error(name, "a curve with a resonance", received)
    return Resonance(center, float(np.exp(best.x[1])), float(level), period, left)


def nearest(offset: float, period: float | None) -> float:
    """Returns the offset of the resonance nearest to the laser."""
    return offset - period * round(offset / period) if period else offset


def lossless(port: str, level: float) -> dict:
    """Converts a lossless ring's weight on resonance to the powers at its ports."""
    if port == "drop":
        return {"through_min": min(1 - level, 0.999), "drop_max": level}
    if port == "through":
        return {"through_min": min(level, 0.999), "drop_max": 1 - level}
    return {"through_min": min((1 + level) / 2, 0.999), "drop_max": (1 - level) / 2}
