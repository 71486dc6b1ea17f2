"""Validation in `fit`: on the device, with the digital model beside it."""

import contextlib

import keras
import numpy as np
import pytest
from models import Bench, banks, compiled, ring_chip, samples

import keras_pnn as pnn

X, Y = samples(8)
FIT = {"batch_size": 4, "shuffle": False, "verbose": 0, "validation_data": (X, Y)}

TRAINERS = {
    "pat": lambda model, chip: pnn.PATModel(model, chip),
    "output": lambda model, chip: pnn.PATModel(model, chip, "output"),
    "dat": lambda model, chip: pnn.DATModel(model, chip, error_networks=1),
    "spsa": lambda model, chip: pnn.SATModel(
        model, ascent=None, device=chip, gradient=pnn.SPSA(step=0.01)
    ),
    "bench": lambda model, chip: pnn.PATModel(model, Bench(chip)),
}


def still(model, **kwargs):
    """Compiles a model that stays as it is, and runs eagerly if it may."""
    eagerly = not kwargs.keys() & {"jit_compile", "steps_per_execution"}
    kwargs = {"metrics": ["accuracy"], "run_eagerly": eagerly, **kwargs}
    return compiled(model, keras.optimizers.SGD(0.0), **kwargs)


def evaluated(model, y=Y):
    logs = model.evaluate(X, y, batch_size=4, verbose=0, return_dict=True)
    # Keras 3.12 gives tensors.
    return {name: float(value) for name, value in logs.items()}


def assert_validated(logs, on_device, digital):
    """Compares all that a `fit` logs of its validation."""
    expected = {f"val_{name}": value for name, value in on_device.items()}
    expected |= {f"val_model_{name}": value for name, value in digital.items()}
    found = {n: float(v[-1]) for n, v in logs.items() if n.startswith("val_")}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("small_error_networks")
@pytest.mark.parametrize("kind", TRAINERS)
def test_validation_is_on_the_device(kind):
    model = still(banks())
    chip = ring_chip(model)
    digital = evaluated(model)
    with chip.installed(model):
        on_chip = evaluated(model)
    assert abs(on_chip["loss"] - digital["loss"]) > 1e-2
    # One is in a graph, which takes long to make.
    online = still(TRAINERS[kind](model, chip), run_eagerly=kind != "bench")
    assert evaluated(online) == pytest.approx(digital)
    assert_validated(online.fit(X, Y, **FIT).history, on_chip, digital)
    assert evaluated(online) == pytest.approx(digital)


@pytest.mark.parametrize("on_bench", [False, True])
def test_validation_on_a_device_that_is_installed(on_bench):
    """A simulated one is in the model's own imperfections."""
    model = still(banks())
    chip = ring_chip(model)
    digital = evaluated(model)
    with chip.installed(model):
        on_chip = evaluated(model)
    sat = still(pnn.SATModel(model, rho=0.1))
    with (Bench(chip) if on_bench else chip).installed(model):
        logs = sat.fit(X, Y, **FIT).history
    assert_validated(logs, on_chip, digital if on_bench else {})
    assert evaluated(sat) == pytest.approx(digital)


class Counted(keras.layers.Layer):
    """Adds noise in inference too, and keeps a metric of its own."""

    def __init__(self):
        super().__init__()
        self.random = keras.random.SeedGenerator(1)
        self.level = keras.metrics.Mean(name="level")

    def call(self, inputs):
        self.level.update_state(inputs)
        return inputs + 0.1 * keras.random.normal((4,), seed=self.random)


