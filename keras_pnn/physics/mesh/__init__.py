"""Compute the unitary of a mesh of interferometers from its phases."""

from keras_pnn.physics.mesh.lattice import cell_mask
from keras_pnn.physics.mesh.transfer import propagate, transfer_matrix
from keras_pnn.physics.mesh.wrapping import half_turns, wrapped

__all__ = ["cell_mask", "half_turns", "propagate", "transfer_matrix", "wrapped"]
