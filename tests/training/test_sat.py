"""Sharpness-aware training: what one step does, and what it leaves alone."""

import contextlib

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
    compiled,
    drawn_in_training,
    mesh,
    numbers,
    policy,
    samples,
)

import keras_pnn as pnn
from keras_pnn.layers.lookup import physical_layers

X, Y = samples()
EAGER, GRAPH = {"run_eagerly": True}, {"run_eagerly": False}
RNG = np.random.default_rng(1)


# ρ = 0 is plain training to the last bit.


def dropout_and_norm(penalty=0.01):
    inputs = keras.Input((4,))
    x = layers.BatchNormalization()(layers.Dense(6, kernel_regularizer="l2")(inputs))
    x = layers.Dropout(0.4)(layers.GaussianNoise(0.3)(layers.ReLU()(x)))
    if penalty:
        x = layers.ActivityRegularization(l2=penalty)(x)
    return keras.Model(inputs, layers.Dense(3, dtype="float32")(x))


def norm_and_noise():
    return dropout_and_norm(penalty=0)


def sequential_without_input():
    return keras.Sequential([layers.Dense(5, activation="tanh"), layers.Dense(3)])


def embedding():
    inputs = keras.Input((4,))
    x = layers.Embedding(8, 3)(ops.cast(ops.abs(inputs * 3), "int32"))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


@keras.saving.register_keras_serializable(package="test_sat")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(5, activation="relu")
        self.drop = layers.Dropout(0.5, seed=3)
        self.outer = layers.Dense(3)
        self.generator = keras.random.SeedGenerator(7)

    def call(self, inputs, training=False):
        x = self.hidden(inputs)
        if training:
            x = x + keras.random.normal(ops.shape(x), seed=self.generator)
        return self.outer(self.drop(x))


class States(layers.Layer):
    """A maximum from −∞ on, a gain that a graph of its own reads, and a gradient."""

    def build(self, input_shape):
        low = keras.initializers.Constant(-np.inf)
        self.peak = self.add_weight(shape=(), initializer=low, trainable=False)
        self.gain = self.add_weight(shape=(), initializer="ones", trainable=False)
        self.slope = self.add_weight(shape=(4,), initializer="ones")
        graph = tf.function(lambda x: x * self.gain.value)
        self.amplified = graph.get_concrete_function(tf.TensorSpec((None, 4)))

    def call(self, inputs):
        self.peak.assign(ops.maximum(self.peak, ops.max(inputs)))

        @tf.custom_gradient
        def sloped(x):
            slope, gain = tf.convert_to_tensor(self.slope), self.gain + 0.0

            def gradient(upstream, variables):
                # Keras counts the gain among them only if it trains.
                (_,) = variables
                return upstream * slope * gain, [tf.reduce_sum(upstream * x * gain, 0)]

            return x * slope * gain, gradient

        return self.amplified(sloped(inputs / self.peak))


def states():
    return keras.Sequential([keras.Input((4,)), States(), layers.Dense(3)])


def several_inputs_and_outputs():
    first, second = keras.Input((4,), name="p"), keras.Input((4,), name="q")
    x = layers.Dense(5)(layers.Concatenate()([first, second]))
    outputs = {"a": layers.Dense(3, name="a")(x), "b": layers.Dense(1, name="b")(x)}
    return keras.Model({"p": first, "q": second}, outputs)


