"""Apply nonlinearities to fields: thresholds and saturable absorption."""

import keras
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.layers.fields import Passive, PlaneOutputs
from keras_pnn.physics import detection

# Share of the intensity that passes a threshold below which the slope of its root is
# limited; the root itself is then below 1e-3.
_FAINT = 1e-6


class _Nonlinearity(PlaneOutputs, Passive):
    """Base of layers that scale fields by a real function of intensity."""

    def _act(self, inputs):
        fields = self._fields(inputs)
        gain = self._gain(detection.intensity(fields))
        return tf.complex(gain * tf.math.real(fields), gain * tf.math.imag(fields))


@keras.saving.register_keras_serializable(package="keras_pnn")
class Threshold(_Nonlinearity):
    """Passes the intensity above a share of its mean, and keeps the phase.

        intensity → max(0, intensity − share · mean(intensity)),   mean over the plane

    The amplitude's slope, infinite where light begins to pass, is limited: where less
    than 1e-6 of the intensity passes, it is attenuated further.

    Args:
        share: Float, 0 or more.

    Input shape, output shape: as in `FreeSpace`.

    Raises:
        ValueError: If `share` is negative or not finite, or the inputs are not planes.

    Example:

    >>> field = np.array([[[1.0, 3.0j]]], "complex64")   # mean intensity 5
    >>> np.abs(pnn.layers.Threshold(0.8)(field)) ** 2    # 0, and 9 − 4
    array([[[0., 5.]]], dtype=float32)

    Reference:

    - Xu et al., Nat. Commun. 17, 1766 (2026), with a share of one half.
    """

    def __init__(self, share: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self.share = _checks.real("share", share, low=0)

    def _gain(self, light):
        level = self.share * tf.reduce_mean(light, (1, 2), keepdims=True)
        bright, one = light > level, tf.ones_like(light)
        passing = 1 - level / tf.where(bright, light, one)
        clear = bright & (passing > _FAINT)
        root = tf.sqrt(tf.where(clear, passing, one))
        faint = tf.where(bright, passing * _FAINT**-0.5, 0 * one)
        return tf.where(clear, root, faint)


@keras.saving.register_keras_serializable(package="keras_pnn")
class Saturable(_Nonlinearity):
    """Absorbs faint light more than bright light, as a saturable absorber.

        intensity → intensity · exp(−absorption / (1 + intensity / saturation))

    Args:
        absorption: Float, 0 or more: optical depth for faint light.
        saturation: Float, positive: the intensity that halves the optical depth.

    Input shape, output shape: as in `FreeSpace`.

    Raises:
        ValueError: If an argument is out of range, or the inputs are not planes.

    Example:

    >>> field = np.array([[[0.0, 1.0]]], "complex64")
    >>> np.abs(pnn.layers.Saturable(2.0)(field)).round(3)   # exp(−1/2)
    array([[[0.   , 0.607]]], dtype=float32)

    Reference:

    - Zuo et al., Optica 6:1132 (2019): nonlinear activation in free-space networks.
    """

    def __init__(self, absorption: float = 1.0, saturation: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.absorption = _checks.real("absorption", absorption, low=0)
        self.saturation = _checks.real("saturation", saturation, above=0)

    def _gain(self, light):
        return tf.exp(-0.5 * self.absorption / (1 + light / self.saturation))
