"""What a device is asked for a calibration, and what it answers."""

import copy
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from keras_pnn.layers.limits import ControlRange
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.layers.ring_layer import RingLayer


def reader(device, model) -> Callable:
    """How a device is read: NumPy in and out, `None` where it lacks the layer."""
    if hasattr(device, "acquire"):
        names = getattr(device, "layers", None)
        if hasattr(device, "attach"):
            device.attach(model)

        def acquire(layer, inputs, controls):
            if names is not None and layer.name not in names:
                return None
            return device.acquire(layer, inputs, controls)

        return acquire
    if not callable(getattr(device, "measure", None)):
        raise ValueError(
            "`device` must have `measure(layer, inputs, controls)`. "
            f"Received: {device!r}"
        )
    if hasattr(device, "attach"):
        # A copy, since the device may be attached to another model.
        device = copy.copy(device).attach(model)

    def measure(layer, inputs, controls):
        controls = {n: tf.convert_to_tensor(c) for n, c in controls.items()}
        outputs = device.measure(layer, tf.convert_to_tensor(inputs), controls)
        return None if outputs is None else np.asarray(outputs)

    return measure


class Recorder:
    """Runs a model on the device, and keeps what each layer was given."""

    def __init__(self, read: Callable):
        self._read = read
        self._inputs: dict[int, list[np.ndarray]] = {}
        self._outputs: dict[int, tf.TensorSpec] = {}

    def measure_in_graph(self, layer, inputs, controls, modelled):
        inputs = np.asarray(inputs)
        controls = {name: np.asarray(c) for name, c in controls.items()}
        outputs = self._read(layer, inputs, controls)
        if outputs is None:
            return None
        self._inputs.setdefault(id(layer), []).append(inputs)
        expected = tf.TensorSpec(modelled.shape, modelled.dtype)
        self._outputs.setdefault(id(layer), expected)
        return tf.convert_to_tensor(checked(layer, outputs, expected))

    def __contains__(self, layer: PhysicalLayer) -> bool:
        return id(layer) in self._inputs

    def seen(self, layer: PhysicalLayer) -> tuple[np.ndarray, tf.TensorSpec]:
        """The layer's inputs, over all its calls, and what an output is like."""
        first, *others = self._inputs[id(layer)]
        # Where images of several sizes pass, those of the first size.
        alike = [a for a in others if a.shape[1:] == first.shape[1:]]
        return np.concatenate([first, *alike]), self._outputs[id(layer)]


def checked(layer, outputs, expected: tf.TensorSpec) -> np.ndarray:
    """A reading in the dtype of the layer's outputs."""
    outputs = np.asarray(outputs)
    shape = tuple(expected.shape)
    # An amplitude is no field: its phase would count as 0.
    other_kind = (outputs.dtype.kind == "c") != expected.dtype.is_complex
    if outputs.shape != shape or outputs.dtype.kind not in "fciuV" or other_kind:
        raise ValueError(
            f"The device's outputs of layer '{layer.name}' must have the shape {shape} "
            f"and fit the dtype {expected.dtype.name}. "
            f"Received: shape {outputs.shape}, dtype {outputs.dtype}"
        )
    outputs = outputs.astype(expected.dtype.as_numpy_dtype)
    if not np.isfinite(outputs).all():
        raise ValueError(
            f"The device's outputs of layer '{layer.name}' must be finite. Received: "
            f"{np.count_nonzero(~np.isfinite(outputs))} of {outputs.size} are not"
        )
    return outputs


def probes_like(own: np.ndarray, n: int, rng) -> np.ndarray:
    """Random inputs, none beyond what the layer's own inputs reach."""
    shape = (n, *own.shape[1:])
    if own.dtype.kind == "c":
        amplitude = np.abs(own).max() * np.sqrt(rng.uniform(size=shape))
        values = amplitude * np.exp(2j * np.pi * rng.uniform(size=shape))
    else:
        # bfloat16 does not subtract in NumPy's generators.
        values = rng.uniform(float(own.min()), float(own.max()), shape)
    return values.astype(own.dtype)


def settings_of(layer, n: int, spread: dict, rng) -> list[dict[str, np.ndarray]]:
    """The present controls and n − 1 random ones."""
    present = {name: np.asarray(v) for name, v in layer.controls.items()}
    drawn = [
        {name: _drawn_control(layer, name, spread, rng) for name in present}
        for _ in range(n - 1)
    ]
    return [present, *drawn]


