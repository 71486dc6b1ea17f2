"""What every trainer wraps, measures, refuses and saves, with a device and without."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import Bench, assert_same, bank, ring_chip

import keras_pnn as pnn

X = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
Y = np.random.default_rng(1).normal(size=(8, 2)).astype("float32")


def online(trainer=pnn.PATModel, hardware=True, **kwargs):
    model = bank()
    chip = ring_chip(model)
    device = Bench(chip) if hardware else chip
    return trainer(model, device=device, **kwargs)


@pytest.mark.parametrize("trainer", [pnn.PATModel, pnn.SATModel, pnn.DATModel])
def test_a_bench_is_python(trainer):
    model = online(trainer)
    with pytest.raises(ValueError, match="Received: jit_compile=True"):
        model.compile("sgd", "mse", jit_compile=True)
    with pytest.raises(ValueError, match="Received: steps_per_execution > 1"):
        model.compile("sgd", "mse", steps_per_execution=2)
    for kwargs in ({}, {"jit_compile": "auto"}, {"jit_compile": False}):
        model.compile("sgd", "mse", metrics=["mae"], **kwargs)
        assert model.jit_compile is False
        assert model.get_compile_config()["metrics"] == ["mae"]
    # Also by position.
    with pytest.raises(ValueError, match="Received: jit_compile=True"):
        model.compile("sgd", "mse", None, None, None, False, 1, True)


def test_save_gives_the_digital_model(tmp_path):
    model = online()
    model.compile("sgd", "mse", run_eagerly=True)
    model.train_on_batch(X, Y)
    calls = model.device.calls
    expected = model.model(X).numpy()
    model.save(tmp_path / "digital.keras")
    loaded = keras.saving.load_model(tmp_path / "digital.keras")
    assert type(loaded) is keras.Model or "Functional" in type(loaded).__name__
    np.testing.assert_array_equal(loaded(X), expected)
    with pytest.raises(ValueError, match="has no config"):
        model.get_config()
    # Neither measured.
    assert model.device.calls == calls


@pytest.mark.parametrize("trainer", [pnn.PATModel, pnn.SATModel])
@pytest.mark.parametrize("installed", [False, True])
def test_export_gives_the_digital_model(trainer, installed, tmp_path):
    model = online(trainer)
    expected = model.model(X).numpy()
    with model.device.installed(model) if installed else contextlib.nullcontext():
        model.export(tmp_path / "digital", verbose=False)
        assert (np.abs(model(X) - expected).max() > 1e-3) == installed
    calls = model.device.calls
    served = tf.saved_model.load(tmp_path / "digital")
    np.testing.assert_allclose(served.serve(X), expected, atol=1e-6)
    assert model.device.calls == calls


@pytest.mark.parametrize("eagerly", [False, True])
def test_an_installed_device_that_fails_leaves_the_state(eagerly, tmp_path):
    def trained(breaks=99, batches=2, *callbacks):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((2,))
        x = keras.layers.Dropout(0.5)(pnn.layers.MRRBank(2, name="bank")(inputs))
        inner = keras.Model(inputs, keras.layers.BatchNormalization()(x))
        device = Bench(ring_chip(inner), breaks)
        model = pnn.SATModel(inner, rho=0.1, name="installed")
        model.compile("adam", "mse", run_eagerly=eagerly)
        failure = None
        options = {"batch_size": 4, "shuffle": False, "verbose": 0}
        try:
            with device.installed(model):
                n = 4 * batches
                model.fit(X[:n], Y[:n], callbacks=list(callbacks), **options)
        except pnn.DeviceError as error:
            failure = error
        return failure, [np.array(v) for v in model.variables]

    # In the second pass of the second batch.
    keeper = pnn.callbacks.Checkpoint(tmp_path / "state")
    failure, state = trained(4, 2, keeper)
    (note,) = failure.__notes__
    assert "after 1 batches of epoch 1" in note
    if eagerly:
        assert_same(state, trained(batches=1)[1])
    _, resumed = trained(99, 2, keeper)
    assert_same(resumed, trained()[1], 1e-6)


def test_one_step_per_execution_with_an_installed_device():
    model = online(pnn.SATModel, hardware=False)
    device = Bench(ring_chip(model))
    model.compile("sgd", "mse", steps_per_execution=2)
    several = pytest.raises(ValueError, match="Received: steps_per_execution=2")
    with several, device.installed(model):
        model.fit(X, Y, verbose=0)
    with device.installed(model):
        model.evaluate(X, Y, batch_size=2, verbose=0)
    assert device.calls == 4


def test_evaluate_and_predict_are_those_of_the_digital_model():
    model = online()
    model.compile("sgd", "mse", run_eagerly=True)
    expected = np.mean((model.model(X).numpy() - Y) ** 2)
    np.testing.assert_allclose(model.evaluate(X, Y, verbose=0), expected, rtol=1e-5)
    np.testing.assert_allclose(model.predict(X, verbose=0), model.model(X), atol=1e-6)
    assert model.device.calls == 0
    with model.device.installed(model):
        measured = model.evaluate(X, Y, verbose=0)
    assert model.device.calls == 1 and abs(measured - expected) > 1e-3


def test_inputs_keep_their_precision():
    """A float64 model inside gets float64, as it does on its own."""
    inputs = keras.Input((2,), dtype="float64")
    dense = keras.layers.Dense(1, use_bias=False, dtype="float64")
    model = keras.Model(inputs, dense(inputs))
    trainer = pnn.SATModel(model, perturb="all")
    x = np.array([[1 + 1e-12, 1.0]])
    dense.kernel.assign([[1.0], [-1.0]])
    np.testing.assert_allclose(trainer(x), [[1e-12]], rtol=1e-3)
    np.testing.assert_allclose(trainer(tf.constant(x)), [[1e-12]], rtol=1e-3)


def test_a_hessian_is_not_measured():
    model = online()
    model.compile("sgd", "mse")
    expected = pnn.hessian_eigenvalues(model, X, Y)
    with (
        pytest.raises(ValueError, match="on the digital model, outside"),
        model.device.installed(model),
    ):
        pnn.hessian_eigenvalues(model, X, Y)
    operator = pnn.curvature.HessianOperator(model, X, Y)
    with (
        pytest.raises(ValueError, match="on the digital model, outside"),
        model.device.installed(model.model),
    ):
        operator.matvec(np.ones(operator.size))
    # Nothing was measured, and nothing is left of it.
    assert model.device.calls == 0
    again = pnn.hessian_eigenvalues(model, X, Y)
    np.testing.assert_allclose(again.eigenvalues, expected.eigenvalues, rtol=1e-6)
    assert np.isfinite(operator.matvec(np.ones(operator.size))).all()


# What a subclassed model has of its own.


@keras.saving.register_keras_serializable(package="test_trainer")
class OwnLoss(keras.Model):
    """Has a loss of its own, with metrics that it keeps in `call` and in the loss."""

    def __init__(self, compiled=False, **kwargs):
        super().__init__(**kwargs)
        self.bank = pnn.layers.MRRBank(2, control_regularizer="l2")
        self.drop = keras.layers.Dropout(0.3, seed=1)
        self.seen = keras.metrics.Mean(name="seen")
        self.squares = keras.metrics.Mean(name="squares")
        self.use_compiled = compiled

    def call(self, inputs, training=False):
        outputs = self.drop(self.bank(inputs), training=training)
        self.seen.update_state(keras.ops.mean(keras.ops.abs(outputs)))
        self.add_loss(0.1 * keras.ops.mean(outputs))
        return outputs

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        squares = keras.ops.mean(y_pred**2)
        self.squares.update_state(squares)
        if self.use_compiled:
            rest = super().compute_loss(x, y, y_pred, sample_weight)
            # Both are there within `fit`.
            assert self.loss == "mse" and self.optimizer is not None
            return squares + rest
        return 10 * squares

    def get_config(self):
        return {**super().get_config(), "compiled": self.use_compiled}


class ListedMetrics(OwnLoss):
    """As in Keras' own documentation of `compute_loss`."""

    def __init__(self):
        super().__init__()
        self.squares = keras.metrics.Mean(name="loss")

    def reset_metrics(self):
        self.squares.reset_state()

    @property
    def metrics(self):
        return [self.squares]


