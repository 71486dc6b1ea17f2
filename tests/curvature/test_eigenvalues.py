import json

import numpy as np
import pytest
from models import assert_same

import keras_pnn as pnn
from keras_pnn.curvature.lanczos import extreme_vectors

X = np.ones((4, 1))


def eigenvalues(model, **options):
    return pnn.hessian_eigenvalues(model, X, variables="all", **options)


@pytest.mark.parametrize(
    "diagonal, k, smallest, expected",
    [
        ([1, 4, 9], 1, 0, [9]),
        ([1, 4, 9], 3, 0, [9, 4, 1]),
        ([1, 4, 9], 3, 2, [9, 4, 1, 1, 4]),
        ([-10, 3, 1], 2, 1, [3, 1, -10]),
        ([-2, -3], 1, 0, [-2]),
        ([0] * 40, 3, 0, [0, 0, 0]),
        ([4] + [0] * 39, 3, 0, [4, 0, 0]),
        ([9, 9, 5, *np.linspace(0, 1, 37)], 2, 0, [9, 9]),
    ],
)
def test_diagonal_matrices(quadratic, diagonal, k, smallest, expected):
    result = eigenvalues(quadratic(diagonal), k=k, smallest=smallest)
    found = [*result.eigenvalues, *result.smallest]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert result.converged.all() and result.smallest_converged.all()
    assert result.iterations < 60


@pytest.mark.parametrize("low", [0.0, -100.0])
def test_search_finds_the_largest_algebraic_eigenvalues(quadratic, symmetric, low):
    spectrum = np.concatenate([[low, low / 2], np.linspace(0, 1, 55), [5, 7, 9]])
    matrix, basis = symmetric(spectrum)
    result = eigenvalues(quadratic(matrix), k=3, tolerance=1e-5)
    np.testing.assert_allclose(result.eigenvalues, [9, 7, 5], rtol=2e-5)
    assert result.converged.all()
    assert result.iterations < 200
    vectors = np.stack([v[0] for v in result.eigenvectors])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(abs(vectors @ basis[:, :-4:-1]), np.eye(3), atol=1e-3)


@pytest.mark.parametrize("k", [1, 4])
def test_search_cut_short_says_so(quadratic, k):
    model = quadratic(np.linspace(0, 1, 400))
    result = eigenvalues(model, k=k, tolerance=1e-5, max_iterations=12)
    assert len(result.eigenvalues) == len(result.eigenvectors) == k
    assert not result.converged.any()
    assert result.iterations < 40
    assert (result.residuals > 0).all()
    assert 0.8 < result.eigenvalues[0] <= 1
    assert "no" in result.table()


@pytest.mark.parametrize("tolerance, accuracy", [(1e-8, 1e-8), (1e-3, 1e-5)])
def test_network_against_its_dense_hessian(float64, network, data, tolerance, accuracy):
    operator = pnn.curvature.HessianOperator(network(), *data, "all", batch_size=7)
    result = operator.eigenvalues(4, tolerance, smallest=2)
    expected = np.linalg.eigvalsh(operator @ np.eye(operator.size))
    np.testing.assert_allclose(result.eigenvalues, expected[:-5:-1], rtol=accuracy)
    np.testing.assert_allclose(result.smallest, expected[:2], rtol=accuracy)
    assert expected[0] < 0
    assert result.converged.all() and result.smallest_converged.all()
    shapes = [v.shape for v in operator.variables]
    assert [[part.shape for part in v] for v in result.eigenvectors] == [shapes] * 4
    # The residuals are those of the vectors that are given.
    vectors = [*result.eigenvectors, *result.smallest_eigenvectors]
    flat = np.stack([operator.join(vector) for vector in vectors], axis=1)
    values = [*result.eigenvalues, *result.smallest]
    errors = np.linalg.norm(operator @ flat - flat * values, axis=0)
    residuals = [*result.residuals, *result.smallest_residuals]
    np.testing.assert_allclose(errors, residuals, atol=1e-12)


