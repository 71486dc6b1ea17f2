"""Each source of gradients: what it estimates, how often it asks, what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import (
    LOSS,
    Bench,
    Silent,
    assert_same,
    bank,
    banks,
    compiled,
    mesh,
    moved,
    numbers,
    policy,
    ring_chip,
)

import keras_pnn as pnn
from keras_pnn.layers.context import Overrides

RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 1.0, size=(6, 4))
Y = RNG.integers(0, 3, 6)
ERRORS = {"theta_error": 0.2, "phi_error": 0.2, "splitter_imbalance": 0.2}
CROSSTALK = np.eye(16) + 0.05 * RNG.random((16, 16))
EXACT = [
    pnn.ParameterShift(1e-5),
    pnn.CentralDifference(1e-4),
    pnn.Adjoint(),
    pnn.Adjoint(balanced=True),
]
EVERY = [
    pnn.ParameterShift(),
    pnn.CentralDifference(),
    pnn.SPSA(),
    pnn.SPGD(momentum=0.5),
    pnn.ForwardGradient(2),
    pnn.FeedbackAlignment(),
    pnn.Adjoint(),
]


def name(value):
    return type(value).__name__


def mesh_network(*in_front, **kwargs):
    """A mesh of four modes before digital layers."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((4,))
    for layer in in_front:
        x = layer(x)
    x = pnn.layers.MZIMesh(4, name="mesh", **kwargs)(x)
    x = pnn.layers.Photodetector(ports=[[0, 2], 1, [3]])(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def ring_network(*in_front):
    """A bank before digital layers."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((4,))
    for layer in in_front:
        x = layer(x)
    x = layers.Activation("tanh")(pnn.layers.MRRBank(5, name="bank")(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def convolution():
    """A bank whose outputs are channels first."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = layers.Reshape((1, 2, 2))(inputs)
    x = pnn.layers.MRRConv2D(3, 2, data_format="channels_first")(x)
    return keras.Model(inputs, layers.Flatten()(x))


def chip_of(model, imperfect=True, **more):
    if not imperfect:
        return pnn.SimulatedDevice({})
    has = "mesh" in {layer.name for layer in model.layers}
    spread = {**ERRORS, **more} if has else {"resonance_shift": 0.05}
    return pnn.Variation(**spread).sample(model, 1, seed=2)[0]


NOTHING = Overrides()


def without_ascent(model, device, source, loss=LOSS, optimizer=None, **kwargs):
    """A trainer without an ascent."""
    trainer = pnn.SATModel(model, ascent=None, device=device, gradient=source)
    return compiled(trainer, optimizer, loss, **kwargs)


def gradients(model, source, device, overrides=NOTHING, from_logits=True):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    trainer = without_ascent(model, device, source, loss)
    trainer.optimizer.build(trainer.trainable_variables)
    batch = (tf.constant(X, keras.config.floatx()), tf.constant(Y), None)
    wrt = model.trainable_variables

    found = trainer.gradient(trainer, batch, overrides, wrt).gradients
    return dict(zip((v.path for v in wrt), numbers(found), strict=True))


def of_the_device(model, device, drawn=NOTHING):
    """Automatic differentiation of the device itself, and what is drawn on top."""
    nominal = [(v, v.value + 0) for v in drawn]
    with device.installed(model):
        both = [(v, v.value + drawn[v] - n) for v, n in nominal]
        return gradients(model, None, None, Overrides(both))


def largest(found, right, among=""):
    return max(np.abs(found[n] - right[n]).max() for n in right if among in n)


# Exact sources.


STUCK = {"stuck": pnn.Stuck(0.3, at="random")}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("source", "options", "more"),
    [
        *((source, {}, {}) for source in (EXACT[0], *EXACT[2:])),
        # Derivatives return by the matrix.
        *((source, {"crosstalk": CROSSTALK}, {}) for source in (EXACT[0], EXACT[2])),
        # What is stuck has no derivative.
        *((source, {}, STUCK) for source in EXACT[:3]),
    ],
)
def test_a_mesh_has_the_gradient_of_its_device(source, options, more):
    model = mesh_network(**options)
    chip = chip_of(model, **more)
    right = of_the_device(model, chip)
    assert largest(gradients(model, source, chip), right) < 1e-6
    if not options and not more:
        theirs = gradients(model, pnn.training.DeviceGradient(), chip)
        assert largest(theirs, right) > 1e-2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("network", [ring_network, convolution])
