"""Products of the cells of a lattice, as few large batched products."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_pnn.physics.mesh.lattice import Tiling


def combined(entries: tf.Tensor, straight: tf.Tensor, plan: Tiling) -> tf.Tensor:
    """Multiplies the cells of each tile.

    Args:
        entries: T₁₁, T₁₂, T₂₁, T₂₂ of all slots, a complex tensor of shape
            (4, devices or 1, slots); what slots without a cell hold plays no part.
        straight: float scalar, the amplitude of a mode that passes a column of the
            mesh without a cell.
        plan: the tiling.

    Returns:
        Complex tensor of shape (devices or 1, stages, blocks, 2 side, 2 side).
    """
    devices = sizes(entries)[1]
    leaves = _placed(entries, plan.sources, plan.places)
    count = plan.stages * plan.blocks
    leaves = tf.reshape(leaves, [4, devices, plan.side**2, count])
    t11, t12, t21, t22 = tf.unstack(tf.transpose(leaves, [0, 2, 1, 3]))
    # Outside the mesh a leaf is the identity, beside it the straight modes.
    passing = plan.beyond + straight * plan.straight
    passing = tf.reshape(passing, [plan.side**2, 1, -1])
    passing = tf.complex(passing, tf.zeros_like(passing))
    entries = t11 + passing, t12, t21, t22 + passing
    if plan.side == 1:
        tiles = tf.reshape(tf.stack(entries), [2, 2, -1])
    else:
        # Sides of two: here it is faster to have the tiles along the last axis.
        quarters = [tf.unstack(tf.reshape(t, [4, -1])) for t in entries]
        quarters = [
            tf.reshape(tf.stack(q), [2, 2, -1]) for q in zip(*quarters, strict=True)
        ]
        tiles = _four(_LEADING, *quarters)
    tiles = tf.transpose(tiles, [2, 0, 1])
    side = 2
    while side < plan.side:
        tiles = tf.reshape(tiles, [4, -1, 2 * side, 2 * side])
        tiles = _four(_TRAILING, *tf.unstack(tiles))
        side *= 2
    width = 2 * plan.side
    return tf.reshape(tiles, [-1, plan.stages, plan.blocks, width, width])


def through(tiles: tf.Tensor, fields: tf.Tensor) -> tf.Tensor:
    """Sends fields through the stages of tiles.

    Args:
        tiles: what `combined` returns.
        fields: complex tensor of shape (devices or 1, modes, batch).

    Returns:
        Complex tensor of shape (devices, modes, batch).
    """
    stages, blocks, width = tiles.shape[1:4]
    side = width // 2
    devices, modes, batch = sizes(fields)
    padding = blocks * width - modes
    if padding:
        zeros = tf.zeros([devices, padding, batch], fields.dtype)
        fields = tf.concat([fields, zeros], axis=1)
    if tiles.shape[0] != 1:
        devices = sizes(tiles)[0]
    by_stage = tf.unstack(tiles, axis=1)
    for stage in range(stages):
        if stage % 2:
            fields = _rolled(fields, [side, blocks * width - side])
        fields = tf.reshape(fields, [-1, blocks, width, batch])
        fields = tf.matmul(by_stage[stage], fields)
        fields = tf.reshape(fields, [devices, blocks * width, batch])
        if stage % 2:
            fields = _rolled(fields, [blocks * width - side, side])
    return fields[:, :modes]


def _rolled(fields, sizes):
    # `tf.roll` has no rule in `tf.vectorized_map`.
    first, rest = tf.split(fields, sizes, axis=1)
    return tf.concat([rest, first], axis=1)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The axes of rows and columns, and the product of two arrays of matrices.

    `product(x, y, left, right)` takes the adjoint of `x` where `left` is true, that of
    `y` where `right` is.
    """

    rows: int
    columns: int
    product: Callable[..., tf.Tensor]


