"""What a study measures of curvature and landscape, and which searches it shares."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.robustness.curvature import (
    CurvatureStudy,
    HessianOptions,
    landscape_options,
)

RNG = np.random.default_rng(0)
X = RNG.random((30, 6)).astype("float32")
Y = RNG.integers(0, 3, 30)
FEWER = HessianOptions(
    k=2, smallest=0, trace_samples=1, density_steps=2, variables="controls"
)


@pytest.fixture(scope="module")
def net(network):
    return network(extra=(keras.layers.BatchNormalization(),))


def study(model, hessian=None, landscape=None):
    return CurvatureStudy(model, (X, Y, None), hessian, landscape, 0)


@pytest.fixture
def searches(monkeypatch):
    """Counts the searches for eigenvectors."""
    operator = pnn.curvature.HessianOperator
    counted, real = [], operator.eigenvalues

    def search(self, *arguments, **named):
        counted.append(self)
        return real(self, *arguments, **named)

    monkeypatch.setattr(operator, "eigenvalues", search)
    return counted


def test_curvature_is_that_of_the_functions(net):
    found = study(net, HessianOptions(k=2, trace_samples=2)).measure(0)["curvature"]
    assert set(found) == {"controls", "all"}
    expected = pnn.hessian_eigenvalues(net, X, Y, k=2, smallest=1, tolerance=0.01)
    values = found["controls"].eigenvalues
    np.testing.assert_allclose(values.eigenvalues, expected.eigenvalues, rtol=1e-3)
    assert len(values.smallest) == 1
    trace = pnn.hessian_trace(net, X, Y, vectors=2)
    assert found["controls"].trace.trace == pytest.approx(trace.trace, rel=1e-4)
    assert found["all"].density.parameters == found["all"].eigenvalues.parameters


@pytest.mark.parametrize(
    "options, searched",
    [
        ({}, False),
        ({"tolerance": 0.01, "dimensions": 1}, False),
        ({"variables": lambda v: v.path.endswith("/control")}, False),
        ({"directions": "random"}, False),
        ({"batch_norm": "batch"}, True),
        ({"seed": 3}, True),
        ({"tolerance": 1e-4}, True),
        ({"max_iterations": 400}, True),
        ({"variables": lambda v: v.path.startswith("two")}, True),
    ],
    ids=["default", "same", "predicate", "random", "batch", "seed", "tolerance"]
    + ["effort", "other variables"],
)
def test_a_landscape_takes_the_eigenvectors_of_the_curvature(
    net, searches, options, searched
):
    found = study(net, FEWER, {"points": 3, **options}).measure(0)
    assert len(searches) == 1 + searched
    around, known = found["landscape"], found["curvature"]["controls"].eigenvalues
    count = options.get("dimensions", 2)
    assert around.loss.shape == (3,) * count
    assert around.directions == options.get("directions", "eigenvectors")
    if not searched and "directions" not in options:
        np.testing.assert_array_equal(around.eigenvalues, known.eigenvalues[:count])
    assert around.batch_norm == options.get("batch_norm", "frozen")


def test_one_eigenvector_is_not_enough_for_a_plane(net, searches):
    one = dataclasses.replace(FEWER, k=1)
    assert study(net, one, {"points": 3}).measure(0)["landscape"].betas is not None
    assert len(searches) == 2


def test_a_model_of_one_parameter_has_a_line():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    few = np.ones((4, 1)), np.zeros((4, 1)), None
    found = CurvatureStudy(model, few, None, {"points": 3}, 0).measure(0)
    assert found["landscape"].loss.shape == (3,)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"points": 4}, "points"),
        ({"tolerance": 0}, "tolerance"),
        ({"variables": "some"}, "'controls', 'all'"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_landscape_options_that_do_not_fit(model, options, message):
    with pytest.raises(ValueError, match=f"In `landscape`.*{message}.*Received"):
        study(model, None, landscape_options(options))


def test_a_model_that_trains_nothing_has_no_curvature(network):
    model = network()
    model.trainable = False
    for argument, options in (("hessian", FEWER), ("landscape", {})):
        with pytest.raises(ValueError, match=f"`{argument}=False`.*'network_0'"):
            study(model, **{argument: options})
    assert study(model).measure(0) == {"curvature": {}, "landscape": None}
