"""One device, many devices, a device over time."""

from keras_pnn.devices import drift
from keras_pnn.devices.calibration import Calibration, calibrate
from keras_pnn.devices.hardware import DeviceError, HardwareDevice
from keras_pnn.devices.instrument import InstrumentDevice, InstrumentError
from keras_pnn.devices.population import (
    DeviceEvaluation,
    DeviceEvaluator,
    evaluate_devices,
)
from keras_pnn.devices.recorded import RecordedDevice
from keras_pnn.devices.simulated import Devices, SimulatedDevice, grid, sweep
from keras_pnn.devices.variation import Correlated, Variation

__all__ = [
    "Calibration",
    "Correlated",
    "DeviceError",
    "DeviceEvaluation",
    "DeviceEvaluator",
    "Devices",
    "HardwareDevice",
    "InstrumentDevice",
    "InstrumentError",
    "RecordedDevice",
    "SimulatedDevice",
    "Variation",
    "calibrate",
    "drift",
    "evaluate_devices",
    "grid",
    "sweep",
]
