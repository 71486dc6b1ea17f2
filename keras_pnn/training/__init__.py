"""Models with a train step of their own."""

from keras_pnn.training.ascent import ASAM, SAM
from keras_pnn.training.misalignment import Autodiff, FiniteDifference
from keras_pnn.training.pruning import OpticalPruning
from keras_pnn.training.sat import SATModel

__all__ = [
    "ASAM",
    "SAM",
    "Autodiff",
    "FiniteDifference",
    "OpticalPruning",
    "SATModel",
]
