"""Thermo-optic heaters: current to power to resonance shift, and crosstalk."""

import numpy as np
import tensorflow as tf

from keras_pnn.physics._tensors import TensorLike, as_tensors, check, check_positive


def power(current: TensorLike, resistance: TensorLike = 375.0) -> tf.Tensor:
    """Electrical power of a heater, `P = I² R`.

    Args:
        current: Float tensor. Current in mA.
        resistance: Float tensor. Resistance in Ω.

    Returns:
        Float tensor. Power in mW, in the arguments' broadcast shape.

    Raises:
        ValueError: If a value known eagerly is not finite, or the resistance is
            not positive.

    Example:

    >>> round(float(power(1.229)), 3)
    0.566

    Reference:

    - Xu et al., arXiv:2411.12352: 375 Ω on the microring chip.
    """
    check("current", current, np.isfinite, "finite")
    check_positive("resistance", resistance)
    current, resistance = as_tensors(current, resistance)
    # mA² Ω is µW.
    return tf.square(current) * (resistance / 1000)


def resonance_shift(
    current: TensorLike,
    efficiency: TensorLike = 0.53,
    resistance: TensorLike = 375.0,
    crosstalk: TensorLike | None = None,
) -> tf.Tensor:
    """Resonance shift that heaters make: `shift_i = efficiency Σ_j K_ij P_j`.

    Args:
        current: Float tensor. Current in mA; with `crosstalk`, of shape
            `(..., n)`, one value per heater.
        efficiency: Float tensor. Shift per power, in nm/mW.
        resistance: Float tensor. Resistance in Ω.
        crosstalk: Float tensor of shape `(n, n)`, or None. Entry `(i, j)` is
            the share of heater j's power that ring i feels; measured, or from
            `crosstalk_matrix`. None: each ring feels its own heater only.

    Returns:
        Float tensor. Shift in nm, in the arguments' broadcast shape.

    Raises:
        ValueError: If a value known eagerly is not finite, if efficiency or
            resistance are not positive, or if the shape of `crosstalk` does
            not fit `current`.

    Example:

    >>> round(float(resonance_shift(1.229)), 3)
    0.3

    Reference:

    - Xu et al., arXiv:2411.12352: 0.53 nm/mW on the microring chip.
    """
    check_positive("efficiency", efficiency)
    if crosstalk is None:
        heat, efficiency = as_tensors(power(current, resistance), efficiency)
        return efficiency * heat
    check("crosstalk", crosstalk, np.isfinite, "finite")
    heat, efficiency, crosstalk = as_tensors(
        power(current, resistance), efficiency, crosstalk
    )
    rings = heat.shape[-1] if heat.shape.rank else None
    if not crosstalk.shape.is_compatible_with((rings, rings)) or not heat.shape.rank:
        raise ValueError(
            "`crosstalk` must have shape (n, n) for currents of shape (..., n). "
            f"Received: crosstalk.shape={crosstalk.shape}, "
            f"current.shape={heat.shape}"
        )
    return efficiency * tf.tensordot(heat, crosstalk, [[-1], [1]])


def crosstalk_matrix(
    positions: TensorLike, coefficient: TensorLike, decay_length: TensorLike
) -> tf.Tensor:
    """Thermal crosstalk that decays with distance.

    `K_ii = 1`, `K_ij = coefficient * exp(-d_ij / decay_length)`, where `d_ij` is
    the Euclidean distance of rings i and j.

    Args:
        positions: Float tensor of shape `(n,)` or `(n, d)`. Positions of the
            rings, in any unit of length (µm, say).
        coefficient: Float tensor, 0 or more. Crosstalk at distance zero.
        decay_length: Float tensor. Distance over which the crosstalk falls to
            1/e, in the unit of `positions`.

    Returns:
        Float tensor of shape `(n, n)`.

    Raises:
        ValueError: If a value known eagerly is not finite or out of its range,
            or if `positions` has neither one nor two axes.

    Example:

    >>> crosstalk_matrix([0.0, 100.0], coefficient=0.1, decay_length=100.0).shape
    TensorShape([2, 2])

    Reference:

    - Xu et al., arXiv:2411.12352 (thermal crosstalk between rings); the
      exponential is a common empirical model, and a measured matrix takes its
      place in `resonance_shift`.
    """
    check("positions", positions, np.isfinite, "finite")
    check(
        "coefficient",
        coefficient,
        lambda v: np.isfinite(v) & (v >= 0),
        "0 or more, and finite",
    )
    check_positive("decay_length", decay_length)
    positions, coefficient, decay_length = as_tensors(
        positions, coefficient, decay_length
    )
    if positions.shape.rank == 1:
        positions = positions[:, None]
    if positions.shape.rank != 2:
        raise ValueError(
            "`positions` must have shape (n,) or (n, d). "
            f"Received: positions.shape={positions.shape}"
        )
    decay = tf.exp(-_distances(positions) / decay_length)
    own = tf.eye(tf.shape(positions)[0], dtype=positions.dtype)
    return own + (1 - own) * coefficient * decay


def _distances(positions):
    square = tf.reduce_sum((positions[:, None] - positions[None]) ** 2, axis=-1)
    # The root has no derivative at 0: keep it away from there.
    apart = square > 0
    return tf.where(apart, tf.sqrt(tf.where(apart, square, 1)), 0)
