"""A run that ends anywhere goes on there, to the same bits."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pnn as pnn
from keras_pnn.callbacks import BatchOrder, Checkpoint, DriftInjection
from keras_pnn.training.resume import load_state, save_state

X = np.random.default_rng(0).normal(size=(22, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 22)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
EPOCHS = 2
STEPS = 6


def network(seed=5):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    x = pnn.layers.MRRBank(5, activation="relu", name="first")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.4)(x)
    return keras.Model(inputs, pnn.layers.MRRBank(3, name="second")(x))


def sat(seed=5, eagerly=True, **kwargs):
    noise = pnn.Variation(resonance_shift=0.05)
    kwargs = {"rho": 0.2, "variation": noise, **kwargs}
    model = pnn.SATModel(network(seed), **kwargs)
    model.compile(keras.optimizers.Adam(0.02), LOSS, run_eagerly=eagerly)
    return model


def fit(model, *callbacks, epochs=EPOCHS, drift=True):
    batches = pnn.datasets.Batches(X, Y, batch_size=4, seed=3)
    assert len(batches) == STEPS
    own = [BatchOrder(batches)]
    if drift:
        walk = pnn.drift.RandomWalk(std=0.3)
        own.append(DriftInjection("temperature", walk))
    options = {"epochs": epochs, "shuffle": False, "verbose": 0}
    return model.fit(batches, callbacks=[*own, *callbacks], **options)


def state(model):
    return [np.array(v) for v in [*model.weights, *model.optimizer.variables]]


def assert_same(one, other):
    assert len(one) == len(other) > 10
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    """Ends the run at the end of a batch, or with batch=None of an epoch."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise Killed

    def on_epoch_end(self, epoch, logs=None):
        if (epoch, None) == self.at:
            raise Killed


class Steps(keras.callbacks.Callback):
    """The epochs that were begun."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)


@pytest.fixture(scope="module")
def uninterrupted():
    model = sat()
    fit(model)
    return state(model)


def position(folder):
    content = json.loads((folder / "latest.json").read_text("utf-8"))
    return content["epoch"], content["batches"]


@pytest.mark.parametrize(
    ("every", "kill", "kept"),
    [
        (2, Kill(1, 2), (1, 2)),
        (2, Kill(0), (0, 6)),
        (None, Kill(1, 4), (1, 0)),
        (4, Kill(0, 1), None),
    ],
    ids=["mid-epoch", "epoch end", "epochs", "no state"],
)
def test_a_killed_run_goes_on_exactly(every, kill, kept, tmp_path, uninterrupted):
    folder = tmp_path / "state"
    with pytest.raises(Killed):
        # Before and after the checkpoint: the order of callbacks does not matter.
        fit(sat(), kill, Checkpoint(folder, every))
    assert (position(folder) if kept else None) == kept
    steps = Steps()
    # Another start, so that everything must come from the file.
    model = sat(seed=99 if kept else 5)
    fit(model, Checkpoint(folder, every), steps)
    assert_same(state(model), uninterrupted)
    first = kept[0] if kept else 0
    assert steps.epochs == list(range(first, EPOCHS))
    assert not folder.exists()
    assert model._initial_epoch is None


def test_killed_after_the_state_of_an_epoch(tmp_path, uninterrupted):
    with pytest.raises(Killed):
        fit(sat(), Checkpoint(tmp_path / "state", 4), Kill(EPOCHS - 1))
    assert position(tmp_path / "state") == (EPOCHS, 0)
    model = sat(seed=99)
    fit(model, Checkpoint(tmp_path / "state", 4))
    assert_same(state(model), uninterrupted)
    assert not (tmp_path / "state").exists()


def test_killed_twice_in_one_epoch_with_compiled_steps(tmp_path):
    straight = sat(eagerly=False)
    fit(straight, epochs=2)
    folder = tmp_path / "state"
    with pytest.raises(Killed):
        fit(sat(eagerly=False), Checkpoint(folder, every=2), Kill(0, 2), epochs=2)
    model = sat(seed=99, eagerly=False)
    with pytest.raises(Killed):
        # While batches are passed over: nothing of this attempt may stay.
        fit(model, Checkpoint(folder, every=2), Kill(0, 0), epochs=2)
    assert position(folder) == (0, 2)
    with pytest.raises(Killed):
        fit(model, Checkpoint(folder, every=2), Kill(0, 4), epochs=2)
    assert position(folder) == (0, 4)
    fit(model, Checkpoint(folder, every=2), epochs=2)
    assert_same(state(model), state(straight))


def two_outputs(metrics):
    keras.utils.set_random_seed(5)
    inputs = keras.Input((4,))
    x = pnn.layers.MRRBank(5, activation="relu")(inputs)
    outputs = {n: pnn.layers.MRRBank(3, name=n)(x) for n in ("one", "two")}
    model = pnn.SATModel(keras.Model(inputs, outputs), rho=0.2)
    losses = {"one": LOSS, "two": LOSS}
    model.compile(keras.optimizers.Adam(0.02), losses, **metrics)
    return model


class Seen(keras.callbacks.Callback):
    """The logs of each batch."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))


