"""Robustness reports: figures against one device after the other, and interruptions."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.robustness import rows as rows_module
from keras_pnn.robustness.study import Study

RNG = np.random.default_rng(0)
X = RNG.random((120, 6)).astype("float32")
Y = (X @ RNG.normal(size=(6, 3))).argmax(1)
QUIET = {"hessian": False, "landscape": False, "verbose": 0}


def network(seed=0, units=(5, 3)):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    hidden = pnn.layers.MRRBank(units[0], activation="relu", name="one")(inputs)
    outputs = pnn.layers.MRRBank(units[1], name="two")(hidden)
    model = keras.Model(inputs, outputs, name=f"network_{seed}")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def model():
    trained = network()
    trained.fit(X, Y, epochs=30, verbose=0)
    return trained


def accuracy_of(model, deviations):
    """The accuracy on a device that is put together by hand."""
    device = pnn.SimulatedDevice(deviations)
    with device.installed(model):
        return model.evaluate(X, Y, verbose=0, return_dict=True)["accuracy"]


VARIATION = pnn.Variation(resonance_shift=0.03)


@pytest.fixture(scope="module")
def report(model):
    return pnn.robustness_report(
        model,
        X,
        Y,
        variation=VARIATION,
        n=4,
        sweeps={
            "temperature": [-1.0, 0.0, 1.5],
            "one/temperature": [2.0],
            "variation": [0.0, 2.0],
            "std:resonance_shift": [0.0, 0.05],
        },
        grid={"temperature": [0.0, 1.0], "half_width_error": [-0.1, 0.0, 0.2]},
        spec=0.9,
        **QUIET,
    )


def one(report):
    (found,) = report.models.values()
    return found


def test_nominal_and_devices_are_those_of_evaluate(model, report):
    found = one(report)
    expected = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert found.nominal == pytest.approx(expected, rel=1e-5)
    chips = VARIATION.sample(model, 4, seed=0)
    for index, chip in enumerate(chips):
        with chip.installed(model):
            expected = model.evaluate(X, Y, verbose=0, return_dict=True)
        for name, value in expected.items():
            assert found.devices[name][index] == pytest.approx(value, rel=1e-5)


def test_a_sweep_adds_to_each_device(model, report):
    scan = one(report).sweeps["temperature"]
    assert scan.axes[0].unit == "K"
    chips = VARIATION.sample(model, 4, seed=0)
    for place, kelvin in enumerate([-1.0, 0.0, 1.5]):
        warm = {("temperature", i): np.float32(kelvin) for i in range(2)}
        assert scan.design["accuracy"][place] == pytest.approx(accuracy_of(model, warm))
        for index, chip in enumerate(chips):
            both = {**chip.deviations, **warm}
            found = scan.devices["accuracy"][index, place]
            assert found == pytest.approx(accuracy_of(model, both))


def test_a_sweep_of_one_layer_leaves_the_other(model, report):
    scan = one(report).sweeps["one/temperature"]
    warm = {("temperature", 0): np.float32(2), ("temperature", 1): np.float32(0)}
    assert scan.design["accuracy"][0] == pytest.approx(accuracy_of(model, warm))


def test_factors_and_spreads_are_of_the_same_draws(model, report):
    factor = one(report).sweeps["variation"]
    assert factor.design is None
    spread = one(report).sweeps["std:resonance_shift"]
    chips = VARIATION.sample(model, 4, seed=0)
    for index, chip in enumerate(chips):
        for scan, times in ((factor, 2.0), (spread, 0.05 / 0.03)):
            wanted = {k: np.float32(times) * v for k, v in chip.deviations.items()}
            found = scan.devices["accuracy"][index, 1]
            assert found == pytest.approx(accuracy_of(model, wanted), abs=1e-6)
    nominal = one(report).nominal["accuracy"]
    assert factor.devices["accuracy"][:, 0] == pytest.approx(nominal)
    assert spread.devices["accuracy"][:, 0] == pytest.approx(nominal)


def test_a_grid_has_all_combinations(model, report):
    grid = one(report).grid
    assert grid.design["accuracy"].shape == (2, 3)
    assert grid.devices["accuracy"].shape == (4, 2, 3)
    chip = VARIATION.sample(model, 4, seed=0)[3]
    shapes = [tuple(v.shape) for v in (model.layers[1].controls["control"],)]
    wanted = {
        **chip.deviations,
        **{("temperature", i): np.float32(1) for i in range(2)},
        ("half_width_error", 0): np.full(shapes[0], 0.2, "float32"),
        ("half_width_error", 1): np.full((5, 3), 0.2, "float32"),
    }
    found = grid.devices["accuracy"][3, 1, 2]
    assert found == pytest.approx(accuracy_of(model, wanted))


def test_sensitivity_is_that_of_one_imperfection_of_one_layer(model, report):
    found = one(report).sensitivity
    assert found.layers == ("one", "two")
    assert found.kinds == (
        "resonance_shift",
        "temperature = -1",
        "temperature = 1.5",
        "temperature = 2",
    )
    # That of the sweep of one layer.
    assert np.isfinite(found.metrics["accuracy"][0, 3])
    assert np.isnan(found.metrics["accuracy"][1, 3])
    chips = VARIATION.sample(model, 4, seed=0)
    zeros = {k: 0 * v for k, v in chips[0].deviations.items()}
    for layer in range(2):
        key = "resonance_shift", layer
        alone = [accuracy_of(model, {**zeros, key: c.deviations[key]}) for c in chips]
        assert found.metrics["accuracy"][layer, 0] == pytest.approx(np.mean(alone))
    warm = {("temperature", 0): np.float32(0), ("temperature", 1): np.float32(1.5)}
    found = found.metrics["accuracy"][1, 2]
    assert found == pytest.approx(accuracy_of(model, warm))


def test_statistics_are_those_of_the_devices(report):
    values = one(report).devices["accuracy"]
    found = report.summary("network_0", "accuracy")
    assert found["p05"] == np.percentile(values, 5)
    assert report.yield_of("network_0").passed == np.sum(values >= 0.9)
    assert report.metric == "accuracy"
    assert report.mode == "max"
    yields = one(report).sweeps["variation"].yields("accuracy", 0.9, "max")
    expected = np.sum(one(report).sweeps["variation"].devices["accuracy"][:, 1] >= 0.9)
    assert yields[1].passed == expected


def test_the_worst_case_is_searched_in_the_radius_of_the_devices(model, report):
    worst = one(report).worst
    elements = np.concatenate(
        [
            np.ravel(array)
            for chip in VARIATION.sample(model, 4, seed=0)
            for array in chip.deviations.values()
        ]
    )
    rms = np.sqrt(np.mean(elements**2))
    assert worst.radius["resonance_shift"] == pytest.approx(rms)
    # Swept in all layers up to 1.5, and in one of them to 2.
    assert worst.radius["one/temperature"] == 2.0
    assert worst.radius["two/temperature"] == 1.5
    assert worst.radius["half_width_error"] == 0.2
    assert worst.metrics["loss"] > one(report).devices["loss"].max()
    with worst.device.installed(model):
        expected = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert worst.metrics == pytest.approx(expected, rel=1e-5)


def test_the_model_is_left_as_it_was(model, report):
    for layer in model.layers[1:]:
        for variable in layer.imperfections.values():
            assert not np.any(np.array(variable))


def test_json_holds_everything(report):
    text = json.dumps(report.to_dict(), allow_nan=False)
    found = json.loads(text)["models"]["network_0"]
    assert found["nominal"] == one(report).nominal
    assert len(found["sweeps"]["temperature"]["devices"]["accuracy"]) == 4
    setting = json.loads(text)["setting"]
    assert setting["batch normalisation"] == "frozen"
    assert setting["devices"] == 4
    assert setting["samples"] == 120


def test_curvature_and_landscape(model):
    found = one(
        pnn.robustness_report(
            model,
            X,
            Y,
            sweeps={"temperature": [0.0]},
            hessian={"k": 2, "trace_samples": 4, "density_steps": 10},
            landscape={"points": 5},
            worst_case=False,
            probe=60,
            verbose=0,
        )
    )
    expected = pnn.hessian_eigenvalues(model, X[:60], Y[:60], k=2, tolerance=0.01)
    values = found.curvature["controls"].eigenvalues.eigenvalues
    np.testing.assert_allclose(values, expected.eigenvalues, rtol=1e-3)
    assert set(found.curvature) == {"controls", "all"}
    assert found.landscape.loss.shape == (5, 5)
    assert found.landscape.directions == "eigenvectors"
    np.testing.assert_array_equal(found.landscape.eigenvalues, values)
    assert found.devices is None


def test_models_are_compared_on_the_same_devices(model):
    other = network(1)
    chips = VARIATION.sample(model, 2, seed=5)
    found = pnn.robustness_report(
        model,
        X,
        Y,
        devices=chips,
        compare={"untrained": other},
        trained_on={"network_0": chips[0], "untrained": chips[1]},
        name="network_0",
        worst_case=False,
        **QUIET,
    )
    assert list(found.models) == ["network_0", "untrained"]
    for name, one_model in (("network_0", model), ("untrained", other)):
        expected = pnn.evaluate_devices(one_model, X, Y, chips, verbose=0)
        np.testing.assert_allclose(
            found.models[name].devices["accuracy"], expected["accuracy"]
        )
    assert found.transfer.models == found.transfer.devices == ("network_0", "untrained")
    expected = [
        pnn.evaluate_devices(m, X, Y, chips, verbose=0)["accuracy"]
        for m in (model, other)
    ]
    np.testing.assert_allclose(found.transfer.metrics["accuracy"], expected)


def test_a_loss_is_a_metric_to_keep_low(model):
    found = pnn.robustness_report(
        model,
        X,
        Y,
        variation=VARIATION,
        n=3,
        metric="loss",
        spec=0.0,
        worst_case=False,
        **QUIET,
    )
    assert found.mode == "min"
    assert found.yield_of("network_0").passed == 0


def test_yield_of_a_model_with_a_known_one():
    # The output is the shared temperature: it is above -0.5244 with P = 0.7.
    inputs = keras.Input((1,))
    model = keras.Model(inputs, Thermometer()(inputs))

    def reading(y, p):
        return keras.ops.mean(p)

    model.compile("sgd", "mse", metrics=[reading])
    x = np.zeros((2, 1), "float32")
    covered = 0
    found = pnn.robustness_report(
        model,
        x,
        x,
        variation=pnn.Variation(temperature=1.0),
        n=600,
        spec=-0.5244005,
        mode="max",
        metric="reading",
        sensitivity=False,
        worst_case=False,
        **QUIET,
    )
    values = one(found).devices["reading"]
    for group in values.reshape(30, 20):
        share = pnn.robustness.Yield.of(group, found.spec, found.mode)
        low, high = share.interval
        covered += low <= 0.7 <= high
    assert covered >= 26
    low, high = found.yield_of(model.name).interval
    assert low <= 0.7 <= high


class Thermometer(pnn.layers.PhysicalLayer):
    def build(self, input_shape):
        self.add_control("gain", (), unit="", initializer="ones")
        self.add_imperfection("temperature", (), unit="K", shared=True)

    def forward(self, inputs, controls, imperfections):
        return controls["gain"] * inputs + imperfections["temperature"]


# What is kept of a study, and measured again.

STUDY = {
    "variation": VARIATION,
    "n": 3,
    "sweeps": {"temperature": [-1.0, 0.0, 1.0]},
    "sensitivity": False,
    # Two devices fit: many blocks.
    "memory_limit": 1e-9,
}


def figures(report):
    values = report.to_dict()
    del values["setting"]
    return values


@pytest.fixture(scope="module")
def whole(model):
    return figures(
        pnn.robustness_report(model, X, Y, worst_case=False, **STUDY, **QUIET)
    )


class Stopped(Exception):
    pass


def test_an_interrupted_study_goes_on(model, whole, tmp_path, monkeypatch):
    measured, real = [], Study._measure

    def counted(self, points):
        if len(measured) == 5:
            raise Stopped
        measured.append(points)
        return real(self, points)

    arguments = {**STUDY, **QUIET, "worst_case": False, "rows": tmp_path}
    monkeypatch.setattr(Study, "_measure", counted)
    with pytest.raises(Stopped):
        pnn.robustness_report(model, X, Y, **arguments)
    # A kill in the middle of a line.
    (path,) = tmp_path.iterdir()
    text = path.read_text("utf-8")
    path.write_text(text[:-40], "utf-8")
    done = len(measured) - 1
    measured.clear()
    monkeypatch.setattr(Study, "_measure", real)
    again = []
    monkeypatch.setattr(
        Study, "_measure", lambda self, p: again.append(p) or real(self, p)
    )
    found = pnn.robustness_report(model, X, Y, **arguments)
    assert figures(found) == whole
    # 1 nominal, 3 devices, 3 points with the design and 3 devices.
    assert sum(map(len, again)) == 16 - done
    again.clear()
    assert figures(pnn.robustness_report(model, X, Y, **arguments)) == whole
    assert not again


def test_other_weights_data_or_arguments_are_another_study(model, tmp_path):
    rows = {**STUDY, "rows": tmp_path, "verbose": 0}
    pnn.robustness_rows(model, X, Y, **rows)
    pnn.robustness_rows(network(3), X, Y, **rows)
    pnn.robustness_rows(model, X[:60], Y[:60], **rows)
    pnn.robustness_rows(model, X, Y, seed=1, **rows)
    pnn.robustness_rows(model, X, Y, batch_size=50, **rows)
    assert len(list(tmp_path.iterdir())) == 5


def test_parts_make_the_whole(model, whole, tmp_path):
    for part in (0, 1, 2):
        folder = tmp_path / f"machine_{part}"
        pnn.robustness_rows(
            model, X, Y, rows=folder, part=(part, 3), verbose=0, **STUDY
        )
    paths = sorted(tmp_path.glob("machine_*/*.jsonl"))
    merged = tmp_path / "merged"
    merged.mkdir()
    missing = pnn.merge_rows(paths[:2], merged / "some.jsonl")
    assert missing > 0
    assert pnn.merge_rows(paths, tmp_path / "all.jsonl") == 0
    header, blocks = rows_module.read_rows(tmp_path / "all.jsonl")
    assert len(blocks) == header["blocks"]
    assert pnn.merge_rows(paths, merged / "all.jsonl") == 0
    found = pnn.robustness_report(
        model, X, Y, worst_case=False, rows=merged, **STUDY, **QUIET
    )
    assert figures(found) == whole
    # Nothing was measured: no file was added.
    assert len(list(merged.iterdir())) == 2


def test_files_of_different_studies_are_not_merged(model, tmp_path):
    for seed in (0, 1):
        pnn.robustness_rows(
            model, X, Y, rows=tmp_path, seed=seed, part=(0, 9), verbose=0, **STUDY
        )
    with pytest.raises(ValueError, match="of one study"):
        pnn.merge_rows(sorted(tmp_path.iterdir()), tmp_path / "all.jsonl")
    with pytest.raises(ValueError, match="at least one file"):
        pnn.merge_rows([], tmp_path / "all.jsonl")
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    with pytest.raises(ValueError, match="that `robustness_rows` wrote"):
        pnn.merge_rows([other], tmp_path / "all.jsonl")


def test_what_is_damaged_is_measured_again(model, whole, tmp_path):
    arguments = {"rows": tmp_path, "worst_case": False, **STUDY, **QUIET}
    pnn.robustness_report(model, X, Y, **arguments)
    (path,) = tmp_path.iterdir()
    header, *lines = path.read_text("utf-8").splitlines()
    changed = lines[0].replace('"accuracy": 0.', '"accuracy": 0.0', 1)
    assert changed != lines[0]
    beyond = json.dumps({**json.loads(lines[1]), "block": 77})
    spoilt = [header, changed, "null", "5", "{}", "[1]", beyond, *lines[2:]]
    path.write_text("\n".join(spoilt) + "\n", "utf-8")
    _, blocks = rows_module.read_rows(path)
    assert sorted(blocks) == list(range(2, len(lines)))
    assert pnn.merge_rows([path], tmp_path / "merged" / "all.jsonl") == 2
    assert figures(pnn.robustness_report(model, X, Y, **arguments)) == whole


def test_files_that_are_none(model, tmp_path):
    with pytest.raises(ValueError, match="must be a list of files"):
        pnn.merge_rows("rows.jsonl", tmp_path / "all.jsonl")
    with pytest.raises(ValueError, match=r"must end in \.jsonl"):
        pnn.merge_rows([], tmp_path / "all.json")
    with pytest.raises(ValueError, match="that `robustness_rows` wrote"):
        pnn.merge_rows([tmp_path / "none.jsonl"], tmp_path / "all.jsonl")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="`rows` must be a folder"):
        pnn.robustness_rows(model, X, Y, rows=file, verbose=0, **STUDY)


def test_rows_of_all_models_of_a_report(model, tmp_path):
    models = {"compare": {"other": network(5)}, "name": "mine"}
    device = VARIATION.sample(model, 1)[0]
    study = {**models, "variation": VARIATION, "n": 2, "trained_on": {"other": device}}
    rows = []
    for part in (0, 1):
        rows += pnn.robustness_rows(
            model, X, Y, rows=tmp_path, part=(part, 2), verbose=0, **study
        )
    assert {row["model"] for row in rows} == {"mine", "other"}
    before = sorted(tmp_path.iterdir())
    found = pnn.robustness_report(
        model, X, Y, rows=tmp_path, worst_case=False, **study, **QUIET
    )
    assert sorted(tmp_path.iterdir()) == before
    nominal = [r for r in rows if (r["model"], r["section"]) == ("other", "nominal")]
    assert found.models["other"].nominal == nominal[0]["metrics"]


def test_a_device_at_the_specification_keeps_it(model):
    # 19 of 20 in float32 is less than 0.95.
    right = model.predict(X[:20], verbose=0).argmax(1)
    labels = np.where(np.arange(20) == 7, (right + 1) % 3, right)
    found = pnn.robustness_report(
        model,
        X[:20],
        labels,
        variation=pnn.Variation(resonance_shift=1e-9),
        n=1,
        sweeps={"temperature": [0.0]},
        spec=0.95,
        worst_case=False,
        **QUIET,
    )
    assert found.models["network_0"].nominal["accuracy"] < 0.95
    assert found.yield_of("network_0").passed == 1
    sweep = found.models["network_0"].sweeps["temperature"]
    assert sweep.tolerance("accuracy", 0.95, "max") == (0, 0)


def measured_curve():
    """A model of rings whose curve was measured over 4 nm."""
    control = np.linspace(0, 4, 80)
    weight = 1 - 2 / (1 + ((control - 2) / 0.5) ** 2)
    tuning = pnn.MeasuredTuning(control, weight, "nm")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, pnn.layers.MRRBank(3, tuning=tuning)(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model


@pytest.mark.parametrize(
    "scan",
    [
        {"sweeps": {"temperature": [-60.0, 0.0, 1.0]}},
        {"grid": {"temperature": [0.0, 60.0], "half_width_error": [0.0, 0.1]}},
    ],
    ids=["sweep", "grid"],
)
def test_a_scan_that_leaves_the_model(scan):
    (argument,) = scan
    with pytest.raises(ValueError, match=f"`{argument}` must stay where.*60"):
        pnn.robustness_report(measured_curve(), X[:, :4], Y, spec=0.1, **scan, **QUIET)


def test_a_device_whose_outputs_are_nan_has_no_accuracy():
    model = measured_curve()
    there = pnn.devices.sweep(model, "temperature", [0.0, 60.0])
    found = pnn.robustness_report(
        model, X[:, :4], Y, devices=there, spec=0.0, worst_case=False, **QUIET
    )
    accuracy = one(found).devices["accuracy"]
    assert np.isfinite(accuracy[0]) and np.isnan(accuracy[1])
    (name,) = found.models
    assert found.yield_of(name).passed == 1


def test_what_does_not_exist_is_refused_before_anything_is_measured(model, monkeypatch):
    monkeypatch.setattr(Study, "_measure", None)
    with pytest.raises(ValueError, match=r"half_width_error.*above"):
        pnn.robustness_report(
            model,
            X,
            Y,
            variation=pnn.Variation(half_width_error=0.2),
            n=2,
            sweeps={"half_width_error": [-0.99, 0.0]},
            **QUIET,
        )


def test_two_layers_of_one_name_are_two_rows():
    def part():
        inputs = keras.Input((4,))
        bank = pnn.layers.MRRBank(4, name="bank")
        return keras.Model(inputs, bank(inputs))

    inputs = keras.Input((4,))
    outputs = part()(part()(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    x = np.eye(4, dtype="float32")
    found = pnn.robustness_report(
        model, x, x, variation=VARIATION, n=2, worst_case=False, **QUIET
    )
    found = one(found).sensitivity
    assert found.layers == ("bank (1)", "bank (2)")
    assert np.isfinite(found.metrics["loss"]).all()


KILLED = """
import os, sys
sys.path.insert(0, {here!r})
import test_robustness as t
from keras_pnn.robustness import rows
import keras, keras_pnn as pnn

