"""Detect the light of a plane with an array of detectors."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.layers.detectors import FieldDetector
from keras_pnn.layers.fields import plane_of


@keras.saving.register_keras_serializable(package="keras_pnn")
class DetectorArray(FieldDetector):
    """Detects the power that falls on each of several rectangles of a plane.

    Args:
        regions: sequence of (y, x, height, width) in pixels, with (y, x) the upper left
            corner, in the order of the outputs. Default: a grid.
        grid: number of detectors in each row of the grid, from top to bottom.
        size: side of the grid's square detectors, in pixels.
        extent: height and width of the grid in pixels, from the outer rim of the first
            detector to that of the last. The grid is in the middle of the plane.
            Default: half of the plane's shorter side.
        normalize: `"share"`: the power on each detector over the total on all
            detectors, 0 in the dark; or `None`: powers, sums of |field|² over pixels.

    Input shape: `(batch, height, width)`, complex or real fields.

    Output shape: `(batch, detectors)`, float32, or float64 under a float64 policy.

    Raises:
        ValueError: If an argument is out of range, the inputs are not planes, or
            detectors overlap or leave the plane.

    Example:

    >>> detectors = pnn.layers.DetectorArray(grid=(3, 4, 3), size=9, extent=63)
    >>> detectors(np.ones((2, 128, 128), "complex64")).shape
    TensorShape([2, 10])
    >>> detectors.placed((128, 128))[0]
    (32, 32, 9, 9)

    Reference:

    - Xu et al., Nat. Commun. 17, 1766 (2026): the grid of the example.
    """

    def __init__(
        self,
        regions: Sequence[tuple[int, int, int, int]] | None = None,
        grid: Sequence[int] = (3, 4, 3),
        size: int = 9,
        extent: int | None = None,
        normalize: str | None = "share",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.regions = None if regions is None else _regions(regions)
        rows = tuple(grid) if np.iterable(grid) else ()
        if not rows:
            expected = "the number of detectors in each row, at least one row"
            raise _checks.error("grid", expected, repr(grid))
        self.grid = tuple(_checks.integer("grid", n, low=1) for n in rows)
        self.size = _checks.integer("size", size, low=1)
        self.extent = _checks.optional(_checks.integer, "extent", extent, low=1)
        self.normalize = _checks.choice("normalize", normalize, (None, "share"))

    def placed(self, plane: tuple[int, int]) -> tuple[tuple[int, int, int, int], ...]:
        """Returns the detectors on a plane, as (y, x, height, width) in pixels.

        Args:
            plane: (height, width) in pixels.

        Raises:
            ValueError: If detectors overlap or leave the plane.
        """
        regions = self.regions
        if regions is None:
            extent = min(plane) // 2 if self.extent is None else self.extent
            top, left = ((n - extent) // 2 for n in plane)
            last = extent - self.size
            regions = [
                (top + y, left + x, self.size, self.size)
                for y, count in zip(
                    _spread(last, len(self.grid)), self.grid, strict=True
                )
                for x in _spread(last, count)
            ]
        taken = np.zeros(plane, int)
        for y, x, height, width in regions:
            if min(y, x) < 0 or y + height > plane[0] or x + width > plane[1]:
                expected = f"on the plane of {plane[0]} × {plane[1]} pixels"
                raise _checks.error("regions", expected, (y, x, height, width))
            taken[y : y + height, x : x + width] += 1
        if taken.max() > 1:
            where = tuple(np.argwhere(taken > 1)[0].tolist())
            expected = "detectors that do not overlap"
            raise _checks.error("regions", expected, f"several at pixel {where}")
        return tuple(regions)

    def build(self, input_shape):
        plane = plane_of(self, input_shape)
        self.input_spec = keras.layers.InputSpec(shape=(None, *plane))
        regions = self.placed(plane)
        # 1 for the rows, and for the columns, that belong to each detector.
        self._rows, self._columns = (np.zeros((len(regions), n)) for n in plane)
        for i, (y, x, height, width) in enumerate(regions):
            self._rows[i, y : y + height] = 1
            self._columns[i, x : x + width] = 1

    def call(self, inputs):
        light = tf.convert_to_tensor(self._intensity(inputs))
        rows, columns = (
            tf.constant(m, light.dtype) for m in (self._rows, self._columns)
        )
        power = tf.reduce_sum(
            tf.matmul(light, columns, transpose_b=True) * tf.transpose(rows), 1
        )
        if self.normalize is None:
            return power
        total = tf.reduce_sum(power, -1, keepdims=True)
        bright = total >= np.finfo(light.dtype.as_numpy_dtype).tiny
        return tf.where(bright, power, 0 * power) / tf.where(
            bright, total, tf.ones_like(total)
        )

    def compute_output_shape(self, input_shape) -> tuple:
        return (input_shape[0], len(self.placed(plane_of(self, input_shape))))


def _spread(last: int, count: int) -> list[int]:
    """Returns corners from 0 to `last`, evenly spread; a single one in the middle."""
    corners = np.linspace(0, last, count) if count > 1 else np.array([last / 2])
    return np.floor(corners).astype(int).tolist()


def _regions(value) -> tuple[tuple[int, int, int, int], ...]:
    try:
        found = [
            tuple(_checks.integer("regions", n) for n in region) for region in value
        ]
    except (TypeError, ValueError):
        found = []
    if not found or any(len(r) != 4 or min(r[2:]) < 1 for r in found):
        expected = "(y, x, height, width) of each detector, in whole pixels"
        raise _checks.error("regions", expected, _checks.short(value))
    return tuple(found)
