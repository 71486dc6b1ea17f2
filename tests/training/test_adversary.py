"""Eq. 5: where imperfections go in a step, and what the step leaves alone."""

import dataclasses
import json
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from models import (
    FIT,
    LOSS,
    assert_same,
    banks,
    drawn_in_training,
    numbers,
    policy,
    samples,
)

import keras_pnn as pnn
from keras_pnn import _keras
from keras_pnn.layers.lookup import physical_layers
from keras_pnn.training.adversary import Adversary

X, Y = samples()
W, A, B = np.array([0.5, -0.25, 1.0]), 0.1, np.array([0.2, -0.1])


@keras.saving.register_keras_serializable(package="test_adversary")
class Toy(pnn.layers.PhysicalLayer):
    """Adds L = w·(a, b) + v² (1 + a) / 2 + a² + a³ + b₀² + 3 b₁² + b₀ b₁.

    ∂L/∂w = (a, b): one step of plain descent shows where a and b were.
    """

    aliases: ClassVar = {"half_a": ("a", lambda amount: 2.0 * amount)}
    calls = 0
    raises_at = None

    def build(self, input_shape):
        start = keras.initializers.Constant(W.tolist())
        self.add_control("w", (3,), unit="", initializer=start)
        self.add_control("v", (), unit="")
        self.add_imperfection("a", (), unit="degrees")
        self.add_imperfection("b", (2,), unit="px")

    def forward(self, inputs, controls, imperfections):
        Toy.calls += 1
        if Toy.calls == Toy.raises_at:
            raise RuntimeError("in a pass")
        w, v = controls["w"], controls["v"]
        a, b = imperfections["a"], imperfections["b"]
        linear = w[0] * a + w[1] * b[0] + w[2] * b[1] + 0.5 * v * v * (1 + a)
        curved = a**2 + a**3 + b[0] ** 2 + 3 * b[1] ** 2 + b[0] * b[1]
        return inputs + linear + curved


@keras.saving.register_keras_serializable(package="test_adversary")
def output(y_true, y_pred):
    return ops.mean(y_pred, axis=-1)


def slope_of_a(a=A, h=0.0, scheme="central", v=0.0):
    bias = h**2 if scheme == "central" else h + 3 * a * h + h**2
    return W[0] + 2 * a + 3 * a**2 + 0.5 * v**2 + bias


def slope_of_b(b=B, h=(0.0, 0.0), scheme="central"):
    bias = np.array([1, 3]) * h if scheme == "forward" else np.zeros(2)
    return W[1:] + [2 * b[0] + b[1], 6 * b[1] + b[0]] + bias


def placed(*toys, before=()):
    """A model of toys, with the imperfections in place."""
    inputs = x = keras.Input((1,))
    for layer in (*before, *(toys or (Toy(name="toy"),))):
        x = layer(x)
    model = keras.Model(inputs, x)
    for toy in physical_layers(model):
        toy.imperfections["a"].assign(A)
        toy.imperfections["b"].assign(B)
    return model


def compiled(sat, loss=output, rate=1.0, optimizer=None, **kwargs):
    sat.compile(optimizer or keras.optimizers.SGD(rate), loss, **kwargs)
    return sat


def sat_of(model, adversarial, ascent=None, compile=None, **kwargs):
    """Eager unless told otherwise: a step of a toy takes less than its trace."""
    wrapped = pnn.SATModel(model, ascent=ascent, adversarial=adversarial, **kwargs)
    return compiled(wrapped, **(compile or {"run_eagerly": True}))


def seen(sat, inputs=((0.0,), (0.0,))):
    """Trains one step; returns (a, b) of the second pass, of each toy."""
    toys = physical_layers(sat.model)
    before = [t.controls["w"].numpy() for t in toys]
    sat.train_on_batch(np.array(inputs, "float32"), np.zeros(len(inputs)))
    after = [t.controls["w"].numpy() for t in toys]
    for toy, w in zip(toys, before, strict=True):
        toy.controls["w"].assign(w)
    return np.squeeze([b - a for b, a in zip(before, after, strict=True)])


