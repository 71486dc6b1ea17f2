"""Known faults of training and curvature: tests that fail until they are corrected.

Every test states what is right; the line below its name says what is wrong. Where an
error is as good as the right value, `right_or_refused` takes either.
"""

import contextlib
import functools

import keras
import numpy as np
import pytest
from keras import layers

import keras_pnn as pnn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 4)).astype("float32")
Y = RNG.integers(0, 3, 8)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FIT = {"batch_size": 4, "shuffle": False, "verbose": 0}


def fault(reason, raises=AssertionError):
    return pytest.mark.xfail(strict=True, raises=raises, reason=reason)


@contextlib.contextmanager
def right_or_refused(name):
    """Passes if the block does, or if a ValueError of it names the layer."""
    try:
        yield
    except ValueError as error:
        assert name in str(error)


def seeded(build):
    """Gives what a function builds the same weights at each call."""

    @functools.wraps(build)
    def run(*args, **kwargs):
        keras.utils.set_random_seed(0)
        return build(*args, **kwargs)

    return run


def network(*stack, shape=(4,), **kwargs):
    """A functional model of layers."""
    inputs = outputs = keras.Input(shape, **kwargs)
    for layer in stack:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


@seeded
def bank(units=3, **kwargs):
    return network(pnn.layers.MRRBank(units, name="bank", **kwargs))


def compiled(model, rate=0.1, loss=LOSS, **kwargs):
    # The graph of the error networks takes 10 s to make.
    kwargs.setdefault("run_eagerly", isinstance(model, pnn.DATModel))
    model.compile(keras.optimizers.SGD(rate), loss, **kwargs)
    return model


def deviating(model, name, *values):
    """Simulated devices that deviate from nominal in one imperfection."""
    return pnn.devices.sweep(model, name, values)


def nominal(model):
    return deviating(model, "temperature", 0.0)[0]


ONLINE = {
    "pat": lambda model, device: pnn.PATModel(model, device),
    "dat": lambda model, device: pnn.DATModel(model, device, error_networks=1),
}


# Overflow, resuming, state.


@seeded
def recurrent():
    rnn = layers.SimpleRNN(3, stateful=True, name="rnn")
    model = network(rnn, pnn.layers.MRRBank(1), shape=None, batch_shape=(2, 3, 2))
    return compiled(model, loss="mse"), rnn


SERIES = RNG.normal(size=(4, 3, 2)).astype("float32")
AIMS = np.ones((4, 1), "float32")


@fault("The state of a stateful RNN is not stored")
@pytest.mark.parametrize("kind", ["sat", "pat"])
def test_trainers_store_the_state_of_an_rnn(kind):
    """The state stays 0 after a batch."""
    plain, expected = recurrent()
    plain.fit(SERIES, AIMS, **{**FIT, "batch_size": 2})
    model, rnn = recurrent()
    with right_or_refused("rnn"):
        if kind == "sat":
            trainer = pnn.SATModel(model, rho=0.0)
        else:
            trainer = ONLINE[kind](model, nominal(model))
        compiled(trainer, loss="mse").fit(SERIES, AIMS, **{**FIT, "batch_size": 2})
        np.testing.assert_allclose(rnn.states[0], expected.states[0], atol=1e-3)


def evaluated(model, rnn):
    rnn.reset_state()
    loss = model.evaluate(SERIES, AIMS, batch_size=2, verbose=0)
    rnn.reset_state()
    return loss


@fault("Devices are evaluated without the state of an RNN")
def test_devices_are_evaluated_with_the_state_of_an_rnn():
    """Each batch begins with the state from before the evaluation."""
    model, rnn = recurrent()
    expected = evaluated(model, rnn)
    with right_or_refused("rnn"):
        devices = deviating(model, "temperature", 0.0, 0.0)
        found = pnn.evaluate_devices(
            model, SERIES, AIMS, devices, batch_size=2, verbose=0
        )
        np.testing.assert_allclose(found["loss"], [expected] * 2, rtol=1e-5)
