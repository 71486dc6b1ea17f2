"""Keras layers made of photonic devices."""

from keras_pnn.layers.limits import ControlRange, Quantizer
from keras_pnn.layers.mrr import MRRBank, MRRConv2D
from keras_pnn.layers.physical import PhysicalLayer

__all__ = ["ControlRange", "MRRBank", "MRRConv2D", "PhysicalLayer", "Quantizer"]
