"""Every public name is documented: a page of the site, all sections, and an example.

The examples run in one process, on the tiny network and data below.
"""

import doctest
import inspect
import pathlib
import re
import sys
import textwrap
import types

import keras
import matplotlib
import models
import numpy as np
import pytest
import scipy
import tensorflow as tf

import keras_pnn as pnn

matplotlib.use("Agg")

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"


def public(module=pnn, found=None) -> dict[int, tuple[str, object]]:
    """All public classes and functions, each by the shortest of its names."""
    found = {} if found is None else found
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]
    values = {name: getattr(module, name) for name in names}
    for name, value in values.items():
        if callable(value):
            found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    for value in values.values():
        if isinstance(value, types.ModuleType):
            public(value, found)
    return found


PUBLIC = dict(public().values())
EVERY_NAME = pytest.mark.parametrize("name", sorted(PUBLIC))


def test_every_public_name_has_a_place_in_the_reference():
    pages = "\n".join(p.read_text("utf-8") for p in DOCS.glob("reference/*.md"))
    names = re.findall(r"^::: (\S+)$", pages, re.M)
    found = []
    for name in names:
        value = pnn
        for part in name.split(".")[1:]:
            value = getattr(value, part)
        found.append(id(value))
    assert sorted(found) == sorted(id(value) for value in PUBLIC.values())


def sections_needed(value) -> set[str]:
    """The sections that a docstring needs, from the signature and the source."""
    needed = {"Example"}
    if inspect.isclass(value):
        if issubclass(value, Exception):
            return needed
        made = [vars(value).get(name) for name in ("__init__", "__post_init__")]
        # What a dataclass makes of its fields has no source.
        made = [f for f in made if f and f.__code__.co_filename != "<string>"]
        source = "".join(inspect.getsource(f) for f in made)
    else:
        needed |= {"Returns"}
        source = inspect.getsource(inspect.unwrap(value))
    signature = inspect.signature(value)
    if signature.return_annotation is None:
        needed -= {"Returns"}
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if kinds - {inspect.Parameter.VAR_KEYWORD}:
        needed |= {"Args"}
    code = re.sub(r'""".*?"""', "", source, flags=re.S)
    if re.search(r"\braise\b|_checks\.", code):
        needed |= {"Raises"}
    return needed


@EVERY_NAME
def test_every_docstring_has_its_sections(name):
    value = PUBLIC[name]
    sections = set(re.findall(r"^([A-Z]\w+):$", inspect.getdoc(value), re.M))
    sections |= {"Args"} if "Attributes" in sections else set()
    assert not sections_needed(value) - sections


class Bench(pnn.HardwareDevice):
    """A weight bank whose rings are 0.02 nm off."""

    def measure(self, layer, inputs, controls):
        weights = pnn.LorentzianTuning().weight(controls["control"], 0.02)
        return inputs @ np.asarray(weights)


class Lab:
    """What a laboratory's own code may look like."""

    def set_currents(self, name, currents):
        self.weights = np.asarray(pnn.LorentzianTuning().weight(currents))

    def read(self, name, inputs):
        return inputs @ self.weights


