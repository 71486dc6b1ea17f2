"""Numbers about a trained model."""

from keras_pnn.analysis.hessian import (
    HessianOperator,
    HessianResult,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
)
from keras_pnn.analysis.landscape import Landscape, loss_landscape
from keras_pnn.analysis.results import (
    Curvature,
    ModelRobustness,
    RobustnessResult,
    Scan,
    Sensitivity,
    Transfer,
    WorstCase,
    Yield,
)
from keras_pnn.analysis.robustness import robustness_report, robustness_rows
from keras_pnn.analysis.rows import merge_rows
from keras_pnn.analysis.spectrum import DensityResult, TraceResult
from keras_pnn.analysis.worst_case import worst_device

__all__ = [
    "Curvature",
    "DensityResult",
    "HessianOperator",
    "HessianResult",
    "Landscape",
    "ModelRobustness",
    "RobustnessResult",
    "Scan",
    "Sensitivity",
    "TraceResult",
    "Transfer",
    "WorstCase",
    "Yield",
    "hessian_density",
    "hessian_eigenvalues",
    "hessian_trace",
    "loss_landscape",
    "merge_rows",
    "robustness_report",
    "robustness_rows",
    "worst_device",
]