def close(actual, *expected, atol=3e-6):
    np.testing.assert_allclose(actual, np.hstack(expected), atol=atol)


# Eq. 5 by hand.


@pytest.mark.parametrize("scheme", ["central", "forward"])
def test_differences(scheme):
    """Unnormalised, so that the size of the difference shows."""
    difference = pnn.FiniteDifference
    rules = {
        "a": difference(0.5, 0.4, scheme, normalize=False),
        "b": difference((0.5, 2.0), (0.25, 0.5), scheme, normalize=False),
    }
    sat = sat_of(placed(), rules)
    assert sat.extra_passes == (6 if scheme == "central" else 3)
    a = A + 0.5 * slope_of_a(h=0.4, scheme=scheme)
    b = B + np.array([0.5, 2.0]) * slope_of_b(h=(0.25, 0.5), scheme=scheme)
    close(seen(sat), a, b)


@pytest.mark.parametrize("radius", [0.3, (0.3, 0.3), (0.3, 2.0), (0.3, 0.0)])
def test_each_imperfection_has_its_own_radius(radius):
    rules = {
        "a": pnn.FiniteDifference(radius=0.7, step=0.1),
        "b": pnn.FiniteDifference(radius=radius, step=0.2),
    }
    r = np.broadcast_to(radius, (2,))
    scaled = r * slope_of_b()
    offset = r * scaled / np.linalg.norm(scaled)
    close(seen(sat_of(placed(), rules)), A + 0.7, B + offset)
    if len(set(r)) == 1:
        np.testing.assert_allclose(np.linalg.norm(offset), 0.3)


def test_no_slope_no_step():
    """A central difference is 0 at the bottom of b's bowl, up to nothing."""
    model = placed()
    model.layers[1].controls["w"].assign(np.zeros(3))
    model.layers[1].imperfections["b"].assign(np.zeros(2))
    for rule in (pnn.FiniteDifference(0.5, 0.25), pnn.Autodiff(0.5)):
        close(seen(sat_of(model, {"b": rule})), A, 0, 0, atol=0)


def test_central_differences_are_autodiff_on_a_quadratic():
    for options in ({}, {"normalize": False}, {"sample_radius": True}):
        radius = (0.5, 0.25)
        one = sat_of(placed(), {"b": pnn.FiniteDifference(radius, 0.5, **options)})
        other = sat_of(placed(), {"b": pnn.Autodiff(radius, **options)})
        assert (one.extra_passes, other.extra_passes) == (4, 0)
        found = seen(other)
        close(seen(one), found)
        assert np.abs(found[1:] - B).max() > 0.01
    unnormalised = sat_of(placed(), {"b": pnn.Autodiff(radius, normalize=False)})
    close(seen(unnormalised), A, B + radius * slope_of_b())


def test_both_moves_together():
    """Eq. 6: the second pass is at (Θ + ΔΘ, θ_adv), slopes are those at Θ."""
    model = placed()
    v = model.layers[1].controls["v"]
    v.assign(2.0)
    rule = pnn.FiniteDifference(0.5, 0.4, normalize=False)
    sat = sat_of(model, {"a": rule}, ascent=pnn.SAM(0.3))
    a = A + 0.5 * slope_of_a(h=0.4, v=2.0)
    gradient = np.hstack([A, B, 2.0 * (1 + A)])
    step = 0.3 * gradient / np.linalg.norm(gradient)
    close(seen(sat), a, B)
    close(v.numpy(), 2.0 - (2.0 + step[3]) * (1 + a))


