import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_pnn.curvature.hessian import HessianOperator, hessian_eigenvalues
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.training.sat import SATModel


class Quadratic(keras.layers.Layer):
    """Adds ½ wᵀAw to the loss."""

    def __init__(self, matrix, **kwargs):
        super().__init__(**kwargs)
        self.matrix = np.asarray(matrix, "float32")

    def build(self, input_shape):
        self.w = self.add_weight(shape=(len(self.matrix),), initializer="ones")

    def call(self, inputs):
        w = keras.ops.convert_to_tensor(self.w)
        product = keras.ops.matmul(self.matrix, w[:, None])[:, 0]
        self.add_loss(0.5 * keras.ops.sum(w * product))
        return inputs


class Phase(PhysicalLayer):
    """A complex field between real controls and a real intensity."""

    def build(self, input_shape):
        self.add_control("phase", input_shape[-1:], "rad", initializer="ones")
        self.add_imperfection("phase_error", input_shape[-1:], "rad")

    def forward(self, inputs, controls, imperfections):
        angle = controls["phase"] + imperfections["phase_error"]
        field = tf.complex(inputs, tf.zeros_like(inputs)) * tf.exp(
            tf.complex(tf.zeros_like(angle), angle)
        )
        return tf.abs(1.0 + tf.reduce_sum(field, axis=-1, keepdims=True)) ** 2


@pytest.fixture
def float64():
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)


def quadratic_model(matrix):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, Quadratic(matrix)(inputs))
    model.compile("sgd")
    return model


def network(*extra, loss="mse", inputs=3, outputs=2, **dense):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((inputs,)),
            keras.layers.Dense(4, activation="tanh", **dense),
            *extra,
            keras.layers.Dense(outputs),
        ]
    )
    model.compile("sgd", loss=loss)
    return model


def data(samples=10, inputs=3, outputs=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, inputs)).astype("float32")
    return x, rng.standard_normal((samples, outputs)).astype("float32")


def dense_hessian(operator):
    return np.stack([operator.matvec(unit) for unit in np.eye(operator.size)])


def jacobian_hessian(model, x, y):
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            loss = model.compute_loss(x, y, model(x, training=False), training=False)
        gradients = inner.gradient(loss, variables)
        flat = tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)
    rows = outer.jacobian(flat, variables, experimental_use_pfor=False)
    return np.concatenate([r.numpy().reshape(len(flat), -1) for r in rows], axis=1)


def difference_hessian(model, x, y, step=1e-5):
    def gradient():
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=False), training=False)
        parts = tape.gradient(loss, [v.value for v in model.trainable_variables])
        return np.concatenate([np.ravel(p) for p in parts])

    rows = []
    for variable in model.trainable_variables:
        start = variable.numpy()
        for index in np.ndindex(*start.shape):
            sides = []
            for sign in (1, -1):
                moved = start.copy()
                moved[index] += sign * step
                variable.assign(moved)
                sides.append(gradient())
            rows.append((sides[0] - sides[1]) / (2 * step))
        variable.assign(start)
    return np.stack(rows)


@pytest.mark.parametrize(
    "diagonal, k, expected",
    [
        ([1, 4, 9], 1, [9]),
        ([1, 4, 9], 3, [9, 4, 1]),
        ([-10, 3, 1], 1, [3]),
        ([-10, 3, 1], 2, [3, 1]),
        ([-2, -3], 1, [-2]),
    ],
)
def test_quadratic_has_the_matrix_as_its_hessian(diagonal, k, expected):
    model = quadratic_model(np.diag(diagonal))
    result = hessian_eigenvalues(model, np.ones((4, 1)), k=k, variables="all")
    np.testing.assert_allclose(result.eigenvalues, expected, rtol=1e-5)
    assert result.converged.all()
    vector = result.eigenvectors[0][0]
    np.testing.assert_allclose(abs(vector), np.equal(diagonal, expected[0]), atol=1e-5)


