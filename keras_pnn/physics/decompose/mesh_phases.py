"""Hold the phases of a mesh, and draw the phases of Haar-random unitaries."""

import dataclasses

import numpy as np

from keras_pnn import _checks
from keras_pnn._display import Brief
from keras_pnn.physics.mesh.lattice import cell_mask


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MeshPhases(Brief):
    """The phases of a mesh, in rad.

    Light passes the phases γ on all modes, then column 0, column 1, …:
    `U = C[K-1] ⋯ C[0] diag(exp(iγ))`. A cell on the modes (m, m + 1) is

        T = i [[e^{iφ} sin θ/2, e^{iφ} cos θ/2], [cos θ/2, −sin θ/2]]

    so that θ = π is the bar state, θ = 0 the cross state, and φ sits at the upper
    output. See `mesh.cell_mask` for the slots. Slots without a cell hold 0, whatever
    value is given.

    Args:
        theta: Array of shape (columns, modes // 2).
        phi: Array of shape (columns, modes // 2).
        gamma: Array of shape (modes,).
        arrangement: `"clements"`, the rectangle of `modes` columns, or `"reck"`, the
            triangle of `2 * modes - 3` columns.

    Raises:
        ValueError: If a shape does not fit `gamma` and `arrangement`, or a value is
            not a finite real number.

    Example:

    >>> bar = MeshPhases(theta=[[np.pi], [0]], phi=np.zeros((2, 1)), gamma=[0, 0])
    >>> bar.theta.shape
    (2, 1)
    """

    theta: np.ndarray
    phi: np.ndarray
    gamma: np.ndarray
    arrangement: str = "clements"

    def __post_init__(self):
        gamma = _checks.array("gamma", self.gamma)
        if gamma.ndim != 1:
            raise _checks.error("gamma", "of shape (modes,)", f"shape {gamma.shape}")
        mask = cell_mask(gamma.size, self.arrangement)
        object.__setattr__(self, "gamma", gamma)
        for name in ("theta", "phi"):
            value = _checks.array(name, getattr(self, name))
            if value.shape != mask.shape:
                mesh = f"{gamma.size} modes of arrangement {self.arrangement!r}"
                expected = f"of shape {mask.shape} for {mesh}"
                raise _checks.error(name, expected, f"shape {value.shape}")
            object.__setattr__(self, name, np.where(mask, value, 0.0))

    def to_dict(self) -> dict:
        """Returns the arguments as JSON values."""
        phases = {n: getattr(self, n).tolist() for n in ("theta", "phi", "gamma")}
        return {**phases, "arrangement": self.arrangement}


def wrap(angle) -> np.ndarray:
    """Wraps angles to (−π, π]."""
    angle = np.angle(np.exp(1j * angle))
    return np.where(angle > -np.pi, angle, np.pi)


def haar_phases(n: int, seed: int = 0, arrangement: str = "clements") -> MeshPhases:
    """Draws the phases of a Haar-random unitary, without the matrix.

    φ and γ are uniform, and all phases are independent. The power that a cell sends
    across, cos² θ/2, has a Beta(α, 1) distribution: U^{1/α}, U uniform. In the
    rectangle α = I + O − N − 1, where I inputs of the mesh lead to the cell and O
    outputs are reached from it: 1 at the corners, about N in the middle. In the
    triangle α = m + 1 for a cell on the modes (m, m + 1), in every column. Uniform θ
    do not give Haar-random unitaries.

    Args:
        n: Integer of 2 or more, the number of modes N.
        seed: Non-negative integer. The result is a pure function of the arguments.
        arrangement: `"clements"` or `"reck"`.

    Returns:
        `MeshPhases`, with θ in [0, π], φ and γ in (−π, π].

    Raises:
        ValueError: If `n` is not an integer of 2 or more, `seed` is not an integer of 0
            or more, or `arrangement` is unknown.

    Example:

    >>> haar_phases(4, seed=1).theta.shape
    (4, 2)

    Reference:

    - Russell et al., New J. Phys. 19:033007 (2017).
    - Pai et al., Phys. Rev. Applied 11:064044 (2019), for α by inputs and outputs.
    """
    n = _checks.integer("n", n, 2)
    mask = cell_mask(n, arrangement)
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    # −log U is exponential; expm1 keeps the bar power 1 − U^{1/α} accurate.
    exponent = rng.standard_exponential(mask.shape) / _haar_index(n, arrangement)
    theta = 2 * np.arctan2(np.sqrt(-np.expm1(-exponent)), np.exp(-exponent / 2))
    phi = np.pi * (1 - 2 * rng.random(mask.shape))
    gamma = np.pi * (1 - 2 * rng.random(n))
    return MeshPhases(theta, phi, gamma, arrangement)


def _haar_index(n, arrangement):
    """Returns α of each slot, at least 1 where there is no cell."""
    column = np.arange(cell_mask(n, arrangement).shape[0])[:, None]
    top = 2 * np.arange(n // 2)[None, :] + column % 2
    if arrangement == "reck":
        return top + 1

    def reach(columns):
        return np.minimum(n, top + 2 + columns) - np.maximum(0, top - columns)

    return np.maximum(1, reach(column) + reach(n - 1 - column) - n - 1)
