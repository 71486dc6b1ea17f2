"""Dual adaptive training: what the error networks learn, and what they leave alone."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_pnn as pnn
from keras_pnn.training.dat import model as dual
from keras_pnn.training.dat.error_networks import ErrorNetwork
from keras_pnn.training.dat.model import DualAdaptive, ErrorModels

RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 1.0, size=(8, 4)).astype("float32")
Y = RNG.integers(0, 3, 8)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FIT = {"batch_size": 4, "epochs": 1, "shuffle": False, "verbose": 0}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One scale instead of three: the U-Nets themselves are tested elsewhere."""
    one_scale = functools.partial(ErrorNetwork, widths=(4,))
    monkeypatch.setattr(dual, "ErrorNetwork", one_scale)


def mesh():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = pnn.layers.Photodetector()(pnn.layers.MZIMesh(4)(inputs))
    x = layers.Dropout(0.3)(layers.BatchNormalization(momentum=0.5)(x))
    x = pnn.layers.Photodetector(ports=3)(pnn.layers.MZIMesh(4)(x))
    return keras.Model(inputs, x)


def one_mesh(**kwargs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = pnn.layers.MZIMesh(4, **kwargs)(inputs)
    return keras.Model(inputs, pnn.layers.Photodetector(ports=3)(x))


def bank():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    return keras.Model(inputs, pnn.layers.MRRBank(3)(inputs))


def chip(scale=0.5, meshes=1):
    """A device for meshes; with scale=0 one that equals the model."""
    rng = np.random.default_rng(3)
    return pnn.SimulatedDevice(
        {
            (name, i): scale * rng.normal(size=(4, 2)).astype("float32")
            for name in ("theta_error", "phi_error")
            for i in range(meshes)
        }
    )


def dat(model, device, rate=0.1, error_rate=0.01, eagerly=True, **kwargs):
    """Run eagerly: tracing error networks takes longer than a few steps."""
    optimizer = keras.optimizers.Adam(error_rate)
    kwargs = {"error_networks": 1, "error_optimizer": optimizer, **kwargs}
    trainer = pnn.DATModel(model, device, **kwargs)
    trainer.compile(keras.optimizers.SGD(rate), LOSS, run_eagerly=eagerly)
    return trainer


def numbers(variables):
    return [np.array(v) for v in variables]


def errors_of(trainer):
    return trainer.gradient.errors


def assert_equal(one, other, atol=0.0):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# A device that equals the model.


@pytest.mark.parametrize("internal_states", [True, False])
def test_an_equal_device_is_plain_training(internal_states):
    plain, model = mesh(), mesh()
    plain.compile(keras.optimizers.SGD(0.1), LOSS, run_eagerly=True)
    device = chip(0.0, meshes=2)
    trainer = dat(model, device, internal_states=internal_states)
    before = numbers(model.trainable_variables)
    # Two steps: S stays 0 where it has nothing to learn.
    expected = plain.fit(X, Y, **FIT).history
    logs = trainer.fit(X, Y, **FIT).history
    assert_equal(numbers(plain.variables), numbers(model.variables), 1e-6)
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-6)
    assert logs["error_loss"][0] < 1e-12
    after = numbers(model.trainable_variables)
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 1e-4


def test_graph_and_eager_agree():
    # One after the other: S starts from the same numbers.
    sgd = {"error_optimizer": keras.optimizers.SGD(0.1)}
    trainer = dat(one_mesh(), chip(), **sgd)
    sgd = {"error_optimizer": keras.optimizers.SGD(0.1)}
    other = dat(one_mesh(), chip(), eagerly=False, **sgd)
    one, two = (t.fit(X, Y, **FIT).history for t in (trainer, other))
    np.testing.assert_allclose(one["error_loss"], two["error_loss"], rtol=1e-4)
    assert_equal(numbers(trainer.model.variables), numbers(other.model.variables), 1e-5)
    mine, theirs = (numbers(errors_of(t).variables) for t in (trainer, other))
    assert_equal(mine, theirs, 1e-4)


# A device that differs.


