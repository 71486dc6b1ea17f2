"""Compute the matrix of a mesh of MZIs from its phases, or send fields through it.

Light meets the input phases gamma, one for each mode, then column after column.
Even columns couple the modes (0, 1), (2, 3), …, odd columns (1, 2), (3, 4), …:

    clements, 4 modes            reck, 4 modes

    ─γ─╮▔╭───────╮▔╭───────      ─γ─╮▔╭─────╮▔╭─────╮▔╭─
    ─γ─╯▁╰─╮▔╭───╯▁╰─╮▔╭───      ─γ─╯▁╰─╮▔╭─╯▁╰─╮▔╭─╯▁╰─
    ─γ─╮▔╭─╯▁╰───╮▔╭─╯▁╰───      ─γ─────╯▁╰─╮▔╭─╯▁╰─────
    ─γ─╯▁╰───────╯▁╰───────      ─γ─────────╯▁╰─────────

Phases have the shape (columns, modes // 2): (modes, modes // 2) in the rectangle and
(2 modes − 3, modes // 2) in the triangle. `cell_mask` says which of these slots hold
a cell. In the others the modes pass straight, and values stored there are ignored.

**Cost.** A column-by-column program takes `modes` steps with little arithmetic each.
Here the cells are combined into blocks of side s, s² cells on 2 s modes, by log₂ s
batched products, and columns / s + 1 stages of blocks act on the field. With N modes
and a batch of B, the rectangle takes about (2 + 2 s/N) N² B complex multiplications
for the field and 3 N² s for the blocks, against N² B for a dense matrix. If the batch
is larger than the matrix, the stages act on the identity instead, and the field takes
one dense product. The triangle has about twice as many stages and multiplications.
"""

import math

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics import interferometer
from keras_pnn.physics._tensors import (
    TensorLike,
    as_complex,
    as_tensors,
    broadcast_shape,
    sizes,
)
from keras_pnn.physics.mesh.blocks import block_plan, combined, through
from keras_pnn.physics.mesh.lattice import cell_mask


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
    """Computes the matrix of a mesh: output fields = matrix @ input fields.

    All arguments except `straight_loss_db` and `crosstalk` may have further leading
    axes, which broadcast: one matrix for each device.

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
            in a column where it passes no cell.
        crosstalk: Float tensor of shape (2 n, 2 n), n the number of slots, one for all
            devices, or `None`. Maps the phases that are set to those that the light
            acquires, first `theta`, then `phi`, column by column; see
            `heater.crosstalk_matrix`.

    Returns:
        Complex tensor of shape (modes, modes), after the leading axes.

    Example:

    >>> phases = decompose.haar_phases(8, seed=0)
    >>> u = transfer_matrix(phases.theta, phases.phi, phases.gamma)
    >>> np.allclose(u @ tf.linalg.adjoint(u), np.eye(8), atol=1e-5)
    True

    Reference:

    - Clements et al., Optica 3:1460 (2016).
    """
    modes, blocks, turn, devices = _prepared(
        theta,
        phi,
        gamma,
        arrangement,
        theta_error=theta_error,
        phi_error=phi_error,
        splitter_error=splitter_error,
        loss_db=loss_db,
        straight_loss_db=straight_loss_db,
        crosstalk=crosstalk,
    )
    matrix = through(blocks, tf.linalg.diag(turn))
    return tf.reshape(matrix, [*devices, modes, modes])


