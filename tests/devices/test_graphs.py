"""What is traced for many devices, how often, and for how long it is kept."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import LOSS

import keras_pnn as pnn
from keras_pnn.devices import evaluation

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 4)).astype("float32")
LABELS = RNG.integers(0, 3, 23)
SHIFTS = pnn.Variation(resonance_shift=0.1)


class Counted(keras.layers.Layer):
    """Counts how often Python runs its call: once for each trace."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs


def compiled(*layers, loss=LOSS, **options):
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", loss, **options)
    return model


def counted():
    return compiled(pnn.layers.MRRBank(3, name="bank"), Counted(name="counted"))


def traces(model, variation=SHIFTS, n=2, seed=0, x=X, labels=LABELS, **kwargs):
    """How often one call of `evaluate_devices` traced the model."""
    devices = variation.sample(model, n, seed)
    before = model.get_layer("counted").calls
    arguments = {"batch_size": 23, "chunk": 1, "verbose": 0, **kwargs}
    pnn.evaluate_devices(model, x, labels, devices, **arguments)
    return model.get_layer("counted").calls - before


def test_what_makes_a_new_graph_and_what_does_not():
    model = counted()
    assert traces(model) > 0
    for same in (
        {},
        {"seed": 1},
        {"variation": pnn.Variation(resonance_shift=0.3)},
        {"variation": pnn.Variation({"bank/resonance_shift": 0.3})},
        {"x": X + 1},
        {"n": 3},
    ):
        assert traces(model, **same) == 0
    model.fit(X, LABELS, verbose=0)
    assert traces(model) == 0
    for other in (
        {"variation": pnn.Variation(temperature=1.0)},
        {"n": 3, "chunk": 2},
        {"batch_size": 9},
        {"x": X.astype("float64")},
        {"sample_weight": np.ones(23, "float32")},
        {"batch_norm": "batch"},
        {"batch_norm": "reestimated", "calibration": X[:9]},
    ):
        assert traces(model, **other) > 0
        assert traces(model, **other) == 0
    # The graphs from before are still there.
    assert traces(model) == 0
    model.compile("sgd", LOSS)
    assert traces(model) > 0


def test_evaluators_share_graphs_and_read_the_weights():
    model = counted()
    devices = SHIFTS.sample(model, 4)

    def evaluator(chunk=4):
        return pnn.devices.DeviceEvaluator(model, X, LABELS, 23, chunk=chunk)

    first = evaluator()
    before = first.evaluate(devices, verbose=0)
    calls = model.get_layer("counted").calls
    model.get_layer("bank").controls["control"].assign(np.full((4, 3), 0.1))
    found = [e.evaluate(devices, verbose=0)["loss"] for e in (first, evaluator())]
    assert model.get_layer("counted").calls == calls
    np.testing.assert_array_equal(*found)
    assert (np.abs(found[0] - before["loss"]) > 1e-4).all()
    with devices[2].installed(model):
        loss = model.evaluate(X, LABELS, 23, verbose=0)
    assert found[0][2] == pytest.approx(loss, rel=1e-5)


@pytest.mark.filterwarnings("error")
def test_no_warning_of_retracing(caplog):
    """Several variations on one model, and one on several models, in short batches."""
    tf.get_logger().addHandler(caplog.handler)
    try:
        model = counted()
        for name in ("resonance_shift", "temperature", "half_width_error", "bias"):
            assert traces(model, pnn.Variation({name: 0.1}), batch_size=9) > 0
        for _ in range(5):
            assert traces(counted(), batch_size=9) > 0
    finally:
        tf.get_logger().removeHandler(caplog.handler)
    assert not caplog.messages


class Inside(keras.Model):
    """Has a layer that refers to the model, as a graph of it then does."""

    def __init__(self):
        super().__init__()
        self.bank = pnn.layers.MRRBank(3)
        self.function = keras.layers.Lambda(lambda x: x * len(self.layers))

    def call(self, inputs):
        return self.function(self.bank(inputs))


