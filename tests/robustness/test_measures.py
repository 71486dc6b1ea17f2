"""What a report measures besides devices: its radii, options and eigenvectors."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.robustness import measures
from keras_pnn.robustness.measures import (
    HessianOptions,
    check_curvature,
    curvature_of,
    hessian_options,
    landscape_of,
    landscape_options,
)
from keras_pnn.robustness.points import Fabrication, Plan, Scanned
from keras_pnn.robustness.radii import search_radius
from keras_pnn.robustness.report.report import Report
from keras_pnn.robustness.study import Study

RNG = np.random.default_rng(0)
X = RNG.random((30, 6)).astype("float32")
Y = RNG.integers(0, 3, 30)
FEW = X, Y, None


def network(*extra):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = pnn.layers.MRRBank(5, activation="relu", name="one")(inputs)
    for layer in extra:
        x = layer(x)
    x = pnn.layers.MRRBank(3, name="two")(x)
    model = keras.Model(inputs, x, name="network")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def mesh():
    inputs = keras.Input((4,))
    return keras.Model(inputs, pnn.layers.MZIMesh(4, name="mesh")(inputs))


@keras.saving.register_keras_serializable(package="tests")
class Moved(pnn.layers.PhysicalLayer):
    """Adds its `shift`, of which the last element does not exist."""

    def build(self, input_shape):
        exists = np.array([True, True, True, False])
        self.add_imperfection("shift", (4,), unit="µm", mask=exists)

    def forward(self, inputs, controls, imperfections):
        return inputs + imperfections["shift"]


def moved():
    inputs = keras.Input((4,))
    return keras.Model(inputs, Moved(name="stage")(inputs))


def fabricated(model, variation=None, devices=None):
    return Fabrication(model, devices, variation, 3, 0)


def radius(model, variation=None, sweeps=None, grid=None, devices=None):
    """The default radius of the search."""
    chips = fabricated(model, variation, devices)
    axes = [
        [Scanned(chips, argument, name, v) for name, v in (given or {}).items()]
        for argument, given in (("sweeps", sweeps), ("grid", grid))
    ]
    named = {axis.axis.name: axis for axis in axes[0]}
    return search_radius(Plan(chips, named, tuple(axes[1]), 0, 0, {}), True)


# The devices' spread.


def device(model, **sizes):
    """A device with the same deviation in each element of a layer."""
    model = model or network()
    arrays = {
        ("resonance_shift", i): np.full(
            model.get_layer(n).imperfections["resonance_shift"].shape, v, "float32"
        )
        for i, n in enumerate(("one", "two"))
        if (v := sizes.get(n)) is not None
    }
    return pnn.SimulatedDevice(arrays, {"resonance_shift": [[6, 5], [5, 3]]}, "by hand")


def test_the_spread_is_over_elements_and_not_over_layers():
    model = network()
    chips = [device(model, one=0.1, two=0.0)]
    # 30 elements of 45 deviate by 0.1.
    expected = {"resonance_shift": pytest.approx(0.1 * np.sqrt(30 / 45))}
    assert fabricated(model, devices=chips).spread() == expected
    assert radius(model, devices=chips) == expected


def test_several_devices_count_alike():
    model = network()
    chips = [device(model, one=0.3, two=0.3), device(model, one=-0.1, two=0.1)]
    rms = np.sqrt((0.09 + 0.01) / 2)
    spread = fabricated(model, devices=chips).spread()
    assert spread == {"resonance_shift": pytest.approx(rms)}


def test_what_deviates_in_one_layer_moves_that_layer_alone():
    model = network()
    chips = [device(model, one=0.1)]
    assert radius(model, devices=chips) == {"one/resonance_shift": pytest.approx(0.1)}
    both = {"resonance_shift": [0.2]}
    # The layer that no device deviates in goes as far as the sweep.
    assert radius(model, devices=chips, sweeps=both) == {
        "one/resonance_shift": pytest.approx(0.1),
        "two/resonance_shift": 0.2,
    }


def test_elements_that_do_not_exist_do_not_count():
    model = moved()
    chips = [pnn.SimulatedDevice({("shift", 0): np.array([0.3, 0.0, 0.0, 0.0])})]
    rms = pytest.approx(0.3 / np.sqrt(3))
    assert fabricated(model, devices=chips).spread() == {"shift": rms}
    points = [(0.3, 0, 0, 0), (0, 0, 0, 9)]
    assert radius(model, sweeps={"shift": points}) == {"shift": rms}


def test_without_devices_there_is_no_spread():
    assert fabricated(network()).spread() == {}


# How far sweeps and grid go.


@pytest.mark.parametrize("argument", ["sweeps", "grid"])
def test_axes_are_reaches(argument):
    axes = {"temperature": [-2.0, 0.0, 1.0], "half_width_error": [0.0, 0.2]}
    found = radius(network(), **{argument: axes})
    assert found == {"temperature": 2.0, "half_width_error": 0.2}


@pytest.mark.parametrize(
    "sweeps, expected",
    [
        ({"one/temperature": [0, 2]}, {"one/temperature": 2}),
        ({"one/temperature": [0]}, {}),
        (
            {"temperature": [0, 1.5], "one/temperature": [2]},
            {"one/temperature": 2, "two/temperature": 1.5},
        ),
        ({"temperature": [0, 3], "one/temperature": [2]}, {"temperature": 3}),
        (
            {"one/temperature": [1], "two/temperature": [1]},
            {"one/temperature": 1, "two/temperature": 1},
        ),
        (
            {"two/resonance_shift": np.full((1, 5, 3), 0.2)},
            {"two/resonance_shift": 0.2},
        ),
        ({"kernel": [1]}, {}),
        ({"kernel": [1], "temperature": [1]}, {"temperature": 1}),
    ],
    ids=["layer", "zero", "beyond", "within", "each", "array", "weight", "both"],
)
def test_what_sweeps_reach(sweeps, expected):
    assert radius(network(keras.layers.Dense(5)), sweeps=sweeps) == expected


def test_an_array_reaches_as_far_as_its_root_mean_square():
    model = moved()
    points = [(3, 0, 0, 0), (2, 2, 2, 0), (0, 0, 0, 0)]
    assert radius(model, sweeps={"shift": points}) == {"shift": 2.0}


def test_the_devices_spread_comes_before_a_sweep():
    sweeps = {"temperature": [0, 5], "one/temperature": [9], "one/resonance_shift": [7]}
    model = network()
    found = radius(model, pnn.Variation(resonance_shift=0.1, temperature=1.0), sweeps)
    spread = fabricated(model, pnn.Variation(resonance_shift=0.1, temperature=1.0))
    assert found == spread.spread()
    assert set(found) == {"resonance_shift", "temperature"}


def test_two_names_of_one_variable_are_one_radius():
    model = mesh()
    angle = abs(np.arcsin(0.2) / 2)
    sweeps = {"splitter_imbalance": [0, 0.2]}
    assert radius(model, sweeps=sweeps) == {"splitter_error": pytest.approx(angle)}
    # The larger reach counts, whichever comes first.
    other = {"splitter_error": [0.3], "theta_error": [0]}
    assert radius(model, sweeps=sweeps, grid=other) == {"splitter_error": 0.3}
    grid = {**sweeps, "theta_error": [0]}
    assert radius(model, sweeps=other, grid=grid) == {"splitter_error": 0.3}
    chips = pnn.Variation(splitter_error=0.02)
    found = radius(model, chips, sweeps)
    assert found == fabricated(model, chips).spread()


# Options that fit no model.


@pytest.mark.parametrize(
    "given, message",
    [
        ({"k": 0}, "k must be a positive integer. Received: 0"),
        ({"k": "a"}, "k must be a positive integer. Received: 'a'"),
        ({"smallest": -1}, "smallest must .*Received: -1"),
        ({"tolerance": 2.0}, "tolerance must .*Received: 2.0"),
        ({"tolerance": "fine"}, "tolerance must .*Received: 'fine'"),
        ({"trace_samples": 0}, "trace_samples must .*Received: 0"),
        ({"density_steps": 0}, "density_steps must .*Received: 0"),
        ({"density_vectors": 1.5}, "density_vectors must .*Received: 1.5"),
        ({"variables": "weights"}, "variables must .*Received: 'weights'"),
        ({"variables": ("all", "weights")}, "variables must .*Received"),
        ({"variables": ()}, "variables must .*Received"),
        ({"variables": None}, "variables must .*Received: None"),
        ({"steps": 3}, "dictionary of .*Received"),
        (3, "dictionary of .*Received: 3"),
    ],
)
def test_hessian_options_that_are_none(given, message):
    with pytest.raises(ValueError, match=f"`hessian`.*{message}"):
        hessian_options(given)


def test_hessian_options():
    assert hessian_options(False) is None
    assert hessian_options(True) == HessianOptions()
    assert hessian_options({"variables": "all"}).variables == ("all",)
    assert hessian_options({"variables": ["all"]}).variables == ("all",)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"points": 4}, "points must be an odd .*Received: 4"),
        ({"foo": 1}, "arguments of `loss_landscape`.*Received"),
        ({"x": X}, "arguments of `loss_landscape`.*Received"),
        ({"directions": "up"}, "directions must .*Received: 'up'"),
        ({"directions": [[], [], []]}, "directions must .*Received: 3 items"),
        ({"extent": -1}, "extent must be positive .*Received: -1"),
        ({"extent": (1, 2), "dimensions": 1}, "extent must .*Received"),
        ({"dimensions": 3}, "dimensions must .*Received: 3"),
        ({"tolerance": 0}, "tolerance must .*Received: 0"),
        ({"max_iterations": 0}, "max_iterations must .*Received: 0"),
        ({"seed": -1}, "seed must .*Received: -1"),
        ("yes", "dictionary of .*Received: 'yes'"),
    ],
)
def test_landscape_options_that_are_none(given, message):
    with pytest.raises(ValueError, match=f"`landscape`(?s:.*){message}"):
        landscape_options(given)


def test_landscape_options():
    assert landscape_options(False) is None
    assert landscape_options(True) == {}
    assert landscape_options({"points": 3}) == {"points": 3}


# Options that do not fit the model.


@pytest.mark.parametrize(
    "options, message",
    [
        ({"variables": "some"}, "'controls', 'all'"),
        ({"variables": lambda v: False}, "took none"),
        ({"batch_norm": "thawed"}, "batch_norm must .*Received: 'thawed'"),
        ({"batch_size": 0}, "batch_size must .*Received: 0"),
        ({"directions": [[np.ones(3)]]}, "shapes of the variables.*Received"),
    ],
)
def test_landscape_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=f"In `landscape`.*{message}"):
        check_curvature(network(), FEW, None, landscape_options(options))


@pytest.mark.parametrize("argument", ["hessian", "landscape"])
def test_a_model_that_trains_nothing_has_no_curvature(argument):
    model = network()
    model.trainable = False
    options = {"hessian": None, "landscape": None}
    options[argument] = {"hessian": HessianOptions(), "landscape": {}}[argument]
    with pytest.raises(ValueError, match=f"`{argument}=False`.*Received.*'network'"):
        check_curvature(model, FEW, **options)
    check_curvature(model, FEW, None, None)


@pytest.mark.parametrize(
    "given", [{"hessian": {"k": 0}}, {"landscape": {"batch_norm": "thawed"}}]
)
def test_a_report_refuses_before_it_measures(given, monkeypatch):
    monkeypatch.setattr(Study, "_measure", lambda *_: pytest.fail("measured"))
    arguments = {"hessian": False, "landscape": False, "worst_case": False, **given}
    with pytest.raises(ValueError, match=f"In `{next(iter(given))}`"):
        Report(
            network(), X, Y, sweeps={"temperature": [0.0]}, metric="loss", **arguments
        )


# Eigenvectors that were found already.

FEWER = {"k": 2, "smallest": 0, "trace_samples": 1, "density_steps": 2}


@pytest.fixture(scope="module")
def measured():
    model = network(keras.layers.BatchNormalization())
    return model, curvature_of(model, FEW, HessianOptions(**FEWER), 0, 0)


def searched(monkeypatch, model, options, curvature):
    """The landscape, and how often eigenvectors were searched for it."""
    calls = []
    real = measures.HessianOperator.eigenvalues

    def counted(self, *arguments, **named):
        calls.append(self.batch_norm)
        return real(self, *arguments, **named)

    monkeypatch.setattr(measures.HessianOperator, "eigenvalues", counted)
    options = {"points": 3, **options}
    return landscape_of(model, FEW, options, curvature, 0, 0), len(calls)


@pytest.mark.parametrize(
    "options",
    [{}, {"seed": 0, "tolerance": 0.01}, {"dimensions": 1}, {"batch_size": 7}],
    ids=["default", "same", "line", "batches"],
)
def test_a_landscape_takes_the_eigenvectors_of_the_curvature(
    monkeypatch, measured, options
):
    model, curvature = measured
    found, searches = searched(monkeypatch, model, options, curvature)
    count = options.get("dimensions", 2)
    assert searches == 0
    assert found.loss.shape == (3,) * count and (found.betas is None) == (count == 1)
    known = curvature["controls"].eigenvalues
    np.testing.assert_array_equal(found.eigenvalues, known.eigenvalues[:count])
    assert found.directions == "eigenvectors"


@pytest.mark.parametrize(
    "options",
    [
        {"batch_norm": "batch"},
        {"seed": 3},
        {"tolerance": 1e-4},
        {"max_iterations": 400},
        {"variables": lambda v: "kernel" in v.path or "control" in v.path},
    ],
    ids=["batch norm", "seed", "tolerance", "effort", "predicate"],
)
def test_a_landscape_of_another_search_has_its_own(monkeypatch, measured, options):
    model, curvature = measured
    if "variables" in options:
        # The same variables, and so the same search.
        assert searched(monkeypatch, model, options, curvature)[1] == 0
        options = {"variables": lambda v: v.path.startswith("two")}
    found, searches = searched(monkeypatch, model, options, curvature)
    assert searches == 1
    given = {"variables": "controls", "tolerance": 0.01, "points": 3, **options}
    expected = pnn.loss_landscape(model, X, Y, **given)
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-3)
    assert found.batch_norm == expected.batch_norm


def test_one_eigenvector_is_not_enough_for_a_plane(monkeypatch, measured):
    model, curvature = measured
    known = curvature["controls"]
    one = dataclasses.replace(
        known.eigenvalues, eigenvectors=known.eigenvalues.eigenvectors[:1]
    )
    short = {"controls": dataclasses.replace(known, eigenvalues=one)}
    found, searches = searched(monkeypatch, model, {}, short)
    assert searches == 1 and found.loss.shape == (3, 3)


def test_a_model_of_one_parameter_has_a_line():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    few = np.ones((4, 1)), np.zeros((4, 1)), None
    check_curvature(model, few, None, {})
    assert landscape_of(model, few, {"points": 3}, {}, 0, 0).loss.shape == (3,)
