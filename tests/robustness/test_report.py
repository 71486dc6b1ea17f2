import csv
import dataclasses
import html.parser
import io
import json
import re
import sys

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.curvature.eigenvalues import HessianResult
from keras_pnn.curvature.landscape import Landscape
from keras_pnn.curvature.spectrum import DensityResult, TraceResult
from keras_pnn.devices.simulated import SimulatedDevice
from keras_pnn.robustness.report.figures import pictures, spaced, svg
from keras_pnn.robustness.report.html import html as page
from keras_pnn.robustness.report.setting import data_setting, joint
from keras_pnn.robustness.report.text import long_rows, text
from keras_pnn.robustness.report.words import Display, chosen, interval, number
from keras_pnn.robustness.results import (
    Axis,
    Curvature,
    ModelRobustness,
    RobustnessResult,
    Scan,
    Sensitivity,
    Transfer,
    WorstCase,
)

# Four devices: with a specification of 0.95, three pass.
DEVICES = np.array([0.99, 0.97, 0.96, 0.80])
TEMPERATURES = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
OFFSETS = np.array([0.02, 0.01, 0.0, -0.03])
SWEEP = np.array([0.90, 0.95, 0.96, 0.94, 0.80]) + OFFSETS[:, None]


def both(accuracy):
    accuracy = np.asarray(accuracy, "float64")
    return {"loss": 1 - accuracy, "accuracy": accuracy}


def curvature():
    made = {
        "variables": ("mrr/control",),
        "parameters": 40,
        "loss": 0.0625,
        "samples": 100,
        "batch_size": 10,
        "batch_norm": "frozen",
        "seed": 0,
    }
    vectors = [[np.zeros(40)]]
    eigenvalues = HessianResult(
        eigenvalues=np.array([12.5, 3.25]),
        eigenvectors=vectors * 2,
        residuals=np.array([1e-4, 0.2]),
        converged=np.array([True, False]),
        iterations=9,
        tolerance=1e-3,
        smallest=np.array([-0.75]),
        smallest_eigenvectors=vectors,
        smallest_residuals=np.array([2e-3]),
        smallest_converged=np.array([True]),
        **made,
    )
    grid = np.linspace(-2, 14, 200)
    bell = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    nodes = np.array([0.0, 12.5])
    density = DensityResult(
        grid=grid,
        density=bell,
        standard_error=np.full(200, np.nan),
        nodes=nodes,
        weights=np.array([0.9, 0.1]),
        broadening=1.0,
        vectors=1,
        steps=2,
        **made,
    )
    trace = TraceResult(20.5, 1.25, np.array([20.0, 21.0]), **made)
    return Curvature(eigenvalues, trace, density)


def landscape(dimensions=2):
    x = np.array([-1.0, 0.0, 1.0])
    bowl = 0.5 + x[:, None] ** 2 + x**2
    bowl[0, 0] = np.nan
    return Landscape(
        alphas=x,
        betas=x if dimensions == 2 else None,
        loss=bowl if dimensions == 2 else bowl[1],
        directions="random",
        vectors=[[np.zeros(40)]] * dimensions,
        eigenvalues=None,
        residuals=None,
        converged=None,
        variables=("mrr/control",),
        parameters=40,
        samples=100,
        batch_size=10,
        batch_norm="frozen",
        seed=0,
    )


def full_model(dimensions=2):
    phase, splitter = (
        Axis("phase", "rad", np.array([-0.1, 0.0, 0.1])),
        Axis("splitter", "rad", np.array([0.0, 0.2])),
    )
    grid = np.array([[0.7, 0.5], [0.98, 0.9], [0.72, 0.52]])
    spread = np.stack([[0.99, 0.97], [0.99, 0.96], [0.99, 0.94], [0.99, 0.9]])
    drops = np.array([[0.95, np.nan], [0.975, 0.88]])
    return ModelRobustness(
        nominal={"loss": 0.02, "accuracy": 0.98},
        devices=both(DEVICES),
        labels=("a", "b", "c", "d"),
        sweeps={
            "temperature": Scan(
                (Axis("temperature", "K", TEMPERATURES),),
                both([0.9, 0.95, 0.98, 0.95, 0.9]),
                both(SWEEP),
            ),
            "std:phase": Scan(
                (Axis("std:phase", "rad", np.array([0.0, 0.1])),), None, both(spread)
            ),
            # Points on no line.
            "shift": Scan(
                (Axis("shift", "px", np.array([[1.0, 0.0], [0.0, 1.0]])),),
                both([0.9, 0.8]),
                None,
            ),
        },
        grid=Scan((phase, splitter), both(grid), None),
        worst=WorstCase(
            {"temperature": 1.5},
            {"loss": 1.75, "accuracy": 0.415},
            np.ones((3, 21)),
            64,
            SimulatedDevice({("temperature", 0): np.array(1.5)}),
        ),
        sensitivity=Sensitivity(
            ("conv", "bank"), ("shift", "temperature = 2"), both(drops), 4
        ),
        curvature={"controls": curvature(), "all": curvature()},
        landscape=landscape(dimensions),
    )


