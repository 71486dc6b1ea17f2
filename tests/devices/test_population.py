"""Many devices in one graph, against `evaluate` on one device after the other."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pnn as pnn

RNG = np.random.default_rng(0)
N = 23
X = RNG.normal(size=(N, 4)).astype("float32")
LABELS = RNG.integers(0, 6, N)
WEIGHTS = RNG.uniform(0.1, 2, N).astype("float32")
VARIATION = pnn.Variation(resonance_shift=0.1, temperature=0.5, bias=0.2)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def classifier(metrics=None):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    x = pnn.layers.MRRBank(5, activation="relu", kernel_regularizer="l2")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.3)(x)
    x = keras.layers.Dense(6, kernel_regularizer="l1")(x)
    model = keras.Model(inputs, x)
    if metrics is None:
        metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)]
    model.compile("sgd", CROSS_ENTROPY, metrics=metrics, weighted_metrics=["accuracy"])
    return model


def each_evaluated(model, x, y, devices, **kwargs):
    """{name: values} by `evaluate`, one device after the other."""
    rows = []
    for device in devices:
        with device.installed(model):
            rows.append(model.evaluate(x, y, verbose=0, return_dict=True, **kwargs))
    return {n: np.array([r[n] for r in rows]) for n in rows[0]}


def assert_equals_evaluate(model, x, y, devices, **kwargs):
    result = pnn.evaluate_devices(model, x, y, devices, verbose=0, **kwargs)
    kwargs.pop("chunk", None)
    expected = each_evaluated(model, x, y, devices, **kwargs)
    assert result.values.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected["loss"]) > 1e-3
    return result


def state(model):
    return [v.numpy().tobytes() for v in [*model.variables, *model.metrics_variables]]


@pytest.mark.parametrize("chunk", [None, 2, 1])
def test_equals_evaluate(chunk):
    model = classifier()
    devices = VARIATION.sample(model, 4)
    result = assert_equals_evaluate(
        model, X, LABELS, devices, batch_size=9, sample_weight=WEIGHTS, chunk=chunk
    )
    assert (result.samples, result.batch_size, len(result)) == (N, 9, 4)
    assert result.vectorized is (chunk != 1)


def test_leaves_the_model_and_its_metrics_as_they_were():
    model = classifier()
    devices = VARIATION.sample(model, 3)
    model.fit(X, LABELS, verbose=0)
    before = state(model)
    assert any(v.numpy().any() for v in model.metrics_variables)
    pnn.evaluate_devices(model, X, LABELS, devices, verbose=0)
    assert state(model) == before
    fresh = classifier()
    before = [v.numpy().tobytes() for v in fresh.variables]
    pnn.evaluate_devices(fresh, X, LABELS, devices, chunk=1, verbose=0)
    assert [v.numpy().tobytes() for v in fresh.variables] == before
    assert not any(v.numpy().any() for v in fresh.metrics_variables)


def test_in_a_callback_of_fit():
    class Population(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pnn.evaluate_devices(self.model, X, LABELS, devices, chunk=1, verbose=0)

    plain, observed = classifier(), classifier()
    devices = VARIATION.sample(observed, 2)
    fit = {"x": X, "y": LABELS, "shuffle": False, "batch_size": 12, "verbose": 0}
    expected = plain.fit(**fit).history
    assert observed.fit(**fit, callbacks=[Population()]).history == expected


def test_wrapper_and_inner_are_interchangeable():
    model = classifier()
    devices = VARIATION.sample(model, 3)
    sat = pnn.SATModel(model)
    sat.compile("sgd", CROSS_ENTROPY, metrics=["accuracy"])
    sat.fit(X, LABELS, verbose=0)
    result = assert_equals_evaluate(sat, X, LABELS, devices)
    assert list(result.values) == ["loss", "accuracy"]


def test_auc_and_a_metric_that_is_an_array():
    model = classifier()
    one_hot = np.eye(6, dtype="float32")[LABELS]
    model.compile(
        "sgd",
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[
            keras.metrics.AUC(from_logits=True, num_thresholds=20),
            keras.metrics.F1Score(average=None, name="f1"),
        ],
    )
    devices = VARIATION.sample(model, 3)
    result = assert_equals_evaluate(model, X, one_hot, devices, batch_size=10)
    assert result["f1"].shape == (3, 6)
    assert json.loads(json.dumps(result.to_dict()))["values"]["f1"][2] == list(
        result["f1"][2]
    )


def test_convolutions_and_float64_data():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((7, 6, 2))
    x = pnn.layers.MRRConv2D(2, 3, strides=2, padding="same")(inputs)
    x = pnn.layers.MRRConv2D(4, (1, 2), activation="relu")(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    model.compile("sgd", "mse", metrics=["mae"])
    images = RNG.normal(size=(5, 7, 6, 2))
    variation = pnn.Variation(resonance_shift=0.1, half_width_error=0.1)
    devices = variation.sample(model, 3)
    result = assert_equals_evaluate(
        model, images, RNG.normal(size=(5, 4)), devices, batch_size=2
    )
    assert result.vectorized


def test_several_inputs_and_outputs_of_a_subclassed_model():
    @keras.saving.register_keras_serializable(package="test_population")
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.bank = pnn.layers.MRRBank(3)

        def call(self, inputs):
            self.add_loss(0.1 * keras.ops.mean(inputs["p"] ** 2))
            return {"a": self.bank(inputs["p"]), "b": self.bank(inputs["q"])}

    model = Two()
    x = {"p": X, "q": X[::-1].copy()}
    y = {"a": X[:, :3], "b": X[:, 1:]}
    model(x)
    model.compile("sgd", {"a": "mse", "b": "mae"}, metrics={"a": ["mae"]})
    devices = pnn.Variation(resonance_shift=0.2).sample(model, 3)
    for chunk in (None, 1):
        result = pnn.evaluate_devices(
            model, x, y, devices, batch_size=10, chunk=chunk, verbose=0
        )
        # In one batch: Keras weights the batches' losses of single outputs alike.
        expected = each_evaluated(model, x, y, devices, batch_size=N)
        assert expected.keys() == result.values.keys() >= {"a_loss", "a_mae"}
        for name, values in expected.items():
            np.testing.assert_allclose(result[name], values, rtol=1e-5)
        assert result.vectorized is (chunk is None)


def test_masks_reach_the_metrics():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(7, 4, mask_zero=True)(inputs)
    model = keras.Model(inputs, pnn.layers.MRRBank(6)(x))
    model.compile("sgd", CROSS_ENTROPY, metrics=["accuracy"])
    words = RNG.integers(0, 3, (N, 5))
    devices = pnn.Variation(resonance_shift=0.3, bias=0.5).sample(model, 4)
    result = assert_equals_evaluate(model, words, RNG.integers(0, 6, (N, 5)), devices)
    assert result.vectorized


class NumpySquare(keras.layers.Layer):
    def call(self, inputs):
        outputs = tf.numpy_function(np.square, [inputs], inputs.dtype)
        outputs.set_shape(inputs.shape)
        return outputs

    def compute_output_shape(self, input_shape):
        return input_shape


def test_a_layer_that_cannot_be_vectorised():
    inputs = keras.Input((4,))
    outputs = NumpySquare()(pnn.layers.MRRBank(3)(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse", metrics=["mae"], jit_compile=False)
    devices = pnn.Variation(resonance_shift=0.2).sample(model, 3)
    with pytest.warns(UserWarning, match="cannot be vectorised") as caught:
        result = assert_equals_evaluate(model, X, X[:, :3], devices, batch_size=10)
    assert len([w for w in caught if "vectorised" in str(w.message)]) == 1
    assert not result.vectorized
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_equals_evaluate(model, X, X[:, :3], devices, chunk=1)


def test_devices_that_deviate_elsewhere_are_refused():
    # Two temperatures of one value: the variables differ, what they hold does not.
    inputs = keras.Input((4,))
    outputs = pnn.layers.MRRBank(3, name="b")(pnn.layers.MRRBank(4, name="a")(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    devices = [
        *pnn.devices.sweep(model, "a/temperature", 1.0),
        *pnn.devices.sweep(model, "b/temperature", 1.0),
    ]
    with pytest.raises(ValueError, match="same variables"):
        pnn.evaluate_devices(model, X, X[:, :3], devices, verbose=0)


def test_errors():
    model = classifier()
    devices = VARIATION.sample(model, 2)
    nan = X.copy()
    nan[3, 1] = np.nan

    def refuses(match, x=X, y=LABELS, devices=devices, model=model, **kwargs):
        with pytest.raises(ValueError, match=match):
            pnn.evaluate_devices(model, x, y, devices, verbose=0, **kwargs)

    refuses("at least one device", devices=[])
    refuses("lengths", x=X[:0], y=LABELS[:0])
    refuses("lengths", y=LABELS[1:])
    refuses("lengths", sample_weight=WEIGHTS[1:])
    refuses("`x` must be finite", x=nan)
    refuses("`y` must be finite", y=np.where(LABELS == 0, np.nan, LABELS))
    refuses("`sample_weight` must be finite", sample_weight=WEIGHTS * np.inf)
    refuses("`batch_size`", batch_size=0)
    refuses("`chunk`", chunk=0)
    uncompiled = keras.Sequential([keras.Input((4,)), pnn.layers.MRRBank(6)])
    refuses("compiled", model=uncompiled)
    other = keras.Sequential([keras.Input((4,)), pnn.layers.MRRBank(9)])
    other.compile("sgd", "mse")
    refuses("architecture", model=other)
    refuses(
        "same variables",
        devices=[devices[0], *pnn.Variation(temperature=1.0).sample(model, 1)],
    )


def test_summary_and_table():
    values = {"loss": np.arange(5.0), "accuracy": np.linspace(0.5, 1, 5)}
    result = pnn.DeviceEvaluation(values, samples=9, batch_size=3, vectorized=True)
    summary = result.summary("loss")
    assert (summary["mean"], summary["median"], summary["max"]) == (2, 2, 4)
    np.testing.assert_allclose(summary["p05"], 0.2)
    np.testing.assert_allclose(summary["std"], np.sqrt(2))
    lines = result.table().splitlines()
    assert len(lines) == 3 and "accuracy" in lines[2] and "0.7500" in lines[2]
    assert result.to_dict()["batch_norm"] == "frozen"
