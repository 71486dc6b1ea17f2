"""A result as text, rows, JSON, figures and HTML, against values worked out by hand."""

import csv
import html.parser
import io
import json
import pathlib
import re
import sys

import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.curvature.eigenvalues import HessianResult
from keras_pnn.curvature.landscape import Landscape
from keras_pnn.curvature.spectrum import DensityResult, TraceResult
from keras_pnn.devices import SimulatedDevice
from keras_pnn.robustness.axes import DeviationAxis, SpreadAxis
from keras_pnn.robustness.report import explanations
from keras_pnn.robustness.report import html as report_html
from keras_pnn.robustness.report.export import rows
from keras_pnn.robustness.report.formatting import interval, number
from keras_pnn.robustness.report.html import html as page
from keras_pnn.robustness.report.text import text
from keras_pnn.robustness.results import (
    Curvature,
    Kind,
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
KINDS = Kind("shift"), Kind("temperature", "2")
MADE = {
    "variables": ("mrr/control",),
    "parameters": 40,
    "samples": 100,
    "batch_size": 10,
    "batch_norm": "frozen",
    "seed": 0,
}


def both(accuracy):
    accuracy = np.asarray(accuracy, "float64")
    return {"loss": 1 - accuracy, "accuracy": accuracy}


def axis(name, unit, values):
    return DeviationAxis(name, unit, np.array(values, "float64"))


def spread(values):
    return SpreadAxis("std:phase", "rad", np.array(values))


def curvature():
    made = {**MADE, "loss": 0.0625}
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
    density = DensityResult(
        grid=grid,
        density=np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi),
        standard_error=np.full(200, np.nan),
        nodes=np.array([0.0, 12.5]),
        weights=np.array([0.9, 0.1]),
        broadening=1.0,
        vectors=1,
        steps=2,
        **made,
    )
    estimates = np.array([20.0, 21.0])
    trace = TraceResult(trace=20.5, standard_error=1.25, estimates=estimates, **made)
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
        **MADE,
    )


def full_model(**changes):
    phase, splitter = axis("phase", "rad", [-0.1, 0, 0.1]), axis("splitter", "", [0, 1])
    grid = [[0.7, 0.5], [0.98, 0.9], [0.72, 0.52]]
    temperature = axis("temperature", "K", TEMPERATURES)
    yields = [[0.99, 0.97], [0.99, 0.96], [0.99, 0.94], [0.99, 0.9]]
    sweeps = {
        "temperature": Scan(
            (temperature,), both([0.9, 0.95, 0.98, 0.95, 0.9]), both(SWEEP)
        ),
        "std:phase": Scan((spread([0.0, 0.1]),), None, both(yields)),
        # Points on no line.
        "shift": Scan((axis("shift", "px", np.eye(2)),), both([0.9, 0.8]), None),
    }
    worst = WorstCase(
        {"temperature": 1.5},
        {"loss": 1.75, "accuracy": 0.415},
        np.ones((3, 21)),
        64,
        SimulatedDevice({("temperature", 0): np.array(1.5)}),
    )
    alone = both([[0.95, np.nan], [0.975, 0.88]])
    parts = {
        "nominal": {"loss": 0.02, "accuracy": 0.98},
        "devices": both(DEVICES),
        "labels": ("a", "b", "c", "d"),
        "sweeps": sweeps,
        "grid": Scan((phase, splitter), both(grid), None),
        "worst": worst,
        "sensitivity": Sensitivity(("conv", "bank"), KINDS, alone, 4),
        "curvature": {"controls": curvature(), "all": curvature()},
        "landscape": landscape(),
    }
    return ModelRobustness(**{**parts, **changes})


TRANSFER = Transfer(("a", "b"), ("a", "b"), both([[0.98, 0.61], [0.52, 0.97]]))


def result(names=("plain",), **changes):
    values = {
        "models": {name: full_model() for name in names},
        "metric": "accuracy",
        "mode": "max",
        "spec": 0.95,
        "transfer": TRANSFER,
        "setting": {"samples": 100, "versions": {"keras": "3.12"}, "seconds": 1.25},
    }
    return RobustnessResult(**{**values, **changes})


