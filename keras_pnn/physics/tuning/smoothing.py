"""Fit measured points by a spline that turns only where the resonance does."""

import dataclasses
import functools
import math

import numpy as np

from keras_pnn.physics.tuning.spline import Spline

# As shares of the span of the weights: how far points must reverse to show a turning
# point without a fit, and the steps caused by rounding to float32.
_PROMINENCE = 0.1
_ROUNDING = 1e-6
MOST_PIECES = 64
# The median of the absolute value of a standard normal variable.
_NORMAL_MEDIAN = 0.6745
# A curve counts as the closest one up to this factor in its distance from the points.
_AS_CLOSE = 1.005
# The least step between coefficients, so that a curve is nowhere level.
_LEAST_STEP = 1e-6


@dataclasses.dataclass(frozen=True)
class Resonance:
    """A Lorentzian, `base + height / (1 + ((x - center) / half_width)²)`.

    `misfit` is its root mean square distance from the points.
    """

    center: float
    half_width: float
    base: float
    height: float
    misfit: float

    def __call__(self, x):
        u = (x - self.center) / self.half_width
        return self.base + self.height / (1 + u**2)


def fit_resonance(x, y) -> Resonance:
    """Fits a Lorentzian, with its center at most half a span outside the points."""
    from scipy import optimize

    span = np.ptp(x)
    low, high = x[0] - span / 2, x[-1] + span / 2

    def solved(at):
        shape = 1 / (1 + ((x - at[0]) / (span * np.exp(at[1]))) ** 2)
        shape = np.stack([np.ones_like(x), shape], axis=1)
        linear = np.linalg.lstsq(shape, y, rcond=None)[0]
        return linear, shape @ linear - y

    widths = np.log(np.geomspace(1 / 200, 2, 12))
    starts = [(c, w) for c in np.linspace(low, high, 33) for w in widths]
    start = min(starts, key=lambda at: np.sum(solved(at)[1] ** 2))
    bounds = ([low, widths[0] - 1e-9], [high, widths[-1] + 1e-9])
    center, width = optimize.least_squares(
        lambda at: solved(at)[1], start, bounds=bounds
    ).x
    (base, height), residual = solved((center, width))
    misfit = np.sqrt(np.mean(residual**2))
    values = center, span * np.exp(width), base, height, misfit
    return Resonance(*map(float, values))


def noise(y) -> float:
    """Estimates the noise of one point from the differences between neighbours.

    Differences of high order cancel the curve, and their median ignores the few points
    where it is steep.
    """
    orders = range(2, min(7, len(y)))
    scales = [_NORMAL_MEDIAN * math.sqrt(math.comb(2 * k, k)) for k in orders]
    medians = [np.median(np.abs(np.diff(y, k))) for k in orders]
    return float(min(np.divide(medians, scales)))


def through_points(x, y) -> tuple[Spline, int]:
    """Returns the spline through all points, and its number of needless turning points.

    One turning point is due to the resonance, and so is each one at which the points
    reverse by a tenth of their span.
    """
    from scipy import interpolate

    spline = Spline(interpolate.CubicSpline(x, y))
    due = max(1, len(_prominent(x, y)))
    return spline, max(len(spline.turning_points(_ROUNDING)) - due, 0)


def smooth(x, y, distance: float) -> Spline:
    """Fits a cubic spline that turns only where the resonance does.

    The coefficients of the B-splines rise or fall between the turning points, and so
    does the curve. Their second differences are penalised, as in P-splines, as strongly
    as the distance allows; knots are dense where the weights change.

    `distance` is the root mean square distance allowed between the curve and the
    points. If no curve is that close, the closest is taken.

    Reference:

    - Eilers and Marx, "Flexible smoothing with B-splines and penalties", Stat. Sci.
      11:89 (1996).
    """
    return _smooth(x.tobytes(), y.tobytes(), distance)


# Cloned or loaded layers create their tunings again from the same points.
@functools.lru_cache(maxsize=64)
def _smooth(x, y, distance):
    x, y = np.frombuffer(x), np.frombuffer(y)
    fit = _ShapedFit(x, y / np.ptp(y))

    def misfit(power):
        return np.sqrt(np.mean((fit(10.0**power)(x) - fit.y) ** 2))

    powers = np.arange(3.0, -9.0, -1.0)
    allowed = max(distance / np.ptp(y), _AS_CLOSE * misfit(powers[-1]))
    power = next((p for p in powers if misfit(p) <= allowed), powers[-1])
    for step in (0.5, 0.25, 0.125):
        power += step if power < powers[0] and misfit(power + step) <= allowed else 0.0
    curve = fit(10.0**power)
    curve.c *= np.ptp(y)
    return Spline(curve)


