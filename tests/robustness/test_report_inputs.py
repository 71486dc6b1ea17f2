"""What a report accepts, and that it refuses the rest before it measures anything."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pnn as pnn
from keras_pnn.robustness import inputs
from keras_pnn.robustness.report.report import Report
from keras_pnn.robustness.study import Study

RNG = np.random.default_rng(0)
X = RNG.random((60, 6)).astype("float32")
Y = (X @ RNG.normal(size=(6, 3))).argmax(1)
VARIATION = pnn.Variation(resonance_shift=0.03)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
QUIET = {"hessian": False, "landscape": False, "worst_case": False, "verbose": 0}


def network(seed=0, metrics=("accuracy",), name="net"):
    keras.utils.set_random_seed(seed)
    tensors = keras.Input((6,))
    hidden = pnn.layers.MRRBank(5, activation="relu", name="one")(tensors)
    outputs = pnn.layers.MRRBank(3, name="two")(hidden)
    model = keras.Model(tensors, outputs, name=f"{name}_{seed}")
    model.compile("adam", CROSS_ENTROPY, metrics=list(metrics))
    return model


def entropy():
    return keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="nats")


def two_outputs(metrics=(("accuracy",), ("accuracy",))):
    keras.utils.set_random_seed(0)
    tensors = keras.Input((6,))
    outputs = [pnn.layers.MRRBank(3, name=name)(tensors) for name in ("p", "q")]
    model = keras.Model(tensors, outputs, name="both")
    model.compile(
        "adam", loss=[CROSS_ENTROPY] * 2, metrics=[list(some) for some in metrics]
    )
    return model


def per_pixel():
    keras.utils.set_random_seed(0)
    tensors = keras.Input((4, 6))
    model = keras.Model(tensors, keras.layers.Dense(3)(tensors), name="pixels")
    model.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
    return model


@pytest.fixture
def unmeasured(monkeypatch):
    def measured(*_):
        raise AssertionError("a block was measured")

    monkeypatch.setattr(Study, "_measure", measured)


def report(model, x=X, y=Y, **arguments):
    return pnn.robustness_report(model, x, y, **{**QUIET, **arguments})


def prepared(model, x=X, y=Y, **arguments):
    """A report that is checked, and not measured."""
    return Report(model, x, y, **{"hessian": False, "landscape": False, **arguments})


def with_label(labels, place, value):
    labels = labels.copy()
    labels[place] = value
    return labels


# --- Labels --------------------------------------------------------------------------


def rows(y, count=2):
    """Which samples are taken, of inputs that count them."""
    n = len(next(a for a in keras.tree.flatten(y) if a is not None))
    x = np.arange(n)
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


@pytest.mark.parametrize(
    "model,x,y",
    [
        (network, X, with_label(Y.astype("float32"), 50, 7)),
        (network, X, with_label(Y, 50, -1)),
        (network, X, with_label(Y[:, None], 50, 7)),
        (two_outputs, X, [Y, with_label(Y, 50, 9)]),
        (
            per_pixel,
            RNG.random((30, 4, 6)).astype("float32"),
            with_label(RNG.integers(0, 3, (30, 4)), (20, 2), 9),
        ),
    ],
    ids=["floats", "negative", "a column", "two outputs", "per pixel"],
)
def test_a_label_without_an_output_is_refused(unmeasured, model, x, y):
    with pytest.raises(ValueError, match=r"must fit|must be finite") as error:
        report(model(), x, y)
    assert len(str(error.value)) < 400


# --- Models --------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["model", "compare"])
def test_a_model_that_is_off_its_design_is_refused(unmeasured, argument):
    models = {"model": network(), "compare": network(1)}
    device = pnn.Variation(temperature=3.0).sample(models[argument], 1)[0]

    def make():
        compare = {"other": models["compare"]}
        return prepared(models["model"], variation=VARIATION, compare=compare)

    called = {"model": "'net_0'", "compare": "'other'"}[argument]
    refused = pytest.raises(
        ValueError, match=f"model {called}, where 'one/temperature' is off"
    )
    with device.installed(models[argument]), refused:
        make()
    # Outside, and with the imperfection as it should be, there is a report.
    assert list(make().studies) == ["net_0", "other"]


def test_an_imperfection_that_is_neutral_elsewhere_than_at_0():
    tensors = keras.Input((4, 4))
    model = keras.Model(tensors, pnn.layers.MaskedSLM(3, name="slm")(tensors))
    inputs.check_design({"slm": model})
    scale = model.get_layer("slm").imperfections["scale"]
    assert np.all(np.array(scale) == 1)
    scale.assign(keras.ops.zeros_like(scale))
    with pytest.raises(ValueError, match="'slm/scale' is off its nominal value"):
        inputs.check_design({"slm": model})


def test_a_model_that_is_not_built_is_refused_and_left_so(unmeasured):
    model = keras.Sequential([pnn.layers.MRRBank(3)])
    model.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
    for one, more in ((model, {}), (network(), {"compare": {"other": model}})):
        with pytest.raises(ValueError, match="must be built"):
            report(one, variation=VARIATION, **more)
    assert not model.built


def test_of_several_models_an_error_names_the_one(unmeasured):
    keras.utils.set_random_seed(0)
    dense = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    dense.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
    sweeps = {"temperature": [0, 1]}
    with pytest.raises(ValueError, match=r"Model 'dense': .*called 'temperature'"):
        report(network(), compare={"dense": dense}, sweeps=sweeps)
    with pytest.raises(ValueError, match=r"^The model has nothing"):
        report(dense, sweeps=sweeps)


# --- Arguments -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"model": None}, "`model` must be a Keras model. Received: None"),
        ({"model": "net"}, "`model` must be a Keras model. Received: 'net'"),
        ({"name": 5}, "`name` must be a string or None. Received: 5"),
        ({"compare": [1]}, r"`compare` must be a dictionary .*Received: \[1\]"),
        ({"compare": {1: 2}}, r"`compare` must .*\(strings\).*Received: \{1: 2\}"),
        ({"compare": {"a": 2}}, r"`compare\['a'\]` must be a Keras model. Received: 2"),
        ({"trained_on": [1]}, r"`trained_on` must be a dictionary.*Received: \[1\]"),
        ({"spec": "0.9"}, "`spec` must be a finite number. Received: '0.9'"),
        ({"spec": None}, "`spec` must be a finite number. Received: None"),
        ({"spec": [0.9]}, r"`spec` must be a finite number. Received: \[0.9\]"),
        ({"spec": True}, "`spec` must be a finite number. Received: True"),
        ({"spec": 95}, "`spec` must be from 0 to 1 for 'accuracy'.*Received: 95"),
        ({"spec": -1}, "`spec` must be from 0 to 1 for 'accuracy'.*Received: -1"),
        ({"n": None}, "`n` must be a whole number >= 1. Received: None"),
        ({"n": 2.5}, "`n` must be a whole number >= 1. Received: 2.5"),
        ({"seed": -1}, "`seed` must be a whole number >= 0. Received: -1"),
        ({"seed": 1.5}, "`seed` must be a whole number >= 0. Received: 1.5"),
        ({"seed": True}, "`seed` must be a whole number >= 0. Received: True"),
        ({"probe": 1.5}, "`probe` must be a whole number >= 1. Received: 1.5"),
        ({"batch_size": "9"}, "`batch_size` must be a whole number .*Received: '9'"),
        ({"sweep_devices": "2"}, "`sweep_devices` must be .*Received: '2'"),
        ({"memory_limit": "1"}, "`memory_limit` must be above 0.*Received: '1'"),
        ({"memory_limit": None}, "`memory_limit` must be above 0.*Received: None"),
        ({"sweeps": {1: [0.0]}}, r"`sweeps` must be a dictionary .*Received: \{1"),
        ({"sweeps": np.zeros(3)}, "`sweeps` must be a dictionary .*Received: array"),
        ({"devices": 5, "variation": None}, "`devices` must be a list.*Received: 5"),
        ({"devices": VARIATION}, "not both"),
        ({"y": Y[:9]}, r"must have one length.*Received: lengths \[9, 60\]"),
        ({"y": np.append(Y, Y)}, r"one length.*Received: lengths \[60, 120\]"),
        ({"sample_weight": np.ones(3)}, r"one length.*Received: lengths \[3, 60\]"),
        ({"y": Y.tolist()}, "`y` must be an array, .*Received: y with"),
        ({"x": X.tolist()}, "`x` must be an array, .*Received: x with"),
        ({"x": None}, "`x` must hold at least one array. Received: None"),
        ({"y": None}, "must fit 'net_0'.*and nothing, on which a step fails"),
        (
            {"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(9), "y": None},
            "`x` must be an array, .*Received: x with .*Dataset",
        ),
        (
            {"x": with_label(X.astype("complex64"), (50, 1), np.nan)},
            "`x` must be finite",
        ),
        ({"x": X.astype(str)}, "must fit 'net_0'"),
    ],
)
def test_bad_arguments_are_refused_before_any_long_work(unmeasured, arguments, message):
    given = {"model": network(), "variation": VARIATION, "n": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        report(**given)


def test_one_device_is_no_list_of_devices(unmeasured):
    model = network()
    (device,) = VARIATION.sample(model, 1)
    with pytest.raises(ValueError, match=r"must be a list of simulated devices.*Rec"):
        report(model, devices=device)


def test_a_variation_or_an_iterator_in_the_place_of_devices():
    model, other = network(), network(1)

    def losses(*given, **arguments):
        arguments = {
            **QUIET,
            "sensitivity": False,
            "compare": {"b": other},
            **arguments,
        }
        found = pnn.robustness_report(model, X, Y, *given, **arguments)
        return [m.devices["loss"].tolist() for m in found.models.values()]

    expected = losses(variation=VARIATION, n=3)
    assert len({*expected[0], *expected[1]}) == 6
    assert losses(VARIATION, n=3) == expected
    assert losses(iter(VARIATION.sample(model, 3, seed=0))) == expected


def test_numpy_integers_are_whole_numbers():
    whole = {k: np.int64(2) for k in ("n", "probe", "batch_size", "seed")}
    whole["sweep_devices"] = np.int32(1)
    found = prepared(network(), variation=VARIATION, **whole)
    (study,) = found.studies.values()
    assert len(study.plan.fabrication) == 2
    assert study.evaluator.batch_size == 2


# --- Metrics -------------------------------------------------------------------------


def custom(y, p):
    return keras.ops.mean(p, -1)


def test_names_and_directions_of_the_metrics_of_two_outputs():
    model = two_outputs((("accuracy", custom), (entropy(),)))
    found = prepared(model, y=[Y, Y], metric="p_accuracy")
    assert (found.metric, found.mode) == ("p_accuracy", "max")
    assert list(inputs.compiled_metrics(model)) == ["p_accuracy", "p_custom", "q_nats"]
    results = model.evaluate(X, [Y, Y], verbose=0, return_dict=True)
    assert {*inputs.compiled_metrics(model)} < {*results}
    for name in ("loss", "p_loss", "q_loss", "q_nats"):
        assert inputs.better(model, name, "auto") == "min"
    with pytest.raises(ValueError, match="mode='auto' for 'p_custom'"):
        inputs.better(model, "p_custom", "auto")


def test_the_default_is_the_first_compiled_metric():
    model = two_outputs(((), (entropy(), "accuracy")))
    assert prepared(model, y=[Y, Y], spec=0.5).metric == "q_nats"
    bare = network(metrics=())
    assert prepared(bare, spec=0.5).metric == "loss"


def percent_accuracy(y, p):
    hit = keras.ops.cast(keras.ops.argmax(p, -1), y.dtype) == y
    return 100 * keras.ops.cast(hit, "float32")


def share_accuracy(y, p):
    return 0.5 + 0 * keras.ops.mean(p, -1)


def test_only_an_accuracy_has_a_specification_from_0_to_1():
    for spec in (0, 1, 0.5):
        assert prepared(network(), spec=spec).spec == spec
    assert prepared(network(), metric="loss", spec=95).spec == 95
    model = network(metrics=(percent_accuracy,))
    assert prepared(model, spec=95, mode="max").spec == 95
    with pytest.raises(ValueError, match="from 0 to 1 for 'share_accuracy'"):
        prepared(network(metrics=(share_accuracy,)), spec=95, mode="max")
    with pytest.raises(ValueError, match="from 0 to 1 for 'p_accuracy'"):
        prepared(two_outputs(), y=[Y, Y], metric="p_accuracy", spec=95)


# --- Messages ------------------------------------------------------------------------

GRAPH = """Graph execution error:

Detected at node loss/Op defined at (most recent call last):
  File "/tmp/a.py", line 8, in <module>

  File "/tmp/b.py", line 6, in full

Received a label value of 9 which is outside the valid range of [0, 3).
\t [[{{node loss/Op}}]] [Op:__inference_12]"""
TRACED = """in user code:

    File "/tmp/a.py", line 198, in _forward  *
        y_pred = self.model(x, training=False)
    File "/tmp/b.py", line 256, in assert_input_compatibility
        raise ValueError(

    ValueError: Input 0 is incompatible with the layer
"""


@pytest.mark.parametrize(
    "text,expected",
    [
        (GRAPH, "Received a label value of 9 which is outside the valid range of [0"),
        (TRACED, "ValueError: Input 0 is incompatible with the layer"),
        ("one\ntwo", "one"),
        ("", "ValueError"),
    ],
    ids=["graph", "traced", "plain", "empty"],
)
def test_what_an_error_says_without_its_traces(text, expected):
    said = inputs.brief(ValueError(text))
    assert said.startswith(expected)
    assert "\n" not in said
    assert "File" not in said


def test_what_an_error_says_is_cut():
    said = inputs.brief(ValueError("word " * 500))
    assert len(said) <= 240
    assert said.endswith(" …")
