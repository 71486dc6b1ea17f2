"""Drift during `fit` and `evaluate`, read off the loss."""

import math
import types

import keras
import models
import numpy as np
import pytest
import tensorflow as tf

import keras_pnn as pnn
from keras_pnn.callbacks import DriftInjection
from keras_pnn.devices import drift
from keras_pnn.layers.physical import PhysicalLayer


class Heated(PhysicalLayer):
    """Multiplies by a control, and adds the deviations of its imperfections."""

    def build(self, input_shape):
        self.add_control("gain", (), unit="", initializer="ones")
        self.add_imperfection("temperature", (), unit="K", shared=True)
        self.add_imperfection("shift", (2, 3), unit="nm")
        self.add_imperfection("scale", (), unit="", nominal=1.0, lower_bound=0.0)

    def forward(self, inputs, controls, imperfections):
        shift = keras.ops.mean(imperfections["shift"]) + imperfections["scale"] - 1
        return inputs * controls["gain"] + imperfections["temperature"] + shift


class Trace(keras.losses.Loss):
    """The mean output: with inputs of 0, the drift itself."""

    def call(self, y_true, y_pred):
        return keras.ops.mean(y_pred, axis=-1)


class Meter(keras.callbacks.Callback):
    """Reads what the steps met (the loss), and the variables between steps."""

    def __init__(self, variables=()):
        super().__init__()
        self.train, self.test, self.between = [], [], []
        self.variables = variables

    def _read(self):
        self.between += [keras.ops.convert_to_numpy(v) for v in self.variables]

    def on_epoch_begin(self, epoch, logs=None):
        self.train.append([])

    def on_train_batch_begin(self, batch, logs=None):
        self._read()

    def on_train_batch_end(self, batch, logs=None):
        self.train[-1].append(logs["loss"])
        self._read()

    def on_test_begin(self, logs=None):
        self.test.append([])

    def on_test_batch_end(self, batch, logs=None):
        self.test[-1].append(logs["loss"])
        self._read()


def means(values):
    """What a running mean of these values shows, as Keras logs it."""
    values = np.asarray(values)
    return np.cumsum(values) / np.arange(1, len(values) + 1)


def heated(names=("heated",), **kwargs):
    """Runs eagerly, if nothing else is asked for: graphs take long to make."""
    inputs = outputs = keras.Input((3,))
    for name in names:
        outputs = Heated(name=name)(outputs)
    model = keras.Model(inputs, outputs)
    # No learning: what the loss shows is then the drift alone.
    kwargs = kwargs or {"run_eagerly": True}
    model.compile(keras.optimizers.SGD(0.0), Trace(), **kwargs)
    return model


class Wrapper(keras.Model):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return self.inner(x)


X = np.zeros((10, 3), "float32")
FIT = {"x": X, "y": X, "batch_size": 2, "verbose": 0, "shuffle": False}
WALK = drift.RandomWalk(0.5, start=1.0)


@pytest.mark.parametrize("kind", ["graph", "eager", "wrapped"])
def test_training_follows_the_process(kind):
    model = heated(run_eagerly=kind == "eager")
    layer = model.get_layer("heated")
    if kind == "wrapped":
        model = Wrapper(model)
        model.compile(keras.optimizers.SGD(0.0), Trace())
    layer.imperfections["temperature"].assign(0.25)
    meter = Meter([layer.imperfections["temperature"]])
    history = model.fit(
        **FIT,
        epochs=3,
        validation_data=(X, X),
        callbacks=[DriftInjection("temperature", WALK, seed=3), meter],
    )
    path = 0.25 + WALK.path(15, seed=3)
    for epoch in range(3):
        own = path[5 * epoch : 5 * epoch + 5]
        np.testing.assert_allclose(meter.train[epoch], means(own), rtol=1e-5)
    np.testing.assert_allclose(
        history.history["drift_temperature"], path[4::5], rtol=1e-6
    )
    # The device at rest is what lies between the steps, and what is validated.
    assert set(np.ravel(meter.between)) == {0.25}
    np.testing.assert_allclose(history.history["val_loss"], 0.25)


@pytest.mark.parametrize("every", ["batch", "epoch"])
def test_a_run_that_goes_on_drifts_as_an_uninterrupted_one(every):
    model, meter = heated(), Meter()
    injection = DriftInjection("temperature", drift.Linear(1.0, start=5.0), every=every)
    model.fit(**FIT, initial_epoch=2, epochs=4, callbacks=[injection, meter])
    steps = np.arange(10, 20).reshape(2, 5) if every == "batch" else [[2] * 5, [3] * 5]
    np.testing.assert_allclose(meter.train, [means(5.0 + s) for s in np.array(steps)])


