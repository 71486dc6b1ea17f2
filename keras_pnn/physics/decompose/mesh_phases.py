"""Hold the phases of a mesh."""

import dataclasses

import numpy as np

from keras_pnn import _checks
from keras_pnn.physics.mesh.lattice import cell_mask


@dataclasses.dataclass(frozen=True, eq=False)
class MeshPhases:
    """The phases of a mesh, in rad.

    Light passes the phases γ on all modes, then column 0, column 1, …:
    `U = C[K-1] ⋯ C[0] diag(exp(iγ))`. A cell on the modes (m, m + 1) is

        T = i [[e^{iφ} sin θ/2, e^{iφ} cos θ/2], [cos θ/2, −sin θ/2]]

    so that θ = π is the bar state, θ = 0 the cross state, and φ sits at the upper
    output. Slot j of an even column couples the modes (2j, 2j + 1), slot j of an odd
    column the modes (2j + 1, 2j + 2). Slots without a cell hold 0, whatever is given
    there.

    Args:
        theta: Array of shape (columns, modes // 2).
        phi: Array of shape (columns, modes // 2).
        gamma: Array of shape (modes,).
        arrangement: `"clements"`, the rectangle of `modes` columns, or `"reck"`, the
            triangle of `2 * modes - 3`.

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
                expected = (
                    f"of shape {mask.shape} for {gamma.size} modes of arrangement "
                    f"{self.arrangement!r}"
                )
                raise _checks.error(name, expected, f"shape {value.shape}")
            object.__setattr__(self, name, np.where(mask, value, 0.0))

    def to_dict(self) -> dict:
        """Returns the arguments as JSON values."""
        return {
            "theta": self.theta.tolist(),
            "phi": self.phi.tolist(),
            "gamma": self.gamma.tolist(),
            "arrangement": self.arrangement,
        }


def wrap(angle):
    """Wraps angles to (−π, π]."""
    angle = np.angle(np.exp(1j * angle))
    return np.where(angle > -np.pi, angle, np.pi)
