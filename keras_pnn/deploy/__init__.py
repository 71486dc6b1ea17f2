"""Convert models to optics, estimate hardware cost, and export controls."""

from keras_pnn.deploy.controls import export_controls, load_controls
from keras_pnn.deploy.conversion import Conversion, convert
from keras_pnn.deploy.cost import HardwareCost, hardware_cost

__all__ = [
    "Conversion",
    "HardwareCost",
    "convert",
    "export_controls",
    "hardware_cost",
    "load_controls",
]