def own_loss(**kwargs):
    keras.utils.set_random_seed(0)
    model = OwnLoss(**kwargs)
    model(X)
    return model


def compiled(model, **kwargs):
    model.compile(keras.optimizers.SGD(0.01), run_eagerly=True, **kwargs)
    return model


FIT = {"batch_size": 3, "epochs": 2, "shuffle": False, "verbose": 0}


@pytest.mark.parametrize("of_compile", [False, True])
def test_a_loss_of_the_models_own_is_trained_on(of_compile):
    # In graphs, TensorFlow's optimizer may add three gradients in any order.
    kwargs = {"loss": "mse", "metrics": ["mae"]} if of_compile else {}
    plain = compiled(own_loss(compiled=of_compile), **kwargs)
    # What the model inside was compiled with is its own affair.
    inner = compiled(own_loss(compiled=of_compile), loss="mae", metrics=["mse"])
    before = {name: vars(inner)[name] for name in ("loss", "optimizer")}
    sat = compiled(pnn.SATModel(inner, rho=0.0), **kwargs)
    expected = plain.fit(X, Y, validation_data=(X, Y), **FIT).history
    got = sat.fit(X, Y, validation_data=(X, Y), **FIT).history
    assert {"seen", "squares", "val_seen", "val_squares"} <= got.keys()
    assert got.pop("sharpness") == [0.0, 0.0]
    assert got == expected
    assert_same(plain.variables, inner.variables)
    logs = sat.evaluate(X, Y, batch_size=3, verbose=0, return_dict=True)
    assert logs == plain.evaluate(X, Y, batch_size=3, verbose=0, return_dict=True)
    assert all(vars(inner)[name] is value for name, value in before.items())
    eigenvalues = [pnn.hessian_eigenvalues(m, X, Y).eigenvalues for m in (plain, sat)]
    np.testing.assert_array_equal(*eigenvalues)


