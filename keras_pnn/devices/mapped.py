"""Map a function of one device over many, in one graph where TensorFlow can."""

import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_pnn import _keras, _warnings
from keras_pnn.layers.context import kernels_per_device


def graph(function: Callable, **kwargs):
    """Returns a `tf.function` whose traces TensorFlow counts separately.

    For a method it would count those of all models together, and warn of retracing.
    """
    return tf.function(functools.partial(function), autograph=False, **kwargs)


class Mapped:
    """Maps a function of (values of one device, *shared arguments) over devices.

    Operations that do not depend on the device are computed once. XLA compiles the map
    if `compiled` is true and it knows all operations.
    """

    def __init__(self, function: Callable, rows: int, compiled: bool):
        self._function, self._rows = function, rows
        # Whether TensorFlow can vectorise the function, as far as is known.
        self.vectorized = True
        self._stacked = graph(self._map, jit_compile=compiled)
        self._single = graph(function)

    def __call__(self, stacks: list, devices: int, *shared):
        """Returns the stacked results of all rows, of which `devices` count.

        Each of `stacks` is (rows, …); there is none for devices that set nothing.
        """
        if not stacks:
            results = [self._single([], *shared)]
        elif self._rows > 1 and self.vectorized:
            try:
                return self._together(stacks, *shared)
            except (ValueError, NotImplementedError) as error:
                if not _keras.cannot_vectorize(error):
                    raise
                self.vectorized = False
                # The message itself comes after TensorFlow's traceback.
                message = str(error).strip().splitlines()[-1].strip()
                _warnings.warn(
                    "A layer cannot be vectorised over devices; they run one after "
                    f"the other ({message})"
                )
                return self(stacks, devices, *shared)
        else:
            results = [
                self._single([s[i] for s in stacks], *shared) for i in range(devices)
            ]
        return keras.tree.map_structure(
            lambda *r: filled(tf.stack(r), self._rows), *results
        )

    def _together(self, stacks, *shared):
        try:
            return self._stacked(stacks, *shared)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            # XLA lacks an operation of the model; TensorFlow may have it.
            self._stacked = graph(self._map)
            return self._stacked(stacks, *shared)

    def _map(self, stacks, *shared):
        with kernels_per_device():
            return tf.vectorized_map(
                lambda values: self._function(values, *shared),
                stacks,
                fallback_to_while_loop=False,
            )


def filled(stack: tf.Tensor, rows: int) -> tf.Tensor:
    """Repeats the last row of a stack until there are `rows` rows."""
    missing = rows - len(stack)
    if missing <= 0:
        return stack
    return tf.concat([stack, tf.repeat(stack[-1:], missing, axis=0)], axis=0)
