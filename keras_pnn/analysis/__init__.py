"""Numbers about a trained model."""

from keras_pnn.analysis.hessian import (
    HessianOperator,
    HessianResult,
    hessian_eigenvalues,
)

__all__ = ["HessianOperator", "HessianResult", "hessian_eigenvalues"]
