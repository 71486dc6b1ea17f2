"""Search for the worst device within a radius; compute a study's default radii."""

import functools
import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _keras
from keras_pnn.curvature.batches import batches, mean
from keras_pnn.devices import SimulatedDevice
from keras_pnn.devices.evaluation import check_digital, check_nominal
from keras_pnn.devices.mapped import graph
from keras_pnn.layers.context import Overrides
from keras_pnn.layers.lookup import architecture, find_gradual
from keras_pnn.layers.quantity import Quantity
from keras_pnn.robustness.axes import Axis, DeviationAxis
from keras_pnn.robustness.points import Plan

# A step to a loss that is not finite is halved down to a thousandth of its length.
_HALVINGS = 10


def worst_device(
    model: keras.Model,
    x,
    y=None,
    radius: dict[str, float] | None = None,
    steps: int = 20,
    restarts: int = 3,
    batch_size: int = 256,
    sample_weight=None,
    seed: int = 0,
) -> tuple[SimulatedDevice, np.ndarray]:
    """Searches for the device on which the loss is largest.

    The worst of N random devices depends on N, and a device that deviates far in the
    one harmful direction is never drawn. Here the imperfections ascend the loss,

        d ← P(d + α R ∂L/∂d / ‖∂L/∂d‖₂),

    with R = radius × √elements, the length of a typical random device, α falling
    from 1/2 to 0, and P the projection on ‖d‖₂ ≤ R, for each named imperfection.
    The first ascent starts from the design, unless the loss has no slope there; the
    others start at random on the sphere. If the loss after a step is not finite, as
    beyond the range of a measured tuning curve, the step is halved until it is finite,
    or omitted. The result is a lower bound of the largest loss.

    Args:
        model: a compiled, built model.
        x, y, sample_weight: data, as in `evaluate`; a few hundred samples are enough.
        radius: imperfection → largest root mean square deviation over its elements, in
            its unit, for example its standard deviation in fabrication.
        steps: number of steps of each ascent.
        restarts: number of ascents.
        batch_size: samples per batch.
        seed: seed of the random starts.

    Returns:
        The device, and the losses (restarts, steps + 1) along the ascents.

    Raises:
        ValueError: If a radius is not positive, or its name matches no imperfection;
            the model is not compiled; a device measures the layers, or has set one of
            the imperfections; the loss of the design is not finite; or there are
            several batches and a layer with a state.

    Example:

    >>> device, losses = pnn.robustness.worst_device(
    ...     model, x[:500], y[:500], {"resonance_shift": 0.02, "temperature": 1.0}
    ... )
    >>> with device.installed(model):
    ...     model.evaluate(x_test, y_test)
    """
    search = WorstCaseSearch(model, x, y, radius or {}, batch_size, sample_weight)
    return search.run(steps, restarts, seed)