@pytest.mark.parametrize("every", ["batch", "epoch"])
def test_validation(every):
    model, meter = heated(), Meter()
    injection = DriftInjection(
        "temperature", WALK, during="validation", every=every, seed=3
    )
    fit = {**FIT, "validation_data": (X, X), "validation_batch_size": 2}
    history = model.fit(
        **fit, epochs=4, validation_freq=2, callbacks=[injection, meter]
    )
    for epoch, test in zip((1, 3), meter.test, strict=True):
        if every == "batch":
            values = WALK.path(5, seed=(3, epoch))
        else:
            values = [WALK.at(epoch, seed=3)] * 5
        np.testing.assert_allclose(test, means(values), rtol=1e-5)
        logged = history.history["drift_temperature"][epoch]
        assert logged == pytest.approx(values[-1])
    assert math.isnan(history.history["drift_temperature"][0])
    np.testing.assert_allclose(meter.train, 0.0)


def test_a_plain_evaluate_begins_at_epoch_0():
    model = heated()
    injection = DriftInjection("temperature", WALK, during="validation", seed=3)
    model.fit(**FIT, epochs=2, validation_data=(X, X), callbacks=[injection])
    expected = WALK.path(5, seed=(3, 0)).mean()
    loss = model.evaluate(X, X, batch_size=2, verbose=0, callbacks=[injection])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert model.evaluate(X, X, verbose=0) == 0.0


@pytest.mark.parametrize("order", [1, -1])
def test_drifts_of_the_chip_and_of_one_layer_add(order):
    model, meter = heated(names=("a", "b")), Meter()
    amounts = [("temperature", 3.0), ("b/temperature", 1.0), ("shift", 10.0)]
    drifts = [DriftInjection(n, drift.Linear(0.0, a)) for n, a in amounts[::order]]
    logs = model.fit(**FIT, callbacks=[*drifts, meter]).history
    # One chip of two layers.
    np.testing.assert_allclose(meter.train, 2 * 3.0 + 1.0 + 2 * 10.0)
    # Of the chip, the mean of both layers.
    assert logs["drift_temperature"] == [3.5]
    assert logs["drift_b_temperature"] == [4.0]
    assert logs["drift_shift"] == [10.0]


@pytest.mark.parametrize("during", ["training", "validation"])
@pytest.mark.parametrize("name", ["temperature", "scale", "shift"])
def test_drift_is_added_to_the_chip_that_is_installed(name, during, capsys):
    model, process = heated(), drift.Linear(0.0, start=3.0)
    (chip,) = pnn.devices.sweep(model, name, [2.0])
    moving = DriftInjection(name, process, during=during, verbose=1)
    with chip.installed(model):
        logs = model.fit(**FIT, validation_data=(X, X), callbacks=[moving]).history
    assert f"Epoch 1: {name} is off by 5\n" in capsys.readouterr().out
    assert logs[f"drift_{name}"] == [5.0]
    met = (5.0, 2.0) if during == "training" else (2.0, 5.0)
    np.testing.assert_allclose((*logs["loss"], *logs["val_loss"]), met)


@pytest.mark.parametrize("during", ["training", "validation"])
def test_drift_in_a_fit_on_a_chip(during):
    """In validation the chip drifts too, and beside it the model."""
    model = heated()
    (chip,) = pnn.devices.sweep(model, "temperature", [2.0])
    pat = pnn.PATModel(model, chip)
    pat.compile(keras.optimizers.SGD(0.0), Trace())
    moving = DriftInjection("temperature", drift.Linear(0.0, start=3.0), during)
    logs = pat.fit(**FIT, validation_data=(X, X), callbacks=[moving]).history
    met = (5.0, 2.0, 0.0) if during == "training" else (2.0, 5.0, 3.0)
    found = [logs[name][0] for name in ("loss", "val_loss", "val_model_loss")]
    np.testing.assert_allclose(found, met)
    assert logs["drift_temperature"] == [5.0]
    # Outside of `fit` it is the model that is evaluated.
    loss = pat.evaluate(X, X, verbose=0, callbacks=[moving])
    assert loss == pytest.approx(met[2])
    # The graph is kept, and is right without drift too.
    np.testing.assert_allclose(pat.fit(**FIT).history["loss"], 2.0)


def test_a_chip_on_the_bench_cannot_be_moved():
    class Bench(pnn.HardwareDevice):
        def measure(self, layer, inputs, controls):
            return inputs

    model = heated(names=("a", "b"))
    moving = DriftInjection("temperature", WALK)
    pat = pnn.PATModel(model, Bench(layers=["b"]))
    pat.compile("sgd", Trace())
    refused = pytest.raises(ValueError, match=r"'b/temperature', on Bench")
    for during in ("training", "validation"):
        with refused:
            pat.fit(**FIT, callbacks=[DriftInjection("temperature", WALK, during)])
    with refused, Bench(layers=["b"]).installed(model):
        model.fit(**FIT, callbacks=[moving])
    pat.fit(**FIT, callbacks=[DriftInjection("a/temperature", WALK)])
    for moves in (
        {"variation": pnn.Variation(temperature=1.0)},
        {"adversarial": {"b/temperature": pnn.Autodiff(1.0)}},
    ):
        sat = pnn.SATModel(model, ascent=None, device=pat.device, **moves)
        sat.compile("sgd", Trace())
        with refused:
            sat.fit(**FIT)


