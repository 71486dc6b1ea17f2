"""Physics-aware training: the device's values, the model's derivatives."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import (
    FIT,
    assert_same,
    banks,
    compiled,
    mesh_chip,
    meshes,
    powers,
    ring_chip,
)

import keras_pnn as pnn
from keras_pnn.layers.context import Overrides

X, Y = powers()
READOUTS = ["layers", "output"]


class Power(pnn.layers.PhysicalLayer):
    """outputs = factor · (gain · inputs)^1.1, which the model has a little too high."""

    def build(self, input_shape):
        self.add_control("gain", input_shape[-1:], unit="", initializer="ones")
        self.add_imperfection("factor", input_shape[-1:], unit="", nominal=2.01)

    def forward(self, inputs, controls, imperfections):
        return imperfections["factor"] * (controls["gain"] * inputs) ** 1.1


class Two:
    """The device: outputs = 2 · (gain · inputs)^1.1."""

    def measure(self, layer, inputs, controls):
        return 2.0 * (controls["gain"] * inputs) ** 1.1


def chain(n):
    inputs = x = keras.Input((1,), dtype="float64")
    for _ in range(n):
        x = Power(dtype="float64")(x)
    return keras.Model(inputs, x)


def mesh(dropout=0.4):
    if not dropout:
        return meshes()
    norm = layers.BatchNormalization(momentum=0.5)
    return meshes(norm, layers.Dropout(dropout, seed=1))


# Derivatives where the model is wrong by a known amount.


@pytest.mark.parametrize("n", [1, 5, 20])
def test_the_error_of_a_chain(n):
    model = chain(n)
    states = [0.3]
    for _ in range(n):
        states.append(2.0 * states[-1] ** 1.1)
    # ∂x_n/∂gain: the device's law is a power of the gain.
    exact = 1.1**n * states[-1]
    expected = {
        "layers": 1.005**n - 1,
        # The model's own states have their error as well.
        "output": 1.005 ** ((1.1**n - 1) / 0.1) - 1,
    }
    trainer = pnn.SATModel(model, ascent=None)
    loss = keras.losses.MeanAbsoluteError(dtype="float64")
    trainer.compile(keras.optimizers.SGD(), loss)
    batch = (tf.constant([[0.3]], "float64"), tf.zeros((1, 1), "float64"), None)
    first = model.layers[1].controls["gain"]
    for readout, error in expected.items():
        gradient = pnn.training.DeviceGradient(readout).on(Two())
        seen = gradient(trainer, batch, Overrides(), [first])
        np.testing.assert_allclose(seen.y_pred, [[states[-1]]], rtol=1e-12)
        # Keras adds losses up in float32.
        np.testing.assert_allclose(seen.loss, states[-1], rtol=1e-6)
        (found,) = seen.gradients
        np.testing.assert_allclose(float(found[0]) / exact - 1, error, rtol=1e-5)
    if n == 20:
        assert round(expected["layers"], 4) == 0.1049


# A device that equals the model.


def test_an_equal_device_is_sat():
    offline = compiled(pnn.SATModel(mesh(), rho=0.5), run_eagerly=True)
    online = pnn.SATModel(mesh(), rho=0.5, device=mesh_chip(0.0))
    output = pnn.PATModel(mesh(), mesh_chip(0.0), "output", ascent=pnn.SAM(0.5))
    options = {**FIT, "epochs": 1}
    expected = offline.fit(X, Y, **options).history
    assert abs(expected["sharpness"][0]) > 1e-3
    for trainer in (online, output):
        logs = compiled(trainer, run_eagerly=True).fit(X, Y, **options).history
        assert_same(offline.model.variables, trainer.model.variables, 1e-6)
        sharpness = expected["sharpness"]
        np.testing.assert_allclose(logs["sharpness"], sharpness, atol=1e-6)


# A device that differs.


def test_statistics_are_those_of_the_device():
    """Of the measured pass, whichever readout; the model's own would differ."""
    seen = []
    for readout in READOUTS:
        model = mesh()
        pat = pnn.PATModel(model, mesh_chip(), readout)
        still = keras.optimizers.SGD(0.0)
        compiled(pat, still, run_eagerly=True).train_on_batch(X, Y)
        norm = next(
            la for la in model.layers if isinstance(la, layers.BatchNormalization)
        )
        seen.append(norm.moving_mean.numpy())
        with mesh_chip().installed(model):
            batch = np.array(model.layers[2](model.layers[1](X))).mean(axis=0)
        np.testing.assert_allclose(seen[-1], 0.5 * batch, atol=1e-6)


def test_a_chip_measures_a_model_that_no_other_device_has_set():
    """Its deviations add to others' of other imperfections; two of one do not add."""
    model, still = meshes(), keras.optimizers.SGD(0.0)
    chip = mesh_chip()
    (lossy,) = pnn.devices.sweep(model, "loss_db", [1.0])
    pat = compiled(pnn.PATModel(model, chip), still, run_eagerly=True)
    with lossy.installed(model):
        with chip.installed(compiled(model, still, run_eagerly=True)):
            expected = model.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
        logs = pat.fit(X, Y, batch_size=8, verbose=0).history
    np.testing.assert_allclose(logs["loss"], [expected], rtol=1e-5)
    refused = pytest.raises(ValueError, match=r"outside .*/phi_error' is off its nom")
    with mesh_chip(0.1).installed(model):
        with refused:
            pat.fit(X, Y, verbose=0)
        with refused:
            pat.train_on_batch(X, Y)
    # The model is nominal again.
    pat.train_on_batch(X, Y)


def test_jit_compile_with_a_simulated_device():
    plain, fast = banks(), banks()
    one = compiled(pnn.PATModel(plain, ring_chip(plain)), run_eagerly=True)
    other = compiled(pnn.PATModel(fast, ring_chip(fast)), jit_compile=True)
    for model in (one, other):
        model.train_on_batch(X, Y)
    assert_same(plain.variables, fast.variables, 1e-5)


@pytest.mark.parametrize(
    ("device", "readout", "expected"),
    [
        (mesh_chip(), "both", r"`readout`.*'both'"),
        (None, "layers", "needs a device"),
        ("chip", "layers", "with a method measure"),
    ],
)
def test_bad_arguments(device, readout, expected):
    with pytest.raises(ValueError, match=expected):
        pnn.PATModel(mesh(), device, readout)
