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
from keras_pnn._version import __version__ as __version__
from keras_pnn.analysis.hessian import (
    HessianResult,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
)
from keras_pnn.analysis.landscape import Landscape, loss_landscape
from keras_pnn.analysis.results import RobustnessResult
from keras_pnn.analysis.robustness import robustness_report, robustness_rows
from keras_pnn.analysis.rows import merge_rows
from keras_pnn.analysis.spectrum import DensityResult, TraceResult
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

__all__ = [
    "ASAM",
    "SAM",
    "SPSA",
    "Autodiff",
    "Calibration",
    "Conversion",
    "Correlated",
    "DATModel",
    "DensityResult",
    "DeviceError",
    "DeviceEvaluation",
    "Devices",
    "FiniteDifference",
    "HardwareDevice",
    "HeaterTuning",
    "HessianResult",
    "InstrumentDevice",
    "Landscape",
    "LorentzianTuning",
    "MeasuredTuning",
    "OpticalPruning",
    "PATModel",
    "RecordedDevice",
    "RobustnessResult",
    "SATModel",
    "SimulatedDevice",
    "TraceResult",
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
    "hessian_density",
    "hessian_eigenvalues",
    "hessian_trace",
    "layers",
    "load_controls",
    "loss_landscape",
    "merge_rows",
    "physics",
    "plotting",
    "robustness_report",
    "robustness_rows",
    "training",
]
