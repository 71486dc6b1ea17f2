"""Second derivatives through normalisation, against differences of gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_pnn.curvature import HessianOperator
from keras_pnn.curvature.moments import twice_differentiable

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 4)), RNG.normal(size=(12, 2))


@pytest.fixture
def float64():
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize(
    "layer,batch_norm",
    [
        (lambda: keras.layers.GroupNormalization(2), "frozen"),
        (lambda: keras.layers.LayerNormalization(), "frozen"),
        (lambda: keras.layers.BatchNormalization(), "frozen"),
        (lambda: keras.layers.BatchNormalization(), "batch"),
    ],
    ids=["group", "layer", "batch-frozen", "batch"],
)
def test_products_are_differences_of_gradients(float64, layer, batch_norm):
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(6, activation="tanh")
    model = keras.Sequential(
        [keras.Input((4,)), hidden, layer(), keras.layers.Dense(2)]
    )
    model.compile("sgd", "mse")
    operator = HessianOperator(model, X, Y, "all", batch_norm=batch_norm)
    direction = RNG.normal(size=operator.size)
    direction /= np.linalg.norm(direction)

    def gradient(step):
        moved = operator.split(step * direction)
        values = [
            (v, tf.constant(v.numpy() + part))
            for v, part in zip(operator.variables, moved, strict=True)
        ]
        with tf.GradientTape() as tape:
            tape.watch([value for _, value in values])
            with keras.StatelessScope(values):
                outputs = model(X, training=batch_norm == "batch")
            loss = tf.reduce_mean(tf.square(outputs - Y))
        parts = tape.gradient(loss, [value for _, value in values])
        return operator.join([part.numpy() for part in parts])

    step = 1e-4
    expected = (gradient(step) - gradient(-step)) / (2 * step)
    np.testing.assert_allclose(operator.matvec(direction), expected, atol=1e-6)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_values_are_those_of_tensorflow(dtype, keepdims):
    x = tf.constant(RNG.normal(size=(3, 4, 5)), dtype)
    expected = tf.nn.moments(x, [0, 2], keepdims=keepdims)
    with twice_differentiable():
        found = tf.nn.moments(x, [0, 2], keepdims=keepdims)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-3 if dtype == "float16" else 1e-6)


def test_tensorflow_is_left_as_it_was():
    before = tf.nn.moments
    with pytest.raises(KeyError), twice_differentiable():
        raise KeyError
    assert tf.nn.moments is before