SGD, ADAM = keras.optimizers.SGD, keras.optimizers.Adam
# Eagerly, but for those to which a graph matters: they take long to make.
CASES = {
    "dropout, norm, regularisers": (dropout_and_norm, {}),
    "global clipnorm and decay": (
        banks,
        {"optimizer": lambda: ADAM(0.1, global_clipnorm=0.1, weight_decay=0.1)},
    ),
    "clipnorm and ema": (
        banks,
        {
            "optimizer": lambda: SGD(
                0.1, clipnorm=0.1, use_ema=True, ema_overwrite_frequency=2
            )
        },
    ),
    "class weights": (embedding, {"fit": {"class_weight": {0: 1, 1: 3, 2: 0.5}}}),
    "sample weights": (embedding, {"fit": {"sample_weight": np.arange(12.0)}}),
    "several steps, accumulation": (
        dropout_and_norm,
        {
            "optimizer": lambda: SGD(0.1, gradient_accumulation_steps=2),
            "compile": {**GRAPH, "steps_per_execution": 2},
        },
    ),
    "jit": (norm_and_noise, {"compile": {**GRAPH, "jit_compile": True}}),
    "float16": (norm_and_noise, {"policy": "mixed_float16"}),
    "Sequential": (sequential_without_input, {}),
    "states": (states, {}),
    "states in a graph": (states, {"compile": GRAPH}),
    "subclassed": (Subclassed, {}),
    "several inputs and outputs": (
        several_inputs_and_outputs,
        {
            "x": {"p": X, "q": X[::-1].copy()},
            "y": {"a": Y, "b": X[:, :1]},
            "loss": {"a": LOSS, "b": "mse"},
            "compile": {
                "loss_weights": {"a": 1.0, "b": 0.3},
                "metrics": {"b": ["mae"]},
            },
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rho_zero_is_plain_training(name):
    make, options = CASES[name]
    optimizer = options.get("optimizer", lambda: SGD(0.1, momentum=0.9))
    runs = []
    with policy(options.get("policy", "float32")):
        for wrap in (False, True):
            keras.utils.set_random_seed(0)
            model = make()
            trainer = pnn.SATModel(model, rho=0.0, perturb="all") if wrap else model
            settings = {"metrics": ["accuracy"], **EAGER, **options.get("compile", {})}
            trainer.compile(optimizer(), options.get("loss", LOSS), **settings)
            history = trainer.fit(
                options.get("x", X),
                options.get("y", Y),
                **{**FIT, **options.get("fit", {})},
            )
            runs.append((model, trainer.optimizer, history.history))
    (plain, plain_optimizer, logs), (inner, sat_optimizer, sat_logs) = runs
    # XLA fuses the operations of one pass otherwise than those of two.
    rtol = 1e-6 if name == "jit" else 0.0
    assert_same(plain.variables, inner.variables, rtol)
    assert_same(plain_optimizer.variables, sat_optimizer.variables, rtol)
    np.testing.assert_allclose(sat_logs.pop("sharpness"), 0.0, atol=rtol)
    assert sat_logs.keys() == logs.keys()
    for key, values in logs.items():
        np.testing.assert_allclose(sat_logs[key], values, rtol=rtol)


@pytest.mark.parametrize("ascent", [pnn.SAM(0.3), pnn.ESAM(0.3)])
def test_a_step_reads_its_layers_once(ascent):
    # What is read twice TensorFlow must compute twice, as it may have changed.
    front = [layers.Dense(4), layers.Dropout(0.5), layers.Dense(4, trainable=False)]
    model = keras.Sequential([keras.Input((4,)), *front, *banks().layers[1:]])
    sat = compiled(pnn.SATModel(model, ascent=ascent))
    sat.fit(X, Y, **FIT)
    step = tf.function(lambda: sat.train_step((X, Y)), autograph=False)
    step = step.get_concrete_function()
    sources = {id(inner): outer for outer, inner in step.graph.captures}
    read = [
        id(sources[id(operation.inputs[0])])
        for operation in step.graph.get_operations()
        if operation.type == "ReadVariableOp" and id(operation.inputs[0]) in sources
    ]
    held = [front[0].kernel, front[1].seed_generator.state, front[2].kernel]
    assert [read.count(id(v.value.handle)) for v in held] == [1, 1, 1]


def test_strings_do_not_matter_to_xla():
    model = banks()
    model.note = keras.Variable(tf.constant("a"), dtype="string", trainable=False)
    assert any(v is model.note for v in model.variables)
    sat = compiled(pnn.SATModel(model, rho=0.1), jit_compile=True)
    assert np.isfinite(sat.fit(X, Y, **FIT).history["loss"]).all()


# What the ascent moves.


def gradient_at(model, variables, rows):
    with tf.GradientTape() as tape:
        tape.watch([v.value for v in variables])
        loss = LOSS(Y[rows], model(X[rows])) + sum(model.losses)
    return float(loss), tape.gradient(loss, [v.value for v in variables])


def manual_step(model, moved, rho, rate=0.1, rows=slice(4)):
    """One SAM step by assigning and restoring: (loss, sharpness)."""
    loss, ascent = gradient_at(model, moved, rows)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in ascent))
    kept = [v.numpy() for v in moved]
    for v, g in zip(moved, ascent, strict=True):
        v.assign_add(rho * g / norm)
    worst, gradients = gradient_at(model, model.trainable_variables, rows)
    for v, value in zip(moved, kept, strict=True):
        v.assign(value)
    for v, g in zip(model.trainable_variables, gradients, strict=True):
        v.assign(v.constraint(v - rate * g) if v.constraint else v - rate * g)
    return loss, worst - loss


SELECTIONS = {
    "controls": lambda m: [la.controls["control"] for la in physical_layers(m)],
    "all": lambda m: m.trainable_variables,
    "bias": lambda m: [la.bias for la in physical_layers(m)],
    "temperature": lambda m: [
        la.imperfections["temperature"] for la in physical_layers(m)
    ],
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_perturb_against_a_manual_step(name):
    model, manual = banks(), banks()
    for m in (model, manual):
        for layer in physical_layers(m):
            layer.imperfections["temperature"].assign(0.25)
    sat = compiled(pnn.SATModel(model, rho=0.2, perturb=name), **EAGER)
    logs = sat.fit(X[:4], Y[:4], batch_size=4, verbose=0).history
    loss, sharpness = manual_step(manual, SELECTIONS[name](manual), 0.2)
    np.testing.assert_allclose(logs["loss"], [loss], rtol=1e-5)
    np.testing.assert_allclose(logs["sharpness"], [sharpness], rtol=1e-3, atol=1e-6)
    assert sharpness > 1e-3
    for a, b in zip(model.variables, manual.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-6, err_msg=a.path)
    for layer in physical_layers(model):
        assert layer.imperfections["temperature"].numpy() == 0.25
        assert not layer.imperfections["resonance_shift"].numpy().any()


PLAIN = keras.Sequential([keras.Input((4,)), layers.Dense(3)])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"model": PLAIN}, "has no physical layer with controls.*must then be 'all'"),
        ({"model": PLAIN, "perturb": lambda v: False}, "predicate selected nothing"),
        ({"perturb": "weights"}, "`perturb`.*It has: control, .*first/control"),
        ({"perturb": ["bias", "gain"]}, "Received: 'gain'"),
        ({"perturb": 3}, "`perturb` must be 'controls', .*names.*Received: 3"),
        ({"perturb": []}, "`perturb` must be"),
        ({"rho": -0.1}, "`rho` must be.*≥ 0"),
        ({"rho": 0.1, "ascent": pnn.SAM(0.1)}, "an object has its own"),
        ({"seed": 2**31}, "`seed` must be an integer in .*Received: "),
        ({"model": PLAIN.layers[0]}, "`model` must be a keras"),
        ({"variation": 0.1}, "`variation` must be a Variation"),
        ({"device": 3}, "`device`"),
        ({"gradient": "spsa"}, "`gradient` must be"),
        ({"ascent": None, "perturb": "all"}, "`perturb` names what.*ascent=None"),
        (
            {"ascent": None, "clean_fraction": 0.5},
            "`clean_fraction` must be 0 without a second pass.*Received: 0.5",
        ),
        ({"warmup": -1}, "`warmup`.*Received: -1"),
        ({"warmup": 2, "ascent": None}, "without what it ramps.*Received: 2"),
        ({"clean_fraction": 1.5}, r"`clean_fraction` must be.*\[0, 1\].*Received: 1.5"),
    ],
)
def test_errors_of_the_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        pnn.SATModel(**{"model": banks(), **arguments})


