"""Decompose unitaries into the phases of a mesh, and correct them for a chip."""

from keras_pnn.physics.decompose.correction import Correction, compensated, correct
from keras_pnn.physics.decompose.mesh_phases import MeshPhases, haar_phases
from keras_pnn.physics.decompose.nulling import phases

__all__ = [
    "Correction",
    "MeshPhases",
    "compensated",
    "correct",
    "haar_phases",
    "phases",
]
