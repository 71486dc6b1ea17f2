"""Model photonic components as Keras layers."""

from keras_pnn.layers import mesh_initializers
from keras_pnn.layers.activations import Saturable, Threshold
from keras_pnn.layers.detector_array import DetectorArray
from keras_pnn.layers.detectors import (
    ADC,
    BalancedDetector,
    HomodyneDetector,
    Photodetector,
    ShotNoise,
)
from keras_pnn.layers.diffraction import (
    Aperture,
    Encode,
    FreeSpace,
    Lens,
    diffractive,
)
from keras_pnn.layers.diffraction_masks import (
    AmplitudeMask,
    PhaseBlocks,
    PhaseMask,
    PhaseRoughness,
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
    "AmplitudeMask",
    "Aperture",
    "Attenuators",
    "BalancedDetector",
    "ControlRange",
    "DetectorArray",
    "Encode",
    "FreeSpace",
    "HomodyneDetector",
    "Lens",
    "MRRBank",
    "MRRConv2D",
    "MZIDense",
    "MZIMesh",
    "MaskedSLM",
    "PhaseBlocks",
    "PhaseMask",
    "PhaseRoughness",
    "Photodetector",
    "PhysicalLayer",
    "Saturable",
    "ShotNoise",
    "Threshold",
    "controls_of",
    "diffractive",
    "mesh_initializers",
    "physical_layers",
]
