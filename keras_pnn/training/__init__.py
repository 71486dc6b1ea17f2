"""Models with a train step of their own."""

from keras_pnn.training.ascent import ASAM, SAM
from keras_pnn.training.dat import DATModel
from keras_pnn.training.gradients import DeviceGradient, ModelGradient
from keras_pnn.training.misalignment import Autodiff, FiniteDifference
from keras_pnn.training.pat import PATModel
from keras_pnn.training.pruning import OpticalPruning
from keras_pnn.training.sat import SATModel
from keras_pnn.training.spsa import SPSA

__all__ = [
    "ASAM",
    "SAM",
    "SPSA",
    "Autodiff",
    "DATModel",
    "DeviceGradient",
    "FiniteDifference",
    "ModelGradient",
    "OpticalPruning",
    "PATModel",
    "SATModel",
]