@pytest.mark.parametrize("low", [0.0, -100.0])
def test_search_finds_the_largest_algebraic_eigenvalues_in_order(low):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    spectrum = np.concatenate([[low, low / 2], np.linspace(0, 1, 55), [5, 7, 9]])
    model = quadratic_model(basis * spectrum @ basis.T)
    result = hessian_eigenvalues(
        model, np.ones((4, 1)), k=3, variables="all", tolerance=1e-5
    )
    np.testing.assert_allclose(result.eigenvalues, [9, 7, 5], rtol=2e-5)
    assert result.converged.all()
    assert result.iterations < 200
    vectors = np.stack([v[0] for v in result.eigenvectors])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(abs(vectors @ basis[:, :-4:-1]), np.eye(3), atol=1e-3)


@pytest.mark.parametrize("rank", [0, 1])
def test_search_with_more_eigenvalues_than_rank(rank):
    matrix = np.zeros((40, 40))
    matrix[:rank, :rank] = 4.0
    result = hessian_eigenvalues(
        quadratic_model(matrix), np.ones((4, 1)), k=3, variables="all"
    )
    np.testing.assert_allclose(result.eigenvalues, [4.0 * rank, 0, 0], atol=1e-5)
    assert result.converged.all()


@pytest.mark.parametrize("k", [1, 4])
def test_search_cut_short_says_so(k):
    matrix = np.diag(np.linspace(0, 1, 400))
    result = hessian_eigenvalues(
        quadratic_model(matrix),
        np.ones((4, 1)),
        k=k,
        variables="all",
        tolerance=1e-5,
        max_iterations=12,
    )
    assert len(result.eigenvalues) == len(result.eigenvectors) == k
    assert not result.converged.any()
    assert result.iterations < 40
    assert (result.residuals > 0).all()
    assert 0.8 < result.eigenvalues[0] <= 1
    assert "no" in result.table()


def test_linear_regression():
    x, y = data(samples=50, inputs=5, outputs=1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", loss="mse")
    result = hessian_eigenvalues(model, x, y, k=5, variables="all", batch_size=16)
    expected = np.linalg.eigvalsh(2 * x.T @ x / len(x))[::-1]
    np.testing.assert_allclose(result.eigenvalues, expected, rtol=1e-5)
    np.testing.assert_allclose(result.loss, model.evaluate(x, y, verbose=0), rtol=1e-5)


def test_network_in_float64_against_dense_hessians(float64):
    model = network(kernel_regularizer=keras.regularizers.L2(0.05))
    x, y = data()
    operator = HessianOperator(model, x, y, "all", batch_size=4)
    found = dense_hessian(operator)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    np.testing.assert_allclose(found, jacobian_hessian(model, x, y), atol=1e-10)
    np.testing.assert_allclose(found, difference_hessian(model, x, y), atol=1e-6)
    # Of 12 + 4 + 8 + 2 parameters.
    expected = np.linalg.eigvalsh(found)[::-1][:3]
    np.testing.assert_allclose(operator.eigenvalues(3).eigenvalues, expected)


def test_search_on_a_network_agrees_with_the_dense_hessian(float64):
    model = network(inputs=8)
    x, y = data(inputs=8)
    operator = HessianOperator(model, x, y, "all")
    assert operator.size > 32
    result = operator.eigenvalues(3, tolerance=1e-8)
    expected = np.linalg.eigvalsh(dense_hessian(operator))[::-1][:3]
    np.testing.assert_allclose(result.eigenvalues, expected, rtol=1e-7)
    shapes = [v.shape for v in model.trainable_variables]
    assert [[part.shape for part in v] for v in result.eigenvectors] == [shapes] * 3
    flat = np.concatenate([np.ravel(part) for part in result.eigenvectors[0]])
    error = operator.matvec(flat) - result.eigenvalues[0] * flat
    np.testing.assert_allclose(np.linalg.norm(error), result.residuals[0], atol=1e-12)


def mean_of_activity(regularizer):
    """The regularizer; `None` where Keras, before 3.13, sums it over the batch."""
    layer = keras.layers.ActivityRegularization(l2=1.0)
    layer(np.ones((2, 1), "float32"))
    return regularizer if float(layer.losses[0]) == 1 else None


@pytest.mark.parametrize("batch_size", [3, 7, 9])
def test_batches_and_ragged_batches_equal_one_batch(batch_size):
    model = network(
        kernel_regularizer="l2",
        activity_regularizer=mean_of_activity(keras.regularizers.L2(0.1)),
    )
    x, y = data()
    whole = hessian_eigenvalues(model, x, y, variables="all")
    parts = hessian_eigenvalues(model, x, y, variables="all", batch_size=batch_size)
    np.testing.assert_allclose(parts.eigenvalues, whole.eigenvalues, rtol=1e-5)
    assert (whole.samples, whole.batch_size, parts.batch_size) == (10, 256, batch_size)


@pytest.mark.parametrize("batch_size", [4, 256])
def test_loss_is_that_of_evaluate(batch_size):
    model = network(
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        kernel_regularizer="l2",
        activity_regularizer="l2",
    )
    (x, y), weights = data(), np.linspace(0, 2, 10)
    result = hessian_eigenvalues(
        model, x, y, variables="all", batch_size=batch_size, sample_weight=weights
    )
    loss = model.evaluate(x, y, batch_size, sample_weight=weights, verbose=0)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-5)


