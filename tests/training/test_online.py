"""What all trainers on a device have in common, whatever they measure."""

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    FIT,
    LOSS,
    Bench,
    Silent,
    assert_same,
    bank,
    compiled,
    mesh_chip,
    meshes,
    moved,
    numbers,
    powers,
    ring_chip,
)

import keras_pnn as pnn

X, Y = powers()
FIT = {**FIT, "epochs": 1}

pytestmark = pytest.mark.usefixtures("small_error_networks")

ONLINE = {
    "pat": pnn.PATModel,
    "pat output": lambda model, device: pnn.PATModel(model, device, "output"),
    "sat output": lambda model, device: pnn.SATModel(
        model, rho=0.0, device=device, gradient=pnn.training.DeviceGradient("output")
    ),
    "dat": lambda model, device: pnn.DATModel(model, device, 1),
    "dat output": lambda model, device: pnn.DATModel(
        model, device, 1, internal_states=False
    ),
}
EVERY_KIND = pytest.mark.parametrize("kind", ONLINE)


def online(kind, model, device, rate=0.1, **kwargs):
    optimizer = keras.optimizers.SGD(rate)
    trainer = ONLINE[kind](model, device)
    return compiled(trainer, optimizer, **{"run_eagerly": True, **kwargs})


def two_meshes():
    norm, drop = layers.BatchNormalization(momentum=0.5), layers.Dropout(0.3, seed=1)
    return meshes(norm, drop)


@EVERY_KIND
def test_an_equal_device_is_plain_training(kind):
    """Batch statistics and dropout masks, too: they have gone on once a step."""
    plain, model = two_meshes(), two_meshes()
    before = numbers(model.trainable_variables)
    expected = compiled(plain, run_eagerly=True).fit(X, Y, **FIT).history
    logs = online(kind, model, mesh_chip(0.0)).fit(X, Y, **FIT).history
    assert_same(plain.variables, model.variables, 1e-6)
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-6)
    # S stays 0 where it has nothing to learn.
    assert logs.get("error_loss", [0.0])[0] < 1e-12
    assert max(moved(before, model.trainable_variables)) > 1e-4


def two_outputs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = pnn.layers.MRRBank(4, name="bank")(inputs)
    outputs = {"p": layers.Dense(3)(x), "q": pnn.layers.MRRBank(2, name="last")(x)}
    return keras.Model(inputs, outputs)


LOSSES, TARGETS = {"p": LOSS, "q": "mse"}, {"p": Y, "q": X[:, :2]}


@pytest.mark.parametrize("outputs", [1, 2])
@EVERY_KIND
def test_losses_and_metrics_are_those_of_the_device(kind, outputs):
    if outputs == 1:
        model, loss, metrics, y = meshes(), LOSS, ["accuracy"], Y
        device = mesh_chip()
    else:
        model, loss, metrics, y = two_outputs(), LOSSES, None, TARGETS
        device = ring_chip(model)
    trainer = online(kind, model, device, 0.0, loss=loss, metrics=metrics)
    ideal = trainer.evaluate(X, y, verbose=0, return_dict=True)
    with device.installed(model):
        expected = trainer.evaluate(X, y, verbose=0, return_dict=True)
    logs = trainer.fit(X, y, batch_size=8, verbose=0).history
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], [value], rtol=1e-5)
    assert abs(expected["loss"] - ideal["loss"]) > 1e-3
    assert "error_loss" not in ideal


@EVERY_KIND
def test_a_bench_and_its_simulation_give_the_same_step(kind):
    """Each within a graph or not."""
    found = []
    for on_bench in (False, True):
        model = two_meshes()
        device = mesh_chip()
        if on_bench:
            device = Bench(device.attach(model), max_batch=3)
        eagerly = not (on_bench and kind == "pat")
        trainer = online(kind, model, device, run_eagerly=eagerly)
        trainer.fit(X, Y, **FIT)
        networks = getattr(trainer, "error_models", ())
        learned = [v for network in networks for v in network.variables]
        found.append(numbers([*trainer.variables, *learned]))
    # Two layers, two calls for a batch of four, two batches; each pass once.
    passes = 2 if kind == "sat output" else 1
    assert device.calls == 8 * passes
    assert_same(*found, 2e-6)


@EVERY_KIND
def test_a_layer_that_the_model_lacks_is_refused(kind):
    bench = Bench(None, layers=["bank", "lats"])
    trainer = online(kind, two_outputs(), bench, loss=LOSSES)
    with pytest.raises(ValueError, match=r"bank, last\. Received: lats"):
        trainer.fit(X, TARGETS, verbose=0)
    assert bench.calls == 0


@EVERY_KIND
def test_a_device_that_measures_nothing_is_refused(kind):
    model = meshes()
    before = numbers(model.trainable_variables)
    with pytest.raises(ValueError, match="Received: one that leaves all of them"):
        online(kind, model, Silent()).fit(X, Y, verbose=0)
    assert_same(model.trainable_variables, before)


@pytest.mark.parametrize("device", [Bench(None), Silent(), pnn.SimulatedDevice({})])
def test_a_model_without_physical_layers_is_refused(device):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="digital")
    with pytest.raises(ValueError, match="Received: model 'digital', which has none"):
        online("pat", model, device).fit(X, Y, verbose=0)


# Masks and logits.


def first_step(kind, model, x, y, rate=0.0):
    """The loss of a step on the nominal device."""
    nominal = pnn.devices.sweep(model, "temperature", [0.0])[0]
    trainer = ONLINE[kind](model, nominal) if kind else model
    trainer.compile(keras.optimizers.SGD(rate), model.loss, run_eagerly=True)
    return trainer.fit(x, y, batch_size=len(x), verbose=0).history["loss"][0]


@EVERY_KIND
def test_masks_survive_a_measurement(kind):
    """Padded steps do not count in the loss."""
    bank = pnn.layers.MRRBank(2)
    model = keras.Sequential([keras.Input((3, 4)), layers.Masking(), bank])
    model.compile(loss="mse", run_eagerly=True)
    x = np.random.default_rng(3).normal(size=(4, 3, 4)).astype("float32")
    x[1:, 1:] = 0
    y = np.ones((4, 3, 2), "float32")
    expected = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(first_step(kind, model, x, y), expected, rtol=1e-5)


LOGITS = {
    "softmax": ("sparse_categorical_crossentropy", Y),
    "sigmoid": ("binary_crossentropy", np.eye(3, dtype="float32")[Y]),
}


def saturated(activation):
    """A bank whose logits are far beyond what a clipped probability can tell."""
    loss, y = LOGITS[activation]
    model = bank(4, 3, activation=activation)
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    return model, np.random.default_rng(1).normal(size=(8, 4)) * 200, y


@pytest.mark.parametrize(
    ("kind", "activation"),
    [*((kind, "softmax") for kind in ONLINE), ("dat", "sigmoid")],
)
def test_logits_survive_a_measurement(kind, activation):
    """A cross-entropy is not clipped, so that a saturated bank learns."""
    plain, x, y = saturated(activation)
    expected = plain.evaluate(x, y, verbose=0)
    first_step(None, plain, x, y, rate=0.1)
    model, *_ = saturated(activation)
    loss = first_step(kind, model, x, y, rate=0.1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert_same(model.weights, plain.weights, 1e-5)
