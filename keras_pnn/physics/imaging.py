"""Frames of a spatial light modulator: misaligned, and made of masks."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.physics._tensors import (
    TensorLike,
    as_tensors,
    check,
    check_positive,
)
from keras_pnn.physics.frames import frame_shape, pair, tile, untile

__all__ = ["affine", "frame_shape", "pair", "tile", "untile"]

# Rows and columns of zeros around an image. Two, since the slope on the left of
# the last sample that is not 0 asks for a neighbour of a neighbour.
_PAD = 2


def affine(
    image: TensorLike,
    rotation: TensorLike = 0.0,
    shift: TensorLike = (0.0, 0.0),
    scale: TensorLike = 1.0,
    center: tuple[float, float] | None = None,
) -> tf.Tensor:
    """Rotates, shifts and enlarges an image about a centre c, with zero outside.

        out(p) = image(c + R(−rotation) (p − c − shift) / scale),   p = (y, x)

    between pixels by bilinear interpolation. A positive rotation is
    counter-clockwise as displayed (y points down), a positive shift moves the
    content down and to the right, a scale above 1 enlarges it.

    Derivatives with respect to the image and all parameters are exact, and can be
    differentiated again. Where a sample falls on a pixel, interpolation has a kink,
    and the derivative is the mean of the two one-sided ones: so it is for each
    sample of a frame that is aligned. (Second derivatives between two parameters are
    one-sided there.)

    Coordinates are computed in float64, so that a large image in float32 is warped
    as precisely as a small one.

    Args:
        image: Float tensor of shape (height, width), (batch, height, width) or
            (batch, height, width, channels).
        rotation: Float tensor, in degrees: a scalar, or (batch,) for an angle for
            each image.
        shift: Float tensor of shape (2,) or (batch, 2), in pixels, (y, x).
        scale: Float tensor, positive: a scalar, or (batch,).
        center: (y, x) of c in pixels from the middle of the first pixel. Default:
            the middle of the image, ((height − 1)/2, (width − 1)/2).

    Returns:
        Float tensor of the shape of `image`, float64 for a float64 image, else
        float32. NaN, as its gradients are, where a parameter that is not known
        eagerly is not finite, or a scale not positive.

    Raises:
        ValueError: If shapes do not fit, if a parameter known eagerly is NaN or
            infinite, or a scale is not positive.

    Example:

    >>> image = np.array([[0.0, 1.0], [0.0, 0.0]])
    >>> affine(image, rotation=90.0).numpy()
    array([[1., 0.],
           [0., 0.]])

    Reference:

    - Jaderberg et al., NeurIPS 2015, arXiv:1506.02025: the bilinear sampler.
    """
    for name, value in (("rotation", rotation), ("shift", shift)):
        check(name, value, np.isfinite, "finite")
    check_positive("scale", scale)
    if center is not None and not (
        np.shape(center) == (2,) and np.isfinite(center).all()
    ):
        raise ValueError(
            f"`center` must be (y, x), both finite. Received: center={center!r}"
        )
    try:
        (image,) = as_tensors(image)
    except ValueError as error:
        raise ValueError(f"`image` must be real. {error}") from error
    rank = image.shape.rank
    if rank not in (2, 3, 4):
        raise ValueError(
            "`image` must have the shape (height, width), (batch, height, width) or "
            f"(batch, height, width, channels). Received: shape {image.shape}"
        )
    rotation, shift, scale = (_float64(v) for v in (rotation, shift, scale))
    _check_parameters(image, rotation, shift, scale)
    pixels = image[None] if rank == 2 else image
    pixels = pixels if rank == 4 else pixels[..., None]
    height, width = _sides(pixels)
    if center is None:
        center = ((height - 1) / 2, (width - 1) / 2)
    # What is no such map must not pass for an image, nor its gradient for one of 0.
    sound = _sound(rotation, shift, scale)
    pixels *= tf.reshape(tf.cast(sound, pixels.dtype), (-1, 1, 1, 1))
    shift *= sound[..., None]
    y, x = _sources(height, width, rotation * sound, shift, scale * sound, center)
    padded = tf.pad(pixels, [[0, 0], [_PAD, _PAD], [_PAD, _PAD], [0, 0]])
    warped = _interpolated(padded, y, x)
    return tf.reshape(warped, tf.shape(image))


def _float64(value) -> tf.Tensor:
    """Python numbers are not rounded to float32 on the way."""
    if isinstance(value, (list, tuple)):
        return tf.stack([_float64(part) for part in value])
    if not isinstance(value, (tf.Variable, keras.Variable)) and not tf.is_tensor(value):
        return tf.constant(value, "float64")
    return tf.cast(tf.convert_to_tensor(value), "float64")


def _check_parameters(image, rotation, shift, scale) -> None:
    batch = None if image.shape.rank == 2 else image.shape[0]
    allowed = "a scalar" if image.shape.rank == 2 else "a scalar or (batch,)"
    for name, value in (("rotation", rotation), ("scale", scale)):
        if value.shape.rank > (image.shape.rank > 2) or (
            value.shape.rank == 1
            and None not in (batch, value.shape[0])
            and value.shape[0] != batch
        ):
            raise ValueError(
                f"`{name}` must be {allowed}. Received: shape {value.shape} for "
                f"`image` of shape {image.shape}"
            )
    if (
        shift.shape.rank not in (1, 2)
        or shift.shape[-1] != 2
        or (shift.shape.rank == 2 and image.shape.rank == 2)
        or (
            shift.shape.rank == 2
            and None not in (batch, shift.shape[0])
            and shift.shape[0] != batch
        )
    ):
        raise ValueError(
            "`shift` must be (y, x), or of shape (batch, 2) for a batch of images. "
            f"Received: shape {shift.shape} for `image` of shape {image.shape}"
        )


def _sides(pixels):
    """Height and width, numbers where they are known."""
    dynamic = tf.shape(pixels)
    return tuple(
        tf.cast(dynamic[i], "float64") if pixels.shape[i] is None else pixels.shape[i]
        for i in (1, 2)
    )


def _sound(rotation, shift, scale):
    """1 where the parameters are a map, NaN where they are not."""
    valid = tf.math.is_finite(rotation) & tf.math.is_finite(scale) & (scale > 0)
    valid &= tf.reduce_all(tf.math.is_finite(shift), -1)
    return tf.where(valid, *(tf.constant(v, "float64") for v in (1.0, math.nan)))


def _sources(height, width, rotation, shift, scale, center):
    """Where each pixel comes from: y and x of shape (groups, height · width).

    One group for all images, or one for each.
    """
    cos, sin = _cos_sin(rotation)
    cos, sin = cos / scale, sin / scale
    center_y, center_x = (tf.cast(c, "float64") for c in center)
    rows = tf.range(height, dtype="float64") - center_y
    columns = tf.range(width, dtype="float64") - center_x
    grid_y, grid_x = tf.meshgrid(rows, columns, indexing="ij")
    cos, sin = (tf.reshape(v, (-1, 1)) for v in (cos, sin))
    from_y = tf.reshape(grid_y, (1, -1)) - tf.reshape(shift[..., 0], (-1, 1))
    from_x = tf.reshape(grid_x, (1, -1)) - tf.reshape(shift[..., 1], (-1, 1))
    # With y down, R(−rotation) is a clockwise turn as displayed, of where the
    # sample is taken; so the content turns counter-clockwise.
    return (
        cos * from_y + sin * from_x + center_y,
        cos * from_x - sin * from_y + center_x,
    )


def _cos_sin(degrees):
    """Cosine and sine, exact at multiples of 90°."""
    quarters = tf.stop_gradient(tf.round(degrees / 90))
    angle = (degrees - 90 * quarters) * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    turn = quarters - 4 * tf.floor(quarters / 4)
    turn_cos = tf.cast(turn == 0, "float64") - tf.cast(turn == 2, "float64")
    turn_sin = tf.cast(turn == 1, "float64") - tf.cast(turn == 3, "float64")
    return cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin


def _interpolated(padded, y, x):
    """Samples of images (batch, rows, columns, channels) with zeros around them."""
    batch, rows, columns, channels = (tf.shape(padded)[i] for i in range(4))
    if y.shape[0] == 1 and x.shape[0] == 1:
        # One map for all images: pixels first, so that one index fetches them all.
        data = tf.transpose(padded, (1, 2, 0, 3))
        data = tf.reshape(data, (rows * columns, batch * channels))
        samples = _sampled(data, y[0], x[0], rows, columns)
        samples = tf.reshape(samples, (-1, batch, channels))
        return tf.transpose(samples, (1, 0, 2))
    y, x = (tf.broadcast_to(v, (batch, tf.shape(v)[1])) for v in (y, x))
    data = tf.reshape(padded, (batch * rows * columns, channels))
    samples = _sampled(data, tf.reshape(y, [-1]), tf.reshape(x, [-1]), rows, columns)
    return tf.reshape(samples, (batch, -1, channels))


def _sampled(data, y, x, rows, columns):
    """Bilinear samples.

    Args:
        data: (images · rows · columns, k), padded images.
        y, x: (samples,), as many for each image, coordinates before the padding.
        rows, columns: those of a padded image.

    Returns:
        (samples, k).
    """

    def moved(flow):
        """The derivative with respect to a coordinate, in its dtype."""
        return tf.cast(tf.reduce_sum(flow, 1), y.dtype)

    @tf.custom_gradient
    def sample(data, y, x):
        places = _Places(data, y, x, rows, columns)

        def gradient(upstream):
            return (
                spread(upstream, data, y, x),
                moved(upstream * places.slope_y(data)),
                moved(upstream * places.slope_x(data)),
            )

        return places.value(data), gradient

    @tf.custom_gradient
    def spread(samples, like, y, x):
        """The adjoint of `sample`: samples go back to where they came from."""
        places = _Places(like, y, x, rows, columns)

        def gradient(upstream):
            return (
                sample(upstream, y, x),
                None,
                moved(samples * places.slope_y(upstream)),
                moved(samples * places.slope_x(upstream)),
            )

        return places.adjoint(samples, tf.shape(like)[0]), gradient

    limit = tf.cast(rows - 2 * _PAD, "float64"), tf.cast(columns - 2 * _PAD, "float64")
    # All that lies further out is as dark as the first row of zeros.
    y, x = (tf.clip_by_value(v, -1.0, m) for v, m in zip((y, x), limit, strict=True))
    return sample(data, y, x)


class _Places:
    """Neighbours of the samples and their distances."""

    def __init__(self, data, y, x, rows, columns):
        self.columns = columns
        floor_y, floor_x = tf.floor(y), tf.floor(x)
        self.y, self.x = (
            tf.cast(v - tf.stop_gradient(f), data.dtype)[:, None]
            for v, f in ((y, floor_y), (x, floor_x))
        )
        # Clipped once more as integers: NaN has no integer.
        row = tf.clip_by_value(tf.cast(floor_y, "int32") + _PAD, 1, rows - 2)
        column = tf.clip_by_value(tf.cast(floor_x, "int32") + _PAD, 1, columns - 2)
        images = tf.shape(data)[0] // (rows * columns)
        each = tf.shape(y)[0] // tf.maximum(images, 1)
        first = tf.repeat(tf.range(images) * rows * columns, each)
        self.index = first + row * columns + column

    def at(self, data, down: int, right: int):
        """The neighbour so many rows and columns on."""
        return tf.gather(data, self.index + down * self.columns + right)

    def row(self, data, down: int):
        """Interpolated in x, so many rows on."""
        return (1 - self.x) * self.at(data, down, 0) + self.x * self.at(data, down, 1)

    def column(self, data, right: int):
        """Interpolated in y, so many columns on."""
        return (1 - self.y) * self.at(data, 0, right) + self.y * self.at(data, 1, right)

    def value(self, data):
        return (1 - self.y) * self.row(data, 0) + self.y * self.row(data, 1)

    def slope_y(self, data):
        rise = self.row(data, 1) - self.row(data, 0)
        both = (self.row(data, 1) - self.row(data, -1)) / 2
        return tf.where(tf.equal(self.y, 0), both, rise)

    def slope_x(self, data):
        rise = self.column(data, 1) - self.column(data, 0)
        both = (self.column(data, 1) - self.column(data, -1)) / 2
        return tf.where(tf.equal(self.x, 0), both, rise)

    def adjoint(self, samples, size):
        """(size, k): what flows to each pixel."""
        weights = (
            (1 - self.y) * (1 - self.x),
            (1 - self.y) * self.x,
            self.y * (1 - self.x),
            self.y * self.x,
        )
        offsets = (0, 1, self.columns, self.columns + 1)
        return tf.math.unsorted_segment_sum(
            tf.concat([w * samples for w in weights], 0),
            tf.concat([self.index + o for o in offsets], 0),
            size,
        )
