"""Dual adaptive training: what the error networks learn, and what they leave alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import (
    FIT,
    LOSS,
    Bench,
    assert_same,
    bank,
    banks,
    mesh,
    mesh_chip,
    moved,
    numbers,
    policy,
    powers,
    ring_chip,
)

import keras_pnn as pnn
from keras_pnn.layers.context import Overrides
from keras_pnn.layers.lookup import physical_layers
from keras_pnn.training.dat.model import DualAdaptive
from keras_pnn.training.gradients.base import Batch

X, Y = powers()
FIT = {**FIT, "epochs": 1}


pytestmark = pytest.mark.usefixtures("small_error_networks")


def chip(scale=0.5, meshes=1):
    return mesh_chip(scale, meshes)


def dat(model, device, rate=0.1, error_rate=None, eagerly=True, **kwargs):
    """Run eagerly: tracing error networks takes longer than a few steps.

    Adam learns faster, and takes longer for each step.
    """
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    if error_rate is not None:
        optimizer = keras.optimizers.Adam(error_rate)
    kwargs = {"error_networks": 1, "error_optimizer": optimizer, **kwargs}
    trainer = pnn.DATModel(model, device, **kwargs)
    trainer.compile(keras.optimizers.SGD(rate), LOSS, run_eagerly=eagerly)
    return trainer


def learner(fields):
    """Without error networks: for what is computed from outputs alone."""
    return DualAdaptive(None, True, fields, compare="states", correcting=True)


def errors_of(trainer):
    return trainer.gradient.errors


def test_graph_and_eager_agree():
    # One after the other: S starts from the same numbers.
    def of(eagerly):
        sgd = keras.optimizers.SGD(0.1)
        return dat(mesh(), chip(), eagerly=eagerly, error_optimizer=sgd)

    trainer, other = of(True), of(False)
    one, two = (t.fit(X, Y, **FIT).history for t in (trainer, other))
    np.testing.assert_allclose(one["error_loss"], two["error_loss"], rtol=1e-4)
    assert_same(numbers(trainer.model.variables), numbers(other.model.variables), 1e-5)
    mine, theirs = (numbers(errors_of(t).variables) for t in (trainer, other))
    assert_same(mine, theirs, 1e-4)


# A device that differs.


@pytest.mark.parametrize(
    ("internal_states", "fields", "compare", "error_epochs"),
    [
        (True, True, "states", None),
        (True, False, "states", 8),
        (False, False, "outputs", None),
    ],
)
def test_the_errors_are_learned(internal_states, fields, compare, error_epochs):
    model = mesh()
    device = chip()
    given = {"internal_states": internal_states, "fields": fields}
    given = {**given, "compare": compare, "error_epochs": error_epochs}
    trainer = dat(model, device, 0.0, 0.05, **given)
    layer = model.layers[1]
    device.attach(model)
    measured = device.measure(layer, tf.constant(X), layer.current_values()[0])

    def distance():
        predicted = errors_of(trainer).corrected(layer, layer(X), training=True)
        difference = predicted - measured
        if not fields:
            difference = tf.abs(predicted) - tf.abs(measured)
        if compare == "outputs":
            # Only the intensities at three ports were seen.
            difference = (tf.abs(predicted) ** 2 - tf.abs(measured) ** 2)[:, :3]
        return float(tf.reduce_mean(tf.abs(difference) ** 2))

    start = distance()
    options = {**FIT, "epochs": 8, "batch_size": 8}
    misfits = trainer.fit(X, Y, **options).history["error_loss"]
    np.testing.assert_allclose(misfits[0], start, rtol=1e-4)
    assert misfits[-1] < 0.5 * misfits[0]
    assert distance() < 0.5 * start


def test_fusion_by_hand():
    measured = tf.constant([[3.0j, -2.0, 5.0, 0.0]], "complex64")
    predicted = tf.constant([[1.0 + 1.0j, 4.0j, 0.0, 2.0j]], "complex64")
    source = learner(fields=False)
    # Amplitudes 3, 2, 5, 0; phases π/4, π/2, none: 0, π/2.
    expected = [[3.0 * np.exp(0.25j * np.pi), 2.0j, 5.0, 0.0]]
    np.testing.assert_allclose(source._fused(measured, predicted), expected, atol=1e-6)
    whole = learner(fields=True)
    np.testing.assert_array_equal(whole._fused(measured, predicted), measured)
    real = tf.constant([[1.0, -2.0]])
    np.testing.assert_array_equal(source._fused(real, -real), real)
    # (3 − √2)² + (2 − 4)² + (5 − 0)² + (0 − 2)², over four.
    misfit = ((3 - 2**0.5) ** 2 + 4 + 25 + 4) / 4
    np.testing.assert_allclose(source._misfit(predicted, measured), misfit, rtol=1e-6)
    misfit = (1 + 4 + 4 + 16 + 25 + 4) / 4
    np.testing.assert_allclose(whole._misfit(predicted, measured), misfit, rtol=1e-6)


@pytest.fixture
def double():
    with policy("float64"):
        yield


@pytest.mark.parametrize("compare", ["outputs", "states"])
@pytest.mark.parametrize("stage", ["error_epochs", "correct_from"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_gradients_at_the_fused_states(compare, epochs, stage, double):
    """Of the model alone in the first epoch; then of model and S, fixed or not."""
    model = mesh()
    device = chip()
    trainer = dat(model, device, 0.0, compare=compare, **{stage: 1})
    trainer.fit(X, Y, **{**FIT, "epochs": epochs})
    layer = model.layers[1]
    theta = layer.controls["theta"]
    batch = (tf.constant(X), tf.constant(Y), None)
    (found,) = trainer.gradient(trainer, batch, Overrides(), [theta]).gradients
    with tf.GradientTape() as tape:
        predicted = layer(X)
        if epochs == 2:
            learning = stage == "correct_from"
            predicted = errors_of(trainer).corrected(layer, predicted, learning)
        measured = device.measure(layer, tf.constant(X), layer.current_values()[0])
        fused = trainer.gradient._fused(measured, predicted)
        # The value of one, the derivative of the other.
        state = predicted + tf.stop_gradient(fused - predicted)
        loss = LOSS(Y, model.layers[2](state))
    expected = tape.gradient(loss, theta.value)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("error_epochs", [None, 1])
def test_the_step_of_the_errors_by_differences(error_epochs, double):
    """Of the mean square of the outputs; the network's own gradient has no part."""
    given = {"error_epochs": error_epochs, "error_networks": 2}
    options = {**FIT, "batch_size": 8}

    def misfit(change=0.0, rate=0.0):
        error_optimizer = keras.optimizers.SGD(rate)
        trainer = dat(mesh(), chip(), 0.0, error_optimizer=error_optimizer, **given)
        own = errors_of(trainer).trainable
        for v, start, way in zip(own, weights, direction, strict=True):
            v.assign(start + change * way)
        (loss,) = trainer.fit(X, Y, **options).history["error_loss"]
        return loss, own

    theirs = errors_of(dat(mesh(), chip(), **given)).trainable
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=v.shape) for v in theirs]
    direction = [rng.normal(size=v.shape) for v in theirs]
    _, stepped = misfit(rate=1.0)
    slope = sum(
        np.sum((start - v.numpy()) * way)
        for v, start, way in zip(stepped, weights, direction, strict=True)
    )
    expected = (misfit(1e-5)[0] - misfit(-1e-5)[0]) / 2e-5
    # The log of the misfit is in single precision.
    np.testing.assert_allclose(slope, expected, rtol=5e-3)
    assert abs(slope) > 1e-4


