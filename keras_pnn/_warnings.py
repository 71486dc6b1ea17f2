"""Report warnings at the user's line, however deep below it they arise."""

import os
import sys
import warnings

import keras
import tensorflow as tf

# Frames of Keras and TensorFlow lie between a user's `fit` and this package.
_INSIDE = tuple(
    os.path.join(os.path.dirname(file), "")
    for file in (__file__, keras.__file__, tf.__file__)
)


def warn(message: str) -> None:
    """Warns at the innermost line outside this package, Keras and TensorFlow."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
