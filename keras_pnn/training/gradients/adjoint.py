"""Measure the gradient of a mesh in situ, by light that runs backwards."""

import keras
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.layers import MZIMesh
from keras_pnn.physics._tensors import as_complex
from keras_pnn.training.gradients.measured import LayerGradient, of_set_phases, refuse


@keras.saving.register_keras_serializable(package="keras_pnn")
class Adjoint(LayerGradient):
    """Measures the gradient of meshes in situ, by the adjoint method.

    With the forward field f and the adjoint field a right behind a phase shifter
    e^{iφ}, ∂L/∂φ = −2 Im(a f). The device measures intensities at its phase shifters in
    three settings: light sent forwards; the adjoint field ∂L/∂y sent into the outputs;
    and, forwards again, the inputs plus i times the conjugate of the field that the
    adjoint leaves at the inputs. Then 2 Im(a f) is the third intensity minus the other
    two. All samples of the batch are sent in each setting, and the adjoint field has
    the power of the inputs. The derivative of `theta`, which has opposite signs in the
    two arms, is half their difference.

    Phase and splitter errors are included exactly. With losses the field that returns
    is not the time-reversed adjoint, and the gradient is biased; `balanced` removes
    most of the bias, see the guide "Gradients from the chip" for figures.

    Outputs must be measured with their phases, and so must the field that returns to
    the inputs, which gives the derivative with respect to these. With `crosstalk`, the
    layer's matrix converts derivatives to those of the phases that are set. A phase
    that is stuck or beyond the range of a `dac` has no derivative.

    A training step needs 4 settings of each mesh, the measurement of the outputs
    included, and 8 with an ascent.

    The device must have a method `monitor(layer, fields, controls, backwards)` on
    tensors, which returns what `SimulatedDevice.monitor` does. Its method
    `imperfections(layer)`, as of a `SimulatedDevice`, tells which phases are stuck;
    without it, the model's own `theta_stuck`, `phi_stuck` and `gamma_stuck` do.

    Args:
        balanced: whether the inputs minus i times the conjugate are sent in place of
            the inputs alone: 2 Im(a f) is half the difference of the intensities.

    Raises:
        ValueError: If `balanced` is not True or False, or the device has no `monitor`;
            in training, if a measured layer with trainable controls is not an
            `MZIMesh`.

    Example:

    ```python
    inputs = keras.Input((4,))
    fields = pnn.layers.MZIMesh(4)(inputs)
    mesh = keras.Model(inputs, pnn.layers.Photodetector(ports=3)(fields))
    chip = pnn.Variation(theta_error=0.1, phi_error=0.1).sample(mesh, 1)[0]
    online = pnn.SATModel(mesh, ascent=None, device=chip, gradient=pnn.Adjoint())
    ```

    Reference:
        - Hughes et al., Optica 5:864 (2018)
        - Pai et al., Science 380:398 (2023)
    """

    def __init__(self, balanced: bool = False):
        self.balanced = _checks.boolean("balanced", balanced)

    def on(self, device):
        source = super().on(device)
        if not callable(getattr(device, "monitor", None)):
            expected = (
                "a device with monitors, a method monitor(layer, fields, controls, "
                "backwards)"
            )
            raise _checks.error("device", expected, _checks.short(device))
        return source

    def measures_inputs(self, layer):
        return isinstance(layer, MZIMesh)

    def check(self, layer, model):
        if not isinstance(layer, MZIMesh):
            received = f"a {type(layer).__name__}"
            raise refuse(self, layer, "meshes (MZIMesh)", received)

    def differentiate(
        self, layer, inputs, controls, outputs, upstream, wanted, asked
    ) -> tuple:
        def monitor(fields, backwards=False):
            asked.append(layer)
            return self.device.monitor(layer, fields, controls, backwards)

        shape, modes = tf.shape(inputs), layer.units
        forward = tf.reshape(as_complex(inputs, outputs.dtype), [-1, modes])
        # TensorFlow's derivative is twice the conjugate of Wirtinger's.
        adjoint = tf.reshape(tf.math.conj(upstream) / 2, [-1, modes])
        # With the inputs' power: a faint adjoint would be lost in the difference.
        bright, faint = (tf.norm(tf.abs(v), axis=-1) for v in (forward, adjoint))
        scale = tf.math.divide_no_nan(bright, faint)
        scale = tf.where(scale > 0, scale, tf.ones_like(scale))
        scaled = adjoint * as_complex(scale, adjoint.dtype)[:, None]
        back, at_inputs = monitor(scaled, backwards=True)
        reversed_ = 1j * tf.math.conj(at_inputs)
        both, _ = monitor(forward + reversed_)
        other, _ = monitor(forward - reversed_ if self.balanced else forward)
        slopes = {}
        for name in controls:
            difference = both[name] - other[name]
            difference = difference / 2 if self.balanced else difference - back[name]
            slopes[name] = -tf.tensordot(1 / scale, difference, 1)
        slopes["theta"] = (slopes["theta"][..., 0] - slopes["theta"][..., 1]) / 2
        slopes = of_set_phases(layer, slopes)
        found = _of_controls(layer, controls, self.imperfections(layer), slopes)
        at_inputs /= as_complex(scale, adjoint.dtype)[:, None]
        of_inputs = tf.reshape(2 * tf.math.conj(at_inputs), shape)
        if not inputs.dtype.is_complex:
            of_inputs = tf.math.real(of_inputs)
        return tf.cast(of_inputs, inputs.dtype), {n: found[n] for n in wanted}


def _of_controls(layer: MZIMesh, controls, imperfections, slopes: dict) -> dict:
    """Converts derivatives with respect to the set phases to those of the controls."""
    with tf.GradientTape() as tape:
        tape.watch(controls)
        phases = layer.held(layer.as_set(controls), imperfections)
    given = {n: tf.cast(slopes[n], phase.dtype) for n, phase in phases.items()}
    return tape.gradient(phases, controls, given)
