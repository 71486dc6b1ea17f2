"""Devices from names, from CSV files, and from the sum of two."""

import keras
import models
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.devices import SimulatedDevice, sweep

SHIFTS = np.linspace(-0.1, 0.1, 6).reshape(2, 3)


def rings():
    return models.banks(sizes=(2, 3, 2))


def mesh():
    return keras.Sequential([keras.Input((4,)), pnn.layers.MZIMesh(4, name="mesh")])


def assert_equal(one, other):
    assert one.deviations.keys() == other.deviations.keys()
    assert one.architecture == other.architecture
    models.assert_same(
        [one.deviations[key] for key in other.deviations],
        other.deviations.values(),
        1e-7,
    )


def test_from_names():
    model = rings()
    device = SimulatedDevice.from_dict(
        model, {"first/resonance_shift": SHIFTS, "temperature": 1.0}, "mine"
    )
    assert device.label == "mine"
    keys = [("resonance_shift", 0), ("temperature", 0), ("temperature", 1)]
    assert sorted(device.deviations) == keys
    with device.installed(model):
        first, second = (model.get_layer(n).imperfections for n in ("first", "second"))
        np.testing.assert_allclose(first["resonance_shift"], SHIFTS, rtol=1e-6)
        assert not np.any(second["resonance_shift"])
        assert float(second["temperature"]) == 1.0
    # The same as a sweep, an alias and a slot without a cell included.
    model = mesh()
    (swept,) = sweep(model, "splitter_imbalance", [0.2])
    assert_equal(SimulatedDevice.from_dict(model, {"splitter_imbalance": 0.2}), swept)


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "`deviations` must be a dictionary of names.*Received: {}"),
        ([("temperature", 1.0)], "`deviations` must be a dictionary of names"),
        ({("temperature", 0): 1.0}, "`deviations` must be a dictionary of names"),
        ({"humidity": 1.0}, "must be one of the model's.*Received: 'humidity'"),
        ({"temprature": 1.0}, "Did you mean 'temperature'?"),
        ({"half_width": 1.0}, "argument of LorentzianTuning.*'half_width_error'"),
        ({"temperature": np.nan}, "`temperature` must be finite numbers"),
        ({"temperature": "warm"}, "`temperature` must be finite numbers"),
        ({"first/resonance_shift": SHIFTS.T}, r"shape \(2, 3\). Received: shape \(3"),
        ({"resonance_shift": SHIFTS}, r"shape \(3, 2\). Received: shape \(2, 3\)"),
        ({"temperature": 1.0, "first/temperature": 2.0}, "must be given once"),
        ({"half_width_error": -1.0}, "must be above -1.*Received: a deviation of -1"),
    ],
)
def test_bad_names_and_values(values, message):
    with pytest.raises(ValueError, match=message):
        SimulatedDevice.from_dict(rings(), values)


def half():
    bank = pnn.layers.MRRBank(3, dtype="bfloat16", name="bank")
    return keras.Sequential([keras.Input((2,)), bank])


@pytest.mark.parametrize(
    "make, values",
    [
        (rings, {"first/resonance_shift": SHIFTS, "temperature": 1.0}),
        (mesh, {"splitter_imbalance": 0.2, "loss_db": 0.5}),
        (models.modulator, {"shift": (1.0, 0.0), "scale": 0.1}),
        (half, {"temperature": 0.5, "resonance_shift": 0.25}),
    ],
)
def test_csv_round_trip(tmp_path, make, values):
    model, path = make(), tmp_path / "chip.csv"
    device = SimulatedDevice.from_dict(model, values)
    device.to_csv(model, path)
    assert_equal(device, SimulatedDevice.from_csv(model, path, "chip"))


def test_two_layers_of_one_name_have_no_lines_of_their_own(tmp_path):
    inner = keras.Sequential([keras.Input((3,)), pnn.layers.MRRBank(2, name="bank")])
    outer = [keras.Input((2,)), pnn.layers.MRRBank(3, name="bank"), inner]
    model = keras.Sequential(outer)
    device = SimulatedDevice.from_dict(model, {"temperature": 1.0})
    with pytest.raises(ValueError, match="Received: bank/temperature more than once"):
        device.to_csv(model, tmp_path / "chip.csv")
    assert not list(tmp_path.iterdir())


def written(tmp_path, text):
    path = tmp_path / "chip.csv"
    path.write_text(text, "utf-8")
    return path


