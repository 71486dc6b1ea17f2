"""Laws of photonic parts: pure functions on tensors, without layers or state."""

from keras_pnn.physics import (
    decompose,
    detection,
    heater,
    imaging,
    interferometer,
    mesh,
    ring,
    tuning,
)

__all__ = [
    "decompose",
    "detection",
    "heater",
    "imaging",
    "interferometer",
    "mesh",
    "ring",
    "tuning",
]