def result(names=("plain",), transfer=True, **changes):
    matrix = np.array([[0.98, 0.61], [0.52, 0.97]])
    values = {
        "models": {name: full_model() for name in names},
        "metric": "accuracy",
        "mode": "max",
        "spec": 0.95,
        "transfer": Transfer(("a", "b"), ("a", "b"), both(matrix))
        if transfer
        else None,
        "setting": {"samples": 100, "versions": {"keras": "3.12"}, "seconds": 1.25},
    }
    return RobustnessResult(**{**values, **changes})


def bare(**changes):
    model = ModelRobustness(nominal={"loss": 0.02, "accuracy": 0.98})
    values = {"models": {"plain": model}, "setting": {}, **changes}
    return result(transfer=False, **values)


def cells(written, name):
    """The cells of the first row of that name."""
    for line in written.splitlines():
        parts = [part.strip() for part in line.strip("│").split("│")]
        if parts[0] == name:
            return parts[1:]
    raise AssertionError(f"no row {name!r} in\n{written}")


def section(written, title):
    rest = written[written.index(f"{title} ━") :]
    following = rest.find("━\n", rest.index("\n"))
    return rest if following < 0 else rest[:following]


class Page(html.parser.HTMLParser):
    """Checks that tags close in the order in which they were opened."""

    VOID = ("meta", "br", "hr", "img")

    def __init__(self, written):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(written)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.words.append(data)


# Words and numbers.


def test_numbers_have_four_digits_and_no_negative_zero():
    assert number(12.34567) == "12.35"
    assert number(-0.0) == "0"
    assert number(np.nan) == "-"
    assert number(None) == "-"


def test_accuracies_are_in_percent_and_other_metrics_are_not():
    found = result()
    assert Display.of(found).number(0.98, unit=True) == "98.00 %"
    assert Display.of(found).label == "accuracy (%)"
    assert Display.of(found, "loss").number(0.98, unit=True) == "0.98"
    # A metric of that name that counts in percent already is left as it is.
    model = ModelRobustness(nominal={"accuracy": 98.0})
    assert Display.of(bare(models={"m": model})).number(98.0) == "98"


@pytest.mark.parametrize("n", [1, 2, 9, 10, 21, 1000])
def test_at_most_nine_points_are_shown_with_both_ends(n):
    at = chosen(n)
    assert len(at) == min(n, 9)
    assert (at[0], at[-1]) == (0, n - 1)


@pytest.mark.parametrize(
    "values, expected",
    [
        # Straight between points: from 0.96 at 0 down to 0.90 at 1 it is 0.95 at 1/6.
        ([0.9, 0.96, 0.90], ("-0.1667 … 0.1667", "0.3333")),
        ([0.96, 0.96, 0.90], ("≤ -1 … 0.1667", "≥ 1.167")),
        ([0.96, 0.96, 0.95], ("≤ -1 … ≥ 1", "≥ 2")),
        ([0.99, 0.90, 0.99], ("-", "-")),
        ([0.90, np.nan, 0.99], ("-", "-")),
    ],
)
def test_interval_marks_the_ends_of_the_range(values, expected):
    axis = Axis("temperature", "K", np.array([-1.0, 0.0, 1.0]))
    scan = Scan((axis,), both(values), None)
    assert interval(scan, "accuracy", 0.95, "max") == expected


def test_interval_of_a_spread_starts_at_zero_itself():
    axis = Axis("std:phase", "rad", np.array([0.0, 0.1, 0.2]))
    scan = Scan((axis,), None, both([[0.99, 0.97, 0.91]]))
    found = interval(scan, "accuracy", 0.95, "max")
    assert found == ("0 … 0.1333", "0.1333")