def test_steps_per_execution():
    weights = []
    for steps in (1, 3):
        model = placed()
        rules = {"b": pnn.FiniteDifference(0.3, 0.2, sample_step=True)}
        sat = sat_of(model, rules, compile={"steps_per_execution": steps, "rate": 0.1})
        sat.fit(np.zeros((6, 1)), np.zeros(6), batch_size=1, verbose=0)
        weights.append(model.layers[1].controls["w"].numpy())
    np.testing.assert_array_equal(*weights)
    assert np.abs(weights[0] - W).max() > 0.01


# Random radii and steps.


def test_the_rule_of_the_authors():
    rule = pnn.FiniteDifference(
        radius=0.8, step=1.0, scheme="forward", normalize=False, sample_step=True
    )
    sat = sat_of(placed(), {"a": rule}, seed=4)
    steps = []
    for _ in range(20):
        ratio = (seen(sat)[0] - A) / 0.8 - slope_of_a()
        # h (1 + 3a) + h² = ratio
        steps.append((-(1 + 3 * A) + np.sqrt((1 + 3 * A) ** 2 + 4 * ratio)) / 2)
    assert 0 < min(steps) < 0.3 and 0.7 < max(steps) <= 1 + 1e-5
    assert len(np.unique(np.round(steps, 5))) == 20


def drawn(seed=0, steps=12, start=0, rules=None, model=None):
    rules = rules or {"a": pnn.Autodiff(0.5, sample_radius=True)}
    sat = sat_of(model or placed(), rules, seed=seed)
    sat.optimizer.build(sat.trainable_variables)
    sat.optimizer.iterations.assign(start)
    return np.array([seen(sat) for _ in range(steps)])


def test_draws_are_a_pure_function_of_seed_and_step():
    all_ = drawn()
    offsets = all_[:, 0] - A
    assert (offsets >= 0).all() and (offsets < 0.5).all()
    assert offsets.min() < 0.15 and offsets.max() > 0.35
    np.testing.assert_array_equal(all_[5:], drawn(start=5, steps=7))
    assert np.abs(all_ - drawn(seed=1)).max() > 0.05


def test_draws_go_by_name_and_place():
    """Not by the automatic names of layers; each imperfection has its own."""
    rule = pnn.Autodiff(0.5, sample_radius=True)
    two = placed(Toy(name="p"), Toy(name="q"))
    again = placed(Toy(name="r"), Toy(name="s"))
    one = drawn(rules={"p/a": rule, "q/a": rule, "p/b": rule}, model=two)
    other = drawn(rules={"s/a": rule, "r/a": rule, "r/b": rule}, model=again)
    np.testing.assert_array_equal(one, other)
    p_a, q_a = one[:, 0, 0] - A, one[:, 1, 0] - A
    p_b = np.linalg.norm(one[:, 0, 1:] - B, axis=1)
    for u in (q_a, p_b):
        assert np.abs(p_a - u).max() > 0.05


# One value for several layers, or one layer's own.


def two_toys():
    model = placed(Toy(name="p"), Toy(name="q"))
    model.get_layer("q").imperfections["a"].assign(-0.3)
    # Together the slope is positive, in q alone negative.
    model.get_layer("q").controls["w"].assign([-0.3, 0.0, 0.0])
    return model


RULES = [
    pnn.FiniteDifference(0.5, 0.25),
    pnn.FiniteDifference(0.5, 0.01, "forward"),
    pnn.Autodiff(0.5),
]


