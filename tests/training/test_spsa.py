"""Gradients from losses alone: what they estimate, and what they need."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import LOSS, Bench, assert_same, bank, mesh, numbers, ring_chip

import keras_pnn as pnn
from keras_pnn.layers.context import Overrides

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype("float32")
Y = RNG.normal(size=(8, 2)).astype("float32")
BATCH = (tf.constant(X), tf.constant(Y), None)


def linear(source, seed=0, units=2, dtype="float32", **kwargs):
    """A linear layer under a quadratic loss, whose gradient is known."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), dtype=dtype)
    dense = keras.layers.Dense(units, use_bias=False, dtype=dtype)
    model = keras.Model(inputs, dense(inputs))
    kwargs = {"ascent": None, **kwargs}
    trainer = pnn.SATModel(model, gradient=source, seed=seed, **kwargs)
    trainer.compile(keras.optimizers.SGD(0.05), keras.losses.MeanSquaredError())
    return trainer


def exact_gradient(trainer):
    kernel = trainer.trainable_variables[0].numpy().astype("float64")
    return 2 / Y.size * X.T.astype("float64") @ (X @ kernel - Y)


def estimate(trainer, index=0):
    source, wrt = trainer.gradient, trainer.trainable_variables
    return source(trainer, BATCH, Overrides(), wrt, index).gradients[0].numpy()


# One estimate.


@pytest.mark.parametrize("step", [0.01, 1.0])
def test_the_directional_derivative_of_a_quadratic_is_exact(step):
    """Central differences have no error there, whatever the step."""
    trainer = linear(pnn.SPSA(step))
    found = estimate(trainer)
    slope = found.flat[0] if found.flat[0] else 0.0
    signs = found / slope
    # One number times signs: ± the slope along them.
    np.testing.assert_allclose(np.abs(signs), 1.0, rtol=1e-6)
    along = np.sum(exact_gradient(trainer) * signs)
    np.testing.assert_allclose(slope, along, rtol=1e-6 + 2e-5 / step)


def test_the_mean_approaches_the_gradient():
    trainer = linear(pnn.SPSA(0.1, directions=100))
    exact, found = exact_gradient(trainer), estimate(trainer)
    # Each element has the variance of the sum of squares of all others.
    error = np.sqrt(np.sum(exact**2) / 100)
    assert np.abs(found - exact).max() < 4 * error < np.abs(exact).max()
    single = estimate(linear(pnn.SPSA(0.1)))
    assert np.abs(single - exact).max() > np.abs(found - exact).max()


def test_estimates_depend_on_seed_step_and_pass():
    # Several directions: one of six signs may come twice.
    trainer, again, other = (linear(pnn.SPSA(0.1, 4), seed) for seed in (0, 0, 1))
    first = estimate(trainer)
    np.testing.assert_array_equal(first, estimate(again))
    trainer.optimizer.build(trainer.trainable_variables)
    seen = [first, estimate(other), estimate(trainer, 1)]
    trainer.optimizer.iterations.assign(1)
    seen.append(estimate(trainer))
    assert len({s.tobytes() for s in seen}) == 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_step_may_follow_a_schedule(dtype):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1, 2], [0.1, 0.4, 0.2]
    )
    seen = []

    class Recorded(pnn.SPSA):
        def loss(self, trainer, batch, overrides):
            seen.append(list(overrides.values())[-1].numpy())
            return super().loss(trainer, batch, overrides)

    trainer = linear(Recorded(schedule), dtype=dtype)
    trainer.optimizer.build(trainer.trainable_variables)
    for iteration, step in enumerate((0.1, 0.1, 0.4, 0.2)):
        trainer.optimizer.iterations.assign(iteration)
        found = estimate(trainer)
        plus, minus = seen[-2:]
        np.testing.assert_allclose(np.abs(plus - minus), 2 * step, rtol=1e-4)
        assert found.dtype == dtype
        signs = np.sign(plus - minus)
        along = np.sum(exact_gradient(trainer) * signs)
        np.testing.assert_allclose(found, along * signs, rtol=1e-3)