def _drawn_control(layer, name: str, spread: dict, rng) -> np.ndarray:
    """Random values of a control, as its hardware and its constraint allow."""
    quantity = layer.quantity(name)
    limits = quantity.variable.constraint
    present = np.asarray(quantity.variable)
    step = of_layer(spread, layer, name)
    if step == 0:
        return present
    bounded = isinstance(limits, ControlRange) and limits.high is not None
    if step is None and isinstance(layer, RingLayer):
        value = _ring_controls(layer.tuning, limits, present.shape, rng)
    elif step is None and bounded:
        value = rng.uniform(limits.low, limits.high, present.shape)
    else:
        step = _usual_step(layer, name, present) if step is None else step
        value = present + step * rng.uniform(-1, 1, present.shape)
    value = np.asarray(value).astype(present.dtype)
    if limits is not None:
        value = np.asarray(limits(tf.convert_to_tensor(value)))
    exists = True if quantity.mask is None else quantity.mask
    return np.where(exists, value, present)


def _ring_controls(tuning, limits, shape: tuple, rng) -> np.ndarray:
    """Random controls that take rings through their resonance.

    Even in nm, on both flanks where the control reaches both: from one flank alone, a
    ring that is shifted by its width looks like one that is shifted less. Where the
    weight is within 5 % of an end of its range it hardly depends on the ring.
    """
    low, high = tuning.weight_range
    ends = np.array([0.95 * low + 0.05 * high, 0.05 * low + 0.95 * high])
    near, far = np.sort(tuning.control(tuning.clip(ends)))
    first, last = (float(tuning.heater_shift(c)) for c in (near, far))
    least, most = tuning.control_range
    if isinstance(limits, ControlRange):
        least = max(least, limits.low)
        most = most if limits.high is None else min(most, limits.high)
    end = min(max(far, least, 1e-3), most)
    while end < most and float(tuning.heater_shift(end)) < 2 * last - first:
        end = min(1.1 * end, most)
    grid = np.linspace(least, end, 4097)
    weight = np.asarray(tuning.weight(grid))
    used = (weight >= ends[0]) & (weight <= ends[1])
    steps = np.diff(np.asarray(tuning.heater_shift(grid))) * used[1:]
    if not steps.any():
        return rng.uniform(least, end, shape)
    reached = np.concatenate([[0.0], np.cumsum(steps)])
    return np.interp(rng.uniform(0, reached[-1], shape), reached, grid)


def _usual_step(layer, name: str, present: np.ndarray) -> float:
    unit = layer.quantity(name).unit
    if unit == "rad":
        return np.pi
    rms = float(np.sqrt(np.mean(np.square(present))))
    if rms == 0:
        raise ValueError(
            f"`spread` must say how far '{layer.name}/{name}' may be moved: all of it "
            f"is 0 at present, and it has no limits. Received: none, in {unit or '1'}"
        )
    return rms


@dataclasses.dataclass(frozen=True, eq=False)
class Readings:
    """What one layer was given and gave, at each setting of its controls."""

    layer: PhysicalLayer
    inputs: np.ndarray  # (samples, …), the same at all settings
    controls: list[dict[str, np.ndarray]]
    outputs: np.ndarray  # (settings, samples, …)
    fit: np.ndarray  # (settings, samples), False where held out

    @property
    def powers(self) -> np.ndarray:
        """|reading|² of each sample, (settings, samples)."""
        values = self.outputs.reshape(*self.fit.shape, -1)
        wide = "complex128" if values.dtype.kind == "c" else "float64"
        return np.sum(np.abs(values.astype(wide)) ** 2, axis=2)


def measure(
    layer, inputs, controls: list[dict], output: tf.TensorSpec, read: Callable
) -> Iterator[np.ndarray]:
    """The layer's outputs at each setting of its controls."""
    expected = tf.TensorSpec((len(inputs), *output.shape[1:]), output.dtype)
    for setting in controls:
        yield checked(layer, read(layer, inputs, setting), expected)


def split(settings: int, samples: int, holdout: float, rng) -> np.ndarray:
    """What is fitted, (settings, samples): False is held out."""
    fit = np.ones((settings, samples), bool)
    # The present setting, the first, is always fitted: it is the one in use.
    fit[settings - share(holdout, settings) :] = False
    fit[:, rng.permutation(samples)[: share(holdout, samples)]] = False
    return fit


def share(holdout: float, total: int) -> int:
    """How many of `total` are held out: at least one, and not all."""
    return min(max(1, round(holdout * total)), total - 1)


def of_layer(values: dict, layer: PhysicalLayer, name: str):
    """What is given for one layer, else for all; `None` if neither."""
    return values.get(f"{layer.name}/{name}", values.get(name))
