"""Physical local learning: its loss by hand, its cut between blocks, what it learns."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import LOSS, assert_same, bank, moved, numbers, policy

import keras_pnn as pnn
from keras_pnn.layers.context import Overrides

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(6, 4)).astype("float32")
Y = np.array([0, 1, 2, 2, 1, 0])


def classifier(units=5, classes=3, features=None, **kwargs):
    keras.utils.set_random_seed(0)
    blocks = [
        keras.Sequential([pnn.layers.MRRBank(units), layers.Activation("tanh")])
        for _ in range(2)
    ]
    model = pnn.LocalClassifier(blocks, classes, **kwargs)
    if features is not None:
        model.build((None, features))
    return model


def trainer_of(model, device=None, ascent=None, theta=4.0, rate=0.1, **kwargs):
    source = pnn.PhyLL(theta)
    trainer = pnn.SATModel(
        model, ascent=ascent, device=device, gradient=source, **kwargs
    )
    optimizer = keras.optimizers.SGD(rate)
    trainer.compile(optimizer, LOSS, metrics=["accuracy"], run_eagerly=True)
    return trainer


def evaluated(trainer, weight=None):
    trainer._build_inner(X)
    trainer.optimizer.build(trainer.trainable_variables)
    batch = (tf.constant(X), tf.constant(Y), weight)
    wrt = trainer.trainable_variables
    return trainer.gradient(trainer, batch, Overrides(), wrt)


def by_hand(model, labels):
    """The goodness of both blocks, in NumPy."""
    y = np.concatenate([X, model.scale * np.eye(3)[labels]], axis=1)
    found = []
    for place, block in enumerate(model.blocks):
        y = np.tanh(y @ block.layers[0].effective_weights())
        p = np.random.default_rng([model.seed, place]).normal(size=y.shape[1])
        along = np.sum(y * p, axis=1)
        found.append(along / np.linalg.norm(y, axis=1) / np.linalg.norm(p))
    return np.array(found)


def wrong_labels(outputs):
    """The labels that were sent beside the right ones; others have the least output."""
    sent = outputs > -2
    assert sent.sum() == 12 and sent[np.arange(6), Y].all()
    sent[np.arange(6), Y] = False
    return sent.argmax(1)


def test_outputs_are_the_goodness_of_each_label():
    model = classifier(scale=0.7, seed=5)
    outputs = model.predict(X, verbose=0)
    for label in range(3):
        right = by_hand(model, np.full(6, label)).sum(0)
        np.testing.assert_allclose(outputs[:, label], right, atol=1e-5)


def test_the_loss_is_that_of_right_and_wrong_labels():
    model = classifier()
    trainer = trainer_of(model, theta=3.0)
    weight = np.linspace(0, 1, 6).astype("float32")
    found = evaluated(trainer, tf.constant(weight))
    outputs = found.y_pred.numpy()
    wrong = wrong_labels(outputs)
    delta = by_hand(model, Y) - by_hand(model, wrong)
    right = np.mean(weight * np.log1p(np.exp(-3.0 * delta)).sum(0))
    assert float(found.loss) == pytest.approx(right, abs=1e-5)
    np.testing.assert_allclose(
        outputs[np.arange(6), wrong], by_hand(model, wrong).sum(0), atol=1e-5
    )


def test_nothing_is_propagated_from_one_block_to_another():
    model = classifier()
    trainer = trainer_of(model)
    found = evaluated(trainer)
    first = model.blocks[0].layers[0].controls["control"]
    wrong, own = wrong_labels(found.y_pred.numpy()), []
    for cut in (True, False):
        with tf.GradientTape() as tape:
            a, b = (model.goodness(X, labels, cut) for labels in (Y, wrong))
            each = [tf.nn.softplus(-4.0 * (p - q)) for p, q in zip(a, b, strict=True)]
            loss = tf.reduce_mean(tf.add_n(each))
            # That of its own block alone.
            own_loss = tf.reduce_mean(each[0])
            chosen = own_loss if cut else loss
        own.append(tape.gradient(chosen, first.value))
    np.testing.assert_allclose(found.gradient(first), own[0], atol=1e-6)
    assert np.abs(own[0] - own[1]).max() > 1e-3


def test_states_and_measurements_are_the_devices():
    model = classifier(features=4)
    chip = pnn.Variation(resonance_shift=0.2).sample(model, 1)[0]
    with chip.installed(model):
        right = evaluated(trainer_of(model))
    trainer = trainer_of(model, chip)
    found = evaluated(trainer)
    np.testing.assert_allclose(found.loss, right.loss, atol=1e-6)
    np.testing.assert_allclose(found.y_pred, right.y_pred, atol=1e-6)
    trainer.fit(X, Y, batch_size=6, verbose=0, validation_data=(X, Y))
    # 2 layers × 6 samples, each with 2 labels, in validation with 3.
    assert trainer.measurements == 2 * 6 * (2 + 3)


@pytest.mark.parametrize(
    "ascent",
    [
        pnn.SAM(0.05),
        pnn.LookSAM(0.05, every=1),
        pnn.FriendlySAM(0.05),
        pnn.GSAM(0.05),
    ],
    ids=lambda a: type(a).__name__,
)
def test_with_an_ascent(ascent):
    model = classifier(features=4)
    trainer = trainer_of(model, pnn.SimulatedDevice({}), ascent)
    before = numbers(trainer.trainable_variables)
    logs = trainer.train_on_batch(X, Y, return_dict=True)
    assert trainer.measurements == 2 * 6 * 2 * 2 and logs["sharpness"] != 0
    assert min(moved(before, trainer.trainable_variables)) > 1e-6


@pytest.mark.parametrize("ascent", [pnn.SAF(), pnn.MESA(start=0), pnn.ESAM()])
def test_ascents_by_outputs_are_refused(ascent):
    trainer = trainer_of(classifier(), ascent=ascent)
    batches = pnn.datasets.Batches(X, Y, 3)
    with pytest.raises(ValueError, match=f"{type(ascent).__name__} goes by outputs"):
        trainer.fit(batches, verbose=0)


@pytest.mark.parametrize("device", [None, pnn.SimulatedDevice({})])
def test_the_worst_case_is_that_of_the_local_loss(device):
    model = classifier(features=4)
    rule = pnn.FiniteDifference(0.1, 0.01, "forward", normalize=False)
    worst = {"adversarial": {"temperature": rule}}
    trainer = trainer_of(model, device, rate=0.0, **worst)
    banks = pnn.layers.physical_layers(model)
    shared = [la.imperfections["temperature"] for la in banks]

    def loss(temperature):
        moved = Overrides((v, tf.constant(temperature)) for v in shared)
        batch = tf.constant(X), tf.constant(Y), None
        return float(pnn.PhyLL().loss(trainer, batch, moved))

    away = 0.1 * (loss(0.01) - loss(0.0)) / 0.01
    rise = loss(away) - loss(0.0)
    logs = trainer.train_on_batch(X, Y, return_dict=True)
    assert logs["sharpness"] == pytest.approx(rise, abs=1e-5)
    assert abs(rise) > 1e-3


def test_digits_are_learned_on_a_chip():
    data = pnn.datasets.load("digits")

    def features(images):
        return images[:, ::4, ::4, 0].reshape(len(images), -1)

    x, held = features(data.x_train), features(data.x_test)
    model = classifier(32, 10, x.shape[1])
    chip = pnn.Variation(resonance_shift=0.03).sample(model, 1)[0]
    trainer = trainer_of(model, chip)
    trainer.compile(keras.optimizers.Adam(0.01), LOSS, metrics=["accuracy"])
    logs = trainer.fit(x, data.y_train, batch_size=64, epochs=12, verbose=0).history
    assert logs["loss"][-1] < 0.5 * logs["loss"][0]
    with chip.installed(model):
        _, accuracy = trainer.evaluate(held, data.y_test, verbose=0)
    assert accuracy > 0.8


def test_a_saved_classifier_is_the_same(tmp_path):
    trainer = trainer_of(classifier(scale=0.5, seed=2), theta=2.0)
    trainer.train_on_batch(X, Y)
    assert trainer.built
    trainer.save(tmp_path / "local.keras")
    loaded = keras.saving.load_model(tmp_path / "local.keras")
    assert_same([loaded.predict(X, verbose=0)], [trainer.predict(X, verbose=0)])
    assert loaded.gradient.theta == 2.0


def test_precision_and_freezing_are_saved():
    with policy("mixed_float16"):
        model = classifier()
    # Goodness is added up in single precision.
    assert model(X).dtype == "float32"
    model.trainable = False
    config = keras.saving.serialize_keras_object(model)
    again = keras.saving.deserialize_keras_object(config)
    assert again.dtype_policy.name == "mixed_float16" and not again.trainable


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_features_of_any_type(dtype):
    found = []
    for x in (np.round(X).astype(dtype), np.round(X)):
        trainer = trainer_of(classifier())
        trainer.train_on_batch(x, Y)
        found.append([trainer.predict(x, verbose=0), *numbers(trainer.model.weights)])
    assert_same(*found)


def test_compiled_by_xla():
    trainer = trainer_of(classifier())
    trainer.compile(keras.optimizers.SGD(0.1), LOSS, jit_compile=True)
    eager = trainer_of(classifier())
    for t in (trainer, eager):
        t.train_on_batch(X, Y)
    assert_same(numbers(trainer.model.weights), numbers(eager.model.weights), 1e-6)


def test_fields_count_by_their_amplitudes():
    keras.utils.set_random_seed(0)
    blocks = [pnn.layers.MZIMesh(7), pnn.layers.MZIMesh(7)]
    model = pnn.LocalClassifier(blocks, 3)
    (goodness, _) = model.goodness(X, Y)
    field = blocks[0](np.concatenate([X, np.eye(3)[Y]], axis=1).astype("float32"))
    light = np.abs(field)
    right = light @ model.direction(0, 7) / np.linalg.norm(light, axis=1)
    np.testing.assert_allclose(goodness, right, atol=1e-5)


def test_bad_input():
    good = [pnn.layers.MRRBank(3), pnn.layers.MRRBank(3)]
    for blocks, received in ((good[:1], "1"), ([*good, layers.Dense(3)], "Dense")):
        with pytest.raises(ValueError, match=f"`blocks` must be two.*{received}"):
            pnn.LocalClassifier(blocks, 3)
    with pytest.raises(ValueError, match="`classes` must be"):
        pnn.LocalClassifier(good, 1)
    with pytest.raises(ValueError, match="`scale` must be"):
        pnn.LocalClassifier(good, 3, scale=0)
    with pytest.raises(ValueError, match="`theta` must be"):
        pnn.PhyLL(0)
    with pytest.raises(ValueError, match=r"a pnn\.LocalClassifier for PhyLL"):
        trainer_of(bank(4, 3)).train_on_batch(X, Y)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Labels must be from 0"):
        trainer_of(classifier()).train_on_batch(X, Y + 1)
    with pytest.raises(ValueError, match="one integer label"):
        trainer_of(classifier()).train_on_batch(X, np.eye(3)[Y])
