"""Tuning curves: from a control to the weight of a microring."""

from keras_pnn.physics.tuning.base import Tuning
from keras_pnn.physics.tuning.lorentzian import HeaterTuning, LorentzianTuning, get
from keras_pnn.physics.tuning.measured import MeasuredTuning

__all__ = ["HeaterTuning", "LorentzianTuning", "MeasuredTuning", "Tuning", "get"]
