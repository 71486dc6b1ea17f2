"""Meshes of interferometers: from phases to a unitary."""

from keras_pnn.physics.mesh.lattice import cell_mask
from keras_pnn.physics.mesh.transfer import (
    half_turns,
    propagate,
    transfer_matrix,
    wrapped,
)

__all__ = ["cell_mask", "half_turns", "propagate", "transfer_matrix", "wrapped"]