def test_errors_that_are_known_later():
    unbuilt = compiled(pnn.SATModel(sequential_without_input()), **EAGER)
    with pytest.raises(ValueError, match="has no physical layer with controls"):
        unbuilt.fit(X, Y, **FIT)
    with pytest.raises(ValueError, match="needs an ascent"):
        pnn.SATModel(banks(), ascent=None).rho = 0.1
    sat = pnn.SATModel(banks(), variation=pnn.Variation(shift=0.1))
    compiled(sat, **EAGER)
    with pytest.raises(ValueError, match="resonance_shift"):
        sat.fit(X, Y, **FIT)


# Statistics, metrics, logs.


def test_statistics_and_metrics_are_those_of_the_clean_pass():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    norm = layers.BatchNormalization(momentum=0.5)
    model = keras.Model(inputs, layers.Dense(3)(norm(layers.Dense(4)(inputs))))
    before = model(X, training=False).numpy()
    hidden = model.layers[1](X).numpy()
    clean = float(LOSS(Y, model(X, training=True)))
    norm.moving_mean.assign(np.zeros(4))
    norm.moving_variance.assign(np.ones(4))
    sat = pnn.SATModel(model, rho=2.0, perturb="all")
    metrics = ["accuracy", "sparse_categorical_crossentropy"]
    compiled(sat, metrics=metrics, **EAGER)
    logs = sat.fit(X, Y, batch_size=12, verbose=0).history
    np.testing.assert_allclose(norm.moving_mean, 0.5 * hidden.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        norm.moving_variance, 0.5 + 0.5 * hidden.var(0), rtol=1e-5
    )
    np.testing.assert_allclose(logs["loss"], [clean], rtol=1e-6)
    assert logs["sharpness"][0] > 0.1
    assert np.abs(before).max() > 0