@pytest.mark.parametrize("source", EXACT[:2], ids=name)
def test_a_bank_has_the_gradient_of_its_device(source, network):
    model = network()
    for imperfect in (False, True):
        chip = chip_of(model, imperfect)
        right = of_the_device(model, chip)
        assert largest(gradients(model, source, chip), right) < 1e-5
        if network is convolution:
            break


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("options", "free", "message", "tolerance"),
    [
        # No shift of the others moves one phase alone.
        ({"crosstalk": CROSSTALK}, "gamma", r"stuck.*'mesh' with", 1e-6),
        # A theta that leaves its turn takes phi and gamma with it.
        (
            {"dac": pnn.layers.DAC(24, 0.0, 2 * np.pi)},
            "theta",
            "a dac where phi or",
            1e-5,
        ),
    ],
    ids=["crosstalk", "converter"],
)
def test_shifts_that_need_what_is_stuck(options, free, message, tolerance):
    model = mesh_network(**options)
    chip = chip_of(model, **STUCK)
    right = of_the_device(model, chip)
    assert largest(gradients(model, pnn.Adjoint(), chip), right) < 1e-6
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        gradients(model, pnn.ParameterShift(), chip)
    held = {n: d for (n, _), d in chip.deviations.items() if n == f"{free}_stuck"}
    chip = pnn.SimulatedDevice.from_dict(model, held)
    right = of_the_device(model, chip)
    assert largest(gradients(model, pnn.ParameterShift(), chip), right) < tolerance


@pytest.mark.usefixtures("float64")
def test_what_is_stuck_may_be_known_to_the_model_alone():
    model = mesh_network()
    held = np.zeros((4, 2, 2))
    held[0, 0] = 1.0, 0.7
    chip = pnn.SimulatedDevice.from_dict(model, {"mesh/theta_stuck": held})
    device = Counting(chip)
    right = of_the_device(model, chip)
    assert largest(gradients(model, pnn.Adjoint(), device), right) > 1e-3
    with chip.installed(model):
        assert largest(gradients(model, pnn.Adjoint(), device), right) < 1e-6


@pytest.mark.usefixtures("float64")
def test_phases_beyond_a_converter_have_no_derivative():
    model = mesh_network(dac=pnn.layers.DAC(12, 0.0, 4.0))
    for control in model.layers[1].controls.values():
        control.assign(
            np.linspace(-7, 7, control.value.shape.num_elements()).reshape(
                control.shape
            )
        )
    chip = chip_of(model)
    right = of_the_device(model, chip)
    assert any((g == 0).any() for n, g in right.items() if "mesh" in n)
    assert largest(gradients(model, pnn.Adjoint(), chip), right) < 1e-6


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("source", EXACT[1:3], ids=name)
def test_all_settings_are_those_of_the_device_of_the_step(source):
    """What `variation` draws is in force when derivatives are measured, too."""
    model = mesh_network()
    chip = chip_of(model)
    drawn = Overrides(pnn.Variation(phi_error=0.3).values(model, [0, 1]))
    right = of_the_device(model, chip, drawn)
    assert largest(right, of_the_device(model, chip)) > 1e-3
    assert largest(gradients(model, source, chip, drawn), right) < 1e-6


