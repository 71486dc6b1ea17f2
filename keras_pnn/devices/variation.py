"""Draw devices from the statistics of a fabrication run."""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn._signatures import Configured
from keras_pnn.devices.draws import folded, standard_normal, uniform_numbers
from keras_pnn.devices.named import Deviations
from keras_pnn.devices.simulated import DeviceSet, SimulatedDevice
from keras_pnn.devices.stuck import Stuck
from keras_pnn.layers.lookup import architecture, find
from keras_pnn.layers.quantity import Quantity


@keras.saving.register_keras_serializable(package="keras_pnn")
class Correlated(Configured):
    """Gaussian deviations that are correlated between neighbouring rings.

    The last axis of a variable counts bank rows, the others, flattened, the columns
    of the bank. Two rings at distances Δr and Δc on this grid have the correlation
    exp(−Δr / length) · exp(−Δc / length).

    Args:
        std: standard deviation, in the imperfection's unit.
        length: correlation length, in ring pitches.

    Raises:
        ValueError: If `std` is negative or `length` is not positive.

    Example:

    >>> wafer = pnn.Variation(resonance_shift=pnn.Correlated(std=0.08, length=8))
    >>> devices = wafer.sample(model, 4, seed=0)
    """

    def __init__(self, std: float, length: float):
        self.std = _checks.real("std", std, low=0)
        self.length = _checks.real("length", length, above=0)

    def draw(self, shape: tuple[int, ...], seed, dtype):
        """Returns one draw in the given shape, a pure function of the seed."""
        columns, rows = math.prod(shape[:-1]), shape[-1] if shape else 1
        noise = standard_normal((columns, rows), seed, dtype)
        left, right = (tf.cast(self._factor(n), dtype) for n in (columns, rows))
        field = tf.matmul(left, tf.matmul(noise, right, transpose_b=True))
        return tf.reshape(self.std * field, shape)

    def _factor(self, n: int) -> np.ndarray:
        # The Cholesky factor in closed form: the correlation is that of an AR(1)
        # process, and numerically singular where `length` is large.
        steps = np.subtract.outer(np.arange(n), np.arange(n))
        factor = np.tril(np.exp(-np.maximum(steps, 0) / self.length))
        factor[:, 1:] *= np.sqrt(-np.expm1(-2 / self.length))
        return factor

    def __repr__(self):
        # To the last digit: the digest of a study depends on it.
        return f"Correlated(std={self.std!r}, length={self.length!r})"


# Added to the error for a draw beyond the bound of an imperfection.
_WAY_OUT = (
    "Draw from a distribution that ends before, such as TFP's TruncatedNormal, or "
    "give a smaller standard deviation. "
)


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """The draws of a distribution, times a factor."""

    spread: object
    factor: float


