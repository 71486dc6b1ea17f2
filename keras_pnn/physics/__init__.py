"""Laws of photonic parts: pure functions on tensors, without layers or state."""

from keras_pnn.physics import detection, heater, ring, tuning

__all__ = ["detection", "heater", "ring", "tuning"]
