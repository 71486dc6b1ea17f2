"""Devices: installing one, measuring with it, saving a set of them."""

import json

import keras
import numpy as np
import pytest
from models import banks, bits, modulator

import keras_pnn as pnn
from keras_pnn.devices import DeviceSet, SimulatedDevice, sweep

VARIATION = pnn.Variation(resonance_shift=0.08, temperature=1.0)
X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")


def network(units=4):
    return banks(sizes=(3, 5, units))


def test_installed_sets_values_and_restores_bit_for_bit():
    model = network()
    first = model.get_layer("first").imperfections
    first["resonance_shift"].assign(np.full((3, 5), 0.1, "float32"))
    before, ideal = bits(model), model(X).numpy()
    one, two = VARIATION.sample(model, 2)
    with one.installed(model) as entered:
        assert entered is one
        # A device replaces imperfections: it does not add to those installed.
        np.testing.assert_array_equal(
            first["resonance_shift"].numpy(), one.deviations["resonance_shift", 0]
        )
        assert np.abs(model(X).numpy() - ideal).max() > 1e-3
        inside = bits(model)
        with two.installed(pnn.SATModel(model)):
            innermost = bits(model)
        assert bits(model) == inside
    assert bits(model) == before
    with two.installed(model):
        assert bits(model) == innermost
    with pytest.raises(KeyError, match="body"), one.installed(model):
        raise KeyError("body")
    assert bits(model) == before


def test_weights_loaded_inside_leave_the_device_installed(tmp_path):
    model = network()
    path = tmp_path / "design.weights.h5"
    model.save_weights(path)
    control = model.get_layer("first").controls["control"]
    saved = control.numpy()
    one, two = VARIATION.sample(model, 2)
    (warm,) = sweep(model, "temperature", [2.0])
    outside = bits(model)
    for wrapper in (model, pnn.SATModel(model)):
        for outer in (one, warm):
            with outer.installed(model):
                with two.installed(wrapper):
                    pass
                inside = bits(model)
                control.assign(saved + 1)
                model.load_weights(path)
                assert bits(model) == inside
            assert bits(model) == outside
    # What the device does not set is the design's again, and so is all outside.
    with warm.installed(model):
        inside = bits(model)
        shift = model.get_layer("first").imperfections["resonance_shift"]
        shift.assign(shift + 0.1)
        model.load_weights(path)
        assert bits(model) == inside
    with pytest.raises(KeyError), one.installed(model):
        raise KeyError
    shift.assign(shift + 0.1)
    model.load_weights(path)
    assert bits(model) == outside


def test_another_architecture_is_refused_and_nothing_installed():
    (device,) = VARIATION.sample(network(), 1)
    # A layer more is another architecture too, even where the first layers agree.
    deeper = keras.Sequential([network(), pnn.layers.MRRBank(4)])
    deeper.build((None, 3))
    for other in (network(units=7), deeper):
        before = bits(other)
        with pytest.raises(ValueError, match=r"architecture.*\[5, 4\]"):
            device.values(other)
        with pytest.raises(ValueError), device.installed(other):
            pass
        assert bits(other) == before


@pytest.mark.parametrize("bad", [-1.0, -1.5])
def test_a_scale_that_does_not_exist_is_refused(bad):
    model = modulator()
    model.compile(loss="mse")
    before = bits(model)
    x, y = np.ones((2, 3, 3), "float32"), np.ones((2, 2), "float32")
    device = SimulatedDevice({("scale", 0): np.float32(bad)})
    for use in (
        lambda: sweep(model, "scale", [0.0, bad]),
        lambda: device.bind(model),
        lambda: device.attach(model),
        lambda: device.installed(model).__enter__(),
        lambda: pnn.evaluate_devices(model, x, y, [device], verbose=0),
    ):
        with pytest.raises(ValueError, match=rf"'slm/scale' .*above 0.*{bad:g}$"):
            use()
    assert bits(model) == before
    (small,) = sweep(model, "scale", [-0.9])
    with small.installed(model):
        assert np.isfinite(model(x)).all()


def mesh_network(units=3):
    mesh = pnn.layers.MZIMesh(units, name="first")
    return keras.Sequential([keras.Input((units,)), mesh])


def low_precision(units=2):
    layer = keras.layers.Dense(units, dtype="bfloat16")
    return keras.Sequential([keras.Input((3,)), layer])


@pytest.mark.parametrize(
    ("make", "variation"),
    [
        (network, VARIATION),
        (mesh_network, pnn.Variation(splitter_imbalance=0.15, loss_db=0.2)),
    ],
)
def test_measure_equals_installed(make, variation):
    model = make()
    layer = model.get_layer("first")
    (device,) = variation.sample(model, 1)
    controls = {n: v.numpy() for n, v in layer.controls.items()}
    with pytest.raises(ValueError, match="attach"):
        device.measure(layer, X, controls)
    measured = device.attach(model).measure(layer, X, controls)
    ideal = layer(X).numpy()
    with device.installed(model):
        np.testing.assert_allclose(measured, layer(X), atol=1e-6)
    assert np.abs(measured - ideal).max() > 1e-3
    (weights,) = pnn.Variation(bias=0.1).sample(network(), 1)
    with pytest.raises(ValueError, match="bias"):
        weights.attach(network())


