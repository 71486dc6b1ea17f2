import csv
import io

import keras
import numpy as np
import pytest
from models import assert_same
from written import FORMS, written

import keras_pnn as pnn
from keras_pnn.layers import (
    MaskedSLM,
    MRRBank,
    MRRConv2D,
    MZIDense,
    MZIMesh,
    PhysicalLayer,
)
from keras_pnn.physics.mesh import cell_mask


class Phases(PhysicalLayer):
    """Two controls, one of them a scalar, and no bank."""

    def build(self, input_shape):
        self.add_control("phase", input_shape[-1:], unit="rad")
        self.add_control("gain", (), unit="", initializer="ones")

    def forward(self, inputs, controls, imperfections):
        return inputs * controls["phase"] * controls["gain"]


def network(seed=0, dtype="float32"):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            MRRConv2D(3, 2, bank_size=(2, 3), name="conv", dtype=dtype),
            keras.layers.Flatten(),
            MRRBank(
                2, tuning=pnn.HeaterTuning(max_current=3.0), name="bank", dtype=dtype
            ),
            Phases(name="phases", dtype=dtype),
        ]
    )
    rng = np.random.default_rng(seed)
    for layer in pnn.layers.physical_layers(model):
        for variable in layer.controls.values():
            variable.assign(rng.uniform(0, 2, variable.shape))
    return model


def controls(model):
    layers = pnn.layers.physical_layers(model)
    return [v.numpy() for layer in layers for v in layer.controls.values()]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["network", "meshes"])
def test_round_trip_is_bit_equal(tmp_path, kind, dtype):
    make = {"network": network, "meshes": meshes}[kind]
    model, other = make(0, dtype), make(1, dtype)
    if kind == "network":
        # The values of every magnitude, among them the smallest.
        bank = model.get_layer("bank").controls["control"]
        values = np.abs(np.random.default_rng(3).normal(size=bank.shape)) ** 9 % 3
        bank.assign(values)
    pnn.export_controls(model, tmp_path / "controls.csv")
    pnn.load_controls(other, str(tmp_path / "controls.csv"))
    assert_same(controls(model), controls(other))
    assert [path.name for path in tmp_path.iterdir()] == ["controls.csv"]


def rows_of(path, layer=None):
    """The lines of a table, or those of one layer."""
    with open(path, newline="", encoding="utf-8") as file:
        return [r for r in csv.DictReader(file) if layer in (None, r["layer"])]


def test_coordinates_on_a_bank_that_tiles(tmp_path):
    model = network()
    pnn.export_controls(model, tmp_path / "c.csv")
    rows = rows_of(tmp_path / "c.csv", "conv")
    kernel = np.asarray(model.get_layer("conv").controls["control"])
    assert len(rows) == kernel.size
    seen = set()
    for row in rows:
        i, j, channel, out = map(int, row["index"].split(";"))
        place = (i * 2 + j) * 2 + channel  # (kernel height, kernel width, channels)
        assert int(row["tile"]) == out // 2 * 3 + place // 3  # 3 tiles over the inputs
        assert int(row["row"]) == out % 2 and int(row["column"]) == place % 3
        assert np.float32(row["value"]) == kernel[i, j, channel, out]
        assert row["unit"] == "nm" and row["power_mW"] == ""
        seen.add((row["tile"], row["row"], row["column"]))
    assert len(seen) == kernel.size
    phases = rows_of(tmp_path / "c.csv", "phases")
    assert [r["index"] for r in phases] == ["0", "1", ""]
    assert all(r["tile"] == r["row"] == r["column"] == "" for r in phases)
    assert [r["unit"] for r in phases] == ["rad", "rad", ""]


def test_power_is_the_sum_of_the_heaters(tmp_path):
    model = network()
    summary = pnn.export_controls(model, tmp_path / "c.csv")
    current = np.asarray(model.get_layer("bank").controls["control"], "float64")
    power = current**2 * 0.375
    total = pytest.approx(power.sum(), rel=1e-5)
    assert summary == {
        "conv": {"rings": 24, "passes": 6, "heater_power_mW": None},
        "bank": {"rings": current.size, "passes": 1, "heater_power_mW": total},
    }
    written = [float(r["power_mW"]) for r in rows_of(tmp_path / "c.csv", "bank")]
    np.testing.assert_allclose(written, power.ravel(), rtol=1e-5)


def two_rings(controls, **kwargs):
    """A bank of two rings with heaters, and a converter to 0, 1, 2 and 3 mA."""
    options = {"tuning": "heater", "dac": pnn.layers.DAC(2, 0.0, 3.0), **kwargs}
    bank = MRRBank(1, name="bank", **options)
    model = keras.Sequential([keras.Input((2,)), bank])
    bank.controls["control"].assign(np.reshape(controls, (2, 1)))
    return model