@keras.saving.register_keras_serializable(package="keras_pnn")
class Variation:
    """Statistics of imperfections, from which devices are drawn.

    Args:
        **spreads: for each imperfection (`resonance_shift`) a standard deviation in
            its unit, a TFP distribution, or `Correlated(std, length)`; and `stuck`, a
            `Stuck(probability, at)`, for controls that cannot be set. Every layer
            has its own draws, except for an imperfection that the chip shares
            (`temperature`). The name of a weight (`kernel`) adds the draw to
            the weight. `splitter_imbalance` draws the power imbalance of splitters
            and sets their angles. Address one layer by a dictionary:
            `Variation({"mrr_bank_1/resonance_shift": 0.08})`.

    Draws are pure functions of seed and model: the same in eager mode, in graphs,
    under XLA and on other machines, up to rounding. Only a TFP distribution without a
    quantile function is drawn differently under XLA: training with it and
    `jit_compile=True` raises an error.

    `sample` raises if a draw lies beyond an imperfection's bound (a scale below 0).
    Training with noise draws inside a graph, where such a draw gives NaN.

    Raises:
        ValueError: If there is no imperfection, or a standard deviation is negative or
            not finite.

    Example:

    >>> variation = pnn.Variation(resonance_shift=0.08)         # nm
    >>> devices = variation.sample(model, 32, seed=0)
    >>> with devices[0].installed(model):
    ...     model.evaluate(x_test, y_test)
    """

    def __init__(self, spreads: dict | None = None, /, **named):
        self.spreads = {**(spreads or {}), **named}
        if not self.spreads:
            raise ValueError(
                "`Variation` needs at least one imperfection, such as "
                "resonance_shift=0.08. Received: nothing"
            )
        for name, spread in self.spreads.items():
            if (name.rpartition("/")[2] == "stuck") != isinstance(spread, Stuck):
                expected = "a `Stuck`, which no other name takes, for controls"
                raise _checks.error("stuck", expected, f"{name}={spread!r}")
            if isinstance(spread, int | float | np.number):
                self.spreads[name] = _checks.real(name, spread, low=0)
            elif not (
                isinstance(spread, _Scaled | Stuck)
                or hasattr(spread, "draw")
                or hasattr(spread, "sample")
            ):
                expected = "a standard deviation, a TFP distribution or `Correlated`"
                raise _checks.error(name, expected, repr(spread))

    @property
    def without_quantile(self) -> list[str]:
        """The names whose spread is a TFP distribution without a quantile function."""
        return [name for name, s in self.spreads.items() if not _has_quantile(s)]

    def quantities(self, model: keras.layers.Layer) -> list[Quantity]:
        """Returns the quantities of a model that deviate."""
        return [quantity for quantity, _ in self._plan(model)]

    def _plan(self, model) -> list[tuple[Quantity, object]]:
        """(quantity, spread) pairs; a name with a layer wins over one without."""
        plan: dict[int, tuple[Quantity, str]] = {}
        for name in sorted(self.spreads, key=lambda n: "/" in n):
            for quantity in find(model, name, weights=True):
                _, other = plan.get(id(quantity.variable), (None, None))
                if other is not None and ("/" in other) == ("/" in name):
                    raise ValueError(
                        "An imperfection must be given once. Received: "
                        f"{other!r} and {name!r}, which both set it in layer "
                        f"'{quantity.layer.name}'"
                    )
                plan[id(quantity.variable)] = quantity, name
        pairs = [(quantity, self.spreads[name]) for quantity, name in plan.values()]
        for quantity, spread in pairs:
            if quantity.holds and not isinstance(spread, Stuck):
                expected = "given by `stuck=Stuck(…)`, which draws it"
                raise _checks.error(quantity.path, expected, repr(spread))
        return pairs

    def deviations(self, model: keras.layers.Layer, seed):
        """Draws one device, inside or outside a graph.

        Returns a list of (`Quantity`, deviation tensor) pairs. The seed is a tensor or
        a sequence of two integers.
        """
        drawn = []
        for quantity, spread in self._plan(model):
            index = 0 if quantity.shared else quantity.index
            own = folded(seed, quantity.name, index)
            drawn.append((quantity, quantity.deviation(_draw(quantity, spread, own))))
        return drawn

    def drawn(self, model: keras.layers.Layer, seed) -> Deviations:
        """Draws one device outside a graph, as arrays.

        Raises:
            ValueError: If a draw lies beyond an imperfection's bound.
        """
        arrays: Deviations = {}
        for quantity, deviation in self.deviations(model, seed):
            array = arrays[quantity.name, quantity.index] = deviation.numpy()
            quantity.check(array, _WAY_OUT)
        return arrays

    def values(self, model: keras.layers.Layer, seed):
        """Draws one device on top of the present values of the model's variables.

        Returns (variable, value) pairs.
        """
        return [(q.variable, q.added(d)) for q, d in self.deviations(model, seed)]

    def sample(self, model: keras.layers.Layer, n: int, seed: int = 0) -> DeviceSet:
        """Draws devices.

        Args:
            model: a built model, wrapped or not.
            n: number of devices.
            seed: device i of a seed is the same for any `n`, and for every model of an
                architecture.

        Raises:
            ValueError: If a name matches nothing in the model, if `n` is below 1, or
                if a draw lies beyond an imperfection's bound (a scale below 0).
        """
        n, seed = _checks.integer("n", n, 1), _checks.integer("seed", seed, 0)
        shapes = architecture(model, [q.name for q, _ in self._plan(model)])
        drawn = (self.drawn(model, (seed, i)) for i in range(n))
        return DeviceSet(
            SimulatedDevice(arrays, shapes, f"seed {seed}, device {i}")
            for i, arrays in enumerate(drawn)
        )

    def scaled(self, factor: float) -> "Variation":
        """Returns a variation whose draws are `factor` times those of this one.

        The same seed gives the same devices up to the factor. `Stuck` scales its
        probability.

        Raises:
            ValueError: If the factor is negative or not finite.
        """
        factor = _checks.real("factor", factor, low=0)

        def times(spread):
            if isinstance(spread, float):
                return factor * spread
            if isinstance(spread, Correlated):
                return Correlated(factor * spread.std, spread.length)
            if isinstance(spread, Stuck):
                return Stuck(min(1.0, factor * spread.probability), spread.at)
            return _Scaled(spread, factor)

        return Variation({name: times(s) for name, s in self.spreads.items()})

    def get_config(self) -> dict:
        for name, spread in self.spreads.items():
            if not isinstance(spread, float | Correlated | Stuck):
                raise ValueError(
                    "A Variation is saved with standard deviations, `Correlated` and "
                    "`Stuck`; pass other distributions again after loading. "
                    f"Received: {name}={spread!r}"
                )
        serialize = keras.saving.serialize_keras_object
        return {"spreads": {n: serialize(s) for n, s in self.spreads.items()}}

    @classmethod
    def from_config(cls, config):
        load = keras.saving.deserialize_keras_object
        return cls({n: load(s) for n, s in config["spreads"].items()})

    def __repr__(self):
        inner = ", ".join(f"{n}={s!r}" for n, s in self.spreads.items())
        return f"Variation({inner})"


