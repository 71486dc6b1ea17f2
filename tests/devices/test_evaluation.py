"""Many devices in one graph, against `evaluate` on one device after the other."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_layers_table import Reporting
from models import LOSS, Bench, bits, planes
from noise import Noise

import keras_pnn as pnn
from keras_pnn.devices.footprint import footprint

RNG = np.random.default_rng(0)
N = 23
X = RNG.normal(size=(N, 4)).astype("float32")
LABELS = RNG.integers(0, 6, N)
ONE_HOT = np.eye(6, dtype="float32")[LABELS]
WEIGHTS = RNG.uniform(0.1, 2, N).astype("float32")
VARIATION = pnn.Variation(resonance_shift=0.1, temperature=0.5, bias=0.2)
SHIFTS = pnn.Variation(resonance_shift=0.2)
# So that `evaluate`, with which many devices are compared, needs no graph.
EAGER = {"run_eagerly": True}


def compiled(model, **kwargs):
    model.compile(**{"optimizer": "sgd", "loss": "mse", **EAGER, **kwargs})
    return model


def classifier():
    keras.utils.set_random_seed(1)
    layers = [
        pnn.layers.MRRBank(5, activation="relu", kernel_regularizer="l2"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(6, kernel_regularizer="l1"),
    ]
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)]
    options = {"metrics": metrics, "weighted_metrics": ["accuracy"]}
    model = keras.Sequential([keras.Input((4,)), *layers])
    return compiled(model, loss=LOSS, **options)


def bank(units, *after, **kwargs):
    """A compiled bank of rings, and layers after it."""
    layers = [pnn.layers.MRRBank(units), *after]
    return compiled(keras.Sequential([keras.Input((4,)), *layers]), **kwargs)


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
    devices = VARIATION.sample(model, 2)
    model.fit(X, LABELS, verbose=0)
    before = state(model)
    assert any(v.numpy().any() for v in model.metrics_variables)
    pnn.evaluate_devices(model, X, LABELS, devices, verbose=0)
    assert state(model) == before
    fresh = classifier()
    before = bits(fresh)
    pnn.evaluate_devices(fresh, X, LABELS, devices, chunk=1, verbose=0)
    assert bits(fresh) == before
    assert not any(v.numpy().any() for v in fresh.metrics_variables)


def auc_and_a_metric_that_is_an_array():
    auc = keras.metrics.AUC(from_logits=True, num_thresholds=20)
    metrics = [auc, keras.metrics.F1Score(average=None, name="f1")]
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model = bank(6, loss=loss, metrics=metrics)
    return model, X, ONE_HOT, SHIFTS.sample(model, 3), 10


def convolutions_and_float64_data():
    layers = [
        pnn.layers.MRRConv2D(2, 3, strides=2, padding="same"),
        pnn.layers.MRRConv2D(4, (1, 2), activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
    ]
    model = compiled(
        keras.Sequential([keras.Input((7, 6, 2)), *layers]), metrics=["mae"]
    )
    variation = pnn.Variation(resonance_shift=0.1, half_width_error=0.1)
    x, y = RNG.normal(size=(5, 7, 6, 2)), RNG.normal(size=(5, 4))
    return model, x, y, variation.sample(model, 3), 2


def masks_of_metrics():
    words = keras.layers.Embedding(7, 4, mask_zero=True)
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Sequential([inputs, words, pnn.layers.MRRBank(6)])
    compiled(model, loss=LOSS, metrics=["accuracy"])
    devices = pnn.Variation(resonance_shift=0.3, bias=0.5).sample(model, 4)
    return model, RNG.integers(0, 3, (N, 5)), RNG.integers(0, 6, (N, 5)), devices, 100


def a_mesh_that_all_devices_share():
    """Masks turn from device to device; the mesh behind them does not differ."""
    masks = pnn.layers.MaskedSLM(4, grid=(2, 2))
    mesh = pnn.layers.MZIMesh(4), pnn.layers.Photodetector(ports=3)
    model = compiled(keras.Sequential([keras.Input((4, 4)), masks, *mesh]))
    images = np.random.default_rng(0).random((16, 4, 4)).astype("float32")
    devices = pnn.devices.grid(model, {"rotation": [-20.0, 0.0, 20.0]})
    return model, images, np.ones((16, 3)), devices, 100


def batches_of_one_sample():
    """Detectors then multiply (devices, 1, rows, columns) by one matrix."""
    model = compiled(planes())
    images = np.random.default_rng(0).random((3, 6, 6)).astype("float32")
    devices = pnn.Variation(rotation=20.0).sample(model, 3, seed=0)
    # A batch of two, and one of one.
    return model, images, np.ones((3, 3)), devices, 2


def logits(activation, loss):
    """A saturated cross-entropy among the metrics, which is not clipped."""
    model = bank(6, keras.layers.Activation(activation), loss=loss, metrics=[loss])
    devices = pnn.devices.sweep(model, "temperature", [0.0, 0.1])
    return model, 200 * X, ONE_HOT, devices, 100


@pytest.mark.parametrize(
    "case",
    [
        auc_and_a_metric_that_is_an_array,
        convolutions_and_float64_data,
        masks_of_metrics,
        a_mesh_that_all_devices_share,
        batches_of_one_sample,
        lambda: logits("softmax", "categorical_crossentropy"),
        lambda: logits("sigmoid", "binary_crossentropy"),
    ],
)
def test_other_models_equal_evaluate(case):
    model, x, y, devices, batch_size = case()
    result = assert_equals_evaluate(model, x, y, devices, batch_size=batch_size)
    assert result.vectorized


class Two(keras.Model):
    """Two inputs and outputs, one of them saturated probabilities."""

    def __init__(self):
        super().__init__()
        self.bank = pnn.layers.MRRBank(3)

    def call(self, inputs):
        self.add_loss(0.1 * keras.ops.mean(inputs["p"] ** 2))
        q = keras.activations.softmax(60 * self.bank(inputs["q"]))
        return {"a": self.bank(inputs["p"]), "b": q}


@pytest.mark.parametrize("chunk", [None, 1])
def test_several_inputs_and_outputs_of_a_subclassed_model(chunk):
    model = Two()
    x = {"p": X, "q": X[::-1].copy()}
    y = {"a": X[:, :3], "b": np.eye(3)[LABELS % 3]}
    model(x)
    losses = {"a": "mse", "b": "categorical_crossentropy"}
    model.compile("sgd", losses, metrics={"a": ["mae"]}, **EAGER)
    devices = SHIFTS.sample(model, 3)
    result = pnn.evaluate_devices(
        model, x, y, devices, batch_size=10, chunk=chunk, verbose=0
    )
    # In one batch: Keras weights the batches' losses of single outputs alike.
    expected = each_evaluated(model, x, y, devices, batch_size=N)
    assert expected.keys() == result.values.keys() >= {"a_loss", "b_loss", "a_mae"}
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values, rtol=1e-5)
    # Of the logits: the probabilities alone, clipped at 1e-7, give at most 16.
    assert (result["b_loss"] > 17).all()
    assert result.vectorized is (chunk is None)


class NumpySquare(keras.layers.Layer):
    def call(self, inputs):
        outputs = tf.numpy_function(np.square, [inputs], inputs.dtype)
        outputs.set_shape(inputs.shape)
        return outputs

    def compute_output_shape(self, input_shape):
        return input_shape


class OwnLoss(keras.Model):
    """Has a loss and metrics of its own, in `call` and in the loss."""

    def __init__(self):
        super().__init__()
        self.bank = pnn.layers.MRRBank(6)
        self.reporting = Reporting()
        self.seen = keras.metrics.Mean(name="seen")
        self.squares = keras.metrics.Mean(name="squares")

    def call(self, inputs):
        outputs = self.reporting(self.bank(inputs))
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
    model.compile("sgd", metrics=["accuracy"], **EAGER)
    devices = SHIFTS.sample(model, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = assert_equals_evaluate(
            model, X, LABELS, devices, batch_size=9, sample_weight=WEIGHTS, chunk=chunk
        )
    assert {"seen", "squares", "level"} <= result.values.keys()
    # Also where nothing differs between the devices.
    (ideal,) = pnn.devices.sweep(model, "temperature", [0.0])
    ideal.deviations.clear()
    same = pnn.evaluate_devices(model, X, LABELS, [ideal] * 2, verbose=0)
    expected = each_evaluated(model, X, LABELS, [ideal] * 2, batch_size=100)
    for name, values in expected.items():
        np.testing.assert_allclose(same[name], values, rtol=1e-5)


@pytest.mark.parametrize(("loss", "chunk"), [(LOSS, 3), (None, 1)])
def test_a_device_that_gives_nan_has_no_metrics(loss, chunk):
    points = np.linspace(0, 1, 12)
    tuning = pnn.MeasuredTuning(points, 1 - 2 / (1 + (points / 0.15) ** 2), unit="nm")
    bank = pnn.layers.MRRBank(6, tuning=tuning, kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((4,)), bank])
    control = bank.controls["control"]
    control.assign(np.full(control.shape, 0.5))
    each = keras.metrics.MeanMetricWrapper(lambda y, p: keras.ops.cast(y == 0, "int32"))
    model.compile("sgd", loss, metrics=["accuracy", each], **EAGER)
    devices = pnn.devices.sweep(model, "resonance_shift", [0, 0.1, 9, -9, 0.2])
    with pytest.warns(UserWarning, match="2 of 5 devices give NaN") as caught:
        result = pnn.evaluate_devices(model, X, LABELS, devices, chunk=chunk, verbose=0)
    (told,) = [w for w in caught if "NaN" in str(w.message)]
    assert f"Rings of '{bank.name}'" in str(told.message)
    assert "`margin=`" in str(told.message) and told.filename == __file__
    for name in result.values.keys() - {"loss"}:
        assert np.isnan(result[name]).tolist() == [False, False, True, True, False]
    good = [devices[0], devices[1], devices[4]]
    expected = each_evaluated(model, X, LABELS, good, batch_size=100)
    for name, values in expected.items():
        np.testing.assert_allclose(result[name][[0, 1, 4]], values, rtol=1e-5)
    assert np.isnan(result.summary("accuracy")["p05"])


def test_nan_in_one_batch_is_enough():
    logarithm = keras.layers.Lambda(lambda x: keras.ops.log(x + 2.5))
    model = bank(6, logarithm, loss=LOSS, metrics=["accuracy"])
    devices = SHIFTS.sample(model, 2)
    x = np.where(np.arange(N) == 3, 99, X.T).T
    # The chunk is filled up with a copy of the last device, which does not count.
    with pytest.warns(UserWarning, match="2 of 2 devices give NaN"):
        result = pnn.evaluate_devices(model, x, LABELS, devices, 9, chunk=3, verbose=0)
    assert np.isnan(result["accuracy"]).all() and len(result) == 2
    kernel = model.layers[0].controls["control"]
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.warns(UserWarning, match="Weights of the model are NaN"):
        pnn.evaluate_devices(model, x, LABELS, devices, 9, chunk=3, verbose=0)


def test_metrics_of_the_train_step_are_not_reported():
    model = bank(6)
    devices = SHIFTS.sample(model, 2)
    online = pnn.DATModel(model, device=devices[0], error_networks=1)
    online.compile("sgd", LOSS)
    result = pnn.evaluate_devices(online, X, LABELS, devices, verbose=0)
    assert result.values.keys() == {"loss"}


def test_a_layer_that_cannot_be_vectorised():
    model = bank(3, NumpySquare(), metrics=["mae"], jit_compile=False)
    devices = SHIFTS.sample(model, 3)
    with pytest.warns(UserWarning, match="cannot be vectorised") as caught:
        result = assert_equals_evaluate(
            model, X, X[:, :3], devices, batch_size=10, chunk=5
        )
    assert len([w for w in caught if "vectorised" in str(w.message)]) == 1
    assert not result.vectorized
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_equals_evaluate(model, X, X[:, :3], devices, chunk=1)


def test_chunks_and_how_devices_are_cut():
    model, x, y, *_ = auc_and_a_metric_that_is_an_array()
    devices = SHIFTS.sample(model, 7)
    evaluator = pnn.devices.DeviceEvaluator(model, x, y, N, chunk=3)

    def losses(devices):
        chunks = evaluator.chunks(devices)
        return [row["loss"] for _, rows in chunks for row in rows]

    found = list(evaluator.chunks(devices))
    assert [start for start, _ in found] == [0, 3, 6]
    assert [len(rows) for _, rows in found] == [3, 3, 1]
    assert type(found[0][1][0]["loss"]) is float
    assert found[0][1][0]["f1"].shape == (6,)
    together = evaluator.evaluate(devices, verbose=0)
    rows = [row for _, some in found for row in some]
    for name, values in together.values.items():
        np.testing.assert_array_equal(values, [row[name] for row in rows])
    values = json.loads(json.dumps(together.to_dict()))["values"]
    assert values["f1"][2] == list(together["f1"][2])
    # Taken up after a chunk: the same to the last bit, also where one is filled up.
    assert losses(devices[3:]) == list(together["loss"][3:])
    assert losses(devices[6:]) == list(together["loss"][6:])
    for chunk in (None, 1):
        result = pnn.evaluate_devices(model, x, y, devices, chunk=chunk, verbose=0)
        for name, values in result.values.items():
            np.testing.assert_allclose(values, together[name], rtol=2e-6, atol=1e-6)


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
    model = bank(2, Noise())
    x = np.ones((400, 4), "float32")
    y = np.repeat(model.layers[0](x[:1]).numpy(), 400, axis=0)
    before = state(model)
    devices = pnn.devices.sweep(model, "temperature", [0.0, 0.0, 0.0])
    for chunk in (None, 1):
        found = pnn.evaluate_devices(
            model, x, y, devices, batch_size=8, verbose=0, chunk=chunk
        )["loss"]
        # 800 squares of normal numbers; those of one batch would be off by 0.35.
        assert abs(found[0] - 1) < 4 * np.sqrt(2 / 800)
        # Devices are compared by the same draws.
        np.testing.assert_allclose(found, found[0], rtol=1e-5)
    assert state(model) == before


class Copying(keras.Model):
    """Takes its targets from its inputs."""

    def compute_loss(self, x=None, y=None, *rest, **named):
        return super().compute_loss(x, x[:, :3], *rest, **named)


@pytest.mark.parametrize("kind", ["loss of a layer", "copying", "wrapped"])
def test_a_model_that_needs_no_targets(kind):
    inputs = keras.Input((4,))
    model = Copying(inputs, pnn.layers.MRRBank(3)(inputs))
    if kind == "loss of a layer":
        model = bank(3, Reporting(), loss=None)
    else:
        model = compiled(pnn.SATModel(model) if kind == "wrapped" else model)
    devices = SHIFTS.sample(model, 2)
    found = pnn.evaluate_devices(model, X, None, devices, verbose=0)["loss"]
    expected = each_evaluated(model, X, X[:, :3], devices, batch_size=N)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_devices_that_deviate_in_different_variables():
    model = bank(5, pnn.layers.MRRBank(6, name="last"), loss=LOSS)
    values = {"temperature": [0.2], "resonance_shift": [0.1]}
    devices = [
        SHIFTS.sample(model, 1)[0],
        pnn.devices.sweep(model, "temperature", 1.0)[0],
        pnn.devices.sweep(model, "last/temperature", -1.0)[0],
        pnn.SimulatedDevice({}),
        # The order of deviations does not matter.
        pnn.devices.grid(model, values)[0],
        pnn.devices.grid(model, dict(reversed(values.items())))[0],
    ]
    found = pnn.evaluate_devices(model, X, LABELS, devices, verbose=0)
    assert found.vectorized
    expected = each_evaluated(model, X, LABELS, devices, batch_size=N)["loss"]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    assert len(set(found["loss"])) == 5


@pytest.mark.parametrize("trained", [False, True])
def test_data_that_do_not_fit(trained):
    model = bank(6, loss=LOSS)
    if trained:
        model.fit(X, LABELS, verbose=0)
    devices = SHIFTS.sample(model, 1)
    one_hot, text = np.eye(6)[LABELS], np.array(["cat", "dog"])[LABELS % 2]
    wide = np.concatenate([X, X], axis=1)
    for x, y, match in (
        (X, text, r"`y` must be numbers.*Received: dtype <U3"),
        (X, one_hot, r"`y` must be class numbers of shape \(samples,\).*\(\d+, 6\)"),
        (wide, LABELS, r"`x` must be of shape \(samples, \d+\), as the input of mod"),
        (text[:, None], LABELS, r"`x` must be numbers. Received: dtype <U3"),
    ):
        with pytest.raises(ValueError, match=match) as error:
            pnn.evaluate_devices(model, x, y, devices, verbose=0)
        assert len(str(error.value)) < 250
    model.compile("sgd", "categorical_crossentropy")
    with pytest.raises(ValueError, match=r"`y` must be one-hot labels of shape \(sam"):
        pnn.evaluate_devices(model, X, LABELS, devices, verbose=0)


def test_errors():
    model = bank(6, loss=LOSS)
    devices = SHIFTS.sample(model, 2)
    nan = np.where(np.isclose(X, X.max()), np.nan, X)

    def refuses(match, x=X, y=LABELS, devices=devices, model=model, **kwargs):
        with pytest.raises(ValueError, match=match):
            pnn.evaluate_devices(model, x, y, devices, verbose=0, **kwargs)

    refuses("at least one simulated device.*Received: none", devices=[])
    refuses(r"\[device\].*Received: <SimulatedDevice", devices=devices[0])
    refuses(r"variation\.sample.*Received: Variation", devices=SHIFTS)
    bench = pnn.HardwareDevice.__new__(pnn.HardwareDevice)
    refuses("installed.*Received: one of type HardwareDevice", devices=[bench])
    two = bank(4, pnn.layers.MRRBank(6, name="last"))
    refuses(
        r"with .*last/resonance_shift of shape \(4, 6\).*Received: device",
        devices=devices,
        model=two,
    )
    refuses("lengths", y=LABELS[1:])
    refuses("`x` must be finite", x=nan)
    refuses("`y` must be None.*Received: ndarray", x=tf.data.Dataset.from_tensors(X))
    refuses("`y` must hold the targets .*Received: y=None", y=None)
    sat = pnn.SATModel(model)
    sat.compile(loss="mse")
    refuses("`y` must hold the targets .*Received: y=None", y=None, model=sat)
    refuses("`batch_size`.* ≥ 1. Received: 0", batch_size=0)
    refuses("`chunk`.* ≥ 1. Received: 0", chunk=0)
    refuses("`memory_limit`.* > 0. Received: 0", memory_limit=0.0)
    refuses("compiled.*Received: model 'None'", model=None)
    refuses("compiled", model=keras.Sequential([keras.Input((4,))]))
    refuses("architecture", model=bank(9))
    with pytest.raises(ValueError, match="at least one simulated device"):
        # Before anything runs, not at the first chunk.
        pnn.devices.DeviceEvaluator(model, X, LABELS).chunks([])


def test_a_measurement_is_no_simulated_device():
    model, bench = bank(6, loss=LOSS), Bench(None)
    devices = SHIFTS.sample(model, 2)
    evaluator = pnn.devices.DeviceEvaluator(model, X, LABELS)
    refused = pytest.raises(ValueError, match=r"outside.*Received: layers that a dev")
    with refused, bench.installed(model):
        evaluator.evaluate(devices, verbose=0)
    before = evaluator.evaluate(devices, verbose=0)
    # Also where everything is compiled already.
    with refused, bench.installed(model):
        evaluator.evaluate(devices, verbose=0)
    assert bench.calls == 0
    after = evaluator.evaluate(devices, verbose=0)
    np.testing.assert_array_equal(after["loss"], before["loss"])


def test_devices_within_a_device_are_refused():
    """They would take its place."""
    model = bank(6, loss=LOSS)
    (chip,) = pnn.devices.sweep(model, "temperature", [3.0])
    warmer = pnn.devices.sweep(model, "temperature", [1.0])
    refused = pytest.raises(ValueError, match="/temperature' is off its nominal")
    with chip.installed(model), refused:
        pnn.evaluate_devices(model, X, LABELS, warmer, verbose=0)
    with chip.installed(model):
        others = pnn.devices.sweep(model, "resonance_shift", [0.0])
        found = pnn.evaluate_devices(model, X, LABELS, others, verbose=0)["loss"]
        expected = model.evaluate(X, LABELS, verbose=0)
        np.testing.assert_allclose(found, [expected], rtol=1e-5)


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


def as_data_set(kind, *parts):
    if kind == "tf":
        return tf.data.Dataset.from_tensor_slices(parts).batch(10)
    if kind == "tf of unknown length":
        return as_data_set("tf", *parts).filter(lambda *batch: True)

    class Parts(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return tuple(part[10 * index : 10 * index + 10] for part in parts)

    return Parts()


@pytest.mark.parametrize("kind", ["tf", "tf of unknown length", "keras"])
def test_data_sets(kind):
    model = bank(6, loss=LOSS, weighted_metrics=["accuracy"])
    given = {"devices": SHIFTS.sample(model, 2), "verbose": 0}
    data = as_data_set(kind, X, LABELS, WEIGHTS)
    found = pnn.evaluate_devices(model, data, **given)
    expected = pnn.evaluate_devices(model, X, LABELS, sample_weight=WEIGHTS, **given)
    assert found.samples == N
    for name, values in expected.values.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    "data, message",
    [
        (as_data_set("tf", X, LABELS).repeat(), "`x` must be finite"),
        (as_data_set("tf", X, LABELS).take(0), "at least one batch. Received: none"),
        (tf.data.Dataset.from_tensor_slices((X, LABELS)), r"`data\.batch\(100\)`"),
        (as_data_set("tf", X * np.nan, LABELS), "`x` must be finite. Received: NaN"),
    ],
)
def test_bad_data_sets(data, message):
    model = bank(6, loss=LOSS)
    with pytest.raises(ValueError, match=message):
        pnn.evaluate_devices(model, data, devices=SHIFTS.sample(model, 2), verbose=0)
