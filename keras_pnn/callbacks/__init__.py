"""Analyse, checkpoint and drift a model during `fit`."""

from keras_pnn.callbacks.checkpoint import Checkpoint
from keras_pnn.callbacks.curvature import HessianEigenvalues, LossLandscape
from keras_pnn.callbacks.drift import DriftInjection
from keras_pnn.callbacks.robustness import RobustnessReport
from keras_pnn.training.batch_order import BatchOrder

__all__ = [
    "BatchOrder",
    "Checkpoint",
    "DriftInjection",
    "HessianEigenvalues",
    "LossLandscape",
    "RobustnessReport",
]