def test_sample_weights_weigh_samples():
    model, (x, y) = network(), data()
    weights = np.repeat([2.0, 0.0], 5)
    weighted = hessian_eigenvalues(
        model, x, y, variables="all", sample_weight=weights, batch_size=4
    )
    half = hessian_eigenvalues(model, x[:5], y[:5], variables="all")
    np.testing.assert_allclose(weighted.eigenvalues, half.eigenvalues, rtol=1e-5)


def test_regulariser_adds_its_own_curvature():
    plain, (x, y) = network(), data()
    regular = network(
        kernel_regularizer=keras.regularizers.L2(0.5),
        bias_regularizer=keras.regularizers.L2(0.5),
    )
    difference = dense_hessian(HessianOperator(regular, x, y, "all")) - dense_hessian(
        HessianOperator(plain, x, y, "all")
    )
    expected = np.diag(np.repeat([1.0, 0.0], [16, 10]))
    np.testing.assert_allclose(difference, expected, atol=1e-5)


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
def test_model_is_left_as_it_was(batch_norm):
    model = network(keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
    x, y = data()
    model.fit(x, y, epochs=1, verbose=0)
    state = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    state += [s for la in model.layers for s in la.variables]
    before = [np.array(v.numpy()) for v in state]
    hessian_eigenvalues(model, x, y, variables="all", batch_norm=batch_norm)
    for old, new in zip(before, state, strict=True):
        np.testing.assert_array_equal(old, new)


def test_batch_mode_uses_the_statistics_of_the_batch(float64):
    model = network(keras.layers.BatchNormalization())
    x, y = data()
    result = hessian_eigenvalues(model, x, y, variables="all", batch_norm="batch")
    np.testing.assert_allclose(result.loss, np.mean((model(x, training=True) - y) ** 2))
    frozen = hessian_eigenvalues(model, x, y, variables="all")
    assert abs(frozen.loss - result.loss) > 1e-3
    assert (result.batch_norm, frozen.batch_norm) == ("batch", "frozen")


def test_dropout_in_batch_mode_is_one_fixed_function():
    model = network(keras.layers.Dropout(0.5))
    operator = HessianOperator(model, *data(), "all", batch_norm="batch")
    matrix = dense_hessian(operator)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)