@pytest.mark.parametrize("rule", RULES)
def test_a_common_name_is_one_value(rule):
    sat = sat_of(two_toys(), {"a": rule})
    assert sat.extra_passes == rule.passes_per_component
    np.testing.assert_allclose(seen(sat)[:, 0], [A + 0.5, -0.3 + 0.5], atol=1e-6)
    # By the sum of both slopes.
    rule = dataclasses.replace(rule, normalize=False)
    total = slope_of_a() + (-0.3 + 2 * -0.3 + 3 * 0.09)
    h = getattr(rule, "step", 0.0)
    found = seen(sat_of(two_toys(), {"a": rule}))[:, 0]
    tolerance = 0.5 * (2 * h**2 if h > 0.1 else 3 * h) + 1e-4
    close(found, A + 0.5 * total, -0.3 + 0.5 * total, atol=tolerance)


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_name_is_its_own_value(rule):
    sat = sat_of(two_toys(), {"q/a": rule})
    np.testing.assert_allclose(seen(sat)[:, 0], [A, -0.3 - 0.5], atol=1e-6)
    sat = sat_of(two_toys(), {"q/a": rule, "p/a": rule})
    assert sat.extra_passes == 2 * rule.passes_per_component
    np.testing.assert_allclose(seen(sat)[:, 0], [A + 0.5, -0.3 - 0.5], atol=1e-6)


def test_a_common_name_over_different_shapes():
    """By autodiff each layer has its own value, norm and draw."""
    rule = pnn.Autodiff(0.05, sample_radius=True)
    weights = []
    for singly in (False, True):
        model = banks()
        owners = [f"{la.name}/" for la in physical_layers(model)] if singly else [""]
        rules = {f"{owner}resonance_shift": rule for owner in owners}
        found = Adversary(model, rules).parameters
        assert [p.radius.shape for p in found] == [(4, 5), (5, 3)]
        assert [(p.name, p.place) for p in found] == [
            ("resonance_shift", i) for i in (1, 2)
        ]
        settings = {"loss": LOSS, "rate": 0.1, "run_eagerly": True}
        sat = sat_of(model, rules, compile=settings)
        sat.fit(X, Y, batch_size=12, verbose=0)
        weights.append(numbers(model.trainable_variables))
        assert sat.extra_passes == 0
    assert_same(*weights)


# What it costs.


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        ({}, 0),
        # A radius of zero moves nothing.
        ({"a": pnn.FiniteDifference(0.0, 0.1), "b": pnn.Autodiff((0.0, 0.0))}, 0),
        ({"a": pnn.Autodiff(0.5), "b": pnn.Autodiff(0.5)}, 0),
        ({"a": pnn.FiniteDifference(0.5, 0.1), "b": pnn.Autodiff(0.5)}, 2),
        ({"b": pnn.FiniteDifference((0.0, 1.0), 0.1)}, 2),
        ({"b": pnn.FiniteDifference((0.0, 1.0), 0.1, "forward")}, 1),
        ({n: pnn.FiniteDifference(1.0, 0.1) for n in "ab"}, 6),
    ],
)
def test_passes(rules, passes):
    moves = any(np.any(rule.radius) for rule in rules.values())
    for ascent in (None, "sam"):
        sat = sat_of(placed(), rules, ascent, compile={"run_eagerly": True})
        seen(sat)
        Toy.calls = 0
        seen(sat)
        assert sat.extra_passes == passes
        assert Toy.calls == passes + (2 if ascent or moves else 1)


def test_cells_that_a_mesh_does_not_have_cost_nothing():
    model = keras.Sequential([keras.Input((4,)), pnn.layers.MZIMesh(4)])
    names = ("theta_error", "splitter_error")
    for name, count in zip(names, (6, 12), strict=True):
        rules = {name: pnn.FiniteDifference(0.1, 0.1)}
        (found,) = Adversary(model, rules).parameters
        assert found.radius.shape == found.quantities[0].variable.shape
        assert found.passes == 2 * count


# What a step leaves alone.


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_imperfections_come_back(run_eagerly):
    rules = {"a": pnn.Autodiff(1 / 3), "b": pnn.FiniteDifference(1 / 3, 0.1)}
    sat = sat_of(placed(), rules, "sam", compile={"run_eagerly": run_eagerly})
    imperfections = sat.model.layers[1].imperfections.values()
    before = numbers(imperfections)
    assert np.abs(seen(sat) - np.hstack([A, B])).max() > 0.1
    # The passes of a step: the first, four of differences, the second.
    for raises_at in (1, 3, 6) if run_eagerly else ():
        Toy.calls, Toy.raises_at = 0, raises_at
        try:
            with pytest.raises(RuntimeError, match="in a pass"):
                seen(sat)
        finally:
            Toy.raises_at = None
        assert keras.src.backend.common.stateless_scope.in_stateless_scope() is False
    assert_same(numbers(imperfections), before)