@pytest.mark.parametrize(
    ("kill", "metrics"),
    [
        (Kill(0, 3), {"metrics": {"one": "accuracy"}}),
        (Kill(0), {"weighted_metrics": {"two": ["accuracy"]}}),
        (Kill(0, 3), {}),
    ],
    ids=["mid-epoch", "epoch end, weighted", "mid-epoch, losses"],
)
def test_the_logs_of_a_resumed_epoch_are_those_of_all_of_it(kill, metrics, tmp_path):
    """What was compiled has no variables before the first batch is trained."""
    # Full batches alone: Keras weighs the losses of outputs alike for every batch.
    steps, x, y = 5, X[:20], {"one": Y[:20], "two": Y[:20]}
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    straight, resumed = Seen(), Seen()
    two_outputs(metrics).fit(x, y, callbacks=[straight], **options)
    folder = tmp_path / "state"
    mid_epoch = kill.at[1] is not None
    keeper = Checkpoint(folder, every=2 if mid_epoch else 5)
    callbacks = [keeper, kill] if mid_epoch else [kill, keeper]
    with pytest.raises(Killed):
        two_outputs(metrics).fit(x, y, callbacks=callbacks, **options)
    done = 4 if mid_epoch else steps
    assert position(folder) == (0, done)
    callbacks = [Checkpoint(folder), resumed]
    history = two_outputs(metrics).fit(x, y, callbacks=callbacks, **options).history
    assert len(resumed.logs) == steps
    assert all(set(logs) == set(straight.logs[0]) for logs in resumed.logs)
    assert resumed.logs[done - 1 :] == straight.logs[done - 1 :]
    assert {n: [v] for n, v in straight.logs[-1].items()} == history


def test_what_a_resumed_run_left_does_not_reach_another(tmp_path):
    folder = tmp_path / "state"
    with pytest.raises(Killed):
        fit(sat(), Checkpoint(folder, every=3), Kill(1, 3))
    model = sat()
    with pytest.raises(Killed):
        fit(model, Checkpoint(folder, every=3), Kill(1, 0))
    before = int(model.optimizer.iterations.numpy())
    steps = Steps()
    fit(model, steps)
    assert steps.epochs == list(range(EPOCHS))
    assert int(model.optimizer.iterations.numpy()) == before + EPOCHS * STEPS


