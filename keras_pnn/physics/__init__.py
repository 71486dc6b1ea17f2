"""Model photonic components by pure functions on tensors.

Arguments without a shape are numbers, arrays, tensors or variables, and broadcast.
Results are float64 or complex128 if an array among the arguments is float64, otherwise
float32 or complex64; without float arrays, NumPy scalars, then `keras.config.floatx()`,
decide. A value known eagerly that is NaN, infinite or out of its range raises a
`ValueError`; values inside a graph are not checked.
"""

from keras_pnn.physics import (
    decompose,
    detection,
    frames,
    heater,
    imaging,
    interferometer,
    mesh,
    propagation,
    ring,
    tuning,
)

__all__ = [
    "decompose",
    "detection",
    "frames",
    "heater",
    "imaging",
    "interferometer",
    "mesh",
    "propagation",
    "ring",
    "tuning",
]