# A device on the bench.


@pytest.mark.parametrize(("compare", "done"), [("outputs", 4), ("states", 2)])
def test_a_run_goes_on_after_its_device_failed(compare, done, tmp_path):
    """In the middle of an epoch of either stage: nothing is lost or done twice."""

    def trainer_on(breaks):
        model = mesh()
        bench = Bench(chip().attach(model), breaks)
        return dat(model, bench, error_epochs=1, compare=compare)

    def train(trainer):
        checkpoint = pnn.callbacks.Checkpoint(tmp_path / "state", every=1)
        options = {**FIT, "batch_size": 3, "epochs": 2}
        trainer.fit(X, Y, **options, callbacks=[checkpoint])

    whole = trainer_on(None)
    train(whole)
    # Three steps an epoch: after some of one.
    broken = trainer_on(done + 1)
    with pytest.raises(pnn.DeviceError, match="no light"):
        train(broken)
    rest = trainer_on(None)
    train(rest)
    assert (whole.device.calls, rest.device.calls) == (6, 6 - done)
    assert int(errors_of(rest).optimizer.iterations.numpy()) == 3
    for of in (lambda t: t.variables, lambda t: errors_of(t).variables):
        assert_same(of(rest), of(whole))


# Who steps what.


def test_error_networks_have_an_optimizer_of_their_own():
    model = mesh()
    trainer = dat(model, chip(), 0.1, 0.01, error_networks=2, error_epochs=1)
    assert len(trainer.error_models) == 1
    theirs = {id(v) for v in errors_of(trainer).variables}
    assert theirs and not theirs & {id(v) for v in trainer.variables}
    assert len(trainer.trainable_variables) == len(model.trainable_variables)
    start = numbers(errors_of(trainer).trainable)
    logs = trainer.fit(X, Y, **FIT).history
    learned = numbers(errors_of(trainer).variables)
    assert max(moved(start, errors_of(trainer).trainable)) > 1e-3
    assert len(trainer.optimizer.variables) < 8
    # The second stage: S is kept, statistics and optimizer included.
    before = numbers(model.trainable_variables)
    options = {**FIT, "epochs": 3, "initial_epoch": 1}
    later = trainer.fit(X, Y, **options).history
    assert_same(learned, numbers(errors_of(trainer).variables))
    assert max(moved(before, model.trainable_variables)) > 1e-4
    assert logs["error_loss"][0] > 0 and later["error_loss"][-1] > 0
    # A fit from the beginning learns again.
    trainer.fit(X, Y, **FIT)
    again = numbers(errors_of(trainer).variables)
    assert any((a != b).any() for a, b in zip(learned, again, strict=True))