def _product_along(x, y, left: bool = False, right: bool = False):
    if left:
        return tf.reduce_sum(tf.math.conj(x)[:, :, None] * y[:, None], axis=0)
    if right:
        return tf.reduce_sum(x[:, None] * tf.math.conj(y)[None], axis=2)
    return tf.reduce_sum(x[:, :, None] * y[None], axis=1)


def _product(x, y, left: bool = False, right: bool = False):
    return tf.matmul(x, y, adjoint_a=left, adjoint_b=right)


_LEADING = _Layout(0, 1, _product_along)
_TRAILING = _Layout(-2, -1, _product)


def _four(layout: _Layout, a, b, c, d):
    """d (b ⊕ c) a: b and c beside each other, a in front and d behind, between them.

    The tiles act on 2 s modes each, a and d on the lower half of those of b and the
    upper half of those of c; the result acts on 4 s modes. Its derivative is
    written out, since TensorFlow's takes three times as many operations.
    """
    rows, columns, product = layout.rows, layout.columns, layout.product
    size = a.shape[rows]
    thirds = [size // 2, size, size // 2]

    def parts(a, b, c):
        b_left, b_right = tf.split(b, 2, columns)
        c_left, c_right = tf.split(c, 2, columns)
        a_upper, a_lower = tf.split(a, 2, rows)
        return b_left, b_right, c_left, c_right, a_upper, a_lower

    def between(a, b, c):
        b_left, b_right, c_left, c_right, a_upper, a_lower = parts(a, b, c)
        none = tf.zeros_like(b_left)
        upper = tf.concat([b_left, product(b_right, a_upper), none], columns)
        lower = tf.concat([none, product(c_left, a_lower), c_right], columns)
        top, middle_upper = tf.split(upper, 2, rows)
        middle_lower, bottom = tf.split(lower, 2, rows)
        return top, tf.concat([middle_upper, middle_lower], rows), bottom

    @tf.custom_gradient
    def combine(a, b, c, d):
        top, middle, bottom = between(a, b, c)

        def gradient(upstream):
            _, b_right, c_left, _, a_upper, a_lower = parts(a, b, c)
            to_top, to_middle, to_bottom = tf.split(upstream, thirds, rows)
            to_d = product(to_middle, middle, right=True)
            through_d = product(d, to_middle, left=True)
            middle_upper, middle_lower = tf.split(through_d, 2, rows)
            to_upper = tf.concat([to_top, middle_upper], rows)
            to_lower = tf.concat([middle_lower, to_bottom], rows)
            to_b_left, to_ba, _ = tf.split(to_upper, thirds, columns)
            _, to_ca, to_c_right = tf.split(to_lower, thirds, columns)
            to_b_right = product(to_ba, a_upper, right=True)
            to_c_left = product(to_ca, a_lower, right=True)
            to_a_upper = product(b_right, to_ba, left=True)
            to_a_lower = product(c_left, to_ca, left=True)
            return (
                tf.concat([to_a_upper, to_a_lower], rows),
                tf.concat([to_b_left, to_b_right], columns),
                tf.concat([to_c_left, to_c_right], columns),
                to_d,
            )

        return tf.concat([top, product(d, middle), bottom], rows), gradient

    return combine(a, b, c, d)


def _placed(values, sources: np.ndarray, places: np.ndarray):
    """Gathers along the last axis; an index equal to its length gives 0.

    Each cell fills one leaf, so that the gradient is a gather as well, by `places`;
    TensorFlow's own is a sum over segments, which costs more than all the rest for
    small meshes.
    """

    @tf.custom_gradient
    def place(x):
        padded = tf.concat([x, tf.zeros_like(x[..., :1])], axis=-1)
        placed = tf.gather(padded, sources, axis=-1)
        return placed, lambda upstream: _placed(upstream, places, sources)

    return place(values)


def sizes(tensor) -> list:
    """Returns the shape, each axis an int where it is known, else a tensor."""
    dynamic = tf.shape(tensor)
    return [dynamic[i] if size is None else size for i, size in enumerate(tensor.shape)]