def bare(nominal=0.98, **parts):
    """A result of one model that has only these parts."""
    model = ModelRobustness({"loss": 0.02, "accuracy": nominal}, **parts)
    return result(models={"plain": model}, transfer=None, setting={})


LOW = {"metric": "loss", "mode": "min", "spec": 0.05}


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


def joined(written):
    return " ".join(written.split())


# Words and numbers.


def test_numbers():
    values = (12.34567, -0.0, np.nan, None)
    assert [number(v) for v in values] == ["12.35", "0", "-", "-"]
    # A metric that is called an accuracy and counts in percent already stays.
    assert cells(text(bare(98.0)), "nominal accuracy") == ["98"]


@pytest.mark.parametrize(
    "values, expected",
    [
        # No finer than the points.
        ([0.9, 0.96, 0.90], ("less than 1", "less than 2")),
        ([0.96, 0.96, 0.90], ("≤ -1 … 0", "≥ 1")),
        ([0.96, 0.96, 0.95], ("≤ -1 … ≥ 1", "≥ 2")),
        ([0.99, 0.90, 0.99], ("-", "-")),
        ([0.90, np.nan, 0.99], ("-", "-")),
    ],
)
def test_interval_marks_the_ends_of_the_range(values, expected):
    scan = Scan((axis("temperature", "K", [-1, 0, 1]),), both(values), None)
    assert interval(result(), scan) == expected
    # A spread starts at 0 itself.
    scan = Scan((spread([0.0, 0.1, 0.2]),), None, both([[0.99, 0.97, 0.91]]))
    assert interval(result(), scan) == ("0 … 0.1", "0.1")
    scan = Scan((spread([0.0, 0.1, 0.2]),), None, both([[0.99, 0.94, 0.91]]))
    assert interval(result(), scan) == ("less than 0.1",) * 2


# Text.

DEVIATION = np.sqrt(np.mean((DEVICES - 0.93) ** 2))
MEAN = SWEEP.mean(0)
AREA = (MEAN[1:] + MEAN[:-1]).sum() / 2 / 4
# Offsets of -0.03, 0, 0.01 and 0.02: median 0.005, 5 % of 3 steps is -0.0255.
TAIL = 1 - np.array([0.90, 0.95, 0.96, 0.94, 0.80]) + 0.0255


@pytest.mark.parametrize(
    "title, expected",
    [
        (
            "Devices",
            {
                "nominal": "98.00",
                "mean": "93.00",
                "std": f"{100 * DEVIATION:.2f}",
                "median": "96.50",
                # 5 % of 3 steps is 0.15 of the way from 0.80 to 0.96.
                "p05": "82.40",
                "p95": "98.70",
                "min": "80.00",
                # Wilson's interval of 3 of 4, as statsmodels gives it.
                "yield": "75.0 % (3/4)",
                "yield, 95 % interval": "30.1 … 95.4 %",
            },
        ),
        (
            "Sweep: temperature",
            {
                "": "-2 -1 0 1 2",
                "design": "90.00 95.00 98.00 95.00 90.00",
                "mean": " ".join(f"{v:.2f}" for v in 100 * MEAN),
                "median": "90.50 95.50 96.50 94.50 80.50",
                "p05": "87.45 92.45 93.45 91.45 77.45",
                "p95": "91.85 96.85 97.85 95.85 81.85",
                "min": "87.00 92.00 93.00 91.00 77.00",
                "mean accuracy over the range": f"{100 * AREA:.2f} %",
                # The loss has a table of its own, with the other tail.
                "plain: design": "0.1 0.05 0.02 0.05 0.1",
                "plain: mean": " ".join(f"{v:.4g}" for v in 1 - MEAN),
                "plain: p95": " ".join(f"{v:.4g}" for v in TAIL),
            },
        ),
        (
            "Spread: σ of phase",
            # Wilson: 4 of 4 is 51.0 … 100, 2 of 4 is 15.0 … 85.0.
            {
                "plain": "100.0 50.0",
                "plain: low": "51.0 15.0",
                "plain: high": "100.0 85.0",
            },
        ),
        ("Sweep: shift", {"": "(1, 0) (0, 1)", "design": "90.00 80.00"}),
        ("Grid: phase × splitter", {"-0.1": "70.00 50.00"}),
        (
            "Adversarial worst case",
            {
                "radius: temperature": "1.5",
                "accuracy, worst case": "41.50 %",
                "loss, worst case": "1.75",
                "starts × steps of the search": "3 × 20",
            },
        ),
        (
            "Sensitivity per layer and imperfection",
            {"layer": "shift temperature = 2", "conv": "3.00 -", "bank": "0.50 10.00"},
        ),
        (
            "Curvature of the loss",
            {
                "λ_1": "12.5 (0.0001)",
                "λ_2": "3.25 (0.2) not converged",
                "λ_min": "-0.75 (0.002)",
                "trace": "20.5 ± 1.2",
            },
        ),
        ("Loss landscape", {"loss at the centre": "0.5", "largest loss": "2.5"}),
        ("Transfer between devices", {"a": "98.00 61.00", "b": "52.00 97.00"}),
    ],
)
def test_text_of_a_section(title, expected):
    part = section(text(result()), title)
    assert {name: " ".join(cells(part, name)) for name in expected} == expected


