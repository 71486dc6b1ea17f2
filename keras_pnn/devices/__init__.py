"""One device, many devices, a device over time."""

from keras_pnn.devices import drift
from keras_pnn.devices.population import DeviceEvaluation, evaluate_devices
from keras_pnn.devices.simulated import Devices, SimulatedDevice, grid, sweep
from keras_pnn.devices.variation import Correlated, Variation

__all__ = [
    "Correlated",
    "DeviceEvaluation",
    "Devices",
    "SimulatedDevice",
    "Variation",
    "drift",
    "evaluate_devices",
    "grid",
    "sweep",
]
