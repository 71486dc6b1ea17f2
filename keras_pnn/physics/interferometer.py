"""Compute the transfer matrix of a Mach–Zehnder interferometer (MZI).

It has two splitters around a phase shifter, and a phase shifter at the upper output:

        theta           phi
top    ──╮ ╭──[θ]──╮ ╭──[φ]──  top
         ╳         ╳
bottom ──╯ ╰───────╯ ╰───────  bottom
"""

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics._tensors import TensorLike, as_tensors, broadcast_shape


def transfer_matrix(
    theta: TensorLike,
    phi: TensorLike,
    splitter_error: TensorLike = (0.0, 0.0),
    loss_db: TensorLike = 0.0,
) -> tf.Tensor:
    """Computes the 2×2 matrix from the input fields to the output fields.

    With the splitters' angle errors ε₁, ε₂, their sum Σ and difference Δ = ε₁ − ε₂,

        S = [[−sin Σ cos θ/2 + i cos Δ sin θ/2, −sin Δ sin θ/2 + i cos Σ cos θ/2],
             [ sin Δ sin θ/2 + i cos Σ cos θ/2, −sin Σ cos θ/2 − i cos Δ sin θ/2]]
        T = 10^(−loss/20) · diag(e^{iφ}, 1) · S

    so that an ideal cell is i [[e^{iφ} sin θ/2, e^{iφ} cos θ/2], [cos θ/2, −sin θ/2]]:
    cross at θ = 0, bar at θ = π. The common phase is that of an MZI whose arms carry
    +θ/2 and −θ/2.

    Args:
        theta: Phase between the arms, in rad.
        phi: Phase of the upper output, in rad.
        splitter_error: Float tensor of shape (..., 2), in rad, or a number for both.
            Deviation of each splitter, in the order in which light meets them, from
            50:50: amplitudes cos(π/4 + ε) straight on and i sin(π/4 + ε) across.
        loss_db: Insertion loss of the cell, in dB, 0 or more.

    Returns:
        Complex tensor of shape (..., 2, 2).

    Raises:
        ValueError: If the shapes do not fit, or eagerly: a phase or an error is not
            finite, or a loss is negative.

    Example:

    >>> bar = transfer_matrix(np.pi, 0.0)
    >>> np.abs(bar.numpy()).round(6)
    array([[1., 0.],
           [0., 1.]], dtype=float32)

    Reference:

    - Bandyopadhyay, Hamerly, Englund, Optica 8:1247 (2021): imperfect splitters.
    """
    angles = {"theta": theta, "phi": phi, "splitter_error": splitter_error}
    for name, value in angles.items():
        _checks.tensor(name, value, np.isfinite, "finite")
    _checks.not_negative("loss_db", loss_db)
    theta, phi, splitter_error, loss_db = as_tensors(
        theta, phi, splitter_error, loss_db
    )
    first, second = of_splitters(splitter_error)
    shapes = [theta.shape, phi.shape, first.shape, loss_db.shape]
    if broadcast_shape(*shapes) is None:
        raise ValueError(
            "`theta`, `phi`, `splitter_error` without its last axis and `loss_db` must "
            f"broadcast. Received: shapes {[tuple(s) for s in shapes]}"
        )
    # The lower output does not depend on phi, but takes the common shape.
    theta = theta + tf.zeros_like(phi)
    t11, t12, t21, t22 = entries(theta, phi, first, second, field_factor(loss_db))
    rows = [tf.stack([t11, t12], axis=-1), tf.stack([t21, t22], axis=-1)]
    return tf.stack(rows, axis=-2)


