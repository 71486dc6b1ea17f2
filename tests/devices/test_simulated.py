"""One device: installing it, measuring with it, keeping it in a file."""

import json

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.devices import DeviceSet, SimulatedDevice, grid, sweep
from keras_pnn.physics.mesh import cell_mask

VARIATION = pnn.Variation(resonance_shift=0.08, temperature=1.0)
X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")


def network(units=4, names=("first", "second")):
    inputs = keras.Input((3,))
    hidden = pnn.layers.MRRBank(5, activation="relu", name=names[0])(inputs)
    outputs = pnn.layers.MRRBank(units, name=names[1])(hidden)
    return keras.Model(inputs, outputs)


def state(model):
    return [v.numpy().tobytes() for v in model.variables]


def test_installed_sets_values_and_restores_bit_for_bit():
    model = network()
    first = model.get_layer("first").imperfections
    first["resonance_shift"].assign(np.full((3, 5), 0.1, "float32"))
    before, ideal = state(model), model(X).numpy()
    (device,) = VARIATION.sample(model, 1)
    with device.installed(model) as entered:
        assert entered is device
        # A device replaces imperfections: it does not add to those installed.
        np.testing.assert_array_equal(
            first["resonance_shift"].numpy(), device.deviations["resonance_shift", 0]
        )
        assert np.abs(model(X).numpy() - ideal).max() > 1e-3
    assert state(model) == before
    with pytest.raises(KeyError, match="body"), device.installed(model):
        raise KeyError("body")
    assert state(model) == before


def test_installed_nested():
    model = network()
    one, two = VARIATION.sample(model, 2)
    outside = state(model)
    with one.installed(model):
        inside = state(model)
        with two.installed(pnn.SATModel(model)):
            innermost = state(model)
        assert state(model) == inside
    assert state(model) == outside
    with two.installed(model):
        assert state(model) == innermost
    assert len({tuple(outside), tuple(inside), tuple(innermost)}) == 3


def test_weights_loaded_inside_leave_the_device_installed(tmp_path):
    model = network()
    path = tmp_path / "design.weights.h5"
    model.save_weights(path)
    control = model.get_layer("first").controls["control"]
    saved = control.numpy()
    one, two = VARIATION.sample(model, 2)
    (warm,) = sweep(model, "temperature", [2.0])
    outside = state(model)
    for wrapper in (model, pnn.SATModel(model)):
        for outer in (one, warm):
            with outer.installed(model):
                with two.installed(wrapper):
                    pass
                inside = state(model)
                control.assign(saved + 1)
                model.load_weights(path)
                assert state(model) == inside
            assert state(model) == outside
    # What the device does not set is the design's again, and so is all outside.
    with warm.installed(model):
        inside = state(model)
        shift = model.get_layer("first").imperfections["resonance_shift"]
        shift.assign(shift + 0.1)
        model.load_weights(path)
        assert state(model) == inside
    with pytest.raises(KeyError), one.installed(model):
        raise KeyError
    shift.assign(shift + 0.1)
    model.load_weights(path)
    assert state(model) == outside


def test_a_run_resumed_on_a_device_goes_on_with_it(tmp_path):
    def run(folder, stop=None):
        keras.utils.set_random_seed(0)
        model = network()
        model.compile(keras.optimizers.SGD(0.1), "mse")
        (device,) = VARIATION.sample(model, 1)

        def interrupt(epoch, logs):
            if epoch == stop:
                raise KeyboardInterrupt

        callbacks = [
            keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False),
            keras.callbacks.LambdaCallback(on_epoch_end=interrupt),
        ]
        arguments = {"epochs": 3, "shuffle": False, "verbose": 0}
        with device.installed(model):
            model.fit(X, X[:, :1].repeat(4, 1), callbacks=callbacks, **arguments)
        return state(model)

    expected = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=1)
    assert run(tmp_path / "cut") == expected


def test_a_failing_assignment_installs_nothing():
    model = network()
    before = state(model)
    arrays = {
        ("resonance_shift", 0): np.ones((3, 5), "float32"),
        ("resonance_shift", 1): np.ones((7, 7), "float32"),
    }
    shapes = {"resonance_shift": [[3, 5], [5, 4]]}
    with pytest.raises(ValueError), SimulatedDevice(arrays, shapes).installed(model):
        pass
    assert state(model) == before


