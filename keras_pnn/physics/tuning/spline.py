"""Fit a cubic spline in SciPy, evaluate it in TensorFlow, invert it in NumPy."""

import numpy as np
import tensorflow as tf


class Spline:
    """Cubic spline through measured points, with two continuous derivatives.

    Args:
        x: Float64 array of shape `(n,)`, strictly increasing, n at least 4.
        y: Float64 array of shape `(n,)`.
        smoothing: Float. Root mean square distance allowed between the curve and
            the points, in the unit of `y`. 0: through all points.

    Attributes:
        low: Float. First x.
        high: Float. Last x.
        turns: Float64 array. The ends and all local extrema between, sorted.
        heights: Float64 array. The values at `turns`.
    """

    def __init__(self, x, y, smoothing=0.0):
        from scipy import interpolate

        if smoothing > 0:
            knots = interpolate.splrep(x, y, k=3, s=len(x) * smoothing**2)
            curve = interpolate.PPoly.from_spline(knots)
            # B-splines repeat their end knots: pieces of no length.
            kept = np.diff(curve.x) > 0
            ends = np.append(curve.x[:-1][kept], curve.x[-1])
            curve = interpolate.PPoly(curve.c[:, kept], ends)
        else:
            curve = interpolate.CubicSpline(x, y)
        self.curve = curve
        self.low, self.high = float(x[0]), float(x[-1])
        self.turns = self._find_turns()
        self.heights = curve(self.turns)

    def __call__(self, x):
        """Evaluates at a tensor of any shape; NaN outside `[low, high]`."""
        starts = tf.constant(self.curve.x[:-1], x.dtype)
        flat = tf.reshape(x, [-1])
        piece = tf.searchsorted(starts, flat, side="right") - 1
        piece = tf.reshape(tf.maximum(piece, 0), tf.shape(x))
        # A factor, not a selection of results, so that derivatives are NaN as well.
        room = self.room(x.dtype.as_numpy_dtype)
        inside = (x >= self.low - room) & (x <= self.high + room)
        valid = tf.where(inside, tf.ones_like(x), float("nan"))
        t = (x - tf.gather(starts, piece)) * valid
        c = tf.gather(tf.constant(self.curve.c.T, x.dtype), piece)
        return ((c[..., 0] * t + c[..., 1]) * t + c[..., 2]) * t + c[..., 3]

    def room(self, dtype):
        """Returns how far rounding may carry an x beyond the ends."""
        return float(8 * np.finfo(dtype).eps * max(abs(self.low), abs(self.high)))

    def first(self, y):
        """Solves for the smallest x at which the curve has the value y.

        Args:
            y: Float64 array within the range of `heights`.

        Returns:
            Float64 array of the shape of `y`.
        """
        x = np.full(y.shape, np.nan)
        for i in range(len(self.turns) - 1):
            ends = self.heights[i : i + 2]
            found = np.isnan(x) & (y >= ends.min()) & (y <= ends.max())
            if found.any():
                x[found] = self._bisect(y[found], i)
        return x

    def _bisect(self, y, i):
        """Solves on the monotonic stretch between two turns."""
        left = np.full(y.shape, self.turns[i])
        right = np.full(y.shape, self.turns[i + 1])
        rising = self.heights[i + 1] >= self.heights[i]
        for _ in range(60):
            middle = (left + right) / 2
            value = self.curve(middle)
            beyond = value >= y if rising else value <= y
            left = np.where(beyond, left, middle)
            right = np.where(beyond, middle, right)
        # At the ends the answer is exact, where bisection only comes close.
        return np.where(y == self.heights[i], self.turns[i], right)

    def _find_turns(self):
        roots = self.curve.derivative().roots(extrapolate=False)
        roots = roots[np.isfinite(roots)]
        inner = roots[(roots > self.low) & (roots < self.high)]
        return np.concatenate([[self.low], np.unique(inner), [self.high]])
