"""Robustness reports during `fit`: training stays, and others read the keys."""

import contextlib
import math

import keras
import models
import numpy as np
import pytest
from models import assert_same, bits

import keras_pnn as pnn

RNG = np.random.default_rng(0)
X = RNG.random((48, 6)).astype("float32")
Y = (X @ RNG.normal(size=(6, 3))).argmax(1)
VARIATION = pnn.Variation(resonance_shift=0.03)
FEWER = {
    "k": 1,
    "smallest": 0,
    "trace_samples": 1,
    "density_steps": 2,
    "variables": "controls",
}


class Counted(pnn.layers.MRRBank):
    """A bank that counts how often it is traced."""

    traces = 0

    def forward(self, inputs, controls, imperfections):
        type(self).traces += 1
        return super().forward(inputs, controls, imperfections)


def compiled(model, eagerly=True):
    """Trains eagerly: what the callback measures has graphs of its own."""
    momentum = keras.optimizers.SGD(0.05, momentum=0.9)
    return models.compiled(model, momentum, metrics=["accuracy"], run_eagerly=eagerly)


def network(eagerly=True):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), Counted(3, name="bank")])
    return compiled(model, eagerly)


def fit(callbacks, epochs=2, model=None):
    model = model or network()
    keras.utils.set_random_seed(1)
    history = model.fit(
        X, Y, epochs=epochs, batch_size=24, verbose=0, callbacks=callbacks
    )
    return model, history.history


def callback(**arguments):
    sweeps = {"temperature": [-1.0, 0.0, 1.0]}
    arguments = {"variation": VARIATION, "n": 3, "sweeps": sweeps, **arguments}
    return pnn.callbacks.RobustnessReport(X, Y, **arguments)


def only(report):
    """The one model of a report."""
    (found,) = report.models.values()
    return found


def test_training_is_the_same_to_the_bit():
    def trained(callbacks):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.2)]
        bank = pnn.layers.MRRBank(3)
        model = keras.Sequential([keras.Input((6,)), *layers, bank])
        return fit(callbacks, model=compiled(pnn.SATModel(model, variation=VARIATION)))

    worst = {"temperature": 1.0}
    with_it, history = trained([callback(worst_case=worst, hessian=FEWER)])
    without, plain = trained([])
    for part in (with_it, without), (with_it.optimizer, without.optimizer):
        assert_same(*(one.variables for one in part))
    for key, values in plain.items():
        assert history[key] == values


def test_keys_of_the_epochs_that_are_due(tmp_path):
    reports = callback(every=3, folder=tmp_path, log_dir=tmp_path / "logs")
    model, history = fit([reports], epochs=4)
    assert reports.epochs == [0, 2, 3]
    due = [math.isfinite(v) for v in history["val_accuracy_p05"]]
    assert due == [True, False, True, True]
    devices = VARIATION.sample(model, 3, seed=0)
    found = pnn.evaluate_devices(model, X, Y, devices, verbose=0)
    last = {key: values[-1] for key, values in history.items()}
    for metric in ("loss", "accuracy"):
        expected = found.summary(metric)
        expected["p95"] = np.percentile(found[metric], 95)
        for statistic in ("mean", "p05", "p95", "min", "max"):
            key = f"val_{metric}_{statistic}"
            assert last[key] == pytest.approx(expected[statistic])
    # Both tails: less is better for one of the two metrics.
    order = ("min", "p05", "mean", "p95", "max")
    assert np.all(np.diff([last[f"val_loss_{name}"] for name in order]) > 0)
    assert last["val_yield"] == np.mean(found["accuracy"] >= 0.95)
    scan = only(reports.results[-1]).sweeps["temperature"]
    assert last["val_accuracy_over_temperature"] == scan.area("accuracy")
    files = {f"report_000{i}.{kind}" for i in (1, 3, 4) for kind in ("json", "html")}
    assert {path.name for path in tmp_path.iterdir()} == {*files, "logs"}
    assert list((tmp_path / "logs").glob("events*"))