def test_value_code_and_power_are_those_of_what_the_converter_drives(tmp_path):
    summary = pnn.export_controls(two_rings([1.2, 2.7]), tmp_path / "a.csv")
    power = 0.375 * np.array([1.0, 9.0])
    rows = rows_of(tmp_path / "a.csv")
    written = [[float(row[n]) for n in ("value", "power_mW")] for row in rows]
    np.testing.assert_allclose(written, np.transpose([[1.0, 3.0], power]), 1e-6)
    assert [row["code"] for row in rows] == ["1", "3"]
    assert summary["bank"]["heater_power_mW"] == pytest.approx(power.sum(), 1e-6)


CURRENT = np.linspace(0, 4, 161)
# Training keeps within about 0.7 and 3.9 mA of the curve from 0 to 4.
CURVE = pnn.MeasuredTuning(
    CURRENT, pnn.HeaterTuning(half_width=0.05).weight(CURRENT), "mA"
)
# The nearest code to a limit may lie half a step beyond it.
BETWEEN = {"control_constraint": pnn.layers.ControlRange(1.4, 2.5)}


@pytest.mark.parametrize(
    "limits, options",
    [
        ((1.4, 2.5), BETWEEN),
        *(
            (CURVE.training_range, {"tuning": CURVE, "dac": pnn.layers.DAC(n, 0, 4)})
            for n in (1, 2, 6, 12, 16, 24)
        ),
    ],
)
def test_the_limits_of_controls_are_read_back(tmp_path, limits, options):
    model = two_rings(limits, **options)
    before = np.asarray(model(np.eye(2)))
    pnn.export_controls(model, tmp_path / "a.csv")
    pnn.load_controls(model, tmp_path / "a.csv")
    np.testing.assert_array_equal(model(np.eye(2)), before)


def test_a_control_in_the_margin_of_a_measured_curve_is_explained(tmp_path):
    model = two_rings([0.1, 2.0], tuning=CURVE, dac=None)
    pnn.export_controls(model, tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"line 2: .* `margin`\. Received: 0.1"):
        pnn.load_controls(model, tmp_path / "a.csv")


@pytest.mark.parametrize(
    "kind, shape, low, high",
    [
        (lambda dac: MZIMesh(4, dac=dac, name="part"), (4,), -np.pi, np.pi),
        (lambda dac: MZIMesh(4, dac=dac, name="part"), (4,), 0.0, 2 * np.pi),
        (lambda dac: MaskedSLM(3, dac=dac, name="part"), (2, 2), -1.0, 1.0),
    ],
)
def test_a_table_of_quantised_controls_gives_the_same_device(
    tmp_path, rng, kind, shape, low, high
):
    dac = pnn.layers.DAC(4, low, high)
    model, other = (keras.Sequential([keras.Input(shape), kind(dac)]) for _ in range(2))
    for variable in model.layers[0].controls.values():
        variable.assign(rng.uniform(low, high, variable.shape))
    pnn.export_controls(model, tmp_path / "c.csv")
    pnn.load_controls(other, tmp_path / "c.csv")
    x = rng.uniform(size=(3, *shape)).astype("float32")
    np.testing.assert_array_equal(model(x), other(x))
    for row in rows_of(tmp_path / "c.csv"):
        expected = low + int(row["code"]) * (high - low) / 15
        assert float(row["value"]) == pytest.approx(expected, abs=1e-6)


def cell(name, value, line=3):
    """Changes one cell of a line; 28 is the first of the bank."""

    def change(rows):
        rows[line][rows[0].index(name)] = value

    return change


@FORMS
def test_a_file_that_a_spreadsheet_saved(tmp_path, exported, form):
    """Its lines may be in any order."""
    text, model = exported
    header, *rows = csv.reader(io.StringIO(text))
    path = written(tmp_path / "controls.csv", [header, *rows[::-1]], form)
    pnn.load_controls(model, path)
    assert_same(controls(network(0)), controls(model))


