"""Take gradients from the model, from a device, or from random perturbations."""

from keras_pnn.training.gradients.adjoint import Adjoint
from keras_pnn.training.gradients.base import (
    DeviceGradient,
    Evaluation,
    GradientSource,
    ModelGradient,
)
from keras_pnn.training.gradients.central_difference import CentralDifference
from keras_pnn.training.gradients.feedback_alignment import FeedbackAlignment
from keras_pnn.training.gradients.forward_gradient import ForwardGradient
from keras_pnn.training.gradients.parameter_shift import ParameterShift
from keras_pnn.training.gradients.phyll import PhyLL
from keras_pnn.training.gradients.spgd import SPGD
from keras_pnn.training.gradients.spsa import SPSA

__all__ = [
    "SPGD",
    "SPSA",
    "Adjoint",
    "CentralDifference",
    "DeviceGradient",
    "Evaluation",
    "FeedbackAlignment",
    "ForwardGradient",
    "GradientSource",
    "ModelGradient",
    "ParameterShift",
    "PhyLL",
]