# Text.


def test_text_of_devices():
    # mean 0.93, population standard deviation 0.0758, percentiles linear:
    # 5 % of 3 steps is 0.15 of the way from 0.80 to 0.96.
    devices = section(text(result()), "DeviceSet")
    assert cells(devices, "nominal") == ["98.00"]
    assert cells(devices, "mean") == ["93.00"]
    deviation = np.sqrt(np.mean((DEVICES - 0.93) ** 2))
    assert cells(devices, "std") == [f"{100 * deviation:.2f}"]
    assert cells(devices, "median") == ["96.50"]
    assert cells(devices, "p05") == ["82.40"]
    assert cells(devices, "p95") == ["98.70"]
    assert cells(devices, "min") == ["80.00"]
    # Wilson's interval of 3 of 4, as statsmodels gives it: 0.3006 … 0.9544.
    assert cells(devices, "yield") == ["75.0 % (3/4)"]
    assert cells(devices, "yield, 95 % interval") == ["30.1 … 95.4 %"]


def test_text_of_a_sweep():
    sweep = section(text(result()), "Sweep: temperature")
    assert cells(sweep, "") == ["-2", "-1", "0", "1", "2"]
    assert cells(sweep, "design") == ["90.00", "95.00", "98.00", "95.00", "90.00"]
    assert cells(sweep, "mean") == [f"{v:.2f}" for v in 100 * SWEEP.mean(0)]
    # Offsets of -0.03, 0, 0.01 and 0.02: median 0.005, 5 % of 3 steps is -0.0255,
    # 95 % is 0.0185, least -0.03.
    for key, offset in (
        ("median", 0.5),
        ("p05", -2.55),
        ("p95", 1.85),
        ("min", -3.0),
    ):
        shown = np.array(cells(sweep, key), "float64")
        expected = np.array([90, 95, 96, 94, 80]) + offset
        np.testing.assert_allclose(shown, expected, atol=0.0051)
    with pytest.raises(AssertionError):
        cells(sweep, "max")
    # The mean over the range by trapezia.
    mean = SWEEP.mean(0)
    area = (mean[1:] + mean[:-1]).sum() / 2 / 4
    assert cells(sweep, "mean accuracy over the range") == [f"{100 * area:.2f} %"]


def test_text_of_a_sweep_has_the_loss_in_a_table_of_its_own():
    sweep = section(text(result()), "Sweep: temperature")
    assert cells(sweep, "plain: design") == ["0.1", "0.05", "0.02", "0.05", "0.1"]
    # Losses are 1 - accuracy: the mean's, and the other tail.
    mean = 1 - SWEEP.mean(0)
    assert cells(sweep, "plain: mean") == [f"{v:.4g}" for v in mean]
    tail = 1 - np.array([0.90, 0.95, 0.96, 0.94, 0.80]) + 0.0255
    assert cells(sweep, "plain: p95") == [f"{v:.4g}" for v in tail]
    assert sweep.count("loss against temperature (K)") == 1


def test_text_of_a_sweep_where_less_is_better_has_the_largest_and_one_loss():
    found = text(result(metric="loss", mode="min", spec=0.05))
    sweep = section(found, "Sweep: temperature")
    largest = 1 - np.array([0.90, 0.95, 0.96, 0.94, 0.80]) + 0.03
    assert cells(sweep, "max") == [f"{v:.4g}" for v in largest]
    assert sweep.count("loss against temperature (K)") == 1
    with pytest.raises(AssertionError):
        cells(sweep, "min")


def test_text_of_a_spread_has_yields():
    spread = section(text(result()), "Spread: σ of phase")
    assert cells(spread, "plain") == ["100.0", "50.0"]
    # Wilson: 4 of 4 is 51.0 … 100, 2 of 4 is 15.0 … 85.0.
    assert cells(spread, "plain: low") == ["51.0", "15.0"]
    assert cells(spread, "plain: high") == ["100.0", "85.0"]


def test_text_of_points_on_no_line_has_no_tolerance():
    sweep = section(text(result()), "Sweep: shift")
    assert cells(sweep, "") == ["(1, 0)", "(0, 1)"]
    assert "tolerance" not in sweep.lower()


