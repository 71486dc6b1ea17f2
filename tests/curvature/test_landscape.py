import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pnn as pnn
from keras_pnn.layers.context import substituting

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3))
Y = RNG.standard_normal((20, 2))


def landscape(model, x=X, y=Y, **options):
    return pnn.loss_landscape(model, x, y, **{"variables": "all", **options})


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
def test_curvature_along_eigenvectors_is_their_eigenvalue(float64, network, batch_norm):
    model = network(keras.layers.BatchNormalization(), keras.layers.Dropout(0.3))
    near = {"extent": 1e-3, "points": 3, "tolerance": 1e-6}
    result = landscape(model, **near, batch_norm=batch_norm)
    step = result.alphas[2]
    lines = np.array([result.loss[:, 1], result.loss[1, :]])
    second = np.diff(lines, 2)[:, 0] / step**2
    np.testing.assert_allclose(second, result.eigenvalues, rtol=1e-4)
    assert result.eigenvalues[0] > result.eigenvalues[1]
    # Eigenvectors have no mixed derivative.
    corners = result.loss[[0, 0, 2, 2], [0, 2, 0, 2]] @ [1, -1, -1, 1]
    np.testing.assert_allclose(corners / (4 * step**2), 0, atol=1e-4)


def test_loss_is_that_of_evaluate_with_the_weights_moved(float64, network):
    model = network(keras.layers.BatchNormalization())
    weights = np.linspace(0, 2, 20)
    directions = [
        [RNG.standard_normal(v.shape) for v in model.trainable_variables]
        for _ in range(2)
    ]
    plan = {"directions": directions, "extent": (0.5, 2.0), "points": (3, 5)}
    result = landscape(model, **plan, batch_size=7, sample_weight=weights)
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
    result, again, other = (
        landscape(model, x, y, directions="random", points=3, seed=seed)
        for seed in (4, 4, 5)
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
    np.testing.assert_array_equal(again.loss, result.loss)
    assert not np.array_equal(other.loss, result.loss)


@pytest.mark.parametrize("directions", ["eigenvectors", "random"])
def test_one_direction(network, directions):
    model = network()
    result = landscape(model, directions=directions, points=5, dimensions=1)
    assert result.loss.shape == (5,) and result.betas is None
    rise = result.loss[[0, 4]].mean() - result.loss[2]
    np.testing.assert_allclose(result.rise, rise, rtol=1e-6)
    assert result.rise > 0
    given = landscape(model, directions=result.vectors, points=5)
    np.testing.assert_allclose(given.loss, result.loss, rtol=1e-5)


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
    x, y = np.ones((4, 1)), np.zeros((4, 1))
    along = {"directions": [[np.ones(1)]], "extent": 2.0, "points": 5}
    result = landscape(model, x, y, **along)
    np.testing.assert_array_equal(np.isnan(result.loss), [1, 0, 0, 0, 0])
    model.layers[0].w.assign([-1.0])
    with pytest.raises(ValueError, match=r"centre must be finite. Received: nan"):
        landscape(model, x, y, **along)


def test_result_as_dict_text_and_file(network, tmp_path, capsys):
    model = network()
    result = landscape(model, points=3, verbose=1)
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


def test_a_layer_that_a_device_measures_is_refused(network):
    model = network()
    with (
        substituting(lambda layer, inputs, controls, outputs: outputs),
        pytest.raises(ValueError, match=r"outside `device.installed\(model\)`"),
    ):
        landscape(model, directions="random")


SHAPES = [(3, 6), (6,), (6, 2), (2,)]
ONES = [np.ones(shape) for shape in SHAPES]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"directions": "gradient"}, "`directions` must .*Received: 'gradient'"),
        ({"directions": ONES}, "`directions` must .*Received"),
        ({"directions": [ONES] * 3}, "`directions` must .*Received: ..array"),
        ({"directions": np.ones(38)}, "`directions` must .*Received: array"),
        ({"directions": [ONES[:3]]}, "`directions` .* variables' shapes.*Received"),
        ({"directions": [[0 * part for part in ONES]]}, "not all zero. Received"),
        ({"directions": [[np.nan * part for part in ONES]]}, "finite .*Received: nan"),
        ({"extent": 0}, "`extent` must be .* > 0. Received: 0"),
        ({"extent": np.inf}, "`extent` must .*Received: inf"),
        ({"extent": "far"}, "`extent` must .*Received: 'far'"),
        ({"extent": (1, 2, 3)}, "`extent` must be one number, .* 2 dir.*Received"),
        ({"points": 4}, "`points` must be odd.*Received: 4"),
        ({"points": 1}, "`points` must be an integer ≥ 3. Received: 1"),
        ({"points": 3.0}, "`points` must .*Received: 3.0"),
        ({"dimensions": 3}, "`dimensions` must .*Received: 3"),
        ({"tolerance": 2}, "`tolerance` must .*Received: 2"),
        ({"directions": "random", "seed": None}, "`seed` must .*Received: None"),
        ({"variables": "controls"}, "'all'"),
    ],
)
def test_bad_input_is_named(network, options, message):
    with pytest.raises(ValueError, match=message):
        landscape(network(), **options)