def several(together, *callbacks, **options):
    """Five batches, some at a time: the last execution of an epoch may have fewer."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    model = pnn.SATModel(model, rho=0.1, perturb="all")
    model.compile("adam", LOSS, steps_per_execution=together)
    options |= {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}
    try:
        model.fit(X[:20], Y[:20], callbacks=list(callbacks), **options)
    except Killed:
        return None
    return [np.array(v) for v in [*model.weights, *model.optimizer.variables]]


@pytest.fixture(scope="module")
def one_by_one():
    return several(1)


def test_several_steps_per_execution(tmp_path):
    expected = several(2)
    assert several(2, Kill(0), Checkpoint(tmp_path / "state", every=2)) is None
    found = several(2, Checkpoint(tmp_path / "state", every=2))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


class KillInValidation(keras.callbacks.Callback):
    def on_test_batch_begin(self, batch, logs=None):
        raise Killed


@pytest.mark.parametrize("others", [2, 3])
def test_an_epoch_is_done_whatever_the_steps_per_execution(
    others, one_by_one, tmp_path
):
    """Keras counts the last execution of four as if it had four batches."""
    validation = {"validation_data": (X[:4], Y[:4])}
    keeper = Checkpoint(tmp_path / "state", every=4)
    assert several(4, keeper, KillInValidation(), **validation) is None
    assert position(tmp_path / "state") == (0, 4)
    if 4 % others:
        with pytest.raises(ValueError, match=r"Received: steps_per_execution=3 after"):
            several(others, Checkpoint(tmp_path / "state"), **validation)
        return
    found = several(others, Checkpoint(tmp_path / "state"), **validation)
    for a, b in zip(one_by_one, found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("every", "together", "kept"), [(3, 2, 4), (5, 4, 5)])
def test_a_state_is_kept_when_the_next_one_is_due(
    every, together, kept, one_by_one, tmp_path
):
    """Also where executions end beside the multiples of `every`."""
    keeper = Checkpoint(tmp_path / "state", every)
    validation = {"validation_data": (X[:4], Y[:4])}
    assert several(together, keeper, KillInValidation(), **validation) is None
    assert position(tmp_path / "state") == (0, kept)
    found = several(1, Checkpoint(tmp_path / "state"), **validation)
    for a, b in zip(one_by_one, found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_metrics_of_an_epoch_outlive_its_validation(tmp_path):
    """A device that dies in validation, whose metrics are the same variables."""

    class Dies(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            raise pnn.DeviceError("first", 1)

    online = on_bench()
    batches = pnn.datasets.Batches(X, Y, batch_size=4, seed=3)
    options = {"validation_data": (X, Y), "epochs": 1, "shuffle": False, "verbose": 0}
    order = BatchOrder(batches)
    seen = Seen()
    folder = tmp_path / "state"
    with pytest.raises(pnn.DeviceError):
        online.fit(
            batches, callbacks=[order, seen, Checkpoint(folder), Dies()], **options
        )
    assert position(folder) == (0, STEPS)
    other = on_bench(seed=99)
    history = other.fit(batches, callbacks=[order, Checkpoint(folder)], **options)
    for name, value in seen.logs[-1].items():
        assert history.history[name] == [value]


def test_installed_imperfections_stay(tmp_path):
    model = sat()
    fit(model, epochs=1)
    folder = save_state(model, tmp_path / "state", 1, 0)
    other = sat(seed=99)
    shift = other.model.get_layer("first").imperfections["resonance_shift"]
    shift.assign(np.full(shift.shape, 0.07, "float32"))
    assert load_state(other, folder)[:2] == (1, 0)
    np.testing.assert_array_equal(shift.numpy(), np.full(shift.shape, 0.07, "float32"))
    one, two = (m.model.get_layer("first").controls for m in (model, other))
    for name in one:
        np.testing.assert_array_equal(one[name].numpy(), two[name].numpy())


# A device that dies.


class Bench(pnn.HardwareDevice):
    """A simulated chip behind NumPy, which breaks at a call."""

    def __init__(self, simulated, breaks=None, **kwargs):
        super().__init__(**{"backoff": 0.0, "retries": 1, **kwargs})
        self.simulated, self.breaks = simulated, breaks

    def measure(self, layer, inputs, controls):
        if self.breaks is not None and self.calls >= self.breaks:
            raise OSError("no light")
        return self.simulated.measure(layer, tf.constant(inputs), controls).numpy()


def on_bench(breaks=None, seed=5, eagerly=True):
    model = network(seed)
    (chip,) = pnn.Variation(resonance_shift=0.1).sample(model, 1)
    bench = Bench(chip.attach(model), breaks)
    online = pnn.SATModel(model, rho=0.2, device=bench, name="online")
    online.compile(keras.optimizers.Adam(0.02), LOSS, run_eagerly=eagerly)
    return online


@pytest.fixture(scope="module")
def measured():
    online = on_bench()
    fit(online, epochs=2, drift=False)
    # Two layers, two passes.
    assert online.device.calls == 2 * STEPS * 4
    return state(online)


@pytest.mark.parametrize(
    ("breaks", "layer", "batches", "eagerly"),
    [
        (4 * 8 + 4, "second", (1, 2), True),
        (4 * 8 + 4, "second", (1, 2), False),
        (1, "first", (0, 0), True),
    ],
)
def test_a_dead_device_leaves_the_state(
    breaks, layer, batches, eagerly, tmp_path, measured
):
    """In the first or the second pass: the state is that after the last whole step."""
    folder = tmp_path / "state"
    with pytest.raises(pnn.DeviceError, match=rf"'{layer}'.*OSError: no light") as info:
        online = on_bench(breaks, eagerly=eagerly)
        fit(online, Checkpoint(folder, every=4), epochs=2, drift=False)
    error = info.value
    assert error.layer == layer and error.call == breaks + 1
    assert isinstance(error.cause, OSError)
    (note,) = error.__notes__
    assert f"after {batches[1]} batches of epoch {batches[0] + 1}" in note
    assert str(folder) in note and "Checkpoint(" in note
    assert position(folder) == batches
    other = on_bench(seed=99, eagerly=eagerly)
    fit(other, Checkpoint(folder, every=4), epochs=2, drift=False)
    if eagerly:
        assert_same(state(other), measured)
    for a, b in zip(state(other), measured, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_dead_device_after_a_resume(tmp_path, measured):
    """What was passed over counts as done."""
    folder = tmp_path / "state"
    for breaks in (4 * 3 + 2, 2):
        with pytest.raises(pnn.DeviceError):
            fit(on_bench(breaks), Checkpoint(folder), epochs=2, drift=False)
        assert position(folder) == (0, 3)
    other = on_bench(seed=99)
    fit(other, Checkpoint(folder), epochs=2, drift=False)
    assert_same(state(other), measured)


def test_a_dead_device_without_a_checkpoint(tmp_path, monkeypatch, measured):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pnn.DeviceError) as info:
        fit(on_bench(4 * 2 + 3), epochs=2, drift=False)
    (note,) = info.value.__notes__
    assert "Checkpoint('interrupted_online')" in note
    assert position(tmp_path / "interrupted_online") == (0, 2)
    other = on_bench(seed=99)
    fit(other, Checkpoint("interrupted_online"), epochs=2, drift=False)
    assert_same(state(other), measured)
    assert list(tmp_path.iterdir()) == []


# Refusals, and what is removed.


def test_an_order_that_is_not_known_is_refused(tmp_path):
    model = sat()
    keep = Checkpoint(tmp_path / "state")
    with pytest.raises(ValueError, match=r"shuffle=False\. Received: ndarray, shuffle"):
        model.fit(X, Y, verbose=0, callbacks=[keep])
    batches = pnn.datasets.Batches(X, Y, batch_size=4)
    other = BatchOrder(pnn.datasets.Batches(X, Y, batch_size=4))
    for callbacks in ([keep], [other, keep]):
        with pytest.raises(ValueError, match="BatchOrder"):
            model.fit(batches, shuffle=False, verbose=0, callbacks=callbacks)
    with pytest.raises(ValueError, match="BatchOrder"):
        callbacks = keras.callbacks.CallbackList([keep], model=model)
        model.fit(batches, shuffle=False, verbose=0, callbacks=callbacks)
    assert model.optimizer.iterations.numpy() == 0
    model.fit(X, Y, shuffle=False, verbose=0, callbacks=[keep])
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(11)
    with pytest.raises(ValueError, match=r"fixed order.*Received: _BatchDataset"):
        model.fit(data, verbose=0, callbacks=keep)
    model.fit(data, shuffle=False, verbose=0, callbacks=keep)
    with pytest.raises(ValueError, match=r"Received: generator"):
        model.fit(iter_of(data), shuffle=False, verbose=0, callbacks=keep)


def iter_of(data):
    yield from data


def test_other_models_are_refused(tmp_path):
    model = network()
    model.compile("adam", LOSS)
    with pytest.raises(ValueError, match=r"BackupAndRestore.*Received: Functional"):
        model.fit(X, Y, shuffle=False, verbose=0, callbacks=[Checkpoint(tmp_path)])


def test_damaged_states_are_refused(tmp_path):
    model = sat()
    fit(model, epochs=1)
    folder = save_state(model, tmp_path / "state", 1, 2)
    weights = next(folder.glob("state_*"))
    whole, pointer = weights.read_bytes(), (folder / "latest.json").read_text()
    damages = {
        "cut short": lambda: weights.write_bytes(whole[: len(whole) // 2]),
        "no weights": weights.unlink,
        "no JSON": lambda: (folder / "latest.json").write_text("{"),
        "no position": lambda: (folder / "latest.json").write_text(
            json.dumps({"weights": weights.name})
        ),
    }
    for name, damage in damages.items():
        damage()
        with pytest.raises(ValueError, match="`folder` must hold the state") as info:
            fit(sat(), Checkpoint(folder), epochs=2)
        assert str(folder) in str(info.value), name
        weights.write_bytes(whole)
        (folder / "latest.json").write_text(pointer)
    assert load_state(sat(), folder)[:2] == (1, 2)


def test_a_state_of_another_model_is_refused(tmp_path):
    folder = save_state(sat(), tmp_path / "state", 1, 2)
    inputs = keras.Input((4,))
    other = pnn.SATModel(keras.Model(inputs, pnn.layers.MRRBank(3)(inputs)))
    other.compile("adam", LOSS)
    # The optimizer's state is as much a part of it.
    plain = sat()
    plain.compile(keras.optimizers.SGD(0.1), LOSS)
    for model in (other, plain):
        with pytest.raises(ValueError, match="`folder` must hold the state"):
            model.fit(X, Y, shuffle=False, verbose=0, callbacks=[Checkpoint(folder)])
    assert position(folder) == (1, 2)


def test_only_its_own_files_are_removed(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    # What a kill in the middle of writing leaves.
    (tmp_path / "part.weights.h5").write_bytes(b"half")
    fit(sat(), Checkpoint(tmp_path, every=2), epochs=1)
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]


def test_one_state_is_kept(tmp_path):
    model = sat()
    for epoch, batches in ((0, 2), (0, 4), (1, 0)):
        save_state(model, tmp_path / "deep" / "state", epoch, batches)
    names = sorted(p.name for p in (tmp_path / "deep" / "state").iterdir())
    assert names == ["latest.json", "state_1_0.weights.h5"]
    assert load_state(model, tmp_path / "nothing") is None


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "epoch"])
def test_bad_arguments(every):
    with pytest.raises(ValueError, match="`every`"):
        Checkpoint("state", every=every)


class DiesAt(keras.callbacks.Callback):
    def __init__(self, moment):
        super().__init__()

        def die(*_, logs=None):
            raise pnn.DeviceError("first", 1)

        setattr(self, moment, die)


@pytest.mark.parametrize(
    "moment", ["on_train_begin", "on_epoch_begin", "on_train_batch_begin"]
)
@pytest.mark.parametrize("kept", [(0, 4), (1, 2)])
def test_a_device_that_dies_as_a_run_is_resumed_changes_no_state(
    moment, kept, tmp_path
):
    folder = tmp_path / "state"
    with pytest.raises(Killed):
        fit(sat(), Checkpoint(folder, every=2), Kill(kept[0], kept[1]))
    content = (folder / "latest.json").read_text("utf-8")
    assert position(folder) == kept and '"metrics": [[' in content
    with pytest.raises(pnn.DeviceError):
        fit(sat(seed=99), Checkpoint(folder, every=2), DiesAt(moment))
    assert (folder / "latest.json").read_text("utf-8") == content