@pytest.mark.usefixtures("float64")
def test_what_lies_in_front_has_the_adjoint_field_or_the_model():
    model = mesh_network(layers.Dense(4, name="front"))
    chip = chip_of(model)
    right = of_the_device(model, chip)
    found = gradients(model, pnn.Adjoint(), chip)
    assert largest(found, right) < 1e-6
    shifted = gradients(model, pnn.ParameterShift(), chip)
    assert largest(shifted, right, "mesh") < 1e-6
    # That of the model, at the measured fields.
    theirs = gradients(model, pnn.training.DeviceGradient(), chip)
    assert largest(shifted, theirs, "front") < 1e-12
    assert largest(theirs, right, "front") > 1e-2


@pytest.mark.usefixtures("float64")
def test_losses_bias_the_adjoint_alone():
    model = mesh_network(loss_db=0.1)
    chip = chip_of(model)
    right = of_the_device(model, chip)
    assert largest(gradients(model, pnn.ParameterShift(), chip), right) < 1e-6
    bias = []
    for source in (pnn.Adjoint(), pnn.Adjoint(balanced=True)):
        found = gradients(model, source, chip)
        one, other = (
            np.concatenate([g[n].ravel() for n in right if "mesh" in n])
            for g in (found, right)
        )
        bias.append(np.linalg.norm(one - other) / np.linalg.norm(other))
    assert 0.001 < bias[1] < 0.1 < bias[0] < 0.3


@pytest.mark.usefixtures("float64")
def test_the_rule_for_rings_has_the_error_that_it_states():
    model = bank(2, 1, use_bias=False)
    layer = model.layers[1]
    half_width, step = layer.tuning.half_width, 0.03
    control = np.array([[0.0], [0.2]])
    layer.controls["control"].assign(control)
    u, t = control / half_width, step / half_width
    chip, source = chip_of(model, False), pnn.ParameterShift(step)
    trainer = without_ascent(model, chip, source, keras.losses.MeanAbsoluteError())
    trainer.optimizer.build(trainer.trainable_variables)
    batch = tf.ones((1, 2), "float64"), tf.constant([[-9.0]], "float64"), None
    wrt = model.trainable_variables
    (found,) = trainer.gradient(trainer, batch, NOTHING, wrt).gradients
    slope = 4 * u / (1 + u**2) ** 2 / half_width
    square = (1 + u**2) ** 2
    factor = square / (square + 2 * t**2 * (1 - u**2) + t**4)
    np.testing.assert_allclose(found, factor * slope, rtol=1e-9)


# Unbiased sources.


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "source", [pnn.SPSA(1e-4), pnn.SPGD(1e-4), pnn.ForwardGradient(step=1e-4)], ids=name
)
def test_the_mean_of_many_draws_is_the_gradient(source):
    model = bank(16, 16, use_bias=False)
    chip = ring_chip(model, 0.05)
    rng = np.random.default_rng(1)
    batch = (tf.constant(rng.random((4, 16))), tf.constant(rng.random((4, 16))), None)
    trainer = without_ascent(model, chip, source, "mse")
    trainer.optimizer.build(trainer.trainable_variables)
    wrt = model.trainable_variables

    @tf.function(autograph=False)
    def draw():
        (found,) = trainer.gradient(trainer, batch, Overrides(), wrt).gradients
        return tf.reshape(found, [-1])

    draws = []
    for iteration in range(1000):
        trainer.optimizer.iterations.assign(iteration)
        draws.append(draw().numpy())
    draws = np.array(draws)
    with tf.GradientTape() as tape, chip.installed(model):
        loss = tf.reduce_mean((model(batch[0]) - batch[1]) ** 2)
    right = tape.gradient(loss, wrt[0].value).numpy().ravel()
    along = draws @ right / np.linalg.norm(right)
    error = along.std(ddof=1) / np.sqrt(1000)
    assert abs(along.mean() - np.linalg.norm(right)) < 3 * error
    apart = (draws.mean(0) - right) / (draws.std(0, ddof=1) / np.sqrt(1000))
    assert 0.8 < np.mean(apart**2) < 1.2


