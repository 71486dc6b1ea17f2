"""Compute with photonic devices as Keras layers."""

from keras_pnn.layers import mesh_initializers
from keras_pnn.layers.detectors import (
    ADC,
    BalancedDetector,
    HomodyneDetector,
    Photodetector,
    ShotNoise,
)
from keras_pnn.layers.limits import DAC, ControlRange
from keras_pnn.layers.lookup import controls_of, physical_layers
from keras_pnn.layers.mrr import MRRBank, MRRConv2D
from keras_pnn.layers.mzi import MZIMesh
from keras_pnn.layers.mzi_dense import Attenuators, MZIDense
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.layers.slm import MaskedSLM

__all__ = [
    "ADC",
    "DAC",
    "Attenuators",
    "BalancedDetector",
    "ControlRange",
    "HomodyneDetector",
    "MRRBank",
    "MRRConv2D",
    "MZIDense",
    "MZIMesh",
    "MaskedSLM",
    "Photodetector",
    "PhysicalLayer",
    "ShotNoise",
    "controls_of",
    "mesh_initializers",
    "physical_layers",
]
