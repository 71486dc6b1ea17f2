"""Lay masks out on the frames of a spatial light modulator, and cut them out.

        columns (x) →
      ┌───────┬───────┬───────┬───────┐
rows  │ · · · │ · · · │       │       │   one frame: a grid of panels, each a mask
(y)   │ · 0 · │ · 1 · │   2   │   3   │   with a margin around it
 ↓    │ · · · │ · · · │       │       │
      ├───────┼───────┼───────┼───────┤
      │   4   │   5   │   6   │   7   │
      └───────┴───────┴───────┴───────┘
"""

import math

import tensorflow as tf

from keras_pnn import _checks
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

    The default is the layout of the reference: with masks of 28 × 28, panels of
    32 × 30 whose columns are doubled, 3 × 4 of them on a frame of 96 × 240.

    Args:
        masks: Float tensor of shape (units, height, width).
        grid: Rows and columns of panels on a frame. An integer stands for a pair.
        tile: Height and width of a mask, as a check. Default: those of `masks`.
        margin: Rows and columns of `fill` on each side, before pixels are repeated.
        pixel_repeat: Rows and columns of the frame for one row and column of a mask.
        fill: Value of margins, and of panels without a mask.

    Returns:
        Float tensor of the shape that `frame_shape` returns.

    Raises:
        ValueError: If the layout is out of range, or the masks do not fit it.

    Example:

    >>> tile(np.ones((144, 28, 28))).shape
    TensorShape([12, 96, 240])

    Reference:

    - Xu et al., arXiv:2411.12352, the free-space network of section 2.3.
    """
    (masks,) = as_tensors(masks)
    if masks.shape.rank != 3 or None in masks.shape:
        raise ValueError(
            "Argument `masks` must have the shape (units, height, width). "
            f"Received: shape {masks.shape}"
        )
    units, *size = masks.shape
    if tile is not None and tuple(size) != _checks.pair("tile", tile, 1):
        raise ValueError(
            f"Argument `masks` must have masks of {tile} pixels, as `tile` says. "
            f"Received: shape {masks.shape}"
        )
    shape, (rows, columns), (top, left), (down, across) = _layout(
        units, tuple(size), grid, margin, pixel_repeat
    )
    empty = shape[0] * rows * columns - units
    panels = tf.pad(
        masks,
        [[0, empty], [top, top], [left, left]],
        constant_values=tf.cast(fill, masks.dtype),
    )
    panels = tf.repeat(tf.repeat(panels, down, axis=1), across, axis=2)
    panels = tf.reshape(panels, (shape[0], rows, columns, *panels.shape[1:]))
    return tf.reshape(tf.transpose(panels, (0, 1, 3, 2, 4)), shape)


def untile(
    frames: TensorLike,
    units: int,
    tile: tuple[int, int],
    grid: tuple[int, int] = (3, 4),
    margin: int | tuple[int, int] = (2, 1),
    pixel_repeat: int | tuple[int, int] = (1, 2),
) -> tf.Tensor:
    """Cuts masks out of frames, the inverse of `tile`.

    Repeated pixels are averaged. Cut out of a warped frame, the masks are the weights
    of an image whose pixels are repeated in the same way.

    Args:
        frames: Float tensor of the shape that `frame_shape` returns.
        units: Number of masks.
        tile: Height and width of a mask.
        grid, margin, pixel_repeat: As in `tile`.

    Returns:
        Float tensor of shape (units, height, width).

    Raises:
        ValueError: If the layout is out of range, or the frames do not fit it.

    Example:

    >>> masks = np.random.default_rng(0).normal(size=(10, 12, 12))
    >>> np.array_equal(untile(tile(masks), 10, (12, 12)), masks)
    True
    """
    (frames,) = as_tensors(frames)
    expected, (rows, columns), (top, left), (down, across) = _layout(
        units, tile, grid, margin, pixel_repeat
    )
    if tuple(frames.shape) != expected:
        raise ValueError(
            f"Argument `frames` must have the shape {expected} for {units} masks. "
            f"Received: shape {frames.shape}"
        )
    tall, wide = expected[1] // (rows * down), expected[2] // (columns * across)
    shape = (expected[0], rows, tall, down, columns, wide, across)
    panels = tf.reduce_mean(tf.reshape(frames, shape), axis=(3, 6))
    panels = tf.transpose(panels, (0, 1, 3, 2, 4))
    panels = tf.reshape(panels, (-1, *panels.shape[3:]))
    return panels[:units, top : tall - top, left : wide - left]


def frame_shape(
    units: int,
    tile: tuple[int, int],
    grid: tuple[int, int] = (3, 4),
    margin: int | tuple[int, int] = (2, 1),
    pixel_repeat: int | tuple[int, int] = (1, 2),
) -> tuple[int, int, int]:
    """Returns the shape (frames, height, width) of the frames for `units` masks.

    Args:
        units: number of masks, 1 or more.
        tile: (height, width) of a mask in pixels.
        grid, margin, pixel_repeat: as in `tile`.

    Returns:
        Three integers.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> frame_shape(144, (28, 28))
    (12, 96, 240)
    """
    return _layout(units, tile, grid, margin, pixel_repeat)[0]


def _layout(units, tile, grid, margin, pixel_repeat):
    """Returns the frames' shape, and the pairs `grid`, `margin` and `pixel_repeat`."""
    units = _checks.integer("units", units, 1)
    size = _checks.pair("tile", tile, 1)
    grid = _checks.pair("grid", grid, 1)
    margin = _checks.pair("margin", margin, 0)
    repeat = _checks.pair("pixel_repeat", pixel_repeat, 1)
    height, width = (
        g * r * (t + 2 * m)
        for g, r, t, m in zip(grid, repeat, size, margin, strict=True)
    )
    return (math.ceil(units / math.prod(grid)), height, width), grid, margin, repeat