@pytest.mark.parametrize("source", [pnn.SPSA(), pnn.ForwardGradient()], ids=name)
def test_slots_without_a_cell_have_no_estimate(source):
    model = mesh_network()
    found = gradients(model, source, None)
    exists = model.get_layer("mesh").quantity("theta").exists
    theta, phi = found["mesh/theta"], found["mesh/phi"]
    for phase in (theta, phi):
        np.testing.assert_array_equal(phase != 0, exists)
    # Each has directions of its own.
    assert (np.sign(theta) != np.sign(phi)).any()


def test_momentum_is_summed_over_steps():
    model = bank(4, 3, use_bias=False)
    source = pnn.SPGD(0.05, momentum=0.5)
    still = keras.optimizers.SGD(0.0)
    trainer = without_ascent(model, None, source, optimizer=still, run_eagerly=True)
    batch = (tf.constant(X, "float32"), tf.constant(Y), None)
    plain, sums = pnn.SPGD(0.05), 0.0
    for _ in range(3):
        wrt = model.trainable_variables
        (found,) = plain(trainer, batch, Overrides(), wrt).gradients
        sums = 0.5 * sums + found.numpy()
        trainer.train_on_batch(X, Y)
        stored = trainer.gradient.variables(trainer)[0]
        np.testing.assert_allclose(stored, sums, atol=1e-6)


# Random feedback.


@pytest.mark.parametrize(
    ("source", "trainable"),
    [(pnn.FeedbackAlignment(), True), (pnn.ParameterShift(), False)],
    ids=name,
)
def test_logits_behind_a_softmax_are_found(source, trainable):
    """Its outputs, 0 and 1 to rounding, have neither a loss nor an error."""
    found = []
    for activation in (None, "softmax"):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        x = pnn.layers.MRRBank(5, name="first")(layers.Rescaling(60.0)(inputs))
        last = pnn.layers.MRRBank(3, activation=activation, name="second")
        model = keras.Model(inputs, last(x))
        last.trainable = trainable
        chip = pnn.SimulatedDevice({})
        found.append(gradients(model, source, chip, from_logits=activation is None))
    assert largest(*found) < 1e-3 * np.abs(next(iter(found[0].values()))).max()


def test_feedback_is_a_fixed_matrix_times_the_error():
    model = banks(layers.Activation("tanh"))
    chip = pnn.Variation(resonance_shift=0.05).sample(model, 1)[0]
    source = pnn.FeedbackAlignment(seed=3)
    found = gradients(model, source, chip)
    theirs = gradients(model, pnn.training.DeviceGradient(), chip)
    # Nothing is cut behind the last layer.
    assert largest(found, theirs, "second") < 1e-6 < 1e-2 < largest(found, theirs)
    first, between, second = model.layers[1:]
    x = tf.constant(X, "float32")
    chip.attach(model)
    measured = chip.measure(first, x, first.current_values()[0])
    given = between(measured)
    outputs = chip.measure(second, given, second.current_values()[0])
    error = (tf.nn.softmax(outputs) - tf.one_hot(Y, 3)) / len(Y)
    sent = error @ source.feedback(1, 3, 5).astype("float32")
    with tf.GradientTape() as tape:
        modelled = first(x)
    local = sent * (1 - tf.square(tf.tanh(measured)))
    # The bank's own ReLU, at the states of the model.
    (right,) = tape.gradient(modelled, [first.controls["control"].value], local)
    np.testing.assert_allclose(found[first.controls["control"].path], right, atol=1e-6)


# What is asked of the device.


class Counting:
    """A device that counts the samples that it is asked for."""

    def __init__(self, chip):
        self.chip, self.asked = chip, 0
        self.attach = chip.attach

    def measure(self, layer, inputs, controls):
        self.asked += inputs.shape[0] or 0
        return self.chip.measure(layer, inputs, controls)

    def monitor(self, layer, fields, controls, backwards=False):
        self.asked += fields.shape[0] or 0
        return self.chip.monitor(layer, fields, controls, backwards)


