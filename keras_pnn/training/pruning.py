"""Penalise how steeply weights depend on their controls: optical pruning."""

import keras
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn._signatures import Configured
from keras_pnn.physics import tuning as tunings


@keras.saving.register_keras_serializable(package="keras_pnn")
class OpticalPruning(Configured, keras.regularizers.Regularizer):
    """Regulariser α ‖∂w/∂c‖₂ of a layer's controls c.

    It drives rings to the flat parts of their tuning curves.

    Args:
        alpha: weight α of the penalty, ≥ 0.
        tuning: the tuning of the regularised layer. Default: the default tuning of
            layers. A layer with another tuning raises an error.

    Raises:
        ValueError: If `alpha` is negative or not finite, or `tuning` has a curve for
            each ring.

    Example:

    >>> pruning = pnn.OpticalPruning(1e-3)
    >>> layer = pnn.layers.MRRBank(10, control_regularizer=pruning)

    Reference:
        - Xu et al., Optica 2024; the baseline of arXiv:2411.12352, Fig. 2
    """

    def __init__(self, alpha: float, tuning: tunings.Tuning | str | None = None):
        self.alpha = _checks.real("alpha", alpha, low=0)
        self.tuning = tunings.get(tuning)
        if isinstance(self.tuning, tunings.RingTunings):
            # A regularizer does not know which control belongs to which ring.
            expected = "one curve for all rings"
            raise _checks.error("tuning", expected, repr(self.tuning))

    def __call__(self, control):
        control = tf.convert_to_tensor(control)
        with tf.GradientTape() as tape:
            tape.watch(control)
            weight = self.tuning.weight(control)
        # Each weight depends on its own control alone: the gradient of the sum is
        # the diagonal of the Jacobian.
        slope = tape.gradient(weight, control)
        square = tf.reduce_sum(slope * slope)
        floor = tf.cast(keras.config.epsilon() ** 2, square.dtype)
        return tf.cast(self.alpha, square.dtype) * tf.sqrt(square + floor)
