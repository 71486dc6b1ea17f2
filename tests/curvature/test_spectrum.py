import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pnn as pnn
from keras_pnn.curvature.hessian import HessianOperator, hessian_eigenvalues
from keras_pnn.curvature.lanczos import extreme_vectors, tridiagonal
from keras_pnn.curvature.spectrum import find_trace

X = np.ones((4, 1))


class Quadratic(keras.layers.Layer):
    """Adds ½ wᵀAw to the loss."""

    def __init__(self, matrix, **kwargs):
        super().__init__(**kwargs)
        self.matrix = np.asarray(matrix)

    def build(self, input_shape):
        self.w = self.add_weight(shape=(len(self.matrix),), initializer="ones")

    def call(self, inputs):
        w = tf.convert_to_tensor(self.w)
        product = tf.linalg.matvec(tf.cast(self.matrix, w.dtype), w)
        self.add_loss(0.5 * tf.reduce_sum(w * product))
        return inputs


def quadratic(matrix):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, Quadratic(matrix)(inputs))
    model.compile("sgd")
    return model


@pytest.fixture
def float64():
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)


def symmetric(spectrum, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((len(spectrum),) * 2))[0]
    return basis * np.asarray(spectrum) @ basis.T


def mlp():
    """4·6 + 6 + 6·3 + 3 = 51 parameters."""
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "tanh", bias_initializer="random_normal"),
            keras.layers.Dense(3, "tanh"),
        ]
    )
    model.compile("sgd", "mse")
    rng = np.random.default_rng(1)
    return model, rng.standard_normal((30, 4)), rng.uniform(-1, 1, (30, 3))


def mlp_hessian(model, x, y):
    """The Hessian of the mean square error in float64, by the chain rule in NumPy.

    With residuals r = f − y: H = 2/N Σ (∇f ∇fᵀ + r ∇²f), where ∇²f comes from central
    differences of the closed form of ∇f.
    """
    shapes = [w.shape for w in model.get_weights()]
    start = np.concatenate([w.ravel() for w in model.get_weights()]).astype("float64")
    cuts = np.cumsum([np.prod(s) for s in shapes])[:-1]

    def gradient(flat):
        parts = zip(np.split(flat, cuts), shapes, strict=True)
        w1, b1, w2, b2 = (part.reshape(shape) for part, shape in parts)
        hidden = np.tanh(x @ w1 + b1)
        output = np.tanh(hidden @ w2 + b2)
        late = 2 / y.size * (output - y) * (1 - output**2)
        early = late @ w2.T * (1 - hidden**2)
        parts = (x.T @ early, early.sum(0), hidden.T @ late, late.sum(0))
        return np.concatenate([part.ravel() for part in parts])

    rows = []
    for unit in np.eye(len(start)):
        # Sixth order: the error of the truncation is that of rounding, near 1e-12.
        step, weights = 3e-3, {1: 45.0, 2: -9.0, 3: 1.0}
        rows.append(
            sum(
                w
                * (
                    gradient(start + n * step * unit)
                    - gradient(start - n * step * unit)
                )
                for n, w in weights.items()
            )
            / (60 * step)
        )
    matrix = np.stack(rows)
    return (matrix + matrix.T) / 2


def dense_hessian(model, x, y):
    """The Hessian by TensorFlow's Jacobian of the gradient, in the weights' dtype."""
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        parts = inner.gradient(loss, variables)
        flat = tf.concat([tf.reshape(g, [-1]) for g in parts], 0)
    rows = outer.jacobian(flat, variables, experimental_use_pfor=False)
    return np.concatenate([r.numpy().reshape(len(flat), -1) for r in rows], axis=1)


def extremes(matrix, k=5, smallest=1):
    values = np.linalg.eigvalsh(matrix)
    return values[::-1][:k], values[:smallest]


