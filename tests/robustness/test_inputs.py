"""Whether models, data and metric fit is checked before anything is measured."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pnn as pnn
from keras_pnn import _checks, _keras
from keras_pnn.robustness import inputs

RNG = np.random.default_rng(0)
X = RNG.random((60, 6)).astype("float32")
Y = (X @ RNG.normal(size=(6, 3))).argmax(1)
VARIATION = pnn.Variation(resonance_shift=0.03)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
HARDWARE = type("Bench", (pnn.HardwareDevice,), {"measure": lambda *a: None})


def entropy():
    return keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="nats")


def two_outputs(metrics=(("accuracy",), ("accuracy",))):
    keras.utils.set_random_seed(0)
    tensors = keras.Input((6,))
    outputs = [pnn.layers.MRRBank(3, name=name)(tensors) for name in ("p", "q")]
    model = keras.Model(tensors, outputs, name="both")
    metrics = [list(some) for some in metrics]
    model.compile("adam", loss=[CROSS_ENTROPY] * 2, metrics=metrics)
    return model


def per_pixel():
    tensors = keras.Input((4, 6))
    model = keras.Model(tensors, keras.layers.Dense(3)(tensors), name="pixels")
    model.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
    return model


def with_label(labels, place, value):
    labels = labels.copy()
    labels[place] = value
    return labels


# Labels.


def rows(y, count=2):
    """Which samples are taken, of inputs that count them."""
    x = np.arange(_checks.sample_count(y))
    return inputs.first_samples((x, y, None), count, extremes=True)[0].tolist()


def test_samples_of_the_least_and_the_largest_labels():
    flat = with_label(with_label(np.ones(9, int), 4, 7), 6, -1)
    assert rows(flat) == [0, 1, 6, 4]
    assert rows(flat.astype("float32")) == [0, 1, 6, 4]
    assert rows(flat[:, None]) == [0, 1, 6, 4]
    assert rows(flat > 1) == [0, 1, 0, 4]
    pixels = with_label(np.ones((9, 2, 2), int), (5, 1, 0), 3)
    assert rows(with_label(pixels, (7, 0, 1), 0)) == [0, 1, 7, 5]
    assert rows({"a": flat, "b": with_label(flat, 8, 9)}) == [0, 1, 6, 4, 6, 8]
    assert rows([None, flat.astype(complex), flat.astype(str), flat]) == [0, 1, 6, 4]
    assert rows(flat[:1]) == [0, 0, 0]


def test_a_label_without_an_output(prepared):
    pixels, labels = RNG.random((30, 4, 6)), RNG.integers(0, 3, (30, 4))
    for model, x, y in (
        (two_outputs(), X, [Y, with_label(Y, 50, 9)]),
        (per_pixel(), pixels.astype("float32"), with_label(labels, (20, 2), 9)),
    ):
        with pytest.raises(ValueError, match=r"must fit|must be finite"):
            prepared(model, x, y)


# Models, data and metrics.


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "net"}, "`model` must be a Keras model. Received: 'net'"),
        ({"name": 5}, "`name` must be a string or None. Received: 5"),
        ({"compare": [1]}, r"`compare` must be a dictionary .*Received: \[1\]"),
        ({"compare": {"a": 2}}, r"`compare\['a'\]` must be a Keras model. Received: 2"),
        ({"name": "a", "compare": {"a": 2}}, "named differently.*Received: 'a'"),
        ({"trained_on": {"nobody": pnn.SimulatedDevice({})}}, "`trained_on`.*'nobody'"),
        ({"spec": 95}, "`spec` must be from 0 to 1 for 'accuracy'.*Received: 95"),
        ({"metric": "top_5"}, "`metric` must be one of .*Received: 'top_5'"),
        ({"batch_norm": "melted"}, "batch_norm"),
        ({"sweeps": {"humidity": [1.0]}}, "Received: 'humidity'"),
        ({"sweeps": {"temperature": [[1, 2, 3]]}}, "Received"),
        ({"sweeps": {"std:humidity": [1.0]}}, "Received: 'humidity'"),
        ({"variation": pnn.Variation(humidity=1.0)}, "Received: 'humidity'"),
        ({"worst_case": {"humidity": 1.0}}, "Received: 'humidity'"),
        ({"variation": None, "devices": [HARDWARE()]}, "list of simulated devices"),
        ({"landscape": {"batch_norm": "thawed"}}, "In `landscape`.*'thawed'"),
        ({"y": Y[:9]}, r"must have one length.*Received: lengths \[9, 60\]"),
        ({"y": Y.tolist()}, "`y` must be an array, "),
        ({"y": None}, "must fit 'network_0'.*and none, on which a step fails"),
        ({"x": X[:, :3]}, r"^Argument `x` must be .*\(samples, 6\), as the input of"),
        ({"y": np.eye(4)[Y]}, r"^Argument `y` must be class numbers .*\(.*, 4\)"),
        ({"y": np.array(["a", "b", "c"])[Y]}, "^Argument `y` must be numbers.*<U1"),
        ({"y": with_label(Y, 50, -1)}, "must fit|must be finite"),
    ],
)
def test_what_does_not_fit(model, unmeasured, arguments, message, prepared):
    given = {"model": model, "variation": VARIATION, "n": 2, **arguments}
    with pytest.raises(ValueError, match=message) as error:
        prepared(**given)
    # Without the traces of TensorFlow and Keras.
    said = str(error.value)
    assert len(said) < 480 and "\n" not in said and 'File "' not in said


@tf.function
def fails(y, p):
    raise ValueError("no such labels " + 99 * "and more ")


def test_the_error_of_a_loss_is_shown_without_its_traces(network, prepared):
    model = network()
    model.compile("sgd", fails, metrics=["accuracy"])
    with pytest.raises(ValueError, match=r"a step fails: ValueError: no such") as error:
        prepared(model)
    assert len(str(error.value)) < 400 and "File" not in str(error.value)


def test_the_error_of_a_layer_is_shown_with_its_reason(network, prepared):
    class Refusing(keras.layers.Layer):
        refuses = False

        def call(self, inputs):
            if self.refuses:
                raise ValueError("no light")
            return inputs

    layer = Refusing()
    model = keras.Sequential([network(), layer])
    model.compile("sgd", CROSS_ENTROPY, metrics=["accuracy"])
    layer.refuses = True
    with pytest.raises(ValueError, match=r"calling Refusing\.call\(\)\. no light$"):
        prepared(model)


def test_devices_of_another_architecture(model, network, prepared):
    devices = VARIATION.sample(model, 1)
    with pytest.raises(ValueError, match="architecture"):
        prepared(model, devices=devices, compare={"other": network(0, (7, 3))})


def test_a_model_that_is_off_its_design(model, network, prepared):
    off = network(1)
    message = "model 'other', where 'one/temperature' is off"
    device = pnn.Variation(temperature=3.0).sample(off, 1)[0]
    with device.installed(off), pytest.raises(ValueError, match=message):
        prepared(model, compare={"other": off})


def test_an_imperfection_whose_nominal_value_is_not_0():
    tensors = keras.Input((4, 4))
    model = keras.Model(tensors, pnn.layers.MaskedSLM(3, name="slm")(tensors))
    inputs.check_design("slm", model)
    scale = model.get_layer("slm").imperfections["scale"]
    assert np.all(np.array(scale) == 1)
    scale.assign(keras.ops.zeros_like(scale))
    with pytest.raises(ValueError, match="'slm/scale' is off its nominal value"):
        inputs.check_design("slm", model)


def test_a_model_that_is_not_compiled_or_not_built(model, prepared):
    bare = keras.Model(model.inputs, model.outputs)
    with pytest.raises(ValueError, match="`model` must be compiled"):
        prepared(bare)
    bare = keras.Sequential([pnn.layers.MRRBank(3)])
    bare.compile("adam", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"`compare\['other'\]` must be built"):
        prepared(model, compare={"other": bare})


def test_of_several_models_an_error_names_the_one(model, prepared):
    dense = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    dense.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
    sweeps = {"temperature": [0, 1]}
    with pytest.raises(ValueError, match=r"^Model 'dense': .*'temperature'"):
        prepared(model, compare={"dense": dense}, sweeps=sweeps)
    with pytest.raises(ValueError, match=r"^An imperfection"):
        prepared(dense, sweeps=sweeps)


# Metrics.


def custom(y, p):
    return keras.ops.mean(p, -1)


def test_names_and_directions_of_the_metrics_of_two_outputs(prepared):
    model = two_outputs((("accuracy", custom), (entropy(),)))
    found = prepared(model, y=[Y, Y], metric="p_accuracy")
    assert (found.metric, found.mode) == ("p_accuracy", "max")
    assert list(_keras.named_metrics(model)) == ["p_accuracy", "p_custom", "q_nats"]
    results = model.evaluate(X, [Y, Y], verbose=0, return_dict=True)
    assert {*_keras.named_metrics(model)} < {*results}
    for name in ("loss", "p_loss", "q_loss", "q_nats"):
        assert inputs.better(model, name, "auto") == "min"
    with pytest.raises(ValueError, match="mode='auto' for 'p_custom'"):
        inputs.better(model, "p_custom", "auto")
    with pytest.raises(ValueError, match="from 0 to 1 for 'p_accuracy'"):
        prepared(model, y=[Y, Y], metric="p_accuracy", spec=95)


def test_the_default_is_the_first_compiled_metric(network, prepared):
    model = two_outputs(((), (entropy(), "accuracy")))
    assert prepared(model, y=[Y, Y], spec=0.5).metric == "q_nats"
    assert prepared(network(metrics=()), spec=0.5).metric == "loss"


def percent_accuracy(y, p):
    hit = keras.ops.cast(keras.ops.argmax(p, -1), y.dtype) == y
    return 100 * keras.ops.cast(hit, "float32")


@pytest.mark.parametrize("metrics", [(), (entropy(),), (percent_accuracy,)])
def test_a_metric_that_is_no_accuracy_needs_a_specification(network, metrics, prepared):
    with pytest.raises(ValueError, match="`spec` must be the value that"):
        prepared(network(metrics=metrics), mode="min")
    assert prepared(network()).spec == 0.95


def share_accuracy(y, p):
    return 0.5 + 0 * keras.ops.mean(p, -1)


def test_only_an_accuracy_has_a_specification_from_0_to_1(network, prepared):
    model = network(metrics=(percent_accuracy,))
    assert prepared(model, spec=95, mode="max").mode == "max"
    assert prepared(model, metric="loss", spec=95).mode == "min"
    with pytest.raises(ValueError, match="from 0 to 1 for 'share_accuracy'"):
        prepared(network(metrics=(share_accuracy,)), spec=95, mode="max")


class Vector(keras.metrics.Metric):
    """A metric of two numbers."""

    def __init__(self):
        super().__init__(name="vector")
        self.total = self.add_weight(shape=(2,), initializer="zeros", name="total")

    def update_state(self, y, p, sample_weight=None):
        self.total.assign_add([1.0, 2.0])

    def result(self):
        return self.total + 0.0


def test_a_metric_that_is_a_vector(network, prepared):
    with pytest.raises(ValueError, match="one number for a device"):
        prepared(network(metrics=("accuracy", Vector())), metric="vector")


def test_a_study_of_a_data_set(model, unmeasured, prepared):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(25)
    found = prepared(model, data, None, variation=VARIATION, n=2)
    arrays = prepared(model, variation=VARIATION, n=2)
    (one,), (other,) = found.studies.values(), arrays.studies.values()
    assert one.digest() == other.digest()
    with pytest.raises(ValueError, match="`y` must be None when `x` is a data set"):
        prepared(model, data, Y)
