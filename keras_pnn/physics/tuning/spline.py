"""Evaluate a cubic spline in TensorFlow, find its extrema, invert it in NumPy."""

import numpy as np
import tensorflow as tf


class Spline:
    """Cubic spline with two continuous derivatives.

    Args:
        curve: `scipy.interpolate.PPoly` of degree 3, from `low` to `high`.
        start: where turns and solutions begin. Default: `low`.

    Attributes:
        turns: `start`, `high` and all local extrema between, sorted.
        heights: the values at `turns`.
    """

    def __init__(self, curve, start: float | None = None):
        self.curve = curve
        self.low, self.high = float(curve.x[0]), float(curve.x[-1])
        roots = curve.derivative().roots(extrapolate=False)
        roots = roots[np.isfinite(roots)]
        start = self.low if start is None else start
        inner = np.unique(roots[(roots > start) & (roots < self.high)])
        self.turns = np.concatenate([[start], inner, [self.high]])
        self.heights = curve(self.turns)
        # Where a curve is level, rounding makes spurious roots.
        kept = self._larger_than(1e-12)
        self.turns, self.heights = self.turns[kept], self.heights[kept]

    def __call__(self, x):
        """Evaluates at a tensor of any shape; NaN outside `[low, high]`."""
        starts = tf.constant(self.curve.x[:-1], x.dtype)
        flat = tf.reshape(x, [-1])
        piece = tf.searchsorted(starts, flat, side="right") - 1
        piece = tf.reshape(tf.maximum(piece, 0), tf.shape(x))
        # A factor, not a choice of results, so that derivatives are NaN as well.
        room = self.room(x.dtype.as_numpy_dtype)
        inside = (x >= self.low - room) & (x <= self.high + room)
        valid = tf.where(inside, tf.ones_like(x), float("nan"))
        t = (x - tf.gather(starts, piece)) * valid
        c = tf.gather(tf.constant(self.curve.c.T, x.dtype), piece)
        return ((c[..., 0] * t + c[..., 1]) * t + c[..., 2]) * t + c[..., 3]

    def turning_points(self, least: float = 0.0) -> np.ndarray:
        """Returns where the curve reverses by more than a share of its span."""
        return self.turns[self._larger_than(least)[1:-1]]

    def room(self, dtype):
        """Returns how far rounding may carry an x beyond the ends."""
        return float(8 * np.finfo(dtype).eps * max(abs(self.low), abs(self.high)))

    def first(self, y):
        """Solves for the smallest x at which the curve has the values y."""
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
        # At the turns the answer is known exactly; bisection only comes close.
        return np.where(y == self.heights[i], self.turns[i], right)

    def _larger_than(self, least):
        """Returns indices of the turns left without steps up to a share of the span."""
        kept = list(range(len(self.heights)))
        least = least * np.ptp(self.heights)
        while len(kept) > 2:
            steps = np.diff(self.heights[kept])
            onward = np.flatnonzero(steps[1:] * steps[:-1] >= 0)
            if onward.size:
                del kept[onward[0] + 1]
                continue
            i = int(np.argmin(np.abs(steps)))
            if abs(steps[i]) > least:
                break
            # Both ends of the smallest step, unless one is an end of the curve.
            del kept[max(i, 1) : min(i + 2, len(kept) - 1)]
        return kept