# Training.


def test_it_trains_a_black_box():
    model = bank(use_bias=False)
    chip, layer = ring_chip(model), model.layers[1]
    controls = {n: np.array(v) + 0.05 for n, v in layer.controls.items()}
    target = chip.measure(layer, tf.constant(X[:, :2]), controls).numpy()
    box = Bench(chip)
    source = pnn.SPSA(step=0.01, directions=2)
    online = pnn.SATModel(model, ascent=None, device=box, gradient=source)
    online.compile(keras.optimizers.Adam(0.01), "mse")
    options = {"batch_size": 8, "epochs": 40, "verbose": 0}
    losses = online.fit(X[:, :2], target, **options).history["loss"]
    assert losses[-1] < 0.2 * losses[0]
    # One pass, and two for each direction.
    assert box.calls == 40 * 5


@pytest.mark.parametrize("eagerly", [True, False])
def test_a_failure_in_any_pass_changes_nothing(eagerly):
    """Statistics too, which the first pass would update."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    x = pnn.layers.MRRBank(2, use_bias=False, name="bank")(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization()(x))
    box = Bench(ring_chip(model))
    source = pnn.SPSA(0.05, directions=3)
    online = pnn.SATModel(model, ascent=None, device=box, gradient=source)
    online.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=eagerly)
    online.train_on_batch(X[:, :2], Y)
    before = numbers(model.variables)
    for breaks in (2, 3, 7):
        box.breaks = box.calls + breaks
        with pytest.raises(Exception, match="no light"):
            online.train_on_batch(X[:, :2], Y)
        assert_same(before, model.variables)
    box.breaks = None
    online.train_on_batch(X[:, :2], Y)
    after = numbers(model.variables)
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


def test_all_passes_see_the_same_masks():
    """With dropout and noise, a difference of losses is that of the controls."""
    inputs = keras.Input((3,))
    keras.utils.set_random_seed(0)
    x = keras.layers.Dropout(0.5)(inputs)
    outputs = keras.layers.Dense(2, use_bias=False)(x)
    trainer = pnn.SATModel(
        keras.Model(inputs, outputs), ascent=None, gradient=pnn.SPSA(1e-2)
    )
    trainer.compile("sgd", "mse")
    found = estimate(trainer)
    # Other masks would give differences of 1, over 2e-2.
    assert np.abs(found).max() < 5


def test_with_an_ascent():
    trainer = linear(pnn.SPSA(0.1), ascent=pnn.SAM(0.3), perturb="all")
    kernel = trainer.trainable_variables[0]
    first = estimate(trainer)
    start = kernel.numpy()
    worst = start + 0.3 * first / np.sqrt(np.sum(first**2))
    kernel.assign(worst)
    expected = start - 0.05 * estimate(trainer, index=1)
    kernel.assign(start)
    trainer.compile(keras.optimizers.SGD(0.05), "mse", run_eagerly=True)
    logs = trainer.train_on_batch(X, Y, return_dict=True)
    np.testing.assert_allclose(kernel.numpy(), expected, atol=1e-4)
    assert logs["sharpness"] > 0


@pytest.mark.parametrize("name", ["theta", "theta_error"])
def test_slots_without_a_cell_do_not_move(name):
    model = mesh()
    trainer = pnn.SATModel(model, ascent=None, gradient=pnn.SPSA(0.1))
    trainer.compile("sgd", LOSS)
    trainer.optimizer.build(trainer.trainable_variables)
    quantity = model.layers[1].quantity(name)
    batch = tf.ones((2, 4)), tf.constant([0, 1]), None
    wrt = [quantity.variable]
    (found,) = trainer.gradient(trainer, batch, Overrides(), wrt).gradients
    np.testing.assert_array_equal(found.numpy() != 0, quantity.exists)
