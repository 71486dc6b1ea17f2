"""Search for the imperfections that explain a device's readings."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.hardware.calibration.measurement import Readings
from keras_pnn.hardware.calibration.unknowns import Unknown
from keras_pnn.layers.physical import PhysicalLayer

# Value of a sum that is not finite.
_BEYOND = 1e300
# The search pauses at these relative reductions of the sum to estimate its curvature
# anew, before it goes on to the requested tolerance.
_STAGES = (1e-1, 1e-2, 1e-4)
# Readings farther from the model than this multiple of their noise are not explained;
# the search is then repeated with these noises, one after another.
_UNEXPLAINED = 3.0
_NOISES = (0.3, 0.03)


class Problem:
    """The sum that `calibrate` minimises, for layers that share unknowns.

    A point is a vector of deviations, in units of their prior standard deviations.
    """

    def __init__(self, measured: list[Readings], unknowns: list[Unknown], noise):
        self._unknowns = unknowns
        starts = [u.start() for u in unknowns]
        self._sizes = [part.size for part in starts]
        self.bounds = np.concatenate([u.bounds() for u in unknowns], axis=1)
        self.start = np.clip(np.concatenate(starts), *self.bounds)
        self.parts = [_Part(self, m) for m in measured]
        self._readings = sum(part.readings for part in self.parts)
        self.noise = noise
        # Relative residual of all readings at the last evaluation.
        self.residual = np.nan

    def split(self, z: np.ndarray) -> list[np.ndarray]:
        """Cuts a vector into the parts of the unknowns."""
        return np.split(z, np.cumsum(self._sizes)[:-1])

    def imperfections(self, layer: PhysicalLayer, z: tf.Tensor) -> dict:
        """Returns all imperfections of a layer at a point, in the dtype of z."""
        values = {
            name: tf.cast(tf.convert_to_tensor(v), z.dtype)
            for name, v in layer.imperfections.items()
        }
        parts = tf.split(z, self._sizes)
        for unknown, part in zip(self._unknowns, parts, strict=True):
            for quantity in unknown.quantities:
                if quantity.layer is layer:
                    exists = quantity.exists
                    places = np.flatnonzero(exists)[:, None]
                    flat = tf.scatter_nd(places, unknown.std * part, [exists.size])
                    deviation = tf.reshape(flat, exists.shape)
                    values[quantity.name] = quantity.nominal + deviation
        return values

    def __call__(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the sum and its gradient."""
        misfit, gradient = 0.0, z.copy()
        for part in self.parts:
            value, slope = part(z)
            misfit += value
            gradient += slope
        self.residual = self.noise * np.sqrt(2 * misfit / self._readings)
        loss = float(misfit + z @ z / 2)
        if not (np.isfinite(loss) and np.isfinite(gradient).all()):
            # Outside of what the layer can model: this makes the search turn back.
            return _BEYOND, np.zeros_like(z)
        return loss, gradient

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """Estimates the diagonal of the sum's Hessian at a point (Gauss–Newton)."""
        return 1.0 + sum(part.curvature(z) for part in self.parts)