def _prominent(x, y):
    """Returns (x, whether a maximum) of points where a curve reverses by a tenth."""
    from scipy import signal

    least = _PROMINENCE * np.ptp(y)
    peaks, dips = (signal.find_peaks(s, prominence=least)[0] for s in (y, -y))
    return sorted([(x[i], True) for i in peaks] + [(x[i], False) for i in dips])


def _expected(x, y):
    """Returns turning points of the resonance, and whether the curve rises at first."""
    turns = _prominent(x, y)
    if turns:
        return [at for at, _ in turns], turns[0][1]
    fitted = fit_resonance(x, y)
    ends = fitted(x[[0, -1]])
    back = np.abs(ends - fitted(fitted.center)).min()
    if x[0] < fitted.center < x[-1] and back > noise(y):
        return [fitted.center], fitted.height > 0
    return [], bool(np.polyfit(x, y, 1)[0] > 0)


class _ShapedFit:
    """Fits penalised B-splines that rise and fall between given turning points."""

    def __init__(self, x, y):
        from scipy import interpolate

        turns, rises = _expected(x, y)
        travelled = np.append(0, np.cumsum(np.abs(np.diff(y))))
        place = np.linspace(0, 1, len(x)) + travelled / travelled[-1]
        pieces = min(len(x) - 1, MOST_PIECES)
        knots = np.interp(np.linspace(0, 2, pieces + 1), place, np.arange(len(x)))
        breaks = x[np.unique(np.round(knots).astype(int))]
        self.x, self.y = x, y
        self.knots = np.r_[[breaks[0]] * 3, breaks, [breaks[-1]] * 3]
        count = len(self.knots) - 4
        self.basis = interpolate.BSpline(self.knots, np.eye(count), 3)(x)
        self.penalty = np.diff(np.eye(count), 2, axis=0)
        centers = np.array([self.knots[i + 1 : i + 4].mean() for i in range(count)])
        self.turns = [int(np.argmin(np.abs(centers - at))) for at in turns]
        self.first = 1.0 if rises else -1.0

    def __call__(self, strength):
        """Returns the curve; turning points move to where the fit is best."""
        from scipy import interpolate, linalg

        count = self.basis.shape[1]
        matrix = self.basis.T @ self.basis / len(self.x)
        matrix += strength * self.penalty.T @ self.penalty
        matrix += 1e-12 * np.trace(matrix) / count * np.eye(count)
        root = linalg.cholesky(matrix)
        target = self.basis.T @ self.y / len(self.x)
        target = linalg.solve_triangular(root, target, trans=1)
        best, improved = self._solve(root, target, self.turns), True
        while improved:
            improved = False
            for i in range(len(self.turns)):
                for step in (-1, 1, -2, 2):
                    turns = list(self.turns)
                    turns[i] += step
                    if turns != sorted(turns) or not 0 <= turns[i] < count:
                        continue
                    found = self._solve(root, target, turns)
                    if found[0] < best[0] * (1 - 1e-9):
                        best, self.turns, improved = found, turns, True
                        break
        curve = interpolate.PPoly.from_spline((self.knots, best[1], 3))
        # B-splines repeat their end knots, which gives pieces of no length.
        kept = np.diff(curve.x) > 0
        ends = np.append(curve.x[:-1][kept], curve.x[-1])
        return interpolate.PPoly(curve.c[:, kept], ends)

    def _solve(self, root, target, turns):
        """Returns distance and coefficients, whose steps have the signs required."""
        from scipy import optimize

        count = len(root)
        passed = np.sum([np.arange(count - 1) >= turn for turn in turns], axis=0)
        signs = np.append(1.0, self.first * (-1.0) ** passed * np.ones(count - 1))
        steps = np.tril(np.ones((count, count))) * signs
        # The first coefficient may have either sign, so it takes two columns.
        columns = root @ np.c_[-steps[:, :1], steps]
        least = steps @ np.append(0.0, np.full(count - 1, _LEAST_STEP))
        target = target - root @ least
        found, distance = optimize.nnls(columns, target, maxiter=100 * count)
        found = np.append(found[1] - found[0], found[2:])
        return distance, steps @ found + least