@pytest.mark.parametrize(
    ("key", "deviation", "shapes", "message"),
    [
        (("shift", 1), [0.0, np.nan], None, r"`shift\[1\]` must be finite"),
        (("temperature", 1), 0.5, None, "of temperature .*Received: index 1, shape"),
        (("shift", 0), 0.5, {"shift": [[5, 4]]}, r"\[5, 4\].*index 0, shape \[\]"),
        ("temperature", 1.0, None, r"`deviations`.*from_dict.*'temperature'"),
    ],
)
def test_bad_deviations(key, deviation, shapes, message):
    with pytest.raises(ValueError, match=message):
        SimulatedDevice({key: np.array(deviation)}, shapes)


@pytest.mark.parametrize(
    ("make", "variation"),
    [
        (network, VARIATION),
        (mesh_network, pnn.Variation(theta_error=0.1, splitter_imbalance=0.15)),
        (low_precision, pnn.Variation(kernel=0.3)),
    ],
)
def test_npz_round_trip(tmp_path, make, variation):
    model, path = make(), tmp_path / "chips.npz"
    devices = variation.sample(model, 3, seed=4)
    devices.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["chips.npz"]
    loaded = DeviceSet.load(path)
    for one, other in zip(devices, loaded, strict=True):
        assert (one.label, one.architecture) == (other.label, other.architecture)
        for key, value in one.deviations.items():
            np.testing.assert_array_equal(value, other.deviations[key])
            assert value.dtype == other.deviations[key].dtype
        with one.installed(model):
            inside = bits(model)
        with other.installed(model):
            assert bits(model) == inside
    with pytest.raises(ValueError, match="architecture"):
        loaded[0].values(make(9))


def test_the_format_of_the_file(tmp_path):
    """Files that were written before must load."""
    header = {
        "format": "keras_pnn.devices/1",
        "labels": ["a", "b"],
        "keys": [["resonance_shift", 1], ["temperature", 0]],
        "architecture": {"resonance_shift": [[3, 5], [5, 4]], "temperature": [[], []]},
    }
    shifts = np.arange(40, dtype="float32").reshape(2, 5, 4)
    arrays = {"a0": shifts, "a1": np.array([1, 2], "float32")}
    path = tmp_path / "chips.npz"
    np.savez(path, header=np.array(json.dumps(header)), **arrays)
    devices = DeviceSet.load(path)
    assert [d.label for d in devices] == ["a", "b"]
    loaded = devices[1].deviations["resonance_shift", 1]
    np.testing.assert_array_equal(loaded, shifts[1])
    assert len(devices[0].values(network())) == 2
    devices.save(path)
    with np.load(path) as file:
        assert json.loads(str(file["header"])) == header
        np.testing.assert_array_equal(file["a0"], shifts)
    DeviceSet([]).save(path)
    assert len(DeviceSet.load(path)) == 0


def changed(arrays, **header):
    """The arrays of a file with another header."""
    header = {**json.loads(str(arrays["header"])), **header}
    return {**arrays, "header": np.array(json.dumps(header))}


def test_damaged_files(tmp_path):
    path = tmp_path / "chips.npz"
    VARIATION.sample(network(), 2).save(path)
    whole = path.read_bytes()
    for part in (0.0, 0.5, 0.99):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(ValueError, match=r"chips\.npz"):
            DeviceSet.load(path)
    with pytest.raises(FileNotFoundError):
        DeviceSet.load(tmp_path / "missing.npz")
    path.write_bytes(whole)
    with np.load(path) as file:
        arrays = dict(file)
    for damaged in (
        changed(arrays, format="other/1"),
        changed(arrays, labels=["a", "b", "c"]),
        changed(arrays, labels=None),
        changed(arrays, keys=[["resonance_shift", 0]] * 9),
        {name: array for name, array in arrays.items() if name != "header"},
    ):
        np.savez(path, **damaged)
        with pytest.raises(ValueError, match=r"DeviceSet\.save"):
            DeviceSet.load(path)


def test_a_set_of_devices_that_deviate_in_different_variables(tmp_path):
    model = network()
    chip = VARIATION.sample(model, 1)[0]
    warm = pnn.devices.sweep(model, "temperature", [1.0])[0]
    both = DeviceSet([SimulatedDevice({}), chip, warm])
    assert isinstance(both[1:], DeviceSet) and list(both[1:]) == [both[1], both[2]]
    kinds = [(d.deviations.keys(), d.architecture) for d in both]
    assert kinds[0] == kinds[1] == kinds[2]
    assert [d.label for d in both] == ["", chip.label, warm.label]
    for given, found in zip(({}, chip.deviations, warm.deviations), both, strict=True):
        for key, deviation in found.deviations.items():
            expected = np.broadcast_to(given.get(key, 0.0), deviation.shape)
            np.testing.assert_array_equal(deviation, expected)
    both.save(tmp_path / "both.npz")
    assert len(DeviceSet.load(tmp_path / "both.npz")) == 3
    name = next(name for name, _ in chip.deviations)
    with pytest.raises(ValueError, match=rf"one architecture.*'odd' with {name} of"):
        DeviceSet([chip, SimulatedDevice({(name, 0): np.zeros(7)}, label="odd")])
