"""Models and data that the tests of curvature share."""

import keras
import numpy as np
import pytest
import tensorflow as tf


class Quadratic(keras.layers.Layer):
    """Adds ½ wᵀAw to the loss."""

    def __init__(self, matrix, **kwargs):
        super().__init__(**kwargs)
        self.matrix = np.asarray(matrix)

    def build(self, input_shape):
        self.w = self.add_weight(shape=(len(self.matrix),), initializer="ones")

    def call(self, inputs):
        w = tf.convert_to_tensor(self.w)
        product = tf.linalg.matvec(tf.cast(self.matrix, w.dtype), w)
        self.add_loss(0.5 * tf.reduce_sum(w * product))
        return inputs


@pytest.fixture
def quadratic():
    """From a matrix, or the diagonal of one, to a model with it as its Hessian."""

    def make(matrix):
        matrix = np.asarray(matrix)
        inputs = keras.Input((1,))
        layer = Quadratic(np.diag(matrix) if matrix.ndim == 1 else matrix)
        model = keras.Model(inputs, layer(inputs))
        model.compile("sgd")
        return model

    return make


@pytest.fixture
def network():
    """Makes a compiled network from 3 features to 2, with 38 parameters."""

    def make(*layers, hidden=6, loss="mse", **dense):
        keras.utils.set_random_seed(3)
        first = keras.layers.Dense(hidden, "tanh", **dense)
        model = keras.Sequential(
            [keras.Input((3,)), first, *layers, keras.layers.Dense(2)]
        )
        # So that `evaluate`, as a reference, needs no graph.
        model.compile("adam", loss, run_eagerly=True)
        return model

    return make


@pytest.fixture
def data():
    """Ten samples for `network`."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((10, 3)), rng.standard_normal((10, 2))
    return x.astype("float32"), y.astype("float32")


@pytest.fixture
def symmetric():
    """From eigenvalues to a dense symmetric matrix and its eigenvectors."""

    def make(spectrum):
        rng = np.random.default_rng(0)
        basis = np.linalg.qr(rng.standard_normal((len(spectrum),) * 2))[0]
        return basis * np.asarray(spectrum) @ basis.T, basis

    return make
