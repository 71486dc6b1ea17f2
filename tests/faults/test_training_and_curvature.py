"""Known faults of training and curvature: tests that fail until they are corrected.

Every test states what is right; the line below its name says what is wrong. Where an
error is as good as the right value, `right_or_refused` takes either.
"""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
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


def first_loss(model, x=X, y=Y, **kwargs):
    """The loss of one training step on all samples."""
    fit = {**FIT, "batch_size": len(x), **kwargs}
    return model.fit(x, y, **fit).history["loss"][0]


def deviating(model, name, *values):
    """Simulated devices that deviate from nominal in one imperfection."""
    return pnn.devices.sweep(model, name, values)


def nominal(model):
    return deviating(model, "temperature", 0.0)[0]


def loss_on(device, model, x=X, y=Y):
    with device.installed(model):
        return model.evaluate(x, y, verbose=0)


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


class Bench(pnn.HardwareDevice):
    """A bench that measures what a simulated device gives."""

    def __init__(self, chip):
        super().__init__(retries=0)
        self.chip, self.broken = chip, False

    def measure(self, layer, inputs, controls):
        if self.broken:
            raise OSError("no light")
        return self.chip.measure(layer, tf.constant(inputs), controls).numpy()

    def attach(self, model):
        self.chip.attach(model)
        return super().attach(model)


@fault("Averaged weights are saved as the run's state")
def test_a_run_that_failed_in_validation_resumes_with_its_weights(tmp_path):
    """`SwapEMAWeights` has the averages in the model when the device fails."""

    def run(folder, fails=False):
        model = bank()
        bench = Bench(nominal(model)).attach(model)
        sat = pnn.SATModel(model, rho=0.0)
        sat.compile(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5), LOSS)

        def fail(logs=None):
            bench.broken = fails

        callbacks = [
            keras.callbacks.SwapEMAWeights(),
            pnn.callbacks.Checkpoint(tmp_path / folder),
            keras.callbacks.LambdaCallback(on_test_begin=fail),
        ]
        fit = {**FIT, "epochs": 2, "validation_data": (X, Y), "callbacks": callbacks}
        with bench.installed(model):
            sat.fit(X, Y, **fit)
        return model.get_weights()

    with pytest.raises(pnn.DeviceError):
        run("killed", fails=True)
    for found, expected in zip(run("killed"), run("whole"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Validation.


VALIDATED = {
    "pat": lambda model, chip: pnn.PATModel(model, chip),
    "dat": ONLINE["dat"],
    "sat": lambda model, chip: pnn.SATModel(model, rho=0.0, device=chip),
    "bench": lambda model, chip: pnn.PATModel(model, Bench(chip)),
}


def validated(kind):
    """Logs of a fit on a chip, and the losses of the chip and of the model."""
    model = compiled(bank(), rate=0.0)
    chip = deviating(model, "resonance_shift", 0.2)[0]
    expected = loss_on(chip, model), model.evaluate(X, Y, verbose=0)
    online = compiled(VALIDATED[kind](model, chip), rate=0.0)
    return online.fit(X, Y, **FIT, validation_data=(X, Y)).history, *expected


@fault("Validation during a fit on a device is digital")
@pytest.mark.parametrize("kind", VALIDATED)
def test_validation_is_on_the_device(kind):
    """`val_loss` is that of the digital model, by which callbacks then choose."""
    logs, on_chip, _ = validated(kind)
    np.testing.assert_allclose(logs["val_loss"], [on_chip], rtol=1e-5)


@fault("The digital model's figures have no name of their own", KeyError)
@pytest.mark.parametrize("kind", ["pat", "bench"])
def test_the_digital_model_is_validated_beside_the_device(kind):
    """There is no `val_model_loss`."""
    logs, _, digital = validated(kind)
    np.testing.assert_allclose(logs["val_model_loss"], [digital], rtol=1e-5)
