"""Take gradients from the model, from a device, or from random perturbations."""

from keras_pnn.training.gradients.base import (
    DeviceGradient,
    Evaluation,
    GradientSource,
    ModelGradient,
)
from keras_pnn.training.gradients.spsa import SPSA

__all__ = ["SPSA", "DeviceGradient", "Evaluation", "GradientSource", "ModelGradient"]