def test_text_has_what_it_needs_alone():
    written = text(result())
    sweep = section(written, "Sweep: temperature")
    assert sweep.count("loss against temperature (K)") == 1
    assert "│ max" not in sweep
    assert "tolerance" not in section(written, "Sweep: shift").lower()
    assert "  versions: keras = 3.12" in written


def test_text_where_less_is_better():
    written = text(result(**LOW))
    # Losses 0.01, 0.03, 0.04, 0.20: three keep 0.05; the worst is the largest.
    assert cells(written, "yield at loss ≤ 0.05") == ["75.0 % (3/4)"]
    assert cells(written, "devices: worst") == ["0.2"]
    assert cells(written, "devices: 95th percentile") == ["0.176"]
    # Losses of 0.05, 0.025 and 0.12 in place of 0.02.
    drops = section(written, "Sensitivity per layer and imperfection")
    assert cells(drops, "bank") == ["0.005", "0.1"]
    sweep = section(written, "Sweep: temperature")
    assert cells(sweep, "max") == ["0.13", "0.08", "0.07", "0.09", "0.23"]
    assert sweep.count("loss against temperature (K)") == 1


def alone(kinds):
    one = both(np.full((1, len(kinds)), 0.9))
    return bare(sensitivity=Sensitivity(("bank",), kinds, one, 4))


def swept(values, accuracy, nominal=0.98):
    """A sweep of the design."""
    scan = Scan((axis("temperature", "K", values),), both(accuracy), None)
    return bare(nominal, sweeps={"temperature": scan})


@pytest.mark.parametrize(
    "found, words",
    [
        (alone(KINDS[:1]), "Each figure is the mean over 4 devices."),
        (alone(KINDS[1:]), "Each column is an end of a sweep: the design with this "),
        (alone(KINDS), "A column without a value is the mean over 4 devices; a col"),
        (
            result(transfer=Transfer(("a", "c"), ("a",), both([[0.9], [0.8]]))),
            "Trained on none of these devices: c.",
        ),
        (bare(devices=both([np.nan, 0.5])), "is -, the worst -; 0 of 2 keep it"),
        (swept([0, 1], [0.5, 0.9], 0.5), "No tolerance was found to: temperature."),
        (
            swept([0, 0.25], [0.99, 0.5]),
            "tolerance to temperature is less than 0.25 K.",
        ),
        (swept([0, 0.25], [0.99, 0.5]), "up to the last point before it first breaks"),
        (result(), "The specification is accuracy ≥ 95 %."),
        (result(), "plain: the design keeps it, with 98.00 %."),
        (
            result(),
            "On 4 devices the mean is 93.00 %, the worst 80.00 %; 3 of 4 keep it "
            "(yield 75.0 %, 95 % interval 30.1 … 95.4 %).",
        ),
        # The mean is 0.90, 0.95, 0.96, 0.94, 0.80.
        (
            result(),
            "The mean over the devices keeps it over temperature -1 … 0 K. The "
            "tolerance to σ of phase is less than 0.1 rad.",
        ),
        (result(), "Alone, temperature = 2 in layer 'bank' costs most: 10.00 perc"),
        (result(), "worst case that was found, within its radii, has 41.50 %."),
        (result(("a", "b"), **LOW), "the best models have the same mean"),
        (result(("a", "b"), **LOW), "the worst 0.2; 3 of 4 keep it"),
    ],
)
def test_text_says(found, words):
    assert words in joined(text(found))


