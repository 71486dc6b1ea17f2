"""What identifies a model: everything that is computed, and no name."""

import functools

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.robustness.identity import data_digest, described

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(scale=1.0, units=4, extra=(), **bank):
    inputs = keras.Input((5,))
    x = keras.layers.ReLU()(pnn.layers.MRRBank(units)(inputs * scale))
    for layer in extra:
        x = layer(x)
    return keras.Model(inputs, pnn.layers.MRRBank(3, **bank)(x))


def nested():
    inputs = keras.Input((5,))
    return keras.Model(inputs, pnn.layers.MRRBank(2)(network()(inputs)))


class Scaled(keras.Model):
    def __init__(self):
        super().__init__()
        self.bank = pnn.layers.MRRBank(3)

    def call(self, inputs):
        return self.bank(inputs)


class Twice(Scaled):
    def call(self, inputs):
        return 2 * self.bank(inputs)


def of(model, loss=CROSS_ENTROPY, metrics=("accuracy",), **kwargs):
    if not model.built:
        model(np.zeros((1, 5), "float32"))
    model.compile("sgd", loss, metrics=list(metrics), **kwargs)
    return described(model)


def top(k):
    return keras.metrics.SparseTopKCategoricalAccuracy(k, name="top")


def weighted(y, p, factor):
    return factor * keras.ops.sum(p, axis=-1)


def half():
    return network(extra=[keras.layers.Dense(4, dtype="float16")])


@pytest.mark.parametrize("make", [network, nested, Scaled])
def test_names_and_optimizer_do_not_matter(make):
    first, second = make(), make()
    assert of(first) == of(second)
    assert of(pnn.SATModel(first, rho=0.1, perturb="all")) == of(second)
    second.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
    assert described(second) == of(first)


@pytest.mark.parametrize(
    "first, second",
    [
        ({"model": network()}, {"model": network(-1.0)}),
        ({"model": network()}, {"model": network(units=5)}),
        ({"model": network()}, {"model": network(use_bias=False)}),
        ({"model": network(extra=[keras.layers.Dense(4)])}, {"model": half()}),
        ({"model": Scaled()}, {"model": Twice()}),
        (
            {"loss": functools.partial(weighted, factor=1.0)},
            {"loss": functools.partial(weighted, factor=2.0)},
        ),
        ({"loss": weighted}, {"loss": top}),
        ({"loss_weights": [1.0]}, {"loss_weights": [50.0]}),
        ({"metrics": [top(1)]}, {"metrics": [top(2)]}),
        ({"weighted_metrics": [top(1)]}, {"weighted_metrics": [top(2)]}),
    ],
    ids=["operation", "units", "setting", "dtype", "class", "partial", "loss"]
    + ["loss weights", "metric", "weighted metric"],
)
def test_what_is_computed_matters(first, second):
    a, again, b = (of(**{"model": network(), **d}) for d in (first, first, second))
    assert a == again != b


def test_a_layer_that_bears_the_name_of_its_function():
    def activated(function, name):
        return of(network(extra=[keras.layers.Activation(function, name=name)]))

    assert activated("relu", "relu") != activated("tanh", "tanh")
    assert activated("tanh", "relu") == activated("tanh", "tanh")


def test_code_does_not_matter():
    # Byte code differs between versions of Python.
    first, second = (keras.layers.Lambda(lambda x, s=s: s * x) for s in (1, 2))
    assert of(network(extra=[first])) == of(network(extra=[second]))


class Bare(keras.layers.Layer):
    """A layer without `get_config`, which Keras would not save."""

    def __init__(self, power, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def call(self, inputs):
        return inputs**self.power


@pytest.mark.parametrize(
    "first, second",
    [
        ({"extra": [Bare(2)]}, {"extra": [Bare(3)]}),
        ({"extra": [Bare(2)]}, {"extra": [Bare(2, dtype="float16")]}),
        ({"dac": lambda v: v}, {"dac": lambda v: v, "use_bias": False}),
    ],
)
def test_layers_that_cannot_be_saved_are_told_by_their_arguments(first, second):
    assert of(network(**first)) == of(network(**first)) != of(network(**second))


def test_arrays():
    ones = np.ones((2, 3))
    assert data_digest([ones, None]) == data_digest(ones.copy(order="F"))
    different = [ones, ones.T, ones.astype("float32"), 2 * ones]
    different += [np.array(["a", None]), np.array(["b", None])]
    assert len({data_digest(a) for a in different}) == len(different)