def _has_quantile(distribution) -> bool:
    """Tells whether draws are the same under XLA; TFP's are only by quantile."""
    if isinstance(distribution, _Scaled):
        return _has_quantile(distribution.spread)
    if isinstance(distribution, float | Stuck) or hasattr(distribution, "draw"):
        return True
    if tuple(distribution.event_shape) or not distribution.dtype.is_floating:
        return False
    try:
        distribution.quantile(tf.constant(0.5, distribution.dtype))
    except (NotImplementedError, AttributeError):
        return False
    return True


def _draw(quantity: Quantity, spread, seed):
    if isinstance(spread, _Scaled):
        return spread.factor * _draw(quantity, spread.spread, seed)
    if isinstance(spread, Stuck):
        return spread.draw_for(quantity, seed)
    shape, dtype = tuple(quantity.variable.shape), quantity.variable.dtype
    if isinstance(spread, float):
        return spread * standard_normal(shape, seed, dtype)
    if hasattr(spread, "draw"):
        return spread.draw(shape, seed, dtype)
    own = tuple(spread.batch_shape) + tuple(spread.event_shape)
    extra = shape[: len(shape) - len(own)]
    if _has_quantile(spread):
        uniform = uniform_numbers((*extra, *own), seed)
        sample = spread.quantile(tf.cast(uniform, spread.dtype))
    else:
        sample = spread.sample(extra, seed=seed)
    sample = tf.cast(sample, dtype)
    if tuple(sample.shape) != shape:
        raise ValueError(
            f"The distribution of `{quantity.name}` must have a shape that ends the "
            f"variable's shape {shape}. Received: {own}"
        )
    return sample
