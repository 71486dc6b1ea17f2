"""Convert arguments to tensors of one float or complex dtype."""

import functools

import keras
import numpy as np
import tensorflow as tf

TensorLike = float | np.ndarray | tf.Tensor | tf.Variable | keras.Variable


def as_tensors(*values) -> tuple[tf.Tensor, ...]:
    """Converts values to tensors of one float dtype; raises ValueError if complex.

    The dtype is the widest of the arrays and tensors, but at least float32, to keep
    phases and detunings precise. Python numbers and integer arrays adopt it. Without
    any float array, NumPy scalars decide, then `keras.config.floatx()`.
    """
    dtype = _common_dtype(values)
    return tuple(_to_tensor(value, dtype) for value in values)


def as_complex(value, dtype: tf.DType) -> tf.Tensor:
    """Casts to complex64 or complex128, without the warning of `tf.cast`.

    `tf.cast` from real to complex warns at each gradient.
    """
    if value.dtype.is_complex:
        return tf.cast(value, dtype)
    value = tf.cast(value, dtype.real_dtype)
    return tf.complex(value, tf.zeros_like(value))


def as_float64(value) -> tf.Tensor:
    """Converts to float64, without rounding Python numbers to float32."""
    if isinstance(value, (list, tuple)):
        return tf.stack([as_float64(part) for part in value])
    if not isinstance(value, (tf.Variable, keras.Variable)) and not tf.is_tensor(value):
        return tf.constant(value, "float64")
    return tf.cast(tf.convert_to_tensor(value), "float64")


def sizes(tensor) -> list:
    """Returns the shape: an int where an axis is known, else a scalar tensor."""
    dynamic = tf.shape(tensor)
    return [dynamic[i] if size is None else size for i, size in enumerate(tensor.shape)]


def broadcast_shape(*shapes: tf.TensorShape) -> tf.TensorShape | None:
    """Returns the common static shape, or `None` if the shapes do not broadcast."""
    try:
        return functools.reduce(tf.broadcast_static_shape, shapes)
    except ValueError:
        return None


def _common_dtype(values):
    names = [
        keras.backend.standardize_dtype(value.dtype)
        for value in values
        if hasattr(value, "dtype") and not isinstance(value, np.generic)
    ]
    scalars = [value.dtype.name for value in values if isinstance(value, np.generic)]
    if any("complex" in name for name in names + scalars):
        raise ValueError(f"Expected real numbers. Received dtypes: {names + scalars}")
    for group in (names, scalars, [keras.config.floatx()]):
        if "float64" in group:
            return "float64"
        if any("float" in name for name in group):
            return "float32"


def _to_tensor(value, dtype):
    if hasattr(value, "dtype") and not isinstance(value, (np.ndarray, np.generic)):
        return tf.cast(tf.convert_to_tensor(value), dtype)
    return tf.convert_to_tensor(value, dtype)