def test_others_watch_its_keys_and_count_epochs(tmp_path):
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", "val_accuracy_p05", mode="max", save_best_only=True
    )
    # No device has a loss below -1: the yield never rises.
    reports = callback(metric="loss", spec=-1.0, every=3)
    stop = keras.callbacks.EarlyStopping("val_yield", mode="max", patience=5)
    # The first batch builds the model.
    model = compiled(keras.Sequential([pnn.layers.MRRBank(3)]))
    _, history = fit([reports, best, stop], epochs=20, model=model)
    assert len(history["loss"]) == 6
    assert reports.epochs == [0, 2, 5]
    assert (tmp_path / "best.keras").exists()


def test_a_drift_in_training_leaves_the_devices():
    drift = pnn.callbacks.DriftInjection(
        "temperature", pnn.drift.Sinusoid(amplitude=2.0, period=5.0, phase=0.4)
    )
    before, after = callback(sweeps=None), callback(sweeps=None)
    model, history = fit([before, drift, after])
    assert history["drift_temperature"][-1] != 0
    devices = VARIATION.sample(model, 3, seed=0)
    found = pnn.evaluate_devices(model, X, Y, devices, verbose=0)
    for reports in (before, after):
        measured = only(reports.results[-1]).devices["loss"]
        assert measured == pytest.approx(found["loss"], 1e-6)
    warm = pnn.devices.sweep(model, "temperature", history["drift_temperature"][-1])
    drifted = pnn.evaluate_devices(model, X, Y, warm, verbose=0)
    assert abs(drifted["loss"][0] - found["loss"].mean()) > 1e-3


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"every": 0}, ValueError, "`every` must be an integer ≥ 1. Received: 0"),
        ({"n": 0}, ValueError, "`n` must be an integer ≥ 1"),
        ({"variation": None, "sweeps": {}}, ValueError, "would log nothing"),
        ({"variaton": 3}, TypeError, "variaton"),
        ({"compare": {}}, TypeError, "compare"),
        ({"cache_dir": "points"}, TypeError, "cache_dir"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        callback(**arguments)


def test_a_variation_or_an_iterator_as_devices():
    # Of a seed that is the report's, too.
    given = VARIATION, iter(VARIATION.sample(network(), 3, seed=0))
    reports = [callback(variation=None, devices=devices) for devices in given]
    # A second fit finds the devices again.
    model, first = fit(reports, epochs=1)
    _, second = fit(reports, epochs=1, model=model)
    assert [report.epochs for report in reports] == [[0], [0]]
    losses = [only(report.results[0]).devices["loss"] for report in reports]
    np.testing.assert_array_equal(*losses)
    assert second["val_loss_mean"] != first["val_loss_mean"]


@pytest.mark.parametrize(
    "installed, arguments, message",
    [
        (True, {}, r"'bank/resonance_shift' is off"),
        (False, {"sweeps": {"humidity": [1.0]}}, "Received: 'humidity'"),
    ],
    ids=["a device that stays installed", "an unknown name"],
)
def test_what_does_not_fit_ends_fit_before_the_first_step(
    installed, arguments, message
):
    model = network()
    before = bits(model)
    device = VARIATION.sample(model, 1)[0]
    context = device.installed(model) if installed else contextlib.nullcontext()
    with pytest.raises(ValueError, match=message), context:
        fit([callback(**arguments)], model=model)
    assert bits(model) == before


def test_epochs_after_the_first_trace_nothing():
    traces = []
    count = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: traces.append(Counted.traces)
    )
    report = callback(hessian=FEWER, landscape={"points": 3}, worst_case=True)
    fit([report, count], epochs=3, model=network(eagerly=False))
    assert len(report.results) == 3 and len(set(traces)) == 1
    # They follow the weights.
    for result in report.results:
        found = only(result)
        assert found.landscape.center == pytest.approx(found.nominal["loss"])
        assert found.worst.losses[0, 0] == pytest.approx(found.nominal["loss"])
    assert found.nominal["loss"] != only(report.results[0]).nominal["loss"]
