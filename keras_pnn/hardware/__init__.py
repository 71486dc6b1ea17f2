"""Measure, record, replay and calibrate devices on the bench."""

from keras_pnn.hardware.calibration import Calibration, calibrate
from keras_pnn.hardware.device import DeviceError, HardwareDevice
from keras_pnn.hardware.instrument import InstrumentDevice, InstrumentError
from keras_pnn.hardware.recorded import RecordedDevice

__all__ = [
    "Calibration",
    "DeviceError",
    "HardwareDevice",
    "InstrumentDevice",
    "InstrumentError",
    "RecordedDevice",
    "calibrate",
]
