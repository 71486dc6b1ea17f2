"""Statistics of batch normalisation on devices, against each device on its own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import LOSS, bits
from noise import Noise

import keras_pnn as pnn
from keras_pnn.devices import normalization
from keras_pnn.devices.evaluation import stacked

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 4)).astype("float32")
LABELS = RNG.integers(0, 3, len(X))
CALIBRATION = RNG.normal(1.0, 2.0, (15, 4)).astype("float32")
VARIATION = pnn.Variation(resonance_shift=0.2)


def network(front=False):
    """Two normalised banks; with `front`, a normalised Dense before them."""
    keras.utils.set_random_seed(1)
    norm = keras.layers.BatchNormalization
    before = [keras.layers.Dense(5, name="d0"), norm(name="n0")] if front else []
    layers = [
        pnn.layers.MRRBank(5),
        norm(name="n1", momentum=1.0),
        keras.layers.ReLU(),
        keras.layers.Dropout(0.5),
        pnn.layers.MRRBank(6),
        norm(name="n2", trainable=False),
        keras.layers.Dense(3, kernel_regularizer="l2"),
    ]
    model = keras.Sequential([keras.Input((4,)), *before, *layers])
    model.get_layer("n2").moving_variance.assign(np.full(6, 2.0))
    model.compile("sgd", LOSS, metrics=["accuracy"], run_eagerly=True)
    return model


def assign(norm, mean, variance):
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(variance)


def normalize(model, x):
    """Gives each normalisation, and returns, the statistics of one batch."""
    found = []
    for norm in normalization.batch_norm_layers(model):
        values = np.asarray(keras.Model(model.inputs[0], norm.input)(x), "float64")
        found.append((norm, values.mean(0), values.var(0)))
        assign(*found[-1])
    return found


def in_batches(model):
    """Loss and accuracy of batches that normalise with their own statistics."""
    rows = []
    for part in (slice(0, 9), slice(9, 18), slice(18, 22)):
        normalize(model, X[part])
        rows.append(model.evaluate(X[part], LABELS[part], verbose=0))
    return np.average(rows, axis=0, weights=[9, 9, 4])


def calibrated(model):
    """Loss and accuracy with the statistics of the calibration data."""
    # 15 samples in batches of at most 9: two, of 7 and 8.
    parts = [normalize(model, CALIBRATION[s]) for s in (slice(0, 7), slice(7, 15))]
    for (norm, *one), (_, *other) in zip(*parts, strict=True):
        means, variances = np.stack([one, other], axis=1)
        mean, square = np.average([means, variances + means**2], axis=1, weights=[7, 8])
        assign(norm, mean, square - mean**2)
    return model.evaluate(X, LABELS, verbose=0)


@pytest.mark.parametrize(
    ("mode", "chunk", "front"),
    [
        ("batch", None, True),
        ("batch", 1, False),
        ("reestimated", 2, False),
        ("reestimated", 1, True),
    ],
)
def test_statistics_of_each_device(mode, chunk, front):
    model = network(front)
    devices = VARIATION.sample(model, 3)
    before = bits(model)
    options = {"batch_norm": mode, "chunk": chunk, "verbose": 0}
    if mode == "reestimated":
        options["calibration"] = CALIBRATION
    result = pnn.evaluate_devices(model, X, LABELS, devices, 9, **options)
    assert bits(model) == before
    assert result.batch_norm == result.to_dict()["batch_norm"] == mode
    assert np.ptp(result["loss"]) > 1e-3
    expected = calibrated if mode == "reestimated" else in_batches
    for i, device in enumerate(devices):
        with device.installed(model):
            loss, accuracy = expected(model)
        np.testing.assert_allclose(result["loss"][i], loss, rtol=1e-5)
        np.testing.assert_allclose(result["accuracy"][i], accuracy, rtol=1e-6)


def test_statistics_in_front_of_what_varies_are_not_stacked():
    model = network(front=True)
    evaluator = pnn.devices.DeviceEvaluator(
        model, X, LABELS, batch_norm="reestimated", calibration=CALIBRATION
    )
    engine, quantities, bound = evaluator._bound(VARIATION.sample(model, 3))
    assert engine._own == {id(model.get_layer(n)) for n in ("n1", "n2")}
    stacks = stacked(quantities, bound)
    seeds = [tf.convert_to_tensor(v) for v in engine._seeds]
    moments, *_ = engine._moments_all(stacks, 3, seeds, CALIBRATION)
    own, shared = engine._statistics([moments])
    assert [v.shape for v in own] == [(3, 5), (3, 5), (3, 6), (3, 6)]
    expected = np.asarray(model.get_layer("d0")(CALIBRATION))
    np.testing.assert_allclose(shared[0], expected.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shared[1], expected.var(0), rtol=1e-5)


@keras.saving.register_keras_serializable(package="test_normalization")
class Twice(keras.Model):
    """Calls what is inside on its own outputs, which its nodes do not tell."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        return self.model(self.model(inputs))


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_layer_that_is_called_twice_pools_both_calls(chunk):
    inputs = keras.Input((4,))
    norm = keras.layers.BatchNormalization()
    bank = pnn.layers.MRRBank(4)
    model = Twice(keras.Model(inputs, bank(norm(inputs))))
    model(X)
    model.compile("sgd", "mse")
    devices = pnn.Variation(resonance_shift=0.3).sample(model, 3)
    options = {"batch_norm": "reestimated", "calibration": CALIBRATION, "verbose": 0}
    result = pnn.evaluate_devices(model, X, X, devices, chunk=chunk, **options)
    for i, device in enumerate(devices):
        with device.installed(model):

            def scaled(x, mean, variance):
                x = (x - mean) / np.sqrt(variance + norm.epsilon)
                return np.asarray(bank(x.astype("float32")))

            first = scaled(CALIBRATION, CALIBRATION.mean(0), CALIBRATION.var(0))
            both = np.concatenate([CALIBRATION, first])
            pooled = both.mean(0), both.var(0)
            outputs = scaled(scaled(X, *pooled), *pooled)
        expected = np.mean((outputs - X) ** 2)
        np.testing.assert_allclose(result["loss"][i], expected, rtol=1e-5)