@pytest.mark.parametrize(
    ("internal_states", "fields"), [(True, True), (True, False), (False, False)]
)
def test_the_errors_are_learned(internal_states, fields):
    model = one_mesh()
    device = chip()
    given = {"internal_states": internal_states, "fields": fields}
    trainer = dat(model, device, 0.0, eagerly=False, **given)
    layer = model.layers[1]
    device.attach(model)
    measured = device.measure(layer, tf.constant(X), layer.current_values()[0])

    def distance():
        predicted = errors_of(trainer).corrected(layer, layer(X), training=True)
        difference = predicted - measured
        if not fields:
            difference = tf.abs(predicted) - tf.abs(measured)
        if not internal_states:
            # Only the intensities at three ports were seen.
            difference = (tf.abs(predicted) ** 2 - tf.abs(measured) ** 2)[:, :3]
        return float(tf.reduce_mean(tf.abs(difference) ** 2))

    start = distance()
    options = {**FIT, "epochs": 20, "batch_size": 8}
    misfits = trainer.fit(X, Y, **options).history["error_loss"]
    np.testing.assert_allclose(misfits[0], start, rtol=1e-4)
    assert misfits[-1] < 0.5 * misfits[0]
    assert distance() < 0.5 * start


@pytest.mark.parametrize("internal_states", [True, False])
def test_loss_and_outputs_are_those_of_the_device(internal_states):
    model = one_mesh()
    device = chip()
    trainer = dat(model, device, 0.0, internal_states=internal_states)
    ideal = trainer.evaluate(X, Y, verbose=0)
    with device.installed(model):
        expected = trainer.evaluate(X, Y, verbose=0)
    logs = trainer.fit(X, Y, **{**FIT, "batch_size": 8}).history
    np.testing.assert_allclose(logs["loss"], [expected], rtol=1e-5)
    assert abs(expected - ideal) > 1e-2
    assert "error_loss" not in trainer.evaluate(X, Y, verbose=0, return_dict=True)


def test_fusion_by_hand():
    measured = tf.constant([[3.0j, -2.0, 5.0, 0.0]], "complex64")
    predicted = tf.constant([[1.0 + 1.0j, 4.0j, 0.0, 2.0j]], "complex64")
    source = DualAdaptive(None, internal_states=True, fields=False)
    # Amplitudes 3, 2, 5, 0; phases π/4, π/2, none: 0, π/2.
    expected = [[3.0 * np.exp(0.25j * np.pi), 2.0j, 5.0, 0.0]]
    np.testing.assert_allclose(source._fused(measured, predicted), expected, atol=1e-6)
    whole = DualAdaptive(None, internal_states=True, fields=True)
    np.testing.assert_array_equal(whole._fused(measured, predicted), measured)
    real = tf.constant([[1.0, -2.0]])
    np.testing.assert_array_equal(source._fused(real, -real), real)
    # (3 − √2)² + (2 − 4)² + (5 − 0)² + (0 − 2)², over four.
    misfit = ((3 - 2**0.5) ** 2 + 4 + 25 + 4) / 4
    np.testing.assert_allclose(source._misfit(predicted, measured), misfit, rtol=1e-6)
    misfit = (1 + 4 + 4 + 16 + 25 + 4) / 4
    np.testing.assert_allclose(whole._misfit(predicted, measured), misfit, rtol=1e-6)


def test_gradients_go_through_the_errors():
    """With a fixed S, DAT's gradient is that of model and S at the fused states."""
    model = one_mesh()
    device = chip()
    trainer = dat(model, device, 0.0, error_epochs=1)
    trainer.fit(X, Y, **{**FIT, "epochs": 2})
    layer = model.layers[1]
    theta = layer.controls["theta"]
    batch = (tf.constant(X), tf.constant(Y), None)
    (found,) = trainer.gradient(trainer, batch, [], [theta]).gradients
    with tf.GradientTape() as tape:
        predicted = errors_of(trainer).corrected(layer, layer(X), training=False)
        measured = device.measure(layer, tf.constant(X), layer.current_values()[0])
        fused = trainer.gradient._fused(measured, predicted)
        # The value of one, the derivative of the other.
        state = predicted + tf.stop_gradient(fused - predicted)
        loss = LOSS(Y, model.layers[2](state))
    expected = tape.gradient(loss, theta.value)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


# A device on the bench.


class Bench(pnn.HardwareDevice):
    """A simulated chip behind NumPy, whose cable comes loose at one call."""

    def __init__(self, chip, model, loose=None):
        super().__init__(retries=0)
        self.chip = chip.attach(model)
        self.loose = loose
        self.done = 0

    def measure(self, layer, inputs, controls):
        self.done += 1
        if self.done == self.loose:
            raise RuntimeError("loose cable")
        return self.chip.measure(layer, tf.constant(inputs), controls).numpy()


