"""Simulate devices: single ones, samples, sweeps, and drift."""

from keras_pnn.devices import drift
from keras_pnn.devices.axis import Axis
from keras_pnn.devices.evaluation import DeviceEvaluator, evaluate_devices
from keras_pnn.devices.result import DeviceEvaluation
from keras_pnn.devices.simulated import DeviceSet, SimulatedDevice
from keras_pnn.devices.stuck import Stuck
from keras_pnn.devices.sweeps import grid, sweep
from keras_pnn.devices.variation import Correlated, Variation

__all__ = [
    "Axis",
    "Correlated",
    "DeviceEvaluation",
    "DeviceEvaluator",
    "DeviceSet",
    "SimulatedDevice",
    "Stuck",
    "Variation",
    "drift",
    "evaluate_devices",
    "grid",
    "sweep",
]