def test_text_of_the_rest():
    written = text(result())
    grid = section(written, "Grid: phase × splitter")
    assert cells(grid, "-0.1") == ["70.00", "50.00"]
    worst = section(written, "Adversarial worst case")
    assert cells(worst, "radius: temperature") == ["1.5"]
    assert cells(worst, "accuracy, worst case") == ["41.50 %"]
    assert cells(worst, "loss, worst case") == ["1.75"]
    assert cells(worst, "starts × steps of the search") == ["3 × 20"]
    drops = section(written, "Sensitivity per layer and imperfection")
    assert cells(drops, "conv") == ["3.00", "-"]
    assert cells(drops, "bank") == ["0.50", "10.00"]
    found = section(written, "Curvature of the loss")
    assert cells(found, "λ_1") == ["12.5 (0.0001)"]
    assert cells(found, "λ_2") == ["3.25 (0.2) not converged"]
    assert cells(found, "λ_min") == ["-0.75 (0.002)"]
    assert cells(found, "trace") == ["20.5 ± 1.2"]
    around = section(written, "Loss landscape")
    assert cells(around, "loss at the centre") == ["0.5"]
    assert cells(around, "largest loss") == ["2.5"]
    transfer = section(written, "Transfer between devices")
    assert cells(transfer, "a") == ["98.00", "61.00"]
    assert cells(transfer, "b") == ["52.00", "97.00"]
    assert "  versions: keras = 3.12" in written
    assert "  seconds: 1.25" in written


@pytest.mark.parametrize(
    "kinds, expected",
    [
        (("shift",), "Each figure is the mean over 4 devices."),
        (
            ("temperature = 2",),
            "Each column is an end of a sweep: the design with this deviation.",
        ),
        (
            ("shift", "temperature = 2"),
            "A column without a value is the mean over 4 devices; a column with one is "
            "an end of a sweep: the design with this deviation.",
        ),
    ],
)
def test_text_of_a_sensitivity_says_what_each_column_is(kinds, expected):
    drops = both(np.full((1, len(kinds)), 0.9))
    part = Sensitivity(("bank",), kinds, drops, 4)
    model = ModelRobustness({"loss": 0.02, "accuracy": 0.98}, sensitivity=part)
    written = " ".join(text(bare(models={"plain": model})).split())
    assert expected in written


def test_text_of_a_transfer_says_which_models_have_no_device():
    matrix = both([[0.9, 0.8], [0.7, 0.9], [0.6, 0.5]])
    part = Transfer(("a", "b", "c"), ("a", "b"), matrix)
    some = dataclasses.replace(result(), transfer=part)
    written = " ".join(section(text(some), "Transfer between devices").split())
    assert "Trained on none of these devices: c." in written
    every = section(text(result()), "Transfer between devices")
    assert "none of these" not in " ".join(every.split())


def test_text_puts_models_side_by_side():
    found = result(("plain", "robust"))
    found.models["robust"].nominal["accuracy"] = 0.975
    written = text(found)
    assert cells(written, "") == ["plain", "robust"]
    assert cells(written, "nominal accuracy") == ["98.00 %", "97.50 %"]
    sweep = section(written, "Sweep: temperature")
    # One table of the metric for each model, one of the loss for all.
    for name in ("plain", "robust"):
        assert sweep.count(f"{name}: accuracy (%) against temperature (K)") == 1
    assert cells(sweep, "plain: design") == cells(sweep, "robust: design")


def test_text_of_a_model_that_lacks_what_another_has():
    found = result(("plain",), transfer=False)
    found.models["other"] = ModelRobustness(nominal={"loss": 0.5, "accuracy": 0.5})
    written = text(found)
    assert cells(written, "devices: mean") == ["93.00 %", "-"]
    assert cells(section(written, "Curvature of the loss"), "λ_min")[1] == "-"
    assert len(long_rows(found)) == len(long_rows(result(transfer=False))) + 1


def test_text_leaves_out_what_is_absent():
    written = text(bare())
    assert re.findall(r"^(\S.*?) ━", written, re.MULTILINE) == ["Summary"]
    assert cells(written, "nominal accuracy") == ["98.00 %"]
    assert "yield at" not in written


@pytest.mark.parametrize("count", [1, 2, 5])
def test_text_fits_a_hundred_columns(monkeypatch, count):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    written = text(result([f"a model with the name {i}" for i in range(count)]))
    assert max(map(len, written.splitlines())) <= 100
    assert "\x1b" not in written
    assert "…\n" not in written


