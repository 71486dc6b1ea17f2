"""Compute the laws of photonic components: pure functions on tensors."""

from keras_pnn.physics import (
    decompose,
    detection,
    frames,
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
    "frames",
    "heater",
    "imaging",
    "interferometer",
    "mesh",
    "ring",
    "tuning",
]
