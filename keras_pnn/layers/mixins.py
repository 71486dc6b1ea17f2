"""Share code among layers: `get_config`, dtypes, noise of readings, biases."""

import inspect

import keras
import numpy as np
from keras import ops

from keras_pnn import _checks


class ConfiguredLayer(keras.layers.Layer):
    """Base of layers whose config is the arguments of `__init__`, all attributes.

    Only arguments that can be given by position and by name are written. A subclass
    declares positional-only arguments too, and writes them; keyword-only arguments
    belong to a base class, see `passing_on`.
    """

    def get_config(self) -> dict:
        config = super().get_config()
        for kind in reversed(type(self).__mro__):
            # A user's subclass writes its own config.
            if kind.__module__.startswith("keras_pnn.") and "__init__" in vars(kind):
                config |= _arguments(self, kind)
        return config


def _arguments(layer: keras.layers.Layer, kind: type) -> dict:
    """Returns a layer's arguments of one of its classes, as files hold them."""
    config = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name == "self" or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            continue
        value = getattr(layer, name)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        elif not isinstance(value, tuple):
            saved = _checks.saved(layer, name, value)
            # Keras' own functions are saved by a short name.
            named = name == "activation"
            value = keras.activations.serialize(value) if named else saved
        config[name] = value
    return config


class RealInputs:
    """Refuses complex inputs, whose imaginary part a layer of powers would drop."""

    def call(self, inputs):
        refuse_complex(self, inputs)
        return super().call(inputs)

    def compute_output_spec(self, inputs):
        refuse_complex(self, inputs)
        return super().compute_output_spec(inputs)


def refuse_complex(layer: keras.layers.Layer, inputs) -> None:
    """Checks that the inputs of a layer are real."""
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if "complex" in dtype:
        raise ValueError(
            f"`inputs` of {type(layer).__name__} '{layer.name}' must be real: put a "
            f"`Photodetector` layer before it. Received: dtype={dtype}"
        )


class WideOutputs:
    """Gives a layer outputs in single precision, or double under a float64 policy.

    Inputs are not autocast: float16 cannot hold an amplitude of 7e4, a count of 2049
    photons or the levels of 12 bits.
    """

    _single, _double = "float32", "float64"

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    @property
    def _output_dtype(self) -> str:
        return self._double if self.compute_dtype == "float64" else self._single

    def compute_output_spec(self, inputs):
        # The base class would take the compute dtype, float16 in mixed precision.
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self._output_dtype)


def last_axis(input_shape) -> int:
    """Returns the size of the last axis of inputs, which must be known."""
    if input_shape[-1] is None:
        raise ValueError(
            "The last axis of the inputs must be known. "
            f"Received: input_shape={tuple(input_shape)}"
        )
    return input_shape[-1]


def reading_noise(layer: keras.layers.Layer, readings):
    """Draws the noise of readings, in their shape."""
    shape, dtype = ops.shape(readings), readings.dtype
    noise = keras.random.normal(shape, dtype=dtype, seed=layer.seed_generator)
    return layer.read_noise * noise


def add_bias(layer: keras.layers.Layer, units: int) -> None:
    """Adds a layer's bias, which is `None` without `use_bias`."""
    layer.bias = None
    if layer.use_bias:
        layer.bias = layer.add_weight(
            name="bias",
            shape=(units,),
            initializer=layer.bias_initializer,
            regularizer=layer.bias_regularizer,
            constraint=getattr(layer, "bias_constraint", None),
        )


def biased(layer: keras.layers.Layer, outputs):
    """Returns outputs plus the bias, if there is one."""
    if layer.bias is None:
        return outputs
    return outputs + ops.cast(layer.bias, outputs.dtype)
