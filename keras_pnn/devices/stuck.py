"""Draw stuck controls: dead heaters, and heaters at a fixed setting."""

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn._signatures import Configured
from keras_pnn.devices.draws import uniform_numbers
from keras_pnn.layers.quantity import Quantity


@keras.saving.register_keras_serializable(package="keras_pnn")
class Stuck(Configured):
    """Controls that cannot be set, such as heaters without contact.

    For `Variation(stuck=…)`: each control of rings and meshes is stuck with a
    probability. It then ignores training and its ascent, drift and noise of the
    control, `dac` and `program`. Temperature and fabrication still shift its ring,
    perhaps beyond the end of a measured curve (NaN), unless `extend_below` of
    `MeasuredTuning` continues the curve. A device stores stuck controls in the
    imperfections `control_stuck` of rings, and `theta_stuck`, `phi_stuck` and
    `gamma_stuck` of meshes, (…, 2): whether the control is stuck, and at what value.

    Args:
        probability: share of the controls that are stuck, from 0 to 1.
        at: `"zero"` (no current, no phase), `"random"` (uniform over the range of a
            ring's control or a turn of a phase), or a value in the unit of the control.

    Raises:
        ValueError: If `probability` is not from 0 to 1, or `at` is none of these; when
            drawn, if the value is out of the range of a tuning.

    Example:

    >>> dead = pnn.Variation(stuck=pnn.Stuck(0.03), resonance_shift=0.02)
    >>> devices = dead.sample(model, 20, seed=0)
    """

    def __init__(self, probability: float, at: str | float = "zero"):
        self.probability = _checks.real("probability", probability, 0, 1)
        if at not in ("zero", "random"):
            if not np.isfinite(_checks.as_real(at)):
                raise _checks.error("at", "'zero', 'random' or a number", repr(at))
            at = float(at)
        self.at = at

    def draw_for(self, quantity: Quantity, seed) -> tf.Tensor:
        """Returns one draw of `<control>_stuck`, a pure function of the seed."""
        shape = tuple(quantity.variable.shape)
        uniform = tf.unstack(uniform_numbers(shape, seed), axis=-1)
        stuck = tf.cast(uniform[0] < self.probability, quantity.variable.dtype)
        value = 0.0 if self.at == "zero" else self.at
        if self.at == "random":
            low, high = quantity.layer.stuck_range(quantity.holds)
            value = low + (high - low) * tf.cast(uniform[1], stuck.dtype)
        elif tuning := getattr(quantity.layer, "tuning", None):
            low, high = tuning.control_range
            _checks.real(f"at ({tuning.unit})", value, low, high)
        return tf.stack([stuck, stuck * value], axis=-1)

    def __repr__(self):
        return f"Stuck(probability={self.probability!r}, at={self.at!r})"
