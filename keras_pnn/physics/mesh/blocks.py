"""Multiply the cells of a lattice in blocks, with few large batched products."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from keras_pnn.physics._tensors import sizes
from keras_pnn.physics.mesh.lattice import cell_mask


@dataclasses.dataclass(frozen=True, eq=False)
class BlockPlan:
    """The square blocks into which the cells of a lattice combine.

    The modes form a closed ring, on which the brick pattern has no ends; the pair that
    closes the ring passes straight. A block of side s holds s by s cells, a diamond in
    the drawing of the mesh, and acts on 2 s neighbouring modes. A leaf is a block of
    side 1. Blocks form a brick pattern again, with s modes in place of one, so four
    blocks make one of twice the side: A, then B and C beside each other, then D.

    Args:
        side: side of a block in cells, a power of two.
        stages, count: number of columns of blocks, and of blocks in each.
        sources: for each leaf of each block the slot of its cell, or the number of
            slots for a leaf without a cell. The leaves are ordered by their place in
            the block of two, of four, …, then by block.
        places: for each slot the leaf that its cell fills, or the number of leaves
            for a slot without a cell.
        straight, beyond: 1 for each leaf where two modes pass straight inside the mesh,
            and 1 for each leaf that lies before or behind the mesh, else 0.
    """

    side: int
    stages: int
    count: int
    sources: np.ndarray
    places: np.ndarray
    straight: np.ndarray
    beyond: np.ndarray


_BEYOND, _STRAIGHT = -1, -2


@functools.lru_cache
def block_plan(modes: int, arrangement: str) -> BlockPlan:
    """Returns the blocks of a mesh; arguments as in `cell_mask`."""
    # Blocks as wide as an eighth of the modes: larger ones cost more to build, smaller
    # ones need more stages.
    levels = min(6, max(0, (modes // 8).bit_length() - 1))
    side = 2**levels
    mask = cell_mask(modes, arrangement)
    columns, own = mask.shape
    padded = -(-modes // (2 * side)) * 2 * side
    leaves = np.full((columns, padded // 2, 1), _STRAIGHT)
    slots = np.arange(mask.size).reshape(mask.shape)
    leaves[:, :own, 0] = np.where(mask, slots, _STRAIGHT)
    for _ in range(levels):
        leaves = _doubled(leaves)
    stages, count = leaves.shape[:2]
    leaves = leaves.reshape(stages * count, *[4] * levels).T.reshape(-1)
    places = np.full(mask.size, leaves.size, "int32")
    filled = np.flatnonzero(leaves >= 0)
    places[leaves[filled]] = filled
    return BlockPlan(
        side=side,
        stages=stages,
        count=count,
        sources=np.where(leaves < 0, mask.size, leaves).astype("int32"),
        places=places,
        straight=(leaves == _STRAIGHT).astype("float32"),
        beyond=(leaves == _BEYOND).astype("float32"),
    )


def _doubled(leaves: np.ndarray) -> np.ndarray:
    """Joins blocks (stages, count, n) to blocks of twice the side, (…, count / 2, 4 n).

    The new stage t takes B and C from the old stage 2 t, A from the stage before it and
    D from the stage behind it. Odd stages, old and new, begin half a block further on.
    """
    old, count, inside = leaves.shape
    stages = old // 2 + 1
    empty = np.full((2 * stages + 1 - old, count, inside), _BEYOND)
    padded = np.concatenate([empty[:1], leaves, empty[1:]])
    before, middle, behind = padded[0::2], padded[1::2], padded[2::2]
    blocks = []
    for t in range(stages):
        odd = t % 2
        pairs = np.roll(middle[t], -odd, axis=0)
        parts = [before[t][odd::2], pairs[0::2], pairs[1::2], behind[t][odd::2]]
        blocks.append(np.stack(parts, 1).reshape(count // 2, 4 * inside))
    return np.stack(blocks)


def combined(entries: tf.Tensor, straight: tf.Tensor, plan: BlockPlan) -> tf.Tensor:
    """Multiplies the cells of each block.

    Args:
        entries: T₁₁, T₁₂, T₂₁, T₂₂ of all slots, of shape (4, devices or 1, slots).
        straight: the amplitude of a mode that passes a column without a cell.

    Returns:
        Complex tensor of shape (devices or 1, stages, count, 2 side, 2 side).
    """
    devices = sizes(entries)[1]
    leaves = _placed(entries, plan.sources, plan.places)
    count = plan.stages * plan.count
    leaves = tf.reshape(leaves, [4, devices, plan.side**2, count])
    t11, t12, t21, t22 = tf.unstack(tf.transpose(leaves, [0, 2, 1, 3]))
    # A leaf without a cell is the identity outside the mesh, and two straight modes
    # inside.
    passing = plan.beyond + straight * plan.straight
    passing = tf.reshape(passing, [plan.side**2, 1, -1])
    passing = tf.complex(passing, tf.zeros_like(passing))
    entries = t11 + passing, t12, t21, t22 + passing
    blocks = tf.reshape(tf.stack(entries), [2, 2, -1])
    if plan.side > 1:
        # For sides of two, products are faster with the blocks along the last axis.
        blocks = _four(0, *tf.split(blocks, 4, axis=2))
    blocks = tf.transpose(blocks, [2, 0, 1])
    side = 2
    while side < plan.side:
        blocks = tf.reshape(blocks, [4, -1, 2 * side, 2 * side])
        blocks = _four(-2, *tf.unstack(blocks))
        side *= 2
    width = 2 * plan.side
    return tf.reshape(blocks, [-1, plan.stages, plan.count, width, width])


def through(blocks: tf.Tensor, fields: tf.Tensor) -> tf.Tensor:
    """Sends fields, (devices or 1, modes, batch), through the stages of `combined`."""
    stages, count, width = blocks.shape[1:4]
    side = width // 2
    devices, modes, batch = sizes(fields)
    padding = count * width - modes
    if padding:
        zeros = tf.zeros([devices, padding, batch], fields.dtype)
        fields = tf.concat([fields, zeros], axis=1)
    if blocks.shape[0] != 1:
        devices = sizes(blocks)[0]
    by_stage = tf.unstack(blocks, axis=1)
    for stage in range(stages):
        if stage % 2:
            fields = _rolled(fields, [side, count * width - side])
        fields = tf.reshape(fields, [-1, count, width, batch])
        fields = tf.matmul(by_stage[stage], fields)
        fields = tf.reshape(fields, [devices, count * width, batch])
        if stage % 2:
            fields = _rolled(fields, [count * width - side, side])
    return fields[:, :modes]


def _rolled(fields, parts):
    # `tf.roll` has no rule in `tf.vectorized_map`.
    first, rest = tf.split(fields, parts, axis=1)
    return tf.concat([rest, first], axis=1)


def _product_along(x, y, adjoint_a: bool = False, adjoint_b: bool = False):
    """Multiplies as `tf.matmul`, with matrices along the first two axes."""
    if adjoint_a:
        return tf.reduce_sum(tf.math.conj(x)[:, :, None] * y[:, None], axis=0)
    if adjoint_b:
        return tf.reduce_sum(x[:, None] * tf.math.conj(y)[None], axis=2)
    return tf.reduce_sum(x[:, :, None] * y[None], axis=1)


def _four(rows: int, a, b, c, d):
    """Multiplies four blocks into one: d (b ⊕ c) a.

    The blocks act on 2 s modes each: b and c beside each other, a before and d behind
    them, on the lower half of b's modes and the upper half of c's. The result acts on
    4 s modes. Rows of the matrices are along the axis `rows`, columns along the next.
    The derivative is written out, since TensorFlow's own takes three times as many
    operations.
    """
    columns = rows + 1
    product = tf.matmul if rows == -2 else _product_along
    size = a.shape[rows]
    thirds = [size // 2, size, size // 2]

    @tf.custom_gradient
    def combine(a, b, c, d):
        b_left, b_right = tf.split(b, 2, columns)
        c_left, c_right = tf.split(c, 2, columns)
        a_upper, a_lower = tf.split(a, 2, rows)
        zeros = tf.zeros_like(b_left)
        upper = tf.concat([b_left, product(b_right, a_upper), zeros], columns)
        lower = tf.concat([zeros, product(c_left, a_lower), c_right], columns)
        top, middle_upper = tf.split(upper, 2, rows)
        middle_lower, bottom = tf.split(lower, 2, rows)
        middle = tf.concat([middle_upper, middle_lower], rows)

        def gradient(upstream):
            # Split again, so that the halves are not kept in memory.
            _, b_right = tf.split(b, 2, columns)
            c_left, _ = tf.split(c, 2, columns)
            a_upper, a_lower = tf.split(a, 2, rows)
            to_top, to_middle, to_bottom = tf.split(upstream, thirds, rows)
            to_d = product(to_middle, middle, adjoint_b=True)
            through_d = product(d, to_middle, adjoint_a=True)
            middle_upper, middle_lower = tf.split(through_d, 2, rows)
            to_upper = tf.concat([to_top, middle_upper], rows)
            to_lower = tf.concat([middle_lower, to_bottom], rows)
            to_b_left, to_ba, _ = tf.split(to_upper, thirds, columns)
            _, to_ca, to_c_right = tf.split(to_lower, thirds, columns)
            to_b_right = product(to_ba, a_upper, adjoint_b=True)
            to_c_left = product(to_ca, a_lower, adjoint_b=True)
            to_a_upper = product(b_right, to_ba, adjoint_a=True)
            to_a_lower = product(c_left, to_ca, adjoint_a=True)
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

    Each cell fills one leaf, so the gradient is a gather too, by `places`. TensorFlow's
    own gradient is a sum over segments, which for small meshes costs more than
    everything else together.
    """

    @tf.custom_gradient
    def place(x):
        padded = tf.concat([x, tf.zeros_like(x[..., :1])], axis=-1)
        placed = tf.gather(padded, sources, axis=-1)
        return placed, lambda upstream: _placed(upstream, places, sources)

    return place(values)