def test_imperfections_are_never_assigned(monkeypatch):
    sat = sat_of(
        placed(), {"a": pnn.Autodiff(0.5), "b": RULES[0]}, "sam", clean_fraction=0.5
    )
    assigned = []
    assign = keras.Variable.assign
    monkeypatch.setattr(
        keras.Variable, "assign", lambda v, x: (assigned.append(v.path), assign(v, x))
    )
    sat.train_on_batch(np.zeros((2, 1)), np.zeros(2))
    assert any(path.endswith("sharpness/total") for path in assigned)
    assert not [p for p in assigned if p.endswith(("/a", "/b"))]


def noisy():
    keras.utils.set_random_seed(0)
    norm = layers.BatchNormalization(momentum=0.5, scale=False, center=False)
    return placed(before=(norm, layers.Dropout(0.5), layers.GaussianNoise(1.0)))


def test_passes_share_masks_and_keep_statistics():
    """Another mask would be part of a difference of losses, which go with x."""
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(8, 1))
    found, moments, states = [], [], []
    for rule in (
        pnn.FiniteDifference(0.5, 0.25, "forward", normalize=False),
        pnn.Autodiff(0.5, normalize=False),
        pnn.FiniteDifference(0.5, 0.25, normalize=False),
    ):
        sat = sat_of(noisy(), {"b": rule})
        found.append(seen(sat, x))
        norm = sat.model.layers[1]
        moments.append([norm.moving_mean.numpy()[0], norm.moving_variance.numpy()[0]])
        states.append(numbers(_keras.seed_states(sat)))
    for moved in found[1:]:
        close(moved, A, B + 0.5 * slope_of_b())
    close(found[0], A, B + 0.5 * slope_of_b(h=0.25, scheme="forward"))
    for other in moments:
        expected = [0.5 * x.mean(), 0.5 + 0.5 * x.var()]
        np.testing.assert_allclose(other, expected, rtol=1e-5)
    plain = sat_of(noisy(), None)
    seen(plain, x)
    for other in states:
        assert_same(other, numbers(_keras.seed_states(plain)))


# The gradient of the first pass.


@pytest.mark.parametrize("ascent", [None, "sam"])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_clean_fraction(share, ascent):
    rules = {"a": pnn.Autodiff(0.5), "b": pnn.FiniteDifference(0.3, 0.2)}
    away = seen(sat_of(placed(), rules, ascent))
    sat = sat_of(placed(), rules, ascent, clean_fraction=share)
    nominal = np.hstack([A, B])
    close(seen(sat), (1 - share) * away + share * nominal, atol=1e-6)
    assert sat.clean_fraction == share and np.abs(away - nominal).min() > 0.02


def test_clean_fraction_of_every_kind_of_gradient():
    """An embedding's gradient is sparse, and an unused variable has none."""

    def embedded():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        x = layers.Embedding(8, 3)(ops.cast(ops.abs(inputs * 3), "int32"))
        model = keras.Model(inputs, pnn.layers.MRRBank(3)(layers.Flatten()(x)))
        model.add_weight(shape=(2,), name="unused")
        return model

    plain, inner = embedded(), embedded()
    for trainer in (plain, pnn.SATModel(inner, rho=0.5, clean_fraction=1.0)):
        compiled(trainer, LOSS, 0.1, run_eagerly=True).fit(X, Y, **FIT)
    names = [v.name for v in inner.trainable_variables]
    assert "unused" in names and "embeddings" in names
    assert_same(plain.variables, inner.variables, 1e-6)