def small(source):
    """A mesh, or two banks, as the source can train them."""
    if isinstance(source, pnn.Adjoint):
        return mesh()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = layers.Activation("tanh")(pnn.layers.MRRBank(1, name="first")(inputs))
    return keras.Model(inputs, pnn.layers.MRRBank(3, name="second")(x))


def trained(source, ascent=None, device=None, **kwargs):
    model = small(source)
    device = Counting(pnn.SimulatedDevice({})) if device is None else device
    if source == "dat":
        trainer = pnn.DATModel(model, device, 1, ascent=ascent)
    else:
        trainer = pnn.SATModel(model, ascent=ascent, device=device, gradient=source)
    trainer.compile(keras.optimizers.SGD(0.01), LOSS, **kwargs)
    return trainer


@pytest.mark.parametrize(
    "source",
    [*EVERY, pnn.training.DeviceGradient("output"), "dat"],
    ids=lambda s: s if isinstance(s, str) else name(s),
)
def test_measurements_are_counted(source):
    trainer = trained(source, pnn.SAM(0.05), run_eagerly=True)
    device = trainer.device
    # Two batches, of 4 and 2 samples, where they take no time.
    size = 4 if isinstance(source, pnn.SPSA) else 6
    history = trainer.fit(
        X, Y, batch_size=size, verbose=0, validation_data=(X, Y)
    ).history["measurements"]
    assert trainer.measurements == device.asked == history[-1]
    per_sample = {
        # 2 layers, of 4 rings and 1 in a row; 4 and 3 rings; validation once.
        "ParameterShift": 2 * (2 + 2 * (4 + 1)) + 2,
        "CentralDifference": 2 * 2 * (1 + 2 * (4 + 3)) + 2,
        "SPSA": 2 * 2 * 3 + 2,
        "SPGD": 2 * 2 * 3 + 2,
        "ForwardGradient": 2 * 2 * 5 + 2,
        "FeedbackAlignment": 2 * 2 + 2,
        "Adjoint": 2 * 4 + 1,
        "DeviceGradient": 2 * 2 + 2,
        "str": 2 * 2 + 2,
    }[name(source)]
    assert device.asked == 6 * per_sample


def test_measurements_and_momentum_are_resumed(tmp_path):
    def run(epochs, folder):
        trainer = trained(
            pnn.SPGD(0.05, momentum=0.9),
            pnn.SAM(0.05),
            pnn.SimulatedDevice({}),
            run_eagerly=True,
        )
        batches = pnn.datasets.Batches(X.astype("float32"), Y, 3, seed=0)
        keeper = pnn.callbacks.Checkpoint(folder)
        trainer.fit(batches, epochs=epochs, verbose=0, callbacks=[keeper])
        sums = trainer.gradient.variables(trainer)
        return trainer.measurements, numbers([*trainer.variables, *sums])

    count, state = run(2, tmp_path / "whole")
    run(1, tmp_path / "parts")
    again, resumed = run(2, tmp_path / "parts")
    assert count == again == 2 * 6 * 2 * 2 * 3
    # But for the order of sums in a loss, over twice the step.
    assert_same(resumed, state, 1e-4)
    assert np.abs(state[-1]).max() > 0


# The ascents.