def test_at_most_nine_points_are_shown_with_both_ends():
    for n in (1, 9, 10, 1000):
        found = swept(np.arange(n), np.full(n, 0.99))
        shown = cells(section(text(found), "Sweep: temperature"), "")
        assert (len(shown), shown[0], shown[-1]) == (min(n, 9), "0", str(n - 1))


def test_text_puts_models_side_by_side():
    found = result(("plain", "robust"))
    found.models["robust"].nominal["accuracy"] = 0.975
    found.models["other"] = ModelRobustness(nominal={"loss": 0.5, "accuracy": 0.5})
    written = text(found)
    summary = section(written, "Summary")
    assert cells(summary, "") == ["plain", "robust", "other"]
    assert cells(written, "nominal accuracy") == ["98.00 %", "97.50 %", "50.00 %"]
    # What a model lacks.
    assert cells(written, "devices: mean") == ["93.00 %", "93.00 %", "-"]
    assert cells(section(written, "Curvature of the loss"), "λ_min")[2] == "-"
    sweep = section(written, "Sweep: temperature")
    for name in ("plain", "robust"):
        assert sweep.count(f"{name}: accuracy (%) against temperature (K)") == 1


def test_text_leaves_out_what_is_absent():
    written = text(bare())
    titles = re.findall(r"^(\S.*?) ━", written, re.MULTILINE)
    assert titles == ["Conclusion", "Summary"]
    assert "yield at" not in written


