"""Train a digital twin that learns the device's errors: dual adaptive training."""

from keras_pnn.training.dat.model import DATModel

__all__ = ["DATModel"]