# Other parts of the machine.


def gradient_at(model, temperature, variables):
    """Loss and gradient with all banks at one temperature."""
    (device,) = pnn.devices.sweep(model, "temperature", [temperature])
    with device.installed(model), tf.GradientTape() as tape:
        tape.watch([v.value for v in variables])
        loss = LOSS(Y, model(X)) + sum(model.losses)
    return float(loss), tape.gradient(loss, [v.value for v in variables])


@pytest.mark.parametrize("rule", [pnn.Autodiff(0.8), pnn.FiniteDifference(0.8, 0.05)])
def test_the_temperature_of_a_chip(rule):
    model, manual = (banks(kernel_regularizer="l2") for _ in range(2))
    settings = {"loss": LOSS, "rate": 0.1, "run_eagerly": True}
    sat = sat_of(model, {"temperature": rule}, compile=settings)
    logs = sat.fit(X, Y, batch_size=12, verbose=0).history
    variables = manual.trainable_variables
    clean, _ = gradient_at(manual, 0.0, variables)
    rise = gradient_at(manual, 0.05, [])[0] - gradient_at(manual, -0.05, [])[0]
    worst, gradients = gradient_at(manual, 0.8 * np.sign(rise), variables)
    np.testing.assert_allclose(logs["sharpness"], [worst - clean], rtol=1e-4)
    assert abs(worst - clean) > 1e-3
    expected = [b - 0.1 * g for b, g in zip(variables, gradients, strict=True)]
    assert_same(model.trainable_variables, expected, 1e-5)


def test_compiled_by_xla_or_not():
    """Draws of radii and steps too."""
    found = []
    for settings in ({"run_eagerly": True}, {"jit_compile": True}):
        rules = {
            "a": pnn.FiniteDifference(0.5, 0.2, sample_radius=True, sample_step=True),
            "b": pnn.Autodiff(0.5, sample_radius=True),
        }
        sat = sat_of(placed(), rules, "asam", settings, clean_fraction=0.3)
        found.append([seen(sat) for _ in range(3)])
    np.testing.assert_allclose(*found, atol=1e-5)


def test_an_alias_is_moved_in_its_own_unit():
    """Slope and offset are half of a: 4 r dL/da in all."""
    for rule in (
        pnn.FiniteDifference(0.1, 0.2, normalize=False),
        pnn.Autodiff(0.1, normalize=False),
    ):
        a = A + 0.4 * slope_of_a(h=0.4 if rule.passes_per_component else 0.0)
        close(seen(sat_of(placed(), {"half_a": rule})), a, B)
    close(seen(sat_of(placed(), {"half_a": pnn.Autodiff(0.1)})), A + 0.2, B)


def test_mixed_float16():
    """θ_adv does not depend on the loss scale, and an overflow skips the step."""
    with policy("mixed_float16"):
        toy = Toy(name="toy", dtype="float32")
        model = placed(toy, before=(layers.BatchNormalization(),))
        rules = {
            "a": pnn.Autodiff(0.5, normalize=False),
            "b": pnn.FiniteDifference(0.5, 0.25, normalize=False),
        }
        sat = sat_of(model, rules, clean_fraction=0.5)
    assert isinstance(sat.optimizer, keras.optimizers.LossScaleOptimizer)
    assert model.layers[1].compute_dtype == "float16"
    expected = np.hstack([A + 0.25 * slope_of_a(), B + 0.25 * slope_of_b()])
    for scale in (1.0, 2.0**15):
        sat.optimizer.build(sat.trainable_variables)
        sat.optimizer.dynamic_scale.assign(scale)
        close(seen(sat), expected, atol=1e-5)
    # Far enough for the gradients by v and by a to be infinite.
    toy.controls["v"].assign(4.0)
    sat.optimizer.dynamic_scale.assign(3e38)
    close(seen(sat), 0, 0, 0, atol=0)
    assert toy.controls["v"].numpy() == 4.0
    np.testing.assert_allclose(sat.optimizer.dynamic_scale.numpy(), 1.5e38)


