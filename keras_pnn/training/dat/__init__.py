"""Dual adaptive training: a digital twin that learns the device's errors."""

from keras_pnn.training.dat.model import DATModel

__all__ = ["DATModel"]