def propagate(
    x: tf.Tensor | np.ndarray,
    theta: TensorLike,
    phi: TensorLike,
    gamma: TensorLike = 0.0,
    arrangement: str = "clements",
    **imperfections: TensorLike,
) -> tf.Tensor:
    """Computes the fields behind a mesh.

    Args:
        x: Real or complex tensor of shape (..., modes): the fields before the mesh.
            If the phases have leading axes (devices), the shape is (batch, modes)
            for fields that all devices share, or (*devices, batch, modes).
        theta, phi, gamma, arrangement: As in `transfer_matrix`.
        **imperfections: The other arguments of `transfer_matrix`.

    Returns:
        Complex tensor of the shape of `x`, (*devices, batch, modes) for devices.

    Raises:
        ValueError: If shapes do not fit, or eagerly: a value is out of its range.

    Example:

    >>> zero = np.zeros((4, 2))
    >>> fields = propagate(np.eye(4), zero, zero)
    >>> np.round(np.abs(fields[0]), 3)  # the cross state mirrors the modes
    array([0., 0., 0., 1.])
    """
    modes, blocks, turn, devices = _prepared(
        theta, phi, gamma, arrangement, **imperfections
    )
    x = tf.convert_to_tensor(x)
    x = tf.cast(x, blocks.dtype if x.dtype.is_complex else blocks.dtype.real_dtype)
    shape, rank = sizes(x), len(devices)
    of_devices = tuple(n if isinstance(n, int) else None for n in devices)
    fits = len(shape) >= 1
    if rank:
        own = x.shape[:-2].is_compatible_with(of_devices)
        fits = len(shape) == 2 or (len(shape) == rank + 2 and own)
    if not fits or shape[-1] != modes:
        raise ValueError(
            f"Argument `x` must have the shape (..., {modes}), or for devices (batch, "
            f"{modes}) or (*devices, batch, {modes}). Received: shape "
            f"{tuple(x.shape)} for devices of shape {of_devices}"
        )
    if rank:
        x = tf.reshape(x, [-1, *shape[-2:]])
        shape = [*devices, *shape[-2:]]
    else:
        known = None not in x.shape[:-1]
        x = tf.reshape(x, [1, math.prod(shape[:-1]) if known else -1, modes])
    return tf.reshape(_propagated(x, blocks, turn), shape)


# Up to this size the matrix costs little even for a small batch.
_ALWAYS_BY_MATRIX = 64


def _propagated(x, blocks, turn):
    """Returns the fields (devices or 1, batch, modes) behind the blocks."""
    batch, modes = x.shape[1:]

    def by_matrix():
        return _times(x, through(blocks, tf.linalg.diag(turn)))

    def by_field():
        fields = as_complex(x, turn.dtype) * turn[:, None]
        fields = tf.transpose(fields, [0, 2, 1])
        return tf.transpose(through(blocks, fields), [0, 2, 1])

    if batch is None and modes > _ALWAYS_BY_MATRIX:
        return tf.cond(tf.shape(x)[1] >= modes, by_matrix, by_field)
    return by_matrix() if batch is None or batch >= modes else by_field()


def _times(x, matrix):
    """Computes x matrixᵀ by real products, which CPUs do faster for large matrices."""
    if matrix.shape[0] == 1:
        # Devices that share a matrix become rows of one product: for stacks of shapes
        # (devices, 1, …) and (1, 1, …), oneDNN writes outside its memory.
        shape = tf.concat([tf.shape(x)[:-1], matrix.shape[1:2]], axis=0)
        x = tf.reshape(x, [-1, x.shape[-1]])
        matrix = matrix[0]
    real, imag = tf.math.real(matrix), tf.math.imag(matrix)
    if x.dtype.is_complex:
        x = tf.concat([tf.math.real(x), tf.math.imag(x)], axis=-1)
        real, imag = tf.concat([real, -imag], -1), tf.concat([imag, real], -1)
    found = tf.complex(
        tf.matmul(x, real, transpose_b=True), tf.matmul(x, imag, transpose_b=True)
    )
    return tf.reshape(found, shape) if found.shape.rank == 2 else found


def _prepared(theta, phi, gamma, arrangement, **imperfections):
    """Returns modes, blocks, e^{iγ} (devices or 1, modes), and the devices' shape."""
    theta, phi, gamma, first, second, amplitude, straight = acquired(
        theta, phi, gamma, arrangement, **imperfections
    )
    modes, slots = gamma.shape[-1], theta.shape[-2:]
    # Gives all four entries of a cell the common shape.
    theta += tf.zeros_like(phi)
    entries = interferometer.entries(theta, phi, first, second, amplitude)
    devices = sizes(tf.math.real(entries[0][..., 0, 0]) + gamma[..., 0])
    if gamma.shape.rank > 1:
        entries = [tf.broadcast_to(e, [*devices, *slots]) for e in entries]
        gamma = tf.broadcast_to(gamma, [*devices, modes])
    entries = tf.reshape(entries, [4, math.prod(devices), math.prod(slots)])
    blocks = combined(entries, straight, block_plan(modes, arrangement))
    gamma = tf.reshape(gamma, [-1, modes])
    return modes, blocks, tf.complex(tf.cos(gamma), tf.sin(gamma)), devices


def acquired(
    theta,
    phi,
    gamma,
    arrangement,
    theta_error=0.0,
    phi_error=0.0,
    splitter_error=0.0,
    loss_db=0.0,
    straight_loss_db=0.0,
    crosstalk=None,
) -> tuple[tf.Tensor, ...]:
    """Checks the arguments of `transfer_matrix`, and combines them.

    Returns:
        theta, phi and gamma that the light acquires, the angle errors of the first and
        second splitters, and the field factors of a cell and of a straight mode.
    """
    finite = {"theta": theta, "phi": phi, "gamma": gamma, "theta_error": theta_error}
    finite |= {"phi_error": phi_error, "splitter_error": splitter_error}
    finite["crosstalk"] = 0.0 if crosstalk is None else crosstalk
    for name, value in finite.items():
        _checks.tensor(name, value, np.isfinite, "finite")
    losses = {"loss_db": loss_db, "straight_loss_db": straight_loss_db}
    for name, value in losses.items():
        _checks.not_negative(name, value)
    theta, phi, gamma, theta_error, phi_error, splitter_error, spread, *losses = (
        as_tensors(*finite.values(), *losses.values())
    )
    loss_db, straight_loss_db = losses
    if straight_loss_db.shape.rank:
        raise ValueError(
            "Argument `straight_loss_db` must be one number, in dB. "
            f"Received: shape {tuple(straight_loss_db.shape)}"
        )
    modes = modes_of(theta, phi, gamma, arrangement)
    slots = cell_mask(modes, arrangement).shape
    if crosstalk is not None:
        theta, phi = _heated(theta, phi, spread)
    first, second = interferometer.of_splitters(splitter_error)
    shapes = [v.shape for v in (theta, theta_error, phi, phi_error, loss_db, first)]
    shape = broadcast_shape(*shapes)
    if (
        shape is None
        or tuple(shape[-2:]) != slots
        or broadcast_shape(shape[:-2], gamma.shape[:-1]) is None
    ):
        raise ValueError(
            f"Phases, errors and losses must fit the {slots} slots of the mesh, "
            "or be numbers, and further leading axes must broadcast, those of `gamma` "
            f"as well. Received: shapes {[tuple(s) for s in shapes]} of theta, "
            "theta_error, phi, phi_error, loss_db and splitter_error without its last "
            f"axis, and gamma of shape {tuple(gamma.shape)}"
        )
    return (
        theta + theta_error,
        phi + phi_error,
        gamma + tf.zeros([modes], gamma.dtype),
        first,
        second,
        interferometer.field_factor(loss_db),
        interferometer.field_factor(straight_loss_db),
    )


def modes_of(theta, phi, gamma, arrangement) -> int:
    """Returns the number of modes; raises an error if the phases' shapes do not fit."""
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
            f"Argument `gamma` must have one phase for each of the {modes} modes. "
            f"Received: shape {tuple(gamma.shape)}"
        )
    return modes


def _heated(theta, phi, crosstalk):
    """Returns the phases that light acquires, from those set, by thermal crosstalk."""
    slots = math.prod(theta.shape[-2:])
    if tuple(crosstalk.shape) != (2 * slots, 2 * slots):
        raise ValueError(
            f"Argument `crosstalk` must have the shape {(2 * slots, 2 * slots)}, a row "
            "for the theta of each slot, then for each phi. "
            f"Received: shape {tuple(crosstalk.shape)}"
        )
    both = tf.stack([theta, phi], axis=-3)
    shape = sizes(both)
    set_phases = tf.reshape(both, [*shape[:-3], 2 * slots])
    given = tf.reshape(tf.linalg.matvec(crosstalk, set_phases), shape)
    return tf.unstack(given, axis=-3)