def test_a_frozen_network_has_figures_all_the_same():
    model = banks()
    model.trainable = False
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    sat = compiled(pnn.SATModel(model, ascent=None), optimizer, **EAGER)
    before = numbers(model.variables)
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        loss = sat.train_on_batch(X, Y)[0]
    assert loss == pytest.approx(sat.evaluate(X, Y, verbose=0), rel=1e-5)
    assert_same(numbers(model.variables), before)


def test_metrics_are_those_before_the_step():
    sat = pnn.SATModel(banks(), rho=1.0)
    compiled(sat, metrics=["accuracy"], **EAGER)
    expected = sat.evaluate(X, Y, verbose=0, return_dict=True)
    logs = sat.fit(X, Y, batch_size=12, verbose=0, validation_data=(X, Y)).history
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], [value], rtol=1e-6)
    assert "sharpness" not in expected and "val_sharpness" not in logs
    assert len(sat.evaluate(X, Y, verbose=0)) == 2
    assert set(sat.test_on_batch(X, Y, return_dict=True)) == {"loss", "accuracy"}
    np.testing.assert_allclose(sat.predict(X, verbose=0), sat.model(X), atol=1e-6)


def test_sharpness_with_regularisers_over_ragged_batches():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    dense = layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.5))
    model = keras.Model(inputs, dense(inputs))
    sat = pnn.SATModel(model, rho=0.3, perturb="all")
    compiled(sat, SGD(0.0), **EAGER)
    logs = sat.fit(X, Y, batch_size=8, shuffle=False, verbose=0).history

    total = sum(
        len(Y[rows]) * manual_step(model, dense.variables, 0.3, 0.0, rows)[1]
        for rows in (slice(8), slice(8, 12))
    )
    np.testing.assert_allclose(logs["sharpness"], [total / 12], rtol=1e-5)


# NaN and overflow.


@pytest.mark.parametrize(
    "structure",
    [
        lambda x: x,
        lambda x: tf.constant(x, "bfloat16"),
        lambda x: [X[: len(x)], tf.constant(x)],
        lambda x: {"p": tf.constant(X), "q": x},
        lambda x: tf.constant(x, "complex64"),
    ],
    ids=["array", "bfloat16", "list", "dictionary", "complex"],
)
def test_inputs_that_nothing_can_be_learned_from_raise(structure):
    wrong = X.copy()
    wrong[5, 2] = np.nan
    sat = compiled(pnn.SATModel(banks()))
    before = numbers(sat.variables)
    for x, y, what in (
        (wrong, Y, "must be finite"),
        (X[:0], Y[:0], "must hold at least one sample"),
    ):
        x = structure(x)
        with pytest.raises(ValueError, match=rf"`x` {what}.*Received"):
            sat.fit(x, y, **FIT)
        for validation in ((x, y), [x, y, np.ones(len(y))]):
            with pytest.raises(ValueError, match=f"`validation_data` {what}"):
                sat.fit(X, Y, validation_data=validation, **FIT)
    assert_same(numbers(sat.variables), before)