def compiled(model):
    return models.compiled(model, keras.optimizers.Adam(0.01), metrics=["accuracy"])


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the examples take for granted: networks, data, devices, a report."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(16, 4, 4)).astype("float32")
    y = rng.integers(0, 3, 16)
    inputs = keras.Input((4, 4))
    outputs = pnn.layers.MaskedSLM(4, grid=(2, 2), name="slm")(inputs)
    outputs = pnn.layers.MRRBank(4, name="mrr_bank", use_bias=False)(outputs)
    outputs = pnn.layers.MZIMesh(4, name="mesh")(outputs)
    outputs = pnn.layers.Photodetector(ports=3)(outputs)
    systems = {"model": compiled(keras.Model(inputs, outputs))}
    digital = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    flat = [keras.Input((4, 4)), keras.layers.Flatten()]
    bank = pnn.layers.MRRBank(3, use_bias=False, name="mrr_bank")
    model = compiled(keras.Sequential([*flat, bank]))
    flat = [keras.Input((28, 28, 1)), keras.layers.Flatten()]
    images = compiled(keras.Sequential([*flat, keras.layers.Dense(10)]))
    variation = pnn.Variation(resonance_shift=0.02)
    devices = variation.sample(model, 2, seed=0)
    bench = Bench()
    study = {
        "variation": variation,
        "sweeps": {"temperature": [-0.5, 0, 0.5]},
        "worst_case": {"temperature": 0.5},
        "hessian": {"trace_samples": 2, "density_steps": 2, "variables": ("controls",)},
    }
    report = pnn.robustness_report(
        model, x, y, name="plain", n=2, landscape=False, probe=8, verbose=0, **study
    )
    folder = tmp_path_factory.mktemp("examples")
    currents = np.arange(0, 2.5, 0.1)
    weights = np.asarray(pnn.HeaterTuning().weight(currents))
    rows = [f"{i},{w}\n" for i, w in zip(currents, weights, strict=True)]
    (folder / "ring.csv").write_text("".join(["current_mA,weight\n", *rows]))
    (folder / "chip_3.csv").write_text("temperature_K\n0.1\n0.2\n")
    with Bench(log=folder / "bench.log").installed(model):
        model.evaluate(x, y, verbose=0)
    return {
        "keras_pnn": pnn,
        **{"pnn": pnn, "keras": keras, "np": np, "tf": tf, "scipy": scipy},
        "decompose": pnn.physics.decompose,
        **{"x_val": x, "y_val": y, "x_probe": x, "y_probe": y},
        **{"x": x, "y": y, "x_train": x, "y_train": y, "x_test": x, "y_test": y},
        **{"model": model, "digital": digital, "variation": variation},
        **{"devices": devices, "chip": devices[0], "bench": bench, "report": report},
        "sat": compiled(pnn.SATModel(model, rho=0.01)),
        "online": compiled(pnn.PATModel(model, device=bench)),
        "folder": folder,
        # What stands for the names above in one example.
        "keras_pnn.HardwareDevice": {"chip": Lab()},
        "keras_pnn.convert": {"model": digital},
        "keras_pnn.datasets.load": {"model": images},
        **dict.fromkeys(OF_ALL_SYSTEMS, systems),
    }


# These speak of imperfections of meshes and masks too.
OF_ALL_SYSTEMS = [
    *("keras_pnn.FiniteDifference", "keras_pnn.PATModel", "keras_pnn.SATModel"),
    "keras_pnn.devices.grid",
]
NOT_RUN = {"keras_pnn.InstrumentDevice": "needs an instrument"}


class AnyOutput(doctest.OutputChecker):
    """Compares the output of a line only where the docstring shows one."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.pages
@EVERY_NAME
def test_examples_run(name, names, monkeypatch):
    if name in NOT_RUN:
        pytest.skip(NOT_RUN[name])
    value = PUBLIC[name]
    monkeypatch.chdir(names["folder"])
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    fit = keras.Model.fit

    def one_epoch(self, *args, **kwargs):
        call = inspect.signature(fit).bind(self, *args, **kwargs)
        call.arguments |= {"epochs": 1, "verbose": 0}
        return fit(*call.args, **call.kwargs)

    monkeypatch.setattr(keras.Model, "fit", one_epoch)
    scope = {**vars(sys.modules[value.__module__]), **names, **names.get(name, {})}
    text = inspect.getdoc(value)
    for source in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        exec(compile(textwrap.dedent(source), name, "exec"), scope)
    found = doctest.DocTestParser().get_doctest(text, scope, name, None, 0)
    runner = doctest.DocTestRunner(AnyOutput(), verbose=False)
    output = []
    runner.run(found, out=output.append)
    assert not runner.failures, "".join(output)
