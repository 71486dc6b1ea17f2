"""Wrap the phases of a mesh to one turn without changing its matrix."""

import functools

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics._tensors import TensorLike, as_tensors, broadcast_shape, sizes
from keras_pnn.physics.mesh.lattice import cell_mask
from keras_pnn.physics.mesh.transfer import modes_of


def wrapped(
    theta: TensorLike,
    phi: TensorLike,
    gamma: TensorLike = 0.0,
    arrangement: str = "clements",
    low: float = 0.0,
    high: float | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Wraps phases to [low, low + 2π) without changing the matrix.

    phi and gamma have the period 2π, theta does not: a cell depends on θ/2, so one
    turn flips the sign of both of its outputs. These signs are moved towards the
    input. With signs diag(±1, ±1) behind a cell, the sign of the lower output moves to
    both inputs of the cell, and π is added to its phi if the two signs differ. A sign
    that arrives at the input of the mesh adds π to gamma.

    The matrix stays the same for all errors and losses, but not with crosstalk.

    Args:
        theta: Float tensor of shape (columns, modes // 2), in rad. All arguments may
            have further leading axes.
        phi: Float tensor of the same shape, in rad.
        gamma: Float tensor of shape (modes,), in rad.
        arrangement: `"clements"` or `"reck"`.
        low: the lowest phase, in rad.
        high: `None`, or the highest phase of a converter: phases from `low` to
            `high` stay as they are, even if that is more than a turn.

    Returns:
        theta, phi and gamma, each in [low, low + 2π) or up to `high`. The derivative
        of each with respect to the argument of the same name is 1.

    Raises:
        ValueError: If shapes do not fit, `low` is not finite, `high` is not above it,
            or eagerly: a phase is not finite.

    Example:

    >>> theta, phi, gamma = wrapped([[-0.5], [0.0]], [[1.0], [0.0]])
    >>> gamma.numpy().round(3)
    array([3.142, 3.142], dtype=float32)
    """
    for name, value in (("theta", theta), ("phi", phi), ("gamma", gamma)):
        _checks.tensor(name, value, np.isfinite, "finite")
    low = _checks.real("low", low)
    high = _checks.optional(_checks.real, "high", high, above=low)
    theta, phi, gamma = as_tensors(theta, phi, gamma)
    modes = modes_of(theta, phi, gamma, arrangement)
    leading = [theta.shape[:-2], phi.shape[:-2], gamma.shape[:-1]]
    if broadcast_shape(*leading) is None:
        raise ValueError(
            "The leading axes of `theta`, `phi` and `gamma` must broadcast. "
            f"Received: {[tuple(s) for s in leading]}"
        )
    theta, turns = _within_a_turn(theta, low, high)
    of_phi, of_gamma = half_turns(turns, modes, arrangement)
    phi, _ = _within_a_turn(phi + np.pi * of_phi, low, high)
    gamma, _ = _within_a_turn(gamma + np.pi * of_gamma, low, high)
    return theta, phi, gamma


def half_turns(
    turns: tf.Tensor, modes: int, arrangement: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the half turns of phi and gamma that compensate turns of theta.

    Args:
        turns: Float tensor of shape (..., columns, modes // 2): the number of turns
            subtracted from each theta. Slots without a cell are ignored.
        modes, arrangement: As in `cell_mask`.

    Returns:
        Float tensors of 0 and 1, of the shape of `turns` and of shape (..., modes).

    Example:

    >>> of_phi, of_gamma = half_turns(tf.zeros((4, 2)), 4, "clements")
    >>> of_gamma.numpy()
    array([0., 0., 0., 0.], dtype=float32)
    """
    mask = cell_mask(modes, arrangement)
    top, bottom, first = _followers(modes, arrangement)
    shape = sizes(turns)
    odd = tf.math.floormod(turns, 2) * tf.cast(mask, turns.dtype)
    flat = tf.reshape(odd, [*shape[:-2], mask.size])
    # The sign at both inputs of a cell is the product over this cell and those that
    # follow along lower outputs. Exponents are summed over 1, 2, 4, … cells.
    signs = tf.concat([flat, tf.zeros_like(flat[..., :1])], axis=-1)
    for ahead in bottom:
        signs += tf.gather(signs, ahead, axis=-1)
    upper = tf.gather(signs, top, axis=-1)
    # The sign at a cell's lower output lacks the cell's own factor.
    of_phi = tf.math.floormod(upper + signs[..., :-1] - flat, 2)
    of_gamma = tf.math.floormod(tf.gather(signs, first, axis=-1), 2)
    return tf.reshape(of_phi, shape), of_gamma


@functools.lru_cache
def _followers(modes: int, arrangement: str):
    """Returns the next cell on the path of the light from each cell.

    Slots are numbered column by column; an index equal to their number stands for the
    output of the mesh.

    Returns:
        For each slot, the next cell on the mode of its upper output; a list of arrays
        with, for each slot and the output, the 1st, 2nd, 4th, … cell on the path that
        leaves every cell by its lower output; and for each mode its first cell.
    """
    mask = cell_mask(modes, arrangement)
    end = mask.size
    number = np.arange(end, dtype="int32").reshape(mask.shape)
    top, bottom = np.full((2, end + 1), end, "int32")
    ahead = np.full(modes, end, "int32")
    for column in reversed(range(len(mask))):
        cells = number[column, mask[column]]
        upper = 2 * np.flatnonzero(mask[column]) + column % 2
        top[cells], bottom[cells] = ahead[upper], ahead[upper + 1]
        ahead[upper] = ahead[upper + 1] = cells
    powers = []
    while (bottom < end).any():
        powers.append(bottom)
        bottom = bottom[bottom]
    return top[:end], powers, ahead


def _within_a_turn(phase, low, high):
    """Returns phases in [low, low + 2π), derivative 1, and the turns subtracted."""
    low = tf.constant(low, phase.dtype)
    within = tf.math.floormod(phase - low, 2 * np.pi) + low
    # A phase slightly below `low` may have been rounded up to a whole turn.
    top = tf.constant(2 * np.pi, within.dtype) + low
    rounded = tf.where(within < top, tf.zeros_like(within), within - low)
    within -= tf.stop_gradient(rounded)
    if high is not None:
        stays = (phase >= low) & (phase <= tf.constant(high, phase.dtype))
        within = tf.where(stays, phase, within)
    turns = tf.round((phase - within) / (2 * np.pi))
    return within, tf.stop_gradient(turns)
