"""Devices at chosen values of an imperfection."""

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.devices import grid, sweep
from keras_pnn.physics.mesh import cell_mask


def banks():
    inputs = keras.Input((3,))
    hidden = pnn.layers.MRRBank(5, name="first")(inputs)
    return keras.Model(inputs, pnn.layers.MRRBank(4, name="second")(hidden))


def meshes():
    inputs = keras.Input((6,))
    hidden = pnn.layers.MZIMesh(6, name="first")(inputs)
    outputs = pnn.layers.MZIMesh(6, loss_db=0.1, name="second")(hidden)
    return keras.Model(inputs, outputs)


def modulator():
    layer = pnn.layers.MaskedSLM(2, grid=(1, 2), name="slm")
    return keras.Sequential([keras.Input((3, 3)), layer])


def imperfections(model, device, name):
    """What the layers have with the device installed."""
    layers = [la for la in model.layers if name in getattr(la, "imperfections", ())]
    with device.installed(model):
        return [la.imperfections[name].numpy() for la in layers]


def test_sweep():
    model = banks()
    devices = sweep(model, "temperature", [-1.0, 0.0, 2.5])
    assert devices[2].label == "temperature = 2.5"
    for device, value in zip(devices, [-1.0, 0.0, 2.5], strict=True):
        assert imperfections(model, device, "temperature") == [value, value]
    (one,) = sweep(model, "second/resonance_shift", 0.3)
    first, second = imperfections(model, one, "resonance_shift")
    assert not first.any()
    np.testing.assert_array_equal(second, np.full((5, 4), 0.3, "float32"))


def test_sweep_of_an_imperfection_with_elements():
    model = modulator()
    both, down = sweep(model, "shift", [1.5, 2.0]), sweep(model, "shift", [(2.0, 0.0)])
    np.testing.assert_array_equal(both[0].deviations["shift", 0], [1.5, 1.5])
    np.testing.assert_array_equal(down[0].deviations["shift", 0], [2.0, 0.0])
    assert down[0].label == "shift = (2, 0)"


def test_grid():
    model = modulator()
    devices = grid(model, {"rotation": [0.0, 3.0], "slm/scale": [-0.1, 0.0, 0.2]})
    set_to = [(d.deviations["rotation", 0], d.deviations["scale", 0]) for d in devices]
    expected = [(r, s) for r in (0.0, 3.0) for s in (-0.1, 0.0, 0.2)]
    np.testing.assert_allclose(set_to, expected)
    labels = [d.label for d in devices[3:]]
    bases = ("1 - 0.1", "1 + 0", "1 + 0.2")
    assert labels == [f"rotation = 3, slm/scale = {b}" for b in bases]
    np.testing.assert_allclose(imperfections(model, devices[5], "scale"), [1.2])


def test_sweep_of_a_splitter_imbalance_and_slots_without_a_cell():
    model, exists = meshes(), cell_mask(6)
    values = [-1.0, 0.0, 0.15]
    devices = sweep(model, "splitter_imbalance", values)
    assert devices[2].label == "splitter_imbalance = 0.15"
    for device, value in zip(devices, values, strict=True):
        assert list(device.deviations) == [("splitter_error", i) for i in (0, 1)]
        expected = -np.arcsin(value) / 2 * np.stack([exists, exists], -1)
        for angle in imperfections(model, device, "splitter_error"):
            np.testing.assert_allclose(angle, expected, atol=1e-6)
            assert (angle[~exists] == 0).all()
    (one,) = sweep(model, "second/splitter_imbalance", 0.3)
    assert list(one.deviations) == [("splitter_error", 1)]


def test_the_nominal_value_is_shown_and_added():
    model, exists = meshes(), cell_mask(6)
    (one,) = sweep(model, "second/loss_db", 0.5)
    assert one.label == "second/loss_db = 0.1 + 0.5"
    (both,) = sweep(model, "loss_db", 0.5)
    assert both.label == "loss_db = nominal + 0.5"
    for loss, design in zip(
        imperfections(model, both, "loss_db"), (0.0, 0.1), strict=True
    ):
        expected = np.where(exists, design + 0.5, design)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("bad", ["abc", ["1", "2"], [1j], (v for v in [1.0]), [np.nan]])
def test_values_must_be_finite_numbers(bad):
    with pytest.raises(ValueError, match=r"`temperature` must be finite.*Received"):
        sweep(banks(), "temperature", bad)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (banks, {"humidity": [0.0]}, "temperature.*Received: 'humidity'"),
        (meshes, {"splitter_ratio": [0.0]}, "splitter_error.*'splitter_ratio'"),
        (meshes, {"splitter_imbalance": [1.5]}, r"must be in \[-1, 1\]"),
        (modulator, {"shift": [(1.0, 2.0, 3.0)]}, r"`shift`.*\(2,\).*shape \(3,\)"),
        (modulator, {"rotation": 1.0, "slm/rotation": 1.0}, "'rotation' and 'slm/rot"),
        (modulator, {}, "at least one.*Received: {}"),
    ],
)
def test_bad_grids(make, values, message):
    with pytest.raises(ValueError, match=message):
        grid(make(), values)