def test_tanh_network_against_dense_hessians_in_float64(float64):
    model, x, y = mlp()
    result = hessian_eigenvalues(
        model, x, y, 5, "all", batch_size=7, tolerance=1e-7, smallest=1
    )
    assert result.parameters == 51
    assert result.converged.all() and result.smallest_converged.all()
    largest, smallest = extremes(dense_hessian(model, x, y))
    np.testing.assert_allclose(result.eigenvalues, largest, rtol=1e-8)
    np.testing.assert_allclose(result.smallest, smallest, rtol=1e-8)
    largest, smallest = extremes(mlp_hessian(model, x, y))
    np.testing.assert_allclose(result.eigenvalues, largest, atol=1e-9)
    np.testing.assert_allclose(result.smallest, smallest, atol=1e-9)
    assert smallest[0] < 0
    # The residuals are those of the vectors that are given.
    operator = HessianOperator(model, x, y, "all")
    vector = operator.join(result.smallest_eigenvectors[0])
    error = operator.matvec(vector) - result.smallest[0] * vector
    np.testing.assert_allclose(
        np.linalg.norm(error), result.smallest_residuals[0], atol=1e-12
    )


def test_tanh_network_in_float32():
    model, x, y = mlp()
    result = hessian_eigenvalues(
        model, x, y, 5, "all", batch_size=7, tolerance=1e-4, smallest=1
    )
    largest, smallest = extremes(mlp_hessian(model, x, y))
    np.testing.assert_allclose(result.eigenvalues, largest, rtol=1e-4)
    np.testing.assert_allclose(result.smallest, smallest, rtol=1e-4)


@pytest.mark.parametrize("size", [5, 60])
def test_both_ends_in_order(float64, size):
    spectrum = np.r_[-7.0, -4, np.linspace(-0.5, 0.5, size - 4), 3, 5]
    result = hessian_eigenvalues(
        quadratic(symmetric(spectrum)), X, k=2, variables="all", smallest=2
    )
    np.testing.assert_allclose(result.eigenvalues, [5, 3], rtol=1e-4)
    np.testing.assert_allclose(result.smallest, [-7, -4], rtol=1e-4)
    assert result.smallest_converged.all()
    assert result.iterations < 60
    text = result.table()
    assert "n-1" in text and "-7" in text
    values = json.loads(json.dumps(result.to_dict()))
    assert values["smallest"] == result.smallest.tolist()
    assert "smallest_eigenvectors" not in values


def test_smallest_beyond_what_is_left_repeats_eigenvalues():
    model = quadratic(np.diag([1.0, 2, 3]))
    result = hessian_eigenvalues(model, X, k=3, variables="all", smallest=2)
    np.testing.assert_allclose(result.eigenvalues, [3, 2, 1], rtol=1e-6)
    np.testing.assert_allclose(result.smallest, [1, 2], rtol=1e-6)


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
    count = 0

    def product(vector):
        nonlocal count
        count += 1
        return spectrum * vector

    vectors = extreme_vectors(
        product, 200, k, smallest, lambda v: np.full(len(v), 1e-4), 500, seed
    )
    found = np.sum(vectors * (spectrum[:, None] * vectors), axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k + smallest), atol=1e-12)
    assert count < 200


def test_degenerate_pair_of_a_model():
    spectrum = np.r_[np.linspace(0, 1, 37), 5, 9, 9]
    result = hessian_eigenvalues(quadratic(np.diag(spectrum)), X, k=2, variables="all")
    np.testing.assert_allclose(result.eigenvalues, [9, 9], rtol=1e-5)
    assert result.converged.all()
    assert result.iterations < 60


def test_one_eigenvalue_needs_no_check_for_copies():
    count = 0
    spectrum = np.r_[np.zeros(198), 5.0, 9]

    def product(vector):
        nonlocal count
        count += 1
        return spectrum * vector

    extreme_vectors(product, 200, 1, 1, lambda v: np.full(len(v), 1e-6), 500, 0)
    # A spectrum of three values is exhausted by three products.
    assert count <= 4