@pytest.mark.parametrize("internal_states", [True, False])
def test_a_bench_gives_the_steps_of_the_simulated_chip(internal_states):
    def trained(bench):
        model = mesh()
        device = chip(meshes=2)
        if bench:
            device = Bench(device, model)
        trainer = dat(model, device, internal_states=internal_states)
        trainer.fit(X, Y, **FIT)
        assert not bench or device.done == 4
        return numbers([*trainer.variables, *errors_of(trainer).variables])

    assert_equal(trained(True), trained(False), 1e-6)


def test_a_run_goes_on_after_its_device_failed(tmp_path):
    """In the second stage, in the middle of an epoch: nothing is lost or done twice."""

    def trainer_on(loose):
        model = one_mesh()
        return dat(model, Bench(chip(), model, loose), error_epochs=1)

    def train(trainer):
        checkpoint = pnn.callbacks.Checkpoint(tmp_path / "state", every=1)
        options = {**FIT, "batch_size": 2, "epochs": 3}
        trainer.fit(X, Y, **options, callbacks=[checkpoint])

    whole = trainer_on(None)
    train(whole)
    # Four steps an epoch: in the second one, after two of its steps.
    broken = trainer_on(7)
    with pytest.raises(RuntimeError, match="loose cable"):
        train(broken)
    rest = trainer_on(None)
    train(rest)
    assert (whole.device.done, rest.device.done) == (12, 6)
    assert int(errors_of(rest).optimizer.iterations.numpy()) == 4
    for of in (lambda t: t.variables, lambda t: errors_of(t).variables):
        assert_equal(numbers(of(rest)), numbers(of(whole)))


# Who steps what.


def test_error_networks_have_an_optimizer_of_their_own():
    model = one_mesh()
    trainer = dat(model, chip(), error_networks=2, error_epochs=1)
    assert len(trainer.error_models) == 1
    theirs = {id(v) for v in errors_of(trainer).variables}
    assert theirs and not theirs & {id(v) for v in trainer.variables}
    assert len(trainer.trainable_variables) == len(model.trainable_variables)
    start = numbers(errors_of(trainer).trainable)
    logs = trainer.fit(X, Y, **FIT).history
    learned = numbers(errors_of(trainer).variables)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(start, numbers(errors_of(trainer).trainable), strict=True)
    ]
    assert max(moved) > 1e-3
    assert len(trainer.optimizer.variables) < 8
    # The second stage: S is kept, statistics and optimizer included.
    before = numbers(model.trainable_variables)
    options = {**FIT, "epochs": 3, "initial_epoch": 1}
    later = trainer.fit(X, Y, **options).history
    assert_equal(learned, numbers(errors_of(trainer).variables))
    after = numbers(model.trainable_variables)
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 1e-4
    assert logs["error_loss"][0] > 0 and later["error_loss"][-1] > 0
    # A fit from the beginning learns again.
    trainer.fit(X, Y, **FIT)
    again = numbers(errors_of(trainer).variables)
    assert any((a != b).any() for a, b in zip(learned, again, strict=True))


def test_an_ascent_teaches_the_errors_once():
    trainer = dat(one_mesh(), chip(), ascent=pnn.SAM(0.3))
    logs = trainer.fit(X, Y, **FIT).history
    assert int(errors_of(trainer).optimizer.iterations.numpy()) == 2
    assert np.isfinite(logs["sharpness"][0]) and logs["sharpness"][0] != 0


class Jump:
    """0 in the first epoch of two batches, then 3."""

    def at(self, step, seed):
        return 3.0 * (step >= 2)


def test_drift_goes_on_when_the_second_stage_begins():
    def losses(*callbacks):
        model = one_mesh(loss_db=4.0)
        # Compiled: the second stage is traced anew, in between.
        trainer = dat(model, chip(0.0), 0.0, 0.0, eagerly=False, error_epochs=1)
        options = {**FIT, "epochs": 2, "callbacks": list(callbacks)}
        return trainer.fit(X, Y, **options).history

    drifting = pnn.callbacks.DriftInjection("loss_db", Jump())
    logs = losses(drifting)
    assert logs["drift_loss_db"] == [0.0, 3.0]
    model = one_mesh(loss_db=4.0)
    model.compile(loss=LOSS)
    for epoch, loss_db in enumerate((4.0, 7.0)):
        model.layers[1].imperfections["loss_db"].assign(np.full((4, 2), loss_db))
        expected = model.evaluate(X, Y, batch_size=4, verbose=0)
        np.testing.assert_allclose(logs["loss"][epoch], expected, rtol=1e-5)
    assert logs["loss"][0] != pytest.approx(logs["loss"][1], rel=1e-3)


# Saving; real layers; bad arguments.


