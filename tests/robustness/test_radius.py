"""How far the search for the worst device goes: devices' spread, reach of sweeps."""

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.robustness import Specification
from keras_pnn.robustness.points import Plan
from keras_pnn.robustness.worst_case import default_radius


@pytest.fixture(scope="module")
def net(network):
    return network(extra=(keras.layers.Dense(5),))


@pytest.fixture(scope="module")
def mesh():
    inputs = keras.Input((4,))
    return keras.Model(inputs, pnn.layers.MZIMesh(4, name="mesh")(inputs))


class Moved(pnn.layers.PhysicalLayer):
    """Adds its `shift`, of which the last element does not exist."""

    def build(self, input_shape):
        exists = np.array([True, True, True, False])
        self.add_imperfection("shift", (4,), unit="µm", mask=exists)

    def forward(self, inputs, controls, imperfections):
        return inputs + imperfections["shift"]


@pytest.fixture(scope="module")
def moved():
    inputs = keras.Input((4,))
    return keras.Model(inputs, Moved(name="stage")(inputs))


def plan(model, **arguments):
    return Plan(model, Specification(sensitivity=False, n=3, **arguments))


def radius(model, **arguments):
    return default_radius(plan(model, **arguments))


def device(**sizes):
    """A device with the same deviation in each element of a layer of rings."""
    layers, shapes = ("one", "two"), [[6, 5], [5, 3]]
    arrays = {
        ("resonance_shift", i): np.full(shapes[i], sizes[layer], "float32")
        for i, layer in enumerate(layers)
        if layer in sizes
    }
    return pnn.SimulatedDevice(arrays, {"resonance_shift": shapes}, "by hand")


@pytest.mark.parametrize(
    "devices, expected",
    [
        # 30 elements of 45 deviate by 0.1.
        ([device(one=0.1, two=0.0)], {"resonance_shift": 0.1 * np.sqrt(30 / 45)}),
        (
            [device(one=0.3, two=0.3), device(one=-0.1, two=0.1)],
            {"resonance_shift": np.sqrt((0.09 + 0.01) / 2)},
        ),
        ([device(one=0.1)], {"one/resonance_shift": 0.1}),
        (None, {}),
    ],
    ids=["elements", "devices", "one layer", "none"],
)
def test_the_spread_of_devices(net, devices, expected):
    assert radius(net, devices=devices) == pytest.approx(expected)


def test_a_layer_that_no_device_deviates_in_goes_as_far_as_the_sweep(net):
    found = radius(net, devices=[device(one=0.1)], sweeps={"resonance_shift": [0.2]})
    assert found["two/resonance_shift"] == 0.2
    assert found["one/resonance_shift"] == pytest.approx(0.1)


def test_elements_that_do_not_exist_do_not_count(moved):
    chips = [pnn.SimulatedDevice({("shift", 0): np.array([0.3, 0.0, 0.0, 0.0])})]
    rms = {"shift": pytest.approx(0.3 / np.sqrt(3))}
    assert radius(moved, devices=chips) == rms
    assert radius(moved, sweeps={"shift": [(0.3, 0, 0, 0), (0, 0, 0, 9)]}) == rms
    points = [(6, 0, 0, 0), (2, 2, 2, 0), (0, 0, 0, 0)]
    assert radius(moved, sweeps={"shift": points}) == {"shift": 2.0}


@pytest.mark.parametrize("argument", ["sweeps", "grid"])
def test_the_first_step_of_an_axis_is_a_reach(net, argument):
    axes = {"temperature": [-2.0, 0.0, 1.0], "half_width_error": [0.0, 0.2]}
    found = radius(net, **{argument: axes})
    assert found == {"temperature": 1.0, "half_width_error": 0.2}


@pytest.mark.parametrize(
    "sweeps, expected",
    [
        ({"one/temperature": [0, 2]}, {"one/temperature": 2}),
        ({"one/temperature": [0], "kernel": [1]}, {}),
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
    ],
    ids=["layer", "zero and weight", "beyond", "within", "each", "array"],
)
def test_what_sweeps_reach(net, sweeps, expected):
    assert radius(net, sweeps=sweeps) == expected


def test_what_is_stuck_has_no_radius(net):
    # The first control of a bank is free, then stuck at 0.
    points = np.zeros((2, 6, 5, 2))
    points[1, 0, 0, 0] = 1
    assert radius(net, sweeps={"one/control_stuck": points}) == {}
    assert radius(net, variation=pnn.Variation(stuck=pnn.Stuck(0.5))) == {}


def test_the_devices_spread_comes_before_a_sweep(net):
    variation = pnn.Variation(resonance_shift=0.1, temperature=1.0)
    sweeps = {"temperature": [0, 5], "one/temperature": [9], "one/resonance_shift": [7]}
    found = radius(net, variation=variation, sweeps=sweeps)
    assert found == plan(net, variation=variation).spread()
    assert set(found) == {"resonance_shift", "temperature"}


def test_two_names_of_one_variable_are_one_radius(mesh):
    angle = abs(np.arcsin(0.2) / 2)
    sweeps = {"splitter_imbalance": [0, 0.2]}
    assert radius(mesh, sweeps=sweeps) == {"splitter_error": pytest.approx(angle)}
    # The larger reach counts, whichever comes first.
    other = {"splitter_error": [0.3], "theta_error": [0]}
    assert radius(mesh, sweeps=sweeps, grid=other) == {"splitter_error": 0.3}
    grid = {**sweeps, "theta_error": [0]}
    assert radius(mesh, sweeps=other, grid=grid) == {"splitter_error": 0.3}
    variation = pnn.Variation(splitter_error=0.02)
    found = radius(mesh, variation=variation, sweeps=sweeps)
    assert found == plan(mesh, variation=variation).spread()
