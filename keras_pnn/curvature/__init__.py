"""Measure the curvature of the loss: eigenvalues, trace, density, landscape."""

from keras_pnn.curvature.hessian import (
    HessianOperator,
    HessianResult,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
)
from keras_pnn.curvature.landscape import Landscape, loss_landscape
from keras_pnn.curvature.spectrum import DensityResult, TraceResult

__all__ = [
    "DensityResult",
    "HessianOperator",
    "HessianResult",
    "Landscape",
    "TraceResult",
    "hessian_density",
    "hessian_eigenvalues",
    "hessian_trace",
    "loss_landscape",
]
