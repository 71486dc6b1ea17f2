"""Keras layers, training and analysis for photonic neural networks."""

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "keras_pnn needs Keras on TensorFlow: set KERAS_BACKEND=tensorflow before "
        f"Keras is imported. Received: backend {_keras.backend.backend()!r}"
    )

from keras_pnn import (
    analysis,
    callbacks,
    datasets,
    devices,
    layers,
    physics,
    plotting,
    training,
)
from keras_pnn.analysis.hessian import HessianResult, hessian_eigenvalues
from keras_pnn.devices import (
    Calibration,
    Correlated,
    DeviceError,
    DeviceEvaluation,
    Devices,
    HardwareDevice,
    InstrumentDevice,
    RecordedDevice,
    SimulatedDevice,
    Variation,
    calibrate,
    drift,
    evaluate_devices,
)
from keras_pnn.layers.convert import Conversion, convert
from keras_pnn.layers.exchange import export_controls, load_controls
from keras_pnn.physics.tuning import (
    HeaterTuning,
    LorentzianTuning,
    MeasuredTuning,
    Tuning,
)
from keras_pnn.training import (
    ASAM,
    SAM,
    SPSA,
    Autodiff,
    DATModel,
    FiniteDifference,
    OpticalPruning,
    PATModel,
    SATModel,
)

__version__ = "0.1.0"

__all__ = [
    "ASAM",
    "SAM",
    "SPSA",
    "Autodiff",
    "Calibration",
    "Conversion",
    "Correlated",
    "DATModel",
    "DeviceError",
    "DeviceEvaluation",
    "Devices",
    "FiniteDifference",
    "HardwareDevice",
    "HeaterTuning",
    "HessianResult",
    "InstrumentDevice",
    "LorentzianTuning",
    "MeasuredTuning",
    "OpticalPruning",
    "PATModel",
    "RecordedDevice",
    "SATModel",
    "SimulatedDevice",
    "Tuning",
    "Variation",
    "analysis",
    "calibrate",
    "callbacks",
    "convert",
    "datasets",
    "devices",
    "drift",
    "evaluate_devices",
    "export_controls",
    "hessian_eigenvalues",
    "layers",
    "load_controls",
    "physics",
    "plotting",
    "training",
]
