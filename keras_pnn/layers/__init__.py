"""Keras layers made of photonic devices."""

from keras_pnn.layers.limits import ControlRange, Quantizer
from keras_pnn.layers.mrr import MRRBank, MRRConv2D
from keras_pnn.layers.physical import PhysicalLayer, controls_of, physical_layers

__all__ = [
    "ControlRange",
    "MRRBank",
    "MRRConv2D",
    "PhysicalLayer",
    "Quantizer",
    "controls_of",
    "physical_layers",
]
