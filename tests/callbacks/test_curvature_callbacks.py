"""Curvature that is logged during `fit`: eigenvalues and loss landscapes."""

import csv
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import Counting, assert_same, bits
from tensorflow.core.util import event_pb2

import keras_pnn as pnn
from keras_pnn.callbacks import HessianEigenvalues, LossLandscape
from keras_pnn.callbacks.measuring import MeasuringCallback

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3)).astype("float32")
Y = RNG.standard_normal((20, 2)).astype("float32")


def network(*layers):
    keras.utils.set_random_seed(5)
    dense = keras.layers.Dense(4, activation="tanh")
    between = keras.layers.BatchNormalization(), keras.layers.Dropout(0.3), *layers
    model = keras.Sequential([keras.Input((3,)), dense, *between])
    model.add(keras.layers.Dense(2))
    # What callbacks measure has graphs of its own.
    momentum = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(momentum, loss="mse", run_eagerly=True)
    return model


def fit(model, *callbacks, epochs=3, **options):
    options |= {"batch_size": 10, "epochs": epochs, "verbose": 0}
    return model.fit(X, Y, callbacks=list(callbacks), **options)


def eigenvalues(**options):
    return HessianEigenvalues(X, Y, **{"variables": "all", **options})


def landscape(**options):
    options = {"points": 3, "variables": "all", "directions": "random", **options}
    return LossLandscape(X, Y, **options)