def test_another_architecture_is_refused():
    (device,) = VARIATION.sample(network(units=4), 1)
    other = network(units=7)
    before = state(other)
    with pytest.raises(ValueError, match=r"\[5, 4\]"), device.installed(other):
        pass
    with pytest.raises(ValueError, match="architecture"):
        device.values(other)
    assert state(other) == before
    # A layer more is another architecture too, even where the first layers agree.
    deeper = keras.Sequential([network(), pnn.layers.MRRBank(4)])
    deeper.build((None, 3))
    with pytest.raises(ValueError, match="architecture"):
        device.values(deeper)


def test_measure_equals_installed():
    model = network()
    layer = model.get_layer("first")
    (device,) = VARIATION.sample(model, 1)
    with pytest.raises(ValueError, match="attach"):
        device.measure(layer, X, {})
    controls = {n: v.numpy() for n, v in layer.controls.items()}
    measured = device.attach(model).measure(layer, X, controls)
    with device.installed(model):
        np.testing.assert_array_equal(measured, layer(X))


def test_measure_refuses_deviating_weights():
    model = network()
    (device,) = pnn.Variation(bias=0.1).sample(model, 1)
    with pytest.raises(ValueError, match="bias"):
        device.attach(model)


def test_npz_round_trip(tmp_path):
    model = network()
    devices = VARIATION.sample(model, 3, seed=4)
    devices.save(tmp_path / "chips.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["chips.npz"]
    loaded = DeviceSet.load(tmp_path / "chips.npz")
    assert [d.label for d in loaded] == [d.label for d in devices]
    for one, other in zip(devices, loaded, strict=True):
        assert one.architecture == other.architecture
        assert one.deviations.keys() == other.deviations.keys()
        for key, value in one.deviations.items():
            np.testing.assert_array_equal(value, other.deviations[key])
            assert value.dtype == other.deviations[key].dtype
        with other.installed(model):
            theirs = state(model)
        with one.installed(model):
            assert state(model) == theirs
    with pytest.raises(ValueError, match="architecture"):
        loaded[0].values(network(units=9))
    DeviceSet([]).save(tmp_path / "none.npz")
    assert len(DeviceSet.load(tmp_path / "none.npz")) == 0


def test_npz_of_bfloat16_weights(tmp_path):
    layer = keras.layers.Dense(2, dtype="bfloat16")
    model = keras.Sequential([keras.Input((3,)), layer])
    devices = pnn.Variation(kernel=0.3).sample(model, 1)
    devices.save(tmp_path / "chips.npz")
    (loaded,) = DeviceSet.load(tmp_path / "chips.npz")
    with devices[0].installed(model):
        expected = state(model)
    with loaded.installed(model):
        assert state(model) == expected


def test_damaged_files(tmp_path):
    path = tmp_path / "chips.npz"
    VARIATION.sample(network(), 2).save(path)
    whole = path.read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"chips\.npz"):
            DeviceSet.load(path)
    with pytest.raises(FileNotFoundError):
        DeviceSet.load(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other/1"},
        {"labels": ["a", "b", "c"]},
        {"keys": [["resonance_shift", 0]] * 9},
        {"labels": None},
    ],
)
def test_inconsistent_headers(tmp_path, change):
    path = tmp_path / "chips.npz"
    VARIATION.sample(network(), 2).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    header = {**json.loads(str(arrays["header"])), **change}
    np.savez(path, **{**arrays, "header": np.array(json.dumps(header))})
    with pytest.raises(ValueError, match=r"DeviceSet\.save"):
        DeviceSet.load(path)
    np.savez(path, **{k: v for k, v in arrays.items() if k != "header"})
    with pytest.raises(ValueError, match=r"DeviceSet\.save"):
        DeviceSet.load(path)


def test_devices_are_a_sequence_of_one_kind():
    model = network()
    devices = VARIATION.sample(model, 4)
    assert isinstance(devices[1:3], DeviceSet)
    assert list(devices[1:3]) == [devices[1], devices[2]]
    assert devices[-1] is devices[3]
    odd = pnn.Variation(temperature=1.0).sample(model, 1)
    with pytest.raises(ValueError, match="same variables"):
        DeviceSet([*devices, *odd])


