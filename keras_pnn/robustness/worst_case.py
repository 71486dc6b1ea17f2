"""The worst device inside a radius, by gradient ascent over its imperfections."""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.curvature.batches import batch_length, batches
from keras_pnn.devices.simulated import SimulatedDevice
from keras_pnn.layers.context import Overrides, current
from keras_pnn.layers.lookup import architecture, find
from keras_pnn.layers.quantity import Quantity

# A step into a wall is tried down to a thousandth of its length.
HALVINGS = 10


@dataclasses.dataclass(frozen=True)
class Ball:
    """The deviations of one imperfection whose root mean square is at most a radius.

    Args:
        name: the imperfection, as the user named it.
        targets: the variables it addresses.
        radius: in the variables' unit.
        bound: the largest length of all deviations together, radius × √elements.
    """

    name: str
    targets: tuple[Quantity, ...]
    radius: float
    bound: float

    def length(self, parts: list[np.ndarray]) -> float:
        """The length of the deviations; one that all layers share counts once."""
        parts = parts[:1] if self.targets[0].shared else parts
        return math.sqrt(sum(float(np.sum(np.square(p))) for p in parts))

    def direction(self, gradients: list[np.ndarray]) -> list[np.ndarray]:
        """The unit vector along the gradients; zero where they are."""
        parts = [
            np.where(existing(t), g, 0.0)
            for t, g in zip(self.targets, gradients, strict=True)
        ]
        if self.targets[0].shared:
            # One value for the chip: its slope is the sum of those of the layers.
            parts = [np.sum(parts, axis=0)] * len(parts)
        length = self.length(parts)
        return [p / length if length else p for p in parts]

    def inside(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """The nearest deviations within the radius, and within what exists."""
        length = self.length(parts)
        if length > self.bound:
            parts = [p * (self.bound / length) for p in parts]
        return [
            p
            if t.lower_bound is None
            else np.maximum(p, 0.999 * (t.lower_bound - t.nominal))
            for t, p in zip(self.targets, parts, strict=True)
        ]


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

    The worst of N random devices depends on N, and a device that is far off in the
    one direction that hurts is never drawn. Here the imperfections climb the loss,

        d ← P(d + α R ∂L/∂d / ‖∂L/∂d‖₂),

    with R = radius × √elements, the length of a typical random device, α falling
    from 1/2 to 0, and P the projection on ‖d‖₂ ≤ R for each imperfection by its name.
    The first ascent starts from the design, unless the loss has no slope there, the
    others at random on the sphere. A step to where the loss is not finite, as beyond
    the range of a measured tuning curve, is halved until it is, or not made at all.
    What it finds is a lower bound of the largest loss.

    Args:
        model: a compiled, built model.
        x, y, sample_weight: data, as in `evaluate`; a few hundred samples are enough.
        radius: imperfection → root mean square of its deviation over its elements, in
            its unit: a standard deviation allows as much as it takes to fabricate.
        steps: of each ascent.
        restarts: how many ascents.
        batch_size: samples at once.
        seed: of the starts.

    Returns:
        The device, and the losses (restarts, steps + 1) along the ascents.

    Raises:
        ValueError: a radius is not positive, or its name matches no imperfection; the
            model is not compiled; a device measures the layers; the loss of the design
            is not finite.

    Example:

    >>> device, losses = pnn.robustness.worst_device(
    ...     model, x[:500], y[:500], {"resonance_shift": 0.02, "temperature": 1.0}
    ... )
    >>> with device.installed(model):
    ...     model.evaluate(x_test, y_test)
    """
    if not getattr(model, "compiled", False):
        raise ValueError(
            f"`model` must be compiled, since its loss climbs. Received: {model}"
        )
    if current().substitute is not None:
        raise ValueError(
            "The worst device is searched with the model's derivatives: call it "
            "outside `device.installed(model)`. Received: layers that a device measures"
        )
    for name, value in (("steps", steps), ("restarts", restarts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"`{name}` must be a positive integer. Received: {value!r}"
            )
    balls = balls_of(model, radius or {})
    if not balls:
        raise ValueError(
            "`radius` must name at least one imperfection, such as "
            f"{{'temperature': 1.0}}. Received: {radius!r}"
        )
    targets = [t for ball in balls for t in ball.targets]
    slope = _Slope(model, targets, batches(x, y, sample_weight, batch_size)[0])
    generator = np.random.default_rng(seed)
    design = _Place.of(slope, [np.zeros(tuple(t.variable.shape)) for t in targets])
    if not math.isfinite(design.loss):
        raise ValueError(
            "The loss of `model` must be finite on `x` and `y`, without imperfections "
            f"in {list(radius)}. Received: {design.loss}"
        )
    worst = design
    losses = np.empty((restarts, steps + 1))
    for restart in range(restarts):
        now = design
        # A network that fits its data has no slope at its design.
        if restart or not any(np.any(part) for part in design.gradients):
            drawn = [generator.standard_normal(part.shape) for part in now.parts]
            now = _stepped(slope, now, _moved(balls, now.parts, drawn, 1.0))
        for step, place in enumerate(_ascent(slope, balls, now, steps)):
            losses[restart, step] = place.loss
            worst = place if place.loss > worst.loss else worst
    keys = [(t.name, t.index) for t in targets]
    arrays = {
        key: part.astype(_numpy_dtype(t.variable))
        for key, part, t in zip(keys, worst.parts, targets, strict=True)
    }
    shapes = architecture(model, {name for name, _ in keys})
    return SimulatedDevice(arrays, shapes, "worst within the radius"), losses


def balls_of(model: keras.layers.Layer, radius: dict[str, float]) -> list[Ball]:
    """Returns what the search may move, as in `worst_device`.

    Raises:
        ValueError: a radius is not positive, a name matches no imperfection, or two
            names match the same.
    """
    balls = [_ball(model, name, r) for name, r in radius.items()]
    seen = set()
    for target in (t for ball in balls for t in ball.targets):
        if id(target.variable) in seen:
            raise ValueError(
                "A radius must be given once for each imperfection. Received: "
                f"{list(radius)}, which name {target.layer.name}/{target.name} twice"
            )
        seen.add(id(target.variable))
    return balls


class _Slope:
    """Loss and its derivatives in the deviations, over all batches."""

    def __init__(self, model, targets, passes):
        self.model, self.targets, self.passes = model, targets, passes
        self._step = tf.function(self._batch, autograph=False, reduce_retracing=True)

    def __call__(self, deviations) -> tuple[float, list[np.ndarray]]:
        tensors = [
            tf.constant(d, t.variable.dtype)
            for d, t in zip(deviations, self.targets, strict=True)
        ]
        loss, samples = 0.0, 0
        gradients = [np.zeros(d.shape) for d in deviations]
        for x, y, sample_weight in self.passes():
            size = batch_length(x)
            value, parts = self._step(tensors, x, y, sample_weight)
            loss, samples = loss + size * float(value), samples + size
            for total, part in zip(gradients, parts, strict=True):
                total += size * part.numpy().astype("float64")
        # A slope that is not finite, as that of a square root at 0, has no direction.
        return loss / samples, [np.where(np.isfinite(g), g, 0.0) for g in gradients]

    def _batch(self, deviations, x, y, sample_weight):
        pairs = list(zip(self.targets, deviations, strict=True))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(deviations)
            values = [(t.variable, t.value(d)) for t, d in pairs]
            with Overrides(values).scope(self.model):
                outputs = self.model(x, training=False)
                loss = self.model._compute_loss(
                    x=x,
                    y=y,
                    y_pred=outputs,
                    sample_weight=sample_weight,
                    training=False,
                )
        zero = tf.UnconnectedGradients.ZERO
        return loss, tape.gradient(loss, deviations, unconnected_gradients=zero)


@dataclasses.dataclass(frozen=True, eq=False)
class _Place:
    """Deviations, and the loss with its slope there."""

    parts: list[np.ndarray]
    loss: float
    gradients: list[np.ndarray]

    @classmethod
    def of(cls, slope: _Slope, parts: list[np.ndarray]) -> "_Place":
        return cls(parts, *slope(parts))


def _ascent(slope: _Slope, balls: list[Ball], start: _Place, steps: int):
    """Yields the places of one ascent, `steps` after its start."""
    now = start
    yield now
    for step in range(steps):
        share = 0.5 * (1 - step / steps)
        now = _stepped(slope, now, _moved(balls, now.parts, now.gradients, share))
        yield now


def _stepped(slope: _Slope, now: _Place, parts: list[np.ndarray]) -> _Place:
    """The place at `parts`, or on the way back from there where the loss is finite."""
    for _ in range(HALVINGS):
        place = _Place.of(slope, parts)
        if math.isfinite(place.loss):
            return place
        # Between two places within the radius, and so within it.
        parts = [(p + q) / 2 for p, q in zip(now.parts, parts, strict=True)]
    return now


def _ball(model, name: str, radius) -> Ball:
    found = [t for t in find(model, name, weights=True) if t.nominal is not None]
    if not found:
        raise ValueError(
            f"`radius` must name imperfections. Received: {name!r}, a weight"
        )
    number = isinstance(radius, int | float | np.number) and not isinstance(
        radius, bool
    )
    if not (number and math.isfinite(radius) and radius > 0):
        raise ValueError(
            f"`radius[{name!r}]` must be a positive number. Received: {radius!r}"
        )
    value = float(radius)
    if found[0].convert is not None:
        # A power imbalance, as the angle that makes it.
        value = abs(float(np.asarray(found[0].convert(value))))
    counted = found[:1] if found[0].shared else found
    elements = sum(int(np.sum(existing(t))) for t in counted)
    return Ball(name, tuple(found), value, value * math.sqrt(elements))


def _moved(balls, now, gradients, share: float) -> list[np.ndarray]:
    """Each ball's deviations after a step of `share` of its radius."""
    moved, start = [], 0
    for ball in balls:
        mine = slice(start, start + len(ball.targets))
        start = mine.stop
        steps = ball.direction(gradients[mine])
        pairs = zip(now[mine], steps, strict=True)
        moved += ball.inside([d + share * ball.bound * u for d, u in pairs])
    return moved


def existing(target: Quantity) -> np.ndarray:
    """Returns which elements of a variable the hardware has, in its shape."""
    shape = tuple(target.variable.shape)
    exists = True if target.mask is None else target.mask
    return np.broadcast_to(exists, shape)


def _numpy_dtype(variable) -> str:
    # NumPy has no bfloat16.
    return "float64" if variable.dtype == "float64" else "float32"
