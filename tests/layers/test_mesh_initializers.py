"""Where the phases of a mesh start."""

import json

import keras
import models
import numpy as np
import pytest
from mesh_columns import ARRANGEMENTS
from models import moved

from keras_pnn.layers import MZIMesh
from keras_pnn.layers import mesh_initializers as initializers
from keras_pnn.physics import decompose, mesh

KINDS = {
    "haar": initializers.Haar,
    "uniform": initializers.UniformPhases,
    "cross": initializers.Cross,
    "bar": initializers.Bar,
}


def arrays(phases):
    return [phases.theta, phases.phi, phases.gamma]


def assert_same(one, other):
    models.assert_same(arrays(one), arrays(other))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("name", KINDS)
def test_slots_without_a_cell_are_zero_and_no_other(name, arrangement):
    exists = mesh.cell_mask(6, arrangement)
    phases = KINDS[name](seed=1)(6, arrangement)
    assert phases.arrangement == arrangement and phases.gamma.shape == (6,)
    for values in (phases.theta, phases.phi):
        assert values.shape == exists.shape
        assert (values[exists] != 0).all() and (values[~exists] == 0).all()


@pytest.mark.parametrize("name", KINDS)
def test_a_seed_gives_the_same_phases(name):
    kind = KINDS[name]
    first = kind(seed=5)
    assert_same(first(6, "clements"), first(6, "clements"))
    assert_same(first(6, "clements"), kind(seed=5)(6, "clements"))
    for other in (kind(seed=6), kind()):
        apart = moved(*(arrays(start(6, "clements")) for start in (first, other)))
        assert min(apart) > 0


@pytest.mark.parametrize("name", KINDS)
def test_without_a_seed_the_seed_of_keras_decides(name):
    drawn = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        drawn.append([initializers.get(name)(4, "clements") for _ in range(2)])
    for one, other in zip(drawn[0], drawn[1], strict=True):
        assert_same(one, other)
    for other in (drawn[2][0], drawn[0][1]):
        assert (drawn[0][0].phi != other.phi).any()


def test_haar_is_that_of_the_decomposition():
    for arrangement in ARRANGEMENTS:
        assert_same(
            initializers.Haar(seed=3)(8, arrangement),
            decompose.haar_phases(8, 3, arrangement),
        )


def test_uniform_phases_fill_their_ranges():
    phases = initializers.UniformPhases(seed=0)(64, "clements")
    exists = mesh.cell_mask(64)
    for values, low in ((phases.theta[exists], 0), (phases.phi[exists], -np.pi)):
        n, width = values.size, np.pi - low
        assert values.min() >= low and values.max() <= np.pi
        for power in (1, 2):
            unit = ((values - low) / width) ** power
            mean, square = 1 / (power + 1), 1 / (2 * power + 1)
            assert abs(unit.mean() - mean) < 4 * np.sqrt((square - mean**2) / n)
    assert np.abs(phases.gamma).max() <= np.pi and phases.gamma.min() < -1


@pytest.mark.parametrize("kind, centre", [("cross", 0.0), ("bar", np.pi)])
def test_cross_and_bar_scatter_around_their_state(kind, centre):
    phases = KINDS[kind](spread=0.2, seed=0)(40, "clements")
    exists = mesh.cell_mask(40)
    theta, phi, n = phases.theta[exists], phases.phi[exists], exists.sum()
    assert abs(theta.mean() - centre) < 4 * 0.2 / np.sqrt(n)
    assert abs(theta.std() - 0.2) < 4 * 0.2 / np.sqrt(2 * n)
    for uniform in (phi, phases.gamma):
        assert np.abs(uniform).max() <= np.pi
        deviation = np.pi / np.sqrt(3)
        assert abs(uniform.std() - deviation) < 4 * deviation / np.sqrt(uniform.size)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("name", KINDS)
def test_a_layer_starts_there(name, arrangement):
    start = KINDS[name](seed=2)
    expected = start(5, arrangement)
    layer = MZIMesh(5, arrangement, phase_initializer=start, dtype="float64")
    layer.build((None, 5))
    for key, variable in layer.controls.items():
        np.testing.assert_array_equal(variable, getattr(expected, key))
    named = MZIMesh(5, arrangement, phase_initializer=name)
    assert type(named.phase_initializer) is KINDS[name]


@pytest.mark.parametrize("name", KINDS)
def test_config_round_trip(name):
    options = {"spread": 0.3} if name in ("cross", "bar") else {}
    start = KINDS[name](**options, seed=4)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(start)))
    for again in (initializers.get(config), type(start)(**start.get_config())):
        assert type(again) is type(start)
        assert again.get_config() == start.get_config()
        assert_same(again(5, "reck"), start(5, "reck"))
    assert initializers.get(start) is start


def test_a_seed_that_was_not_given_is_not_written_down():
    assert initializers.Haar().get_config() == {"seed": None}
    assert initializers.Cross().get_config() == {"spread": 0.05, "seed": None}


@pytest.mark.parametrize("identifier", ["glorot", "Haar", "", None, 3, len])
def test_unknown_identifiers(identifier):
    with pytest.raises(ValueError, match=r"'bar', 'cross', 'haar'.*Received"):
        initializers.get(identifier)
