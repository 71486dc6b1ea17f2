"""Train models: sharpness-aware, physics-aware and dual adaptive training."""

from keras_pnn.training.adversary_rules import Autodiff, FiniteDifference
from keras_pnn.training.ascent import (
    ASAM,
    ESAM,
    GSAM,
    MESA,
    SAF,
    SAM,
    FriendlySAM,
    LookSAM,
)
from keras_pnn.training.dat.model import DATModel
from keras_pnn.training.gradients import (
    SPGD,
    SPSA,
    Adjoint,
    CentralDifference,
    DeviceGradient,
    FeedbackAlignment,
    ForwardGradient,
    ModelGradient,
    ParameterShift,
    PhyLL,
)
from keras_pnn.training.local_classifier import LocalClassifier
from keras_pnn.training.pat import PATModel
from keras_pnn.training.pruning import OpticalPruning
from keras_pnn.training.sat import SATModel

__all__ = [
    "ASAM",
    "ESAM",
    "GSAM",
    "MESA",
    "SAF",
    "SAM",
    "SPGD",
    "SPSA",
    "Adjoint",
    "Autodiff",
    "CentralDifference",
    "DATModel",
    "DeviceGradient",
    "FeedbackAlignment",
    "FiniteDifference",
    "ForwardGradient",
    "FriendlySAM",
    "LocalClassifier",
    "LookSAM",
    "ModelGradient",
    "OpticalPruning",
    "PATModel",
    "ParameterShift",
    "PhyLL",
    "SATModel",
]