def test_deviations_must_be_finite():
    with pytest.raises(ValueError, match=r"resonance_shift\[1\]"):
        SimulatedDevice({("resonance_shift", 1): np.array([0.0, np.nan])})


def test_deviations_must_have_their_shapes():
    with pytest.raises(ValueError, match=r"of temperature .*Received: index 1, sha"):
        SimulatedDevice({("temperature", 1): 0.5})
    with pytest.raises(ValueError, match=r"\[5, 4\].*Received: index 0, shape \[\]"):
        SimulatedDevice({("resonance_shift", 0): 0.5}, {"resonance_shift": [[5, 4]]})


@pytest.mark.parametrize("bad", ["abc", ["1", "2"], [1j], (v for v in [1.0]), None])
def test_a_sweep_needs_real_numbers(bad):
    with pytest.raises(ValueError, match=r"'temperature' must be real.*Received"):
        sweep(network(), "temperature", bad)


def test_sweep():
    model = network()
    devices = sweep(model, "temperature", [-1.0, 0.0, 2.5])
    assert [d.label for d in devices][2] == "temperature = 2.5"
    for device, value in zip(devices, [-1.0, 0.0, 2.5], strict=True):
        with device.installed(model):
            for layer in model.layers[1:]:
                assert layer.imperfections["temperature"].numpy() == value
    (one,) = sweep(model, "second/resonance_shift", 0.3)
    with one.installed(model):
        imperfect = [la.imperfections for la in model.layers[1:]]
        shifts = [i["resonance_shift"].numpy() for i in imperfect]
    assert not shifts[0].any()
    np.testing.assert_array_equal(shifts[1], np.full((5, 4), 0.3, "float32"))
    with pytest.raises(ValueError, match="temperature"):
        sweep(model, "humidity", [0.0])
    with pytest.raises(ValueError, match="finite"):
        sweep(model, "temperature", [np.nan])


def mesh_network():
    inputs = keras.Input((6,))
    hidden = pnn.layers.MZIMesh(6, name="first")(inputs)
    outputs = pnn.layers.MZIMesh(6, loss_db=0.1, name="second")(hidden)
    return keras.Model(inputs, outputs)


def test_sweep_of_an_imperfection_with_elements():
    layer = pnn.layers.MaskedSLM(2, grid=(1, 2))
    model = keras.Sequential([keras.Input((3, 3)), layer])
    both, down = sweep(model, "shift", [1.5, 2.0]), sweep(model, "shift", [(2.0, 0.0)])
    np.testing.assert_array_equal(both[0].deviations["shift", 0], [1.5, 1.5])
    np.testing.assert_array_equal(down[0].deviations["shift", 0], [2.0, 0.0])
    assert down[0].label == "shift = (2, 0)"
    with pytest.raises(ValueError, match=r"'shift' .*shape \(2,\).*shape \(3,\)"):
        sweep(model, "shift", [(1.0, 2.0, 3.0)])


def test_grid():
    layer = pnn.layers.MaskedSLM(2, grid=(1, 2), name="slm")
    model = keras.Sequential([keras.Input((3, 3)), layer])
    devices = grid(model, {"rotation": [0.0, 3.0], "slm/scale": [-0.1, 0.0, 0.2]})
    set_to = [(d.deviations["rotation", 0], d.deviations["scale", 0]) for d in devices]
    expected = [(r, s) for r in (0.0, 3.0) for s in (-0.1, 0.0, 0.2)]
    np.testing.assert_allclose(set_to, expected)
    labels = [d.label for d in devices[3:]]
    bases = ("1 - 0.1", "1 + 0", "1 + 0.2")
    assert labels == [f"rotation = 3, slm/scale = {b}" for b in bases]
    with devices[5].installed(model):
        np.testing.assert_allclose(layer.imperfections["scale"], 1.2)
    with pytest.raises(ValueError, match="'rotation' and 'slm/rotation'"):
        grid(model, {"rotation": [1.0], "slm/rotation": [1.0]})
    with pytest.raises(ValueError, match=r"at least one.*Received: {}"):
        grid(model, {})


