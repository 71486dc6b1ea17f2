"""One step of each ascent, worked out by hand."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from models import (
    LOSS,
    Bench,
    assert_same,
    bank,
    banks,
    compiled,
    ring_chip,
    samples,
)

import keras_pnn as pnn
from keras_pnn.training import ascent as ascents
from keras_pnn.training.ascent.samples import losses_of
from keras_pnn.training.gradients.base import Batch

X, Y = samples()
SGD = keras.optimizers.SGD
EAGER = {"run_eagerly": True}
KINDS = {
    kind.__name__.lower(): kind
    for kind in (
        *(pnn.SAM, pnn.ASAM, pnn.ESAM, pnn.FriendlySAM),
        *(pnn.GSAM, pnn.LookSAM, pnn.MESA, pnn.SAF),
    )
}


class Quadratic(layers.Layer):
    """Adds L = ½ wᵀ diag(1, 2) w, from w = (3, 2)."""

    def build(self, input_shape):
        start = keras.initializers.Constant([3.0, 2.0])
        self.w = self.add_weight(name="w", shape=(2,), initializer=start)

    def call(self, inputs):
        curvature = ops.convert_to_tensor([1.0, 2.0], "float64")
        self.add_loss(0.5 * ops.sum(curvature * self.w * self.w))
        return inputs


def descended(ascent, steps, rate=0.5, warmup=0, **options):
    """w after each step on the quadratic, and the sharpness of each."""
    inputs = keras.Input((1,), dtype="float64")
    model = keras.Model(inputs, Quadratic(dtype="float64")(inputs))
    sat = pnn.SATModel(model, ascent=ascent, perturb="all", warmup=warmup)
    compiled(sat, SGD(rate), loss=None, **{**EAGER, **options})
    found, sharpness = [], []
    for _ in range(steps):
        sat.reset_metrics()
        logs = sat.train_on_batch(np.zeros((2, 1)), return_dict=True)
        found.append(model.layers[1].w.numpy())
        sharpness.append(float(logs["sharpness"]))
    return np.array(found), sharpness


# g = (3, 4), so that ΔΘ = (0.3, 0.4) for ρ = 0.5 and g_s = (3.3, 4.8).
RISE = 0.5 * (3.3**2 + 2 * 2.4**2) - 0.5 * (3**2 + 2 * 2**2)


@pytest.mark.parametrize(
    ("ascent", "step"),
    [
        (pnn.SAM(0.5), [0.3, 0.4]),
        # T = (3, 2), T g = (9, 8) and T² g = (27, 16).
        (pnn.ASAM(0.5, eta=0.0), np.array([13.5, 8]) / np.sqrt(145)),
    ],
)
@pytest.mark.parametrize(
    "options", [EAGER, {"run_eagerly": False, "jit_compile": True}]
)
def test_sam_and_asam(ascent, step, options):
    (w,), sharpness = descended(ascent, 1, **options)
    start, curvature = np.array([3.0, 2.0]), np.array([1.0, 2.0])
    np.testing.assert_allclose(w, start - 0.5 * curvature * (start + step))
    rise = 0.5 * np.sum(curvature * ((start + step) ** 2 - start**2))
    np.testing.assert_allclose(sharpness, [rise], rtol=1e-6)


def test_gsam():
    # g·g_s = 29.1 and ‖g_s‖² = 33.93: g_⊥ = (64, −44)/377.
    (w,), sharpness = descended(pnn.GSAM(0.5, alpha=0.25), 1)
    gradient = [3.3 - 0.25 * 64 / 377, 4.8 + 0.25 * 44 / 377]
    np.testing.assert_allclose(w, [3 - 0.5 * gradient[0], 2 - 0.5 * gradient[1]])
    np.testing.assert_allclose(sharpness, [RISE], rtol=1e-6)


@pytest.mark.parametrize("options", [EAGER, {"run_eagerly": False}])
def test_looksam(options):
    # g_v = (3.3, 4.8) − 29.1/25 (3, 4) = (−0.192, 0.144) = 0.24 (−0.8, 0.6).
    w, sharpness = descended(pnn.LookSAM(0.5, every=2, alpha=0.7), 2, **options)
    first = np.array([3 - 0.5 * 3.3, 2 - 0.5 * 4.8])
    np.testing.assert_allclose(w[0], first)
    gradient = np.array([1.35, -0.8])
    size = np.sqrt(1.35**2 + 0.8**2)
    expected = first - 0.5 * (gradient + 0.7 * size * np.array([-0.8, 0.6]))
    np.testing.assert_allclose(w[1], expected)
    # In between, nothing is measured.
    np.testing.assert_allclose(sharpness, [RISE, 0], rtol=1e-6)


def test_the_kept_direction_is_ramped_with_the_radius():
    w, _ = descended(pnn.LookSAM(0.5, every=2, alpha=0.7), 4, 0.1, warmup=4)
    gradient = np.array([1, 2]) * w[2]
    beside = (w[2] - w[3]) / 0.1 - gradient
    expected = 0.7 * 3 / 4 * np.linalg.norm(gradient)
    np.testing.assert_allclose(np.linalg.norm(beside), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "ascent",
    [
        pnn.LookSAM(0.5, every=1),
        pnn.ESAM(0.5, beta=1, gamma=1),
        pnn.FriendlySAM(0.5, sigma=0),
        pnn.GSAM(0.5, alpha=0),
    ],
)
def test_what_is_sam(ascent):
    one, _ = descended(ascent, 3)
    other, _ = descended(pnn.SAM(0.5), 3)
    np.testing.assert_array_equal(one, other)


def test_friendly_sam():
    # First m = g/2, so that d is along g. Then g = (1.35, −0.8),
    # m = ½ (1.5, 2) + ½ g = (1.425, 0.6) and d = (−0.075, −1.4).
    w, _ = descended(pnn.FriendlySAM(0.5, sigma=1.0, decay=0.5), 2)
    first = np.array([1.35, -0.4])
    np.testing.assert_allclose(w[0], first)
    moved = first + 0.5 * np.array([-0.075, -1.4]) / np.sqrt(0.075**2 + 1.4**2)
    np.testing.assert_allclose(w[1], first - 0.5 * np.array([1, 2]) * moved)


# Two classes from two features, outputs z = x w: dL/dw = xᵀ (softmax(z) − y)/n.

INPUTS = np.array([[1.0, 0.5], [-0.5, 1.0], [0.25, -1.0], [2.0, 0.75]])
LABELS = np.array([0, 1, 1, 1])
WEIGHTS = np.array([[0.5, -0.25], [0.1, 0.3]])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def losses_at(w):
    return -np.log(softmax(INPUTS @ w)[np.arange(4), LABELS])


def slope(w, rows=slice(None)):
    x = INPUTS[rows]
    return x.T @ (softmax(x @ w) - np.eye(2)[LABELS[rows]]) / len(x)


def linear(ascent, optimizer=None, policy="float64", **options):
    inputs = keras.Input((2,), dtype="float64")
    model = keras.Model(inputs, layers.Dense(2, use_bias=False, dtype=policy)(inputs))
    model.layers[1].kernel.assign(WEIGHTS)
    arguments = {} if ascent is None or not ascent.moves else {"perturb": "all"}
    sat = pnn.SATModel(model, ascent=ascent, **arguments)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")
    return compiled(sat, optimizer or SGD(0.5), loss, **options)


def weights(sat):
    return sat.model.layers[1].kernel.numpy()


@pytest.mark.parametrize("options", [EAGER, {"jit_compile": True}])
def test_esam_takes_the_samples_that_rise_most(options):
    sat = linear(pnn.ESAM(0.25, beta=1.0, gamma=0.5), **options)
    logs = sat.train_on_batch(INPUTS, LABELS, return_dict=True)
    gradient = slope(WEIGHTS)
    worst = WEIGHTS + 0.25 * gradient / np.sqrt(np.sum(gradient**2))
    rise = losses_at(worst) - losses_at(WEIGHTS)
    rows = np.argsort(-rise)[:2]
    assert sorted(rows) != [0, 1]
    np.testing.assert_allclose(weights(sat), WEIGHTS - 0.5 * slope(worst, rows))
    np.testing.assert_allclose(logs["sharpness"], rise.mean(), rtol=1e-5)


def test_esam_moves_a_share_of_the_elements():
    inputs = keras.Input((40,))
    model = keras.Model(inputs, layers.Dense(50, use_bias=False)(inputs))
    step = ascents.Step(pnn.SATModel(model, perturb="all"), 0, tf.constant([0, 0]))
    values, gradients = [tf.zeros((40, 50))], [tf.ones((40, 50))]
    (whole,) = pnn.SAM(1.0)(values, gradients, 0)
    (part,) = pnn.ESAM(1.0, beta=0.25).at(step)(values, gradients, 0)
    kept = part.numpy() != 0
    np.testing.assert_allclose(part[kept], whole[kept] / 0.25, rtol=1e-6)
    assert abs(kept.mean() - 0.25) < 0.04
    other = ascents.Step(step.trainer, 1, tf.constant([0, 1]))
    (later,) = pnn.ESAM(1.0, beta=0.25).at(other)(values, gradients, 1)
    assert ((later.numpy() != 0) != kept).mean() > 0.2


def trajectory(past, now, tau):
    """KL(softmax(past/τ) ‖ softmax(now/τ)) of each sample, and its slope by now."""
    p, q = softmax(past / tau), softmax(now / tau)
    return np.sum(p * np.log(p / q), -1), (q - p) / tau


def stepped(w, past, lam, tau, rate=0.5):
    _, by_now = trajectory(INPUTS @ past, INPUTS @ w, tau)
    return w - rate * (slope(w) + lam * INPUTS.T @ by_now / len(INPUTS))


@pytest.mark.parametrize("options", [EAGER, {"jit_compile": True}])
def test_saf(options):
    """The batches are shuffled; the outputs of each sample are found again."""
    sat = linear(pnn.SAF(2.0, epochs=2, start=3, temperature=1.5), **options)
    batches = pnn.datasets.Batches(INPUTS, LABELS, batch_size=4, seed=3)
    logs = sat.fit(batches, epochs=5, verbose=0).history
    path, terms, losses = [WEIGHTS], [], []
    for epoch in range(5):
        w, past = path[-1], path[max(epoch - 2, 0)]
        lam = 2.0 if epoch >= 3 else 0.0
        terms.append(lam * trajectory(INPUTS @ past, INPUTS @ w, 1.5)[0].mean())
        losses.append(losses_at(w).mean())
        path.append(stepped(w, past, lam, 1.5))
    # Keras gives inputs in single precision to a model of two.
    np.testing.assert_allclose(weights(sat), path[-1], rtol=1e-7)
    np.testing.assert_allclose(logs["sharpness"], terms, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(logs["loss"], losses, rtol=1e-6)
    assert terms[3] > 1e-3


def test_saf_by_batches_of_two():
    """Half of the data a step, in another order each epoch, the last one alone."""
    x, y = np.concatenate([INPUTS, INPUTS[:1]]), np.append(LABELS, 1)
    sat = linear(pnn.SAF(2.0, epochs=1, start=0, temperature=1.0), **EAGER)
    batches = pnn.datasets.Batches(x, y, batch_size=2, seed=1)
    sat.fit(batches, epochs=3, verbose=0)
    w, past = WEIGHTS, {}
    for epoch in range(3):
        for step in range(3):
            rows = batches.order(epoch)[2 * step : 2 * step + 2]
            now = x[rows] @ w
            gradient = x[rows].T @ (softmax(now) - np.eye(2)[y[rows]]) / len(rows)
            if epoch:
                before = np.array([past[r] for r in rows])
                _, by_now = trajectory(before, now, 1.0)
                gradient += 2.0 * x[rows].T @ by_now / len(rows)
            past.update(zip(rows, now, strict=True))
            w = w - 0.5 * gradient
    np.testing.assert_allclose(weights(sat), w, rtol=1e-7)


@pytest.mark.parametrize("options", [EAGER, {"jit_compile": True}])
def test_mesa(options):
    sat = linear(pnn.MESA(3.0, decay=0.75, start=1, temperature=1.5), **options)
    logs = sat.fit(INPUTS, LABELS, batch_size=4, epochs=3, verbose=0, shuffle=False)
    w = average = WEIGHTS
    terms = []
    for epoch in range(3):
        lam = 3.0 if epoch else 0.0
        terms.append(lam * trajectory(INPUTS @ average, INPUTS @ w, 1.5)[0].mean())
        w = stepped(w, average, lam, 1.5)
        average = 0.75 * average + 0.25 * w
    np.testing.assert_allclose(weights(sat), w)
    np.testing.assert_allclose(logs.history["sharpness"], terms, rtol=1e-5, atol=1e-9)
    (state,) = sat.ascent.states().values()
    np.testing.assert_allclose(state, average)
    assert terms[1] > 1e-3


@pytest.mark.parametrize("last", [layers.Softmax(), layers.Lambda(ops.softmax)])
def test_a_trajectory_is_that_of_the_logits(last):
    """Of those behind a softmax, and of the logarithms of probabilities."""

    def trained(*last):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3), *last])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not last)
        sat = pnn.SATModel(model, ascent=pnn.MESA(2.0, decay=0.5, start=0))
        compiled(sat, loss=loss, **EAGER)
        return sat.fit(X, Y, batch_size=4, shuffle=False, verbose=0).history

    expected, found = trained()["sharpness"], trained(last)["sharpness"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[0] > 1e-6


# Names and bad input.


@pytest.mark.parametrize("name", KINDS)
def test_names(name):
    kind = KINDS[name]
    ascent = pnn.SATModel(banks(), ascent=name).ascent
    assert type(ascent) is kind
    config = keras.saving.serialize_keras_object(ascent)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is kind and again.get_config() == ascent.get_config()
    if ascent.moves:
        assert pnn.SATModel(banks(), ascent=name).rho == pytest.approx(0.05)
        assert pnn.SATModel(banks(), 0.5, name).rho == 0.5


def test_a_schedule_is_kept():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    ascent = pnn.SAM(schedule)
    assert ascent.rho is schedule
    with pytest.raises(ValueError, match="`rho` follows a schedule"):
        ascent.rho = 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            (lambda kind=kind, bad=bad: kind(bad), "`rho` must be .*Received: ")
            for kind in (pnn.SAM, pnn.ASAM)
            for bad in (-0.1, np.inf, "big")
        ),
        (lambda: setattr(pnn.SAM(), "rho", -1), "`rho` must be .*Received: -1"),
        (lambda: pnn.ASAM(0.1, eta=-1), "`eta` must be .*Received: -1"),
        (lambda: pnn.SAF(lam=-1), "`lam` must be .*≥ 0. Received: -1"),
        (lambda: pnn.SAF(epochs=0), "`epochs` must be .*≥ 1. Received: 0"),
        (lambda: pnn.SAF(start=-1), "`start` must be .*≥ 0. Received: -1"),
        (lambda: pnn.MESA(temperature=0), "`temperature` must be .*> 0. Received: 0"),
        (lambda: pnn.MESA(decay=1), "`decay` must be .*≥ 0 and < 1. Received: 1"),
        (lambda: pnn.FriendlySAM(decay=-0.1), "`decay` must be .*Received: -0.1"),
        (lambda: pnn.FriendlySAM(sigma=-1), "`sigma` must be .*Received: -1"),
        (lambda: pnn.LookSAM(every=0), "`every` must be .*≥ 1. Received: 0"),
        (lambda: pnn.GSAM(alpha=-1), "`alpha` must be .*Received: -1"),
        (lambda: pnn.ESAM(gamma=0), "`gamma` must be .*> 0 and ≤ 1. Received: 0"),
        (lambda: pnn.ESAM(beta=1.5), "`beta` must be .*Received: 1.5"),
        (lambda: pnn.SATModel(banks(), ascent="sharp"), "'saf', None.*'sharp'"),
        (lambda: pnn.SATModel(banks(), ascent=lambda *a: 0), "`ascent` must be"),
        (lambda: pnn.SATModel(banks(), 0.1, "saf"), "`rho` goes with"),
        (lambda: pnn.SATModel(banks(), 0.1, None), "an object has its own"),
        (lambda: pnn.SATModel(banks(), ascent="mesa", perturb="b"), "`perturb` names"),
        (lambda: setattr(pnn.SATModel(banks(), ascent="saf"), "rho", 1), "a radius"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def summed(y_true, y_pred):
    return ops.mean(ops.sparse_categorical_crossentropy(y_true, y_pred, True))


class OwnLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
        return LOSS(y, y_pred)


NO_MEANS = {
    "one number": (keras.Model, summed, "summed, which gives one number"),
    "sum": (
        keras.Model,
        keras.losses.SparseCategoricalCrossentropy(True, reduction="sum"),
        ".* with reduction='sum'",
    ),
    "own": (OwnLoss, LOSS, "`compute_loss` of OwnLoss"),
}


@pytest.mark.parametrize("name", NO_MEANS)
@pytest.mark.parametrize("ascent", ["saf", "esam", "mesa"])
def test_a_loss_that_is_no_mean_is_refused(name, ascent):
    kind, loss, received = NO_MEANS[name]
    inputs = keras.Input((4,))
    model = kind(inputs, pnn.layers.MRRBank(3)(inputs))
    sat = compiled(pnn.SATModel(model, ascent=ascent), loss=loss, **EAGER)
    batches = pnn.datasets.Batches(X, Y, batch_size=4)
    with pytest.raises(ValueError, match=f"a mean over samples.*Received: {received}"):
        sat.fit(batches, verbose=0)


def test_saf_refuses_data_of_another_order():
    sat = compiled(pnn.SATModel(banks(), ascent="saf"), **EAGER)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    for call in (
        lambda: sat.fit(X, Y, verbose=0),
        lambda: sat.fit(data, verbose=0),
        lambda: sat.train_on_batch(X, Y),
    ):
        with pytest.raises(ValueError, match=r"`pnn.datasets.Batches`.*Received: data"):
            call()
    sat.fit(pnn.datasets.Batches(X, Y, batch_size=4), verbose=0)
    with pytest.raises(ValueError, match="Received: 8 samples in place of 12"):
        sat.fit(pnn.datasets.Batches(X[:8], Y[:8], batch_size=4), verbose=0)


@pytest.mark.parametrize("units", [[1], [2, 2]])
@pytest.mark.parametrize("ascent", ["saf", "mesa"])
def test_outputs_without_classes_are_refused(units, ascent):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [layers.Dense(n)(inputs) for n in units])
    sat = compiled(pnn.SATModel(model, ascent=ascent), loss="mse", **EAGER)
    batches = pnn.datasets.Batches(X, Y, batch_size=4)
    with pytest.raises(ValueError, match="one output of two or more real logits"):
        sat.fit(batches, verbose=0)


def test_a_memory_is_that_of_one_model():
    mesa = pnn.MESA()
    pnn.SATModel(banks(), ascent=mesa, name="first")
    with pytest.raises(ValueError, match="Received: that of model 'first'"):
        pnn.SATModel(banks(), ascent=mesa)


@pytest.mark.parametrize(
    "ascent",
    [pnn.MESA(lam=1.0, decay=0.5, start=0), pnn.LookSAM(0.1), pnn.FriendlySAM(0.1)],
    ids=lambda a: type(a).__name__,
)
def test_a_memory_is_of_the_variables_that_train(ascent):
    inputs = keras.Input((3,))
    one, other = (layers.Dense(3, use_bias=False) for _ in range(2))
    model = keras.Model(inputs, other(one(inputs)))
    arguments = {"perturb": "all"} if ascent.moves else {}
    sat = pnn.SATModel(model, ascent=ascent, **arguments)
    for frozen in (one, other, None):
        for layer in (one, other):
            layer.trainable = layer is not frozen
        compiled(sat, **EAGER)
        before = [v.numpy() for v in model.trainable_variables]
        sat.train_on_batch(X[:, :3], Y)
        states = [v for n, v in ascent.states().items() if n != "rho"]
        assert len(states) == len(before)
        if isinstance(ascent, pnn.MESA):
            # It begins at the weights of these variables.
            halves = zip(before, model.trainable_variables, strict=True)
            assert_same(states, [(b + v.numpy()) / 2 for b, v in halves], 1e-6)


def test_esam_adds_the_losses_of_outputs_by_sample():
    inputs = keras.Input((4, 3))
    outputs = {"steps": inputs, "all": layers.GlobalAveragePooling1D()(inputs)}
    sat = pnn.SATModel(keras.Model(inputs, outputs), ascent=None)
    sat.compile("sgd", {"steps": "mse", "all": "mse"})
    x = np.random.default_rng(0).normal(size=(4, 4, 3)).astype("float32")
    y = {"steps": np.zeros((4, 4, 3)), "all": np.zeros((4, 3))}
    y_pred = sat(x)
    sat.compute_loss(x, y, y_pred)
    each = losses_of(sat, Batch((x, y, None)), y_pred)
    expected = (x**2).mean((1, 2)) + (x.mean(1) ** 2).mean(1)
    np.testing.assert_allclose(each, expected, rtol=1e-5)


@pytest.mark.parametrize("how", ["installed", "trains"])
def test_esam_without_a_radius_asks_a_device_as_often_as_sam(how):
    model = bank(4, 3)
    device = Bench(ring_chip(model))
    trains = {"device": device} if how == "trains" else {}
    sat = compiled(pnn.SATModel(model, ascent=pnn.ESAM(0.0), **trains))
    with contextlib.nullcontext() if trains else device.installed(model):
        sat.fit(X, Y, batch_size=4, epochs=1, verbose=0)
    assert device.calls == 2 * len(X) // 4


def test_esam_refuses_stateful_networks():
    inputs = keras.Input(batch_shape=(4, 2, 2))
    model = keras.Model(inputs, layers.LSTM(3, stateful=True)(inputs))
    sat = pnn.SATModel(model, ascent=pnn.ESAM(0.1), perturb="all")
    with pytest.raises(ValueError, match=r"stateful.*gamma=1\. Received: gamma=0.4"):
        compiled(sat, **EAGER).train_on_batch(X[:4].reshape(4, 2, 2), Y[:4])


# Zero is plain training to the last bit.

ZEROS = [
    pnn.ESAM(0.0),
    pnn.FriendlySAM(0.0),
    pnn.GSAM(0.0),
    pnn.LookSAM(0.0, every=2),
    pnn.MESA(0.0, start=0),
    pnn.SAF(0.0, start=0),
]


def trained(ascent):
    """All variables of a network after training."""
    model = banks(layers.BatchNormalization(), layers.Dropout(0.4, seed=1))
    arguments = {"perturb": "all"} if ascent and ascent.moves else {}
    sat = pnn.SATModel(model, ascent=ascent, **arguments)
    compiled(sat, SGD(0.1, momentum=0.9), **EAGER)
    sat.fit(pnn.datasets.Batches(X, Y, batch_size=5), epochs=2, verbose=0)
    return model.variables


@pytest.fixture(scope="module")
def plain():
    return trained(None)


@pytest.mark.parametrize("ascent", ZEROS, ids=lambda a: type(a).__name__)
def test_zero_is_plain_training(ascent, plain):
    assert_same(trained(ascent), plain)
