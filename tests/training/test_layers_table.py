"""Training steps against plain Keras, for every kind of layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras_layers_table import (
    _GRAPHS,
    BATCH,
    DENSE,
    FUNCTIONS,
    NAMES,
    REFUSED,
    STATEFUL,
    Ageing,
    make,
)

import keras_pnn as pnn
from keras_pnn import _keras


def fitted(name, wrap, steps=2, **options):
    """Losses, and all that a model is after two steps, or one."""
    model, x, y = make(name)
    trainer = wrap(model)
    trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", **options)
    if options.get("run_eagerly"):
        # `fit`, without what it makes for the data.
        batches = [slice(0, BATCH), slice(BATCH, None)][:steps]
        data = [(tf.constant(x[b]), tf.constant(y[b])) for b in batches]
        losses = [trainer.train_step(batch)["loss"] for batch in data]
    else:
        fit = trainer.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
        losses = fit.history["loss"]
    states = [*_keras.seed_states(model), *_keras.recurrent_states(model)]
    variables = [*model.variables, *states, _keras.global_seed_state()]
    return [np.asarray(losses), *(np.asarray(v.value) for v in variables)]


def assert_same(found, expected, rtol):
    for one, other in zip(found, expected, strict=True):
        one, other = one.astype("float64"), other.astype("float64")
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


def flat(model):
    return pnn.SATModel(model, rho=0.0, perturb="all")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in {*REFUSED, *FUNCTIONS}])
def test_rho_zero_is_plain_training(name):
    # Weights, statistics and seeds are all there after one step.
    steps = 2 if name in STATEFUL else 1
    found, expected = (
        fitted(name, wrap, steps, run_eagerly=True)
        for wrap in (flat, lambda model: model)
    )
    # TensorFlow adds up the gradients of a nested graph in another order.
    assert_same(found, expected, 1e-6 if name == "tf.function" else 0.0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_passes_would_not_leave_alone_is_refused(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        fitted(name, flat, run_eagerly=True)


def chip(model):
    """A device that is as designed."""
    return pnn.devices.sweep(model, "temperature", [0.0])[0]


ONLINE = {
    "sat": flat,
    "sat online": lambda m: pnn.SATModel(m, rho=0.0, device=chip(m)),
    "pat, outputs": lambda m: pnn.PATModel(m, chip(m), readout="output"),
    "dat": lambda m: pnn.DATModel(m, chip(m), error_networks=1),
}


@pytest.fixture(scope="module")
def plain():
    return fitted("all states", lambda model: model, run_eagerly=True)


@pytest.mark.usefixtures("small_error_networks")
@pytest.mark.parametrize("kind", ONLINE)
def test_every_trainer_stores_states_of_all_kinds(plain, kind):
    # Graphs take long to make: one proves that states are stored from within one.
    losses, *found = fitted("all states", ONLINE[kind], run_eagerly=kind != "sat")
    assert_same(found, plain[1:], 1e-5)
    # Those of steps are means over the epoch.
    np.testing.assert_allclose(losses[-1], plain[0][-1], rtol=1e-5)


def test_rematerialized_layers_train_as_others(monkeypatch):
    """In plain Keras they draw and count twice, as the backward pass calls them."""

    def stack(x):
        return layers.BatchNormalization()(layers.Dropout(0.5)(Ageing()(x)))

    def rematerialized(x):
        with keras.RematScope("full"):
            return stack(x)

    monkeypatch.setitem(_GRAPHS, "stack", (DENSE, stack))
    monkeypatch.setitem(_GRAPHS, "rematerialized stack", (DENSE, rematerialized))
    expected = fitted("stack", lambda model: model, run_eagerly=True)
    found = fitted("rematerialized stack", flat, run_eagerly=True)
    assert_same(found, expected, 1e-6)


def test_what_a_layer_assigns_cannot_be_drawn():
    def noisy(model):
        noise = pnn.Variation({"assigned/kernel": 0.1})
        return pnn.SATModel(model, ascent=None, variation=noise)

    with pytest.raises(ValueError, match=r"`assigned` .* `variation` gives it a value"):
        fitted("spectral normalization", noisy, run_eagerly=True)
