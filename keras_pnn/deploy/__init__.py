"""Turn a model into files for the laboratory, and read them back."""

from keras_pnn.deploy.controls import export_controls, load_controls
from keras_pnn.deploy.conversion import Conversion, convert

__all__ = ["Conversion", "convert", "export_controls", "load_controls"]