def test_deviations_are_from_nominal():
    model, meter = heated(), Meter()
    rising = DriftInjection("scale", drift.Linear(0.25, start=0.25))
    cold = DriftInjection("temperature", drift.Linear(0.0, start=-2.0))
    history = model.fit(**FIT, callbacks=[rising, cold, meter])
    met = np.arange(0.25, 1.5, 0.25) - 2.0
    np.testing.assert_allclose(meter.train[0], means(met), rtol=1e-5)
    assert history.history["drift_scale"] == [1.25]
    # It stops before the step in which the scale would be 0.
    scale = model.get_layer("heated").imperfections["scale"]
    meter = Meter([scale])
    falling = DriftInjection("scale", drift.Linear(-0.5))
    with pytest.raises(ValueError, match=r"/scale' must be above 0.*of -1$"):
        model.fit(**FIT, callbacks=[cold, falling, meter])
    np.testing.assert_allclose(meter.train[0], means([-2.0, -2.5]))
    assert set(np.ravel(meter.between)) == {1.0}


@pytest.mark.parametrize("name", ["splitter_imbalance", "mesh/splitter_imbalance"])
def test_an_imbalance_drifts_as_its_angle(name):
    mesh = pnn.layers.MZIMesh(4, name="mesh")
    model = keras.Sequential(
        [keras.Input((4,)), mesh, pnn.layers.Photodetector()], name="interferometers"
    )
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
    ideal = model.evaluate(x, x, verbose=0)
    # Beyond 1 it counts as 1, as a draw does.
    for amount, counts_as in ((0.3, 0.3), (-0.5, -0.5), (1.5, 1.0)):
        drifting = drift.Linear(0.0, start=amount)
        injection = DriftInjection(name, drifting, during="validation")
        loss = model.evaluate(x, x, verbose=0, callbacks=[injection])
        (device,) = pnn.devices.sweep(model, name, counts_as)
        with device.installed(model):
            assert loss == pytest.approx(model.evaluate(x, x, verbose=0), rel=1e-5)
        assert abs(loss - ideal) > 1e-4
    assert model.evaluate(x, x, verbose=0) == ideal


def test_unknown_name_stops_before_training():
    model, meter = heated(), Meter()
    injection = DriftInjection("humidity", WALK)
    with pytest.raises(ValueError, match=r"heated/temperature.*Received: 'humidity'"):
        model.fit(**FIT, callbacks=[injection, meter])
    assert meter.train == []
    sequential = keras.Sequential([Heated()])
    sequential.compile("sgd", Trace())
    with pytest.raises(ValueError, match="not built"):
        sequential.fit(**FIT, callbacks=[DriftInjection("temperature", WALK)])


def rest(model):
    """Asserts that the model is as `set_rest` left it."""
    imperfections = model.get_layer("heated").imperfections
    assert float(imperfections["temperature"].numpy()) == 0.5
    np.testing.assert_array_equal(imperfections["shift"], np.arange(6).reshape(2, 3))


def set_rest(model):
    imperfections = model.get_layer("heated").imperfections
    imperfections["temperature"].assign(0.5)
    imperfections["shift"].assign(np.arange(6.0).reshape(2, 3))


class Smoke(Trace):
    """Fails in the third step, having noted what the steps met."""

    def __init__(self):
        super().__init__()
        self.met = []

    def call(self, y_true, y_pred):
        self.met.append(float(keras.ops.mean(y_pred)))
        if len(self.met) == 3:
            raise RuntimeError("smoke")
        return super().call(y_true, y_pred)


@pytest.mark.parametrize("during", ["training", "validation"])
def test_restored_after_an_exception(during):
    model, loss = heated(), Smoke()
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    set_rest(model)
    callbacks = [
        DriftInjection("temperature", WALK, during=during),
        DriftInjection("shift", WALK, during=during, seed=1),
    ]
    seeds = (0, 1) if during == "training" else ((0, 0), (1, 0))
    with pytest.raises(RuntimeError, match="smoke"):
        if during == "training":
            model.fit(**FIT, callbacks=callbacks)
        else:
            model.evaluate(X, X, batch_size=2, verbose=0, callbacks=callbacks)
    expected = 3.0 + sum(WALK.path(3, seed) for seed in seeds)
    np.testing.assert_allclose(loss.met, expected, rtol=1e-6)
    rest(model)
    # Nothing is left behind on the model either.
    model.fit(**FIT)
    model.evaluate(X, X, batch_size=2, verbose=0)
    assert set(loss.met[3:]) == {3.0}


