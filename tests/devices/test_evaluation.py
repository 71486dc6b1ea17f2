"""Many devices in one graph, against `evaluate` on one device after the other."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from noise import Noise

import keras_pnn as pnn
from keras_pnn.devices.footprint import footprint

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


class Watched(keras.layers.Layer):
    """Keeps the largest input that it has seen, whatever the loss."""

    def __init__(self):
        super().__init__()
        self.largest = Largest(name="largest")

    def call(self, inputs):
        self.largest.update_state(inputs)
        return inputs


class Largest(keras.metrics.Metric):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.value = self.add_variable((), "zeros", name="value")

    def update_state(self, values):
        self.value.assign(keras.ops.maximum(self.value, keras.ops.max(values)))

    def result(self):
        return self.value


class OwnLoss(keras.Model):
    """Has a loss and metrics of its own, in `call` and in the loss."""

    def __init__(self):
        super().__init__()
        self.bank = pnn.layers.MRRBank(6)
        self.watched = Watched()
        self.seen = keras.metrics.Mean(name="seen")
        self.squares = keras.metrics.Mean(name="squares")

    def call(self, inputs):
        outputs = self.watched(self.bank(inputs))
        self.seen.update_state(outputs)
        return outputs

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        squares = keras.ops.mean(y_pred**2, axis=-1)
        self.squares.update_state(squares, sample_weight)
        return 10 * keras.ops.mean(squares)


@pytest.mark.parametrize(("wrapped", "chunk"), [(False, 3), (True, 1)])
def test_metrics_that_the_model_keeps_itself(wrapped, chunk):
    model = OwnLoss()
    model(X)
    if wrapped:
        model = pnn.SATModel(model)
    model.compile("sgd", metrics=["accuracy"])
    devices = pnn.Variation(resonance_shift=0.1).sample(model, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = assert_equals_evaluate(
            model, X, LABELS, devices, batch_size=9, sample_weight=WEIGHTS, chunk=chunk
        )
    assert {"seen", "squares", "largest"} <= result.values.keys()
    # Also where nothing differs between the devices.
    (ideal,) = pnn.devices.sweep(model, "temperature", [0.0])
    ideal.deviations.clear()
    same = pnn.evaluate_devices(model, X, LABELS, [ideal] * 2, verbose=0)
    expected = each_evaluated(model, X, LABELS, [ideal] * 2, batch_size=100)
    for name, values in expected.items():
        np.testing.assert_allclose(same[name], values, rtol=1e-5)


@pytest.mark.parametrize(("loss", "chunk"), [(CROSS_ENTROPY, 3), (None, 1)])
def test_a_device_that_gives_nan_has_no_metrics(loss, chunk):
    points = np.linspace(0, 1, 12)
    tuning = pnn.MeasuredTuning(points, 1 - 2 / (1 + (points / 0.15) ** 2), unit="nm")
    bank = pnn.layers.MRRBank(6, tuning=tuning, kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((4,)), bank])
    control = bank.controls["control"]
    control.assign(np.full(control.shape, 0.5))
    each = keras.metrics.MeanMetricWrapper(lambda y, p: keras.ops.cast(y == 0, "int32"))
    model.compile("sgd", loss, metrics=["accuracy", each])
    devices = pnn.devices.sweep(model, "resonance_shift", [0, 0.1, 9, -9, 0.2])
    with pytest.warns(UserWarning, match="2 of 5 devices give NaN") as caught:
        result = pnn.evaluate_devices(model, X, LABELS, devices, chunk=chunk, verbose=0)
    assert len([w for w in caught if "NaN" in str(w.message)]) == 1
    for name in result.values.keys() - {"loss"}:
        assert np.isnan(result[name]).tolist() == [False, False, True, True, False]
    good = [devices[0], devices[1], devices[4]]
    expected = each_evaluated(model, X, LABELS, good, batch_size=100)
    for name, values in expected.items():
        np.testing.assert_allclose(result[name][[0, 1, 4]], values, rtol=1e-5)
    assert np.isnan(result.summary("accuracy")["p05"])


def test_nan_in_one_batch_is_enough():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, pnn.layers.MRRBank(6)(keras.ops.log(inputs)))
    model.compile("sgd", CROSS_ENTROPY, metrics=["accuracy"])
    devices = pnn.Variation(resonance_shift=0.1).sample(model, 2)
    x = np.abs(X)
    x[0, 0] = -1
    with pytest.warns(UserWarning, match="2 of 2 devices give NaN"):
        result = pnn.evaluate_devices(model, x, LABELS, devices, 9, verbose=0)
    assert np.isnan(result["accuracy"]).all()


def test_metrics_of_the_train_step_are_not_reported():
    model = classifier()
    devices = pnn.Variation(resonance_shift=0.1).sample(model, 2)
    online = pnn.DATModel(model, device=devices[0], error_networks=1)
    online.compile("sgd", CROSS_ENTROPY)
    result = pnn.evaluate_devices(online, X, LABELS, devices, verbose=0)
    assert result.values.keys() == {"loss"}


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


def rows_of(evaluator, devices):
    return [row for _, rows in evaluator.chunks(devices) for row in rows]


def test_chunks_and_how_devices_are_cut():
    model = classifier()
    one_hot = np.eye(6, dtype="float32")[LABELS]
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    metrics = ["accuracy", keras.metrics.F1Score(average=None, name="f1")]
    model.compile("sgd", loss, metrics=metrics)
    devices = VARIATION.sample(model, 7)
    evaluator = pnn.devices.DeviceEvaluator(model, X, one_hot, 10, chunk=3)
    found = list(evaluator.chunks(devices))
    assert [start for start, _ in found] == [0, 3, 6]
    assert [len(rows) for _, rows in found] == [3, 3, 1]
    assert type(found[0][1][0]["loss"]) is float
    assert found[0][1][0]["f1"].shape == (6,)
    together = evaluator.evaluate(devices, verbose=0)
    rows = [row for _, some in found for row in some]
    for name, values in together.values.items():
        np.testing.assert_array_equal(values, [row[name] for row in rows])
    # Taken up after a chunk, by another evaluator: the same to the last bit.
    other = pnn.devices.DeviceEvaluator(model, X, one_hot, 10, chunk=3)
    for i, row in enumerate(rows_of(other, devices[3:]), start=3):
        assert row["loss"] == rows[i]["loss"]
    # The last one alone is filled up as before.
    assert rows_of(other, devices[6:])[0]["loss"] == rows[6]["loss"]
    assert traces(other) == 2
    for chunk in (None, 5, 1):
        result = pnn.evaluate_devices(
            model, X, one_hot, devices, 10, chunk=chunk, verbose=0
        )
        for name, values in result.values.items():
            np.testing.assert_allclose(values, together[name], rtol=2e-6, atol=1e-6)


def traces(evaluator) -> int:
    """How many shapes of batches the test step was compiled for."""
    engines = [engine for engine, _ in evaluator._engines.values()]
    return sum(
        engine._forward_all._stacked.experimental_get_tracing_count()
        for engine in engines
    )


def test_compiles_once_for_each_set_of_variables_and_after_compile():
    model = classifier()
    evaluator = pnn.devices.DeviceEvaluator(model, X, LABELS, batch_size=N, chunk=3)
    devices = VARIATION.sample(model, 4)
    first = evaluator.evaluate(devices, verbose=0)
    assert traces(evaluator) == 1
    before = next(iter(evaluator._engines.values()))
    # Weights are read at each call, during training too.
    model.fit(X, LABELS, verbose=0)
    second = evaluator.evaluate(devices[:2], verbose=0)
    assert next(iter(evaluator._engines.values())) is before
    assert traces(evaluator) == 1
    expected = each_evaluated(model, X, LABELS, devices[:2], batch_size=N)
    np.testing.assert_allclose(second["loss"], expected["loss"], rtol=1e-5)
    assert (np.abs(second["loss"] - first["loss"][:2]) > 1e-4).all()
    warm = pnn.devices.sweep(model, "temperature", [0.5, 1.0])
    evaluator.evaluate(warm, verbose=0)
    assert len(evaluator._engines) == 2
    model.compile("sgd", CROSS_ENTROPY, metrics=["sparse_categorical_crossentropy"])
    third = evaluator.evaluate(devices[:2], verbose=0)
    assert list(third.values) == ["loss", "sparse_categorical_crossentropy"]
    np.testing.assert_allclose(third["loss"], second["loss"], rtol=1e-5)
    assert len(evaluator._engines) == 1


def hybrid():
    """A digital front end with normalisation, then a mesh."""
    keras.utils.set_random_seed(4)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(3, 3, name="conv")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Dense(4)(keras.layers.Flatten()(x))
    x = pnn.layers.Photodetector(name="power")(pnn.layers.MZIMesh(4, name="mesh")(x))
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(x))
    model.compile("sgd", CROSS_ENTROPY)
    return model


def test_what_does_not_differ_between_devices_runs_once():
    model = hybrid()
    images = RNG.normal(size=(6, 8, 8, 1)).astype("float32")
    evaluator = pnn.devices.DeviceEvaluator(model, images, np.arange(6) % 3)
    engine, chunk, bound = evaluator._bound(
        pnn.Variation(theta_error=0.1).sample(model, 5)
    )
    assert chunk == 5
    stacks = [
        tf.stack(c)
        for c in zip(*[[t.value(a) for t, a in b] for b in bound], strict=True)
    ]
    batch = (*(tf.constant(a) for a in evaluator._data[:2]), None)
    program = engine._forward_all._stacked.experimental_get_compiler_ir(
        stacks, [], engine.first_seeds(), batch
    )(stage="hlo")
    lines = [line for line in program.splitlines() if " convolution(" in line]
    assert len(lines) == 1 and "f32[6,6,6,3]" in lines[0]


def test_memory_counts_what_differs_between_devices():
    model = hybrid()
    mesh = model.get_layer("mesh")
    # Bytes of a sample: the mesh's complex fields, their powers, three outputs.
    stacked = 4 * 8 + 4 * 4 + 3 * 4
    # Convolution, normalisation, ReLU and Flatten; Dense. Its input counts for none.
    shared = 4 * 6 * 6 * 3 * 4 + 4 * 4
    wrapped = pnn.SATModel(model)
    inputs = keras.Input((8, 8, 1))
    nested = keras.Model(inputs, model(inputs))
    sequence = keras.Sequential([keras.Input((8, 8, 1)), nested])
    for whole in (model, wrapped, nested, sequence):
        found = footprint(whole, [mesh.imperfections["theta_error"]])
        assert (found.shared, found.stacked) == (shared, stacked)
        names = ("conv", "mesh", "power", "last")
        differ = [found.differs(model.get_layer(n)) for n in names]
        assert differ == [False, True, True, True]
    everything = footprint(model, [model.get_layer("conv").kernel])
    assert (everything.shared, everything.stacked) == (0, shared + stacked)
    last = footprint(model, [model.get_layer("last").kernel])
    assert (last.shared, last.stacked) == (shared + stacked - 12, 12)
    assert last.weights < found.weights
    each = 10 * stacked + found.weights
    # Half of a small limit is kept for compiling, a tenth for what is not counted.
    assert found.devices(10, (10 * shared + 7.5 * each) / 0.4) == 7
    assert found.devices(10, 1.0) == 1


def test_memory_of_a_model_without_nodes_counts_every_layer():
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.model = hybrid()
            self.bank = pnn.layers.MRRBank(3)

        def call(self, inputs):
            return self.bank(self.model(inputs))

    model = Plain()
    model(np.zeros((1, 8, 8, 1), "float32"))
    found = footprint(model, [model.bank.imperfections["temperature"]])
    assert found.differs(model.model.get_layer("conv"))
    assert found.shared == 0 and found.stacked > 4 * 6 * 6 * 3 * 4

    class Other(type(hybrid())):
        def call(self, inputs):
            return super().call(super().call(inputs))

    inner = hybrid()
    other = Other(inner.inputs, inner.outputs)
    found = footprint(other, [inner.get_layer("mesh").controls["theta"]])
    assert found.differs(inner.get_layer("conv"))


def test_patches_of_inputs_that_differ_are_counted():
    inputs = keras.Input((6, 6, 2))
    first = pnn.layers.MRRConv2D(3, 3, padding="same")
    second = pnn.layers.MRRConv2D(4, 3)
    model = keras.Model(inputs, second(first(inputs)))
    outputs = 4 * (36 * 3), 4 * (16 * 4)
    patches = 4 * 36 * 9 * 2, 4 * 16 * 9 * 3
    shift = first.imperfections["resonance_shift"]
    found = footprint(model, [shift])
    assert found.shared == patches[0]
    assert found.stacked == outputs[0] + outputs[1] + patches[1]
    found = footprint(model, [second.imperfections["resonance_shift"]])
    assert found.shared == outputs[0] + patches[0] + patches[1]
    assert found.stacked == outputs[1]


def test_devices_at_once():
    model = classifier()
    devices = VARIATION.sample(model, 7)
    make = pnn.devices.DeviceEvaluator
    assert make(model, X, LABELS).devices_at_once(devices) == 7
    assert make(model, X, LABELS, chunk=9).devices_at_once(devices) == 9
    needs = footprint(model, [t.variable for t, _ in devices[0].bind(model)])
    # Half of a small limit is kept for compiling, and a tenth for what is not counted.
    limit = 1.02 * (N * needs.shared + 5 * (N * needs.stacked + needs.weights)) / 0.4
    # Five fit: two chunks, of four and three.
    evaluator = make(model, X, LABELS, memory_limit=limit / 2**30)
    assert needs.devices(N, limit) == 5
    assert evaluator.devices_at_once(devices) == 4


def test_random_numbers_are_others_in_each_batch():
    """As in `evaluate`: the figure is that of all samples' noise."""
    inputs = keras.Input((4,))
    bank = pnn.layers.MRRBank(2)
    model = keras.Model(inputs, Noise()(bank(inputs)))
    model.compile("sgd", "mse")
    x = np.ones((800, 4), "float32")
    y = np.repeat(bank(x[:1]).numpy(), 800, axis=0)
    before = state(model)
    devices = pnn.devices.sweep(model, "temperature", [0.0, 0.0, 0.0])
    for chunk in (None, 1, 2):
        found = pnn.evaluate_devices(
            model, x, y, devices, batch_size=8, verbose=0, chunk=chunk
        )["loss"]
        # 1600 squares of normal numbers; those of one batch would be off by 0.35.
        assert abs(found[0] - 1) < 4 * np.sqrt(2 / 1600)
        # Devices are compared by the same draws.
        np.testing.assert_allclose(found, found[0], rtol=1e-5)
    assert state(model) == before