def events(folder):
    """Returns (step, tag) → (plugin, array) of all that was written."""
    found = {}
    for path in sorted(folder.iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(record.numpy())
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                array = tf.make_ndarray(value.tensor)
                found[event.step, value.tag] = (plugin, array)
    return found


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
def test_training_is_bit_identical(tmp_path, batch_norm):
    options = {"batch_size": 8, "batch_norm": batch_norm, "log_dir": tmp_path / "logs"}
    unwatched, model = network(), network()
    expected = fit(unwatched, epochs=2, validation_data=(X, Y)).history
    callbacks = eigenvalues(k=2, **options), landscape(dimensions=1, **options)
    history = fit(model, *callbacks, epochs=2, validation_data=(X, Y)).history
    for name, values in expected.items():
        assert history[name] == values
    assert_same(unwatched.variables, model.variables)
    assert_same(unwatched.optimizer.variables, model.optimizer.variables)


def test_logs_hold_the_results_for_the_weights_of_the_epoch():
    model = network()
    found = eigenvalues(k=2, smallest=2, tolerance=1e-3, every=2)
    rise = landscape(seed=2)
    history = fit(model, found, rise, epochs=4).history
    result = pnn.hessian_eigenvalues(model, X, Y, k=2, variables="all", smallest=2)
    for i in range(2):
        for name, values in (("eig", "eigenvalues"), ("smallest", "smallest")):
            last = history[f"hessian_{name}_{i + 1}"][-1]
            np.testing.assert_allclose(last, getattr(result, values)[i], atol=1e-5)
    assert "hessian_eig_3" not in history
    assert np.isnan(history["hessian_smallest_1"][2])
    expected = pnn.loss_landscape(
        model, X, Y, "random", points=3, variables="all", seed=2
    )
    np.testing.assert_allclose(history["landscape_rise"][-1], expected.rise, rtol=1e-6)
    np.testing.assert_allclose(rise.results[-1].loss, expected.loss, rtol=1e-6)
    assert (found.epochs, rise.epochs) == ([0, 1, 3], [0, 1, 2, 3])
    assert len(found.results) == 3


def test_epochs_between_are_nan(tmp_path):
    path, key = tmp_path / "log.csv", "landscape_rise"
    callback = landscape(every=3)
    logger = keras.callbacks.CSVLogger(str(path))
    values = fit(network(), callback, logger, epochs=8).history[key]
    assert callback.epochs == list(np.flatnonzero(np.isfinite(values))) == [0, 2, 5, 7]
    with path.open() as file:
        column = [float(row[key]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(column, values)


@pytest.mark.parametrize("make", [eigenvalues, landscape])
def test_all_epochs_and_a_second_fit_trace_once(make):
    model = network(Counting())
    callback = make()
    counter = model.layers[3]
    counter.traces = 0
    options = {"batch_size": 20, "verbose": 0, "callbacks": [callback]}
    model.fit(X, Y, epochs=10, **options)
    assert callback.epochs == list(range(10))
    model.fit(X, Y, epochs=2, **options)
    assert callback.epochs == [0, 1]
    assert counter.traces == 1


def test_epoch_at_which_training_stops_is_measured():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    callback = landscape(every=10)
    fit(network(), Stop(), callback, epochs=9)
    assert callback.epochs == [0, 1]


@pytest.mark.parametrize("dimensions", [1, 2])
def test_files_and_pictures(tmp_path, dimensions):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "files"
    callback = landscape(dimensions=dimensions, folder=folder, every=2)
    fit(network(), callback, epochs=2)
    names = ["landscape_0001", "landscape_0002"]
    assert sorted(p.stem for p in folder.glob("*.npz")) == names
    with np.load(folder / "landscape_0002.npz") as file:
        np.testing.assert_array_equal(file["loss"], callback.results[1].loss)
    picture = tf.io.decode_png((folder / "landscape_0001.png").read_bytes()).numpy()
    assert picture.shape[:2] == (480, 600)
    assert picture.std() > 1


def test_without_matplotlib_arrays_are_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    fit(network(), landscape(folder=tmp_path, log_dir=tmp_path / "logs"), epochs=1)
    assert [p.name for p in tmp_path.glob("*.*")] == ["landscape_0001.npz"]
    assert {tag for _, tag in events(tmp_path / "logs")} == {"landscape_rise"}


def test_tensorboard_gets_what_was_measured(tmp_path):
    rise = landscape(every=2, log_dir=tmp_path / "rise")
    found = eigenvalues(k=2, every=2, smallest=1, log_dir=tmp_path / "eig")
    history = fit(network(), rise, found, epochs=3).history
    for folder, keys in (
        ("rise", ["landscape_rise"]),
        ("eig", ["hessian_eig_1", "hessian_eig_2", "hessian_smallest_1"]),
    ):
        written = events(tmp_path / folder)
        for key in keys:
            assert written[0, key][0] == "scalars"
            values = [float(written[epoch, key][1]) for epoch in (0, 1, 2)]
            np.testing.assert_allclose(values, history[key], rtol=1e-6)
    plugin, picture = events(tmp_path / "rise")[0, "landscape"]
    assert plugin == "images" and picture[:2].tolist() == [b"600", b"480"]
    assert tf.io.decode_png(picture[2]).shape[:2] == (480, 600)
    # TensorFlow may have TensorBoard in reach; the writer does without.
    assert "tensorboard" not in sys.modules


def test_tensorboard_gets_no_nan(tmp_path):
    class Constant(MeasuringCallback):
        def measure(self):
            return {"a": 1.5, "b": float("nan")}

        def values(self, result):
            return result

    fit(network(), Constant(1, tmp_path), epochs=1)
    assert events(tmp_path) == {(0, "a"): ("scalars", 1.5)}


@pytest.mark.parametrize(
    "make, options, message",
    [
        (eigenvalues, {"k": 0}, "`k` must be an integer ≥ 1. Received: 0"),
        (eigenvalues, {"every": 1.5}, "`every` must .*Received: 1.5"),
        (eigenvalues, {"tolerance": -1}, "`tolerance` must .*Received: -1"),
        (eigenvalues, {"smallest": -1}, "`smallest` must .*Received: -1"),
    ],
)
def test_bad_numbers_are_named_at_once(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    "callback, message",
    [
        (eigenvalues(variables="controls"), "'all'"),
        (eigenvalues(k=99), "`k` must .*Received: 99"),
        (landscape(points=4), "`points` must be odd"),
        (landscape(seed=-1), "`seed` must"),
    ],
)
def test_bad_settings_fail_before_training(callback, message):
    model = network()
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        fit(model, callback)
    assert bits(model) == before
