import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import Counting, assert_same, difference_of_gradients
from scipy.sparse.linalg import eigsh

import keras_pnn as pnn
from keras_pnn import _keras
from keras_pnn.curvature.operator import HessianOperator
from keras_pnn.layers.physical import PhysicalLayer


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


def squares(y, outputs):
    return tf.reduce_mean((y - outputs) ** 2, axis=-1)


def matrix_of(operator):
    return operator @ np.eye(operator.size)


@pytest.mark.parametrize(
    "kind, batch_norm",
    [
        (None, "frozen"),
        (lambda: keras.layers.BatchNormalization(), "batch"),
        (lambda: keras.layers.Dropout(0.5), "batch"),
        (Phase, "frozen"),
    ],
    ids=["plain", "batch norm", "dropout", "field"],
)
def test_products_are_differences_of_gradients(
    float64, network, data, kind, batch_norm
):
    model = network(*([kind()] if kind else []), hidden=4, kernel_regularizer="l2")
    x, y = (a.astype("float64") for a in data)
    operator = HessianOperator(model, x, y, "all", batch_norm=batch_norm)
    found = matrix_of(operator)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    expected = [
        difference_of_gradients(operator, x, y, unit, 1e-5)
        for unit in np.eye(operator.size)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    loss = model.compute_loss(x, y, model(x, training=batch_norm == "batch"))
    np.testing.assert_allclose(operator.loss, loss)


def test_embedding_and_sparse_labels(float64):
    embedding = keras.layers.Embedding(4, 2)
    dense = keras.layers.Dense(3, activation="softmax")
    layers = [keras.Input((2,), dtype="int32"), embedding, keras.layers.Flatten()]
    model = keras.Sequential([*layers, dense])
    model.compile("sgd", loss="sparse_categorical_crossentropy")
    x, y = np.array([[0, 1], [1, 2], [0, 0]]), np.array([0, 1, 2])
    operator = HessianOperator(model, x, y, "all")
    vector = np.ones(operator.size)
    found = operator @ vector
    expected = difference_of_gradients(operator, x, y, vector, 1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # The fourth row is never looked up.
    np.testing.assert_array_equal(found[6:8], 0.0)


def test_scipy_takes_the_operator(float64, network, data):
    operator = HessianOperator(network(), *data, "all")
    dense = matrix_of(operator)
    values, vectors = eigsh(operator, k=3, which="LA", tol=1e-10)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(dense)[-3:], rtol=1e-8)
    np.testing.assert_allclose(dense @ vectors, vectors * values, atol=1e-8)
    assert operator.shape == (38, 38) and operator.dtype == np.float64
    vector = np.arange(38.0)
    for found in (operator.T @ vector, operator.rmatvec(vector), operator * vector):
        np.testing.assert_allclose(found, dense @ vector, rtol=1e-9)


def test_graphs_are_kept_with_the_model(network, data, caplog, monkeypatch):
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    x, y = data
    for _ in range(6):
        model = network(Counting())
        counter = model.layers[1]
        counter.traces = 0
        first = pnn.hessian_trace(model, x, y, vectors=2, variables="all")
        assert counter.traces == 1
    for variable in model.trainable_variables:
        variable.assign(2 * variable)
    second = pnn.hessian_trace(model, x, y, vectors=2, variables="all")
    assert second.trace != first.trace
    pnn.hessian_eigenvalues(model, x, y, variables="all")
    assert counter.traces == 1
    # Another batch size makes a graph for any.
    for batch_size in (4, 5, 6, 7):
        pnn.hessian_trace(
            model, x, y, vectors=1, variables="all", batch_size=batch_size
        )
    assert counter.traces == 2
    for names in (["kernel"], ["bias"], ["kernel"]):
        chosen = pnn.hessian_trace(
            model, x, y, vectors=2, variables=lambda v, names=names: v.name in names
        )
    assert counter.traces == 4
    # A loss that was compiled anew, also for an operator that was made before.
    operator = HessianOperator(model, x, y, lambda v: v.name == "kernel")
    model.compile("sgd", lambda y, z: 3 * squares(y, z))
    tripled = operator.trace(2)
    assert counter.traces == 5
    np.testing.assert_allclose(tripled.trace, 3 * chosen.trace, rtol=1e-5)
    assert not [r for r in caplog.records if r.name == tf.get_logger().name]


def test_graphs_are_freed_with_the_model(network, data):
    def lossy(model):
        # A loss may refer to its model.
        model.compile("sgd", lambda y, z: squares(y, z) + 0 * len(model.layers))
        return model

    model = lossy(network(pnn.layers.MRRBank(4)))
    pnn.hessian_trace(model, *data, vectors=1)
    assert _keras.kept(model)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def mean_of_activity(regularizer):
    """The regularizer; `None` where Keras, before 3.13, sums it over the batch."""
    layer = keras.layers.ActivityRegularization(l2=1.0)
    layer(np.ones((2, 1), "float32"))
    return regularizer if float(layer.losses[0]) == 1 else None


@pytest.mark.parametrize("weights", [None, np.linspace(0, 2, 10)])
def test_loss_is_that_of_evaluate_in_any_batches(network, data, weights):
    model = network(
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        kernel_regularizer="l2",
        activity_regularizer=mean_of_activity(keras.regularizers.L2(0.1)),
    )
    vector = np.random.default_rng(1).standard_normal(50)
    found = []
    for batch_size in (256, 3, 7):
        operator = HessianOperator(model, *data, "all", batch_size, weights)
        found.append(operator @ vector)
        loss = model.evaluate(*data, batch_size, sample_weight=weights, verbose=0)
        np.testing.assert_allclose(operator.loss, loss, rtol=1e-5)
        np.testing.assert_allclose(operator.loss_at(0 * vector), loss, rtol=1e-5)
        assert (operator.samples, operator.batch_size) == (10, batch_size)
        np.testing.assert_allclose(found[-1], found[0], rtol=1e-3, atol=1e-5)


def test_sample_weights_weigh_samples(network, data):
    model, (x, y), ones = network(), data, np.ones(38)
    weights = np.repeat([2.0, 0.0], 5)
    weighted = HessianOperator(model, x, y, "all", 4, sample_weight=weights) @ ones
    half = HessianOperator(model, x[:5], y[:5], "all") @ ones
    np.testing.assert_allclose(weighted, half, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
def test_model_is_left_as_it_was(network, data, batch_norm):
    model = network(keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
    model.fit(*data, epochs=1, verbose=0)
    own = model.variables, model.metrics_variables, model.optimizer.variables
    before = [v.numpy() for variables in own for v in variables]
    operator = HessianOperator(model, *data, "all", batch_norm=batch_norm)
    operator.eigenvalues(k=2, max_iterations=5)
    operator.loss_at(np.ones(operator.size))
    assert_same(before, [v for variables in own for v in variables])


def tf_data(x, y, size):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


@pytest.mark.parametrize("make", [tf_data, pnn.datasets.Batches])
def test_data_sets(network, data, make):
    model, ones = network(), np.ones(38)
    operator = HessianOperator(model, make(*data, 4), variables="all")
    expected = HessianOperator(model, *data, "all") @ ones
    np.testing.assert_allclose(operator @ ones, expected, rtol=1e-4, atol=1e-6)
    assert (operator.samples, operator.batch_size) == (10, None)


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_several_inputs_and_outputs(data, kind):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    first = keras.layers.Dense(2, name="first")(joined)
    second = keras.layers.Dense(2, name="second")(joined)
    x, y = data
    if kind is dict:
        model = keras.Model({"a": a, "b": b}, {"first": first, "second": second})
        model.compile("sgd", loss={"first": "mse", "second": "mse"})
        x, y = {"a": x, "b": -x}, {"first": y, "second": 2 * y}
    else:
        model = keras.Model([a, b], [first, second])
        model.compile("sgd", loss=["mse", "mse"], loss_weights=[1.0, 3.0])
        x, y = kind([x, -x]), [y, 2 * y]
    operator = HessianOperator(model, x, y, "all", batch_size=4)
    loss = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(operator.trace(1).loss, loss[0], rtol=1e-5)


def test_controls_and_imperfections_of_a_model_and_of_its_wrapper(data):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1)(Phase()(inputs)))
    wrapper = pnn.SATModel(model, rho=0.1)
    x, y = data[0], data[1][:, :1]
    for compiled in (model, wrapper):
        compiled.compile("sgd", loss="mse")
    controls = HessianOperator(model, x, y)
    assert [v.name for v in controls.variables] == ["phase"]
    expected = matrix_of(controls)
    # A phase and its error enter as a sum.
    errors = HessianOperator(model, x, y, lambda v: v.name == "phase_error")
    wrapped = HessianOperator(wrapper, x, y)
    assert wrapped.made()["variables"] == controls.made()["variables"]
    for operator in (errors, wrapped):
        np.testing.assert_allclose(matrix_of(operator), expected, rtol=1e-4, atol=1e-6)


def test_custom_model_without_a_training_argument(data):
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dense(2)

        def call(self, x):
            return self.inner(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return keras.ops.mean((y - y_pred) ** 2)

    model = Plain()
    with pytest.raises(ValueError, match=r"`model` must be compiled.*Received"):
        HessianOperator(model, *data, "all")
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"`model` must be built.*Received"):
        HessianOperator(model, *data, "all")
    model(data[0])
    assert HessianOperator(model, *data, "all").eigenvalues().converged.all()


X, Y = np.ones((10, 3)), np.ones((10, 2))


@pytest.mark.parametrize(
    "x, y, options, message",
    [
        (X, Y, {"batch_size": 0}, "`batch_size` must .*Received: 0"),
        (X, Y, {"batch_norm": "moving"}, "`batch_norm` must .*Received: 'moving'"),
        (X, Y, {"variables": "most"}, "Received: 'most'"),
        (X, Y, {"variables": "controls"}, "'all'"),
        (X * np.nan, Y, {}, "`x` must be finite. Received"),
        (X, Y * np.inf, {}, "loss .* finite .*Received: loss"),
        (X, Y[:-1], {}, r"one length.* Received: lengths \[9, 10\]"),
        (None, Y, {}, "`x` must be at least one array"),
        (tf_data(X, Y, 4), Y, {}, "`y` must be None when `x`.*Received: ndarray"),
        (tf_data(X, Y, 4).repeat(), None, {}, "`x` must be finite"),
        (tf_data(X[:0], Y[:0], 4), None, {}, "`x` must be at least one sample"),
    ],
)
def test_bad_input_is_named(network, x, y, options, message):
    with pytest.raises(ValueError, match=message):
        HessianOperator(network(), x, y, **{"variables": "all", **options}).trace(1)


def test_vector_of_another_length(network):
    operator = HessianOperator(network(), X, Y, "all")
    with pytest.raises(ValueError, match="dimension mismatch"):
        operator.matvec(np.ones(3))
    with pytest.raises(ValueError, match=r"length 38\. Received: 3"):
        operator.loss_at(np.ones(3))
