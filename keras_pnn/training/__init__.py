"""Train models by steps of their own: sharpness-aware, physics-aware, dual adaptive."""

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
from keras_pnn.training.gradients.base import DeviceGradient, ModelGradient
from keras_pnn.training.gradients.spsa import SPSA
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
    "SPSA",
    "Autodiff",
    "DATModel",
    "DeviceGradient",
    "FiniteDifference",
    "FriendlySAM",
    "LookSAM",
    "ModelGradient",
    "OpticalPruning",
    "PATModel",
    "SATModel",
]
