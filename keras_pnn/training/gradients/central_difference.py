"""Measure the derivative with respect to each control in turn."""

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.training.gradients.base import one_by_one
from keras_pnn.training.gradients.differences import LossGradient


@keras.saving.register_keras_serializable(package="keras_pnn")
class CentralDifference(LossGradient):
    """Differentiates each control by a central difference of the loss.

    ∂L/∂c ≈ (L(c + s) − L(c − s)) / (2 s) for one control after another, with an error
    of s²/6 times the third derivative. Controls that the hardware does not have are
    left out.

    Other variables have exact derivatives behind the measured layers; in front of
    these, derivatives go through the layers' models.

    A training step takes 1 + 2 P passes for P controls, and as many again for an
    ascent. (`pnn.FiniteDifference` is unrelated: it is a rule that moves an
    imperfection in eq. 5.)

    Args:
        step: s, in the unit of the controls.

    Raises:
        ValueError: If `step` is not above 0; in training, if the model has no physical
            layer.

    Example:

    ```python
    online = pnn.SATModel(model, ascent=None, device=bench,
                          gradient=pnn.CentralDifference(step=0.01))
    ```
    """

    def __init__(self, step: float = 0.01):
        self.step = _checks.real("step", step, above=0)

    def slopes(self, losses, wrt, index):
        return [self._of(losses, v) for v in wrt], lambda: None

    def _of(self, losses, variable) -> tf.Tensor:
        value = losses.value(variable)
        elements = np.flatnonzero(losses.exists(variable))

        def slope(element):
            one = tf.one_hot(element, tf.size(value), dtype=value.dtype)
            along = [tf.reshape(one, value.shape)]
            return losses.slope([variable], along, self.step)

        slopes = one_by_one(slope, elements, losses.dtype)
        losses.measured(slopes, 2 * len(elements))
        places = tf.constant(elements[:, None], "int32")
        slopes = tf.cast(slopes, value.dtype)
        dense = tf.scatter_nd(places, slopes, [value.shape.num_elements()])
        return tf.reshape(dense, value.shape)
