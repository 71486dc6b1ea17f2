"""Follow fields through a mesh, and monitor them at every phase shifter."""

import numpy as np
import tensorflow as tf

from keras_pnn.physics._tensors import as_complex
from keras_pnn.physics.mesh.lattice import cell_mask
from keras_pnn.physics.mesh.transfer import acquired


def monitored(
    x: tf.Tensor,
    theta: tf.Tensor,
    phi: tf.Tensor,
    gamma: tf.Tensor,
    arrangement: str = "clements",
    backwards: bool = False,
    **imperfections,
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Sends fields through a mesh, column by column.

    The loss of a cell lies between its second splitter and its phase shifter phi.

    Args:
        x: complex tensor of shape (batch, modes): the fields at the inputs, or at the
            outputs if `backwards`.
        theta, phi, gamma, arrangement: as in `transfer_matrix`, without leading axes.
        backwards: whether light runs from the outputs to the inputs.
        **imperfections: the other arguments of `transfer_matrix`.

    Returns:
        Intensities at the phase shifters, and the fields at the far end. The
        intensities are `gamma` of shape (batch, modes), `phi` of shape (batch, columns,
        modes // 2), and `theta` with a further last axis: the upper arm, which carries
        +theta/2, and the lower, which carries −theta/2. Slots without a cell are dark.
    """
    theta, phi, gamma, first, second, kept, straight = acquired(
        theta, phi, gamma, arrangement, **imperfections
    )
    modes = gamma.shape[-1]
    mask = cell_mask(modes, arrangement)
    columns, slots = mask.shape
    first, second, kept = (v + tf.zeros_like(theta) for v in (first, second, kept))
    turn = _turn(gamma)
    fields = as_complex(x, turn.dtype)
    straight = as_complex(straight, fields.dtype)
    if not backwards:
        fields *= turn
        of_gamma = _power(fields)
    # An extra dark mode gives every column the same number of slots.
    fields = tf.pad(fields, [[0, 0], [0, 1]])
    seen = {}
    for column in reversed(range(columns)) if backwards else range(columns):
        offset = column % 2
        parts = [offset, 2 * slots, modes + 1 - offset - 2 * slots]
        before, pairs, after = tf.split(fields, parts, axis=1)
        pairs = tf.reshape(pairs, [-1, slots, 2])
        here = [v[column] for v in (theta, phi, first, second, kept)]
        passed, *seen[column] = _cell(pairs, *here, backwards)
        behind = tf.where(mask[column][:, None], passed, straight * pairs)
        behind = tf.reshape(behind, [-1, 2 * slots])
        fields = tf.concat([straight * before, behind, straight * after], axis=1)
    fields = fields[:, :modes]
    if backwards:
        of_gamma = _power(fields)
        fields *= turn
    arms, upper = zip(*(seen[column] for column in range(columns)), strict=True)
    exists = tf.constant(mask, theta.dtype)
    powers = {
        "theta": exists[..., None] * tf.stack(arms, axis=1),
        "phi": exists * tf.stack(upper, axis=1),
        "gamma": of_gamma,
    }
    return powers, fields


def _cell(pairs, theta, phi, first, second, kept, backwards: bool) -> tuple:
    """Returns the fields behind a column's cells, and the powers in arms and at phi."""
    halves = tf.stack([theta / 2, -theta / 2], axis=-1)
    # The lower output has no shifter.
    out = _turn(tf.stack([phi, tf.zeros_like(phi)], axis=-1))
    out *= as_complex(kept, pairs.dtype)[:, None]
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