BAD = {
    "missing column": lambda rows: [row.pop(7) for row in rows],
    "header only": lambda rows: rows.__delitem__(slice(1, None)),
    "wrong unit": cell("unit", "mA"),
    "cut line": lambda rows: rows[5].__delitem__(slice(4, None)),
    "missing control": lambda rows: rows.pop(7),
    "twice": lambda rows: rows.append(list(rows[4])),
    "unknown layer": cell("layer", "mrr_bank_9"),
    **{f"value {v}": cell("value", v) for v in ("nan", "1e300")},
    **{
        f"index {i}": cell("index", i)
        for i in ("2;0;0;0", "0;0;0;-1", "0;0", "", "a", "0;0;0;0;0", "0;0;0;1.5")
    },
    "negative detuning": cell("value", "-0.1"),
    "negative current": cell("value", "-0.1", 28),
    "current too high": cell("value", "3.1", 28),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exchange") / "controls.csv"
    pnn.export_controls(network(0), path)
    return path.read_text(encoding="utf-8"), network(1)


def load_changed(text, change, model, path):
    """Loads a changed file, which must fail and change nothing; returns the error."""
    rows = list(csv.reader(io.StringIO(text)))
    change(rows)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    before = controls(model)
    with pytest.raises(ValueError, match="Received") as raised:
        pnn.load_controls(model, path)
    assert_same(before, controls(model))
    return str(raised.value)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_changes_nothing(tmp_path, exported, kind):
    text, model = exported
    error = load_changed(text, BAD[kind], model, tmp_path / "bad.csv")
    if kind in ("wrong unit", "negative detuning", "value nan"):
        assert "line 4" in error


@pytest.mark.parametrize(
    "change, message",
    [
        (cell("index", "1;1", 2), "line 3: expected an element that the hardware has"),
        (lambda rows: rows.pop(2), "expected 6 values of mesh/theta. Received: 5"),
    ],
)
def test_bad_lines_of_a_mesh_change_nothing(tmp_path, change, message):
    model = keras.Sequential([keras.Input((4,)), MZIMesh(4, name="mesh")])
    pnn.export_controls(model, tmp_path / "c.csv")
    text = (tmp_path / "c.csv").read_text("utf-8")
    assert message in load_changed(text, change, model, tmp_path / "bad.csv")


def test_a_file_that_ends_within_a_number_changes_nothing(tmp_path):
    slm = pnn.layers.MaskedSLM(1, name="slm")
    model = keras.Sequential([keras.Input((2, 2)), slm])
    slm.controls["mask"].assign(np.full((1, 2, 2), 0.1))
    path = tmp_path / "c.csv"
    pnn.export_controls(model, path)
    text = path.read_text("utf-8")
    # "1e-01" becomes 1, and masks have neither unit nor converter behind it.
    path.write_text(text[: text.rindex("1e-01") + 1], "utf-8")
    before = controls(model)
    with pytest.raises(ValueError, match=r"line 5: expected a whole line.*Received"):
        pnn.load_controls(model, path)
    assert_same(before, controls(model))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_failed_export_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "c.csv"
    path.write_text("old", "utf-8")
    broken = network()
    broken.get_layer("phases").controls["gain"].assign(value)
    twins = keras.Sequential([keras.Input((3,)), MRRBank(3, name="twin")])
    options = {"dac": None, "control_constraint": None}
    for model, message in (
        (broken, "phases/gain"),
        (keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), "Received"),
        (keras.Sequential([twins, MRRBank(2, name="twin")]), "'twin', 'twin'"),
        (two_rings([-0.5, 2.7], **options), "bank/control: .*`control` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            pnn.export_controls(model, path)
    assert path.read_text("utf-8") == "old" and len(list(tmp_path.iterdir())) == 1


def meshes(seed=0, dtype="float32"):
    start = pnn.layers.mesh_initializers.Haar(seed)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            MZIMesh(6, phase_initializer=start, name="mesh", dtype=dtype),
            MZIMesh(6, "reck", phase_initializer=start, name="triangle", dtype=dtype),
            MZIDense(4, phase_initializer=start, name="dense", dtype=dtype),
            MZIDense(3, phase_initializer=start, name="other", dtype=dtype),
        ]
    )
    rng = np.random.default_rng(seed)
    for layer in model.layers[2:]:
        layer.program(rng.normal(size=(layer.units, 4 if layer.units == 3 else 6)))
    return model


def test_the_gain_of_a_mesh_has_a_line(tmp_path):
    model = meshes()
    assert pnn.export_controls(model, tmp_path / "c.csv") == {}
    rows = rows_of(tmp_path / "c.csv", "dense_sigma")
    (gain,) = [r for r in rows if r["control"] == "gain"]
    value = float(model.get_layer("dense").gain)
    assert value != 1 and np.float32(gain["value"]) == value
    places = ("index", "tile", "row", "column", "unit", "power_mW")
    assert all(gain[name] == "" for name in places)


@pytest.mark.parametrize(
    "name, arrangement", [("mesh", "clements"), ("triangle", "reck")]
)
def test_rows_and_columns_of_a_mesh(tmp_path, name, arrangement):
    model, exists = meshes(), cell_mask(6, arrangement)
    pnn.export_controls(model, tmp_path / "c.csv")
    rows = rows_of(tmp_path / "c.csv", name)
    for control in ("theta", "phi"):
        lines = [r for r in rows if r["control"] == control]
        # One line for each cell, none for a slot without one.
        assert len(lines) == exists.sum() == 15 < exists.size
        stored = np.asarray(model.get_layer(name).controls[control])
        for line in lines:
            k, j = map(int, line["index"].split(";"))
            assert exists[k, j] and np.float32(line["value"]) == stored[k, j]
            place = int(line["row"]), int(line["column"])
            assert place == (2 * j + k % 2, k)
            assert line["tile"] == "" and line["unit"] == "rad"
    gammas = [r for r in rows if r["control"] == "gamma"]
    assert [r["row"] for r in gammas] == list("012345")
    assert all(r["column"] == "" for r in gammas)