@pytest.mark.parametrize(
    "source",
    [*EVERY, pnn.training.DeviceGradient(), pnn.training.DeviceGradient("output")],
    ids=name,
)
def test_every_ascent_takes_its_gradients_from_every_source(source):
    batches = pnn.datasets.Batches(X[:4].astype("float32"), Y[:4], 4)
    counted = type(source) is pnn.training.DeviceGradient
    # With a second pass and without; with outputs of the past and without.
    epochs = 2 if counted else 1
    ascents = [pnn.SAM(0.05), pnn.MESA(start=epochs - 1), pnn.ESAM(0.05)]
    if counted or isinstance(source, pnn.SPGD):
        # To a source they are as those three.
        ascents += [pnn.SAF(epochs=1, start=0), pnn.LookSAM(0.05, every=2)]
        ascents += [pnn.FriendlySAM(0.05), pnn.GSAM(0.05)]
    for ascent in ascents:
        trainer = trained(source, ascent, run_eagerly=True)
        before = numbers(trainer.trainable_variables)
        branches = isinstance(ascent, pnn.LookSAM | pnn.ESAM)
        if isinstance(source, pnn.SPGD) and branches:
            with pytest.raises(ValueError, match=f"momentum=0.*{name(ascent)}"):
                trainer.fit(batches, verbose=0)
            continue
        trainer.fit(batches, epochs=epochs, verbose=0)
        ways = moved(before, trainer.trainable_variables)
        assert min(ways) > 1e-6 and max(ways) < 1, name(ascent)
        assert trainer.measurements == trainer.device.asked, name(ascent)
        if counted:
            # Layers × steps × samples; ESAM takes half of them in its last pass.
            passes = {"SAF": 1, "MESA": 1.5, "LookSAM": 1.5, "ESAM": 2.5}
            assert trainer.measurements == 16 * passes.get(name(ascent), 2)


@pytest.mark.parametrize(
    ("source", "ascent"),
    [
        (pnn.ParameterShift, lambda: pnn.ESAM(0.05)),
        (pnn.FeedbackAlignment, lambda: pnn.LookSAM(0.05, every=2)),
        (pnn.ForwardGradient, lambda: pnn.MESA(start=1)),
    ],
)
def test_branches_of_a_compiled_step_are_those_of_an_eager_one(source, ascent):
    found = []
    for eager in (True, False):
        trainer = trained(
            source(), ascent(), pnn.SimulatedDevice({}), run_eagerly=eager
        )
        trainer.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0)
        found.append([*numbers(trainer.trainable_variables), trainer.measurements])
    assert_same(*found, 1e-5)


# Keras' contracts.


@pytest.mark.parametrize(
    "source", [pnn.ParameterShift(), pnn.SPGD(momentum=0.5), *EVERY[5:]], ids=name
)
def test_every_kind_of_source_trains_compiled_by_xla_or_not(source):
    found = []
    for options in ({"run_eagerly": True}, {"jit_compile": True}):
        trainer = trained(source, **options)
        logs = [trainer.train_on_batch(X, Y, return_dict=True) for _ in range(2)]
        assert np.isfinite(logs[-1]["loss"])
        found.append(numbers(trainer.trainable_variables))
    assert_same(*found, 1e-4)
    assert min(moved(small(source).trainable_variables, found[0])) > 1e-7


@pytest.mark.parametrize("source", EVERY, ids=name)
def test_half_precision(source):
    with policy("mixed_float16"):
        trainer = trained(source, run_eagerly=True)
        before = numbers(trainer.trainable_variables)
        for _ in range(2):
            trainer.train_on_batch(X, Y)
    after = numbers(trainer.trainable_variables)
    assert all(np.isfinite(a).all() for a in after)
    assert max(moved(before, after)) > 1e-6


SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)


@pytest.mark.parametrize("source", [*EVERY, pnn.SPSA(SCHEDULE, 3)], ids=name)
def test_arguments_are_saved(source):
    config = keras.saving.serialize_keras_object(source)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(source)
    assert again.get_config() == source.get_config()


def test_a_bench_gives_what_its_simulation_gives():
    for source in (
        pnn.ParameterShift(),
        pnn.ForwardGradient(2, step=0.05),
        pnn.SPSA(0.05),
    ):
        found = []
        for device_of in (lambda chip: chip, Bench):
            model = bank(4, 3)
            device = device_of(ring_chip(model))
            without_ascent(model, device, source).train_on_batch(X, Y)
            found.append(numbers(model.trainable_variables))
        assert_same(*found, 1e-5)


# Bad input.


def stack(*parts):
    return keras.Sequential([keras.Input((4,)), *parts])


def fields(**kwargs):
    return pnn.layers.MZIMesh(4, name="mesh", **kwargs)