def of_splitters(splitter_error: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the angle errors of the first and of the second splitter.

    Args:
        splitter_error: tensor of shape (..., 2), in rad, or a number for both.

    Returns:
        Two tensors of shape (...), in rad.

    Raises:
        ValueError: If the last axis is not 2.

    Example:

    >>> first, second = of_splitters(tf.constant([0.1, 0.2]))
    >>> round(float(second), 3)
    0.2
    """
    if not splitter_error.shape.rank:
        return splitter_error, splitter_error
    if splitter_error.shape[-1] != 2:
        raise ValueError(
            "The last axis of `splitter_error` must be 2, one angle for each splitter. "
            f"Received: shape {tuple(splitter_error.shape)}"
        )
    return splitter_error[..., 0], splitter_error[..., 1]


def field_factor(loss_db: tf.Tensor) -> tf.Tensor:
    """Converts a power loss in dB to the factor of the field.

    Args:
        loss_db: power loss in dB, 0 or more.

    Returns:
        Float tensor, from 0 to 1.

    Example:

    >>> float(field_factor(tf.constant(20.0)))
    0.10000000149011612
    """
    return 10.0 ** (-loss_db / 20)


def entries(theta, phi, first, second, amplitude) -> tuple[tf.Tensor, ...]:
    """Computes T₁₁, T₁₂, T₂₁, T₂₂ of `transfer_matrix`, from tensors of one dtype.

    The last two elements do not depend on `phi`, nor on its shape.

    Args:
        theta, phi: phases in rad.
        first, second: angle errors of the splitters, in rad.
        amplitude: factor of the field, from 0 to 1.

    Returns:
        Four complex tensors.

    Example:

    >>> zero = tf.constant(0.0)
    >>> t11, t12, t21, t22 = entries(zero, zero, zero, zero, tf.constant(1.0))
    >>> abs(complex(t12)), abs(complex(t11))  # cross
    (1.0, 0.0)
    """
    cos, sin = amplitude * tf.cos(theta / 2), amplitude * tf.sin(theta / 2)
    sum_cos, sum_sin = tf.cos(first + second), tf.sin(first + second)
    diff_cos, diff_sin = tf.cos(first - second), tf.sin(first - second)
    common, bar = -sum_sin * cos, diff_cos * sin
    across, odd = sum_cos * cos, diff_sin * sin
    turn_cos, turn_sin = tf.cos(phi), tf.sin(phi)

    def turned(real, imag):
        return tf.complex(
            turn_cos * real - turn_sin * imag, turn_sin * real + turn_cos * imag
        )

    t11, t12 = turned(common, bar), turned(-odd, across)
    t21, t22 = tf.complex(odd, across), tf.complex(common, -bar)
    return t11, t12, t21, t22


def angle_from_imbalance(imbalance: TensorLike) -> tf.Tensor:
    """Converts the power imbalance e of a splitter to its angle error ε in rad.

    The splitter sends (1 + e)/2 of the power straight on and (1 − e)/2 across.
    e = −sin 2ε, so that ε = −arcsin(e)/2.

    Args:
        imbalance: power straight on minus power across, as a share, in [−1, 1].

    Returns:
        Float tensor, the angle error in rad.

    Raises:
        ValueError: If, eagerly, `imbalance` is outside [−1, 1].

    Example:

    >>> round(float(angle_from_imbalance(0.15)), 4)
    -0.0753
    """
    _checks.tensor("imbalance", imbalance, lambda v: np.abs(v) <= 1, "in [-1, 1]")
    (imbalance,) = as_tensors(imbalance)
    return -0.5 * tf.asin(imbalance)


def imbalance_from_angle(angle: TensorLike) -> tf.Tensor:
    """Converts the angle error of a splitter to its power imbalance, e = −sin 2ε.

    The inverse of `angle_from_imbalance`.

    Args:
        angle: angle error in rad.

    Returns:
        Float tensor, from −1 to 1.

    Raises:
        ValueError: If, eagerly, `angle` is not finite.

    Example:

    >>> round(float(imbalance_from_angle(-0.0753)), 3)
    0.15
    """
    _checks.tensor("angle", angle, np.isfinite, "finite")
    (angle,) = as_tensors(angle)
    return -tf.sin(2 * angle)
