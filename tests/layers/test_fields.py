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


def network(*behind, loss=None):
    layers = [keras.Input((4,)), pnn.layers.MZIMesh(4, name="mesh"), *behind]
    model = keras.Sequential(layers)
    if loss is not None:
        model.compile("sgd", loss)
    return model


def digital():
    return network(keras.layers.Flatten(), keras.layers.Dense(3, name="last"))


@pytest.mark.parametrize("loss", ["mse", SPARSE, keras.losses.mean_squared_error])
def test_a_loss_of_keras(loss):
    with pytest.raises(ValueError, match=MESH + ".*outputs of model 'sat_.*Keras loss"):
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


def test_a_model_that_is_built_by_its_first_step():
    layers = [pnn.layers.MZIMesh(4, name="mesh"), keras.layers.Dense(3, name="last")]
    sat = pnn.SATModel(keras.Sequential(layers), rho=0.1)
    sat.compile("sgd", SPARSE)
    with pytest.raises(ValueError, match=MESH):
        sat.fit(X, Y, verbose=0)


def test_what_passes():
    detector, dense = pnn.layers.Photodetector(), keras.layers.Dense(3)
    check_fields(network(detector, dense, loss=SPARSE))
    check_fields(network(keras.layers.Reshape((2, 2)), loss=lambda y, z: abs(z)))
    check_fields(network())
    check_fields(keras.Sequential([dense]))
