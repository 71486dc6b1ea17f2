"""Run functions in graphs, compiled and mapped, and differentiate them."""

import numpy as np
import tensorflow as tf


def gradients(function, values):
    """The gradients of a number with respect to each value."""
    with tf.GradientTape() as tape:
        tape.watch(values)
        value = function(*values)
    return tape.gradient(value, values)


def assert_same_when_transformed(function, stacked, rtol=1e-9):
    """Checks graph, XLA and `vectorized_map` of a function of one tensor.

    `stacked` holds several arguments along its first axis; `function` returns a tensor
    or a list of them.
    """

    def all_of(argument):
        return tf.nest.flatten(function(argument))

    eager = [all_of(argument) for argument in stacked]
    mapped = tf.vectorized_map(all_of, stacked, fallback_to_while_loop=False)
    for found, each in zip(mapped, zip(*eager, strict=True), strict=True):
        np.testing.assert_allclose(found, np.stack(each), rtol=rtol, atol=1e-9)
    for jit in (False, True):
        results = tf.function(all_of, jit_compile=jit)(stacked[0])
        for found, expected in zip(results, eager[0], strict=True):
            np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-9)