class WorstCaseSearch:
    """The search of `worst_device`, which can be repeated with one graph."""

    def __init__(
        self, model, x, y, radius: dict[str, float], batch_size=256, sample_weight=None
    ):
        _checks.compiled("model", model)
        if not radius:
            expected = "a dictionary of at least one imperfection and its radius"
            raise _checks.error("radius", expected, radius)
        self.radius = radius
        self._balls = [_Ball(model, name, size) for name, size in radius.items()]
        self._quantities = [q for ball in self._balls for q in ball.quantities]
        if len({id(q.variable) for q in self._quantities}) < len(self._quantities):
            expected = "given once for each imperfection"
            raise _checks.error("radius", expected, f"one twice in {list(radius)}")
        self._model = model
        self._batches = batches(x, y, sample_weight, batch_size)[0]
        self._handing: list[str] = []
        self._step = graph(self._batch, reduce_retracing=True)

    def run(
        self, steps: int = 20, restarts: int = 3, seed: int = 0
    ) -> tuple[SimulatedDevice, np.ndarray]:
        """Returns the worst device and the losses; see `worst_device`."""
        steps = _checks.integer("steps", steps, 1)
        restarts = _checks.integer("restarts", restarts, 1)
        check_digital("The worst device must be searched")
        check_nominal(self._quantities)
        generator = np.random.default_rng(seed)
        design = self._at([np.zeros(tuple(q.variable.shape)) for q in self._quantities])
        if not math.isfinite(design.loss):
            raise ValueError(
                "The loss of `model` must be finite on `x` and `y`, without "
                f"imperfections in {list(self.radius)}. Received: {design.loss}"
            )
        worst, losses = design, np.empty((restarts, steps + 1))
        for restart in range(restarts):
            now = design
            # A network that fits its data has no slope at its design.
            if restart or not any(np.any(part) for part in design.slope):
                drawn = [generator.standard_normal(part.shape) for part in now.parts]
                now = self._stepped(now, drawn, 1.0)
            for step in range(steps + 1):
                losses[restart, step] = now.loss
                worst = now if now.loss > worst.loss else worst
                if step < steps:
                    now = self._stepped(now, now.slope, 0.5 * (1 - step / steps))
        return self._device(worst.parts), losses

    def _stepped(self, now: "_Place", direction: list, share: float) -> "_Place":
        """Returns the place after a step of a share of each radius.

        If the loss is not finite there, returns a place on the way back.
        """
        parts = []
        for ball in self._balls:
            mine = slice(len(parts), len(parts) + len(ball.quantities))
            parts += ball.moved(now.parts[mine], direction[mine], share)
        for _ in range(_HALVINGS):
            place = self._at(parts)
            if math.isfinite(place.loss):
                return place
            # Halfway between two places within the radius is within it, too.
            parts = [(p + q) / 2 for p, q in zip(now.parts, parts, strict=True)]
        return now

    def _at(self, parts: list[np.ndarray]) -> "_Place":
        """Returns the loss and its slope at some deviations, over all batches."""
        tensors = [
            tf.constant(part, q.variable.dtype)
            for part, q in zip(parts, self._quantities, strict=True)
        ]
        step = functools.partial(self._step, tensors)
        (loss, *slope), _ = mean(self._batches, step, lambda: self._handing)
        # A slope that is not finite, such as a square root's at 0, has no direction.
        slope = [np.where(np.isfinite(part), part, 0.0) for part in slope]
        return _Place(parts, float(loss), slope)

    def _batch(self, deviations, x, y, sample_weight):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(deviations)
            pairs = zip(self._quantities, deviations, strict=True)
            values = Overrides((q.variable, q.value(d)) for q, d in pairs)
            with values.scope(self._model) as scope:
                outputs = self._model(x, training=False)
                loss = _keras.compute_loss(
                    self._model, x, y, outputs, sample_weight, training=False
                )
                loss = _keras.reported(loss)
        scope.check_unassigned(values, "the search")
        self._handing = scope.handing()
        zero = tf.UnconnectedGradients.ZERO
        return loss, *tape.gradient(loss, deviations, unconnected_gradients=zero)

    def _device(self, parts: list[np.ndarray]) -> SimulatedDevice:
        # NumPy has no bfloat16.
        arrays = {
            (q.name, q.index): part.astype(
                "float64" if q.variable.dtype == "float64" else "float32"
            )
            for q, part in zip(self._quantities, parts, strict=True)
        }
        shapes = architecture(self._model, {q.name for q in self._quantities})
        return SimulatedDevice(arrays, shapes, "worst within the radius")


class _Place(NamedTuple):
    """Deviations, and the loss with its slope there."""

    parts: list[np.ndarray]
    loss: float
    slope: list[np.ndarray]