def test_csv_of_a_laboratory(tmp_path):
    text = (
        "# chip 3\nimperfection;layer;deviation;index\ntemperature;;1,5;\n"
        "resonance_shift;second;0,25;\n"
    )
    device = SimulatedDevice.from_csv(rings(), written(tmp_path, text))
    values = {"temperature": 1.5, "second/resonance_shift": 0.25}
    assert_equal(SimulatedDevice.from_dict(rings(), values), device)


HEADER = "layer,imperfection,index,deviation,unit\n"
ELEMENTS = "".join(
    f"first,resonance_shift,{i};{j},0.1,nm\n" for i, j in np.ndindex(2, 3)
)


@pytest.mark.parametrize(
    "text, message",
    [
        ("layer,index,deviation\n", "expected the columns.*without .*'imperfection'"),
        (HEADER, "at least one line below the headings"),
        (HEADER + "first,humidity,,1,K\n", "line 2: An imp.*Received: 'first/humid"),
        (HEADER + "third,temperature,,1,K\n", "line 2: .*Received: 'third/temperat"),
        (HEADER + ",temperature,,warm,K\n", "line 2: expected a finite number"),
        (HEADER + ",temperature,,1,mK\n", "line 2: expected the unit 'K'.*: 'mK'"),
        (HEADER + ",temperature,,1,K\n,temperature,,1,K\n", "line 3: .* once"),
        (HEADER + ",temperature,0,1,K\n", "line 2: expected an index"),
        (HEADER + "first,resonance_shift,2;0,1,nm\n", r"line 2: .*\(2, 3\).*'2;0'"),
        (HEADER + "first,resonance_shift,-1;0,1,nm\n", "line 2: .*'-1;0'"),
        (HEADER + 2 * ELEMENTS, "line 8: expected each element .* once"),
        # Cut short, between lines and within one.
        (HEADER + ELEMENTS[:-33], "6 elements of first/resonance_shift.*Received: 5"),
        (HEADER + ELEMENTS[:-8], "line 7: expected a finite number.*''"),
        # A cell that the mesh lacks.
        (HEADER + "mesh,theta_error,1;1,0.1,rad\n", "line 2: .*index of an element"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=rf"chip\.csv.*{message}"):
        SimulatedDevice.from_csv(mesh() if "mesh" in text else rings(), path)


def test_no_file_that_was_cut_short_is_read(tmp_path):
    model, path = rings(), tmp_path / "chip.csv"
    values = {"second/resonance_shift": SHIFTS.T, "temperature": 1.25}
    device = SimulatedDevice.from_dict(model, values)
    device.to_csv(model, path)
    whole = path.read_bytes()
    for length in (0, 5, 40, *range(len(whole) - 60, len(whole) - 2)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"chip\.csv"):
            SimulatedDevice.from_csv(model, path)
    path.write_bytes(whole.rstrip())
    assert_equal(device, SimulatedDevice.from_csv(model, path))


def test_devices_add():
    model = rings()
    (chip,) = pnn.Variation(resonance_shift=0.05, temperature=0.3).sample(model, 1)
    (warmer,) = sweep(model, "temperature", [1.0])
    both = chip + warmer
    assert both.label == "seed 0, device 0 + temperature = 1"
    for key, value in chip.deviations.items():
        expected = value + (1.0 if key[0] == "temperature" else 0.0)
        np.testing.assert_allclose(both.deviations[key], expected, rtol=1e-6)
    assert_equal(both, warmer + chip)
    chip, warm = (SimulatedDevice({}, label=label) for label in ("chip", "+1 K"))
    assert (chip + warm).label == "chip +1 K"
    assert (chip + chip).label == "chip + chip"


def test_scales_add_as_deviations_and_imbalances_as_angles():
    model = models.modulator()
    one, two = sweep(model, "scale", [0.1, 0.2])
    with (one + two).installed(model):
        scale = model.get_layer("slm").imperfections["scale"]
        np.testing.assert_allclose(scale, 1.3, rtol=1e-6)
    one, two = sweep(mesh(), "splitter_imbalance", [0.3, 0.4])
    (angles,) = (one + two).deviations.values()
    expected = -(np.arcsin(0.3) + np.arcsin(0.4)) / 2
    np.testing.assert_allclose(angles[0, 0], expected, rtol=1e-5)


def test_devices_that_do_not_add():
    one = sweep(rings(), "resonance_shift", [0.1])[0]
    other = pnn.SimulatedDevice({("resonance_shift", 0): np.zeros((4, 4))})
    with pytest.raises(ValueError, match=r"one architecture.*\[4, 4\]"):
        one + other
    with pytest.raises(TypeError):
        one + 1.0
    (low,) = sweep(rings(), "half_width_error", [-0.6])
    with pytest.raises(ValueError, match="above -1"):
        (low + low).bind(rings())
