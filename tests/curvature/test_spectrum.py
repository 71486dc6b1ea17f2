import json

import numpy as np
import pytest
from models import bits

import keras_pnn as pnn
from keras_pnn.curvature.lanczos import tridiagonal
from keras_pnn.curvature.operator import HessianOperator

X = np.ones((4, 1))


def test_trace_of_a_diagonal_matrix_is_exact(quadratic):
    diagonal = np.arange(-3.0, 8.0)
    result = pnn.hessian_trace(quadratic(diagonal), X, vectors=5, variables="all")
    np.testing.assert_allclose(result.trace, diagonal.sum(), rtol=1e-6)
    np.testing.assert_allclose(result.standard_error, 0, atol=1e-5)


def test_trace_within_its_standard_error_which_shrinks(float64, quadratic, symmetric):
    matrix, _ = symmetric(np.linspace(-1, 2, 30))
    operator = HessianOperator(quadratic(matrix), X, variables="all")
    few, many = operator.trace(100), operator.trace(1600)
    np.testing.assert_array_equal(few.estimates, many.estimates[:100])
    # Var vᵀHv = 2 Σ_{i≠j} H_ij².
    off = matrix - np.diag(np.diag(matrix))
    expected = np.sqrt(2 * np.sum(off**2) / np.array([100, 1600]))
    found = [few.standard_error, many.standard_error]
    np.testing.assert_allclose(found, expected, rtol=0.2)
    # Of many estimates, about 95 % lie within two standard errors.
    parts = many.estimates.reshape(-1, 40)
    errors = parts.std(axis=1, ddof=1) / np.sqrt(40)
    inside = abs(parts.mean(axis=1) - 15.0) < 2 * errors
    assert 0.85 < np.mean(inside) <= 1
    assert abs(many.trace - 15.0) < 3 * many.standard_error


def test_quadrature_is_exact_for_polynomials(symmetric):
    matrix, _ = symmetric(np.linspace(-1, 2, 30))
    start = np.random.default_rng(2).standard_normal(30)
    nodes, weights = tridiagonal(lambda v: matrix @ v, start, 5)
    assert len(nodes) == 5
    np.testing.assert_allclose(weights.sum(), 1)
    for power in range(10):
        expected = start @ np.linalg.matrix_power(matrix, power) @ start
        found = weights @ nodes**power
        np.testing.assert_allclose(found, expected / (start @ start), rtol=1e-10)


def test_density_of_a_known_spectrum_within_its_broadening(
    float64, quadratic, symmetric
):
    values, shares = np.array([-1.0, 0.5, 4.0]), np.array([0.25, 0.5, 0.25])
    spectrum = np.repeat(values, [10, 20, 10])
    width = 0.1
    operator = HessianOperator(quadratic(symmetric(spectrum)[0]), X, variables="all")
    result = operator.density(20, vectors=300, broadening=width)
    cell = result.grid[1] - result.grid[0]
    np.testing.assert_allclose(result.density.sum() * cell, 1, rtol=1e-6)
    # Rounding does not add nodes: three distinct eigenvalues, three nodes.
    np.testing.assert_allclose(result.nodes.reshape(300, 3), [values] * 300, atol=1e-8)
    exact = sum(
        s * np.exp(-(((result.grid - v) / width) ** 2) / 2) / np.sqrt(2 * np.pi) / width
        for v, s in zip(values, shares, strict=True)
    )
    # A weight is a mean over 300 vectors.
    error = np.abs(result.density - exact)
    assert (error < 4 * result.standard_error + 0.02).all()
    for value, share in zip(values, shares, strict=True):
        near = np.abs(result.grid - value) < 5 * width
        np.testing.assert_allclose(result.density[near].sum() * cell, share, atol=0.02)
        found = result.share(value - 0.1, value + 0.1)
        np.testing.assert_allclose(found, share, atol=0.02)


def test_moments_agree_with_the_matrix_and_the_trace(float64, network, data):
    operator = HessianOperator(network(), *data, "all", batch_size=4)
    density = operator.density(steps=12, vectors=6, seed=5)
    trace = operator.trace(6, seed=5)
    np.testing.assert_allclose(density.trace, trace.trace, rtol=1e-9)
    np.testing.assert_allclose(density.moment(0), 1)
    matrix = operator @ np.eye(38)
    rng = np.random.default_rng(5)
    signs = [rng.choice([-1.0, 1.0], 38) for _ in range(6)]
    cube = np.mean([v @ matrix @ matrix @ matrix @ v for v in signs]) / 38
    np.testing.assert_allclose(density.moment(3), cube, rtol=1e-9)
    values = np.linalg.eigvalsh(matrix)
    assert values[0] - 1e-9 < density.nodes.min()
    assert density.nodes.max() < values[-1] + 1e-9


@pytest.mark.parametrize("diagonal", [[0.0] * 5, [3.0] * 5, [2.0]])
def test_density_of_one_value(quadratic, diagonal):
    result = pnn.hessian_density(quadratic(diagonal), X, vectors=1, variables="all")
    np.testing.assert_allclose(result.nodes, diagonal[:1], atol=1e-6)
    cell = result.grid[1] - result.grid[0]
    np.testing.assert_allclose(result.density.sum() * cell, 1, rtol=1e-5)
    assert np.isnan(result.standard_error).all()


def test_results_as_text_and_dict(quadratic, capsys):
    model = quadratic([1.0, 2.0, 3.0])
    before = bits(model)
    trace = pnn.hessian_trace(model, X, vectors=3, variables="all", verbose=1)
    density = pnn.hessian_density(model, X, variables="all", seed=2)
    assert "trace 6" in str(trace) and "3 random vectors" in str(trace)
    assert "mean 2" in str(density) and "seed 2" in str(density)
    assert "3" in capsys.readouterr().out
    for result in (trace, density):
        values = json.loads(json.dumps(result.to_dict()))
        assert values["samples"] == 4 and values["parameters"] == 3
    assert values["density"] == density.density.tolist()
    assert bits(model) == before


@pytest.mark.parametrize(
    "function, options, message",
    [
        (pnn.hessian_trace, {"vectors": 0}, "`vectors` must .*Received: 0"),
        (pnn.hessian_density, {"vectors": 1.5}, "`vectors` must .*Received: 1.5"),
        (pnn.hessian_density, {"steps": True}, "`steps` must .*Received: True"),
        (pnn.hessian_density, {"broadening": 0}, "`broadening` must .*Received: 0"),
        (pnn.hessian_density, {"broadening": np.nan}, "`broadening` .*Received: n"),
        (pnn.hessian_trace, {"seed": -1}, "seed. must .*Received: -1"),
    ],
)
def test_bad_input_is_named(quadratic, function, options, message):
    with pytest.raises(ValueError, match=message):
        function(quadratic(np.eye(3)), X, **{"variables": "all", **options})
