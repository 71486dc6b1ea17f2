"""Compare a model with a device's readings: the sum that a calibration minimises."""

import contextlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.hardware.calibration.readings import Readings
from keras_pnn.hardware.calibration.unknowns import Unknown
from keras_pnn.layers.physical import PhysicalLayer

# The sum where it is not a number.
BEYOND = 1e300


class Problem:
    """The sum that `calibrate` minimises, for layers that share unknowns.

    A point is a vector of deviations, in units of their priors.
    """

    def __init__(self, measured: list[Readings], unknowns: list[Unknown], noise):
        self._unknowns = unknowns
        starts = [u.start() for u in unknowns]
        self._sizes = [part.size for part in starts]
        self.bounds = np.concatenate([u.bounds() for u in unknowns], axis=1)
        self.start = np.clip(np.concatenate(starts), *self.bounds)
        self._parts = [_Part(self, m) for m in measured]
        self._readings = sum(part.readings for part in self._parts)
        self.noise = noise
        # Relative, of all readings at the last evaluation.
        self.residual = np.nan

    @property
    def layers(self) -> list[str]:
        """The names of the layers."""
        return [part.measured.layer.name for part in self._parts]

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
                    flat = tf.scatter_nd(
                        unknown.slots[:, None], unknown.std * part, [exists.size]
                    )
                    deviation = tf.reshape(flat, exists.shape)
                    values[quantity.name] = quantity.nominal + deviation
        return values

    def residuals(self, z: np.ndarray) -> dict[str, dict[str, float]]:
        """Returns each layer's relative residuals, `"fit"` and `"held_out"`."""
        return {part.measured.layer.name: part.residuals(z) for part in self._parts}

    def __call__(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the sum and its gradient."""
        misfit, gradient = 0.0, z.copy()
        for part in self._parts:
            value, slope = part(z)
            misfit += value
            gradient += slope
        self.residual = self.noise * np.sqrt(2 * misfit / self._readings)
        loss = float(misfit + z @ z / 2)
        if not (np.isfinite(loss) and np.isfinite(gradient).all()):
            # Beyond what the layer can model: the search turns back.
            return BEYOND, np.zeros_like(z)
        return loss, gradient

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """Estimates the diagonal of the sum's Hessian at a point (Gauss–Newton)."""
        return 1.0 + sum(part.curvature(z) for part in self._parts)


class _Part:
    """One layer's part of the sum."""

    def __init__(self, problem: Problem, measured: Readings):
        self.measured = measured
        self._fit = measured.fit
        wide = measured.layer.compute_dtype == "float64"
        convert = _wide if wide else tf.convert_to_tensor
        self.dtype = tf.float64 if wide else _own_dtype(measured.layer)
        self._inputs = convert(measured.inputs)
        self._controls = {
            name: convert(np.stack([c[name] for c in measured.controls]))
            for name in measured.controls[0]
        }
        self._outputs = _wide(measured.outputs)
        self.readings = np.count_nonzero(self._fit) * measured.outputs[0, 0].size
        power = measured.powers[self._fit].sum() / self.readings
        self._problem, self._power = problem, power or 1.0
        self._used = np.flatnonzero(self._fit.any(axis=1))
        self._errors = self._traced(problem)

    @property
    def _weight(self) -> float:
        return 1 / (self._problem.noise**2 * self._power)

    def _traced(self, problem: Problem) -> Callable:
        """What `_at` calls: a loop over settings, in one graph."""
        layer, samples = self.measured.layer, len(self.measured.inputs)

        def at_one_setting(z, controls, outputs, weights):
            with tf.GradientTape() as tape:
                tape.watch(z)
                values = problem.imperfections(layer, tf.cast(z, self.dtype))
                # Seeds do not advance in it: noise is the same at each evaluation.
                with keras.StatelessScope():
                    modelled = layer.forward(self._inputs, controls, values)
                difference = tf.cast(modelled, outputs.dtype) - outputs
                square = tf.math.real(difference * tf.math.conj(difference))
                square = tf.reduce_sum(tf.reshape(square, (samples, -1)), axis=1)
                loss = tf.reduce_sum(weights * square) / 2
            gradient = tape.gradient(
                loss, z, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return square, difference, gradient

        def errors(z, controls, outputs, weights):
            square, difference, gradient = tf.map_fn(
                lambda setting: at_one_setting(z, *setting),
                (controls, outputs, weights),
                fn_output_signature=(tf.float64, outputs.dtype, tf.float64),
                parallel_iterations=1,
            )
            return square, difference, tf.reduce_sum(gradient, axis=0)

        settings = (self._controls, self._outputs, tf.zeros(self._fit.shape, "float64"))
        signature = keras.tree.map_structure(
            lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), settings
        )
        point = tf.TensorSpec(problem.start.shape, "float64")
        return tf.function(errors, autograph=False, input_signature=(point, *signature))

    def _at(self, z, settings=None, outputs=None):
        """|difference|² of each sample, differences, and the gradient of the misfit.

        Args:
            z: a point.
            settings: indices, `None` for those that are fitted.
            outputs: what to compare with, `None` for the readings.
        """
        used = self._used if settings is None else settings
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

    def residuals(self, z: np.ndarray) -> dict[str, float]:
        square = self._at(z, np.arange(len(self._fit)))[0].numpy()
        powers = self.measured.powers
        return {
            name: float(np.sqrt(square[rows].sum() / (powers[rows].sum() or 1.0)))
            for name, rows in (("fit", self._fit), ("held_out", ~self._fit))
        }

    def curvature(self, z: np.ndarray, draws: int = 8) -> np.ndarray:
        """Estimates the diagonal of JᵀJ by the mean of (Jᵀv)² over random signs v.

        The gradient of the misfit is Jᵀ times the differences, so Jᵀv is the gradient
        at readings that differ from the model by v.
        """
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


# In float32 a sum over many readings loses small differences.


def _wide(values):
    values = tf.convert_to_tensor(values)
    if values.dtype.is_complex:
        return tf.cast(values, "complex128")
    return tf.cast(values, "float64") if values.dtype.is_floating else values


@contextlib.contextmanager
def in_float64(measured: list[Readings]) -> Iterator[None]:
    """Lets layers compute in float64, where their `forward` takes such tensors."""
    before = [(m.layer, m.layer.dtype_policy) for m in measured]
    try:
        for m, (layer, policy) in zip(measured, before, strict=True):
            layer.dtype_policy = "float64"
            if not _takes_float64(m):
                layer.dtype_policy = policy
        yield
    finally:
        for layer, policy in before:
            layer.dtype_policy = policy


def _takes_float64(m: Readings) -> bool:
    one = (m.inputs[:1], m.controls[0], m.layer.imperfections)
    try:
        m.layer.forward(*keras.tree.map_structure(_wide, one))
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):
        return False
    return True


def _own_dtype(layer: PhysicalLayer) -> tf.DType:
    return tf.as_dtype(next(iter(layer.imperfections.values())).dtype)
