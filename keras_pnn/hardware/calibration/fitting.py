"""The search for the imperfections that explain a device's readings."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.hardware.readings import Readings, of_layer
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.layers.quantity import Quantity

# A usual size of each kind of imperfection, by its unit.
_PRIORS = {"rad": 0.1, "nm": 0.1, "K": 2.0, "dB": 0.1, "deg": 1.0, "px": 1.0, "": 0.05}
# How far from nominal an unknown is looked for, in standard deviations. Without an
# end, a search may step over into a mirror image, such as a negative half-width.
_FARTHEST = 10.0
# What the sum counts as where it is not a number.
_BEYOND = 1e300
# The search stops at these relative reductions of the sum to see how much each
# unknown matters there, before it goes on to the tolerance that was asked for.
_STAGES = (1e-1, 1e-2, 1e-4)
# Readings that are farther from the model than so many times their noise are not
# explained; the search is then repeated with these noises, one after the other.
_UNEXPLAINED = 3.0
_NOISES = (0.3, 0.03)


@dataclasses.dataclass(frozen=True, eq=False)
class Unknown:
    """One imperfection that is fitted: of a layer, or of all where it is shared."""

    targets: tuple[Quantity, ...]
    std: float  # of its prior
    slots: np.ndarray  # the elements that exist, in the flat variable

    @property
    def label(self) -> str:
        target = self.targets[0]
        return target.name if target.shared else f"{target.layer.name}/{target.name}"

    @property
    def unit(self) -> str:
        target = self.targets[0]
        return target.layer.quantity(target.name).unit

    def start(self) -> np.ndarray:
        """The present deviations, in units of the prior."""
        target = self.targets[0]
        present = np.ravel(np.asarray(target.variable, "float64"))[self.slots]
        return (present - target.nominal) / self.std

    def bounds(self) -> np.ndarray:
        """Lowest and highest scaled deviations, (2, slots)."""
        target = self.targets[0]
        low, high = self._reach()
        if target.lower_bound is not None:
            # Inside, where float32 still tells it from the bound.
            low = np.maximum(
                low, 0.999 * (target.lower_bound - target.nominal) / self.std
            )
        if self.unit == "dB" and "loss" in target.name:
            # A mesh counts a negative loss as none, and shows the search no slope.
            low = np.maximum(low, (0.0 - target.nominal) / self.std)
        return np.stack([low, high])

    def _reach(self) -> tuple[np.ndarray, np.ndarray]:
        """How far it is looked for: around nominal, and a start that is farther off."""
        start = self.start()
        far = np.where(np.abs(start) > _FARTHEST, start, 0.0)
        return np.minimum(far, 0.0) - _FARTHEST, np.maximum(far, 0.0) + _FARTHEST

    def _at_limit(self, part: np.ndarray) -> int:
        """How many stopped as far away as they are looked for."""
        low, high = self._reach()
        room = 1e-3 * _FARTHEST
        return int(np.count_nonzero((part <= low + room) | (part >= high - room)))

    def deviations(self, part: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
        """What `SimulatedDevice` takes."""
        found = {}
        for target in self.targets:
            shape = tuple(target.variable.shape)
            flat = np.zeros(math.prod(shape), target.variable.dtype)
            flat[self.slots] = self.std * part
            found[target.name, target.index] = flat.reshape(shape)
        return found

    def summary(self, part: np.ndarray) -> dict:
        rms = float(np.sqrt(np.mean(np.square(self.std * part)))) if part.size else 0.0
        return {
            "unit": self.unit,
            "prior": self.std,
            "unknowns": int(part.size),
            "at_limit": self._at_limit(part),
            "rms": rms,
        }


def unknowns_of(
    found: list[Quantity], prior: dict[str, float], every: list[Quantity]
) -> list[Unknown]:
    """Gathers targets into unknowns, one for all targets of a shared imperfection.

    Args:
        found: what is fitted.
        prior: checked numbers.
        every: all targets of the model, also of layers that are not measured.
    """
    together: dict[tuple, list[Quantity]] = {}
    for target in found:
        key = (target.name, None if target.shared else target.index)
        together.setdefault(key, []).append(target)
    unknowns = []
    for same in together.values():
        target = same[0]
        exists = True if target.mask is None else target.mask
        exists = np.broadcast_to(exists, tuple(target.variable.shape))
        unit = target.layer.quantity(target.name).unit
        sharing = [t for t in every if target.shared and t.name == target.name]
        std = _prior_of(sharing or same, prior) or _PRIORS.get(unit)
        if std is None:
            known = ", ".join(u for u in _PRIORS if u)
            raise ValueError(
                "`prior` must give a standard deviation for an imperfection whose "
                f"unit is none of {known}. Received: none for "
                f"'{target.layer.name}/{target.name}' in {unit}"
            )
        unknowns.append(Unknown(tuple(same), std, np.flatnonzero(exists)))
    return unknowns


def _prior_of(same: list[Quantity], prior: dict[str, float]) -> float | None:
    """The prior of an imperfection, which may be named by any layer that shares it."""
    found = [of_layer(prior, t.layer, t.name) for t in same]
    given = sorted({std for std in found if std is not None})
    if len(given) > 1:
        raise ValueError(
            f"`prior` must give one number for '{same[0].name}', which the layers "
            f"share. Received: {', '.join(f'{std:g}' for std in given)}"
        )
    return given[0] if given else None


def groups_of(measured, unknowns) -> list[tuple[list[Readings], list[Unknown]]]:
    """Layers that share an unknown, with all their unknowns."""
    groups: list[tuple[list[Readings], list[Unknown]]] = []
    for m in measured:
        mine = [u for u in unknowns if any(t.layer is m.layer for t in u.targets)]
        linked = [g for g in groups if any(u in g[1] for u in mine)]
        groups = [g for g in groups if g not in linked]
        layers = [*(la for g in linked for la in g[0]), m]
        shared = [*(u for g in linked for u in g[1]), *mine]
        groups.append((layers, list(dict.fromkeys(shared))))
    return groups


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
        """All imperfections of a layer, in the dtype of z."""
        values = {
            name: tf.cast(tf.convert_to_tensor(v), z.dtype)
            for name, v in layer.imperfections.items()
        }
        parts = tf.split(z, self._sizes)
        for unknown, part in zip(self._unknowns, parts, strict=True):
            for target in unknown.targets:
                if target.layer is layer:
                    shape = tuple(target.variable.shape)
                    flat = tf.scatter_nd(
                        unknown.slots[:, None], unknown.std * part, [math.prod(shape)]
                    )
                    values[target.name] = target.nominal + tf.reshape(flat, shape)
        return values

    def residuals(self, z: np.ndarray) -> dict[str, dict[str, float]]:
        """Layer → relative residuals of what was fitted and of what was held out."""
        return {part.measured.layer.name: part.residuals(z) for part in self._parts}

    def __call__(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """The sum and its gradient."""
        misfit, gradient = 0.0, z.copy()
        for part in self._parts:
            value, slope = part(z)
            misfit += value
            gradient += slope
        self.residual = self.noise * np.sqrt(2 * misfit / self._readings)
        loss = float(misfit + z @ z / 2)
        if not (np.isfinite(loss) and np.isfinite(gradient).all()):
            # Beyond what the layer can model: the search turns back.
            return _BEYOND, np.zeros_like(z)
        return loss, gradient

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """About the diagonal of the sum's Hessian at a point (Gauss–Newton)."""
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
        """Half the weighted sum of squares over what is fitted, and its gradient."""
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
        """The diagonal of JᵀJ, from random signs v: it is the mean of (Jᵀv)².

        The gradient of the misfit is Jᵀ times the differences, so that it is asked
        for at readings that differ from the model by v.
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


def search(
    problem: Problem, iterations: int, tolerance: float, verbose
) -> tuple[np.ndarray, int, bool]:
    """Minimises the sum, with a progress bar.

    Where the readings are not explained, the search has ended in a valley of its own.
    It then begins again from the start with readings that count little at first, so
    that the prior leads it past such valleys, and the better of both ends counts.

    Returns:
        (point, iterations, whether it converged).
    """
    if problem(problem.start)[0] == _BEYOND:
        raise ValueError(
            "The model's outputs must be finite at all settings of the controls, with "
            "its present imperfections; `spread` keeps controls nearer. Received: NaN "
            f"or infinity in {', '.join(problem.layers)}"
        )
    bar = progress_bar(iterations, "iteration", verbose, ["residual"])
    noise = problem.noise
    z, done, ended = _descent(problem, problem.start, iterations, tolerance, bar)
    loss = problem(z)[0]
    coarser = [n for n in _NOISES if n > 3 * noise]
    if coarser and problem.residual > _UNEXPLAINED * noise:
        other = problem.start
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
    """Goes down from a point; returns as `search`.

    L-BFGS takes every unknown for equally important, while a ring on its flank may
    count a thousand times as much as one far away. So it goes by variables that are
    scaled with the sum's curvature, which is looked up again on the way.
    """
    from scipy import optimize

    done = 0
    for end in (*(s for s in _STAGES if s > tolerance), tolerance):
        scale = 1 / np.sqrt(problem.curvature(z))
        result = optimize.minimize(
            lambda u, scale=scale: _scaled(problem, u, scale),
            z / scale,
            jac=True,
            method="L-BFGS-B",
            bounds=optimize.Bounds(*(problem.bounds / scale)),
            callback=lambda _: bar.add(1, [("residual", problem.residual)]),
            options={
                "maxiter": iterations - done,
                # A step takes one evaluation or two.
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


def _scaled(problem: Problem, u, scale) -> tuple[float, np.ndarray]:
    loss, gradient = problem(u * scale)
    return loss, gradient * scale


def progress_bar(total: int, unit: str, verbose, stateful=()) -> keras.utils.Progbar:
    return keras.utils.Progbar(
        total,
        verbose=0 if verbose in (0, "0") else 1,
        stateful_metrics=stateful,
        unit_name=unit,
    )


@contextlib.contextmanager
def unchanged(model) -> Iterator[None]:
    """Gives the variables of a model, seeds included, back as they were."""
    before = [(v, v.numpy()) for v in model.variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


# Precision: differences of a sum over many readings are lost in float32.


def _wide(values):
    values = tf.convert_to_tensor(values)
    if values.dtype.is_complex:
        return tf.cast(values, "complex128")
    return tf.cast(values, "float64") if values.dtype.is_floating else values


@contextlib.contextmanager
def in_float64(measured: list[Readings]) -> Iterator[None]:
    """Has the layers compute in float64, those whose `forward` takes such tensors."""
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
