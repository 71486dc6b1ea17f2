"""Study the robustness of a trained model, and report on it."""

from keras_pnn.robustness.call import robustness_report, robustness_rows
from keras_pnn.robustness.executor import ProcessPool
from keras_pnn.robustness.light_path import LightPath
from keras_pnn.robustness.results import (
    Curvature,
    ModelRobustness,
    RobustnessResult,
    Scan,
    Sensitivity,
    Transfer,
    WorstCase,
    Yield,
)
from keras_pnn.robustness.specification import Specification
from keras_pnn.robustness.study import Study
from keras_pnn.robustness.worst_case import worst_device

__all__ = [
    "Curvature",
    "LightPath",
    "ModelRobustness",
    "ProcessPool",
    "RobustnessResult",
    "Scan",
    "Sensitivity",
    "Specification",
    "Study",
    "Transfer",
    "WorstCase",
    "Yield",
    "robustness_report",
    "robustness_rows",
    "worst_device",
]
