"""Solve controls for target weights, compensating crosstalk between rings."""

import functools
import math

import numpy as np
import tensorflow as tf

from keras_pnn.physics import tuning as tunings
from keras_pnn.physics.tuning.base import WEIGHT_TOLERANCE
from keras_pnn.physics.tuning.signed import has_negative


def initial_controls(layer, shape, dtype) -> tf.Tensor:
    """Returns the controls for weights that the layer's initializer draws.

    If a ring's weights are never negative (a single-ended readout), the magnitude of
    the draw is taken. Weights out of reach are replaced by the nearest in reach, and
    controls are clipped to the limits.
    """
    # A layer that is first called inside a `tf.function` is built there.
    with tf.init_scope():
        weights = np.asarray(layer.kernel_initializer(shape, dtype=dtype), "float64")
    if not has_negative(layer.curve):
        weights = np.abs(weights)
    controls = layer.curve.control(layer.curve.clip(weights))
    return tf.convert_to_tensor(np.clip(controls, *layer.control_limits), dtype)


def controls_for(layer, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solves the controls for target weights of a `RingLayer` on the ideal device.

    Weights are in the shape of the kernel, in float64 and in reach of the tuning.
    Returns controls within all limits, and booleans for the weights that they miss.
    """
    tuning, limits = layer.curve, layer.control_limits
    stuck = stuck_rings(layer)[0]
    if layer.crosstalk is None and layer.channel_spacing is None:
        alone = tuning.control(weights)
        controls = np.clip(alone, *limits)
        error = np.abs(weights - np.asarray(tuning.weight(controls)))
        missed = (controls != alone) & (error > WEIGHT_TOLERANCE)
        return controls, missed & ~stuck
    weights_at = ideal_weights(layer)
    target, best, least = weights, None, np.full(weights.shape, np.inf)
    # The tails of other rings are small compared with a ring's own weight, so adding
    # the missing weight to the target converges. Heat alone needs a single round.
    for _ in range(1 if layer.channel_spacing is None else 50):
        controls = _without_heat(layer, tuning.control(tuning.clip(target)))
        controls = np.clip(controls, *limits)
        missing = np.where(stuck, 0.0, weights - weights_at(controls))
        target = target + np.nan_to_num(missing)
        error = np.nan_to_num(np.abs(missing), nan=np.inf)
        # By output: a weight out of reach does not affect the rows of other outputs.
        rings = tuple(range(weights.ndim - 1))
        better = error.sum(axis=rings) < least.sum(axis=rings)
        best = controls if best is None else np.where(better, controls, best)
        least = np.where(better, error, least)
        if least.max() < WEIGHT_TOLERANCE / 10:
            break
    return best, least > 1e-4


def ideal_weights(layer):
    """Returns a function from controls to weights on the ideal device, in float64.

    Beyond the end of a measured curve weights are NaN. Stuck rings stay stuck.
    """
    ideal = {
        name: tf.constant(layer.quantity(name).nominal, "float64", v.shape)
        for name, v in layer.imperfections.items()
    }
    ideal["control_stuck"] = tf.cast(layer.imperfections["control_stuck"], "float64")
    # Beyond the end of a measured curve, a graph gives NaN, where eager calls raise. A
    # partial, since TensorFlow counts traces of a method over all layers, and warns.
    weights_at = tf.function(functools.partial(layer.weights_at), autograph=False)
    return lambda controls: weights_at(tf.constant(controls, "float64"), ideal).numpy()


def stuck_rings(layer) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rings of a layer are stuck at present, and at which control."""
    stuck = np.asarray(layer.imperfections["control_stuck"], "float64")
    return stuck[..., 0] > 0.5, stuck[..., 1]


def _without_heat(layer, controls: np.ndarray) -> np.ndarray:
    """Solves the controls that shift rings with crosstalk as `controls` do without it.

    Rings that would need a control beyond a limit stay at the limit, and the others are
    solved again with those fixed.
    """
    if layer.crosstalk is None:
        return controls
    shift = layer.tuning.heater_shift
    stuck, value = stuck_rings(layer)
    limits = [
        shift(np.full(controls.shape, limit))
        if math.isfinite(limit)
        else np.full(controls.shape, limit)
        for limit in layer.control_limits
    ]
    parts = (
        *(shift(controls), np.ones(controls.shape), 1.0 * stuck, *limits),
        np.where(stuck, np.asarray(shift(value)), 0.0),
    )
    wanted, exists, held, low, high, heat = (
        np.array(layer.by_heat(np.asarray(part, "float64"))) for part in parts
    )
    solved = np.zeros_like(wanted)
    for pattern in np.unique(exists, axis=0):
        groups, rings = (exists == pattern).all(axis=1), pattern > 0
        here = np.ix_(groups, rings)
        crosstalk = layer.crosstalk[np.ix_(rings, rings)]
        own = np.linalg.solve(crosstalk, wanted[here].T).T
        ends = low[here], high[here]
        fixed = held[here] > 0.5
        if fixed.any() or np.any((own < ends[0]) | (own > ends[1])):
            others = crosstalk - np.eye(len(crosstalk))
            for _ in range(100):
                produced = np.where(fixed, heat[here], np.clip(own, *ends))
                own = wanted[here] - produced @ others.T
        solved[here] = np.clip(own, *ends)
    return _control_for_shift(layer.tuning, np.asarray(layer.from_heat(solved)))


def _control_for_shift(tuning: tunings.Tuning, shift: np.ndarray) -> np.ndarray:
    """Solves the controls at which heaters shift their rings by `shift`, in nm.

    Uses bisection, as the shift rises with the control. A negative shift gives 0.
    """
    low, high = np.zeros_like(shift), np.ones_like(shift)
    while np.any(np.asarray(tuning.heater_shift(high)) < shift):
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        below = np.asarray(tuning.heater_shift(middle)) < shift
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(shift <= 0, 0.0, (low + high) / 2)
