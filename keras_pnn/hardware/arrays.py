"""Check the arrays that go to a device, and those that come back."""

import keras
import numpy as np

from keras_pnn import _checks
from keras_pnn.hardware.log import storable
from keras_pnn.layers.context import substituting
from keras_pnn.layers.physical import PhysicalLayer


def sendable(name: str, array, layer: PhysicalLayer) -> np.ndarray:
    """Returns a copy of an array that may be sent to a device.

    Args:
        name: of the argument, for errors.
        array: it, or what NumPy makes one of.
        layer: what it is meant for.

    Raises:
        ValueError: If it holds something else than finite numbers: NaN and infinity
            can harm a device.
    """
    array = np.array(storable(array), order="C")
    if array.dtype.kind not in "biufc":
        expected = f"an array of numbers, for layer '{layer.name}'"
        raise _checks.error(name, expected, f"dtype {array.dtype}")
    if not np.isfinite(array).all():
        bad = np.count_nonzero(~np.isfinite(array))
        received = f"NaN or infinity in {bad} of {array.size}"
        raise _checks.error(name, f"finite, for layer '{layer.name}'", received)
    return array


def output_spec(layer: PhysicalLayer, inputs: np.ndarray) -> keras.KerasTensor:
    """Returns shape and dtype of a layer's outputs, as the layer has them."""
    with substituting(lambda layer, inputs, controls, modelled: modelled):
        return layer.compute_output_spec(
            keras.KerasTensor(inputs.shape, inputs.dtype.name)
        )


def usable(values, shape: tuple, dtype: np.dtype) -> np.ndarray:
    """Returns what `measure` returned as an array, in its own precision.

    Args:
        values: an array, or what NumPy makes one of.
        shape, dtype: of the layer's outputs.

    Raises:
        TypeError: If it is `None`, or complex where the layer is real, or the reverse.
        ValueError: If it has another shape.
    """
    kind = "complex" if dtype.kind == "c" else "real floating-point"
    expected = f"`measure` must return {kind} numbers of shape {shape}."
    if values is None:
        raise TypeError(f"{expected} Received: None")
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "fc":
        # A masked element is not a reading.
        values = values.filled(np.nan)
    array = storable(values)
    if array.dtype.kind != ("c" if dtype.kind == "c" else "f"):
        raise TypeError(f"{expected} Received: dtype {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{expected} Received: shape {array.shape}")
    return array


def not_finite(reading: np.ndarray, dtype: np.dtype) -> ArithmeticError | None:
    """Returns the error for a reading that is not finite in the layer's precision."""
    with np.errstate(over="ignore"):
        bad = np.count_nonzero(~np.isfinite(reading.astype(dtype)))
    if not bad:
        return None
    return ArithmeticError(
        f"`measure` must return finite {dtype} numbers. Received: NaN or infinity in "
        f"{bad} of {reading.size}"
    )