def test_convolutions():
    layer = keras.layers.BatchNormalization(axis=1)
    images = RNG.normal(3.0, 2.0, (6, 3, 5, 4)).astype("float32")
    layer.build(images.shape)
    count, mean, variance = normalization.moments(layer, images)
    assert count == 6 * 5 * 4
    np.testing.assert_allclose(mean, images.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(variance, images.var((0, 2, 3)), rtol=1e-5)


def test_masks_reach_the_statistics():
    norm = keras.layers.BatchNormalization()
    words = keras.layers.Embedding(7, 4, mask_zero=True)
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Sequential([inputs, words, norm, pnn.layers.MRRBank(4)])
    model.compile("sgd", "mse")
    x, y = RNG.integers(0, 3, (8, 5)), RNG.normal(size=(8, 5, 4))
    devices = pnn.Variation(resonance_shift=0.3).sample(model, 2)
    given = {"x": x, "y": y, "devices": devices, "verbose": 0}
    result = pnn.evaluate_devices(model, **given, batch_norm="batch")
    found = np.asarray(words(x))[x != 0]
    norm.moving_mean.assign(found.mean(0))
    norm.moving_variance.assign(found.var(0))
    frozen = pnn.evaluate_devices(model, **given)
    np.testing.assert_allclose(result["loss"], frozen["loss"], rtol=1e-5)


def test_a_model_without_normalisation():
    model = keras.Sequential([keras.Input((4,)), pnn.layers.MRRBank(3)])
    model.compile("sgd", "mse")
    devices = VARIATION.sample(model, 2)
    given = {"x": X, "y": X[:, :3], "devices": devices, "verbose": 0}
    expected = pnn.evaluate_devices(model, **given)
    for mode, calibration in (("batch", None), ("reestimated", CALIBRATION)):
        options = {"batch_norm": mode, "calibration": calibration}
        result = pnn.evaluate_devices(model, **given, **options)
        np.testing.assert_array_equal(result["loss"], expected["loss"])


def test_random_numbers_are_others_in_each_batch_of_the_calibration():
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((4,)), pnn.layers.MRRBank(2), Noise(), norm])
    model.compile("sgd", "mse")
    devices = pnn.devices.sweep(model, "temperature", [0.0, 0.1])
    x, y = np.ones((100, 4), "float32"), np.zeros((100, 2))
    options = {"batch_norm": "reestimated", "calibration": x, "verbose": 0}
    found = pnn.evaluate_devices(model, x, y, devices, batch_size=1, **options)
    # A batch holds one sample: all variance lies between batches. Were the numbers
    # the same in each, it would be 0, and the normalised noise enormous.
    np.testing.assert_allclose(found["loss"], 1.0, atol=0.5)


INFINITE = CALIBRATION + np.where(np.arange(15) == 2, np.inf, 0)[:, None]


@pytest.mark.parametrize(
    ("mode", "calibration", "message"),
    [
        ("train", None, "'frozen', 'batch', 'reestimated'. Received: 'train'"),
        ("reestimated", None, "`calibration`.*Received: .*none"),
        ("frozen", CALIBRATION, "`calibration`.*'frozen'"),
        ("reestimated", CALIBRATION[:, 1:], r"\('samples', 4\).*\(15, 3\)"),
        ("reestimated", {"a": CALIBRATION}, "inputs like `x`"),
        ("reestimated", CALIBRATION[:0], "at least one sample"),
        ("reestimated", INFINITE, "`calibration` must be finite"),
    ],
)
def test_bad_arguments(mode, calibration, message):
    x = np.zeros((5, 4), "float32")
    with pytest.raises(ValueError, match=message):
        normalization.check_mode(mode, calibration, x)