model = t.network()
model.load_weights({weights!r})
add, count = rows.Store.add, []

def dies(self, block, lines):
    add(self, block, lines)
    count.append(block)
    if len(count) == 3:
        os.kill(os.getpid(), 9)

rows.Store.add = dies
pnn.robustness_rows(model, t.X, t.Y, rows={folder!r}, verbose=0, **t.STUDY)
"""


def test_a_killed_study_goes_on_in_another_process(model, whole, tmp_path):
    weights = tmp_path / "model.weights.h5"
    model.save_weights(weights)
    folder = tmp_path / "rows"
    here = str(pathlib.Path(__file__).parent)
    text = KILLED.format(here=here, weights=str(weights), folder=str(folder))
    ended = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, timeout=300
    )
    assert ended.returncode == -9, ended.stderr[-2000:]
    (path,) = folder.iterdir()
    assert len(path.read_text("utf-8").splitlines()) == 4
    found = pnn.robustness_report(
        model, X, Y, worst_case=False, rows=folder, **STUDY, **QUIET
    )
    assert figures(found) == whole
    assert len(list(folder.iterdir())) == 1


# Bad input.


class Vector(keras.metrics.Metric):
    """A metric of two numbers."""

    def __init__(self):
        super().__init__(name="vector")
        self.total = self.add_weight(shape=(2,), initializer="zeros", name="total")

    def update_state(self, y, p, sample_weight=None):
        self.total.assign_add([1.0, 2.0])

    def result(self):
        return self.total + 0.0


def vectorial():
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy", Vector()])
    return model


HARDWARE = type("Bench", (pnn.HardwareDevice,), {"measure": lambda *a: None})


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"sweeps": {"humidity": [1.0]}}, "nothing called 'humidity'"),
        ({"sweeps": {"one/humidity": [1.0]}}, "nothing called"),
        ({"sweeps": {"temperature": [0.0, float("nan")]}}, "all finite"),
        ({"sweeps": {"temperature": []}}, "at least one value"),
        ({"sweeps": {"temperature": "warm"}}, "must be numbers"),
        ({"sweeps": {"temperature": [[1, 2, 3]]}}, "Received"),
        ({"sweeps": ["temperature"]}, "must be a dictionary"),
        ({"sweeps": {"variation": [-1.0]}}, "0 or more"),
        ({"sweeps": {"std:resonance_shift": [-1.0]}}, "0 or more"),
        ({"sweeps": {"std:humidity": [1.0]}}, "nothing called"),
        ({"grid": {"temperature": [0.0]}}, "must have two names"),
        ({"n": 0}, "`n` must be a whole number"),
        ({"variation": None, "devices": []}, "at least one device"),
        ({"devices": [1]}, "not both"),
        ({"variation": None, "devices": [1]}, "must be simulated devices"),
        ({"variation": None, "devices": [HARDWARE()]}, "must be simulated devices"),
        ({"variation": 0.1}, "must be a `Variation`"),
        ({"variation": pnn.Variation(humidity=1.0)}, "nothing called"),
        ({"variation": None, "sweeps": {"variation": [1.0]}}, "neither"),
        ({"metric": "top_5"}, "`metric` must be one of"),
        ({"metric": lambda y, p: 0}, "`metric` must be one of"),
        ({"mode": "up"}, "'auto', 'max' or 'min'"),
        ({"spec": float("nan")}, "`spec`"),
        ({"sweep_devices": 9}, "`sweep_devices`"),
        ({"probe": 0}, "`probe`"),
        ({"batch_norm": "melted"}, "batch_norm"),
        ({"hessian": {"steps": 3}}, "`hessian`"),
        ({"landscape": 3}, "`landscape`"),
        ({"worst_case": {"humidity": 1.0}}, "nothing called"),
        ({"worst_case": {"temperature": -1.0}}, "positive number"),
        ({"worst_case": 3}, "`worst_case`"),
        ({"compare": {"network_0": network(0)}}, "names of their own"),
        ({"compare": {"other": network(0, (7, 3))}, "devices": "given"}, "architect"),
        ({"trained_on": {"nobody": pnn.SimulatedDevice({})}}, "`trained_on`"),
        ({"y": Y[:50]}, "one length"),
        ({"x": X[:0], "y": Y[:0]}, "at least 1"),
        ({"x": X[:, :3]}, "must fit"),
        ({"y": Y + 7}, "must fit|must be finite"),
        ({"y": np.eye(4)[Y]}, "must fit"),
        ({"x": np.full_like(X, np.nan)}, "finite"),
    ],
)
def test_bad_input_is_refused_before_any_long_work(
    model, monkeypatch, arguments, message
):
    def measured(*_):
        raise AssertionError("a block was measured")

    monkeypatch.setattr(Study, "_measure", measured)
    given = {"x": X, "y": Y, "variation": VARIATION, "n": 2, **QUIET, **arguments}
    if given.get("devices") == "given":
        given["devices"] = VARIATION.sample(model, 2)
        given["variation"] = None
    with pytest.raises(ValueError, match=message):
        pnn.robustness_report(model, **given)


def test_a_metric_that_is_a_vector_is_refused():
    arguments = {"variation": VARIATION, "n": 2, **QUIET}
    with pytest.raises(ValueError, match="one number for a device"):
        pnn.robustness_report(vectorial(), X, Y, metric="vector", **arguments)


def test_a_metric_that_does_not_say_which_is_better(model):
    other = network()
    other.compile("sgd", "mse", metrics=[lambda y, p: keras.ops.mean(p)])
    with pytest.raises(ValueError, match="`mode` must be 'max' or 'min'"):
        pnn.robustness_report(other, X, np.eye(3)[Y], variation=VARIATION, n=2, **QUIET)


def test_a_model_must_be_compiled(model):
    bare = keras.Model(model.inputs, model.outputs)
    with pytest.raises(ValueError, match="must be compiled"):
        pnn.robustness_report(bare, X, Y, variation=VARIATION, **QUIET)


@pytest.mark.parametrize("part", [(0, 0), (2, 2), (-1, 2), (0.5, 2), (0,)], ids=str)
def test_parts_that_are_none(model, tmp_path, part):
    with pytest.raises(ValueError, match="`part`"):
        pnn.robustness_rows(model, X, Y, rows=tmp_path, part=part, **STUDY)