def test_search_stays_within_its_products():
    count = 0
    spectrum = np.linspace(0, 1, 3000)

    def product(vector):
        nonlocal count
        count += 1
        return spectrum * vector

    vectors = extreme_vectors(product, 3000, 3, 1, lambda v: 1e-9 + 0 * v, 90, 0)
    assert count == 90
    assert vectors.shape == (3000, 4)
    found = np.sum(vectors * (spectrum[:, None] * vectors), axis=0)
    assert (found[:3] > 0.98).all() and found[3] < 0.01


@pytest.mark.parametrize("smallest", [-1, 1.5, True])
def test_bad_smallest(smallest):
    with pytest.raises(ValueError, match=r"smallest must be an integer .*Received"):
        hessian_eigenvalues(quadratic(np.eye(3)), X, variables="all", smallest=smallest)
    with pytest.raises(ValueError, match=r"smallest must be at most .* 3. Received: 4"):
        hessian_eigenvalues(quadratic(np.eye(3)), X, variables="all", smallest=4)


def test_trace_of_a_diagonal_matrix_is_exact():
    diagonal = np.arange(-3.0, 8.0)
    result = pnn.hessian_trace(
        quadratic(np.diag(diagonal)), X, vectors=5, variables="all"
    )
    np.testing.assert_allclose(result.trace, diagonal.sum(), rtol=1e-6)
    np.testing.assert_allclose(result.standard_error, 0, atol=1e-5)


def test_trace_within_its_standard_error_which_shrinks(float64):
    model, x, y = mlp()
    matrix = dense_hessian(model, x, y)
    operator = HessianOperator(model, x, y, "all")
    few, many = operator.trace(100), operator.trace(1600)
    for result in (few, many):
        assert abs(result.trace - np.trace(matrix)) < 3 * result.standard_error
    np.testing.assert_array_equal(few.estimates, many.estimates[:100])
    # Var vᵀHv = 2 Σ_{i≠j} H_ij².
    off = matrix - np.diag(np.diag(matrix))
    expected = np.sqrt(2 * np.sum(off**2) / np.array([100, 1600]))
    found = [few.standard_error, many.standard_error]
    np.testing.assert_allclose(found, expected, rtol=0.2)
    np.testing.assert_allclose(found[0] / found[1], 4, rtol=0.2)


def test_standard_error_covers():
    """Of many estimates, about 95 % lie within two standard errors."""
    matrix = symmetric(np.linspace(-1, 2, 30))

    class Operator:
        size = 30

        @staticmethod
        def made():
            return dict.fromkeys(
                ("variables", "parameters", "loss", "samples", "batch_size")
                + ("batch_norm",)
            )

        @staticmethod
        def products(verbose):
            class Product:
                def __call__(self, vector):
                    return matrix @ vector

                def finish(self):
                    pass

            return Product()

    results = [find_trace(Operator, 40, seed, 0) for seed in range(400)]
    inside = [abs(r.trace - 15.0) < 2 * r.standard_error for r in results]
    assert 0.91 < np.mean(inside) < 0.98


def test_quadrature_is_exact_for_polynomials():
    matrix = symmetric(np.linspace(-1, 2, 30))
    start = np.random.default_rng(2).standard_normal(30)
    nodes, weights = tridiagonal(lambda v: matrix @ v, start, 5)
    assert len(nodes) == 5
    np.testing.assert_allclose(weights.sum(), 1)
    for power in range(10):
        expected = start @ np.linalg.matrix_power(matrix, power) @ start
        found = weights @ nodes**power
        np.testing.assert_allclose(found, expected / (start @ start), rtol=1e-10)


def test_density_of_a_known_spectrum_within_its_broadening(float64):
    values, shares = np.array([-1.0, 0.5, 4.0]), np.array([0.25, 0.5, 0.25])
    spectrum = np.repeat(values, [10, 20, 10])
    width = 0.1
    result = pnn.hessian_density(
        quadratic(symmetric(spectrum)),
        X,
        steps=20,
        vectors=300,
        broadening=width,
        variables="all",
    )
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
        np.testing.assert_allclose(
            result.share(value - 0.1, value + 0.1), share, atol=0.02
        )


