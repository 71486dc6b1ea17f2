import csv
import dataclasses
import html.parser
import io
import json
import re
import sys

import numpy as np
import pytest

from keras_pnn.analysis.eigenvalues import HessianResult
from keras_pnn.analysis.landscape import Landscape
from keras_pnn.analysis.report_figures import svg
from keras_pnn.analysis.report_html import html as page
from keras_pnn.analysis.report_text import long_rows, text
from keras_pnn.analysis.report_words import Display, chosen, interval, number
from keras_pnn.analysis.results import (
    Axis,
    Curvature,
    ModelRobustness,
    RobustnessResult,
    Scan,
    Sensitivity,
    Transfer,
    WorstCase,
)
from keras_pnn.analysis.spectrum import DensityResult, TraceResult
from keras_pnn.devices.simulated import SimulatedDevice

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
    devices = section(text(result()), "Devices")
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
    assert cells(sweep, "plain: design") == [
        "90.00",
        "95.00",
        "98.00",
        "95.00",
        "90.00",
    ]
    assert cells(sweep, "plain: mean") == [f"{v:.2f}" for v in 100 * SWEEP.mean(0)]
    # The mean over the range by trapezia.
    mean = SWEEP.mean(0)
    area = (mean[1:] + mean[:-1]).sum() / 2 / 4
    assert cells(sweep, "mean accuracy over the range") == [f"{100 * area:.2f} %"]


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


def test_text_puts_models_side_by_side():
    found = result(("plain", "robust"))
    found.models["robust"].nominal["accuracy"] = 0.975
    written = text(found)
    assert cells(written, "") == ["plain", "robust"]
    assert cells(written, "nominal accuracy") == ["98.00 %", "97.50 %"]
    assert cells(written, "plain: design") == cells(written, "robust: design")


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
