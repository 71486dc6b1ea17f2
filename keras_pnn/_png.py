"""Frames of a spatial light modulator as files: 8-bit greyscale PNG."""

import os
import pathlib

import numpy as np
import tensorflow as tf

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_png(path: str | os.PathLike, levels: np.ndarray) -> None:
    """Writes one frame; the file is replaced whole or not at all.

    Args:
        path: the file.
        levels: (height, width), uint8, black 0 and white 255.
    """
    path = pathlib.Path(path)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(tf.io.encode_png(levels[..., None]).numpy())
    os.replace(part, path)


def read_png(path: str | os.PathLike, shape: tuple[int, int]) -> np.ndarray:
    """Reads one frame.

    Args:
        path: the file.
        shape: height and width that it must have.

    Returns:
        uint8 array of that shape.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a PNG picture, or damaged, or not greyscale of that
            size.
    """
    data = pathlib.Path(path).read_bytes()
    # TensorFlow would decode a JPEG as well, whose levels are not those written.
    if not data.startswith(_SIGNATURE):
        raise ValueError(
            f"{path} must be a PNG picture. Received: a file that starts with "
            f"{data[:8]!r}"
        )
    try:
        picture = tf.io.decode_png(data).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"{path} must be a PNG picture. Received: a damaged one ({error.message})"
        ) from error
    # The header: TensorFlow would cut 16 bits to 8.
    depth = data[24]
    if depth != 8:
        raise ValueError(f"{path} must have 8 bits. Received: {depth} bits")
    height, width, channels = picture.shape
    if (height, width, channels) != (*shape, 1):
        raise ValueError(
            f"{path} must be greyscale, {shape[0]} × {shape[1]} pixels. Received: "
            f"{height} × {width} pixels, {channels} channels"
        )
    return picture[..., 0]
