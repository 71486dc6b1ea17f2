"""Fit a model's imperfections to a device's measurements."""

from keras_pnn.hardware.calibration.result import Calibration
from keras_pnn.hardware.calibration.twin import calibrate

__all__ = ["Calibration", "calibrate"]
