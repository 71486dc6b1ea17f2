"""Warp images and the frames of a misaligned spatial light modulator."""

import math

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics._tensors import TensorLike, as_float64, as_tensors, sizes
from keras_pnn.physics.bilinear import interpolated


def affine(
    image: TensorLike,
    rotation: TensorLike = 0.0,
    shift: TensorLike = (0.0, 0.0),
    scale: TensorLike = 1.0,
    center: tuple[float, float] | None = None,
) -> tf.Tensor:
    """Rotates, shifts and scales an image about a centre c, with zero outside.

        out(p) = image(c + R(−rotation) (p − c − shift) / scale),   p = (y, x)

    with bilinear interpolation between pixels. A positive rotation is
    counter-clockwise as displayed (y points down), a positive shift moves the content
    down and to the right, a scale above 1 enlarges it.

    Derivatives with respect to the image and all parameters are exact, and
    differentiable again. Where a sample falls on a pixel, as all do in an aligned
    frame, interpolation has a kink, and the derivative is the mean of the two
    one-sided derivatives. (Mixed second derivatives of two parameters are one-sided
    there.) Coordinates are computed in float64.

    Args:
        image: Float tensor of shape (height, width), (batch, height, width) or
            (batch, height, width, channels).
        rotation: Float tensor, in degrees: a scalar, or (batch,).
        shift: Float tensor of shape (2,) or (batch, 2), in pixels, (y, x).
        scale: Float tensor, positive: a scalar, or (batch,).
        center: (y, x) of c in pixels from the middle of the first pixel. Default:
            the middle of the image, ((height − 1)/2, (width − 1)/2).

    Returns:
        Float tensor of the shape of `image`, float64 for a float64 image, else
        float32. In a graph, values and gradients are NaN where a parameter is not
        finite or a scale is not positive.

    Raises:
        ValueError: If `image` is not real or has fewer than two axes, `center` is not a
            pair, or eagerly: an argument is not finite, or `scale` is not positive.

    Example:

    >>> image = np.array([[0.0, 1.0], [0.0, 0.0]])
    >>> affine(image, rotation=90.0).numpy()
    array([[1., 0.],
           [0., 0.]])

    Reference:

    - Jaderberg et al., NeurIPS 2015, arXiv:1506.02025: the bilinear sampler.
    """
    for name, value in (("rotation", rotation), ("shift", shift)):
        _checks.tensor(name, value, np.isfinite, "finite")
    _checks.positive("scale", scale)
    if center is not None and _checks.array("center", center).shape != (2,):
        raise _checks.error("center", "(y, x)", repr(center))
    try:
        (image,) = as_tensors(image)
    except ValueError as error:
        raise ValueError(f"Argument `image` must be real. {error}") from error
    rank = image.shape.rank
    if rank not in (2, 3, 4):
        raise ValueError(
            "Argument `image` must have the shape (height, width), (batch, height, "
            "width) or (batch, height, width, channels). "
            f"Received: shape {image.shape}"
        )
    rotation, shift, scale = (as_float64(v) for v in (rotation, shift, scale))
    _check_shapes(image, rotation=rotation, shift=shift, scale=scale)
    pixels = image[None] if rank == 2 else image
    pixels = pixels if rank == 4 else pixels[..., None]
    height, width = (
        n if isinstance(n, int) else tf.cast(n, "float64") for n in sizes(pixels)[1:3]
    )
    if center is None:
        center = ((height - 1) / 2, (width - 1) / 2)
    # An invalid map must give NaN, not an image or a gradient of 0.
    valid = _one_where_valid(rotation, shift, scale)
    pixels *= tf.reshape(tf.cast(valid, pixels.dtype), (-1, 1, 1, 1))
    shift *= valid[..., None]
    y, x = _sources(height, width, rotation * valid, shift, scale * valid, center)
    return tf.reshape(interpolated(pixels, y, x), tf.shape(image))


def _check_shapes(image, **parameters) -> None:
    """Checks that parameters have one value, or one for each image of a batch."""
    batched = image.shape.rank > 2
    for name, value in parameters.items():
        own = (2,) if name == "shift" else ()
        allowed = "(y, x)" if own else "a scalar"
        allowed += ", or one for each image" if batched else ""
        fits = value.shape.is_compatible_with(own) or (
            batched and value.shape.is_compatible_with((image.shape[0], *own))
        )
        if not fits:
            raise ValueError(
                f"Argument `{name}` must be {allowed}. Received: shape {value.shape} "
                f"for `image` of shape {image.shape}"
            )


def _one_where_valid(rotation, shift, scale):
    """Returns 1 where the parameters define a map, else NaN."""
    valid = tf.math.is_finite(rotation) & tf.math.is_finite(scale) & (scale > 0)
    valid &= tf.reduce_all(tf.math.is_finite(shift), -1)
    return tf.where(valid, *(tf.constant(v, "float64") for v in (1.0, math.nan)))


def _sources(height, width, rotation, shift, scale, center):
    """Returns sources y and x of all pixels, of shape (1 or images, height · width)."""
    cos, sin = (tf.reshape(v / scale, (-1, 1)) for v in _cos_sin(rotation))
    center_y, center_x = (tf.cast(c, "float64") for c in center)
    rows = tf.range(height, dtype="float64") - center_y
    columns = tf.range(width, dtype="float64") - center_x
    grid_y, grid_x = tf.meshgrid(rows, columns, indexing="ij")
    from_y = tf.reshape(grid_y, (1, -1)) - tf.reshape(shift[..., 0], (-1, 1))
    from_x = tf.reshape(grid_x, (1, -1)) - tf.reshape(shift[..., 1], (-1, 1))
    # With y down, R(−rotation) turns the source clockwise as displayed, and so the
    # content counter-clockwise.
    return (
        cos * from_y + sin * from_x + center_y,
        cos * from_x - sin * from_y + center_x,
    )


def _cos_sin(degrees):
    """Returns cosine and sine, exact at multiples of 90°."""
    quarters = tf.stop_gradient(tf.round(degrees / 90))
    angle = (degrees - 90 * quarters) * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    turn = quarters - 4 * tf.floor(quarters / 4)
    turn_cos = tf.cast(turn == 0, "float64") - tf.cast(turn == 2, "float64")
    turn_sin = tf.cast(turn == 1, "float64") - tf.cast(turn == 3, "float64")
    return cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin
