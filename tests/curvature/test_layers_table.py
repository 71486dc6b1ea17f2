"""Hessian-vector products against plain Keras, for every kind of layer."""

import numpy as np
import pytest
import tensorflow as tf
from keras_layers_table import BATCH, NAMES, RANDOM, REFUSED, SINGLE, STATEFUL, make
from models import difference_of_gradients

from keras_pnn.curvature.operator import HessianOperator


@pytest.fixture
def made(request):
    """From a name to a compiled model and its data, in float64 where Keras can."""

    def build(name):
        if name not in SINGLE:
            request.getfixturevalue("float64")
        model, x, y = make(name)
        model.compile("sgd", "mse")
        return model, x, y

    return build


# Their loops and functions must be differentiated twice within a graph; the others need
# none, which takes longer to make than a product.
IN_GRAPHS = ("rnn", "lstm", "gru", "cells", "bidirectional", "groups")
IN_GRAPHS += ("tf.function", "recompute_grad")


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in (*REFUSED, *STATEFUL, *RANDOM)]
)
def test_products_are_differences_of_gradients_of_keras(made, name):
    model, x, y = made(name)
    operator = HessianOperator(model, x, y, "all")
    vector = np.random.default_rng(5).normal(size=operator.size)
    tf.config.run_functions_eagerly(not any(part in name for part in IN_GRAPHS))
    try:
        found = operator @ vector
    finally:
        tf.config.run_functions_eagerly(False)
    step = 3e-3 if name in SINGLE else 1e-4
    expected = difference_of_gradients(operator, x, y, vector, step)
    apart = np.linalg.norm(expected - found) / np.linalg.norm(found)
    # `Resizing` rounds to single precision; half precision is too coarse for more.
    assert apart < (0.3 if name == "mixed precision" else 1e-3)
    loss = model.compute_loss(x, y, model(x, training=False), training=False)
    np.testing.assert_allclose(operator.loss, loss, rtol=1e-5 if apart < 1e-3 else 1e-2)


@pytest.mark.parametrize(
    "name", ["stateful simple rnn", "stateful bidirectional", "ageing"]
)
def test_the_state_of_an_rnn_is_that_of_evaluate_or_refused(made, name):
    model, x, y = made(name)
    with pytest.raises(ValueError, match=r"Layer `.*` must not be stateful.*batches"):
        HessianOperator(model, x, y, "all", batch_size=BATCH).trace(1)
    if name != "stateful simple rnn":
        return
    # With a state from before.
    model.predict(x[BATCH:], batch_size=BATCH, verbose=0)
    operator = HessianOperator(model, x[:BATCH], y[:BATCH], "all")
    operator.trace(1)
    loss = model.evaluate(x[:BATCH], y[:BATCH], batch_size=BATCH, verbose=0)
    np.testing.assert_allclose(operator.loss, loss, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_values_do_not_reach_is_refused(name):
    model, x, y = make(name)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=REFUSED[name]):
        HessianOperator(model, x, y, "all").trace(1)


def test_a_kernel_that_its_layer_assigns_is_refused():
    """In training, `SpectralNormalization` does."""
    model, x, y = make("spectral normalization")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"keep its variable `.*kernel` as it is"):
        HessianOperator(model, x, y, "all", batch_norm="batch").trace(1)
