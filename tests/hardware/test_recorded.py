"""Replay of a device's log."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import Bench, ring_chip

import keras_pnn as pnn

X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")


class Noisy(Bench):
    """A chip that answers each time with other noise."""

    def __init__(self, chip, **kwargs):
        super().__init__(chip, retries=3, **kwargs)
        self.noise = np.random.default_rng(0)
        self.refuse = ()

    def measure(self, layer, inputs, controls):
        if self.calls in self.refuse:
            raise OSError("refused")
        outputs = super().measure(layer, inputs, controls)
        return outputs + self.noise.normal(size=outputs.shape) * 0.01


def network(dtype=None):
    inputs = keras.Input((3,))
    hidden = pnn.layers.MRRBank(5, activation="relu", name="first", dtype=dtype)(inputs)
    outputs = pnn.layers.MRRBank(4, name="second", dtype=dtype)(hidden)
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def model():
    return network()


def noisy(model, **kwargs):
    return Noisy(ring_chip(model), **kwargs)


def acquired(device, layer, inputs=X):
    now = {name: v.numpy() for name, v in layer.controls.items()}
    return device.acquire(layer, inputs, now)


def test_what_a_device_logs(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    device = noisy(model, max_batch=4, log="bench.log")
    device.refuse = (2,)
    layer = model.get_layer("first")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outputs = acquired(device, layer)
    recorded = pnn.RecordedDevice(tmp_path / "bench.log")
    (found,) = recorded
    assert (found.layer, found.attempts, len(recorded)) == ("first", 3, 1)
    assert found.seconds > 0
    np.testing.assert_array_equal(found.inputs, X)
    np.testing.assert_array_equal(found.outputs, outputs)
    assert set(found.controls) == set(layer.controls)
    for name, variable in layer.controls.items():
        np.testing.assert_array_equal(found.controls[name], variable.numpy())
    # A measurement that failed is not one.
    device.refuse = range(100)
    with pytest.raises(pnn.DeviceError):
        acquired(device, layer, X + 1)
    device.refuse = ()
    acquired(device, layer, X + 2)
    assert [r.attempts for r in pnn.RecordedDevice(tmp_path / "bench.log")] == [3, 2]


def test_replay_of_a_model_bit_for_bit(model, tmp_path):
    path = tmp_path / "bench.log"
    device = noisy(model, log=path)
    with device.installed(model):
        first = model.predict(X, batch_size=4, verbose=0)
        again = model(X).numpy()
    assert np.abs(first - again).max() > 1e-4
    recorded = pnn.RecordedDevice(path)
    assert len(recorded) == 6
    with recorded.installed(model):
        assert model.predict(X, batch_size=4, verbose=0).tobytes() == first.tobytes()
        assert model(X).numpy().tobytes() == again.tobytes()
    assert recorded.calls == 6


def test_replay_of_a_fit_with_its_validation(tmp_path):
    def trained(device):
        model = network()
        model.set_weights([0.1 * np.ones_like(w) for w in model.get_weights()])
        device.simulated = ring_chip(model)
        pat = pnn.PATModel(model, device)
        pat.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
        fit = {"epochs": 2, "shuffle": False, "verbose": 0}
        return pat.fit(X, X[:, :1], validation_data=(X, X[:, :1]), **fit).history

    logs = trained(Noisy(None, log=tmp_path / "bench.log"))
    assert logs["val_loss"][0] != logs["val_model_loss"][0]
    assert trained(pnn.RecordedDevice(tmp_path / "bench.log")) == logs


def test_replay_in_order_and_the_last_one_again(model, tmp_path):
    device = noisy(model, log=tmp_path / "bench.log")
    layer = model.get_layer("first")
    outputs = [acquired(device, layer, x) for x in (X, X + 1, X, X)]
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-4
    recorded = pnn.RecordedDevice(tmp_path / "bench.log")
    for expected in (0, 2, 3, 3, 3):
        np.testing.assert_array_equal(acquired(recorded, layer), outputs[expected])
    for _ in range(2):
        np.testing.assert_array_equal(acquired(recorded, layer, X + 1), outputs[1])
    np.testing.assert_array_equal(recorded[-2].outputs, outputs[2])
    with pytest.raises(IndexError):
        recorded[4]


def test_what_was_not_recorded_fails(model, tmp_path):
    path = tmp_path / "bench.log"
    first, second = model.layers[1:]
    acquired(noisy(model, log=path), first)
    recorded = pnn.RecordedDevice(path)
    other = np.nextafter(X, np.float32(9))
    with pytest.raises(pnn.DeviceError, match="not one bit may differ") as caught:
        acquired(recorded, first, other)
    assert recorded.failure is caught.value
    assert (recorded.calls, recorded.failures) == (1, 1)
    message = r"'second'.*no measurement of this layer, only of: first\. Pass `layers`"
    with pytest.raises(pnn.DeviceError, match=message), recorded.installed(model):
        model.predict(X, verbose=0)
    with pnn.RecordedDevice(path, layers=["first"]).installed(model):
        outputs = model(X).numpy()
    hidden = pnn.RecordedDevice(path)[0].outputs
    np.testing.assert_array_equal(outputs, second(hidden))
    narrow = pnn.layers.MRRBank(2, name="first")
    narrow.build((None, 3))
    now = {name: v.numpy() for name, v in first.controls.items()}
    with pytest.raises(pnn.DeviceError, match=r"shape \(6, 2\)\. Received: .*\(6, 5\)"):
        recorded.acquire(narrow, X, now)
    with pytest.raises(pnn.DeviceError, match="must have float64 outputs"):
        recorded.acquire(first, X, now, dtype="float64")


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        pnn.RecordedDevice(tmp_path / "missing.log")
    empty = tmp_path / "empty.log"
    empty.touch()
    recorded = pnn.RecordedDevice(empty)
    assert (len(recorded), list(recorded)) == (0, [])


def test_replay_of_bfloat16_and_of_complex_fields(tmp_path):
    low = network("bfloat16")
    device = noisy(low, log=tmp_path / "low.log")
    with device.installed(low):
        expected = low(X)
    with pnn.RecordedDevice(tmp_path / "low.log").installed(low):
        replayed = low(X)
    assert replayed.dtype == tf.bfloat16
    np.testing.assert_array_equal(expected, replayed)
    mesh = keras.Sequential(
        [keras.Input((4,), dtype="complex64"), pnn.layers.MZIMesh(4, name="mesh")]
    )
    fields = (X[:, [0, 1, 2, 0]] + 1j).astype("complex64")
    (chip,) = pnn.Variation(theta_error=0.1).sample(mesh, 1)
    device = Noisy(chip.attach(mesh), log=tmp_path / "mesh.log")
    outputs = acquired(device, mesh.layers[0], fields)
    recorded = pnn.RecordedDevice(tmp_path / "mesh.log")
    replayed = acquired(recorded, mesh.layers[0], fields)
    assert replayed.dtype == np.complex64
    assert replayed.tobytes() == outputs.tobytes()