def test_noise_on_the_same_imperfection():
    """θ0 is the drawn value, on top of what the variable holds; b is only noisy."""
    noise = pnn.Variation(a=0.5, b=0.2)
    for rule in (
        pnn.Autodiff(0.5, normalize=False),
        pnn.FiniteDifference(0.5, 0.01, normalize=False),
        pnn.FiniteDifference(0.5, 0.001, "forward", normalize=False),
    ):
        sat = sat_of(placed(), {"a": rule}, variation=noise, seed=7)
        for step in range(2):
            device = drawn_in_training(noise, sat.model, step, seed=7)
            a, b = A + device.deviations["a", 0], B + device.deviations["b", 0]
            close(seen(sat), a + 0.5 * slope_of_a(a), b, atol=5e-3)
            assert abs(a) > 0.05
    a, b = numbers(sat.model.layers[1].imperfections.values())
    assert a == np.float32(A)
    np.testing.assert_array_equal(b, B.astype("float32"))


class Offset:
    """A device whose outputs are those of the model, and 5 more."""

    def __init__(self):
        self.calls = 0

    def measure(self, layer, inputs, controls):
        self.calls += 1
        return layer.forward(inputs, controls, layer.current_values()[1]) + 5.0


@pytest.mark.parametrize("scheme", ["central", "forward"])
def test_differences_are_those_of_the_model(scheme):
    """Never of the device, nor between the two: one pass more for L(θ0)."""
    device = Offset()
    rule = pnn.FiniteDifference(0.5, 0.4, scheme, normalize=False)
    settings = {"run_eagerly": True}
    sat = sat_of(placed(), {"a": rule}, compile=settings, device=device)
    seen(sat)
    device.calls = Toy.calls = 0
    close(seen(sat), A + 0.5 * slope_of_a(h=0.4, scheme=scheme), B)
    assert sat.extra_passes == 2
    assert device.calls == 2
    # In the two passes on the device, it calls `forward` itself.
    assert Toy.calls == 2 * 2 + sat.extra_passes


def test_rules_round_trip():
    for rule in (
        pnn.FiniteDifference(np.array([[0.5, 0.0]]), [[1, 2]], "forward", False, True),
        pnn.Autodiff(2, normalize=False),
    ):
        text = json.dumps(keras.saving.serialize_keras_object(rule))
        again = keras.saving.deserialize_keras_object(json.loads(text))
        assert again == rule and type(again) is type(rule)
        assert "0.5" in repr(rule) or "2.0" in repr(rule)
    with pytest.raises(AttributeError):
        rule.radius = 1.0


# Errors.


BAD_RULES = [
    *(({"radius": bad}, "radius") for bad in (-0.1, True, None, 1j, [1.0, -1.0], 1e60)),
    # The last is 0 in float32.
    *(({"radius": 0.1, "step": bad}, "step") for bad in (0, [0.0, 1.0], "1", 1e-60)),
    ({"radius": 0.1, "step": 0.1, "scheme": "backward"}, "scheme"),
    ({"radius": 0.1, "normalize": 1}, "normalize"),
    ({"radius": 0.1, "sample_radius": 1}, "sample_radius"),
]


@pytest.mark.parametrize(("arguments", "name"), BAD_RULES)
def test_bad_rules(arguments, name):
    rule = pnn.FiniteDifference if "step" in arguments else pnn.Autodiff
    with pytest.raises(ValueError, match=rf"`{name}` must be.*Received: "):
        rule(**arguments)


@pytest.mark.parametrize("bad", [0.5, {"a": 0.5}, {1: pnn.Autodiff(0.5)}])
def test_bad_dictionaries_of_rules(bad):
    with pytest.raises(ValueError, match=r"`adversarial` must be.*Received: "):
        pnn.SATModel(placed(), adversarial=bad)


