"""Complex fields that would reach layers and losses of Keras."""

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.layers.fields import check_fields

X = np.random.default_rng(0).random((6, 4)).astype("float32")
Y = np.arange(6) % 3
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
MESH = r"^MZIMesh 'mesh' gives complex fields; put a Photodetector behind it"
INSIDE = "(?s)" + MESH[1:]  # Keras says around it where it was raised.


class Power(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.sum(keras.ops.abs(y_pred) ** 2, -1)


LOSSES = ["mse", SPARSE, keras.losses.mean_squared_error, Power(), lambda y, z: abs(z)]


def network(*behind, loss=None):
    layers = [keras.Input((4,)), pnn.layers.MZIMesh(4, name="mesh"), *behind]
    model = keras.Sequential(layers)
    if loss is not None:
        model.compile("sgd", loss)
    return model


def digital():
    return network(keras.layers.Flatten(), keras.layers.Dense(3, name="last"))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_for_real_numbers(loss):
    with pytest.raises(ValueError, match=MESH + ".*model 'sat_.*loss for real"):
        pnn.SATModel(network()).compile("sgd", loss)
    with pytest.raises(ValueError, match=MESH):
        pnn.evaluate_devices(network(loss=loss), X, Y, [pnn.SimulatedDevice({})])


def test_a_layer_of_keras():
    found = MESH + ".*Received: Dense 'last' behind it"
    inputs = keras.Input((4,))
    nested = keras.Model(
        inputs, keras.layers.Dense(3, name="last")(digital().layers[0](inputs))
    )
    for model in (digital(), nested, keras.Sequential([keras.Input((4,)), digital()])):
        with pytest.raises(ValueError, match=found):
            pnn.SATModel(model).compile("sgd", SPARSE)
    with pytest.raises(ValueError, match=found):
        pnn.convert(digital())


def test_a_layer_that_casts_to_real_numbers():
    last = keras.layers.Rescaling(2.0, name="last")
    with pytest.raises(ValueError, match=MESH + ".*Received: Rescaling 'last' behind"):
        pnn.SATModel(network(last)).compile("sgd", SPARSE)


def test_a_model_that_is_built_by_its_first_step():
    layers = [pnn.layers.MZIMesh(4, name="mesh"), keras.layers.Dense(3, name="last")]
    sat = pnn.SATModel(keras.Sequential(layers), rho=0.1)
    sat.compile("sgd", SPARSE)
    with pytest.raises(ValueError, match=MESH):
        sat.fit(X, Y, verbose=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_fit_of_a_plain_model(loss):
    # Keras alone would train on the real part, with a warning of TensorFlow.
    model = network(loss=loss)
    with pytest.raises(ValueError, match=INSIDE + ".*model 'seq.*loss for real"):
        model.fit(X, Y, verbose=0)
    assert model.predict(X, verbose=0).dtype == "complex64"
    model = digital()
    model.compile("sgd", SPARSE)
    with pytest.raises(ValueError, match=INSIDE + ".*Received: Dense 'last' behind it"):
        model.fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    "behind",
    [
        pnn.layers.Encode("phase"),
        pnn.layers.Aperture(4e-6),
        pnn.layers.Threshold(0.1),
        pnn.layers.FreeSpace(1e-4, band_limit=False, padding=0),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_fit_of_planes(behind):
    first = [] if isinstance(behind, pnn.layers.Encode) else [pnn.layers.Encode()]
    planes = [keras.Input((4, 4)), *first, behind]
    flat = [keras.layers.Flatten(), keras.layers.Dense(3, name="last")]
    found = f"{type(behind).__name__} .* gives complex fields; put a DetectorArray"
    for model in (keras.Sequential([*planes, *flat]), keras.Sequential(planes)):
        model.compile("sgd", "mse")
        with pytest.raises(ValueError, match=found):
            model.fit(np.ones((2, 4, 4)), np.ones((2, *model.output_shape[1:])))


def test_what_passes():
    detector, dense = pnn.layers.Photodetector(), keras.layers.Dense(3)
    check_fields(network(detector, dense, loss=SPARSE))
    check_fields(network(keras.layers.Reshape((2, 2)), loss=Power(dtype="complex64")))
    check_fields(network())
    check_fields(keras.Sequential([dense]))


def test_fit_with_a_loss_of_fields():
    model = network(loss=Power(dtype="complex64"))
    history = model.fit(X, Y, batch_size=6, verbose=0).history
    # The mesh is unitary: the power of its outputs is that of its inputs.
    assert np.isclose(history["loss"][0], (X**2).sum(axis=1).mean())
