"""Multiply fields by any matrix, with attenuators between two meshes."""

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.layers.belonging import refuse_elsewhere
from keras_pnn.layers.fields import FieldOutputs
from keras_pnn.layers.limits import ControlRange
from keras_pnn.layers.mixins import last_axis
from keras_pnn.layers.mzi import MZIMesh, as_matrix, relative_distance
from keras_pnn.layers.physical import PhysicalLayer, check_built
from keras_pnn.physics._tensors import as_complex


@keras.saving.register_keras_serializable(package="keras_pnn")
class Attenuators(FieldOutputs, PhysicalLayer):
    """Attenuates each mode, with one gain for all modes: the Σ of `MZIDense`.

    outputs = gain · attenuation · inputs on the first modes. Further inputs are
    dropped, further outputs are dark.

    Controls: `attenuation`, amplitudes from 0 to 1, (min(modes in, units),); and
    `gain`, a scalar.

    Args:
        units: number of modes at the outputs.

    Input shape: `(..., modes)`, real or complex.

    Output shape: `(..., units)`, complex.

    Raises:
        ValueError: If `units` is not an integer of 1 or more, or the number of modes at
            the inputs is unknown.

    Example:

    >>> attenuators = pnn.layers.Attenuators(4)
    >>> attenuators(np.ones((2, 4), "complex64")).shape
    TensorShape([2, 4])
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.units = _checks.integer("units", units, low=1)

    def build(self, input_shape):
        self._modes = min(self.units, last_axis(input_shape))
        self.add_control(
            "attenuation",
            (self._modes,),
            unit="",
            initializer="ones",
            nominal=1.0,
            constraint=ControlRange(0.0, 1.0),
        )
        self.add_control("gain", (), unit="", initializer="ones", nominal=1.0)

    def forward(self, inputs, controls, imperfections):
        amplitude = controls["gain"] * controls["attenuation"]
        dtype = tf.complex128 if amplitude.dtype == tf.float64 else tf.complex64
        fields = as_complex(inputs[..., : self._modes], dtype)
        fields *= as_complex(amplitude, dtype)
        dark = tf.zeros_like(fields[..., :1])
        dark = tf.repeat(dark, self.units - self._modes, axis=-1)
        return tf.concat([fields, dark], axis=-1)


@keras.saving.register_keras_serializable(package="keras_pnn")
class MZIDense(FieldOutputs, keras.layers.Layer):
    """A real or complex matrix of any shape, as two meshes with attenuators between.

    outputs = gain · U Σ V† · inputs, by singular values: `v`, an `MZIMesh` over the
    inputs, gives V†; `sigma` attenuates each mode, since passive optics cannot
    amplify, and one gain sets the scale; `u` is an `MZIMesh` over the outputs.

    Controls and imperfections are those of the sublayers `v`, `sigma` and `u`.

    Args:
        units: number of outputs, 2 or more.
        arrangement, phase_regularizer, phase_constraint, straight_loss_db, dac: of
            both meshes, see `MZIMesh`.
        phase_initializer: of both meshes; a name, or an object whose seed both share.
        loss_db: insertion loss of each cell, in dB, one number.

    Input shape: `(..., inputs)`, real or complex, 2 inputs or more.

    Output shape: `(..., units)`, in the dtype of `MZIMesh`.

    Raises:
        ValueError: If an argument is out of range, or there are fewer than 2 inputs.

    Example:

    >>> layer = pnn.layers.MZIDense(10)
    >>> layer.build((None, 64))
    >>> distance = layer.program(np.random.default_rng(0).normal(size=(10, 64)))

    Reference:

    - Shen et al., Nat. Photonics 11:441 (2017).
    """

    def __init__(
        self,
        units: int,
        arrangement: str = "clements",
        phase_initializer="haar",
        phase_regularizer=None,
        phase_constraint=None,
        loss_db: float = 0.0,
        straight_loss_db: float = 0.0,
        dac=None,
        **kwargs,
    ):
        refuse_elsewhere(type(self), kwargs)
        super().__init__(**kwargs)
        self._mesh = {
            "arrangement": arrangement,
            "phase_initializer": phase_initializer,
            "phase_regularizer": phase_regularizer,
            "phase_constraint": phase_constraint,
            "loss_db": _checks.real("loss_db", loss_db, low=0),
            "straight_loss_db": straight_loss_db,
            "dac": dac,
        }
        self.u = MZIMesh(units, **self._mesh, **self._common("u"))
        self.units = self.u.units
        self.sigma = Attenuators(self.units, **self._common("sigma"))

    def _common(self, part: str) -> dict:
        # The name is unique if the layer's own name is.
        return {
            "name": f"{self.name}_{part}",
            "dtype": self.dtype_policy,
            "trainable": self.trainable,
        }

    def build(self, input_shape):
        if len(input_shape) < 2 or not input_shape[-1] or input_shape[-1] < 2:
            raise ValueError(
                "The inputs of `MZIDense` must have the shape (batch, ..., modes), "
                f"with 2 modes or more. Received: shape {tuple(input_shape)}"
            )
        self.v = MZIMesh(input_shape[-1], **self._mesh, **self._common("v"))
        self.v.build(input_shape)
        self.sigma.build(input_shape)
        self.u.build((*input_shape[:-1], self.units))

    def call(self, inputs):
        return self.u(self.sigma(self.v(inputs)))

    @property
    def attenuation(self) -> keras.Variable:
        """Amplitudes from 0 to 1, (min(inputs, units),)."""
        return self.sigma.controls["attenuation"]

    @property
    def gain(self) -> keras.Variable:
        """The scale of the matrix."""
        return self.sigma.controls["gain"]

    def program(self, matrix) -> float:
        """Sets all controls for a matrix on the ideal device.

        Args:
            matrix: complex or real matrix of shape (units, inputs):
                outputs = matrix · inputs.

        Returns:
            The distance left, ‖M − M̂‖_F / ‖M‖_F, with M̂ the matrix of the ideal
            device, without losses, at the stored controls as the `dac` sets them.

        Raises:
            ValueError: If the shape differs, an element is NaN or infinite, or the
                largest singular value is beyond the range of the gain's dtype. The
                controls are then unchanged.

        Warns:
            UserWarning: As `MZIMesh.program` does.
        """
        check_built(self)
        matrix = as_matrix("matrix", matrix, (self.units, self.v.units))
        if not np.isfinite(matrix).all():
            raise _checks.error("matrix", "finite", "NaN or infinity")
        u, singular, vh = np.linalg.svd(matrix)
        gain = singular[0] if singular[0] > 0 else 1.0
        kind = tf.as_dtype(self.gain.dtype)
        if not np.isclose(float(tf.cast(gain, kind)), gain, rtol=0.01, atol=0):
            expected = (
                f"in the range of {kind.name}, the dtype of the gain of layer "
                f"'{self.name}': scale it, or give the layer dtype='float64'"
            )
            received = f"a largest singular value of {gain:g}"
            raise _checks.error("matrix", expected, received)
        self.u.program(u)
        self.v.program(vh)
        self.attenuation.assign(singular / gain)
        self.gain.assign(gain)
        stored = float(self.gain) * np.asarray(self.attenuation, "float64")
        modes = len(stored)
        u, vh = self.u.lossless_matrix(), self.v.lossless_matrix()
        return relative_distance((u[:, :modes] * stored) @ vh[:modes], matrix)

    def transfer_matrix(self) -> tf.Tensor:
        """Returns the matrix (units, inputs), with the present imperfections."""
        check_built(self)
        return tf.transpose(self(tf.eye(self.v.units, dtype=self._output_dtype)))

    def get_config(self):
        config = self.u.get_config()
        mesh = {name: config[name] for name in self._mesh}
        return {**super().get_config(), "units": self.units, **mesh}