def test_no_drift_waits_for_a_later_run():
    """After a step that another drift kept from running."""
    model = heated()
    set_rest(model)
    plain = model.evaluate(X, X, batch_size=2, verbose=0)
    hot = drift.Linear(0.0, start=100.0)

    # The second step has no number.
    broken = types.SimpleNamespace(at=lambda step, seed: math.nan if step else 0.0)

    def fails(run, during, **kwargs):
        callbacks = [DriftInjection("temperature", p, during) for p in (hot, broken)]
        with pytest.raises(ValueError, match=r"finite numbers.*nan at step 1"):
            run(X, X, batch_size=2, verbose=0, callbacks=callbacks, **kwargs)
        rest(model)

    fails(model.evaluate, "validation")
    assert model.evaluate(X, X, batch_size=2, verbose=0) == plain
    fails(model.fit, "validation", validation_data=(X, X))
    assert model.evaluate(X, X, batch_size=2, verbose=0) == plain
    fails(model.fit, "training")
    assert model.fit(**FIT).history["loss"] == [plain]
    # A drift that may act does so.
    moving = [DriftInjection("temperature", hot, during="validation")]
    loss = model.evaluate(X, X, verbose=0, callbacks=moving)
    assert loss == pytest.approx(plain + 100.0)


def test_steps_per_execution():
    model, meter = heated(steps_per_execution=2), Meter()
    process = drift.Linear(1.0)
    injection = DriftInjection("temperature", process)
    model.fit(**FIT, epochs=2, callbacks=[injection, meter])
    # Executions begin at batches 0, 2 and 4; the last has one batch.
    np.testing.assert_allclose(meter.train[0], means([0, 0, 2, 2, 4])[[1, 3, 4]])
    np.testing.assert_allclose(meter.train[1], means([5, 5, 7, 7, 9])[[1, 3, 4]])


def test_data_of_unknown_length():
    def generator():
        while True:
            yield X[:2], X[:2]

    signature = (tf.TensorSpec((2, 3)), tf.TensorSpec((2, 3)))
    data = tf.data.Dataset.from_generator(generator, output_signature=signature)
    model = heated(run_eagerly=False)
    injection = DriftInjection("temperature", WALK)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        model.fit(data.take(3), epochs=2, verbose=0, callbacks=[injection])
    history = model.fit(
        data, epochs=2, steps_per_epoch=3, verbose=0, callbacks=[injection]
    )
    expected = WALK.path(6).reshape(2, 3).mean(axis=1)
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-5)
    # The end of the data comes as an exception from the step, and is none.
    model.fit(data.take(3), epochs=1, verbose=0, callbacks=[injection])
    assert model.get_layer("heated").imperfections["temperature"].numpy() == 0.0


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"imperfection": ""}, "`imperfection`"),
        ({"process": 1.0}, "`process`.*Received: 1.0"),
        ({"process": drift.Linear}, "`process`.*Linear"),
        ({"during": "test"}, "`during`.*Received: 'test'"),
        ({"every": "step"}, "`every`.*Received: 'step'"),
        ({"seed": -1}, "`seed`.*Received: -1"),
    ],
)
def test_bad_input(kwargs, message):
    good = {"imperfection": "temperature", "process": WALK}
    with pytest.raises(ValueError, match=message):
        DriftInjection(**{**good, **kwargs})


def test_each_ring_drifts_by_its_own_series():
    """Six rings of a bank, of which each serves in two passes."""
    model = models.compiled(models.bank(4, 3, bank_size=(3, 2)))
    x, y = models.samples()
    amounts = np.arange(6) / 100
    process = pnn.drift.Recorded(np.stack([amounts] * 2), past_end="hold")
    drift = pnn.callbacks.DriftInjection("resonance_shift", process, "validation")
    found = model.evaluate(x, y, verbose=0, callbacks=[drift])
    # By outputs and columns of the bank.
    expected = np.tile(amounts.reshape(3, 2).T, (2, 1))
    chip = pnn.SimulatedDevice.from_dict(model, {"resonance_shift": expected})
    nominal = model.evaluate(x, y, verbose=0)
    with chip.installed(model):
        assert model.evaluate(x, y, verbose=0) == pytest.approx(found, rel=1e-5)
    assert found != pytest.approx(nominal, rel=1e-3)
    for name in ("temperature", "resonance_shift"):
        many = pnn.drift.Recorded(np.zeros((3, 13)), past_end="hold")
        drift = pnn.callbacks.DriftInjection(name, many, "validation")
        with pytest.raises(ValueError, match="13 series"):
            model.evaluate(x, y, verbose=0, callbacks=[drift])