def test_metrics_are_those_of_the_clean_pass():
    model = own_loss()
    sat = compiled(pnn.SATModel(model, rho=1.0))
    expected = compiled(own_loss()).fit(X, Y, **{**FIT, "batch_size": 8, "epochs": 1})
    got = sat.fit(X, Y, **{**FIT, "batch_size": 8, "epochs": 1})
    for name in ("loss", "seen", "squares"):
        np.testing.assert_allclose(got.history[name], expected.history[name], rtol=1e-6)
    assert got.history["sharpness"][0] > 0


def test_a_listed_metric_stands_for_the_loss():
    keras.utils.set_random_seed(0)
    model = ListedMetrics()
    model(X)
    sat = compiled(pnn.SATModel(model, rho=0.1))
    got = sat.fit(X, Y, **FIT).history
    assert got.keys() == {"loss", "sharpness"}
    # Its own tracker leaves out the factor 10 of the loss.
    model.compile()
    expected = model.evaluate(X, Y, verbose=0)
    np.testing.assert_allclose(expected, np.mean(model(X).numpy() ** 2), rtol=1e-5)
    np.testing.assert_allclose(sat.evaluate(X, Y, verbose=0), expected, rtol=1e-6)


@pytest.mark.parametrize("readout", ["layers", "output"])
def test_metrics_of_the_models_own_see_the_device(readout):
    model = own_loss()
    (chip,) = pnn.Variation(resonance_shift=0.3).sample(model, 1)
    with chip.installed(model):
        expected = compiled(model).fit(X, Y, **{**FIT, "batch_size": 8, "epochs": 1})
    again = own_loss()
    online = compiled(pnn.PATModel(again, device=chip, readout=readout))
    got = online.fit(X, Y, **{**FIT, "batch_size": 8, "epochs": 1}).history
    for name in ("seen", "squares"):
        np.testing.assert_allclose(got[name], expected.history[name], rtol=1e-5)


def test_a_model_with_a_loss_of_its_own_is_saved(tmp_path):
    sat = compiled(pnn.SATModel(own_loss(compiled=True), rho=0.1), loss="mse")
    sat.fit(X, Y, **FIT)
    sat.save(tmp_path / "sat.keras")
    loaded = keras.saving.load_model(tmp_path / "sat.keras")
    for model in (sat, loaded):
        model.fit(X, Y, **FIT)
    assert_same(sat.variables, loaded.variables)


@pytest.mark.parametrize(
    "name",
    [
        *("train_step", "test_step", "predict_step"),
        *("compute_metrics", "get_metrics_result"),
    ],
)
def test_steps_of_the_models_own_are_refused(name):
    own = {name: lambda self, *args, **kwargs: {}}
    model = type("Own", (keras.Sequential,), own)([keras.Input((2,))])
    with pytest.raises(ValueError, match=f"Received: .* of Own, .* overrides {name}$"):
        pnn.SATModel(model, perturb="all")
    with pytest.raises(ValueError, match="SATModel, which overrides train_step"):
        pnn.SATModel(pnn.SATModel(bank()))


@pytest.mark.parametrize("trainer", [pnn.SATModel, pnn.PATModel, pnn.DATModel])
def test_summary_shows_the_network_inside(trainer):
    model, lines = online(trainer, hardware=False), []
    model.summary(print_fn=lines.append)
    start = f"<{trainer.__name__} name={trainer.__name__[:3].lower()}_"
    assert lines[0] == repr(model) and lines[0].startswith(start)
    written = "\n".join(map(str, lines))
    assert "bank (MRRBank)" in written and "device=<SimulatedDevice" in written


def test_a_strategy_of_several_machines_is_refused(monkeypatch):
    class Several(tf.distribute.MultiWorkerMirroredStrategy):
        """A real one must be made before anything else is computed."""

        num_replicas_in_sync = 2

        def __init__(self):
            pass

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    monkeypatch.setattr(keras.Model, "distribute_strategy", Several())
    with pytest.raises(ValueError, match=r"outside `MultiWorkerMirroredStrategy`.*Use"):
        pnn.SATModel(model, rho=0.1)
