"""Keras layers, training and analysis for photonic neural networks."""

from keras import config as _config

if _config.backend() != "tensorflow":
    raise ImportError(
        "keras_pnn needs Keras on TensorFlow: set KERAS_BACKEND=tensorflow before "
        f"Keras is imported. Received: backend {_config.backend()!r}"
    )

from keras_pnn import (
    callbacks,
    curvature,
    datasets,
    deploy,
    devices,
    hardware,
    layers,
    physics,
    plotting,
    robustness,
    training,
)
from keras_pnn._version import __version__ as __version__
from keras_pnn.curvature import (
    DensityResult,
    HessianResult,
    Landscape,
    TraceResult,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
    loss_landscape,
)
from keras_pnn.deploy import Conversion, convert, export_controls, load_controls
from keras_pnn.devices import (
    Correlated,
    DeviceEvaluation,
    DeviceSet,
    SimulatedDevice,
    Variation,
    drift,
    evaluate_devices,
)
from keras_pnn.hardware import (
    Calibration,
    DeviceError,
    HardwareDevice,
    InstrumentDevice,
    RecordedDevice,
    calibrate,
)
from keras_pnn.physics.tuning import (
    HeaterTuning,
    LorentzianTuning,
    MeasuredTuning,
    Tuning,
)
from keras_pnn.robustness import (
    RobustnessResult,
    merge_rows,
    robustness_report,
    robustness_rows,
)
from keras_pnn.training import (
    ASAM,
    ESAM,
    GSAM,
    MESA,
    SAF,
    SAM,
    SPSA,
    Autodiff,
    DATModel,
    FiniteDifference,
    FriendlySAM,
    LookSAM,
    OpticalPruning,
    PATModel,
    SATModel,
)

__all__ = [
    "ASAM",
    "ESAM",
    "GSAM",
    "MESA",
    "SAF",
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
    "DeviceSet",
    "FiniteDifference",
    "FriendlySAM",
    "HardwareDevice",
    "HeaterTuning",
    "HessianResult",
    "InstrumentDevice",
    "Landscape",
    "LookSAM",
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
    "calibrate",
    "callbacks",
    "convert",
    "curvature",
    "datasets",
    "deploy",
    "devices",
    "drift",
    "evaluate_devices",
    "export_controls",
    "hardware",
    "hessian_density",
    "hessian_eigenvalues",
    "hessian_trace",
    "layers",
    "load_controls",
    "loss_landscape",
    "merge_rows",
    "physics",
    "plotting",
    "robustness",
    "robustness_report",
    "robustness_rows",
    "training",
]
