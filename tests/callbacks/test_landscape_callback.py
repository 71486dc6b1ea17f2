import csv
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

import keras_pnn as pnn
from keras_pnn.callbacks import HessianEigenvalues, LossLandscape
from keras_pnn.callbacks.tensorboard import Summaries

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3)).astype("float32")
Y = RNG.standard_normal((20, 2)).astype("float32")


def network():
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(2),
        ]
    )
    model.compile("adam", loss="mse")
    return model


def fit(model, *callbacks, epochs=3, **options):
    return model.fit(
        X,
        Y,
        batch_size=10,
        epochs=epochs,
        callbacks=list(callbacks),
        verbose=0,
        **options,
    )


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
def test_training_is_bit_identical_with_the_callback(batch_norm, tmp_path):
    plain = network()
    expected = fit(plain, validation_data=(X, Y))
    watched = network()
    callback = landscape(
        directions="eigenvectors",
        batch_size=8,
        batch_norm=batch_norm,
        folder=tmp_path / "files",
        log_dir=tmp_path / "logs",
    )
    found = fit(watched, callback, validation_data=(X, Y))
    for key, values in expected.history.items():
        assert found.history[key] == values
    state = zip(
        [*plain.variables, *plain.optimizer.variables],
        [*watched.variables, *watched.optimizer.variables],
        strict=True,
    )
    for a, b in state:
        np.testing.assert_array_equal(a, b)


def test_logs_hold_the_rise_of_the_epochs_weights():
    model = network()
    callback = landscape(seed=2)
    history = fit(model, callback).history
    expected = pnn.loss_landscape(
        model, X, Y, "random", points=3, variables="all", seed=2
    )
    np.testing.assert_allclose(history["landscape_rise"][-1], expected.rise, rtol=1e-6)
    np.testing.assert_allclose(callback.results[-1].loss, expected.loss, rtol=1e-6)
    assert callback.epochs == [0, 1, 2]
    assert callback._operator._moved_loss.experimental_get_tracing_count() <= 2


def test_epochs_between_are_nan_and_can_be_watched(tmp_path):
    path = tmp_path / "log.csv"
    best = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "best.weights.h5"),
        monitor="landscape_rise",
        mode="min",
        save_best_only=True,
        save_weights_only=True,
    )
    callback = landscape(every=3, folder=tmp_path / "new" / "files")
    history = fit(
        network(), callback, keras.callbacks.CSVLogger(str(path)), best, epochs=8
    ).history
    rise = history["landscape_rise"]
    assert callback.epochs == list(np.flatnonzero(np.isfinite(rise))) == [0, 2, 5, 7]
    with path.open() as file:
        column = [float(row["landscape_rise"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(column, rise)
    np.testing.assert_allclose(best.best, np.nanmin(rise))
    files = {path.stem for path in (tmp_path / "new" / "files").glob("*.npz")}
    assert files == {f"landscape_{n:04d}" for n in (1, 3, 6, 8)}
    with np.load(tmp_path / "new" / "files" / "landscape_0003.npz") as file:
        np.testing.assert_array_equal(file["loss"], callback.results[1].loss)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_pictures(tmp_path, dimensions):
    pytest.importorskip("matplotlib")
    fit(network(), landscape(dimensions=dimensions, folder=tmp_path), epochs=1)
    content = (tmp_path / "landscape_0001.png").read_bytes()
    picture = tf.io.decode_png(content).numpy()
    assert picture.shape[:2] == (400, 500)
    assert picture.std() > 1


def test_without_matplotlib_arrays_are_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    fit(network(), landscape(folder=tmp_path, log_dir=tmp_path / "logs"), epochs=1)
    assert [p.name for p in tmp_path.glob("*.*")] == ["landscape_0001.npz"]
    assert {tag for _, tag in events(tmp_path / "logs")} == {"landscape_rise"}


def test_tensorboard_gets_what_was_measured(tmp_path):
    rise = landscape(every=2, log_dir=tmp_path / "rise")
    eigenvalues = HessianEigenvalues(
        X, Y, 2, "all", every=2, smallest=1, log_dir=tmp_path / "eig"
    )
    history = fit(network(), rise, eigenvalues, epochs=3).history
    written = events(tmp_path / "rise")
    for epoch in (0, 1, 2):
        plugin, value = written[epoch, "landscape_rise"]
        assert plugin == "scalars"
        np.testing.assert_allclose(value, history["landscape_rise"][epoch], rtol=1e-6)
    plugin, picture = written[0, "landscape"]
    assert plugin == "images" and picture[:2].tolist() == [b"500", b"400"]
    assert tf.io.decode_png(picture[2]).shape[:2] == (400, 500)
    written = events(tmp_path / "eig")
    for key in ("hessian_eig_1", "hessian_eig_2", "hessian_smallest_1"):
        found = [float(written[epoch, key][1]) for epoch in (0, 1, 2)]
        np.testing.assert_allclose(found, history[key], rtol=1e-6)
    # TensorFlow may have TensorBoard in reach; the writer does without.
    assert "tensorboard" not in sys.modules


def test_summaries_leave_out_what_was_not_measured(tmp_path):
    with Summaries(tmp_path) as summaries:
        summaries.scalars(3, {"a": 1.5, "b": float("nan")})
    found = events(tmp_path)
    assert list(found) == [(3, "a")]
    assert float(found[3, "a"][1]) == 1.5


def test_epoch_at_which_training_stops_is_measured():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    callback = landscape(every=10)
    fit(network(), Stop(), callback, epochs=9)
    assert callback.epochs == [0, 1]


def test_model_built_by_fit():
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", loss="mse")
    callback = landscape()
    fit(model, callback)
    assert len(callback.results) == 3


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_bad_every_is_named(every):
    with pytest.raises(ValueError, match=r"every must be a positive integer. Rec"):
        landscape(every=every)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"variables": "controls"}, "'all'"),
        ({"points": 4}, "points must be an odd"),
        ({"directions": "up"}, "directions must"),
        ({"extent": -1}, "extent must be positive"),
    ],
)
def test_bad_settings_fail_before_training(options, message):
    model = network()
    before = [np.array(v.numpy()) for v in model.trainable_variables]
    with pytest.raises(ValueError, match=message):
        fit(model, landscape(**options))
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new)