def test_text_shows_names_as_they_are():
    names = ("[bold]x[/bold]", ":smile:", "a & b")
    written = text(result(names))
    assert cells(written, "") == list(names)


def test_a_specification_of_a_smallest_value():
    found = result(metric="loss", mode="min", spec=0.05)
    written = text(found)
    # Losses 0.01, 0.03, 0.04, 0.20: three keep 0.05; the worst is the largest.
    assert cells(written, "yield at loss ≤ 0.05") == ["75.0 % (3/4)"]
    assert cells(written, "devices: worst") == ["0.2"]
    assert cells(written, "devices: 95th percentile") == ["0.176"]
    drops = section(written, "Sensitivity per layer and imperfection")
    # Losses of 0.05, 0.025 and 0.12 in place of 0.02.
    assert cells(drops, "conv") == ["0.03", "-"]
    assert cells(drops, "bank") == ["0.005", "0.1"]


# How it was made.


def test_a_setting_of_several_models_says_where_they_differ():
    one = {"seed": 0, "points": 5, "calibration samples": 9}
    other = {"seed": 0, "points": 7}
    assert joint({"a": one, "b": other}) == {
        "seed": 0,
        "points per model": {"a": 5, "b": 7},
        "calibration samples per model": {"a": 9, "b": None},
    }
    assert joint({"a": one}) == one


def test_shapes_of_data():
    x = {"left": np.zeros((2, 5, 5)), "right": np.zeros((2, 3))}
    found = data_setting((x, np.zeros(2), None), 120)
    assert found == {"shape of x": "(120, 5, 5) (120, 3)", "shape of y": "(120,)"}
    assert data_setting((np.zeros((2, 4)), None, None), 3)["shape of y"] == "none"


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_report_says_how_it_was_made(calibrated):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    inputs = keras.Input((4,))
    hidden = keras.layers.BatchNormalization()(pnn.layers.MRRBank(3)(inputs))
    model = keras.Model(inputs, pnn.layers.MRRBank(2)(hidden), name="small")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    extra = {"batch_norm": "reestimated", "calibration": x[:7]} if calibrated else {}

    def setting(data, **arguments):
        return pnn.robustness_report(
            model,
            data,
            y,
            sweeps={"temperature": [1.0]},
            hessian=False,
            landscape=False,
            sensitivity=False,
            spec=0.75,
            probe=8,
            verbose=0,
            **arguments,
            **extra,
        ).setting

    found = setting(x)
    assert found["shape of x"] == "(12, 4)" and found["shape of y"] == "(12,)"
    assert re.fullmatch("[0-9a-f]{12}", found["SHA-256 of the data"])
    keys = ("metric", "specification", "mode", "probe samples")
    assert [found[key] for key in keys] == ["accuracy", 0.75, "max", 8]
    assert found["search for the worst case"] == "3 starts × 20 steps"
    assert found.get("calibration samples") == (7 if calibrated else None)
    # One value of the data is another.
    changed = x.copy()
    changed[11, 3] += 1e-3
    other = setting(changed, worst_case=False)
    assert other["SHA-256 of the data"] != found["SHA-256 of the data"]
    assert "search for the worst case" not in other


# Rows, CSV, JSON.


def test_rows_count_every_measured_point():
    rows = long_rows(result(("plain", "robust")))
    count = {}
    for row in rows:
        count[row["section"]] = count.get(row["section"], 0) + 1
    assert count == {
        "nominal": 2,
        "device": 2 * 4,
        # Design and four devices, four devices alone, design alone.
        "sweep": 2 * (5 * 5 + 2 * 4 + 2),
        "grid": 2 * 6,
        "worst": 2,
        # One of four was not measured.
        "sensitivity": 2 * 3,
        "transfer": 4,
    }
    keys = [
        "model",
        "section",
        "name",
        "value",
        "value_2",
        "device",
        "loss",
        "accuracy",
    ]
    assert all(list(row) == keys for row in rows)


def test_rows_hold_the_values():
    rows = long_rows(result())

    def find(**wanted):
        found = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
        assert len(found) == 1
        return found[0]["accuracy"]

    assert find(section="nominal") == 0.98
    assert find(section="device", device="d") == 0.80
    sweep = {"section": "sweep", "name": "temperature"}
    assert find(**sweep, value=-1.0, device="design") == 0.95
    assert find(**sweep, value=1.0, device="c") == SWEEP[2, 3]
    assert find(section="sweep", name="shift", value="(0, 1)") == 0.8
    grid = {"section": "grid", "name": "phase × splitter"}
    assert find(**grid, value=0.1, value_2=0.2) == 0.52
    assert find(section="sensitivity", name="bank", value="temperature = 2") == 0.88
    assert find(section="worst", name="temperature = 1.5") == 0.415
    assert find(section="transfer", model="b", device="a") == 0.52


