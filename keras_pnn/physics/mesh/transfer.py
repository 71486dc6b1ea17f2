"""Meshes of MZIs: from phases to the unitary, or to the field behind it.

Light meets the input phases gamma, one for each mode, then the columns one after the
other. Even columns couple the modes (0, 1), (2, 3), …, odd columns (1, 2), (3, 4), …:

    clements, 4 modes            reck, 4 modes

    ─γ─╮▔╭───────╮▔╭───────      ─γ─╮▔╭─────╮▔╭─────╮▔╭─
    ─γ─╯▁╰─╮▔╭───╯▁╰─╮▔╭───      ─γ─╯▁╰─╮▔╭─╯▁╰─╮▔╭─╯▁╰─
    ─γ─╮▔╭─╯▁╰───╮▔╭─╯▁╰───      ─γ─────╯▁╰─╮▔╭─╯▁╰─────
    ─γ─╯▁╰───────╯▁╰───────      ─γ─────────╯▁╰─────────

Phases have the shape (columns, modes // 2): (modes, modes // 2) in the rectangle and
(2 modes − 3, modes // 2) in the triangle. `cell_mask` says which of these slots hold
a cell. In the others the modes pass straight, and what is stored there is ignored.

**Cost.** A column-by-column program makes `modes` steps, each with little to compute.
Here the cells are combined into tiles of side s, s² cells on 2 s modes, by log₂ s
batched products, and columns / s + 1 stages of tiles act on the field. With N modes and
a batch of B that is in the rectangle about (2 + 2 s/N) N² B complex multiplications
for the field and 3 N² s for the tiles, against N² B for a dense matrix, in
log₂ s + N / s + 1 dependent steps. Where the batch is larger than the matrix, the
stages act on the identity instead, and the field meets one dense product:
(2 + 2 s/N) N³ + 3 N² s + N² B. The bound is arithmetic for large batches, and the many
small products for small ones.

The triangle holds as many cells in about twice as many columns, and tiles that it
leaves empty are computed all the same: about 2 N / s + 1 stages,
(4 + 2 s/N) N² B multiplications for the field and 6 N² s for the tiles.
"""

import functools
import math

import numpy as np
import tensorflow as tf

from keras_pnn.physics import interferometer
from keras_pnn.physics._tensors import (
    TensorLike,
    as_complex,
    as_tensors,
    check,
    check_loss,
)
from keras_pnn.physics.mesh import tiles as _tiles
from keras_pnn.physics.mesh.lattice import cell_mask, followers, tiling

__all__ = ["cell_mask", "propagate", "transfer_matrix", "wrapped"]


def transfer_matrix(
    theta: TensorLike,
    phi: TensorLike,
    gamma: TensorLike = 0.0,
    arrangement: str = "clements",
    *,
    theta_error: TensorLike = 0.0,
    phi_error: TensorLike = 0.0,
    splitter_error: TensorLike = 0.0,
    loss_db: TensorLike = 0.0,
    straight_loss_db: TensorLike = 0.0,
    crosstalk: TensorLike | None = None,
) -> tf.Tensor:
    """The matrix of a mesh: output fields = matrix @ input fields.

    All arguments but `straight_loss_db` and `crosstalk` may have further leading axes,
    which broadcast: one matrix for each device.

    Args:
        theta: Float tensor of shape (columns, modes // 2), in rad.
        phi: Float tensor of the same shape, in rad.
        gamma: Float tensor of shape (modes,), in rad. Phases at the input.
        arrangement: `"clements"`, the rectangle, or `"reck"`, the triangle.
        theta_error: Float tensor, in rad. Added to `theta`.
        phi_error: Float tensor, in rad. Added to `phi`.
        splitter_error: Float tensor of shape (columns, modes // 2, 2), in rad, or a
            number for all. See `interferometer.transfer_matrix`.
        loss_db: Float tensor, in dB, 0 or more. Insertion loss of each cell.
        straight_loss_db: Float, in dB, 0 or more, one number for all. Loss of a mode
            that passes a column without a cell.
        crosstalk: Float tensor of shape (2 n, 2 n), n the number of slots, one for all
            devices, or `None`.
            The phases that the shifters give for the phases that are set, first
            `theta`, then `phi`, column by column; see `heater.crosstalk_matrix`.

    Returns:
        Complex tensor of shape (modes, modes), after the leading axes.

    Raises:
        ValueError: If shapes do not fit each other or the arrangement, a value
            known eagerly is NaN or infinite, or a loss is negative.

    Example:

    >>> phases = decompose.haar_phases(8, seed=0)
    >>> u = transfer_matrix(phases.theta, phases.phi, phases.gamma)
    >>> np.abs(u @ tf.linalg.adjoint(u)).max().round(6)
    1.0

    Reference:

    - Clements et al., Optica 3:1460 (2016).
    """
    modes, tiles, turn, devices = _prepared(
        (theta, phi, gamma),
        arrangement,
        (theta_error, phi_error, splitter_error, loss_db, straight_loss_db),
        crosstalk,
    )
    matrix = _tiles.through(tiles, tf.linalg.diag(turn))
    return tf.reshape(matrix, [*devices, modes, modes])


