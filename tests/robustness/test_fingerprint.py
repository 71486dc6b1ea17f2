"""What a fingerprint sees: everything that is computed, and no name."""

import functools

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.robustness.fingerprint import computation, digest

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(scale=1.0, units=4, **bank):
    inputs = keras.Input((5,))
    x = keras.layers.ReLU()(pnn.layers.MRRBank(units)(inputs * scale))
    return keras.Model(inputs, pnn.layers.MRRBank(3, **bank)(x))


def nested():
    inputs = keras.Input((5,))
    return keras.Model(inputs, pnn.layers.MRRBank(2)(network()(inputs)))


class Scaled(keras.Model):
    def __init__(self, factor=1.0):
        super().__init__()
        self.bank, self.factor = pnn.layers.MRRBank(3), factor

    def call(self, inputs):
        return self.bank(inputs)


class Twice(Scaled):
    def call(self, inputs):
        return 2 * self.bank(inputs)


def of(model, loss=CROSSENTROPY, metrics=("accuracy",), **kwargs):
    if not model.built:
        model(np.zeros((1, 5), "float32"))
    model.compile("sgd", loss, metrics=list(metrics), **kwargs)
    return computation(model)


def top(k):
    return keras.metrics.SparseTopKCategoricalAccuracy(k, name="top")


def constant(value):
    return lambda y, p: value * keras.ops.sum(p, axis=-1)


def weighted(y, p, factor):
    return factor * keras.ops.sum(p, axis=-1)


@pytest.mark.parametrize("make", [network, nested, Scaled])
def test_names_do_not_matter(make):
    first, second = make(), make()
    assert of(first) == of(second)
    assert of(pnn.SATModel(first, rho=0.1, perturb="all")) == of(second)


def test_the_optimizer_does_not_matter():
    model = network()
    model.compile("adam", CROSSENTROPY, metrics=["accuracy"])
    assert computation(model) == of(network())


@pytest.mark.parametrize(
    "first,second",
    [
        ({"model": network()}, {"model": network(-1.0)}),
        ({"model": network()}, {"model": network(units=5)}),
        ({"model": network()}, {"model": network(use_bias=False)}),
        ({"model": Scaled()}, {"model": Twice()}),
        ({"loss": constant(1.0)}, {"loss": constant(2.0)}),
        (
            {"loss": functools.partial(weighted, factor=1.0)},
            {"loss": functools.partial(weighted, factor=2.0)},
        ),
        (
            {"loss": lambda y, p: keras.ops.mean(p)},
            {"loss": lambda y, p: keras.ops.sum(p)},
        ),
        ({"loss_weights": [1.0]}, {"loss_weights": [50.0]}),
        ({"metrics": [top(1)]}, {"metrics": [top(2)]}),
        ({"weighted_metrics": [top(1)]}, {"weighted_metrics": [top(2)]}),
    ],
    ids=[
        "operation",
        "units",
        "setting",
        "call",
        "closure",
        "partial",
        "code",
        "loss weights",
        "metric",
        "weighted metric",
    ],
)
def test_what_is_computed_matters(first, second):
    a, again, b = (of(**{"model": network(), **d}) for d in (first, first, second))
    assert a == again != b


def test_arrays():
    ones = np.ones((2, 3))
    assert digest([ones, None]) == digest([ones.copy(order="F")])
    different = [ones, ones.T, ones.astype("float32"), 2 * ones, np.array(["a", None])]
    assert len({digest([a]) for a in different}) == len(different)