def test_rows_of_devices_without_names():
    found = result()
    model = dataclasses.replace(found.models["plain"], labels=())
    rows = long_rows(result(models={"plain": model}))
    devices = [row["device"] for row in rows if row["section"] == "device"]
    assert devices == [f"device {i}" for i in range(4)]


def test_csv_is_the_rows(tmp_path):
    found = result(('a "name", with commas', "σ"))
    found.save(tmp_path / "report.csv")
    written = (tmp_path / "report.csv").read_text("utf-8")
    back = list(csv.DictReader(io.StringIO(written)))
    rows = long_rows(found)
    assert len(back) == len(rows)
    for read, row in zip(back, rows, strict=True):
        assert read["model"] == row["model"]
        assert read["value"] == ("" if row["value"] is None else str(row["value"]))
        assert float(read["accuracy"]) == row["accuracy"]


def test_json_is_the_dict_without_nan(tmp_path):
    found = result()
    found.save(tmp_path / "report.json")

    def refuse(word):
        raise AssertionError(word)

    written = (tmp_path / "report.json").read_text("utf-8")
    back = json.loads(written, parse_constant=refuse)
    assert back == found.to_dict()
    model = back["models"]["plain"]
    assert model["devices"]["accuracy"] == DEVICES.tolist()
    assert model["sensitivity"]["metrics"]["accuracy"][0] == [0.95, None]
    assert model["landscape"]["loss"][0][0] is None
    assert model["worst"]["device"] == {"temperature[0]": 1.5}


def test_json_holds_what_follows_from_the_devices():
    found = result().to_dict()["models"]["plain"]
    statistics = found["statistics"]["accuracy"]
    assert statistics == pytest.approx(
        {
            "mean": 0.93,
            "std": np.sqrt(np.mean((DEVICES - 0.93) ** 2)),
            "median": 0.965,
            "p05": 0.824,
            "p95": 0.987,
            "min": 0.80,
            "max": 0.99,
        }
    )
    assert found["statistics"]["loss"]["p95"] == pytest.approx(0.176)
    # Wilson's interval of 3 of 4, as statsmodels gives it.
    expected = {"passed": 3, "n": 4, "yield": 0.75, "low": 0.30064, "high": 0.95441}
    assert found["yield"] == pytest.approx(expected, abs=1e-5)


def test_json_holds_what_follows_from_a_sweep():
    sweeps = result().to_dict()["models"]["plain"]["sweeps"]
    found = sweeps["temperature"]
    mean = SWEEP.mean(0)
    assert found["statistics"]["accuracy"]["mean"] == pytest.approx(mean.tolist())
    least = [0.87, 0.92, 0.93, 0.91, 0.77]
    assert found["statistics"]["accuracy"]["min"] == pytest.approx(least)
    # The mean is 0.90, 0.95, 0.96, 0.94, 0.80: it breaks 0.955 half way to -1, and a
    # quarter of the way to 1.
    low = result(spec=0.955).to_dict()["models"]["plain"]["sweeps"]["temperature"]
    assert low["tolerance"] == pytest.approx(
        {
            "low": -0.5,
            "high": 0.25,
            "width": 0.75,
            "low_is_end": False,
            "high_is_end": False,
        }
    )
    area = (0.925 + 0.955 + 0.95 + 0.87) / 4
    assert found["mean_over_range"]["accuracy"] == pytest.approx(area)
    assert found["mean_over_range"]["loss"] == pytest.approx(1 - area)
    assert found["yields"] is None
    assert found["axes"][0]["positions"] == TEMPERATURES.tolist()


def test_json_marks_tolerances_that_end_with_the_range():
    found = result(spec=0.85).to_dict()["models"]["plain"]["sweeps"]["temperature"]
    tolerance = found["tolerance"]
    assert (tolerance["low"], tolerance["low_is_end"]) == (-2.0, True)
    # From 0.94 at 1 to 0.80 at 2.
    assert tolerance["high"] == pytest.approx(1 + 9 / 14)
    assert tolerance["high_is_end"] is False


