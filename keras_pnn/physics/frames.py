"""Masks in tiles on the frames of a spatial light modulator, and cut out of them.

        columns (x) →
      ┌───────┬───────┬───────┬───────┐
rows  │ · · · │ · · · │       │       │   one frame: a grid of tiles, each a mask
(y)   │ · 0 · │ · 1 · │   2   │   3   │   with a margin around it
 ↓    │ · · · │ · · · │       │       │
      ├───────┼───────┼───────┼───────┤
      │   4   │   5   │   6   │   7   │
      └───────┴───────┴───────┴───────┘
"""

import math
import numbers

import tensorflow as tf

from keras_pnn.physics._tensors import TensorLike, as_tensors


def tile(
    masks: TensorLike,
    grid: tuple[int, int] = (3, 4),
    tile: tuple[int, int] | None = None,
    margin: int | tuple[int, int] = (2, 1),
    pixel_repeat: int | tuple[int, int] = (1, 2),
    fill: float = 0.0,
) -> tf.Tensor:
    """Lays masks out on frames, row by row of the grid, frame after frame.

    The default is the layout of the reference: with masks of 28 × 28, tiles of
    32 × 30 whose columns are doubled, 3 × 4 of them on a frame of 96 × 240.

    Args:
        masks: Float tensor of shape (units, height, width).
        grid: Rows and columns of tiles on a frame.
        tile: Height and width of a mask, as a check. Default: those of `masks`.
        margin: Rows and columns of `fill` on each side of a mask, before pixels
            are repeated.
        pixel_repeat: How many rows and columns of the frame show one row and
            column of a mask.
        fill: Value of margins, and of tiles without a mask.

    Returns:
        Float tensor of shape (frames, frame height, frame width); `frame_shape`
        gives it.

    Raises:
        ValueError: If a number is out of range, or `masks` has another shape.

    Example:

    >>> tile(np.ones((144, 28, 28))).shape
    TensorShape([12, 96, 240])

    Reference:

    - Xu et al., arXiv:2411.12352, the free-space network of section 2.3.
    """
    (masks,) = as_tensors(masks)
    if masks.shape.rank != 3 or None in masks.shape:
        raise ValueError(
            "`masks` must have the shape (units, height, width). "
            f"Received: shape {masks.shape}"
        )
    units, *size = masks.shape
    if tile is not None and tuple(size) != pair("tile", tile):
        raise ValueError(
            f"`masks` must be of {pair('tile', tile)} pixels, as `tile` says. "
            f"Received: shape {masks.shape}"
        )
    frames, height, width = frame_shape(units, tuple(size), grid, margin, pixel_repeat)
    rows, columns = pair("grid", grid)
    top, left = pair("margin", margin, least=0)
    down, across = pair("pixel_repeat", pixel_repeat)
    empty = frames * rows * columns - units
    tiles = tf.pad(
        masks,
        [[0, empty], [0, 0], [0, 0]],
        constant_values=tf.cast(fill, masks.dtype),
    )
    tiles = tf.pad(
        tiles,
        [[0, 0], [top, top], [left, left]],
        constant_values=tf.cast(fill, masks.dtype),
    )
    shape = (
        frames,
        rows,
        columns,
        height // rows // down,
        1,
        width // columns // across,
    )
    tiles = tf.reshape(tiles, (*shape, 1))
    tiles = tf.tile(tiles, (1, 1, 1, 1, down, 1, across))
    return tf.reshape(
        tf.transpose(tiles, (0, 1, 3, 4, 2, 5, 6)), (frames, height, width)
    )


def untile(
    frames: TensorLike,
    units: int,
    tile: tuple[int, int],
    grid: tuple[int, int] = (3, 4),
    margin: int | tuple[int, int] = (2, 1),
    pixel_repeat: int | tuple[int, int] = (1, 2),
) -> tf.Tensor:
    """Cuts masks out of frames: the inverse of `tile`.

    Repeated pixels are averaged, so that the masks of a warped frame are the
    weights with which an image, its pixels repeated alike, is summed.

    Args:
        frames: Float tensor of shape (frames, frame height, frame width).
        units: Number of masks.
        tile: Height and width of a mask.
        grid: As in `tile`.
        margin: As in `tile`.
        pixel_repeat: As in `tile`.

    Returns:
        Float tensor of shape (units, height, width).

    Raises:
        ValueError: If the frames are not of the shape that `frame_shape` gives.

    Example:

    >>> masks = np.random.default_rng(0).normal(size=(10, 12, 12))
    >>> np.array_equal(untile(tile(masks), 10, (12, 12)), masks)
    True
    """
    (frames,) = as_tensors(frames)
    expected = frame_shape(units, tile, grid, margin, pixel_repeat)
    if tuple(frames.shape) != expected:
        raise ValueError(
            f"`frames` must have the shape {expected} for {units} masks. "
            f"Received: shape {frames.shape}"
        )
    count, height, width = expected
    rows, columns = pair("grid", grid)
    top, left = pair("margin", margin, least=0)
    down, across = pair("pixel_repeat", pixel_repeat)
    shape = (count, rows, height // rows // down, down)
    shape = (*shape, columns, width // columns // across, across)
    tiles = tf.reduce_mean(tf.reshape(frames, shape), axis=(3, 6))
    tiles = tf.transpose(tiles, (0, 1, 3, 2, 4))
    tiles = tf.reshape(tiles, (-1, tiles.shape[3], tiles.shape[4]))
    tall, wide = pair("tile", tile)
    return tiles[:units, top : top + tall, left : left + wide]


def frame_shape(
    units: int,
    tile: tuple[int, int],
    grid: tuple[int, int] = (3, 4),
    margin: int | tuple[int, int] = (2, 1),
    pixel_repeat: int | tuple[int, int] = (1, 2),
) -> tuple[int, int, int]:
    """Returns (frames, height, width) of the frames that hold `units` masks.

    Args:
        units: Number of masks.
        tile: Height and width of a mask.
        grid: As in `tile`.
        margin: As in `tile`.
        pixel_repeat: As in `tile`.

    Raises:
        ValueError: If a number is not whole, or too small.

    Example:

    >>> frame_shape(144, (28, 28))
    (12, 96, 240)
    """
    if not _whole(units) or units < 1:
        raise ValueError(f"`units` must be a whole number >= 1. Received: {units!r}")
    size, grid = pair("tile", tile), pair("grid", grid)
    margin, repeat = pair("margin", margin, least=0), pair("pixel_repeat", pixel_repeat)
    height, width = (
        g * r * (t + 2 * m)
        for g, r, t, m in zip(grid, repeat, size, margin, strict=True)
    )
    return math.ceil(units / math.prod(grid)), height, width


def pair(name: str, value, least: int = 1) -> tuple[int, int]:
    """Returns (rows, columns) from a whole number or two.

    Args:
        name: The argument's name, for the message.
        value: An integer, for both, or two integers.
        least: The smallest that is allowed.

    Raises:
        ValueError: If they are not whole numbers, or below `least`.
    """
    numbers_ = (value, value) if _whole(value) else value
    try:
        good = len(numbers_) == 2 and all(_whole(n) and n >= least for n in numbers_)
    except TypeError:
        good = False
    if not good:
        raise ValueError(
            f"`{name}` must be one or two whole numbers >= {least}, rows and columns. "
            f"Received: {name}={value!r}"
        )
    return int(numbers_[0]), int(numbers_[1])


def _whole(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