def propagate(
    x: tf.Tensor | np.ndarray,
    theta: TensorLike,
    phi: TensorLike,
    gamma: TensorLike = 0.0,
    arrangement: str = "clements",
    *,
    theta_error: TensorLike = 0.0,
    phi_error: TensorLike = 0.0,
    splitter_error: TensorLike = 0.0,
    loss_db: TensorLike = 0.0,
    straight_loss_db: TensorLike = 0.0,
    crosstalk: TensorLike | None = None,
) -> tf.Tensor:
    """The fields behind a mesh.

    Args:
        x: Real or complex tensor of shape (..., modes): the fields in front of it.
            Where the phases have leading axes (devices), the shape is (batch, modes)
            for fields that all devices meet, or (*devices, batch, modes).
        theta: See `transfer_matrix`, here and below.
        phi: Float tensor, in rad.
        gamma: Float tensor, in rad.
        arrangement: `"clements"` or `"reck"`.
        theta_error: Float tensor, in rad.
        phi_error: Float tensor, in rad.
        splitter_error: Float tensor, in rad.
        loss_db: Float tensor, in dB.
        straight_loss_db: Float, in dB.
        crosstalk: Float tensor, or `None`.

    Returns:
        Complex tensor of the shape of `x`, (*devices, batch, modes) for devices.

    Raises:
        ValueError: As in `transfer_matrix`, or the last axis of `x` is not `modes`.
    """
    modes, tiles, turn, devices = _prepared(
        (theta, phi, gamma),
        arrangement,
        (theta_error, phi_error, splitter_error, loss_db, straight_loss_db),
        crosstalk,
    )
    x = tf.convert_to_tensor(x)
    x = tf.cast(x, tiles.dtype if x.dtype.is_complex else tiles.dtype.real_dtype)
    shape, rank = _tiles.sizes(x), len(devices)
    fits = len(shape) in (2, rank + 2) if rank else len(shape) >= 1
    if fits and rank and len(shape) > 2:
        pairs = zip(shape, devices, strict=False)
        fits = not any(_differ(size, count) for size, count in pairs)
    if not fits or shape[-1] != modes:
        of_devices = tuple(n if isinstance(n, int) else None for n in devices)
        raise ValueError(
            f"`x` must have the shape (..., {modes}), or for devices (batch, {modes}) "
            f"or (*devices, batch, {modes}). Received: shape {tuple(x.shape)} for "
            f"devices of shape {of_devices}"
        )
    if rank:
        x = tf.reshape(x, [-1, *shape[-2:]])
        shape = [*devices, *shape[-2:]]
    elif None in x.shape[:-1]:
        x = tf.reshape(x, [1, -1, modes])
    else:
        x = tf.reshape(x, [1, math.prod(shape[:-1]), modes])
    return tf.reshape(_propagated(x, tiles, turn), shape)