def test_json_of_spreads_has_yields_and_of_points_on_no_line_no_tolerance():
    sweeps = result().to_dict()["models"]["plain"]["sweeps"]
    counts = [(y["passed"], y["n"]) for y in sweeps["std:phase"]["yields"]]
    assert counts == [(4, 4), (2, 4)]
    shift = sweeps["shift"]
    assert shift["statistics"] is None
    assert shift["axes"][0]["positions"] is None
    assert shift["tolerance"] == {
        "low": None,
        "high": None,
        "width": None,
        "low_is_end": False,
        "high_is_end": False,
    }
    assert shift["mean_over_range"] == {"loss": None, "accuracy": None}


def test_json_without_devices_has_neither_statistics_nor_yield():
    found = bare().to_dict()["models"]["plain"]
    assert found["statistics"] is None and found["yield"] is None


def test_dataframe(monkeypatch):
    pandas = pytest.importorskip("pandas")
    frame = result().to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.shape == (len(long_rows(result())), 8)
    devices = frame[frame.section == "device"]
    assert devices.accuracy.mean() == pytest.approx(0.93)


def test_dataframe_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"keras-pnn\[dataframe\]"):
        result().to_dataframe()


# Files.


@pytest.mark.parametrize("suffix", ["html", "HTML", "Json", "csv"])
def test_save_by_suffix_in_a_new_folder(tmp_path, suffix):
    path = tmp_path / "new" / f"report.{suffix}"
    bare().save(str(path))
    assert path.read_text("utf-8")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["report.txt", "report", ".html"])
