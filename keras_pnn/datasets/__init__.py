"""Load image data sets, and batch samples in a reproducible order."""

from keras_pnn.datasets.batches import Batches
from keras_pnn.datasets.loaders import Dataset, load

__all__ = ["Batches", "Dataset", "load"]
