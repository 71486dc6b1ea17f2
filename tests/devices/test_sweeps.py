"""Devices at chosen values of an imperfection."""

import keras
import numpy as np
import pytest
from models import banks, modulator

import keras_pnn as pnn
from keras_pnn.devices import grid, sweep
from keras_pnn.physics.mesh import cell_mask


def meshes():
    first = pnn.layers.MZIMesh(6, name="first")
    second = pnn.layers.MZIMesh(6, loss_db=0.1, name="second")
    return keras.Sequential([keras.Input((6,)), first, second])


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
    np.testing.assert_array_equal(second, np.full((5, 3), 0.3, "float32"))


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
    found = imperfections(model, both, "loss_db")
    for loss, design in zip(found, (0.0, 0.1), strict=True):
        expected = np.where(exists, design + 0.5, design)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        *(
            (banks, {"temperature": bad}, "`temperature` must be finite.*Received")
            for bad in ("abc", ["1", "2"], [1j], (v for v in [1.0]), [np.nan])
        ),
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


def evaluated(devices, accuracy, **changes):
    values = {"loss": 1 - np.asarray(accuracy), "accuracy": np.asarray(accuracy)}
    labels = tuple(device.label for device in devices)
    made = {"model": "rings", "labels": labels, "axes": devices.axes, **changes}
    return pnn.DeviceEvaluation(values, 9, 3, True, **made)


def test_a_sweep_has_an_axis():
    devices = sweep(banks(), "temperature", [-1.0, 0.0, 2.5])
    (axis,) = devices.axes
    assert (axis.name, axis.unit, axis.label) == ("temperature", "K", "temperature (K)")
    np.testing.assert_array_equal(axis.values, [-1.0, 0.0, 2.5])
    assert repr(axis) == "<Axis temperature: 3 points, -1 … 2.5 K>"
    assert "along temperature (K)" in repr(devices)
    assert devices[1:].axes == ()
    # Of another quantity than the variable's.
    assert sweep(meshes(), "splitter_imbalance", [0.1]).axes[0].unit == ""
    with pytest.raises(ValueError, match=r"`axes` must be .*3 devices\. Received: 2"):
        pnn.DeviceSet(devices, [pnn.devices.Axis("x", "", np.zeros(2))])


def test_axes_are_saved(tmp_path):
    devices = grid(modulator(), {"rotation": [0.0, 3.0], "shift": [(0, 0), (1, 0)]})
    devices.save(tmp_path / "moved.npz")
    loaded = pnn.DeviceSet.load(tmp_path / "moved.npz")
    for one, other in zip(devices.axes, loaded.axes, strict=True):
        assert (one.name, one.unit) == (other.name, other.unit)
        np.testing.assert_array_equal(one.values, other.values)


def test_a_result_along_a_sweep():
    devices = sweep(banks(), "temperature", [1.0, -1.0, 0.0])
    result = evaluated(devices, [0.9, 0.5, 0.75])
    lines = [line.split() for line in result.table().splitlines()]
    assert lines[0] == ["temperature", "(K)", "loss", "accuracy"]
    assert lines[2] == ["-1", "0.5000", "0.5000"]
    frame = result.to_dataframe()
    assert list(frame) == ["temperature (K)", "device", "loss", "accuracy"]
    assert frame["temperature (K)"].tolist() == [1.0, -1.0, 0.0]
    assert frame.device[1] == "temperature = -1"
    ax = result.plot(compare={"SAT": evaluated(devices, [0.9, 0.8, 0.95])})
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("temperature (K)", "accuracy")
    names = [text.get_text() for text in ax.figure.legends[0].texts]
    assert names == ["rings", "SAT"]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [-1.0, 0.0, 1.0])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, 0.75, 0.9])
    assert result.to_dict()["axes"][0]["values"] == [1.0, -1.0, 0.0]


def test_a_result_over_a_grid():
    devices = grid(
        modulator(), {"rotation": [1.0, 0.0], "shift": [(0, 0), (1, 0), (2, 0)]}
    )
    result = evaluated(devices, np.linspace(0.4, 0.9, 6))
    first = result.to_dataframe().iloc[1]
    assert (first["rotation (deg)"], first["shift (px)"]) == (1.0, "(1, 0)")
    ax = result.plot("loss")
    assert ax.get_title() == "rings"
    assert ax.get_ylabel() == "rotation (deg)"
    assert ax.get_xlabel() == "shift, length along its direction (px)"
    # Rows from the lowest rotation on.
    drawn = ax.collections[0].get_array().reshape(2, 3)
    np.testing.assert_allclose(drawn[0], result["loss"][3:])
    with pytest.raises(ValueError, match=r"A map shows one.*Received: 2 results"):
        result.plot(compare={"other": result})


def test_results_without_axes_are_drawn_device_by_device():
    devices = pnn.Variation(temperature=1.0).sample(banks(), 3)
    result = evaluated(devices, [0.5, 0.6, 0.7])
    ax = result.plot(name="plain", compare={"SAT": result})
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["plain", "SAT"]
    assert list(result.to_dataframe()) == ["device", "loss", "accuracy"]


def test_bad_plots():
    result = evaluated(sweep(banks(), "temperature", [0.0, 1.0]), [0.5, 0.6])
    other = evaluated(sweep(banks(), "temperature", [0.0, 2.0]), [0.5, 0.6])
    with pytest.raises(ValueError, match="`metric` must be one of 'loss', 'accuracy'"):
        result.plot("auc")
    with pytest.raises(ValueError, match="`compare` must be results along"):
        result.plot(compare={"other": other})
    with pytest.raises(ValueError, match="`compare` must be names and results"):
        result.plot(compare={"other": 1})