@pytest.mark.parametrize("internal_states", [True, False])
def test_a_linear_error_gives_digital_layers_the_derivative_of_the_device(
    internal_states,
):
    """But not the phases: S knows what leaves the mesh, and not what happens inside."""
    keras.utils.set_random_seed(0)
    x = layers.Dense(4)(inputs := keras.Input((4,)))
    fields = pnn.layers.MZIMesh(4)(x)
    model = keras.Model(inputs, pnn.layers.Photodetector(ports=3)(fields))
    inside = keras.Model(inputs, fields)
    options = {"error_networks": "linear", "internal_states": internal_states}
    trainer = dat(model, chip(), **options)
    mesh_of = physical_layers(model)[0]
    wrt = [model.layers[1].kernel, mesh_of.controls["theta"]]

    def derivatives():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(trainer.compute_loss(y=Y, y_pred=model(X)))
        return tape.gradient(loss, [v.value for v in wrt])

    modelled = inside(X)
    with chip().attach(model).installed(model):
        measured, (digital, phases) = inside(X), derivatives()
    assert np.abs(derivatives()[0] - digital).max() > 1e-2
    matrix = np.linalg.lstsq(modelled, measured - modelled, rcond=None)[0]
    trainer.error_models[0].matrix.assign([matrix.real, matrix.imag])
    batch = Batch((tf.constant(X), tf.constant(Y), None))
    found = trainer.gradient(trainer, batch, Overrides(), wrt, index=1).gradients
    np.testing.assert_allclose(found[0], digital, rtol=1e-3, atol=1e-5)
    assert np.abs(found[1] - phases).max() > 0.1 * np.abs(phases).max()