def test_the_order_of_deviations_does_not_matter():
    model = classifier()
    values = {"temperature": [0.2], "resonance_shift": [0.1]}
    one = pnn.devices.grid(model, values)
    other = pnn.devices.grid(model, dict(reversed(values.items())))
    assert list(one[0].deviations) != list(other[0].deviations)
    found = pnn.evaluate_devices(model, X, LABELS, [*one, *other], verbose=0)
    assert found["loss"][0] == found["loss"][1]


def test_a_model_with_a_loss_of_its_own_needs_no_targets():
    class Power(keras.layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.mean(x**2))
            return x

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Power()(pnn.layers.MRRBank(6)(inputs)))
    model.compile()
    devices = VARIATION.sample(model, 2)
    found = pnn.evaluate_devices(model, X, None, devices, batch_size=len(X), verbose=0)
    with devices[1].installed(model):
        expected = model.evaluate(X, batch_size=len(X), verbose=0)
    assert found["loss"][1] == pytest.approx(expected, rel=1e-5)


class Copying(keras.Model):
    """Takes its targets from its inputs."""

    def compute_loss(self, x=None, y=None, *rest, **named):
        return super().compute_loss(x, x[:, :3], *rest, **named)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_that_makes_its_targets_needs_none(wrapped):
    inputs = keras.Input((4,))
    model = Copying(inputs, pnn.layers.MRRBank(3)(inputs))
    model = pnn.SATModel(model) if wrapped else model
    model.compile("sgd", "mse")
    devices = VARIATION.sample(model, 2)
    found = pnn.evaluate_devices(model, X, None, devices, verbose=0)["loss"]
    expected = pnn.evaluate_devices(model, X, X[:, :3], devices, verbose=0)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_errors():
    model = classifier()
    devices = VARIATION.sample(model, 2)
    nan = X.copy()
    nan[3, 1] = np.nan

    def refuses(match, x=X, y=LABELS, devices=devices, model=model, **kwargs):
        with pytest.raises(ValueError, match=match):
            pnn.evaluate_devices(model, x, y, devices, verbose=0, **kwargs)

    refuses("at least one device", devices=[])
    refuses("sequence.*\\[device\\].*Received: .*SimulatedDevice", devices=devices[0])
    refuses("variation.sample.*Received: Variation", devices=VARIATION)
    bench = pnn.HardwareDevice.__new__(pnn.HardwareDevice)
    refuses("sequence.*installed.*Received: .*HardwareDevice", devices=[bench])
    refuses("lengths", x=X[:0], y=LABELS[:0])
    refuses("lengths", y=LABELS[1:])
    refuses("lengths", sample_weight=WEIGHTS[1:])
    refuses("`x` must be finite", x=nan)
    refuses("`y` must be finite", y=np.where(LABELS == 0, np.nan, LABELS))
    refuses("`x` must be finite", x=nan.astype("complex64"))
    refuses("`sample_weight` must be finite", sample_weight=WEIGHTS * np.inf)
    refuses("`x` must be an array, .*Received: x with", x=X.tolist())
    refuses("`y` must be an array, .*Received: y with", y=LABELS.tolist())
    refuses("`x` must be an array, .*Dataset", x=tf.data.Dataset.from_tensors(X))
    refuses("`x` must hold at least one array. Received: None", x=None)
    refuses("`y` must hold the targets .*Received: y=None", y=None)
    sat = pnn.SATModel(model)
    sat.compile(loss="mse")
    refuses("`y` must hold the targets .*Received: y=None", y=None, model=sat)
    for wrong in (0, 1.5, "9", True):
        refuses(f"`batch_size`.*Received: batch_size={wrong!r}", batch_size=wrong)
        refuses(f"`chunk`.*Received: .*chunk={wrong!r}", chunk=wrong)
    for wrong in (0.0, float("nan"), "1", None):
        refuses(f"`memory_limit`.*Received: {wrong!r}", memory_limit=wrong)
    refuses("compiled.*Received: model 'None'", model=None)
    with pytest.raises(ValueError, match="at least one device"):
        # Before anything runs, not at the first chunk.
        pnn.devices.DeviceEvaluator(model, X, LABELS).chunks([])
    uncompiled = keras.Sequential([keras.Input((4,)), pnn.layers.MRRBank(6)])
    refuses("compiled", model=uncompiled)
    other = keras.Sequential([keras.Input((4,)), pnn.layers.MRRBank(9)])
    other.compile("sgd", "mse")
    refuses("architecture", model=other)
    refuses(
        "same variables",
        devices=[devices[0], *pnn.Variation(temperature=1.0).sample(model, 1)],
    )


def test_a_measurement_is_no_simulated_device():
    class Bench(pnn.HardwareDevice):
        def measure(self, layer, inputs, controls):
            return np.ones((len(inputs), layer.units))

    model, bench = classifier(), Bench()
    devices = VARIATION.sample(model, 2)
    refused = pytest.raises(ValueError, match=r"outside.*Received: layers that a dev")
    with refused, bench.installed(model):
        pnn.evaluate_devices(model, X, LABELS, devices, verbose=0)
    # Also where everything is compiled already.
    evaluator = pnn.devices.DeviceEvaluator(model, X, LABELS)
    before = evaluator.evaluate(devices, verbose=0)
    with refused, bench.installed(model):
        evaluator.evaluate(devices, verbose=0)
    assert bench.calls == 0
    after = evaluator.evaluate(devices, verbose=0)
    np.testing.assert_array_equal(after["loss"], before["loss"])


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
