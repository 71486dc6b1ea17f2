"""Fit a model's imperfections to what a device measures."""

from keras_pnn.hardware.calibration.calibrate import calibrate
from keras_pnn.hardware.calibration.result import Calibration

__all__ = ["Calibration", "calibrate"]