RULE = pnn.Autodiff(0.5)


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({"c": RULE}, "one of the model's: a, b, toy/a.*Received: 'c'"),
        ({"toy2/a": RULE}, "Received: 'toy2/a'"),
        (
            {"a": RULE, "toy/a": RULE},
            r"adversarial\['a'\] and adversarial\['toy/a'\].*both move toy/a",
        ),
        (
            {"b": pnn.Autodiff([1] * 3)},
            r"\['b'\]\.radius`.*\(2,\).*Received: shape \(3,\)",
        ),
        ({"a": pnn.FiniteDifference(0.5, [0.1])}, r"\['a'\]\.step`.*\(\).*\(1,\)"),
    ],
)
def test_bad_names_and_shapes(rules, match):
    with pytest.raises(ValueError, match=match):
        pnn.SATModel(placed(), adversarial=rules)


def test_what_the_ascent_moves_is_not_adversarial():
    moved = {"perturb": lambda v: v.name == "a", "adversarial": {"a": RULE}}
    with pytest.raises(ValueError, match=r"`perturb` and adversarial\['a'\]"):
        pnn.SATModel(placed(), **moved)


@pytest.mark.parametrize(
    "rule", [pnn.FiniteDifference(0.5, 0.1), pnn.Autodiff(np.ones((4, 5)))]
)
def test_layers_of_different_shapes_share_no_value(rule):
    with pytest.raises(ValueError, match="name each, '<layer>/"):
        pnn.SATModel(banks(), adversarial={"resonance_shift": rule})


def test_many_components_are_refused():
    few = np.zeros((4, 5))
    few.flat[:16] = 0.1
    rules = {"first/resonance_shift": pnn.FiniteDifference(few, 0.1)}
    assert pnn.SATModel(banks(), adversarial=rules).extra_passes == 32
    few.flat[16] = 0.1
    rules = {"first/resonance_shift": pnn.FiniteDifference(few, 0.1)}
    many = r"34 extra passes.*pnn\.Autodiff.*17 components"
    with pytest.raises(ValueError, match=many):
        pnn.SATModel(banks(), adversarial=rules)


class Gains(pnn.layers.PhysicalLayer):
    """Scales, each 1 in the design and above 0."""

    def build(self, input_shape):
        self.add_imperfection("scale", (2,), unit="", nominal=1.0, lower_bound=0.0)

    def forward(self, inputs, controls, imperfections):
        return inputs * imperfections["scale"]


def test_what_does_not_exist_is_not_reached():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, Gains()(inputs))
    difference = pnn.FiniteDifference

    def check(rule):
        return Adversary(model, {"scale": rule})

    # The last is 1 in float32.
    for radius in (1.0, 2.0, (0.5, 1.0), 1 - 1e-9):
        for rule in (pnn.Autodiff(radius), difference(radius, 0.1)):
            with pytest.raises(ValueError, match=r"\.radius` reaches too far.*Rec"):
                check(rule)
        # Then it is a gain.
        assert check(pnn.Autodiff(radius, normalize=False))
    for step in (1.0, (0.1, 2.0)):
        with pytest.raises(ValueError, match=r"\.step` reaches too far.*Rec"):
            check(difference(0.5, step, normalize=False))
        # Forward goes up alone.
        assert check(difference(0.5, step, "forward"))
    assert check(difference((0.999, 0.0), (0.999, 2.0)))


def test_a_model_that_is_not_built_is_checked_later():
    model = keras.Sequential([pnn.layers.MRRBank(3)])
    sat = sat_of(model, {"shift": pnn.Autodiff(0.5)}, compile={"loss": LOSS})
    with pytest.raises(ValueError, match="is the model built"):
        sat.extra_passes  # noqa: B018
    with pytest.raises(ValueError, match=r"temperature.*Received: 'shift'"):
        sat.fit(X, Y, **FIT)