def test_same_seed_gives_the_same_numbers(network, data):
    operator = pnn.curvature.HessianOperator(network(), *data, "all")
    first, second, other = (operator.eigenvalues(2, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.eigenvalues, second.eigenvalues)
    assert_same(first.eigenvectors[0], second.eigenvectors[0])
    np.testing.assert_allclose(first.eigenvalues, other.eigenvalues, rtol=1e-3)


def counting(spectrum):
    """Returns the product with a diagonal matrix, and a list of its calls."""
    calls = []

    def product(vector):
        calls.append(vector)
        return spectrum * vector

    return product, calls


BULK = np.linspace(0, 1, 194)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "high, k, smallest, expected",
    [
        ([9, 9, 5, 4, 3, 2], 2, 0, [9, 9]),
        ([9, 9, 9, 5, 4, 3], 3, 0, [9, 9, 9]),
        ([9, 9, 9, 5, 5, 3], 5, 0, [9, 9, 9, 5, 5]),
        ([5, 5, 5, 5, 5, 5], 4, 0, [5, 5, 5, 5]),
        ([9, 5, 5, -6, -6, -8], 3, 3, [9, 5, 5, -8, -6, -6]),
        ([9, 5, 4, -8, -8, -6], 1, 2, [9, -8, -8]),
        # One per cent apart: the check has to last for longer.
        ([5, 5, 4.95, 4.9, 4.9, 4], 2, 0, [5, 5]),
    ],
    ids=["double", "triple", "two groups", "all", "both ends", "low", "close"],
)
def test_degenerate_eigenvalues_count_as_often_as_they_occur(
    high, k, smallest, expected, seed
):
    spectrum = np.r_[BULK, high]
    product, calls = counting(spectrum)
    vectors = extreme_vectors(
        product, 200, k, smallest, lambda v: np.full(len(v), 1e-4), 500, seed
    )
    found = np.sum(vectors * (spectrum[:, None] * vectors), axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k + smallest), atol=1e-12)
    assert len(calls) < 200


def test_one_eigenvalue_needs_no_check_for_copies():
    product, calls = counting(np.r_[np.zeros(198), 5.0, 9])
    extreme_vectors(product, 200, 1, 1, lambda v: np.full(len(v), 1e-6), 500, 0)
    # A spectrum of three values is exhausted by three products.
    assert len(calls) <= 4


def test_search_stays_within_its_products():
    spectrum = np.linspace(0, 1, 3000)
    product, calls = counting(spectrum)
    vectors = extreme_vectors(product, 3000, 3, 1, lambda v: 1e-9 + 0 * v, 90, 0)
    assert len(calls) == 90
    assert vectors.shape == (3000, 4)
    found = np.sum(vectors * (spectrum[:, None] * vectors), axis=0)
    assert (found[:3] > 0.98).all() and found[3] < 0.01


def test_result_as_dict_and_table(quadratic, capsys):
    model = quadratic([1.0, 2.0, 3.0])
    result = eigenvalues(model, k=2, verbose=1, smallest=2)
    values = json.loads(json.dumps(result.to_dict()))
    assert not {"eigenvectors", "smallest_eigenvectors"} & values.keys()
    assert values["eigenvalues"] == result.eigenvalues.tolist()
    assert values["smallest"] == result.smallest.tolist()
    assert values["parameters"] == 3
    assert values["variables"] == [v.path for v in model.trainable_variables]
    names = [line.split()[0] for line in str(result).splitlines()]
    assert names == ["eigenvalue", "1", "2", "n", "n-1", "loss"]
    assert f"{result.eigenvalues[0]:.6g}" in str(result) == result.table()
    assert str(result.iterations) in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": 0}, r"`k` must be an integer in \[1, 3\]. Received: 0"),
        ({"k": 4}, r"`k` must .*Received: 4"),
        ({"smallest": -1}, r"`smallest` must .* in \[0, 3\]. Received: -1"),
        ({"tolerance": 1}, "`tolerance` must .*Received: 1"),
        ({"max_iterations": 0}, "`max_iterations` must .*Received: 0"),
        ({"seed": None}, "`seed` must .*Received: None"),
    ],
)
def test_bad_input_is_named(quadratic, options, message):
    with pytest.raises(ValueError, match=message):
        eigenvalues(quadratic(np.eye(3)), **options)
