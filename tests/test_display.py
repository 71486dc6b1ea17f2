"""One-line reprs, HTML for notebooks, and signatures that list their keywords."""

import inspect

import keras
import numpy as np
import pytest
from models import Bench, banks, measured, ring_chip

import keras_pnn as pnn
from keras_pnn._display import Table, brief, html
from keras_pnn._signatures import passing_on

drift = pnn.devices.drift
LARGE = np.full((40, 50), 0.123456789)
DEVICE = pnn.SimulatedDevice({("resonance_shift", 0): LARGE}, label="chip 3")


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.1 + 0.2, "0.3"),
        (np.float32(0.1), "0.1"),
        (LARGE, "<float64 (40, 50)>"),
        (np.array([1.0, 2.5]), "[1.0, 2.5]"),
        (keras.Variable(LARGE.astype("float32")), "<float32 (40, 50)>"),
        (list(range(9)), "<9 items>"),
        ({str(i): i for i in range(9)}, "<9 entries>"),
        ({"a": (1, LARGE)}, "{'a': [1, <float64 (40, 50)>]}"),
        ("x" * 200, "'" + "x" * 76 + "..."),
        (None, "None"),
    ],
)
def test_brief(value, expected):
    assert brief(value) == expected


@pytest.mark.parametrize(
    "thing, expected",
    [
        (DEVICE, "<SimulatedDevice 'chip 3': resonance_shift>"),
        (pnn.SimulatedDevice({}), "<SimulatedDevice: nominal>"),
        (pnn.DeviceSet([]), "<DeviceSet of 0 devices>"),
        (pnn.DeviceSet([DEVICE]), "<DeviceSet of 1 device: resonance_shift>"),
        (pnn.Correlated(0.1, 3), "Correlated(std=0.1, length=3.0)"),
        (pnn.layers.DAC(8, 0, 3), "DAC(bits=8, low=0.0, high=3.0)"),
        (pnn.ASAM(0.5), "ASAM(rho=0.5, eta=0.01)"),
        (pnn.SPSA(0.1), "SPSA(step=0.1, directions=1)"),
        (
            pnn.Autodiff(LARGE),
            "Autodiff(radius=<40 items>, normalize=True, sample_radius=False)",
        ),
        (drift.Recorded(LARGE[0]), "Recorded(values=<50 items>, past_end='raise')"),
        (drift.RandomWalk(0.1), "RandomWalk(std=0.1, start=0.0)"),
        (
            pnn.OpticalPruning(1e-3),
            "OpticalPruning(alpha=0.001, tuning=LorentzianTuning(half_width=0.15))",
        ),
    ],
)
def test_repr(thing, expected):
    assert repr(thing) == expected


def test_no_repr_is_long_or_has_lines():
    model = banks()
    chip = ring_chip(model)
    things = [
        measured(),
        pnn.Variation(resonance_shift=pnn.Correlated(0.1, 3.0)),
        Bench(chip),
        model.get_layer("first").quantity("resonance_shift"),
        pnn.SATModel(model, variation=pnn.Variation(temperature=1.0)),
        pnn.PATModel(model, device=chip),
        pnn.DATModel(model, device=chip),
        pnn.convert(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])),
        pnn.datasets.Batches(LARGE, LARGE, batch_size=4),
        pnn.robustness.Specification(devices=[DEVICE] * 32),
        # One whose `__init__` has not run.
        pnn.HardwareDevice.__new__(pnn.HardwareDevice),
    ]
    for text in map(repr, things):
        assert len(text) <= 240 and "\n" not in text and "object at" not in text
    assert "model=<Functional" in repr(things[4])


def test_the_digest_of_a_study_knows_a_correlated_variation():
    one, other = (
        pnn.Variation(resonance_shift=pnn.Correlated(0.1, length))
        for length in (3.0, 3.0000001)
    )
    assert repr(one) != repr(other) and "object at" not in repr(one)


def test_a_table_as_text_and_html():
    table = Table("title", ("", "a <b>"), [("x", "1"), ("long", "20 %")])
    lines = ["title", "      a <b>", "x         1", "long   20 %"]
    assert table.text().splitlines() == lines
    written = html([table, "made & kept"])
    assert "<caption>title</caption>" in written and "a &lt;b&gt;" in written
    assert "20\u00a0%" in written and "made &amp; kept</p>" in written


def test_notebooks_show_devices_and_results_as_tables():
    devices = pnn.DeviceSet([DEVICE, DEVICE])
    values = {"loss": np.array([1.0, 2.0])}
    result = pnn.DeviceEvaluation(values, 9, 3, True)
    for thing in (DEVICE, devices, result):
        assert thing._repr_html_().count("<table>") == 1
    assert "resonance_shift[0]" in devices._repr_html_()


@pytest.mark.parametrize(
    "function, names",
    [
        (pnn.layers.MRRBank, "units tuning dac crosstalk adc_bits control_constraint"),
        (pnn.layers.MRRConv2D, "filters strides tuning dac bank_size"),
        (pnn.PATModel, "model device readout rho variation adversarial warmup seed"),
        (pnn.DATModel, "model device fields rho variation clean_fraction"),
        (pnn.SATModel.fit, "x y batch_size epochs callbacks validation_data"),
        (pnn.SATModel.compile, "optimizer loss metrics jit_compile"),
        (pnn.convert, "model tuning bank_size temperature_sensitivity dac"),
        (pnn.InstrumentDevice, "configuration max_batch timeout retries log"),
        (pnn.InstrumentDevice.from_toml, "path max_batch timeout retries log"),
        (pnn.robustness_report, "model x devices n sweeps spec hessian fast"),
        (pnn.callbacks.RobustnessReport, "x every n sweeps spec hessian fast"),
    ],
)
def test_signatures_list_what_is_passed_on(function, names):
    found = inspect.signature(function).parameters
    assert [n for n in names.split() if n not in found] == []
    assert "gradient" not in found


def test_passing_on():
    def inner(a, b=2, *, c=3):
        return a, b, c

    @passing_on(inner, without=("b",))
    def outer(x, **kwargs):
        return x, inner(**kwargs)

    assert str(inspect.signature(outer)) == "(x, *, a, c=3)"
    assert outer(1, a=2, b=5) == (1, (2, 5, 3))
