"""Robustness reports during `fit`: training stays, and others read the keys."""

import math

import keras
import numpy as np
import pytest

import keras_pnn as pnn

RNG = np.random.default_rng(0)
X = RNG.random((96, 6)).astype("float32")
Y = (X @ RNG.normal(size=(6, 3))).argmax(1)
VARIATION = pnn.Variation(resonance_shift=0.03)


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = pnn.layers.MRRBank(5, activation="relu")(inputs)
    x = keras.layers.Dropout(0.2)(keras.layers.BatchNormalization()(x))
    model = keras.Model(inputs, pnn.layers.MRRBank(3)(x))
    model = pnn.SATModel(model, rho=0.05, variation=VARIATION, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    return model


def fit(callbacks, epochs=4, model=None):
    model = model or network()
    keras.utils.set_random_seed(1)
    history = model.fit(
        X, Y, epochs=epochs, batch_size=32, verbose=0, callbacks=callbacks
    )
    return model, history.history


def callback(**arguments):
    sweeps = {"temperature": [-1.0, 0.0, 1.0]}
    arguments = {"variation": VARIATION, "n": 3, "sweeps": sweeps, **arguments}
    return pnn.callbacks.RobustnessReport(X[:48], Y[:48], **arguments)


def test_training_is_the_same_to_the_bit():
    with_it, history = fit([callback(every=2, worst_case=True, hessian={"k": 1})])
    without, plain = fit([])
    for a, b in zip(with_it.variables, without.variables, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))
    states = zip(with_it.optimizer.variables, without.optimizer.variables, strict=True)
    for a, b in states:
        np.testing.assert_array_equal(np.array(a), np.array(b))
    for key, values in plain.items():
        assert history[key] == values


def test_keys_of_the_epochs_that_are_due(tmp_path):
    reports = callback(every=3, folder=tmp_path, log_dir=tmp_path / "logs")
    model, history = fit([reports])
    assert reports.epochs == [0, 2, 3]
    due = [math.isfinite(v) for v in history["val_accuracy_p05"]]
    assert due == [True, False, True, True]
    devices = VARIATION.sample(model, 3, seed=0)
    found = pnn.evaluate_devices(model, X[:48], Y[:48], devices, verbose=0)
    last = {key: values[-1] for key, values in history.items()}
    for metric in ("loss", "accuracy"):
        for statistic in ("mean", "p05", "min", "max"):
            expected = found.summary(metric)[statistic]
            assert last[f"val_{metric}_{statistic}"] == pytest.approx(expected)
        expected = np.percentile(found[metric], 95)
        assert last[f"val_{metric}_p95"] == pytest.approx(expected)
    # Both tails: less is better for one of the two metrics.
    assert last["val_loss_min"] < last["val_loss_p05"] < last["val_loss_mean"]
    assert last["val_loss_mean"] < last["val_loss_p95"] < last["val_loss_max"]
    assert last["val_yield"] == np.mean(found["accuracy"] >= 0.95)
    scan = next(iter(reports.results[-1].models.values())).sweeps["temperature"]
    assert last["val_accuracy_over_temperature"] == scan.area("accuracy")
    names = {path.name for path in tmp_path.iterdir()}
    for epoch in (1, 3, 4):
        assert {f"report_000{epoch}.json", f"report_000{epoch}.html"} <= names
    assert "report_0002.json" not in names
    assert list((tmp_path / "logs").glob("events*"))


def test_others_watch_its_keys(tmp_path):
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", "val_accuracy_p05", mode="max", save_best_only=True
    )
    stop = keras.callbacks.EarlyStopping("val_yield", mode="max", patience=1)
    reports = callback(metric="loss", spec=-1.0)
    _, history = fit([reports, best, stop], epochs=6)
    # No device has a loss below -1: the yield never rises.
    assert len(history["loss"]) == 2
    assert (tmp_path / "best.keras").exists()


