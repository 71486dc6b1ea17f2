"""Fit the resonances of rings to measured weights and spectra."""

import dataclasses
import itertools

import numpy as np

from keras_pnn import _checks
from keras_pnn._display import Shown, Table
from keras_pnn.physics.tuning.points import WIDEST_SHIFT

_LEAST_POINTS = 8
# A resonance stands out of the residual by this factor, and of the level by this share.
_STANDS_OUT, _LEAST_DEPTH = 3.0, 0.02
# In nm and nm/mW: what no ring or heater has, if units are right.
_HALF_WIDTHS, _EFFICIENCIES = (1e-6, 100.0), (1e-6, 100.0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TuningFit(Shown):
    """Rings fitted to a measurement.

    Args:
        tunings: a list of one `HeaterTuning` for each ring.
        residuals: array (rings,), the root mean square of fitted minus measured
            weights, or transmissions in units of the largest.

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
        names = ("offset", "half_width", "efficiency", "through_min", "drop_max")
        names += ("free_spectral_range",)
        rows = []
        for i, (tuning, left) in enumerate(
            zip(self.tunings, self.residuals, strict=True)
        ):
            values = [getattr(tuning, name) for name in names]
            cells = ["-" if v is None else f"{v:.4g}" for v in values]
            rows.append((str(i), *cells, f"{left:.2g}"))
        columns = ("ring", "offset (nm)", "half-width (nm)", "efficiency (nm/mW)")
        columns += ("through min", "drop max", "FSR (nm)", "residual (rms)")
        return [Table("", columns, rows)]


def fit_currents(
    kind, current, weight, port, period, half_width, efficiency, resistance, top
) -> TuningFit:
    """Fits as `HeaterTuning.fit` says; `kind` is that class."""
    current, curves = _points("current", current, "weight", weight)
    _checks.not_negative("current", current)
    port = _checks.choice("port", port, ("balanced", "through", "drop"))
    resistance = _checks.real("resistance", resistance, above=0)
    known = {"half_width": half_width, "efficiency": efficiency}
    if not isinstance(period, bool | None):
        known["free_spectral_range"] = period
    lengths = {
        name: _checks.real(name, value, above=0)
        for name, value in known.items()
        if value is not None
    }
    if len(lengths) > 1:
        raise _checks.error("fit", "given one known length", sorted(lengths))
    power = current**2 * resistance / 1000
    tunings, residuals = [], []
    for i, curve in enumerate(curves):
        found = _resonance(power, curve, port, period, f"weight[:, {i}]")
        scale = lengths.get("efficiency", 0.53)
        if "half_width" in lengths:
            scale = lengths["half_width"] / found.half_width
        elif "free_spectral_range" in lengths:
            scale = lengths["free_spectral_range"] / found.period
        half_width = scale * found.half_width
        _check_units("current (mA)", "efficiency (nm/mW)", scale, _EFFICIENCIES)
        _check_units("current (mA)", "half-width (nm)", half_width, _HALF_WIDTHS)
        tunings.append(
            kind(
                offset=scale * _nearest(-found.center, found.period),
                half_width=half_width,
                efficiency=scale,
                resistance=resistance,
                port=port,
                max_current=float(current.max()) if top is None else top,
                free_spectral_range=found.period and scale * found.period,
                **_lossless(port, found.level),
            )
        )
        residuals.append(found.residual)
    return TuningFit(tunings, np.array(residuals))


def fit_wavelengths(
    kind, wavelength, transmission, laser, port, period, options
) -> TuningFit:
    """Fits as `HeaterTuning.fit_spectrum` says; `kind` is that class."""
    wavelength, curves = _points("wavelength", wavelength, "transmission", transmission)
    port = _checks.choice("port", port, ("balanced", "through", "drop"))
    laser = _checks.real("laser", laser, above=0)
    low, high = wavelength.min(), wavelength.max()
    if not low - WIDEST_SHIFT < laser < high + WIDEST_SHIFT:
        expected = f"in nm, as the wavelengths from {low:g} to {high:g}"
        raise _checks.error("laser", expected, f"{laser:g}")
    if not isinstance(period, bool | None):
        period = _checks.real("free_spectral_range", period, above=0)
    tunings, residuals = [], []
    for i, curve in enumerate(curves):
        name = f"transmission[:, {i}]"
        found = _resonance(wavelength - laser, curve, port, period, name, True)
        width = found.half_width
        _check_units("wavelength (nm)", "half-width (nm)", width, _HALF_WIDTHS)
        tunings.append(
            kind(
                offset=_nearest(found.center, found.period),
                half_width=found.half_width,
                free_spectral_range=found.period,
                **{"port": port, **_lossless(port, found.level), **options},
            )
        )
        residuals.append(found.residual)
    return TuningFit(tunings, np.array(residuals))


def _points(first: str, x, second: str, y) -> tuple[np.ndarray, np.ndarray]:
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


def _check_units(argument: str, name: str, value: float, limits: tuple) -> None:
    low, high = limits
    if not low < value < high:
        expected = f"in this unit: the {name} is then from {low:g} to {high:g}"
        raise _checks.error(argument, expected, f"a fitted {name} of {value:.2g}")


@dataclasses.dataclass(frozen=True)
class _Found:
    """A fitted resonance, in the unit of x; `period` is `None` for a single one."""

    center: float
    half_width: float
    level: float
    period: float | None
    residual: float


def _resonance(x, y, port, period, name, scaled=False) -> _Found:
    """Fits `scale · (distant + (level − distant) / (1 + u²))`.

    Args:
        period: `None`, `True` to be fitted, or the distance of resonances in x where
            `scaled` is true; else a number counts as `True`.
        scaled: whether the scale is fitted, and not 1.
    """
    from scipy import optimize

    if not y.any():
        raise _checks.error(name, "a curve with a resonance", "only zeros")
    distant = 0.0 if port == "drop" else 1.0
    # Of a passive ring.
    low = -1.0 if port == "balanced" else 0.0
    free = bool(period) and (period is True or not scaled)
    fixed = None if free or not period else period
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
        np.log(span * np.geomspace(0.1, 4, 30)) if free else np.zeros(1),
    ]
    ranked = sorted(
        itertools.product(*grids), key=lambda at: np.sum(solved(at)[1] ** 2)
    )
    size = 3 if free else 2
    bounds = [[g[0] - 1e-6 for g in grids[:size]], [g[-1] + 1e-6 for g in grids[:size]]]
    fits = [
        optimize.least_squares(
            lambda at: solved(at)[1],
            start[:size],
            bounds=bounds,
            x_scale=[span / 10, 1, 1][:size],
        )
        for start in ranked[:5]
    ]
    best = min(fits, key=lambda found: found.cost)
    level, residual = solved(best.x)
    left = float(np.sqrt(np.mean(residual**2)))
    depth = abs(level - distant)
    period = float(np.exp(best.x[2])) if free else fixed
    center = float(best.x[0])
    if period:
        # The same resonances, by the one nearest to the middle of the points.
        middle = (x.min() + x.max()) / 2
        center = middle + _nearest(center - middle, period)
    if scaled and not x.min() <= center <= x.max():
        # A slope, and no resonance that the spectrum shows.
        depth = 0.0
    if not depth > max(_STANDS_OUT * left, _LEAST_DEPTH) or (
        bool(level > distant) is not (port == "drop")
    ):
        raise _checks.error(
            name,
            "a curve with a resonance",
            f"one that is {depth:.2g} deep, {left:.2g} (rms) away from the nearest",
        )
    return _Found(
        center,
        float(np.exp(best.x[1])),
        float(level),
        period,
        left,
    )


def _nearest(offset: float, period: float | None) -> float:
    """Returns the offset of the resonance nearest to the laser."""
    return offset - period * round(offset / period) if period else offset


def _lossless(port: str, level: float) -> dict:
    """Returns both ports of a lossless ring on resonance, from the weight there."""
    if port == "drop":
        return {"through_min": min(1 - level, 0.999), "drop_max": level}
    if port == "through":
        return {"through_min": min(level, 0.999), "drop_max": 1 - level}
    return {"through_min": min((1 + level) / 2, 0.999), "drop_max": (1 - level) / 2}
