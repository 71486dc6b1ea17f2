"""Fit a model's imperfections to what a device measures."""

from keras_pnn.hardware.calibration.calibrate import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]