def test_weights_round_trip(tmp_path):
    trainer, other = dat(one_mesh(), chip()), dat(one_mesh(), chip())
    trainer.fit(X, Y, **FIT)
    trainer.save_weights(tmp_path / "dat.weights.h5")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "dat.weights.h5")
    for t in (trainer, other):
        t.fit(X, Y, **FIT)
    assert_equal(numbers(trainer.variables), numbers(other.variables))
    mine, theirs = (numbers(errors_of(t).variables) for t in (trainer, other))
    assert_equal(mine, theirs)
    assert int(errors_of(other).optimizer.iterations.numpy()) == 4
    larger = dat(mesh(), chip(meshes=2))
    with pytest.raises(ValueError):
        larger.load_weights(tmp_path / "dat.weights.h5")
    with pytest.raises(ValueError, match=r"variables of error networks.*Received: 1"):
        trainer.load_own_variables({"error_0": 0})


def test_a_model_that_is_not_built():
    model = keras.Sequential([pnn.layers.MRRBank(3)])
    (device,) = pnn.Variation(resonance_shift=0.1).sample(bank(), 1)
    trainer = dat(model, device)
    assert trainer.error_models == []
    trainer.fit(X, Y, **FIT)
    assert len(trainer.error_models) == 1


def test_a_real_layer():
    model = bank()
    (device,) = pnn.Variation(resonance_shift=0.1).sample(model, 1)
    trainer = dat(model, device, 0.0, eagerly=False)
    misfits = trainer.fit(X, Y, **{**FIT, "epochs": 15}).history["error_loss"]
    assert misfits[-1] < 0.7 * misfits[0]


@pytest.mark.parametrize("internal_states", [True, False])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(policy, internal_states):
    def misfits():
        model = bank()
        (device,) = pnn.Variation(resonance_shift=0.1).sample(model, 1)
        trainer = dat(model, device, 0.0, internal_states=internal_states)
        return trainer.fit(X, Y, **{**FIT, "epochs": 4}).history["error_loss"]

    expected = misfits()
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        found = misfits()
    finally:
        keras.mixed_precision.set_global_policy(before)
    assert expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_small_misfits_count_in_half_precision():
    """The square of 1e-4 is 0 in float16."""
    source = DualAdaptive(None, internal_states=True, fields=False)
    predicted = tf.constant([1e-4, -1e-4], "float16")
    misfit = source._misfit(predicted, tf.zeros(2, "float16"))
    np.testing.assert_allclose(misfit, 1e-8, rtol=1e-2)


@pytest.mark.parametrize("internal_states", [True, False])
def test_a_layer_that_the_model_lacks_is_refused(internal_states):
    class Bench(pnn.HardwareDevice):
        def measure(self, layer, inputs, controls):
            raise AssertionError("not reached")

    bench = Bench(layers=["bnak"], retries=0)
    trainer = dat(bank(), bench, internal_states=internal_states)
    with pytest.raises(ValueError, match="Received: bnak"):
        trainer.fit(X, Y, **FIT)
    assert bench.calls == 0


def test_an_optimizer_by_name():
    model = one_mesh()
    errors = ErrorModels({"networks": 1}, keras.optimizers.get("sgd"))
    errors.build(model)
    built = errors.networks
    errors.build(model)
    assert errors.networks is built and len(built) == 1
    trainer = pnn.DATModel(one_mesh(), chip(), 1, error_optimizer="sgd")
    assert isinstance(errors_of(trainer).optimizer, keras.optimizers.SGD)


def test_bad_arguments():
    model = one_mesh()
    for bad in (0, 1.5, "six"):
        with pytest.raises(ValueError, match="`error_networks`"):
            pnn.DATModel(model, chip(), error_networks=bad)
    for bad in (-1, 1.5, True):
        with pytest.raises(ValueError, match="`error_epochs`"):
            pnn.DATModel(model, chip(), error_networks=1, error_epochs=bad)
    for flag in ("internal_states", "fields"):
        with pytest.raises(ValueError, match=f"`{flag}` must be a bool.*'no'"):
            pnn.DATModel(model, chip(), error_networks=1, **{flag: "no"})
    with pytest.raises(ValueError, match="needs a device"):
        pnn.DATModel(model, device=None, error_networks=1)
    with pytest.raises(ValueError, match="must have a method measure"):
        pnn.DATModel(model, device=3, error_networks=1)
    with pytest.raises(ValueError):
        pnn.DATModel(model, chip(), error_networks=1, error_optimizer="none such")
