"""Ascents with memory or without a second pass: Keras' contracts, and what they meet.

Each is trained on `Batches`, which SAF needs, so that its memory and its term are in
force from the second epoch on.
"""

import itertools

import keras
import numpy as np
import pytest
from keras import layers
from models import Bench, assert_same, bank, compiled, numbers, policy, ring_chip
from models import samples as made

import keras_pnn as pnn

X, Y = made()
ASCENTS = {
    "esam": lambda size=1: pnn.ESAM(0.2 * size, beta=0.7, gamma=0.5),
    "friendlysam": lambda size=1: pnn.FriendlySAM(0.2 * size, decay=0.5),
    "gsam": lambda size=1: pnn.GSAM(0.2 * size, alpha=0.5),
    "looksam": lambda size=1: pnn.LookSAM(0.2 * size, every=2),
    "mesa": lambda size=1: pnn.MESA(3.0 * size, decay=0.5, start=0, temperature=1),
    "saf": lambda size=1: pnn.SAF(3.0 * size, epochs=1, start=0, temperature=1),
}
EACH = pytest.mark.parametrize("name", ASCENTS)
EAGER = {"run_eagerly": True}


def dense():
    """A digital network with statistics and dropout."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = layers.BatchNormalization()(layers.Dense(5)(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.3, seed=2)(x)))


def wrapped(ascent, model=None, optimizer=None, **options):
    model = dense() if model is None else model
    arguments = {"perturb": "all"} if ascent.moves else {}
    sat = pnn.SATModel(model, ascent=ascent, **arguments)
    # With a state, and in eager steps much faster than Adam.
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    return compiled(sat, optimizer, **options)


def fit(sat, *callbacks, epochs=(0, 2), batch_size=4):
    batches = pnn.datasets.Batches(X, Y, batch_size=batch_size, seed=1)
    first, last = epochs
    options = {"initial_epoch": first, "epochs": last, "verbose": 0}
    return sat.fit(batches, callbacks=list(callbacks), **options).history


def state(sat):
    return numbers([*sat.variables, *sat.ascent.states().values()])


@EACH
def test_a_saved_run_goes_on_bit_for_bit(name, tmp_path):
    sat = wrapped(ASCENTS[name](), **EAGER)
    fit(sat)
    sat.save(tmp_path / "sat.keras")
    loaded = keras.saving.load_model(tmp_path / "sat.keras")
    assert_same(state(loaded), state(sat))
    assert fit(sat, epochs=(2, 3)) == fit(loaded, epochs=(2, 3))
    assert_same(state(loaded), state(sat))


class Killed(Exception):
    pass


class Killing(keras.callbacks.Callback):
    """Stops a run after some batches."""

    left = 5

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.mark.parametrize("name", [n for n in ASCENTS if n not in ("esam", "gsam")])
def test_a_killed_run_goes_on_bit_for_bit(name, tmp_path):
    """Of ascents with a memory, killed in the second epoch of three batches."""

    def keeper():
        return pnn.callbacks.Checkpoint(tmp_path / "state", every=1)

    whole = wrapped(ASCENTS[name](), **EAGER)
    logs = fit(whole)
    first = wrapped(ASCENTS[name](), **EAGER)
    with pytest.raises(Killed):
        fit(first, keeper(), Killing())
    again = wrapped(ASCENTS[name](), **EAGER)
    rest = fit(again, keeper())
    assert_same(state(again), state(whole))
    assert rest["sharpness"] == logs["sharpness"][1:]
    assert rest["loss"] == logs["loss"][1:]


@EACH
def test_graphs_agree(name):
    """Eager steps, and several in one execution by XLA."""
    graph = {"steps_per_execution": 2, "jit_compile": True}
    one = wrapped(ASCENTS[name](), bank(4, 3), **EAGER)
    other = wrapped(ASCENTS[name](), bank(4, 3), **graph)
    logs, other_logs = fit(one), fit(other)
    assert_same(state(one), state(other), atol=1e-4)
    for key in ("loss", "sharpness"):
        np.testing.assert_allclose(logs[key], other_logs[key], rtol=1e-3, atol=1e-6)
    assert any(logs["sharpness"])


class Overflow(keras.callbacks.Callback):
    """Sets a loss scale that overflows in the second batch; compares the states."""

    moved = False

    def on_train_batch_begin(self, batch, logs=None):
        self.before = numbers(self.model.ascent.states().values())
        if batch == 1:
            self.model.optimizer.dynamic_scale.assign(1e38)

    def on_train_batch_end(self, batch, logs=None):
        now = numbers(self.model.ascent.states().values())
        if batch == 1:
            assert_same(self.before, now)
            # So that it overflows in no other.
            self.model.optimizer.dynamic_scale.assign(64.0)
        elif len(now) == len(self.before):
            pairs = zip(self.before, now, strict=True)
            self.moved |= any(np.any(a != b) for a, b in pairs)


@EACH
def test_a_step_that_overflows_leaves_the_state(name):
    with policy("mixed_float16"):
        sat = wrapped(ASCENTS[name](), **EAGER)
    sat.optimizer.build(sat.trainable_variables)
    overflow = Overflow()
    logs = fit(sat, overflow)
    # One of three batches is skipped in each of two epochs.
    assert int(sat.optimizer.iterations.numpy()) == 4
    assert overflow.moved == (name not in ("esam", "gsam"))
    assert all(np.isfinite(v).all() for v in state(sat))
    assert np.isfinite(logs["sharpness"]).all()


@EACH
def test_accumulated_gradients(name):
    sgd = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    sat = wrapped(ASCENTS[name](), optimizer=sgd, **EAGER)
    states = []

    class Kept(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            weights = numbers(self.model.trainable_variables)
            states.append((weights, numbers(self.model.ascent.states().values())))

    fit(sat, Kept())
    moved = [np.abs(a[0][0] - b[0][0]).max() > 0 for a, b in itertools.pairwise(states)]
    assert moved == [True, False] * 2 + [True]
    if name == "mesa":
        averages = [s[1][0] for s in states]
        moves = [np.abs(a - b).max() > 0 for a, b in itertools.pairwise(averages)]
        assert moves == moved


# What they meet.

SPREAD = pnn.Variation(resonance_shift=0.1)
PAIRS = {
    "random devices": lambda m: {"variation": SPREAD, "seed": 3, "warmup": 2},
    "finite differences": lambda m: {
        "adversarial": {"temperature": pnn.FiniteDifference(0.5, 0.1)}
    },
    "worst case": lambda m: {
        "adversarial": {"temperature": pnn.Autodiff(0.5)},
        "clean_fraction": 0.25,
    },
    "bench": lambda m: {"device": Bench(ring_chip(m))},
    "outputs of a device": lambda m: {
        "device": ring_chip(m),
        "gradient": pnn.training.DeviceGradient("output"),
    },
    "SPSA on a bench": lambda m: {
        "device": Bench(ring_chip(m)),
        "gradient": pnn.SPSA(0.05),
    },
    "selection": lambda m: {"perturb": ["control", "resonance_shift"]},
}


# Some samples, and some steps, are left out of second passes; GSAM narrows the gap to
# the worst case, too.
OTHERWISE = {
    *itertools.product(
        ("esam", "gsam", "looksam"), ("finite differences", "worst case")
    ),
    ("looksam", "SPSA on a bench"),
}


def met(ascent, pair):
    """Weights and logs after two steps, each on all samples."""
    model = bank(4, 3)
    options = PAIRS[pair](model)
    sat = compiled(pnn.SATModel(model, ascent=ascent, **options), **EAGER)
    # A warmup begins without any radius, and LookSAM measures in every other step.
    steps = 3 if "warmup" in options else 2
    logs = fit(sat, epochs=(0, steps), batch_size=12)
    # LookSAM asks a device less often than SAM.
    logs.pop("measurements", None)
    return np.concatenate([v.numpy().ravel() for v in model.trainable_variables]), logs


@pytest.fixture(scope="module")
def without():
    """What SAM with ρ = 0, or no ascent, gives of each pair."""
    return {}


@EACH
@pytest.mark.parametrize("pair", PAIRS)
def test_pairs(name, pair, without):
    """Of size 0 it is what it meets, and of another size it acts."""
    if name in ("mesa", "saf") and pair == "selection":
        with pytest.raises(ValueError, match=r"`perturb` names.*Received: perturb="):
            met(ASCENTS[name](), pair)
        return
    # As many passes: those of SPSA draw each their own directions.
    key = pair, name in ("mesa", "saf")
    if key not in without:
        without[key] = met(None if key[1] else pnn.SAM(0.0), pair)
    expected, expected_logs = without[key]
    weights, logs = met(ASCENTS[name](), pair)
    assert np.isfinite(weights).all() and np.isfinite(logs["sharpness"]).all()
    assert np.abs(weights - expected).max() > 1e-5
    if (name, pair) in OTHERWISE:
        return
    nothing, logs = met(ASCENTS[name](0), pair)
    np.testing.assert_array_equal(nothing, expected)
    assert logs == expected_logs


def test_both_networks_of_mesa_are_on_one_device():
    """At first they are one network, so that the term is zero on any device."""
    for options_of in (
        lambda model: {"variation": SPREAD, "seed": 3},
        lambda model: {"device": ring_chip(model)},
    ):
        model = bank(4, 3)
        options = options_of(model)
        sat = pnn.SATModel(model, ascent=ASCENTS["mesa"](), **options)
        logs = compiled(sat, **EAGER).train_on_batch(X, Y, return_dict=True)
        assert float(logs["sharpness"]) == 0
    # A drawn control is as far from the average as from the weights.
    drawn = pnn.Variation(control=0.3)
    sat = pnn.SATModel(bank(4, 3), ascent=ASCENTS["mesa"](), variation=drawn)
    logs = compiled(sat, **EAGER).train_on_batch(X, Y, return_dict=True)
    assert abs(float(logs["sharpness"])) < 1e-6


def test_looksam_takes_finite_differences_with_its_second_passes_only():
    counts = []
    for every in (1, 3):
        model = bank(4, 3)
        bench = Bench(ring_chip(model))
        sat = pnn.SATModel(model, ascent=pnn.LookSAM(0.1, every=every), device=bench)
        fit(compiled(sat, **EAGER), epochs=(0, 3), batch_size=12)
        counts.append(bench.calls)
    assert counts == [6, 4]