class _Part:
    """One layer's part of the sum."""

    def __init__(self, problem: Problem, measured: Readings):
        self._problem, self._layer = problem, measured.layer
        self.name = measured.layer.name
        wide = measured.layer.compute_dtype == "float64"
        convert = _wide if wide else tf.convert_to_tensor
        own = next(iter(measured.layer.imperfections.values())).dtype
        self._dtype = tf.float64 if wide else tf.as_dtype(own)
        self._inputs = convert(measured.inputs)
        self._controls = {
            name: convert(np.stack([c[name] for c in measured.controls]))
            for name in measured.controls[0]
        }
        self._outputs = _wide(measured.outputs)
        self._fit, self._powers = measured.fit, measured.powers
        self._used = np.flatnonzero(self._fit.any(axis=1))
        self.readings = np.count_nonzero(self._fit) * measured.outputs[0, 0].size
        self._power = self._powers[self._fit].sum() / self.readings or 1.0
        settings = (self._controls, self._outputs, tf.zeros(self._fit.shape, "float64"))
        signature = keras.tree.map_structure(
            lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), settings
        )
        point = tf.TensorSpec(problem.start.shape, "float64")
        self._errors = tf.function(
            self._all_settings, autograph=False, input_signature=(point, *signature)
        )

    @property
    def _weight(self) -> float:
        return 1 / (self._problem.noise**2 * self._power)

    def _one_setting(self, z, controls, outputs, weights):
        with tf.GradientTape() as tape:
            tape.watch(z)
            point = tf.cast(z, self._dtype)
            values = self._problem.imperfections(self._layer, point)
            # Keeps seeds from advancing, so that noise is the same at each evaluation.
            with keras.StatelessScope():
                modelled = self._layer.forward(self._inputs, controls, values)
            difference = tf.cast(modelled, outputs.dtype) - outputs
            square = tf.math.real(difference * tf.math.conj(difference))
            square = tf.reduce_sum(tf.reshape(square, (len(self._inputs), -1)), axis=1)
            loss = tf.reduce_sum(weights * square) / 2
        gradient = tape.gradient(
            loss, z, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return square, difference, gradient

    def _all_settings(self, z, controls, outputs, weights):
        square, difference, gradient = tf.map_fn(
            lambda setting: self._one_setting(z, *setting),
            (controls, outputs, weights),
            fn_output_signature=(tf.float64, outputs.dtype, tf.float64),
            parallel_iterations=1,
        )
        return square, difference, tf.reduce_sum(gradient, axis=0)

    def _at(self, z, used=None, outputs=None):
        """Returns |difference|² of each sample, differences, and the misfit's gradient.

        `used` are the indices of settings, by default those with fitted readings.
        Differences are from `outputs`, by default the readings.
        """
        used = self._used if used is None else used
        controls = {n: tf.gather(c, used) for n, c in self._controls.items()}
        if outputs is None:
            outputs = tf.gather(self._outputs, used)
        weights = tf.constant(self._weight * self._fit[used], "float64")
        return self._errors(tf.constant(z), controls, outputs, weights)

    def __call__(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns half the weighted sum of squares of the fit, and its gradient."""
        square, _, gradient = self._at(z)
        fitted = square.numpy()[self._fit[self._used]]
        return self._weight * float(fitted.sum()) / 2, gradient.numpy()

    def residuals(self, z: np.ndarray) -> tuple[float, float, np.ndarray]:
        """Returns the residuals of fitted and held-out readings, and of each output.

        The residual of an output is over all readings, relative to the root mean square
        over all outputs, since one output may be dark.
        """
        square, difference, _ = self._at(z, np.arange(len(self._fit)))
        fitted, held_out = (
            float(np.sqrt(square.numpy()[rows].sum() / (self._powers[rows].sum() or 1)))
            for rows in (self._fit, ~self._fit)
        )
        first = getattr(self._layer, "data_format", "") == "channels_first"
        by_output = np.moveaxis(difference.numpy(), 2 if first else -1, 0)
        by_output = by_output.reshape(len(by_output), -1)
        left = np.sum(np.abs(by_output) ** 2, axis=1)
        by_output = np.sqrt(left * len(left) / (self._powers.sum() or 1))
        return fitted, held_out, by_output

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """Estimates the diagonal of JᵀJ by the mean of (Jᵀv)² over random signs v.

        The gradient of the misfit is Jᵀ times the differences, so Jᵀv is the gradient
        at readings that differ from the model by v.
        """
        draws = 8
        rng = np.random.default_rng(0)
        readings = tf.gather(self._outputs, self._used)
        modelled = readings + self._at(z)[1]
        total = np.zeros_like(z)
        for _ in range(draws):
            signs = rng.choice([-1.0, 1.0], (2, *readings.shape))
            complex_ones = readings.dtype.is_complex
            signs = signs[0] + 1j * signs[1] if complex_ones else signs[0]
            _, _, product = self._at(z, outputs=modelled - signs)
            total += product.numpy() ** 2
        return total / (draws * self._weight)


def _wide(values):
    # In float32, a sum over many readings would lose small differences.
    values = tf.convert_to_tensor(values)
    if values.dtype.is_complex:
        return tf.cast(values, "complex128")
    return tf.cast(values, "float64") if values.dtype.is_floating else values


@contextlib.contextmanager
def in_float64(measured: list[Readings]) -> Iterator[None]:
    """Makes layers compute in float64 if their `forward` accepts such tensors."""
    before = [(m.layer, m.layer.dtype_policy) for m in measured]
    try:
        for m, (layer, policy) in zip(measured, before, strict=True):
            layer.dtype_policy = "float64"
            one = (m.inputs[:1], m.controls[0], layer.imperfections)
            try:
                layer.forward(*keras.tree.map_structure(_wide, one))
            except (TypeError, ValueError, tf.errors.InvalidArgumentError):
                layer.dtype_policy = policy
        yield
    finally:
        for layer, policy in before:
            layer.dtype_policy = policy


def search(
    problem: Problem, iterations: int, tolerance: float, verbose: int
) -> tuple[np.ndarray, int, bool]:
    """Minimises the sum, with a progress bar.

    If the readings are not explained, the search has ended in a local minimum. It then
    restarts with a low weight of the readings, so that the prior leads it past such
    minima, and the better of the two results is kept.

    Returns:
        (point, iterations, whether it converged).
    """
    if problem(problem.start)[0] == _BEYOND:
        raise ValueError(
            "The model's outputs must be finite at all settings of the controls, with "
            "its present imperfections; `spread` keeps controls nearer. Received: NaN "
            f"or infinity in {', '.join(part.name for part in problem.parts)}"
        )
    bar = keras.utils.Progbar(
        iterations,
        verbose=verbose,
        stateful_metrics=["residual"],
        unit_name="iteration",
    )
    noise = problem.noise
    z, done, ended = _descent(problem, problem.start, iterations, tolerance, bar)
    loss = problem(z)[0]
    coarser = [n for n in _NOISES if n > 3 * noise]
    if coarser and problem.residual > _UNEXPLAINED * noise:
        other, there = problem.start, ended
        for coarse in (*coarser, noise):
            problem.noise = coarse
            end = tolerance if coarse == noise else max(tolerance, _STAGES[-1])
            if done < iterations:
                left = iterations - done
                other, steps, there = _descent(problem, other, left, end, bar)
                done += steps
        problem.noise = noise
        if problem(other)[0] < loss:
            z, ended = other, there
    if done < iterations:
        bar.update(done, finalize=True)
    return z, done, ended


def _descent(problem: Problem, z, iterations: int, tolerance: float, bar) -> tuple:
    """Minimises from a point by L-BFGS; returns the same as `search`.

    L-BFGS starts as if the sum were equally curved along all unknowns, but a ring on
    its flank may have a thousand times the curvature of one far from resonance. So the
    unknowns are scaled by the sum's curvature, which is re-estimated on the way.
    """
    from scipy import optimize

    done = 0
    for end in (*(s for s in _STAGES if s > tolerance), tolerance):
        scale = 1 / np.sqrt(problem.curvature(z))

        def scaled(u, scale=scale):
            loss, gradient = problem(u * scale)
            return loss, gradient * scale

        result = optimize.minimize(
            scaled,
            z / scale,
            jac=True,
            method="L-BFGS-B",
            bounds=optimize.Bounds(*(problem.bounds / scale)),
            callback=lambda _: bar.add(1, [("residual", problem.residual)]),
            options={
                "maxiter": iterations - done,
                # A step takes one or two evaluations.
                "maxfun": 4 * iterations,
                "maxcor": 30,
                "ftol": end,
                "gtol": 0.0,
            },
        )
        z, done = result.x * scale, done + result.nit
        if done >= iterations:
            break
    return z, done, bool(result.success)
