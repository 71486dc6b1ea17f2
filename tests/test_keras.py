"""What `_keras` reaches in Keras and TensorFlow: fails if either renames it."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

from keras_pnn import _keras

X = np.linspace(-1, 1, 24, dtype="float32").reshape(8, 3)
Y = X[:, :2]
FIT = {"x": X, "y": Y, "batch_size": 2, "verbose": 0, "shuffle": False}


def dense(**kwargs):
    """A compiled model of one layer, functional."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2, name="dense")(inputs))
    model.compile(**{"optimizer": "sgd", "loss": "mse", "metrics": ["mae"], **kwargs})
    return model


class Around(keras.Model):
    """Calls the model that it has."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        _keras.add_wrapper(self, model)

    def call(self, inputs):
        return self.model(inputs)


class Layers(keras.layers.Layer):
    """Two layers that draw, and a weight that does not train."""

    def __init__(self):
        super().__init__()
        self.first, self.second = keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)
        self.scale = self.add_weight(name="scale", trainable=False)
        self.offset = self.add_weight(name="offset")

    def call(self, inputs):
        return self.second(self.first(inputs)) * self.scale + self.offset


def test_layers_and_their_variables():
    layer = Layers()
    inputs = keras.Input((3,))
    inner = keras.Model(inputs, layer(inputs))
    model = Around(inner)
    inside = [layer, layer.first, layer.second]
    assert _keras.parts(model)[:2] == [model, inner]
    flat = _keras.flat_layers(model)
    assert flat == _keras.flat_layers(inner) == [inner.layers[0], *inside]
    assert _keras.own_trainable(layer) == [layer.offset]
    assert _keras.own_variables(layer) == [layer.offset, layer.scale]
    seeds = [la.seed_generator.state for la in inside[1:]]
    assert [id(v) for v in _keras.seed_states(model)] == [id(v) for v in seeds]


def test_losses_and_metrics():
    inputs = keras.Input((3,))
    outputs = {n: keras.layers.Dense(2, name=n)(inputs) for n in ("a", "b")}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"a": "mse", "b": "mae"}, metrics={"a": ["mae"]})
    batch = X, {"a": Y, "b": Y}, None
    assert not _keras.has_metrics(model)
    assert _keras.named_metrics(model) == {}
    _keras.build_metrics(model, batch)
    assert _keras.has_metrics(model)
    names = [m.name for m in _keras.compiled_metrics(model)]
    assert names == ["loss", "compile_metrics", "a_loss", "b_loss"]
    assert _keras.loss_tracker(model).name == "loss"
    assert [m.name for m in _keras.loss_metrics(model)] == ["a_loss", "b_loss"]
    ((name, metric),) = _keras.named_metrics(model).items()
    assert name == "a_mae"
    assert name in model.evaluate(*batch[:2], verbose=0, return_dict=True)
    directions = [_keras.direction(m) for m in (metric, keras.metrics.Accuracy(), None)]
    assert directions == ["down", "up", None]
    assert _keras.compile_arguments(model)["loss"] == {"a": "mse", "b": "mae"}
    y_pred = model(X)
    loss = _keras.compute_loss(model, X, batch[1], y_pred, None, training=False)
    squares, distances = np.mean((y_pred["a"] - Y) ** 2), np.mean(abs(y_pred["b"] - Y))
    assert float(loss) == pytest.approx(squares + distances, rel=1e-5)
    model.reset_metrics()
    _keras.count_losses(model, batch[1], y_pred, None)
    counted = [float(m.result()) for m in _keras.loss_metrics(model)]
    assert counted == pytest.approx([squares, distances], rel=1e-5)
    one = dense()
    assert _keras.loss_metrics(one) == []
    _keras.count_losses(one, Y, one(X), None)


def test_compile_state_and_what_is_kept_until_compile(tmp_path):
    model = dense()
    state = _keras.compile_state(model)
    model.fit(**FIT)
    assert all(a is b for a, b in zip(_keras.compile_state(model), state, strict=True))
    kept = _keras.kept(model)
    kept["graph"] = model
    assert _keras.kept(model) is kept
    model.save(tmp_path / "model.keras")
    assert not _keras.kept(keras.models.load_model(tmp_path / "model.keras"))
    assert not _keras.kept(keras.models.clone_model(model))
    model.compile("sgd", "mse", metrics=["mae"])
    now = _keras.compile_state(model)
    assert not any(a is b for a, b in zip(now, state, strict=True))
    assert not _keras.kept(model)
    _keras.kept(model)["graph"] = model
    alive = weakref.ref(model)
    del model, kept, state, now
    gc.collect()
    assert alive() is None


def test_lent_compile():
    trainer, model = dense(loss="mae"), dense()
    own = _keras.compile_state(model)
    y_pred = model(X)
    with _keras.lent_compile(model, trainer):
        loss = _keras.compute_loss(model, X, Y, y_pred, None, training=True)
        assert float(loss) == pytest.approx(np.mean(abs(y_pred - Y)), rel=1e-5)
    assert _keras.compile_state(model)[1] is own[1] and model.loss == "mse"
    bare = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(KeyError), _keras.lent_compile(bare, trainer):
        assert bare.compiled and bare.optimizer is trainer.optimizer
        raise KeyError
    assert not bare.compiled and not hasattr(bare, "optimizer")


def test_graphs_of_nodes():
    model = dense()
    layer = model.get_layer("dense")
    for whole in (model, Around(model), keras.Sequential([model])):
        if not whole.built:
            whole.build((None, 3))
        graph = _keras.functional(whole)
        assert any(la is layer for la in _keras.flat_layers(graph))
    graph = _keras.functional(model)
    assert [n.operation for n in _keras.nodes(graph)] == model.layers
    assert [n.operation for n in _keras.calls(layer)] == [layer]

    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    assert _keras.functional(Own()) is None
    inputs = keras.Input((3,))
    assert _keras.functional(Own(inputs, layer(inputs))) is None


def test_replaced_call():
    layer = keras.layers.Dense(2)
    before = layer(X)
    with pytest.raises(KeyError), _keras.replaced_call(layer, lambda x: 2 * x):
        np.testing.assert_array_equal(layer(X), 2 * X)
        with _keras.replaced_call(layer, lambda x: 3 * x):
            np.testing.assert_array_equal(layer(X), 3 * X)
        np.testing.assert_array_equal(layer(X), 2 * X)
        raise KeyError
    np.testing.assert_array_equal(layer(X), before)
    assert "call" not in vars(layer)


def test_functions_of_tensorflow_come_back():
    before = tf.nn.moments, tf.nn.max_pool, tf.image.resize
    with pytest.raises(KeyError), _keras.twice_differentiable():
        now = tf.nn.moments, tf.nn.max_pool, tf.image.resize
        assert not set(now) & set(before)
        raise KeyError
    assert (tf.nn.moments, tf.nn.max_pool, tf.image.resize) == before


class Counting(keras.callbacks.Callback):
    """Puts a wrapper around the steps of a run, which counts them."""

    def __init__(self, kind="train"):
        super().__init__()
        self.kind, self.steps = kind, 0
        setattr(self, f"on_{kind}_begin", self.begin)
        setattr(self, f"on_{kind}_end", self.end)

    def begin(self, logs=None):
        self.handle = _keras.wrap_step(self.model, self.kind, self.step)

    def step(self, function, iterator):
        self.steps += 1
        return function(iterator)

    def end(self, logs=None):
        self.handle.remove()


class Failing(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        raise RuntimeError("smoke")

    on_test_batch_begin = on_train_batch_begin


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_wrapped_steps(run_eagerly):
    model, plain = dense(run_eagerly=run_eagerly), dense()
    plain.set_weights(model.get_weights())
    expected = plain.fit(**FIT, epochs=2, validation_data=(X, Y)).history
    model.fit(**FIT, epochs=0)
    before = model.train_function
    order = []

    class Ordered(Counting):
        def step(self, function, iterator):
            order.append(self)
            return super().step(function, iterator)

    inner, outer, test = Ordered(), Ordered(), Counting("test")
    found = model.fit(
        **FIT, epochs=2, validation_data=(X, Y), callbacks=[inner, outer, test]
    )
    for name, values in expected.items():
        np.testing.assert_allclose(found.history[name], values, rtol=1e-6)
    assert (inner.steps, outer.steps, test.steps) == (8, 8, 8)
    assert order[:3] == [outer, inner, outer]
    # Nothing is left behind.
    assert model.train_function is before
    assert "make_train_function" not in vars(model)
    assert "make_test_function" not in vars(model)
    inner.handle.remove()


@pytest.mark.parametrize("kind", ["train", "test"])
def test_a_wrapper_that_a_failed_run_leaves_acts_in_no_later_run(kind):
    model = dense()

    def run(*callbacks):
        if kind == "train":
            model.fit(**FIT, epochs=2, callbacks=callbacks)
        else:
            model.evaluate(X, Y, batch_size=2, verbose=0, callbacks=callbacks)

    on_batch = getattr(model, f"{kind}_on_batch")
    left, later = Counting(kind), Counting(kind)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="smoke"):
            run(left, Failing())
    on_batch(X, Y)
    run()
    on_batch(X, Y)
    run(later)
    assert left.steps == 0 and later.steps == (8 if kind == "train" else 4)

    later.handle.remove()
    assert f"make_{kind}_function" not in vars(model)


def test_batches_and_evaluations_between_the_steps_run_without_wrappers():
    class Between(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.train_on_batch(X, Y)
            self.model.evaluate(X, Y, verbose=0)

    model, train, test = dense(), Counting(), Counting("test")
    model.fit(**FIT, callbacks=[train, test, Between()])
    assert (train.steps, test.steps) == (4, 0)


def test_retracing_keeps_the_wrappers():
    traces = []

    class Traced(keras.Model):
        def train_step(self, data):
            traces.append(data)
            return super().train_step(data)

    class Retrace(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                _keras.retrace(self.model, "train")

    inputs = keras.Input((3,))
    model = Traced(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse")
    counting = Counting()
    model.fit(**FIT, callbacks=[counting, Retrace()])
    assert (len(traces), counting.steps) == (2, 4)


def test_functions_set_aside():
    model = dense(run_eagerly=True)
    around = Around(model)
    around.compile("sgd", "mse", run_eagerly=True)
    for each in (model, around):
        each.fit(**FIT)
        each.evaluate(X, Y, verbose=0)
        each.predict(X, verbose=0)
    assert _keras.models_around(model) == [model, around]
    names = [f"{kind}_function" for kind in ("train", "test", "predict")]
    before = [getattr(m, n) for m in (model, around) for n in names]
    counting = Counting()

    class Inside(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:
                with _keras.set_aside(model):
                    self.model.predict(X, verbose=0)

    with _keras.set_aside(around):
        assert not any(getattr(m, n) for m in (model, around) for n in names)
        late = Around(model)
        late.compile("sgd", "mse", run_eagerly=True)
        with pytest.raises(RuntimeError):
            around.fit(**FIT, callbacks=[counting, Failing()])
        late.evaluate(X, Y, verbose=0)
    assert [getattr(m, n) for m in (model, around) for n in names] == before
    assert late.test_function is None and "make_train_function" not in vars(around)
    # Within a run: the wrappers come back with the functions.
    around.fit(**FIT, callbacks=[counting, Inside()])
    assert counting.steps == 4
    assert around.train_function is before[3]
    with _keras.set_aside(model):
        model.compile("sgd", "mae")
    assert model.train_function is None and around.test_function is before[4]


def test_the_batches_of_all_tests_are_those_of_keras():
    """`conftest.py` has arrays cut more cheaply."""
    x = {"one": X, "two": [X[:, 0], X[:, 1:]]}
    adapter = ArrayDataAdapter(x, Y, np.arange(8.0), batch_size=3)
    ours, theirs = adapter.get_tf_dataset(), adapter.get_tf_dataset.__wrapped__(adapter)
    assert ours.element_spec == theirs.element_spec
    for batch, other in zip(ours, theirs, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, batch, other)