@pytest.mark.parametrize("patience,reported", [(2, [0]), (8, [0, 3, 7])])
def test_patience_counts_epochs(patience, reported):
    stop = keras.callbacks.EarlyStopping("val_yield", mode="max", patience=patience)
    reports = callback(metric="loss", spec=-1.0, every=4)
    _, history = fit([reports, stop], epochs=20)
    assert len(history["loss"]) == patience + 1
    assert reports.epochs == reported


@pytest.mark.parametrize("first", [0, 1], ids=["report first", "drift first"])
def test_a_drift_in_training_leaves_the_devices(first):
    drift = pnn.callbacks.DriftInjection(
        "temperature", pnn.drift.Sinusoid(amplitude=2.0, period=5.0, phase=0.4)
    )
    reports = callback()
    model, history = fit([reports, drift] if first == 0 else [drift, reports])
    assert history["drift_temperature"][-1] != 0
    devices = VARIATION.sample(model, 3, seed=0)
    found = pnn.evaluate_devices(model, X[:48], Y[:48], devices, verbose=0)
    assert history["val_loss_mean"][-1] == pytest.approx(found["loss"].mean(), 1e-6)
    warm = pnn.devices.sweep(model, "temperature", history["drift_temperature"][-1])
    drifted = pnn.evaluate_devices(model, X[:48], Y[:48], warm, verbose=0)
    assert abs(drifted["loss"][0] - found["loss"].mean()) > 1e-3


def test_a_device_that_stays_installed_ends_fit_before_the_first_step():
    model = network()
    before = [np.array(v) for v in model.trainable_variables]
    refused = pytest.raises(ValueError, match=r"'mrr_bank.*/resonance_shift' is off")
    with VARIATION.sample(model, 1)[0].installed(model), refused:
        fit([callback()], model=model)
    for a, b in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, np.array(b))


def test_a_model_that_is_built_by_its_first_batch():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([pnn.layers.MRRBank(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    reports = callback()
    _, history = fit([reports], epochs=1, model=model)
    assert math.isfinite(history["val_accuracy_mean"][0])


def test_a_second_fit_starts_anew():
    reports = callback()
    model, _ = fit([reports], epochs=2)
    fit([reports], epochs=1, model=model)
    assert reports.epochs == [0]
    assert len(reports.results) == 1


@pytest.mark.parametrize("every", [0, 1.5, True, "2"], ids=repr)
def test_every_must_be_a_number_of_epochs(every):
    with pytest.raises(ValueError, match="every must be a positive integer"):
        callback(every=every)


@pytest.mark.parametrize("name", ["rows", "compare", "trained_on"])
def test_arguments_of_the_report_alone(name):
    with pytest.raises(ValueError, match=f"{name} is of"):
        callback(**{name: {}})


@pytest.mark.parametrize(
    "arguments", [{}, {"sweeps": {}}, {"hessian": False, "spec": 0.9}], ids=str
)
def test_nothing_to_log(arguments):
    with pytest.raises(ValueError, match="would log nothing"):
        pnn.callbacks.RobustnessReport(X, Y, **arguments)


@pytest.mark.parametrize("name", ["variaton", "model", "devces"])
def test_arguments_that_there_are_not(name):
    with pytest.raises(TypeError, match=f"Received: {name}=3"):
        callback(**{name: 3})


def test_a_variation_or_an_iterator_as_devices():
    def logged(devices):
        reports = pnn.callbacks.RobustnessReport(X[:48], Y[:48], devices=devices, n=3)
        model, first = fit([reports], epochs=1)
        _, second = fit([reports], epochs=1, model=model)
        return [h["val_loss_mean"][0] for h in (first, second)]

    # Of a seed that is the report's, too.
    drawn = VARIATION.sample(network(), 3, seed=0)
    assert logged(VARIATION) == logged(d for d in drawn) == logged(drawn)


def test_a_name_that_the_model_lacks_ends_fit_before_the_first_step():
    model = network()
    before = [np.array(v) for v in model.trainable_variables]
    with pytest.raises(ValueError, match="nothing called 'humidity'"):
        fit([callback(sweeps={"humidity": [1.0]})], model=model)
    for a, b in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, np.array(b))
