import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pnn.physics import detection


def second_derivative(x):
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(detection.quantize(x, 3, -1.0, 1.0) ** 3)
        gradient = tape.gradient(loss, x)
    return outer.gradient(gradient, x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_levels(dtype):
    x = np.linspace(-2, 2, 401).astype(dtype)
    y = detection.quantize(x, 3, -1.0, 1.0)
    assert y.dtype == dtype
    levels = np.linspace(-1, 1, 8)
    nearest = levels[np.abs(np.clip(x, -1, 1)[:, None] - levels).argmin(axis=1)]
    assert len(np.unique(y)) == 8
    tie = np.abs(np.abs(np.clip(x, -1, 1) - nearest) - 1 / 7) < 1e-6
    np.testing.assert_allclose(y[~tie], nearest[~tie], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(-1e3, 1e3), st.integers(1, 24), st.floats(-10, 10), st.floats(0.1, 10))
def test_error_is_half_a_step_and_levels_stay(x, bits, low, span):
    high, x = low + span, np.float64(x)
    y = detection.quantize(x, bits, low, high).numpy()
    step = span / (2**bits - 1)
    assert abs(y - np.clip(x, low, high)) <= step / 2 + 1e-9
    assert low <= y <= high
    np.testing.assert_allclose(detection.quantize(y, bits, low, high), y, atol=1e-12)


def test_straight_through_gradient():
    x = tf.constant([-1.5, -1.0, -0.3, 0.4, 1.0, 1.5])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = detection.quantize(x, 4, -1.0, 1.0)
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 1, 1, 1, 1, 0])


def test_second_derivative_under_jit_and_vectorized_map():
    x = tf.constant(np.linspace(-1.5, 1.5, 6).reshape(3, 2))
    inside = np.abs(x) <= 1
    expected = 6 * detection.quantize(x, 3, -1.0, 1.0).numpy() * inside
    np.testing.assert_allclose(second_derivative(x), expected)
    jitted = tf.function(second_derivative, jit_compile=True)(x)
    np.testing.assert_allclose(jitted, expected)
    mapped = tf.vectorized_map(second_derivative, x, fallback_to_while_loop=False)
    np.testing.assert_allclose(mapped, expected)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0.0, 0, 0.0, 1.0), "bits"),
        ((0.0, 25, 0.0, 1.0), "bits"),
        ((0.0, 2.0, 0.0, 1.0), "bits"),
        ((0.0, True, 0.0, 1.0), "bits"),
        ((np.nan, 2, 0.0, 1.0), "x"),
        ((0.0, 2, 1.0, 1.0), "low"),
        ((0.0, 2, -np.inf, 1.0), "low"),
        ((0.0, 2, 0.0, np.nan), "high"),
    ],
)
def test_bad_input(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`.*Received"):
        detection.quantize(*arguments)