def test_same_seed_gives_the_same_numbers():
    model, (x, y) = network(inputs=8), data(inputs=8)
    first, second, other = (
        hessian_eigenvalues(model, x, y, k=2, variables="all", seed=seed)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.eigenvalues, second.eigenvalues)
    for a, b in zip(first.eigenvectors[0], second.eigenvectors[0], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(first.eigenvalues, other.eigenvalues, rtol=1e-3)


def test_operator_follows_the_weights_without_a_new_trace():
    model, (x, y) = network(), data()
    operator = HessianOperator(model, x, y, "all", batch_size=4)
    before = operator.eigenvalues().eigenvalues
    traces = operator._product.experimental_get_tracing_count()
    assert traces <= 2
    for variable in model.trainable_variables:
        variable.assign(2 * variable)
    after = operator.eigenvalues().eigenvalues
    assert operator._product.experimental_get_tracing_count() == traces
    fresh = hessian_eigenvalues(model, x, y, variables="all", batch_size=4)
    np.testing.assert_allclose(after, fresh.eigenvalues, rtol=1e-6)
    assert abs(after - before) > 1e-3


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, size):
        super().__init__()
        self.x, self.y, self.size = x, y, size

    @property
    def num_batches(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return self.x[part], self.y[part]


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).batch(4),
        lambda x, y: Batches(x, y, 4),
    ],
    ids=["tf.data", "PyDataset"],
)
def test_data_sets(make):
    model, (x, y) = network(), data()
    found = hessian_eigenvalues(model, make(x, y), variables="all")
    expected = hessian_eigenvalues(model, x, y, variables="all")
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-5)
    assert (found.samples, found.batch_size) == (10, None)


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_several_inputs_and_outputs(kind):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    first = keras.layers.Dense(2, name="first")(joined)
    second = keras.layers.Dense(2, name="second")(joined)
    model = keras.Model([a, b], [first, second])
    model.compile("sgd", loss=["mse", "mse"], loss_weights=[1.0, 3.0])
    if kind is dict:
        model = keras.Model({"a": a, "b": b}, {"first": first, "second": second})
        model.compile("sgd", loss={"first": "mse", "second": "mse"})
    x, y = data()
    both_x, both_y = (
        kind([x, -x] if kind is not dict else {"a": x, "b": -x}),
        [y, 2 * y],
    )
    if kind is dict:
        both_y = {"first": y, "second": 2 * y}
    result = hessian_eigenvalues(model, both_x, both_y, variables="all", batch_size=4)
    loss = model.evaluate(both_x, both_y, verbose=0)
    np.testing.assert_allclose(result.loss, loss[0], rtol=1e-5)


def test_controls_imperfections_and_complex_fields(float64):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1)(Phase()(inputs)))
    model.compile("sgd", loss="mse")
    x, y = data(outputs=1)
    controls = hessian_eigenvalues(model, x, y, k=3)
    assert [path.split("/")[-1] for path in controls.variables] == ["phase"]
    # A phase and its error enter as a sum.
    errors = hessian_eigenvalues(
        model, x, y, k=3, variables=lambda v: v.name == "phase_error"
    )
    np.testing.assert_allclose(errors.eigenvalues, controls.eigenvalues, rtol=1e-9)
    full = dense_hessian(HessianOperator(model, x, y, "all"))
    np.testing.assert_allclose(full, difference_hessian(model, x, y), atol=1e-5)


def test_wrapper_and_inner_model_are_interchangeable():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1)(Phase()(inputs)))
    model.compile("sgd", loss="mse")
    x, y = data(outputs=1)
    wrapper = SATModel(model, rho=0.1)
    wrapper.compile("sgd", loss="mse")
    found, expected = (hessian_eigenvalues(m, x, y, k=2) for m in (wrapper, model))
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-6)
    assert found.variables == expected.variables