def slm_network():
    layer = pnn.layers.MaskedSLM(2, grid=(1, 2), name="slm")
    return keras.Sequential([keras.Input((3, 3)), layer])


@pytest.mark.parametrize("bad", [-1.0, -1.5])
def test_a_scale_that_does_not_exist_is_refused(bad):
    model = slm_network()
    before = state(model)
    received = rf"'slm/scale' must be above 0.*Received: a deviation of {bad:g}"
    with pytest.raises(ValueError, match=received):
        sweep(model, "scale", [0.0, bad])
    device = SimulatedDevice({("scale", 0): np.float32(bad)})
    with pytest.raises(ValueError, match=received):
        device.bind(model)
    with pytest.raises(ValueError, match=received), device.installed(model):
        pass
    with pytest.raises(ValueError, match=received):
        device.attach(model)
    model.compile(loss="mse")
    x, y = np.ones((2, 3, 3), "float32"), np.ones((2, 2), "float32")
    with pytest.raises(ValueError, match=received):
        pnn.evaluate_devices(model, x, y, [device], verbose=0)
    assert state(model) == before
    (small,) = sweep(model, "scale", [-0.9])
    with small.installed(model):
        assert np.isfinite(model(x)).all()


def test_sweep_of_a_splitter_imbalance_and_slots_without_a_cell():
    model, exists = mesh_network(), cell_mask(6)
    values = [-1.0, 0.0, 0.15]
    devices = sweep(model, "splitter_imbalance", values)
    assert devices[2].label == "splitter_imbalance = 0.15"
    for device, value in zip(devices, values, strict=True):
        assert list(device.deviations) == [("splitter_error", i) for i in (0, 1)]
        expected = -np.arcsin(value) / 2 * np.stack([exists, exists], -1)
        with device.installed(model):
            for layer in model.layers[1:]:
                angle = layer.imperfections["splitter_error"].numpy()
                np.testing.assert_allclose(angle, expected, atol=1e-6)
                assert (angle[~exists] == 0).all()
    (one,) = sweep(model, "second/splitter_imbalance", 0.3)
    assert list(one.deviations) == [("splitter_error", 1)]
    (loss,) = sweep(model, "second/loss_db", 0.5)
    assert loss.label == "second/loss_db = 0.1 + 0.5"
    (loss,) = sweep(model, "loss_db", 0.5)
    assert loss.label == "loss_db = nominal + 0.5"
    with loss.installed(model):
        for layer, design in zip(model.layers[1:], (0.0, 0.1), strict=True):
            expected = np.where(exists, design + 0.5, design)
            actual = layer.imperfections["loss_db"]
            np.testing.assert_allclose(actual, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="splitter_error"):
        sweep(model, "splitter_ratio", [0.0])
    with pytest.raises(ValueError, match=r"imbalance|finite"):
        sweep(model, "splitter_imbalance", [np.nan])


def test_npz_round_trip_of_meshes(tmp_path):
    model = mesh_network()
    variation = pnn.Variation(theta_error=0.1, splitter_imbalance=0.15)
    devices = variation.sample(model, 2)
    devices.save(tmp_path / "chips.npz")
    for one, other in zip(devices, DeviceSet.load(tmp_path / "chips.npz"), strict=True):
        with one.installed(model):
            expected = state(model)
        with other.installed(mesh_network()), other.installed(model):
            assert state(model) == expected
    wider = keras.Sequential([keras.Input((8,)), pnn.layers.MZIMesh(8)])
    with pytest.raises(ValueError, match="architecture"):
        devices[0].values(wider)


def test_measure_of_a_mesh_equals_installed():
    model = mesh_network()
    layer = model.get_layer("second")
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    variation = pnn.Variation(splitter_imbalance=0.15, loss_db=0.2)
    (device,) = variation.sample(model, 1)
    controls = {n: v.value for n, v in layer.controls.items()}
    measured = device.attach(model).measure(layer, x, controls)
    ideal = layer(x).numpy()
    with device.installed(model):
        np.testing.assert_allclose(measured, layer(x), atol=1e-6)
    assert np.abs(measured - ideal).max() > 1e-2