def wrapped(
    theta: TensorLike,
    phi: TensorLike,
    gamma: TensorLike = 0.0,
    arrangement: str = "clements",
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Phases in [0, 2π) of the same matrix, for heaters and converters.

    phi and gamma have the period 2π. theta has not: a cell depends on θ/2, so that a
    turn more changes the sign of both of its outputs. The signs that the turns leave
    over go towards the input. Of diag(±1, ±1) behind a cell the sign of the lower
    output passes to both of its inputs, and where the signs differ π is added to its
    phi. What arrives at the input adds π to gamma.

    The matrix is the same for all phase errors, splitter errors and losses. With
    crosstalk it is not, since shifters warm their neighbours by the phase that is set.

    Args:
        theta: Float tensor of shape (columns, modes // 2), in rad. All arguments may
            have further leading axes.
        phi: Float tensor of the same shape, in rad.
        gamma: Float tensor of shape (modes,), in rad.
        arrangement: `"clements"` or `"reck"`.

    Returns:
        theta, phi and gamma, each in [0, 2π). The derivative of each with respect to
        what it comes from is 1.

    Raises:
        ValueError: If shapes do not fit each other or the arrangement, or a value
            known eagerly is NaN or infinite.

    Example:

    >>> theta, phi, gamma = wrapped([[-0.5], [0.0]], [[1.0], [0.0]])
    >>> gamma.numpy().round(3)
    array([3.142, 3.142], dtype=float32)
    """
    for name, value in (("theta", theta), ("phi", phi), ("gamma", gamma)):
        check(name, value, np.isfinite, "finite")
    theta, phi, gamma = as_tensors(theta, phi, gamma)
    modes = _modes(theta, phi, gamma, arrangement)
    leading = [theta.shape[:-2], phi.shape[:-2], gamma.shape[:-1]]
    try:
        functools.reduce(tf.broadcast_static_shape, leading)
    except ValueError:
        raise ValueError(
            "The leading axes of `theta`, `phi` and `gamma` must broadcast. "
            f"Received: {[tuple(s) for s in leading]}"
        ) from None
    theta, turns = _within_a_turn(theta)
    of_phi, of_gamma = half_turns(turns, modes, arrangement)
    phi, _ = _within_a_turn(phi + np.pi * of_phi)
    gamma, _ = _within_a_turn(gamma + np.pi * of_gamma)
    return theta, phi, gamma


def half_turns(
    turns: tf.Tensor, modes: int, arrangement: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """The half turns of phi and gamma that make up for whole turns of theta.

    Args:
        turns: Float tensor of shape (..., columns, modes // 2): how many turns are
            taken from each theta. Slots without a cell are ignored.
        modes: Integer, the number of modes.
        arrangement: `"clements"` or `"reck"`.

    Returns:
        Float tensors of 0 and 1, of the shape of `turns` and of shape (..., modes).
    """
    mask, next_cells = cell_mask(modes, arrangement), followers(modes, arrangement)
    shape = _tiles.sizes(turns)
    odd = tf.math.floormod(turns, 2) * tf.cast(mask, turns.dtype)
    flat = tf.reshape(odd, [*shape[:-2], mask.size])
    # The sign at both inputs of a cell is its own times those of all cells on the way
    # by lower outputs, which is summed over 1, 2, 4, … of them.
    signs = tf.concat([flat, tf.zeros_like(flat[..., :1])], axis=-1)
    for ahead in next_cells.bottom:
        signs += tf.gather(signs, ahead, axis=-1)
    upper = tf.gather(signs, next_cells.top, axis=-1)
    # That at its lower output is that at its inputs without its own.
    of_phi = tf.math.floormod(upper + signs[..., :-1] - flat, 2)
    of_gamma = tf.math.floormod(tf.gather(signs, next_cells.first, axis=-1), 2)
    return tf.reshape(of_phi, shape), of_gamma


def _within_a_turn(phase):
    """(phases in [0, 2π), the turns taken from them); the derivative is 1."""
    within = tf.math.floormod(phase, 2 * np.pi)
    # What lies a little below 0 may have been rounded up to a whole turn.
    turn = tf.constant(2 * np.pi, within.dtype)
    within -= tf.stop_gradient(tf.where(within < turn, tf.zeros_like(within), within))
    turns = tf.round((phase - within) / (2 * np.pi))
    return within, tf.stop_gradient(turns)


# Up to this size the matrix costs little even where the batch is small.
_ALWAYS_BY_MATRIX = 64


def _propagated(x, tiles, turn):
    """Fields (devices or 1, batch, modes) behind tiles."""
    batch, modes = x.shape[1:]

    def by_matrix():
        matrix = _tiles.through(tiles, tf.linalg.diag(turn))
        return _times(x, matrix)

    def by_field():
        fields = as_complex(x, turn.dtype) * turn[:, None]
        fields = tf.transpose(fields, [0, 2, 1])
        return tf.transpose(_tiles.through(tiles, fields), [0, 2, 1])

    if batch is None and modes > _ALWAYS_BY_MATRIX:
        return tf.cond(tf.shape(x)[1] >= modes, by_matrix, by_field)
    return by_matrix() if batch is None or batch >= modes else by_field()


def _times(x, matrix):
    """x matrixᵀ by products of real numbers, which are faster on CPUs where large."""
    real, imag = tf.math.real(matrix), tf.math.imag(matrix)
    if x.dtype.is_complex:
        x = tf.concat([tf.math.real(x), tf.math.imag(x)], axis=-1)
        real, imag = tf.concat([real, -imag], -1), tf.concat([imag, real], -1)
    return tf.complex(
        tf.matmul(x, real, transpose_b=True), tf.matmul(x, imag, transpose_b=True)
    )


def _differ(size, other) -> bool:
    """Whether two sizes, tensors where they are not known yet, are known to differ."""
    return isinstance(size, int) and isinstance(other, int) and size != other


def _prepared(phases, arrangement, errors, crosstalk):
    """(modes, tiles, e^{iγ} of shape (devices or 1, modes), shape of the devices)."""
    for name, value in zip(("theta", "phi", "gamma"), phases, strict=True):
        check(name, value, np.isfinite, "finite")
    for name, value in zip(("theta_error", "phi_error"), errors[:2], strict=True):
        check(name, value, np.isfinite, "finite")
    check("splitter_error", errors[2], np.isfinite, "finite")
    for name, value in zip(("loss_db", "straight_loss_db"), errors[3:], strict=True):
        check_loss(name, value)
    theta, phi, gamma, *errors = as_tensors(*phases, *errors)
    theta_error, phi_error, splitter_error, loss_db, straight_loss_db = errors
    if straight_loss_db.shape.rank:
        raise ValueError(
            "`straight_loss_db` must be one number, in dB. "
            f"Received: shape {tuple(straight_loss_db.shape)}"
        )
    modes = _modes(theta, phi, gamma, arrangement)
    mask = cell_mask(modes, arrangement)
    if crosstalk is not None:
        theta, phi = _heated(theta, phi, crosstalk)
    first, second = interferometer.of_splitters(splitter_error)
    shapes = [v.shape for v in (theta, theta_error, phi, phi_error, loss_db, first)]
    try:
        shape = functools.reduce(tf.broadcast_static_shape, shapes)
        if tuple(shape[-2:]) == mask.shape:
            tf.broadcast_static_shape(shape[:-2], gamma.shape[:-1])
        else:
            shape = None
    except ValueError:
        shape = None
    if shape is None:
        raise ValueError(
            f"Phases, errors and losses must fit the {mask.shape} slots of the mesh, "
            "or be numbers, and further leading axes must broadcast, those of `gamma` "
            f"as well. Received: shapes {[tuple(s) for s in shapes]} of theta, "
            "theta_error, phi, phi_error, loss_db and splitter_error without its last "
            f"axis, and gamma of shape {tuple(gamma.shape)}"
        )
    theta, phi = theta + theta_error, phi + phi_error
    devices = _common_sizes(
        *(v[..., 0, 0] for v in (theta, phi, first, loss_db) if v.shape.rank > 2),
        *([gamma[..., 0]] if gamma.shape.rank > 1 else []),
    )
    # All four entries of a cell have the common shape.
    theta += tf.zeros_like(phi)
    if gamma.shape.rank > 1:
        theta = tf.broadcast_to(theta, [*devices, *mask.shape])
    amplitude = interferometer.field_factor(loss_db)
    entries = tf.stack(interferometer.entries(theta, phi, first, second, amplitude))
    entries = tf.reshape(entries, [4, _count(devices), mask.size])
    straight = interferometer.field_factor(straight_loss_db)
    plan = tiling(modes, arrangement, _side(modes))
    tiles = _tiles.combined(entries, straight, plan)
    if not gamma.shape.rank:
        gamma = tf.fill([modes], gamma)
    if gamma.shape.rank > 1:
        gamma = tf.broadcast_to(gamma, [*devices, modes])
    gamma = tf.reshape(gamma, [-1, modes])
    return modes, tiles, tf.complex(tf.cos(gamma), tf.sin(gamma)), devices


def _modes(theta, phi, gamma, arrangement) -> int:
    shape = tuple(theta.shape)
    columns = shape[-2] if len(shape) >= 2 else 0
    modes = (columns + 3) // 2 if arrangement == "reck" else columns
    fits = modes >= 2 and cell_mask(modes, arrangement).shape == shape[-2:]
    if not fits or tuple(phi.shape)[-2:] != shape[-2:]:
        raise ValueError(
            "`theta` and `phi` must have the shape (columns, modes // 2) for 2 or more "
            "modes, with as many columns as modes in the rectangle (clements) and "
            "2 * modes - 3 in the triangle (reck). "
            f"Received: arrangement={arrangement!r}, theta of shape {shape}, phi of "
            f"shape {tuple(phi.shape)}"
        )
    if gamma.shape.rank and gamma.shape[-1] != modes:
        raise ValueError(
            f"`gamma` must have one phase for each of the {modes} modes. "
            f"Received: shape {tuple(gamma.shape)}"
        )
    return modes


def _side(modes: int) -> int:
    """The side of the largest tiles: a power of two, about an eighth of the modes.

    Larger tiles cost more to build, smaller ones more stages.
    """
    return 1 << min(6, max(0, (modes // 8).bit_length() - 1))


def _heated(theta, phi, crosstalk):
    """The phases of shifters that warm each other."""
    check("crosstalk", crosstalk, np.isfinite, "finite")
    theta, phi, crosstalk = as_tensors(theta, phi, crosstalk)
    slots = math.prod(theta.shape[-2:])
    if tuple(crosstalk.shape) != (2 * slots, 2 * slots):
        raise ValueError(
            f"`crosstalk` must have the shape {(2 * slots, 2 * slots)}, a row for the "
            "theta of each slot, then for each phi. "
            f"Received: shape {tuple(crosstalk.shape)}"
        )
    both = tf.stack([theta, phi], axis=-3)
    shape = _tiles.sizes(both)
    set_phases = tf.reshape(both, [*shape[:-3], 2 * slots])
    given = tf.reshape(tf.linalg.matvec(crosstalk, set_phases), shape)
    return given[..., 0, :, :], given[..., 1, :, :]


def _common_sizes(*tensors) -> list:
    """The common shape of tensors, as `_tiles.sizes` gives it."""
    shapes = [v.shape for v in tensors]
    static = functools.reduce(tf.broadcast_static_shape, shapes, tf.TensorShape([]))
    if static.is_fully_defined():
        return list(static)
    shapes = [tf.shape(v) for v in tensors]
    dynamic = functools.reduce(tf.broadcast_dynamic_shape, shapes)
    return [dynamic[i] if size is None else size for i, size in enumerate(static)]


def _count(devices):
    return math.prod(devices) if devices else 1