def test_text_fits_a_hundred_columns_and_shows_names_as_they_are(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    names = ("[bold]x[/bold]", ":smile:", "a & b")
    others = (f"a model with the name {i}" for i in range(3))
    written = text(result((*names, *others)))
    assert max(map(len, written.splitlines())) <= 100
    assert "\x1b" not in written and "…\n" not in written
    assert cells(section(written, "Summary"), "")[:3] == list(names)


# Rows and CSV.


def test_rows_count_every_measured_point():
    found = rows(result(("plain", "robust")))
    sections = [row["section"] for row in found]
    assert {name: sections.count(name) for name in sections} == {
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
    keys = "model section name value value_2 device loss accuracy"
    assert {" ".join(row) for row in found} == {keys}


@pytest.mark.parametrize(
    "place, accuracy",
    [
        ({"section": "nominal"}, 0.98),
        ({"section": "device", "device": "d"}, 0.80),
        ({"name": "temperature", "value": -1.0, "device": "design"}, 0.95),
        ({"name": "temperature", "value": 1.0, "device": "c"}, SWEEP[2, 3]),
        ({"name": "shift", "value": "(0, 1)"}, 0.8),
        ({"name": "phase × splitter", "value": 0.1, "value_2": 1.0}, 0.52),
        ({"name": "bank", "value": "temperature = 2"}, 0.88),
        ({"section": "worst", "name": "temperature = 1.5"}, 0.415),
        ({"section": "transfer", "model": "b", "device": "a"}, 0.52),
    ],
)
def test_rows_hold_the_values(place, accuracy):
    (row,) = (r for r in rows(result()) if place.items() <= r.items())
    assert row["accuracy"] == accuracy


def test_rows_of_devices_without_names():
    found = rows(bare(devices=both(DEVICES)))
    assert [row["device"] for row in found[1:]] == [f"device {i}" for i in range(4)]


def test_csv_is_the_rows(tmp_path):
    found = result(('a "name", with commas', "σ"))
    found.save(tmp_path / "report.csv")
    written = (tmp_path / "report.csv").read_text("utf-8")
    back = csv.DictReader(io.StringIO(written))
    for read, row in zip(back, rows(found), strict=True):
        assert read["model"] == row["model"]
        assert read["value"] == ("" if row["value"] is None else str(row["value"]))
        assert float(read["accuracy"]) == row["accuracy"]


def test_dataframe(monkeypatch):
    frame = result().to_dataframe()
    assert frame.shape == (len(rows(result())), 8)
    assert frame[frame.section == "device"].accuracy.mean() == pytest.approx(0.93)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"keras-pnn\[dataframe\]"):
        result().to_dataframe()


# JSON.


def test_json_is_the_dict_without_nan(tmp_path):
    found = result()
    found.save(tmp_path / "report.json")

    def refuse(word):
        raise AssertionError(word)

    written = (tmp_path / "report.json").read_text("utf-8")
    assert json.loads(written, parse_constant=refuse) == found.to_dict()
    model = found.to_dict()["models"]["plain"]
    assert model["devices"]["accuracy"] == DEVICES.tolist()
    assert model["sensitivity"]["metrics"]["accuracy"][0] == [0.95, None]
    assert model["sensitivity"]["kinds"] == ["shift", "temperature = 2"]
    assert model["landscape"]["loss"][0][0] is None
    assert model["worst"]["device"] == {"temperature[0]": 1.5}


def test_json_holds_what_follows_from_the_devices():
    found = result().to_dict()["models"]["plain"]
    values = found["statistics"]["accuracy"]
    expected = {"mean": 0.93, "std": DEVIATION, "median": 0.965, "p05": 0.824}
    assert values == pytest.approx({**expected, "p95": 0.987, "min": 0.80, "max": 0.99})
    expected = {"passed": 3, "n": 4, "yield": 0.75, "low": 0.30064, "high": 0.95441}
    assert found["yield"] == pytest.approx(expected, abs=1e-5)
    without = bare().to_dict()["models"]["plain"]
    assert without["statistics"] is None and without["yield"] is None


@pytest.mark.parametrize(
    "spec, low, high, ends",
    [
        # The mean is 0.90, 0.95, 0.96, 0.94, 0.80.
        (0.955, 0.0, 0.0, (False, False)),
        (0.85, -2.0, 1.0, (True, False)),
    ],
)
def test_json_holds_what_follows_from_a_sweep(spec, low, high, ends):
    found = result(spec=spec).to_dict()["models"]["plain"]["sweeps"]["temperature"]
    bounds = {"low": low, "high": high, "width": high - low}
    bounds |= {"low_is_end": ends[0], "high_is_end": ends[1]}
    assert found["tolerance"] == pytest.approx(bounds)
    assert found["statistics"]["accuracy"]["mean"] == pytest.approx(MEAN.tolist())
    means = {"loss": 1 - AREA, "accuracy": AREA}
    assert found["mean_over_range"] == pytest.approx(means)
    assert found["yields"] is None
    assert found["axes"][0] == {
        "name": "temperature",
        "unit": "K",
        "values": TEMPERATURES.tolist(),
        "positions": TEMPERATURES.tolist(),
    }


def test_json_of_spreads_has_yields_and_of_points_on_no_line_no_tolerance():
    sweeps = result().to_dict()["models"]["plain"]["sweeps"]
    counts = [(y["passed"], y["n"]) for y in sweeps["std:phase"]["yields"]]
    assert counts == [(4, 4), (2, 4)]
    shift = sweeps["shift"]
    assert shift["statistics"] is shift["axes"][0]["positions"] is None
    assert {shift["tolerance"][key] for key in ("low", "high", "width")} == {None}
    assert shift["mean_over_range"] == {"loss": None, "accuracy": None}


# Files.


def test_save_by_suffix_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "report.HTML"
    bare().save(str(path))
    assert path.read_text("utf-8") == page(bare())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        result(setting={"x": object()}).save(path)
    for name in ("report.txt", "report", ".html"):
        with pytest.raises(ValueError, match=r"\.html, \.json or \.csv. Received: "):
            bare().save(tmp_path / name)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    result().save(tmp_path / "report.json")
    with pytest.raises(ImportError, match=r"keras-pnn\[plot\]"):
        result().save(tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# HTML.


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

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.words.append(data)


@pytest.fixture(scope="module")
def written():
    return page(result(("plain", "<b>robust</b> & 'more' $x$")))


def test_html_is_well_formed_and_has_every_section(written):
    parsed = Page(written)
    assert re.findall(r"<h2>(.*?)</h2>", written) == [
        "Conclusion",
        "Summary",
        "Devices",
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
        "What the numbers mean",
    ]
    # Devices, sweep, spread and its yield, points, grids, sensitivities, curvature of
    # two groups, landscape, transfer.
    count = 1 + 1 + 2 + 1 + 2 + 2 + 2 + 1 + 1
    for tag in ("svg", "figcaption", "figure"):
        assert parsed.tags.count(tag) == count
    labels = [value for name, value in parsed.attributes if name == "aria-label"]
    assert len(labels) == 1 + count and all(labels)
    for attribute in (("lang", "en"), ("scope", "col"), ("scope", "row")):
        assert attribute in parsed.attributes
    assert re.search(
        r"@media print(?s:.*)figure, \.scroll, dl \{ break-inside: avoid; \}", written
    )


def test_html_loads_nothing(written):
    parsed = Page(written)
    assert not {"script", "link", "iframe", "object", "base"} & set(parsed.tags)
    for word in ("http://", "https://", "@import", "xmlns", "metadata"):
        assert word not in written
    assert written.count("<style>") == 1
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
    assert len(wanted) > 20 and wanted <= set(ids)


def test_html_escapes_names(written):
    parsed = Page(written)
    assert "b" not in parsed.tags
    assert "<b>robust</b> & 'more' $x$" in parsed.words
    # The same name in the figures, whose dollars are no mathematics.
    figures = re.findall(r"<svg.*?</svg>", written, re.DOTALL)
    drawn = "&lt;b&gt;robust&lt;/b&gt; &amp; 'more' $x$</text>"
    assert any(drawn in figure for figure in figures)


def test_html_is_the_same_each_time_and_small(written):
    found = bare(devices=both(DEVICES), grid=full_model().grid)
    assert page(found).count("<svg") == 2
    assert page(found) == page(found)
    assert len(written) < 1_000_000
    parsed = Page(page(bare()))
    assert "svg" not in parsed.tags and parsed.tags.count("table") == 1


@pytest.mark.filterwarnings("error")
def test_html_of_extremes():
    """One device, one point, one direction, NaN, losses, one model without parts,
    names that Matplotlib reads."""
    temperature, phase = axis("temperature", "K", [0]), axis("phase", "", [0, 1])
    model = full_model(
        devices=both([0.9]),
        labels=("a",),
        sweeps={
            "temperature": Scan((temperature,), both([0.9]), both([[0.9]])),
            "phase": Scan((phase,), both([np.nan, 0.5]), None),
        },
        grid=Scan((temperature, phase), both([[0.98, 0.98]]), None),
        curvature={},
        landscape=landscape(dimensions=1),
    )
    empty = ModelRobustness(nominal={"loss": 0.5, "accuracy": 0.5})
    found = result(models={"_hidden": model, "$y": empty, "x" * 300: model}, **LOW)
    written = page(found)
    Page(written)
    assert " _hidden</text>" in written and "xxx…</text>" in written
    assert cells(section(text(found), "Sweep: phase"), "tolerance") == ["-"] * 2


# Figures.


def test_ticks_of_a_map_are_measured_points_with_room():
    # 0.05 is too near to 0, and 0.95 to 1; of 17 points nine are shown.
    axes = (
        axis("phase", "rad", [0, 0.05, 0.5, 0.95, 1]),
        axis("splitter", "", range(17)),
    )
    accuracy = np.linspace(0.8, 1, 5 * 17).reshape(5, 17)
    written = page(bare(grid=Scan(axes, both(accuracy), None)))
    shown = re.findall(r">([^<>]+)</text>", written)
    ticks = [str(number) for number in range(0, 17, 2)]
    expected = [*ticks, "splitter", "0", "0.5", "1", "phase (rad)"]
    assert shown[: len(expected)] == expected


# In words, and in notebooks.


def test_the_conclusion_compares_models():
    found = result(("plain", "robust", "nominal"))
    better = dict(devices=both(DEVICES + 0.005))
    found.models["robust"] = full_model(**better)
    found.models["nominal"] = ModelRobustness(nominal={"loss": 0.5, "accuracy": 0.5})
    written = joined(section(text(found), "Conclusion"))
    assert "robust has the best mean, 93.50 %; next is plain with 93.00 %." in written
    assert "intervals of their yields overlap" in written
    assert "nominal: the design breaks it, with 50.00 %." in written


@pytest.mark.parametrize("write", [text, page])
def test_one_device_is_named_and_has_no_statistics(write):
    written = joined(write(bare(devices=both([0.5]), labels=("my chip",))))
    assert "One device (my chip): the design with deviations of its own." in written
    assert "The one device breaks it, with 50.00 %." in written
    assert "1 devices" not in written and "p05" not in written


def test_summary_is_the_conclusion_and_the_first_table():
    found = result()
    assert text(found).startswith(found.summary())
    assert found.summary().startswith("Conclusion ━")
    assert "Summary ━" in found.summary() and "Devices ━" not in found.summary()


def test_html_explains_each_section(written):
    titles = re.findall(r'<h3 id="meaning-\w+">(.*?)</h3>', written)
    assert len(titles) == 10 and "Sweeps and tolerances" in titles
    targets = re.findall(r'<a href="(.*?)">What these numbers mean</a>', written)
    # Three sweeps share one explanation, and so do conclusion and summary.
    assert len(targets) == 13 and len(set(targets)) == 10
    # As of factors 0.5, 1 and 2, for which "-" stands too.
    assert "that 0 is outside the measured range" in written


def test_html_links_to_the_documentation_where_it_has_an_address(monkeypatch):
    for module in (report_html, explanations):
        monkeypatch.setattr(module, "DOCS_URL", "https://docs.example")
    written = page(bare())
    Page(written)
    target = "https://docs.example/what-the-numbers-mean/#devices"
    assert f'<a href="{target}">What these numbers mean</a>' in written
    assert "meaning-" not in written and "#meanings" not in written


def test_explanations_have_a_heading_in_the_documentation():
    page = pathlib.Path(__file__).parents[2] / "docs" / "what-the-numbers-mean.md"
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    slugs = {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings}
    assert {place for _, place, _ in explanations._TEXTS.values()} <= slugs


def test_a_report_in_a_notebook_and_on_one_line():
    found = result(("plain", "<b>"))
    shown = found._repr_html_()
    Page(shown)
    assert shown.count("<table>") == 1 and "&lt;b&gt;: the design keeps it" in shown
    assert repr(found) == "<RobustnessResult of plain, <b>: accuracy ≥ 95 %>"
    for part in (found.models["plain"], curvature().trace, landscape(), TRANSFER):
        assert len(repr(part)) <= 160 and "\n" not in repr(part)
    assert "eigenvalues=[12.5, 3.25]" in repr(curvature().eigenvalues)
    for part in (curvature().eigenvalues, curvature().density, landscape()):
        Page(part._repr_html_())


def test_power_beside_the_accuracy(model, data, quiet):
    report = pnn.robustness_report(model, *data, hardware="silicon", **quiet)
    (found,) = report.models.values()
    assert found.cost.total == pnn.hardware_cost(model).total
    power = f"{found.cost.total['power_mW']:.4g}"
    (line,) = (row for row in report.summary().splitlines() if "all hardware" in row)
    assert power in line
    assert report.to_dict()["models"][model.name]["cost"]["total"]["power_mW"]
    with pytest.raises(OSError):
        pnn.robustness_report(model, *data, hardware="missing.yaml", **quiet)