def test_save_refuses_other_suffixes(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.html, \.json or \.csv.*Received: .*"):
        bare().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        bare(setting={"x": object()}).save(path)
    path.with_suffix(".csv").mkdir()
    with pytest.raises(OSError):
        bare().save(path.with_suffix(".csv"))
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.csv", "report.json"]


def test_without_matplotlib(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    found = result()
    assert text(found)
    found.save(tmp_path / "report.json")
    found.save(tmp_path / "report.csv")
    with pytest.raises(ImportError, match=r"keras-pnn\[plot\]"):
        found.save(tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# HTML.


@pytest.fixture(scope="module")
def written():
    return page(result(("plain", "<b>robust</b> & 'more' $x$")))


def test_html_is_well_formed_and_has_every_section(written):
    parsed = Page(written)
    titles = re.findall(r"<h2>(.*?)</h2>", written)
    assert titles == [
        "Summary",
        "DeviceSet",
        "Sweep: temperature",
        "Spread: σ of phase",
        "Sweep: shift",
        "Grid: phase × splitter",
        "Adversarial worst case",
        "Sensitivity per layer and imperfection",
        "Curvature of the loss",
        "Loss landscape",
        "Transfer between devices",
        "How it was made",
    ]
    # Devices, sweep, spread and its yield, points, grids, sensitivities, curvature of
    # two groups, landscape, transfer.
    assert parsed.tags.count("svg") == 1 + 1 + 2 + 1 + 2 + 2 + 2 + 1 + 1
    assert parsed.tags.count("figcaption") == parsed.tags.count("figure") == 13


def test_html_loads_nothing(written):
    parsed = Page(written)
    assert not {"script", "link", "iframe", "object", "base"} & set(parsed.tags)
    assert "http://" not in written and "https://" not in written
    assert "@import" not in written and "xmlns" not in written
    assert all(link.startswith("#") for link in re.findall(r"url\((.)", written))
    for name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,"))
        assert not name.startswith("on")


def test_html_ids_are_unique_and_all_that_is_referred_to_exists(written):
    attributes = Page(written).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r"url\(#([^)]+)\)", written))
    wanted |= {v[1:] for n, v in attributes if n == "href" and v.startswith("#")}
    assert len(wanted) > 20
    assert wanted <= set(ids)


def test_html_escapes_names(written):
    parsed = Page(written)
    assert "b" not in parsed.tags
    assert "<b>robust</b> & 'more' $x$" in parsed.words
    # The same name in the figures, whose dollars are no mathematics.
    figures = re.findall(r"<svg.*?</svg>", written, re.DOTALL)
    drawn = "&lt;b&gt;robust&lt;/b&gt; &amp; 'more' $x$</text>"
    assert any(drawn in figure for figure in figures)


def test_html_is_accessible(written):
    attributes = Page(written).attributes
    assert ("lang", "en") in attributes
    labels = [value for name, value in attributes if name == "aria-label"]
    assert len(labels) == 1 + 13 and all(labels)
    assert attributes.count(("role", "img")) == 13
    assert ("scope", "col") in attributes and ("scope", "row") in attributes


def test_html_is_the_same_each_time_and_small(written):
    model = full_model()
    model = ModelRobustness(model.nominal, model.devices, grid=model.grid)
    found = bare(models={"plain": model})
    first = page(found)
    assert first.count("<svg") == 2
    assert page(found) == first
    assert len(written) < 1_000_000


def test_html_of_the_barest_report():
    parsed = Page(page(bare()))
    assert "svg" not in parsed.tags
    assert parsed.tags.count("table") == 1


@pytest.mark.filterwarnings("error")
def test_html_of_extremes():
    """One device, one point, one direction, NaN, losses, one model without parts,
    names that Matplotlib reads."""
    axis = Axis("temperature", "K", np.array([0.0]))
    nan = Scan((Axis("phase", "", np.array([0.0, 1.0])),), both([np.nan, 0.5]), None)
    grid = (Axis("a", "", np.array([0.0])), Axis("b", "", np.array([0.0, 1.0])))
    model = dataclasses.replace(
        full_model(dimensions=1),
        devices=both([0.9]),
        labels=("a",),
        sweeps={
            "temperature": Scan((axis,), both([0.9]), both([[0.9]])),
            "phase": nan,
        },
        grid=Scan(grid, both([[0.98, 0.98]]), None),
        curvature={},
    )
    empty = ModelRobustness(nominal={"loss": 0.5, "accuracy": 0.5})
    models = {"_hidden": model, "$y": empty, "x" * 300: model}
    found = result(models=models, metric="loss", mode="min", spec=0.05)
    written = page(found)
    Page(written)
    assert " _hidden</text>" in written and "xxx…</text>" in written
    phase = section(text(found), "Sweep: phase")
    assert cells(phase, "tolerance") == ["-"] * 2


@pytest.mark.parametrize(
    "points, room, expected",
    [
        ([0.0], 0.1, [0.0]),
        ([-1.0, 0.0, 1.0], 0.1, [-1.0, 0.0, 1.0]),
        # 0.05 is too near to 0, 0.95 to the end.
        ([0.0, 0.05, 0.5, 0.95, 1.0], 0.1, [0.0, 0.5, 1.0]),
        # Nine of 17.
        (np.arange(17.0), 0.1, np.arange(0.0, 17.0, 2.0).tolist()),
    ],
)
def test_ticks_of_a_map_are_measured_points_with_room(points, room, expected):
    assert spaced(np.array(points), room) == expected


def test_a_grid_has_its_ticks_at_the_measured_points():
    phase = Axis("phase", "rad", np.array([-0.13, 0.0, 0.13]))
    splitter = Axis("splitter", "rad", np.array([0.0, 0.27]))
    grid = Scan((phase, splitter), both([[0.9, 0.8]] * 3), None)
    model = ModelRobustness({"loss": 0.02, "accuracy": 0.98}, grid=grid)
    (picture,) = pictures(bare(models={"plain": model}))
    shown = re.findall(r">([^<>]+)</text>", picture.svg)
    assert shown[:3] == ["0", "0.27", "splitter (rad)"]
    assert shown[3:7] == ["-0.13", "0", "0.13", "phase (rad)"]


def test_html_keeps_figures_and_tables_on_one_page(written):
    printed = written[written.index("@media print") :]
    assert re.search(r"figure, \.scroll, dl \{ break-inside: avoid; \}", printed)


def test_svg_keeps_text_and_drops_the_rest():
    from keras_pnn.plotting import new_figure

    figure = new_figure()
    figure.subplots().plot([0, 1], [0, 1], "o-", label="a")
    drawn = svg(figure, "f7", 'a "caption" & more')
    assert drawn.startswith("<svg ")
    assert 'aria-label="a &quot;caption&quot; &amp; more"' in drawn
    assert "metadata" not in drawn and "<style" not in drawn
    assert re.findall(r">(0\.\d)</text>", drawn)[:2] == ["0.0", "0.2"]
    assert all(name.startswith("f7-") for name in re.findall(r' id="([^"]+)"', drawn))
