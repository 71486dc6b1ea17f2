"""What every trainer refuses and saves where there is a device."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pnn as pnn

X = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
Y = np.random.default_rng(1).normal(size=(8, 2)).astype("float32")


class Bench(pnn.HardwareDevice):
    """A simulated chip behind NumPy."""

    def __init__(self, simulated):
        super().__init__()
        self.simulated = simulated

    def measure(self, layer, inputs, controls):
        return self.simulated.measure(layer, tf.constant(inputs), controls).numpy()


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    return keras.Model(inputs, pnn.layers.MRRBank(2, name="bank")(inputs))


def online(trainer=pnn.PATModel, hardware=True, **kwargs):
    model = network()
    (chip,) = pnn.Variation(resonance_shift=0.1).sample(model, 1)
    device = Bench(chip.attach(model)) if hardware else chip
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


def test_a_simulated_device_is_a_graph():
    model = online(hardware=False)
    model.compile("sgd", "mse", jit_compile=True, steps_per_execution=2)
    assert model.jit_compile is True and not model.on_bench


def test_several_replicas_are_refused():
    cpus = tf.config.list_logical_devices("CPU")
    if len(cpus) < 2:
        pytest.skip("one logical device")
    with tf.distribute.MirroredStrategy([cpu.name for cpu in cpus[:2]]).scope():
        model = online()
        with pytest.raises(ValueError, match="Received: 2 replicas"):
            model.compile("sgd", "mse")


def test_save_and_export_give_the_digital_model(tmp_path):
    model = online()
    model.compile("sgd", "mse", run_eagerly=True)
    model.train_on_batch(X, Y)
    calls = model.device.calls
    expected = model.model(X).numpy()
    model.save(tmp_path / "digital.keras")
    loaded = keras.saving.load_model(tmp_path / "digital.keras")
    assert type(loaded) is keras.Model or "Functional" in type(loaded).__name__
    np.testing.assert_array_equal(loaded(X), expected)
    model.export(tmp_path / "digital", verbose=False)
    served = tf.saved_model.load(tmp_path / "digital")
    np.testing.assert_allclose(served.serve(X), expected, atol=1e-6)
    with pytest.raises(ValueError, match="has no config"):
        model.get_config()
    # Neither measured.
    assert model.device.calls == calls


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
        pytest.raises(ValueError, match="no second derivative"),
        model.device.installed(model),
    ):
        pnn.hessian_eigenvalues(model, X, Y)
    operator = pnn.analysis.HessianOperator(model, X, Y)
    with (
        pytest.raises(ValueError, match="no second derivative"),
        model.device.installed(model.model),
    ):
        operator.matvec(np.ones(operator.size))
    # Nothing was measured, and nothing is left of it.
    assert model.device.calls == 0
    again = pnn.hessian_eigenvalues(model, X, Y)
    np.testing.assert_allclose(again.eigenvalues, expected.eigenvalues, rtol=1e-6)
    assert np.isfinite(operator.matvec(np.ones(operator.size))).all()


def test_model_must_be_a_model():
    with pytest.raises(ValueError, match="`model` must be a keras"):
        pnn.PATModel(keras.layers.Dense(3), device=None)
