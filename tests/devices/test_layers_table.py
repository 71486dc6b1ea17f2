"""The evaluation of devices against `evaluate`, for every kind of layer."""

import numpy as np
import pytest
import tensorflow as tf
from keras_layers_table import BATCH, NAMES, RANDOM, REFUSED, STATEFUL, make

import keras_pnn as pnn
from keras_pnn import _keras
from keras_pnn.layers.context import restoring


@pytest.fixture
def eagerly():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def compiled(name):
    """A model, its data, and the name of a variable in which devices differ."""
    model, x, y = make(name)
    model.compile("sgd", "mse", metrics=["mae"], run_eagerly=True)
    layer = model.layers[-1 if name.startswith("masked") else 1]
    return model, (x, y), f"{layer.name}/kernel"


def evaluated(model, data):
    """What Keras gives, which changes states of layers."""
    states = [*_keras.seed_states(model), *_keras.recurrent_states(model)]
    states += [*model.variables, _keras.global_seed_state()]
    with restoring(states):
        return model.evaluate(*data, BATCH, verbose=0, return_dict=True)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config")
@pytest.mark.parametrize("name", [n for n in NAMES if n not in REFUSED])
def test_a_nominal_device_is_the_model(name, eagerly):
    model, data, kernel = compiled(name)
    devices = pnn.devices.sweep(model, kernel, [0.0])
    if name not in {*STATEFUL, *RANDOM}:
        # A second batch meets nothing new.
        data = [part[:BATCH] for part in data]
    found = pnn.evaluate_devices(model, *data, devices, BATCH, verbose=0)
    for key, value in evaluated(model, data).items():
        np.testing.assert_allclose(found[key], [value], rtol=1e-6, err_msg=key)


@pytest.mark.parametrize(("name", "chunk"), [("all states", 2), ("ageing", 1)])
def test_devices_have_states_of_their_own(name, chunk):
    model, data, kernel = compiled(name)
    devices = pnn.devices.sweep(model, kernel, [0.0, 0.3])
    # With states from before.
    model.predict(data[0][:BATCH], BATCH, verbose=0)
    found = pnn.evaluate_devices(model, *data, devices, BATCH, chunk=chunk, verbose=0)
    for i, device in enumerate(devices):
        with device.installed(model):
            for key, value in evaluated(model, data).items():
                np.testing.assert_allclose(found[key][i], value, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", REFUSED)
def test_what_devices_would_not_leave_alone_is_refused(name):
    model, data, kernel = compiled(name)
    if name == "concrete function":
        kernel = f"{model.layers[2].name}/kernel"
    devices = pnn.devices.sweep(model, kernel, [0.0])
    with pytest.raises(ValueError, match=REFUSED[name]):
        pnn.evaluate_devices(model, *data, devices, BATCH, verbose=0)