WARM = pnn.physics.heater.nearest_neighbour((3, 4), 0.1)
TURN = pnn.layers.DAC(8, 0.0, 2 * np.pi)
REFUSED = {
    "ParameterShift needs banks without an activation.*softmax": lambda: stack(
        pnn.layers.MRRBank(3, activation="softmax")
    ),
    "rows do not warm each other.*'bank'": lambda: bank(4, 3, crosstalk=WARM),
    "meshes .* or microrings.*MaskedSLM": lambda: stack(
        layers.Reshape((2, 2)), pnn.layers.MaskedSLM(3)
    ),
    "intensities.*fields go elsewhere": lambda: stack(
        pnn.layers.MZIDense(3), pnn.layers.Photodetector()
    ),
    "'mesh', whose fields go elsewhere": lambda: stack(
        fields(), pnn.layers.MZIMesh(4), pnn.layers.Photodetector(ports=3)
    ),
    "'mesh', whose fields": lambda: stack(fields(), pnn.layers.HomodyneDetector()),
    "crosstalk that can be inverted": lambda: mesh_network(crosstalk=np.ones((16, 16))),
    "without a dac where there is crosstalk": lambda: mesh_network(
        crosstalk=CROSSTALK, dac=TURN
    ),
    "dac covers a turn.*'mesh'.*high=4": lambda: mesh_network(
        dac=pnn.layers.DAC(8, 0.0, 4.0)
    ),
    r"Adjoint needs meshes \(MZIMesh\).*a MRRBank": ring_network,
    "FeedbackAlignment needs two measured layers or more": ring_network,
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_source_cannot_differentiate_is_refused(message):
    source = next((s for s in EVERY if name(s) in message), pnn.ParameterShift())
    device = pnn.SimulatedDevice({})
    trainer = without_ascent(REFUSED[message](), device, source, run_eagerly=True)
    with pytest.raises(ValueError, match=message):
        trainer.train_on_batch(X, Y)


@pytest.mark.parametrize("source", EVERY[3:5] + EVERY[1:2], ids=name)
def test_a_digital_model_has_no_controls(source):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    trainer = without_ascent(model, None, source, run_eagerly=True)
    with pytest.raises(ValueError, match=r"with physical layers\. Received"):
        trainer.train_on_batch(X, Y)


def test_devices_that_cannot_serve_are_refused():
    for source in (pnn.ParameterShift(), pnn.Adjoint(), pnn.FeedbackAlignment()):
        with pytest.raises(ValueError, match=f"{name(source)} needs a device"):
            pnn.SATModel(bank(), gradient=source)
    with pytest.raises(ValueError, match="a device with monitors"):
        pnn.SATModel(mesh_network(), device=Silent(), gradient=pnn.Adjoint())
    for source in EVERY[:6]:
        for device, message in (
            (Silent(), "must measure at least one"),
            (Bench(None, layers=["mesh"]), "Received: mesh"),
        ):
            trainer = without_ascent(bank(4, 3), device, source, run_eagerly=True)
            with pytest.raises(ValueError, match=message):
                trainer.train_on_batch(X, Y)


RANDOM = (pnn.SPSA, pnn.SPGD, pnn.ForwardGradient)


@pytest.mark.parametrize(
    ("source", "argument", "bad", "expected"),
    [
        *((source, "directions", 0, "must be an integer ≥ 1") for source in RANDOM),
        *((source, "step", 0, "must be a finite number > 0") for source in RANDOM),
        (pnn.SPGD, "momentum", 1.0, "must be .*< 1"),
        (pnn.CentralDifference, "step", -0.1, "must be"),
        (pnn.ParameterShift, "ring_step", 0, "must be"),
        (pnn.FeedbackAlignment, "seed", -1, "must be"),
    ],
)
def test_bad_arguments(source, argument, bad, expected):
    with pytest.raises(ValueError, match=f"`{argument}` {expected}"):
        source(**{argument: bad})