def test_data_sets_and_tensors_are_inputs():
    sat = compiled(pnn.SATModel(banks()), **EAGER)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    sat.fit(data, validation_data=data, shuffle=False, verbose=0)
    sat.fit(tf.constant(X), Y, validation_data=(tf.constant(X), Y), **FIT)


@pytest.mark.parametrize("epochs", [(0, 1, 2), (4, 5)])
def test_batches_are_all_that_fit_needs(epochs):
    """Their order is that of the epoch; Keras' shuffle is off."""
    batches = pnn.datasets.Batches(X, Y, batch_size=5, seed=3)
    seen = []

    class Recorded(layers.Dense):
        def call(self, inputs):
            if not tf.is_symbolic_tensor(inputs):
                seen.append(inputs.numpy()[:, 0].tolist())
            return super().call(inputs)

    model = keras.Sequential([keras.Input((4,)), Recorded(3)])
    sat = compiled(pnn.SATModel(model, ascent=None), run_eagerly=True)
    options = {"initial_epoch": epochs[0], "epochs": epochs[-1] + 1, "verbose": 0}
    for _ in range(2):
        sat.fit(batches, **options)
    orders = [np.random.default_rng([3, epoch]).permutation(12) for epoch in epochs]
    expected = [X[o, 0][i : i + 5].tolist() for o in orders for i in (0, 5, 10)]
    assert seen == 2 * expected
    with pytest.raises(ValueError, match="Received: steps_per_epoch=2"):
        sat.fit(batches, steps_per_epoch=2, verbose=0)


class Overflow(keras.callbacks.Callback):
    """Sets a loss scale that overflows in the first of several batches."""

    def on_train_batch_begin(self, batch, logs=None):
        first = batch == 0 and self.params["steps"] > 1
        self.model.optimizer.dynamic_scale.assign(1e38 if first else 1024.0)


@pytest.mark.parametrize(("clean_fraction", "mode"), [(0.0, EAGER), (0.5, GRAPH)])
def test_a_step_that_overflows_does_not_count_in_sharpness(clean_fraction, mode):
    """In the loss it counts, as in plain Keras."""
    with policy("mixed_float16"):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
        sat = pnn.SATModel(model, rho=0.1, perturb="all", clean_fraction=clean_fraction)
        compiled(sat, SGD(0.0), **mode)
    sat.optimizer.build(sat.trainable_variables)
    fit = {"batch_size": 4, "shuffle": False, "verbose": 0, "callbacks": [Overflow()]}
    (expected,) = sat.fit(X[4:8], Y[4:8], **fit).history["sharpness"]
    (found,) = sat.fit(X[:8], Y[:8], **fit).history["sharpness"]
    assert int(sat.optimizer.iterations.numpy()) == 2
    assert np.isfinite(expected) and expected > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    compiled(model, SGD(0.0), **EAGER).optimizer.build(model.trainable_variables)
    (plain,) = model.fit(X[:8], Y[:8], **fit).history["loss"]
    (loss,) = sat.fit(X[:8], Y[:8], **fit).history["loss"]
    np.testing.assert_allclose(loss, plain, rtol=1e-3)


# ρ during training.


def test_rho_set_by_a_callback_takes_effect_without_retracing():
    traces, counts = [], []

    def traced(y_true, y_pred):
        traces.append(1)
        return ops.mean(ops.square(y_pred), axis=-1)

    class SetRho(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.rho = 0.1 * epoch
            counts.append(len(traces))

    sat = compiled(pnn.SATModel(banks(), rho=0.5), SGD(0.0), traced)
    logs = sat.fit(X, Y, batch_size=12, epochs=4, verbose=0, callbacks=[SetRho()])
    sharpness = logs.history["sharpness"]
    assert sharpness[0] == 0 < sharpness[1] < sharpness[2] < sharpness[3]
    assert 0 < counts[1] == counts[3]
    assert np.isclose(sat.rho, 0.3)


def test_rho_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 0.4])
    sat = compiled(pnn.SATModel(banks(), rho=schedule), SGD(0.0))
    logs = sat.fit(X, Y, batch_size=12, epochs=3, verbose=0).history
    fixed = compiled(pnn.SATModel(banks(), rho=0.4), SGD(0.0), **EAGER)
    expected = fixed.fit(X, Y, batch_size=12, verbose=0).history["sharpness"]
    # Keras' boundaries belong to the value before them.
    np.testing.assert_allclose(logs["sharpness"], [0, 0, *expected], rtol=1e-5)


