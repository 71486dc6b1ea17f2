import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pnn as pnn
from keras_pnn.curvature.landscape import find_landscape
from keras_pnn.curvature.operator import HessianOperator
from keras_pnn.layers.context import substituting

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3))
Y = RNG.standard_normal((20, 2))


@pytest.fixture
def float64():
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)


def network(*extra):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(6, "tanh", kernel_regularizer="l2"),
            *extra,
            keras.layers.Dense(2, activity_regularizer="l2"),
        ]
    )
    model.compile("adam", "mse")
    return model


def state(model):
    variables = [*model.variables, *model.metrics_variables]
    variables += [*model.optimizer.variables]
    variables += [s for la in model.layers for s in la.variables]
    return [np.array(v.numpy()) for v in variables]


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
def test_curvature_along_eigenvectors_is_their_eigenvalue(float64, batch_norm):
    model = network(keras.layers.BatchNormalization(), keras.layers.Dropout(0.3))
    result = pnn.loss_landscape(
        model,
        X,
        Y,
        extent=1e-3,
        points=3,
        variables="all",
        batch_norm=batch_norm,
        tolerance=1e-6,
    )
    step = result.alphas[2]
    for values, eigenvalue in zip(
        (result.loss[:, 1], result.loss[1, :]), result.eigenvalues, strict=True
    ):
        second = (values[0] - 2 * values[1] + values[2]) / step**2
        np.testing.assert_allclose(second, eigenvalue, rtol=1e-4)
    assert result.eigenvalues[0] > result.eigenvalues[1]
    # Eigenvectors have no mixed derivative.
    corners = result.loss[[0, 0, 2, 2], [0, 2, 0, 2]] @ [1, -1, -1, 1]
    np.testing.assert_allclose(corners / (4 * step**2), 0, atol=1e-4)


def test_loss_is_that_of_evaluate_with_the_weights_moved(float64):
    model = network(keras.layers.BatchNormalization())
    weights = np.linspace(0, 2, 20)
    directions = [
        [RNG.standard_normal(v.shape) for v in model.trainable_variables]
        for _ in range(2)
    ]
    result = pnn.loss_landscape(
        model,
        X,
        Y,
        directions=directions,
        extent=(0.5, 2.0),
        points=(3, 5),
        variables="all",
        batch_size=7,
        sample_weight=weights,
    )
    assert result.loss.shape == (3, 5)
    np.testing.assert_allclose(result.alphas, [-0.5, 0, 0.5])
    np.testing.assert_allclose(result.betas, [-2, -1, 0, 1, 2])
    assert (result.directions, result.eigenvalues) == ("given", None)
    start = [v.numpy() for v in model.trainable_variables]
    for i, j in [(0, 1), (1, 2), (2, 4)]:
        a, b = result.alphas[i], result.betas[j]
        parts = zip(model.trainable_variables, start, *directions, strict=True)
        for variable, value, one, other in parts:
            variable.assign(value + a * one + b * other)
        loss = model.evaluate(X, Y, 7, sample_weight=weights, verbose=0)
        np.testing.assert_allclose(result.loss[i, j], loss, rtol=1e-6)
    rim = [*result.loss[[0, -1]].ravel(), *result.loss[1, [0, -1]]]
    np.testing.assert_allclose(result.center, result.loss[1, 2])
    np.testing.assert_allclose(result.rise, np.mean(rim) - result.loss[1, 2])


def test_random_directions_are_filter_normalised():
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Conv2D(3, 3, bias_initializer="random_normal")(inputs)
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(hidden))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    kernel = model.layers[1].kernel
    dead = np.array(kernel)
    dead[..., 1] = 0
    kernel.assign(dead)
    x, y = np.ones((2, 8, 8, 1)), np.zeros((2, 2))
    result = pnn.loss_landscape(
        model, x, y, directions="random", points=3, variables="all", seed=4
    )
    for vector in result.vectors:
        for part, variable in zip(vector, model.trainable_variables, strict=True):
            value = variable.numpy()
            axes = tuple(range(value.ndim - 1))
            np.testing.assert_allclose(
                np.sqrt(np.sum(part**2, axis=axes)),
                np.sqrt(np.sum(value**2, axis=axes)),
                rtol=1e-6,
            )
    first, second = (np.ravel(vector[0]) for vector in result.vectors)
    assert not np.allclose(abs(first), abs(second))
    again, other = (
        pnn.loss_landscape(
            model, x, y, directions="random", points=3, variables="all", seed=seed
        )
        for seed in (4, 5)
    )
    np.testing.assert_array_equal(again.loss, result.loss)
    assert not np.array_equal(other.loss, result.loss)


