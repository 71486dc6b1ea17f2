"""Compute heater power, resonance shift and thermal crosstalk from currents."""

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics._tensors import TensorLike, as_tensors


def power(current: TensorLike, resistance: TensorLike = 375.0) -> tf.Tensor:
    """Computes the electrical power of a heater in mW, `P = I² R`.

    Args:
        current: Current in mA, finite.
        resistance: Resistance in Ω, positive.

    Returns:
        Float tensor, the power in mW.

    Raises:
        ValueError: If, eagerly, an argument is out of its range.

    Example:

    >>> round(float(power(1.229)), 3)
    0.566

    Reference:

    - Xu et al., arXiv:2411.12352: 375 Ω on the microring chip.
    """
    _checks.tensor("current", current, np.isfinite, "finite")
    _checks.positive("resistance", resistance)
    current, resistance = as_tensors(current, resistance)
    # mA² Ω is µW.
    return tf.square(current) * (resistance / 1000)


def resonance_shift(
    current: TensorLike,
    efficiency: TensorLike = 0.53,
    resistance: TensorLike = 375.0,
    crosstalk: TensorLike | None = None,
) -> tf.Tensor:
    """Computes resonance shifts by heaters, `shift_i = efficiency Σ_j K_ij P_j`.

    Args:
        current: Current in mA; with `crosstalk`, of shape `(..., n)`.
        efficiency: Shift per power, in nm/mW, positive.
        resistance: Resistance in Ω, positive.
        crosstalk: Float tensor of shape `(n, n)`, or `None`. Entry `(i, j)` is
            the share of heater j's power that reaches ring i; measured, or from
            `crosstalk_matrix`. `None`: each heater warms its own ring only.

    Returns:
        Float tensor, the shifts in nm.

    Raises:
        ValueError: If `crosstalk` does not fit the rings, or eagerly: an argument is
            out of its range, or `crosstalk` is not finite.

    Example:

    >>> round(float(resonance_shift(1.229)), 3)
    0.3

    Reference:

    - Xu et al., arXiv:2411.12352: 0.53 nm/mW on the microring chip.
    """
    _checks.positive("efficiency", efficiency)
    if crosstalk is None:
        heat, efficiency = as_tensors(power(current, resistance), efficiency)
        return efficiency * heat
    _checks.tensor("crosstalk", crosstalk, np.isfinite, "finite")
    heat, efficiency, crosstalk = as_tensors(
        power(current, resistance), efficiency, crosstalk
    )
    rings = heat.shape[-1] if heat.shape.rank else None
    if not crosstalk.shape.is_compatible_with((rings, rings)) or not heat.shape.rank:
        raise ValueError(
            "Argument `crosstalk` must have the shape (n, n) for currents of shape "
            f"(..., n). Received: shape {crosstalk.shape} for currents of shape "
            f"{heat.shape}"
        )
    return efficiency * tf.tensordot(heat, crosstalk, [[-1], [1]])


def current_for_shift(
    shift: np.ndarray, efficiency: float, resistance: float
) -> np.ndarray:
    """Solves for the heater current in mA that gives a resonance shift.

    Args:
        shift: shifts in nm, 0 or more.
        efficiency: shift per power, in nm/mW, positive.
        resistance: resistance in Ω, positive.

    Returns:
        Array, the currents in mA.

    Example:

    >>> float(np.round(current_for_shift(np.array(0.3), 0.53, 375.0), 3))
    1.229
    """
    return np.sqrt(shift / (efficiency * resistance / 1000))


def crosstalk_matrix(
    positions: TensorLike, coefficient: TensorLike, decay_length: TensorLike
) -> tf.Tensor:
    """Models thermal crosstalk that decays with distance.

    `K_ii = 1`, `K_ij = coefficient * exp(-d_ij / decay_length)`, where `d_ij` is
    the Euclidean distance between rings i and j.

    Args:
        positions: Float tensor of shape `(n,)` or `(n, d)`. Positions of the
            rings, in any unit of length, such as µm.
        coefficient: Crosstalk at distance zero, one number of 0 or more.
        decay_length: Distance over which crosstalk falls to 1/e, in the same unit,
            positive.

    Returns:
        Float tensor of shape `(n, n)`.

    Raises:
        ValueError: If `positions` does not have one or two axes, or eagerly: an
            argument is out of range.

    Example:

    >>> crosstalk_matrix([0.0, 100.0], coefficient=0.1, decay_length=100.0).shape
    TensorShape([2, 2])

    Reference:

    - Xu et al., arXiv:2411.12352: thermal crosstalk between rings. The exponential
      is a common empirical model; `resonance_shift` takes a measured matrix as well.
    """
    _checks.tensor("positions", positions, np.isfinite, "finite")
    _checks.not_negative("coefficient", coefficient)
    _checks.positive("decay_length", decay_length)
    positions, coefficient, decay_length = as_tensors(
        positions, coefficient, decay_length
    )
    if positions.shape.rank == 1:
        positions = positions[:, None]
    if positions.shape.rank != 2:
        raise ValueError(
            "Argument `positions` must have the shape (n,) or (n, d). "
            f"Received: shape {positions.shape}"
        )
    decay = tf.exp(-_distances(positions) / decay_length)
    own = tf.eye(tf.shape(positions)[0], dtype=positions.dtype)
    return own + (1 - own) * coefficient * decay


def nearest_neighbour(shape: tuple[int, int], coefficient: float) -> np.ndarray:
    """Models thermal crosstalk between neighbours in rows and columns.

    Args:
        shape: Rows and columns of the heaters.
        coefficient: Share of a heater's power that reaches each neighbour, in [0, 1].

    Returns:
        Float64 array of shape (rows · columns, rows · columns), heaters row by row,
        with ones on the diagonal.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> nearest_neighbour((2, 2), 0.03)[0].tolist()
    [1.0, 0.03, 0.03, 0.0]
    """
    rows, columns = _checks.pair("shape", shape, low=1)
    coefficient = _checks.real("coefficient", coefficient, 0, 1)
    row, column = np.divmod(np.arange(rows * columns), columns)
    apart = abs(np.subtract.outer(row, row)) + abs(np.subtract.outer(column, column))
    return np.eye(rows * columns) + coefficient * (apart == 1)


def _distances(positions):
    square = tf.reduce_sum((positions[:, None] - positions[None]) ** 2, axis=-1)
    # The derivative of the root is infinite at 0, so 0 is replaced before it.
    apart = square > 0
    return tf.where(apart, tf.sqrt(tf.where(apart, square, 1)), 0)
