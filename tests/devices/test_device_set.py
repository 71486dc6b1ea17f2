"""Many devices together, and in a file."""

import json

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.devices import DeviceSet

VARIATION = pnn.Variation(resonance_shift=0.08, temperature=1.0)


def banks(units=4):
    banks = [pnn.layers.MRRBank(5), pnn.layers.MRRBank(units)]
    return keras.Sequential([keras.Input((3,)), *banks])


def mesh(units=6):
    return keras.Sequential([keras.Input((units,)), pnn.layers.MZIMesh(units)])


def low_precision(units=2):
    layer = keras.layers.Dense(units, dtype="bfloat16")
    return keras.Sequential([keras.Input((3,)), layer])


def installed(device, model):
    with device.installed(model):
        return [v.numpy().tobytes() for v in model.variables]


@pytest.mark.parametrize(
    ("make", "variation"),
    [
        (banks, VARIATION),
        (mesh, pnn.Variation(theta_error=0.1, splitter_imbalance=0.15)),
        (low_precision, pnn.Variation(kernel=0.3)),
    ],
)
def test_npz_round_trip(tmp_path, make, variation):
    model = make()
    devices = variation.sample(model, 3, seed=4)
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
        assert installed(one, model) == installed(other, model)
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
    assert len(devices[0].values(banks())) == 2
    devices.save(path)
    with np.load(path) as file:
        assert json.loads(str(file["header"])) == header
        np.testing.assert_array_equal(file["a0"], shifts)
    DeviceSet([]).save(path)
    assert len(DeviceSet.load(path)) == 0


@pytest.mark.parametrize("cut", [0, 7, 0.5, -30])
def test_damaged_files(tmp_path, cut):
    path = tmp_path / "chips.npz"
    VARIATION.sample(banks(), 2).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if cut == 0.5 else cut])
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
        None,
    ],
)
def test_inconsistent_headers(tmp_path, change):
    path = tmp_path / "chips.npz"
    VARIATION.sample(banks(), 2).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    header = arrays.pop("header")
    if change is not None:
        header = {**json.loads(str(header)), **change}
        arrays["header"] = np.array(json.dumps(header))
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"DeviceSet\.save"):
        DeviceSet.load(path)


def test_a_sequence_of_devices_of_one_kind():
    model = banks()
    devices = VARIATION.sample(model, 4)
    assert isinstance(devices[1:3], DeviceSet)
    assert list(devices[1:3]) == [devices[1], devices[2]]
    assert devices[-1] is devices[3]
    odd = pnn.Variation(temperature=1.0).sample(model, 1)
    with pytest.raises(ValueError, match="same variables"):
        DeviceSet([*devices, *odd])
