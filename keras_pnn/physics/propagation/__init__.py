"""Propagate fields in free space, and through lenses, apertures and aberrations.

       field (y, x)                             field at `distance`
      ┌──────────────┐      distance [m]       ┌──────────────┐
      │   pitch [m]  │  ─────────────────────► │              │
      │   ·  ·  ·    │                         │   ·  ·  ·    │
      └──────────────┘                         └──────────────┘

A field is a complex tensor (..., height, width), sampled at the pixels of a plane. It
varies in time as exp(−iωt): a wave that travels forwards gains phase, exp(+ikz).
Elements are complex transmissions (height, width) that multiply a field.
Pixels are counted from 0 at the upper left, y down and x to the right.
"""

from keras_pnn.physics.propagation.elements import (
    aberration,
    aperture,
    lens,
    tilt,
    warp,
)
from keras_pnn.physics.propagation.free_space import angular_spectrum, fresnel

__all__ = [
    "aberration",
    "angular_spectrum",
    "aperture",
    "fresnel",
    "lens",
    "tilt",
    "warp",
]