@pytest.mark.parametrize("make", [mesh, bank])
def test_a_linear_error_is_learned(make):
    model = make()
    device = chip() if make is mesh else ring_chip(model)
    width = model.input_shape[-1]
    kwargs = {"error_networks": "linear", "compare": "states"}
    trainer = dat(model, device, 0.0, 0.03, **kwargs, eagerly=False)
    classes = Y % model.output_shape[-1]
    logs = trainer.fit(X[:, :width], classes, **{**FIT, "epochs": 40}).history
    assert logs["error_loss"][-1] < 0.2 * logs["error_loss"][0]


def test_an_ascent_teaches_the_errors_once():
    trainer = dat(mesh(), chip(), ascent=pnn.SAM(0.3))
    logs = trainer.fit(X, Y, **FIT).history
    assert int(errors_of(trainer).optimizer.iterations.numpy()) == 2
    assert np.isfinite(logs["sharpness"][0]) and logs["sharpness"][0] != 0


def test_both_passes_of_an_ascent_are_fused():
    """The phases between two meshes are the model's, as in the first pass."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = pnn.layers.MZIMesh(4)(pnn.layers.MZIMesh(4)(inputs))
    model = keras.Model(inputs, pnn.layers.Photodetector(ports=3)(x))
    trainer = dat(model, chip(meshes=2), ascent=pnn.ESAM(1e-6, beta=1, gamma=0.5))
    logs = trainer.train_on_batch(X, Y, return_dict=True)
    assert abs(logs["sharpness"]) < 1e-4


@pytest.mark.parametrize("internal_states", [True, False])
def test_layers_that_are_not_on_the_device_have_no_errors(internal_states):
    class Partial:
        def measure(self, layer, inputs, controls):
            if layer.name != "first":
                return None
            return 1.1 * layer.forward(inputs, controls, layer.current_values()[1])

    trainer = dat(banks(), Partial(), internal_states=internal_states)
    trainer.train_on_batch(X, Y)
    before = [numbers(n.trainable_variables) for n in trainer.error_models]
    trainer.train_on_batch(X, Y)
    first, second = (
        max(moved(start, network.trainable_variables))
        for start, network in zip(before, trainer.error_models, strict=True)
    )
    assert first > 0 and second == 0


@pytest.mark.parametrize("kind", ["DATModel", "FeedbackAlignment"])
def test_layers_of_unknown_size_are_refused(kind):
    inputs = keras.Input((None, 2))
    x = pnn.layers.MRRBank(3)(pnn.layers.MRRBank(3)(inputs))
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(x))
    with pytest.raises(ValueError, match=f"{kind} needs .*Received: shape .None, None"):
        if kind == "DATModel":
            pnn.DATModel(model, chip())
        source = pnn.FeedbackAlignment()
        device = pnn.SimulatedDevice({})
        trainer = pnn.SATModel(model, ascent=None, device=device, gradient=source)
        trainer.compile("sgd", LOSS)
        series = tf.TensorSpec((None, None, 2))
        step = tf.function(lambda *data: trainer.train_step(data), autograph=False)
        step.get_concrete_function(series, tf.TensorSpec((None,), "int32"))


def test_errors_that_are_used_go_on_learning():
    def learned(epochs, **given):
        trainer = dat(mesh(), chip(), 0.1, 0.01, correct_from=1, **given)
        trainer.fit(X, Y, **{**FIT, "epochs": epochs})
        return numbers(errors_of(trainer).trainable)

    after_one, after_two = learned(1), learned(2)
    assert any((a != b).any() for a, b in zip(after_one, after_two, strict=True))
    # Until `error_epochs` are over.
    assert_same(learned(3, error_epochs=2), after_two)


class Jump:
    """0 in the first epoch of two batches, then 3."""

    def at(self, step, seed):
        return 3.0 * (step >= 2)


def test_drift_goes_on_when_the_second_stage_begins():
    def losses(*callbacks):
        model = mesh(loss_db=4.0)
        # Compiled: the second stage is traced anew, in between.
        trainer = dat(model, chip(0.0), 0.0, 0.0, eagerly=False, error_epochs=1)
        options = {**FIT, "epochs": 2, "callbacks": list(callbacks)}
        return trainer.fit(X, Y, **options).history

    drifting = pnn.callbacks.DriftInjection("loss_db", Jump())
    logs = losses(drifting)
    assert logs["drift_loss_db"] == [0.0, 3.0]
    model = mesh(loss_db=4.0)
    model.compile(loss=LOSS, run_eagerly=True)
    for epoch, loss_db in enumerate((4.0, 7.0)):
        model.layers[1].imperfections["loss_db"].assign(np.full((4, 2), loss_db))
        expected = model.evaluate(X, Y, batch_size=4, verbose=0)
        np.testing.assert_allclose(logs["loss"][epoch], expected, rtol=1e-5)
    assert logs["loss"][0] != pytest.approx(logs["loss"][1], rel=1e-3)


# Saving; real layers; bad arguments.


def test_weights_of_other_error_networks_are_refused():
    trainer = dat(mesh(), chip())
    with pytest.raises(ValueError, match=r"variables of error networks.*Received: 1"):
        trainer.load_own_variables({"error_0": 0})


def test_a_model_that_is_not_built():
    model = keras.Sequential([pnn.layers.MRRBank(3)])
    device = ring_chip(bank(4, 3))
    trainer = dat(model, device)
    assert trainer.error_models == []
    trainer.fit(X, Y, **FIT)
    assert len(trainer.error_models) == 1


@pytest.mark.parametrize(
    ("dtype", "internal_states"), [("mixed_float16", True), ("mixed_bfloat16", False)]
)
def test_half_precision(dtype, internal_states):
    def misfits():
        model = bank(4, 3)
        device = ring_chip(model)
        trainer = dat(model, device, 0.0, 0.01, internal_states=internal_states)
        options = {**FIT, "epochs": 4, "batch_size": 8}
        return trainer.fit(X, Y, **options).history["error_loss"]

    expected = misfits()
    with policy(dtype):
        found = misfits()
    assert expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_small_misfits_count_in_half_precision():
    """The square of 1e-4 is 0 in float16."""
    source = learner(fields=False)
    predicted = tf.constant([1e-4, -1e-4], "float16")
    misfit = source._misfit(predicted, tf.zeros(2, "float16"))
    np.testing.assert_allclose(misfit, 1e-8, rtol=1e-2)


def test_an_optimizer_by_name():
    trainer = pnn.DATModel(mesh(), chip(), 1, error_optimizer="sgd")
    assert isinstance(errors_of(trainer).optimizer, keras.optimizers.SGD)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"error_networks": 0}, "`error_networks` must be"),
        ({"error_networks": "matrix"}, "must be an integer ≥ 1 or 'linear'"),
        ({"error_epochs": -1}, "`error_epochs` must be"),
        ({"correct_from": -1}, "`correct_from` must be"),
        (
            {"error_epochs": 1, "correct_from": 2},
            r"the 1 `error_epochs`\. Received: 2",
        ),
        ({"internal_states": "no"}, "`internal_states` must be True or False"),
        (
            {"internal_states": False, "compare": "states"},
            "'outputs' without internal states",
        ),
        ({"fields": "no"}, "`fields` must be True or False"),
        ({"compare": "fields"}, "`compare`"),
        ({"device": None}, "needs a device"),
        ({"device": 3}, "with a method measure"),
        ({"error_optimizer": "none such"}, "none such"),
    ],
)
def test_bad_arguments(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        pnn.DATModel(mesh(), **{"device": chip(), **arguments})