@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}],
    ids=str,
)
def test_both_see_the_same_random_numbers(options):
    """With losses of single outputs, and metrics that a layer keeps itself."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = Counted()(pnn.layers.MRRBank(4, name="bank")(inputs))
    outputs = {name: pnn.layers.MRRBank(3, name=name)(x) for name in "pq"}
    model = keras.Model(inputs, outputs)
    (equal,) = pnn.devices.sweep(model, "temperature", [0.0])
    y = {"p": np.ones((8, 3)), "q": np.zeros((8, 3))}
    metrics = {"p": ["mae"], "q": ["mae"]}
    pat = still(pnn.PATModel(model, equal), loss="mse", metrics=metrics, **options)
    fit = {**FIT, "validation_data": (X, y), "epochs": 2}
    logs = pat.fit(X, y, **fit).history
    names = [n.removeprefix("val_model_") for n in logs if n.startswith("val_model_")]
    assert {"loss", "p_loss", "q_mae", "level"} <= set(names)
    for name in names:
        on_device, digital = logs[f"val_{name}"], logs[f"val_model_{name}"]
        np.testing.assert_allclose(digital, on_device, rtol=1e-6)
    # Other numbers in each epoch.
    assert np.ptp(logs["val_loss"]) > 0


def test_the_states_of_rnns_are_handed_on_apart():
    """From batch to batch of the device, and of the digital model."""

    def trained(make, **kwargs):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,), batch_size=4)
        x = pnn.layers.MRRBank(3, name="bank")(inputs)
        x = keras.layers.Reshape((1, 3))(x)
        rnn = keras.layers.SimpleRNN(2, stateful=True)
        model = keras.Model(inputs, keras.layers.Dense(3)(rnn(x)))
        chip = ring_chip(model)
        online = still(make(model, chip), run_eagerly=bool(kwargs))
        with chip.installed(model) if kwargs else contextlib.nullcontext():
            return online.fit(X, Y, **FIT, epochs=2).history, np.array(rnn.states[0])

    logs, state = trained(lambda model, chip: pnn.PATModel(model, chip))
    on_chip, expected = trained(lambda model, chip: model, installed=True)
    for name in ("loss", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(logs[name], on_chip[name], rtol=1e-5)
    np.testing.assert_allclose(state, expected, rtol=1e-4)


def test_what_runs_the_device_in_a_fit():
    """Validation in the epochs that are due, and no `evaluate` of a callback."""

    class Evaluates(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.found = evaluated(self.model)

    model = still(banks())
    digital = evaluated(model)
    bench, callback = Bench(ring_chip(model)), Evaluates()
    pat = still(pnn.PATModel(model, bench))
    fit = {**FIT, "epochs": 5, "validation_freq": 2, "callbacks": [callback]}
    logs = pat.fit(X, Y, **fit).history
    assert callback.found == pytest.approx(digital)
    assert len(logs["val_loss"]) == len(logs["val_model_loss"]) == 2
    # Two layers, two batches.
    assert bench.calls == (5 + 2) * 4


@pytest.mark.parametrize("installed", [False, True])
def test_callbacks_measure_the_digital_model(installed):
    model = banks()
    bench = Bench(ring_chip(model))
    online = still(pnn.SATModel(model, device=None if installed else bench))
    variation = pnn.Variation(temperature=0.1)
    callbacks = [
        pnn.callbacks.HessianEigenvalues(X, Y),
        pnn.callbacks.LossLandscape(X, Y, directions="random", points=3),
        pnn.callbacks.RobustnessReport(X, Y, variation=variation, n=2),
    ]
    with bench.installed(model) if installed else contextlib.nullcontext():
        logs = online.fit(X, Y, **FIT, callbacks=callbacks).history
    # Two layers, in two batches with two passes, and two of validation.
    assert bench.calls == 2 * (4 + 2)
    (largest,) = pnn.hessian_eigenvalues(online, X, Y).eigenvalues
    np.testing.assert_allclose(logs["hessian_eig_1"], [largest], rtol=1e-4)
    landscape = pnn.loss_landscape(online, X, Y, "random", points=3)
    np.testing.assert_allclose(logs["landscape_rise"], [landscape.rise], rtol=1e-4)
    found = pnn.evaluate_devices(online, X, Y, variation.sample(model, 2), verbose=0)
    np.testing.assert_allclose(logs["val_loss_mean"], [found["loss"].mean()], rtol=1e-5)


def test_a_metric_that_is_named_as_one_of_the_digital_model_is_refused():
    inputs = keras.Input((4,))
    outputs = {n: pnn.layers.MRRBank(3, name=n)(inputs) for n in ("model", "other")}
    model = keras.Model(inputs, outputs)
    y = {name: np.ones((8, 3)) for name in outputs}
    pat = still(pnn.PATModel(model, ring_chip(model)), loss="mse", metrics=None)
    with pytest.raises(ValueError, match=r"other names.*Received: model_loss"):
        pat.fit(X, y, **{**FIT, "validation_data": (X, y)})
    pat.fit(X, y, batch_size=4, verbose=0)
