"""Read and write frames of a spatial light modulator as 8-bit greyscale PNG."""

import os
import pathlib

import numpy as np
import tensorflow as tf

from keras_pnn import _files

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_png(path: str | os.PathLike, levels: np.ndarray) -> None:
    """Writes one frame, whole or not at all.

    Args:
        path: the file.
        levels: (height, width), uint8, black 0 and white 255.
    """
    with _files.atomic(path) as part:
        part.write_bytes(tf.io.encode_png(levels[..., None]).numpy())


def read_png(path: str | os.PathLike, shape: tuple[int, int]) -> np.ndarray:
    """Reads one frame.

    Args:
        path: the file.
        shape: height and width that it must have.

    Returns:
        uint8 array of that shape.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a PNG picture, is damaged, or is not 8-bit greyscale
            of that size.
    """
    data = pathlib.Path(path).read_bytes()
    # TensorFlow would also decode a JPEG, whose levels differ from those written.
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
    height, width, channels = picture.shape
    # From the header, since TensorFlow cuts 16 bits to 8.
    depth = data[24]
    if (height, width, channels, depth) != (*shape, 1, 8):
        raise ValueError(
            f"{path} must be greyscale, {shape[0]} × {shape[1]} pixels of 8 bits. "
            f"Received: {height} × {width} pixels, {channels} channels of {depth} bits"
        )
    return picture[..., 0]
