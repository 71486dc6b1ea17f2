"""Decompose unitaries by nulling one element with each cell, in NumPy float64."""

import cmath
import math

import numpy as np

from keras_pnn import _checks
from keras_pnn.physics.decompose.mesh_phases import MeshPhases, wrap
from keras_pnn.physics.mesh.lattice import cell_mask

# Wide enough for a unitary computed in single precision.
_TOLERANCE = 1e-5


def phases(unitary: np.ndarray, arrangement: str = "clements") -> MeshPhases:
    """Decomposes a unitary into the phases of a mesh without errors.

    The product of the cells equals the unitary to rounding. A cell whose two elements
    are both exactly 0 is set to the bar state; if rounding makes them differ from 0, as
    behind many such cells, its phases are arbitrary.

    Args:
        unitary: Array of shape (N, N), N ≥ 2, with all |U†U − 1| within 1e-5.
        arrangement: `"clements"` or `"reck"`.

    Returns:
        `MeshPhases`, with θ in [0, π], φ and γ in (−π, π].

    Raises:
        ValueError: If `unitary` is not a square unitary matrix of 2 modes or more, or
            `arrangement` is unknown.

    Example:

    >>> swap = phases([[0, 1], [1, 0]])
    >>> swap.theta
    array([[0.],
           [0.]])

    Reference:

    - Clements et al., Optica 3:1460 (2016).
    - Reck et al., Phys. Rev. Lett. 73:58 (1994).
    """
    matrix = _unitary(unitary)
    shape = cell_mask(len(matrix), arrangement).shape
    theta, phi = np.zeros(shape), np.zeros(shape)
    null = _null_rectangle if arrangement == "clements" else _null_triangle
    gamma = null(matrix, theta, phi)
    return MeshPhases(theta, wrap(phi), wrap(gamma), arrangement)


def _null_rectangle(u, theta, phi):
    """Fills `theta` and `phi`, overwrites `u`, returns gamma.

    The matrix is nulled below its diagonal, from the right by cells near the input and
    from the left by cells near the output. The diagonal that remains in the middle is
    moved to the input.
    """
    n = len(u)
    inner = []
    for diagonal in range(n - 1):
        for j in range(diagonal + 1):
            if diagonal % 2 == 0:
                row, m, column = n - 1 - j, diagonal - j, j
                angle, phase = _null_first(u[row, m], u[row, m + 1])
                # Below `row` both columns hold zeros: they stay exact.
                inverse = _cell(angle, 0, phase).conj().T
                u[: row + 1, m : m + 2] = u[: row + 1, m : m + 2] @ inverse
                u[row, m] = 0
                inner.append((column, m, phase))
            else:
                m, column = n - 2 - diagonal + j, n - 1 - j
                angle, phase = _null_second(u[m, j], u[m + 1, j])
                u[m : m + 2, j:] = _cell(angle, phase).conj().T @ u[m : m + 2, j:]
                u[m + 1, j] = 0
                phi[column, m // 2] = phase
            theta[column, m // 2] = angle
    gamma = np.angle(np.diagonal(u)).tolist()
    # diag(d₁, d₂) S diag(α, 1) = diag(d₁ − d₂, 0) S diag(α + d₂, d₂), as angles.
    for column, m, phase in reversed(inner):
        phi[column, m // 2] = gamma[m] - gamma[m + 1]
        gamma[m] = math.remainder(phase + gamma[m + 1], math.tau)
    return np.array(gamma)


def _null_triangle(u, theta, phi):
    """As `_null_rectangle`, but nulls above the diagonal, and only from the left."""
    n = len(u)
    for diagonal in range(n - 1):
        j = n - 1 - diagonal
        for m in range(j):
            angle, phase = _null_first(u[m, j], u[m + 1, j])
            u[m : m + 2, : j + 1] = _cell(angle, phase).conj().T @ u[m : m + 2, : j + 1]
            u[m, j] = 0
            column = 2 * (n - 2 - diagonal) - m
            theta[column, m // 2], phi[column, m // 2] = angle, phase
    return np.angle(np.diagonal(u))


def _null_first(first, second):
    """Returns (θ, φ) of the cell whose inverse nulls `first`."""
    if first == 0 or second == 0:
        return (math.pi if first == 0 else 0.0), 0.0
    angle = 2 * math.atan2(abs(second), abs(first))
    return angle, cmath.phase(first) - cmath.phase(second) + math.pi


def _null_second(first, second):
    """Returns (θ, φ) of the cell whose inverse nulls `second`."""
    if first == 0 or second == 0:
        return (math.pi if second == 0 else 0.0), 0.0
    angle = 2 * math.atan2(abs(first), abs(second))
    return angle, cmath.phase(first) - cmath.phase(second)


def _cell(theta, output_phase, input_phase=0.0):
    """Returns an ideal cell's matrix, with a phase at the upper output and input."""
    sin, cos = math.sin(theta / 2), math.cos(theta / 2)
    out, into = cmath.exp(1j * output_phase), cmath.exp(1j * input_phase)
    return np.array(
        [[1j * out * sin * into, 1j * out * cos], [1j * cos * into, -1j * sin]]
    )


def _unitary(value):
    """Copies a value to a complex128 matrix; raises an error if it is not unitary."""
    try:
        matrix = np.array(value, "complex128")
    except (TypeError, ValueError):
        received = _checks.short(value)
        raise _checks.error("unitary", "a matrix of numbers", received) from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        expected = "a square matrix of 2 modes or more"
        raise _checks.error("unitary", expected, f"shape {matrix.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.abs(matrix.conj().T @ matrix - np.eye(len(matrix))).max()
    # Written so that NaN fails too.
    if not distance <= _TOLERANCE:
        received = f"a matrix with max |U†U − 1| = {distance:.3g}"
        raise _checks.error("unitary", f"unitary within {_TOLERANCE:g}", received)
    return matrix
