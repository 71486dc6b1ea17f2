"""Draw random inputs and settings of the controls to measure a layer at."""

import numpy as np
import tensorflow as tf

from keras_pnn.hardware.calibration.readings import of_layer
from keras_pnn.layers.limits import ControlRange
from keras_pnn.layers.ring_layer import RingLayer


def probes_like(own: np.ndarray, n: int, rng) -> np.ndarray:
    """Returns n random inputs within the range of the layer's own."""
    shape = (n, *own.shape[1:])
    if own.dtype.kind == "c":
        amplitude = np.abs(own).max() * np.sqrt(rng.uniform(size=shape))
        values = amplitude * np.exp(2j * np.pi * rng.uniform(size=shape))
    else:
        # bfloat16 does not subtract in NumPy's generators.
        values = rng.uniform(float(own.min()), float(own.max()), shape)
    return values.astype(own.dtype)


def settings_of(layer, n: int, spread: dict, rng) -> list[dict[str, np.ndarray]]:
    """Returns the present controls and n − 1 random settings."""
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
    return np.where(quantity.exists, value, present)


def _ring_controls(tuning, limits, shape: tuple, rng) -> np.ndarray:
    """Returns random controls that take rings through their resonance.

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
            f"is 0 at present, and it has no limits. Received: no step in {unit or '1'}"
        )
    return rms