def test_density_of_a_continuous_spectrum():
    spectrum = np.linspace(0, 1, 400)
    result = pnn.hessian_density(
        quadratic(np.diag(spectrum)),
        X,
        steps=40,
        vectors=20,
        broadening=0.05,
        variables="all",
    )
    inside = (result.grid > 0.15) & (result.grid < 0.85)
    np.testing.assert_allclose(result.density[inside], 1, atol=0.2)
    outside = (result.grid < -0.2) | (result.grid > 1.2)
    assert (result.density[outside] < 1e-3).all()


def test_moments_agree_with_the_matrix_and_the_trace(float64):
    model, x, y = mlp()
    operator = HessianOperator(model, x, y, "all", batch_size=8)
    density = operator.density(steps=12, vectors=6, seed=5)
    trace = operator.trace(6, seed=5)
    np.testing.assert_allclose(density.trace, trace.trace, rtol=1e-9)
    np.testing.assert_allclose(density.moment(0), 1)
    matrix = dense_hessian(model, x, y)
    rng = np.random.default_rng(5)
    signs = [rng.choice([-1.0, 1.0], 51) for _ in range(6)]
    cube = np.mean([v @ matrix @ matrix @ matrix @ v for v in signs]) / 51
    np.testing.assert_allclose(density.moment(3), cube, rtol=1e-9)
    values = np.linalg.eigvalsh(matrix)
    assert values[0] - 1e-9 < density.nodes.min()
    assert density.nodes.max() < values[-1] + 1e-9


def test_ragged_batches_equal_one_batch(float64):
    model, x, y = mlp()
    whole, parts = (
        HessianOperator(model, x, y, "all", batch_size=size) for size in (30, 7)
    )
    np.testing.assert_allclose(parts.trace(3).trace, whole.trace(3).trace, rtol=1e-12)
    one, other = whole.density(8, 2), parts.density(8, 2)
    np.testing.assert_allclose(other.nodes, one.nodes, atol=1e-10)
    np.testing.assert_allclose(other.density, one.density, atol=1e-6)


@pytest.mark.parametrize("diagonal", [[0.0] * 5, [3.0] * 5, [2.0]])
def test_density_of_one_value(diagonal):
    result = pnn.hessian_density(
        quadratic(np.diag(diagonal)), X, vectors=1, variables="all"
    )
    np.testing.assert_allclose(result.nodes, diagonal[:1], atol=1e-6)
    cell = result.grid[1] - result.grid[0]
    np.testing.assert_allclose(result.density.sum() * cell, 1, rtol=1e-5)
    assert np.isnan(result.standard_error).all()


def test_results_as_text_and_dict(capsys):
    model = quadratic(np.diag([1.0, 2.0, 3.0]))
    before = [v.numpy() for v in model.variables]
    trace = pnn.hessian_trace(model, X, vectors=3, variables="all", verbose=1)
    density = pnn.hessian_density(model, X, variables="all", seed=2)
    assert "trace 6" in str(trace) and "3 random vectors" in str(trace)
    assert "mean 2" in str(density) and "seed 2" in str(density)
    assert "3" in capsys.readouterr().out
    for result in (trace, density):
        values = json.loads(json.dumps(result.to_dict()))
        assert values["samples"] == 4 and values["parameters"] == 3
    assert values["density"] == density.density.tolist()
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "function, options, message",
    [
        (pnn.hessian_trace, {"vectors": 0}, "vectors must .*Received: 0"),
        (pnn.hessian_density, {"vectors": 1.5}, "vectors must .*Received: 1.5"),
        (pnn.hessian_density, {"steps": True}, "steps must .*Received: True"),
        (pnn.hessian_density, {"broadening": 0}, "broadening must .*Received: 0"),
        (pnn.hessian_density, {"broadening": np.nan}, "broadening must .*Received: n"),
        (pnn.hessian_trace, {"variables": "most"}, "Received: 'most'"),
        (pnn.hessian_trace, {"batch_norm": "moving"}, "Received: 'moving'"),
    ],
)
def test_bad_input_is_named(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(quadratic(np.eye(3)), X, **{"variables": "all", **options})