# Saving.


@keras.saving.register_keras_serializable(package="test_sat")
def all_but_the_bias(variable):
    return variable.name != "bias"


def photonic():
    return banks(layers.BatchNormalization(), layers.Dropout(0.3, seed=2))


def unbuilt():
    return keras.Sequential([*photonic().layers[1:3], pnn.layers.MRRBank(3)])


def recurrent():
    inputs = keras.Input(batch_shape=(4, 4))
    x = layers.LSTM(3, stateful=True)(layers.Reshape((2, 2))(inputs))
    return keras.Model(inputs, pnn.layers.MRRBank(3)(x))


RADIUS = np.linspace(0, 0.1, 20).reshape(4, 5)
SAVED = {
    "asam": (photonic, {"ascent": pnn.ASAM(0.3, eta=0.1), "perturb": "all"}),
    "noise": (
        unbuilt,
        {
            "rho": 0.2,
            "variation": pnn.Variation(
                {"resonance_shift": pnn.Correlated(0.05, 2.0), "temperature": 0.5}
            ),
            "seed": 3,
            "warmup": 7,
        },
    ),
    "predicate, schedule": (
        photonic,
        {
            "rho": keras.optimizers.schedules.ExponentialDecay(0.2, 3, 0.5),
            "perturb": all_but_the_bias,
        },
    ),
    "worst case": (
        unbuilt,
        {
            "ascent": "asam",
            "adversarial": {
                "temperature": pnn.FiniteDifference(0.5, 0.2, sample_step=True),
                "first/resonance_shift": pnn.Autodiff(RADIUS, sample_radius=True),
            },
            "clean_fraction": 0.25,
        },
    ),
    "momentum": (photonic, {"gradient": pnn.SPGD(0.02, 3, momentum=0.5)}),
    "names": (photonic, {"perturb": ["first/*", "*_shift", "b*"]}),
    "subclassed": (Subclassed, {"rho": 0.1, "perturb": "all"}),
    "stateful": (recurrent, {"rho": 0.1}),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_model_goes_on_bit_for_bit(name, tmp_path):
    make, arguments = SAVED[name]
    keras.utils.set_random_seed(0)
    momentum, few = SGD(0.05, momentum=0.9), {**FIT, "epochs": 1}
    sat = compiled(pnn.SATModel(make(), **arguments), momentum, **EAGER)
    sat.fit(X, Y, **few)
    path = tmp_path / "sat.keras"
    sat.save(path)
    loaded = keras.saving.load_model(path)
    assert type(loaded) is pnn.SATModel and loaded.name == sat.name
    one, other = (m.fit(X, Y, **few).history for m in (sat, loaded))
    assert one == other
    assert_same(sat.variables, loaded.variables)
    # Keras adds to the config of the model inside when it builds it.
    configs = [{**m.get_config(), "model": None} for m in (sat, loaded)]
    assert configs[0] == configs[1]


def test_weights_of_another_model_are_refused():
    sat = pnn.SATModel(banks(layers.Dropout(0.1), layers.Dropout(0.1)))
    with pytest.raises(ValueError, match=r"states of 2 random.*Received: 1"):
        sat.load_own_variables({"seed_0": 0})


# Without an ascent; with noise.


def test_no_ascent_is_plain_training():
    plain = compiled(photonic(), ADAM(0.01), run_eagerly=True)
    sat = pnn.SATModel(photonic(), ascent=None)
    compiled(sat, ADAM(0.01), run_eagerly=True)
    expected, logs = plain.fit(X, Y, **FIT).history, sat.fit(X, Y, **FIT).history
    assert_same(plain.variables, sat.model.variables)
    assert logs.pop("sharpness") == [0, 0] and logs == expected and sat.rho == 0
    # No microring is needed then.
    pnn.SATModel(PLAIN, ascent=None)


NOISE = pnn.Variation(resonance_shift=0.1, temperature=0.5)


@pytest.mark.parametrize(("ascent", "mode"), [(None, EAGER), (pnn.SAM(0.3), GRAPH)])
def test_noise_is_a_fresh_device_each_step(ascent, mode):
    model, manual = banks(), banks()
    sat = pnn.SATModel(model, ascent=ascent, variation=NOISE, seed=7)
    compiled(sat, **mode)
    losses = [sat.train_on_batch(X[:4], Y[:4])[0] for _ in range(3)]
    assert len(np.unique(losses)) == 3
    rho = 0.0 if ascent is None else ascent.rho
    for step in range(3):
        device = drawn_in_training(NOISE, manual, step, seed=7)
        with device.installed(manual):
            manual_step(manual, SELECTIONS["controls"](manual), rho)
    for a, b in zip(model.variables, manual.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=5e-6, err_msg=a.path)
    for layer in physical_layers(model):
        for value in layer.imperfections.values():
            assert not value.numpy().any()


@pytest.mark.parametrize("spread", [0.1, pnn.Correlated(0.1, length=2.0)])
def test_noise_is_the_same_under_xla(spread):
    losses = []
    for options in ({"jit_compile": True}, EAGER):
        noise = pnn.Variation(resonance_shift=spread)
        sat = compiled(pnn.SATModel(banks(), ascent=None, variation=noise), **options)
        losses.append(sat.fit(X, Y, **FIT).history["loss"])
    # What is left is the rounding of the forward pass.
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_distributions_that_xla_draws_otherwise_are_refused():
    import tensorflow_probability as tfp

    skewed = tfp.distributions.VonMises(0.0, 1.0)
    spread = pnn.Variation(resonance_shift=skewed)
    for noise in (spread, spread.scaled(0.5)):
        sat = compiled(
            pnn.SATModel(banks(), ascent=None, variation=noise), jit_compile=True
        )
        with pytest.raises(ValueError, match=r"jit_compile=False.*of resonance_shift"):
            sat.fit(X, Y, **FIT)


@pytest.mark.parametrize("perturb", ["controls", "temperature"])
def test_noise_and_ascent_on_one_variable(perturb):
    """The ascent starts from the drawn value, and neither stays."""
    variation = pnn.Variation(control=0.02, temperature=0.5)
    model = banks()
    sat = pnn.SATModel(model, rho=0.2, perturb=perturb, variation=variation, seed=2)
    compiled(sat, SGD(0.0), **EAGER)
    before = numbers(model.variables)
    logs = sat.fit(X[:4], Y[:4], batch_size=4, verbose=0).history
    assert_same(before, model.variables)
    device = drawn_in_training(variation, model, seed=2)
    with device.installed(model):
        loss, sharpness = manual_step(model, SELECTIONS[perturb](model), 0.2, rate=0.0)
    np.testing.assert_allclose(logs["loss"], [loss], rtol=1e-5)
    np.testing.assert_allclose(logs["sharpness"], [sharpness], rtol=1e-3)


class Sum(pnn.layers.PhysicalLayer):
    """Adds its temperature to the inputs."""

    def build(self, input_shape):
        self.add_control("gain", (), unit="", initializer="ones")
        self.add_imperfection("temperature", (), unit="K", shared=True)

    def forward(self, inputs, controls, imperfections):
        return controls["gain"] * inputs + imperfections["temperature"]


ZEROS = np.zeros((4, 1), "float32")


def heated(device=None, **kwargs):
    """Logs of a step whose loss is the temperature."""
    model = keras.Sequential([keras.Input((1,)), Sum()])
    chip = pnn.devices.sweep(model, "temperature", [3.0])[0]
    measures = chip if device == "measures" else None
    sat = pnn.SATModel(model, ascent=None, device=measures, seed=3, **kwargs)
    # Drift must reach a graph.
    eagerly = device != "drifts"
    sat.compile(SGD(0.0), lambda y, y_pred: y_pred, run_eagerly=eagerly)
    installs = contextlib.nullcontext()
    if device == "installed":
        installs = chip.installed(model)
    drifts = pnn.callbacks.DriftInjection("temperature", pnn.drift.Linear(0, 3.0))
    callbacks = [drifts] if device == "drifts" else []
    with installs:
        return sat.fit(ZEROS, ZEROS, batch_size=4, verbose=0, callbacks=callbacks)


def slm():
    return keras.Sequential([keras.Input((16,)), pnn.layers.MaskedSLM(3)])


@pytest.mark.parametrize("device", ["installed", "drifts", "measures"])
def test_noise_and_the_worst_case_are_added_to_the_chip(device):
    noise = {"variation": pnn.Variation(temperature=0.5)}
    (drawn,) = heated(**noise).history["loss"]
    assert abs(drawn) > 0.1
    worst = {"adversarial": {"temperature": pnn.Autodiff(radius=0.5)}}
    logs = heated(device, **noise, **worst).history
    np.testing.assert_allclose(logs["loss"], [3.0 + drawn], rtol=1e-6)
    np.testing.assert_allclose(logs["sharpness"], [0.5], rtol=1e-5)


RAMP = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("moved", ["rho", "variation"])
def test_warmup_ramps_ascent_and_noise(moved):
    def losses(**kwargs):
        if moved == "rho":
            kwargs = {"rho": 0.2, **kwargs}
        else:
            noise = pnn.Variation(temperature=1.0)
            kwargs = {"ascent": None, "variation": noise, **kwargs}
        model = keras.Sequential([keras.Input((1,)), Sum()])
        sat = pnn.SATModel(model, **kwargs)
        eagerly = "warmup" not in kwargs
        sat.compile(SGD(0.0), lambda y, y_pred: y_pred, run_eagerly=eagerly)
        fit = {"batch_size": 4, "epochs": 6, "verbose": 0}
        logs = sat.fit(ZEROS + (moved == "rho"), ZEROS, **fit).history
        return np.array(logs["sharpness" if moved == "rho" else "loss"])

    # Linear in the radius and in the temperature.
    full, ramped = losses(), losses(warmup=4)
    assert np.abs(full).min() > 0.01
    np.testing.assert_allclose(ramped, RAMP * full, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "imperfection", "noise"),
    [
        (banks, "resonance_shift", "resonance_shift"),
        (mesh, "splitter_error", "splitter_imbalance"),
        (slm, "scale", "scale"),
    ],
)
def test_noise_of_nothing_trains_the_chip_that_is_installed(build, imperfection, noise):
    model = compiled(build(), SGD(0.0), **EAGER)
    x = np.random.default_rng(2).normal(size=(8, *model.input_shape[1:]))
    y = Y[:8] % 3
    (chip,) = pnn.devices.sweep(model, imperfection, [0.3])
    sat = pnn.SATModel(model, ascent=None, variation=pnn.Variation({noise: 1e-7}))
    compiled(sat, SGD(0.0), **EAGER)
    with chip.installed(model):
        expected = model.evaluate(x, y, verbose=0)
        logs = sat.fit(x, y, batch_size=8, verbose=0).history
    np.testing.assert_allclose(logs["loss"], [expected], rtol=1e-4)


def test_noise_on_dense_kernels():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    kernel = model.layers[1].kernel.numpy()
    variation = pnn.Variation(kernel=0.3)
    sat = pnn.SATModel(model, rho=0.0, perturb="all", variation=variation)
    compiled(sat, SGD(0.1), **EAGER).fit(X, Y, batch_size=12, verbose=0)
    device = drawn_in_training(variation, model)
    noisy = tf.constant(kernel + device.deviations["kernel", 0])
    with tf.GradientTape() as tape:
        tape.watch(noisy)
        loss = LOSS(Y, X @ noisy)
    expected = kernel - 0.1 * tape.gradient(loss, noisy)
    np.testing.assert_allclose(model.layers[1].kernel, expected, atol=1e-6)
