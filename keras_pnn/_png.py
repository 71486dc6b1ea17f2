"""Read and write frames of a modulator as greyscale PNG of 8 or 16 bits."""

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
        levels: (height, width), uint8, black 0 and white 255, or uint16, white 65535.
    """
    with _files.atomic(path) as part:
        part.write_bytes(tf.io.encode_png(levels[..., None]).numpy())


def read_png(path: str | os.PathLike, shape: tuple[int, int]) -> np.ndarray:
    """Returns one greyscale frame of (height, width) `shape`, as uint8 or uint16."""
    data = pathlib.Path(path).read_bytes()
    # TensorFlow would also decode a JPEG, whose levels differ from those written.
    if not data.startswith(_SIGNATURE):
        raise ValueError(
            f"{path} must be a PNG picture. Received: a file that starts with "
            f"{data[:8]!r}"
        )
    # From the header, since TensorFlow converts to the requested type.
    depth = data[24] if len(data) > 24 else 0
    try:
        kind = tf.uint16 if depth == 16 else tf.uint8
        picture = tf.io.decode_png(data, dtype=kind).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"{path} must be a PNG picture. Received: a damaged one ({error.message})"
        ) from error
    height, width, channels = picture.shape
    if (height, width, channels) != (*shape, 1) or depth not in (8, 16):
        raise ValueError(
            f"{path} must be greyscale, {shape[0]} × {shape[1]} pixels of 8 or 16 "
            f"bits. Received: {height} × {width} pixels, {channels} channels of "
            f"{depth} bits"
        )
    return picture[..., 0]
