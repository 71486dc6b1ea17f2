"""Sample images between pixels by bilinear interpolation, twice differentiable."""

import tensorflow as tf

# Rows and columns of zeros around an image. Two, because the one-sided slope of a
# sample on the first row of zeros needs the next row outwards.
_PAD = 2


def interpolated(images: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Samples images at given coordinates, with zero outside.

    Derivatives with respect to images and coordinates are exact and differentiable.
    On a row or column of pixels the derivative with respect to the coordinate is the
    mean of the two one-sided derivatives.

    Args:
        images: Float tensor of shape (batch, height, width, channels).
        y: Float64 tensor of shape (1, samples) for all images, or (batch, samples),
            in pixels from the middle of the first pixel.
        x: As `y`.

    Returns:
        Float tensor of shape (batch, samples, channels), of the dtype of `images`.
    """
    padded = tf.pad(images, [[0, 0], [_PAD, _PAD], [_PAD, _PAD], [0, 0]])
    batch, rows, columns, channels = (tf.shape(padded)[i] for i in range(4))
    if y.shape[0] == 1 and x.shape[0] == 1:
        # All images share one map: with pixels first, one index fetches all images.
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
    """Returns samples (n, k) of padded images (images · rows · columns, k).

    `y` and `x` have the shape (n,), with as many samples for each image, and are
    coordinates in the image before padding.
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
        """The adjoint of `sample`: adds samples to the pixels they came from."""
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
    # Farther out everything is 0, as in the first row of zeros.
    y, x = (tf.clip_by_value(v, -1.0, m) for v, m in zip((y, x), limit, strict=True))
    return sample(data, y, x)


class _Places:
    """The pixels around each sample, and its distances from them."""

    def __init__(self, data, y, x, rows, columns):
        self.columns = columns
        floor_y, floor_x = tf.floor(y), tf.floor(x)
        self.y, self.x = (
            tf.cast(v - tf.stop_gradient(f), data.dtype)[:, None]
            for v, f in ((y, floor_y), (x, floor_x))
        )
        # Clipped again as integers, since NaN converts to an arbitrary integer.
        row = tf.clip_by_value(tf.cast(floor_y, "int32") + _PAD, 1, rows - 2)
        column = tf.clip_by_value(tf.cast(floor_x, "int32") + _PAD, 1, columns - 2)
        images = tf.shape(data)[0] // (rows * columns)
        each = tf.shape(y)[0] // tf.maximum(images, 1)
        first = tf.repeat(tf.range(images) * rows * columns, each)
        self.index = first + row * columns + column

    def at(self, data, down: int, right: int):
        """The pixel at an offset of rows and columns."""
        return tf.gather(data, self.index + down * self.columns + right)

    def row(self, data, down: int):
        """Interpolates in x, at an offset of rows."""
        return (1 - self.x) * self.at(data, down, 0) + self.x * self.at(data, down, 1)

    def column(self, data, right: int):
        """Interpolates in y, at an offset of columns."""
        return (1 - self.y) * self.at(data, 0, right) + self.y * self.at(data, 1, right)

    def value(self, data):
        return (1 - self.y) * self.row(data, 0) + self.y * self.row(data, 1)

    def slope_y(self, data):
        return _slope(self.y, *(self.row(data, down) for down in (-1, 0, 1)))

    def slope_x(self, data):
        return _slope(self.x, *(self.column(data, right) for right in (-1, 0, 1)))

    def adjoint(self, samples, size):
        """Sums the samples that each pixel receives; returns the shape (size, k)."""
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


def _slope(distance, before, here, ahead):
    """The derivative at a distance from `here`; at 0, the mean of both sides."""
    return tf.where(tf.equal(distance, 0), (ahead - before) / 2, ahead - here)
