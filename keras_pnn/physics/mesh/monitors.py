"""Follow fields through a mesh, and monitor them at every phase shifter."""

import numpy as np
import tensorflow as tf

from keras_pnn.physics import interferometer
from keras_pnn.physics._tensors import as_complex, as_tensors
from keras_pnn.physics.mesh.lattice import cell_mask
from keras_pnn.physics.mesh.transfer import heated, modes_of


def monitored(
    x: tf.Tensor,
    theta: tf.Tensor,
    phi: tf.Tensor,
    gamma: tf.Tensor,
    arrangement: str = "clements",
    *,
    backwards: bool = False,
    theta_error=0.0,
    phi_error=0.0,
    splitter_error=0.0,
    loss_db=0.0,
    straight_loss_db=0.0,
    crosstalk=None,
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Sends fields through a mesh, column by column.

    A cell loses its light between its second splitter and its phase shifter phi.

    Args:
        x: complex tensor of shape (batch, modes): the fields at the inputs, or at the
            outputs if `backwards`.
        theta, phi, gamma, arrangement: as in `transfer_matrix`, without leading axes.
        backwards: whether light runs from the outputs to the inputs, through the
            transposed matrix.
        theta_error, phi_error, splitter_error, loss_db, straight_loss_db, crosstalk:
            as in `transfer_matrix`.

    Returns:
        Intensities at the phase shifters, and the fields at the far end. The
        intensities are `gamma` of shape (batch, modes), `phi` of shape (batch, columns,
        modes // 2), and `theta` with a last axis more: the upper arm, which carries
        +theta/2, and the lower, which carries −theta/2. Slots without a cell are dark.
    """
    theta, phi, gamma, theta_error, phi_error, splitters, loss, straight = as_tensors(
        theta, phi, gamma, theta_error, phi_error, splitter_error, loss_db,
        straight_loss_db,
    )  # fmt: skip
    modes = modes_of(theta, phi, gamma, arrangement)
    if crosstalk is not None:
        theta, phi = heated(theta, phi, crosstalk)
    theta, phi = theta + theta_error, phi + phi_error
    mask = cell_mask(modes, arrangement)
    first, second = interferometer.of_splitters(splitters)
    first, second = (e + tf.zeros_like(theta) for e in (first, second))
    kept = interferometer.field_factor(loss) + tf.zeros_like(theta)
    straight = interferometer.field_factor(straight)
    turn = _turn(gamma)
    fields = as_complex(x, turn.dtype)
    seen: dict[str, list] = {"theta": [None] * len(mask), "phi": [None] * len(mask)}
    if not backwards:
        fields *= turn
        of_gamma = _power(fields)
    for column in reversed(range(len(mask))) if backwards else range(len(mask)):
        offset = column % 2
        cells = (modes - offset) // 2
        end = offset + 2 * cells
        exists = tf.constant(mask[column, :cells])
        pairs = tf.reshape(fields[:, offset:end], [tf.shape(fields)[0], cells, 2])
        here = [v[column, :cells] for v in (theta, phi, first, second, kept)]
        passed, arms, upper = _cell(pairs, *here, backwards)
        dimmed = as_complex(straight, fields.dtype)
        behind = tf.where(exists[:, None], passed, dimmed * pairs)
        behind = tf.reshape(behind, tf.shape(fields[:, offset:end]))
        beside = dimmed * fields[:, :offset], dimmed * fields[:, end:]
        fields = tf.concat([beside[0], behind, beside[1]], axis=1)
        free = mask.shape[1] - cells
        for name, power in (("theta", arms), ("phi", upper)):
            there = tf.reshape(exists, [cells, *[1] * (power.shape.rank - 2)])
            power = tf.where(there, power, tf.zeros_like(power))
            padding = np.zeros((power.shape.rank, 2), int)
            padding[1, 1] = free
            seen[name][column] = tf.pad(power, padding)
    if backwards:
        of_gamma = _power(fields)
        fields *= turn
    powers = {name: tf.stack(columns, axis=1) for name, columns in seen.items()}
    return {**powers, "gamma": of_gamma}, fields


def _cell(pairs, theta, phi, first, second, kept, backwards: bool) -> tuple:
    """Fields behind the cells of a column, and the powers in the arms and at phi."""
    halves = tf.stack([theta / 2, -theta / 2], axis=-1)
    # The lower output has no shifter.
    out = as_complex(kept, pairs.dtype)[:, None] * _turn(
        tf.stack([phi, tf.zeros_like(phi)], axis=-1)
    )
    if backwards:
        upper = _power(pairs[..., 0])
        inside = _split(out * pairs, second)
        return _split(_turn(halves) * inside, first), _power(inside), upper
    inside = _turn(halves) * _split(pairs, first)
    passed = out * _split(inside, second)
    return passed, _power(inside), _power(passed[..., 0])


def _split(pairs, error):
    straight = as_complex(tf.cos(np.pi / 4 + error), pairs.dtype)[:, None]
    across = tf.complex(tf.zeros_like(error), tf.sin(np.pi / 4 + error))[:, None]
    return straight * pairs + across * tf.reverse(pairs, [-1])


def _turn(phase):
    return tf.complex(tf.cos(phase), tf.sin(phase))


def _power(fields):
    return tf.math.real(fields * tf.math.conj(fields))