@pytest.mark.parametrize("kind", ["bank", "mesh", "subclass"])
def test_graphs_die_with_their_model(kind):
    if kind == "mesh":
        model = compiled(pnn.layers.MZIMesh(4), pnn.layers.Photodetector())
    else:
        bank = compiled(pnn.layers.MRRBank(3))
        model = Inside() if kind == "subclass" else pnn.SATModel(bank)
        del bank
    model.compile("sgd", LOSS)
    model(X)
    name = "theta_error" if kind == "mesh" else "resonance_shift"
    devices = pnn.Variation({name: 0.1}).sample(model, 2)
    pnn.evaluate_devices(model, X, LABELS, devices, verbose=0)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_what_does_not_differ_between_devices_runs_once():
    digital = keras.layers.Conv2D(3, 3), keras.layers.Flatten(), keras.layers.Dense(4)
    mesh = pnn.layers.MZIMesh(4), pnn.layers.Photodetector()
    model = keras.Sequential([keras.Input((8, 8, 1)), *digital, *mesh])
    model.compile("sgd", LOSS)
    images = RNG.normal(size=(6, 8, 8, 1)).astype("float32")
    evaluator = pnn.devices.DeviceEvaluator(model, images, np.arange(6) % 3)
    devices = pnn.Variation(theta_error=0.1).sample(model, 5)
    engine, *bound = evaluator._bound(devices)
    stacks = evaluation.stacked(*bound)
    batch = (tf.constant(images), tf.constant(np.arange(6) % 3), None)
    seeds = [tf.convert_to_tensor(v) for v in engine._seeds]
    stacked = engine._forward_all._stacked
    traced = stacked.get_concrete_function(stacks, [], seeds, batch)
    operations = [op for op in traced.graph.get_operations() if op.type == "Conv2D"]
    assert [op.outputs[0].shape for op in operations] == [(6, 6, 6, 3)]


def test_samples_that_divide_evenly_make_one_graph():
    model = counted()
    for batch_norm, size in (("frozen", 9), ("batch", 10)):
        evaluator = pnn.devices.DeviceEvaluator(
            model, X[:18], LABELS[:18], 10, batch_norm=batch_norm
        )
        assert evaluator.batch_size == size
    once = traces(model, x=X[:9], labels=LABELS[:9], batch_size=9, chunk=2)
    assert traces(model, x=X[:18], labels=LABELS[:18], batch_size=10, chunk=2) == 0
    assert once > 0


def total(y, scores):
    """A number of the whole batch."""
    return keras.ops.sum(keras.ops.square(scores))


@pytest.mark.parametrize(
    "loss, metrics",
    [
        *(
            (type(LOSS)(from_logits=True, reduction=reduction), [])
            for reduction in ("sum", "mean_with_sample_weight")
        ),
        (total, []),
        (LOSS, [total]),
    ],
    ids=["sum", "weighted", "own loss", "own metric"],
)
def test_what_depends_on_the_batches_has_those_that_were_asked_for(loss, metrics):
    options = {"metrics": metrics, "run_eagerly": True}
    model = compiled(pnn.layers.MRRBank(3), loss=loss, **options)
    devices, weights = SHIFTS.sample(model, 1), RNG.uniform(size=18)
    data = {"batch_size": 10, "sample_weight": weights, "verbose": 0}
    found = pnn.evaluate_devices(model, X[:18], LABELS[:18], devices, **data)
    with devices[0].installed(model):
        expected = model.evaluate(X[:18], LABELS[:18], return_dict=True, **data)
    assert {n: found[n][0] for n in expected} == pytest.approx(expected, rel=1e-5)


def test_a_quantised_model_makes_new_graphs():
    model = compiled(keras.layers.Dense(8), pnn.layers.MRRBank(3))
    devices = SHIFTS.sample(model, 1)

    def loss_of_a_device():
        return pnn.evaluate_devices(model, X, LABELS, devices, verbose=0)["loss"][0]

    def loss_of_the_hessian():
        hessian = pnn.curvature.HessianOperator(model, X, LABELS)
        hessian @ np.ones(hessian.size)
        return hessian.loss

    before = loss_of_a_device()
    loss_of_the_hessian()
    model.quantize("int8")
    found = loss_of_a_device()
    with devices[0].installed(model):
        expected = model.evaluate(X, LABELS, verbose=0)
    assert found == pytest.approx(expected, rel=1e-6) != before
    expected = model.evaluate(X, LABELS, verbose=0)
    assert loss_of_the_hessian() == pytest.approx(expected, rel=1e-6)


def test_xla_compiles_much_work_alone(monkeypatch):
    model = counted()
    for limit, compiled in ((0, True), (1e12, False)):
        monkeypatch.setattr(evaluation, "_WORTH_COMPILING", limit)
        evaluator = pnn.devices.DeviceEvaluator(model, X, LABELS, 23, chunk=2)
        engine, *_ = evaluator._bound(SHIFTS.sample(model, 2))
        assert engine._forward_all._stacked._jit_compile is compiled