class _Ball:
    """The deviations of one imperfection whose root mean square is within a radius."""

    def __init__(self, model: keras.Model, name: str, radius: float):
        self.quantities = find_gradual(model, name)
        first = self.quantities[0]
        value = _checks.real(f"radius[{name!r}]", radius, above=0)
        if first.convert is not None:
            # The value of an alias, such as a power imbalance, as one of the variable.
            value = abs(float(np.asarray(first.convert(value))))
        self._shared = first.shared
        elements = sum(int(np.sum(q.exists)) for q in self._counted(self.quantities))
        # The largest length of all deviations together.
        self._bound = value * math.sqrt(elements)

    def moved(self, parts: list, gradients: list, share: float) -> list[np.ndarray]:
        """Returns deviations after a step along the gradients, within the ball."""
        pairs = zip(self.quantities, gradients, strict=True)
        steps = [np.where(q.exists, gradient, 0.0) for q, gradient in pairs]
        if self._shared:
            # One value for the chip: its slope is the sum over the layers.
            steps = [np.sum(steps, axis=0)] * len(steps)
        length = self._length(steps)
        if length:
            steps = [step / length for step in steps]
        far = share * self._bound
        parts = [part + far * step for part, step in zip(parts, steps, strict=True)]
        length = self._length(parts)
        if length > self._bound:
            parts = [part * (self._bound / length) for part in parts]
        pairs = zip(self.quantities, parts, strict=True)
        return [np.clip(part, *(0.999 * room for room in q.room)) for q, part in pairs]

    def _length(self, parts: list[np.ndarray]) -> float:
        squares = (float(np.sum(np.square(p))) for p in self._counted(parts))
        return math.sqrt(sum(squares))

    def _counted(self, parts: list) -> list:
        # An imperfection that all layers share counts once.
        return parts[:1] if self._shared else parts


def default_radius(plan: Plan) -> dict[str, float]:
    """Returns imperfection → default radius of the search.

    It is the devices' spread. For variables without one, it is the first step of an
    axis away from the design (a sweep often ends where every model fails), or the
    largest of several axes. A name includes the layer if the radii of layers differ.
    """

    def gradual(name: str) -> list[Quantity]:
        # A control is stuck or not, so there is no gradient.
        found = plan.imperfections(name)
        return [] if any(q.holds for q in found) else found

    radius = {name: reach for name, reach in plan.spread().items() if gradual(name)}
    # (layer, imperfection) → reach; the layer "" stands for all.
    reaches: dict[tuple[str, str], float] = {}
    for axis in (axis for axes in plan.scans.values() for axis in axes):
        # A weight is not an imperfection.
        found = isinstance(axis, DeviationAxis) and gradual(axis.name)
        if found:
            key = axis.name.rpartition("/")[0], found[0].name
            reaches[key] = max(reaches.get(key, 0.0), _reach(axis, found))
    for name in dict.fromkeys(name for _, name in reaches):
        every = plan.imperfections(name)
        free = [q for q in every if not {q.name, q.path} & radius.keys()]
        common = reaches.get(("", name), 0.0)
        layers = {
            q.path: max(common, reaches.get((q.layer.name, name), 0.0)) for q in free
        }
        if len(free) == len(every) and set(layers.values()) == {common}:
            layers = {name: common}
        radius |= {path: reach for path, reach in layers.items() if reach}
    return radius


def _reach(axis: Axis, found: list[Quantity]) -> float:
    """Returns the smallest root mean square over elements of an axis' nonzero points.

    It is in the unit of the variables, to which an alias's values are converted.
    """
    sizes = []
    for point in axis.values:
        elements = []
        for quantity in found:
            amounts = np.broadcast_to(point, quantity.exists.shape)
            if quantity.convert is not None:
                amounts = np.asarray(quantity.convert(amounts), "float64")
            elements.append(amounts[quantity.exists])
        values = np.concatenate(elements)
        if largest := float(np.abs(values).max(initial=0.0)):
            # Relative to the largest, so that equal values give exactly their value.
            sizes.append(largest * math.sqrt(np.mean(np.square(values / largest))))
    return min(sizes, default=0.0)