@pytest.mark.parametrize("directions", ["eigenvectors", "random"])
def test_one_direction(directions):
    model = network()
    result = pnn.loss_landscape(
        model, X, Y, directions, points=5, variables="all", dimensions=1
    )
    assert result.loss.shape == (5,) and result.betas is None
    np.testing.assert_allclose(
        result.rise, result.loss[[0, 4]].mean() - result.loss[2], rtol=1e-6
    )
    assert result.rise > 0
    given = pnn.loss_landscape(model, X, Y, result.vectors, points=5, variables="all")
    np.testing.assert_allclose(given.loss, result.loss, rtol=1e-5)


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
def test_model_is_left_as_it_was(batch_norm):
    model = network(keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
    model.fit(X, Y, verbose=0)
    before = state(model)
    pnn.loss_landscape(
        model, X, Y, points=3, variables="all", batch_norm=batch_norm, extent=0.1
    )
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_model_is_left_as_it_was_after_an_exception(monkeypatch):
    model = network(keras.layers.BatchNormalization())
    before = state(model)
    calls = []
    loss_at = HessianOperator.loss_at

    def broken(self, vector):
        calls.append(vector)
        if len(calls) == 4:
            raise RuntimeError("stopped")
        return loss_at(self, vector)

    monkeypatch.setattr(HessianOperator, "loss_at", broken)
    with pytest.raises(RuntimeError, match="stopped"):
        pnn.loss_landscape(model, X, Y, "random", variables="all", points=3)
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_graph_is_built_once_and_batches_do_not_matter():
    model = network()
    # Before 3.13 Keras sums it over the batch.
    model.layers[-1].activity_regularizer = None
    operator = HessianOperator(model, X, Y, "all", batch_size=8)
    parts = find_landscape(operator, "random", points=5)
    assert operator._moved_loss.experimental_get_tracing_count() <= 2
    whole = pnn.loss_landscape(model, X, Y, "random", points=5, variables="all")
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-5)
    traces = operator._moved_loss.experimental_get_tracing_count()
    for variable in model.trainable_variables:
        variable.assign(2 * variable)
    moved = find_landscape(operator, "random", points=5)
    assert operator._moved_loss.experimental_get_tracing_count() == traces
    assert abs(moved.center - parts.center) > 1e-3


def test_controls_of_a_physical_model():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, pnn.layers.MRRBank(2)(inputs))
    model.compile("sgd", "mse")
    result = pnn.loss_landscape(model, X, Y, extent=0.1, points=3)
    assert [path.split("/")[-1] for path in result.variables] == ["control"]
    assert result.converged.all() and np.isfinite(result.loss).all()


def test_losses_beyond_the_range_stay_in_the_picture():
    class Root(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(1,), initializer="ones")

        def call(self, x):
            return x * tf.sqrt(tf.convert_to_tensor(self.w))

    model = keras.Sequential([keras.Input((1,)), Root()])
    model.compile("sgd", "mse")
    one = [[np.ones(1)]]
    data = (np.ones((4, 1)), np.zeros((4, 1)), one)
    result = pnn.loss_landscape(model, *data, extent=2.0, points=5, variables="all")
    np.testing.assert_array_equal(np.isnan(result.loss), [1, 0, 0, 0, 0])
    model.layers[0].w.assign([-1.0])
    with pytest.raises(ValueError, match=r"centre must be finite. Received: nan"):
        pnn.loss_landscape(model, *data, variables="all")


def test_result_as_dict_text_and_file(tmp_path, capsys):
    model = network()
    result = pnn.loss_landscape(model, X, Y, points=3, variables="all", verbose=1)
    assert "9/9" in capsys.readouterr().out
    values = json.loads(json.dumps(result.to_dict()))
    assert values["loss"] == result.loss.tolist()
    assert values["rise"] == result.rise
    assert "vectors" not in values
    assert f"{result.eigenvalues[0]:.6g}" in str(result) and "3 × 3" in str(result)
    result.save(tmp_path / "landscape.npz")
    with np.load(tmp_path / "landscape.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["loss"], result.loss)
        np.testing.assert_array_equal(file["eigenvalues"], result.eigenvalues)
        np.testing.assert_allclose(np.linalg.norm(file["direction_2"]), 1, rtol=1e-6)


def test_a_layer_that_a_device_measures_is_refused():
    model = network()
    with (
        substituting(lambda layer, inputs, controls, outputs: outputs),
        pytest.raises(ValueError, match=r"outside `device.installed\(model\)`"),
    ):
        pnn.loss_landscape(model, X, Y, "random", variables="all")


SHAPES = [(3, 6), (6,), (6, 2), (2,)]
ONES = [np.ones(shape) for shape in SHAPES]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"directions": "gradient"}, "directions must .*Received: 'gradient'"),
        ({"directions": ONES}, "directions must .*Received: 4 items"),
        ({"directions": [ONES] * 3}, "directions must .*Received: 3 items"),
        ({"directions": np.ones(38)}, "directions must .*Received: ndarray"),
        ({"directions": [ONES[:3]]}, "directions must have the shapes .*Received"),
        ({"directions": [[0 * part for part in ONES]]}, "not all zero. Received"),
        ({"directions": [[np.nan * part for part in ONES]]}, "finite .*Received"),
        ({"extent": 0}, "extent must be positive and finite. Received: 0"),
        ({"extent": np.inf}, "extent must .*Received: inf"),
        ({"extent": "far"}, "extent must .*Received: 'far'"),
        ({"extent": (1, 2, 3)}, "extent must be one number, .* 2 dir.*Received"),
        ({"points": 4}, "points must be an odd .*Received: 4"),
        ({"points": 1}, "points must be an odd .*Received: 1"),
        ({"points": 3.0}, "points must be an odd .*Received: 3.0"),
        ({"dimensions": 3}, "dimensions must be 1 or 2. Received: 3"),
        ({"tolerance": 2}, "tolerance must .*Received: 2"),
        ({"variables": "controls"}, "'all'"),
        ({"variables": lambda v: False}, "took none"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        pnn.loss_landscape(network(), X, Y, **{"variables": "all", **options})