def test_embedding_and_sparse_labels():
    model = keras.Sequential(
        [
            keras.Input((2,), dtype="int32"),
            keras.layers.Embedding(4, 2),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("sgd", loss="sparse_categorical_crossentropy")
    x = np.array([[0, 1], [1, 2], [0, 0]])
    matrix = dense_hessian(HessianOperator(model, x, np.array([0, 1, 2]), "all"))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    # The fourth row is never looked up.
    np.testing.assert_array_equal(matrix[6:8], 0.0)
    assert np.linalg.eigvalsh(matrix)[-1] > 0


def test_mixed_precision_is_differentiated_in_the_variables_dtype():
    model = network(dtype="mixed_bfloat16")
    result = hessian_eigenvalues(model, *data(), variables="all")
    exact = hessian_eigenvalues(network(), *data(), variables="all")
    np.testing.assert_allclose(result.eigenvalues, exact.eigenvalues, rtol=0.1)


def test_custom_model_without_a_training_argument():
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dense(2)

        def call(self, x):
            return self.inner(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return keras.ops.mean((y - y_pred) ** 2)

    model, (x, y) = Plain(), data()
    model(x)
    model.compile("sgd")
    assert hessian_eigenvalues(model, x, y, variables="all").converged.all()


def test_result_as_dict_and_table(capsys):
    model, (x, y) = network(), data()
    result = hessian_eigenvalues(model, x, y, k=2, variables="all", verbose=1)
    values = json.loads(json.dumps(result.to_dict()))
    assert "eigenvectors" not in values
    assert values["eigenvalues"] == result.eigenvalues.tolist()
    assert values["parameters"] == 26
    assert values["variables"] == [v.path for v in model.trainable_variables]
    assert str(result) == result.table()
    assert f"{result.eigenvalues[0]:.6g}" in str(result)
    assert str(result.iterations) in capsys.readouterr().out


X, Y = data()


@pytest.mark.parametrize(
    "x, y, options, message",
    [
        (X, Y, {"k": 0}, "k must be a positive integer. Received: 0"),
        (X, Y, {"k": 1.5}, "k must be a positive integer. Received: 1.5"),
        (X, Y, {"k": 27}, "k must be at most .* 26. Received: 27"),
        (X, Y, {"tolerance": 0}, "tolerance must .*Received: 0"),
        (X, Y, {"max_iterations": 0}, "max_iterations must .*Received: 0"),
        (X, Y, {"seed": -1}, "seed must .*Received: -1"),
        (X, Y, {"seed": None}, "seed must .*Received: None"),
        (X, Y, {"batch_size": 0}, "batch_size must .*Received: 0"),
        (X, Y, {"batch_norm": "moving"}, "batch_norm must .*Received: 'moving'"),
        (X, Y, {"variables": "most"}, "Received: 'most'"),
        (X, Y, {"variables": "controls"}, "'all'"),
        (X * np.nan, Y, {}, "x must be finite. Received: 30"),
        (X, Y * np.inf, {}, "loss .* finite .*Received: loss"),
        (X, Y[:-1], {}, "same number of samples. Received: 10, 9"),
        (X[:0], Y[:0], {}, "x must hold at least one sample"),
        (None, Y, {}, "x must hold at least one array"),
        ([[1.0, 2.0, 3.0]], Y, {}, "x must be an array"),
        (Batches(X, Y, 4), Y, {}, "y must be None"),
        (
            tf.data.Dataset.from_tensors((X, Y)).repeat(),
            None,
            {},
            "x must be finite: take",
        ),
        (Batches(X[:0], Y[:0], 4), None, {}, "x must hold at least one sample"),
    ],
)
def test_bad_input_is_named(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        hessian_eigenvalues(network(), x, y, **{"variables": "all", **options})


def test_models_that_are_not_ready():
    model = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="compiled"):
        hessian_eigenvalues(model, X, Y, variables="all")
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="built"):
        hessian_eigenvalues(model, X, Y, variables="all")


def test_vector_of_another_length():
    operator = HessianOperator(network(), X, Y, "all")
    with pytest.raises(ValueError, match=r"length 26\. Received: 3"):
        operator.matvec(np.ones(3))
