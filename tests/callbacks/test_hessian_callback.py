import csv

import keras
import numpy as np
import pytest

from keras_pnn.callbacks.hessian import HessianEigenvalues
from keras_pnn.curvature.hessian import hessian_eigenvalues

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


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
def test_training_is_bit_identical_with_the_callback(batch_norm):
    plain = network()
    expected = fit(plain, validation_data=(X, Y))
    watched = network()
    callback = HessianEigenvalues(X, Y, 2, "all", batch_size=8, batch_norm=batch_norm)
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


def test_logs_hold_the_eigenvalues_of_the_epochs_weights():
    model = network()
    callback = HessianEigenvalues(X, Y, k=2, variables="all", tolerance=1e-3)
    history = fit(model, callback).history
    assert len(history["hessian_eig_1"]) == len(callback.results) == 3
    assert callback.epochs == [0, 1, 2]
    result = hessian_eigenvalues(model, X, Y, k=2, variables="all")
    last = [history["hessian_eig_1"][-1], history["hessian_eig_2"][-1]]
    np.testing.assert_allclose(last, result.eigenvalues, rtol=1e-3)
    assert last[0] >= last[1]
    assert "hessian_eig_3" not in history


def test_epochs_between_measurements_are_nan(tmp_path):
    path = tmp_path / "log.csv"
    best = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "best.weights.h5"),
        monitor="hessian_eig_1",
        mode="min",
        save_best_only=True,
        save_weights_only=True,
    )
    callback = HessianEigenvalues(X, Y, variables="all", every=3)
    history = fit(
        network(), callback, keras.callbacks.CSVLogger(str(path)), best, epochs=8
    ).history
    measured = np.isfinite(history["hessian_eig_1"])
    assert callback.epochs == list(np.flatnonzero(measured)) == [0, 2, 5, 7]
    with path.open() as file:
        column = [float(row["hessian_eig_1"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(column, history["hessian_eig_1"])
    np.testing.assert_allclose(best.best, np.nanmin(column))


def test_graph_is_built_once_per_fit():
    callback = HessianEigenvalues(X, Y, variables="all", batch_size=8)
    model = network()
    fit(model, callback)
    assert callback._operator._product.experimental_get_tracing_count() <= 2
    fit(model, callback, epochs=2)
    assert callback.epochs == [0, 1]


def test_epoch_at_which_training_stops_is_measured():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    callback = HessianEigenvalues(X, Y, variables="all", every=10)
    fit(network(), Stop(), callback, epochs=9)
    assert callback.epochs == [0, 1]


def test_model_built_by_fit():
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", loss="mse")
    callback = HessianEigenvalues(X, Y, variables="all")
    fit(model, callback)
    assert len(callback.results) == 3


@pytest.mark.parametrize("options", [{"k": 0}, {"every": 0}, {"every": 1.5}])
def test_bad_numbers_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be a positive integer. Rec"):
        HessianEigenvalues(X, Y, **options)


@pytest.mark.parametrize(
    "options", [{"tolerance": -1}, {"max_iterations": 0}, {"seed": -1}]
)
def test_bad_effort_is_named_at_once(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must .*Received: "):
        HessianEigenvalues(X, Y, **options)


def test_bad_settings_fail_before_training():
    model = network()
    before = [np.array(v.numpy()) for v in model.trainable_variables]
    for callback, message in [
        (HessianEigenvalues(X, Y), "'all'"),
        (HessianEigenvalues(X, Y, k=99, variables="all"), "k must be at most"),
        (HessianEigenvalues(X, Y[:3], variables="all"), "same number"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(model, callback)
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_smallest_eigenvalues_are_logged_too():
    model = network()
    callback = HessianEigenvalues(X, Y, variables="all", every=2, smallest=2)
    history = fit(model, callback, epochs=4).history
    result = hessian_eigenvalues(model, X, Y, variables="all", smallest=2)
    last = [history[f"hessian_smallest_{i}"][-1] for i in (1, 2)]
    np.testing.assert_allclose(last, result.smallest, atol=1e-5)
    assert last[0] <= last[1] <= history["hessian_eig_1"][-1]
    assert np.isnan(history["hessian_smallest_1"][2])
    with pytest.raises(ValueError, match=r"smallest must be .*Received: -1"):
        HessianEigenvalues(X, Y, smallest=-1)
    with pytest.raises(ValueError, match=r"smallest must be at most .*Received: 99"):
        fit(network(), HessianEigenvalues(X, Y, variables="all", smallest=99))
