"""A run that ends anywhere goes on there, to the same bits."""

import pathlib
import signal

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from models import (
    LOSS,
    Bench,
    assert_same,
    banks,
    compiled,
    numbers,
    ring_chip,
    run_script,
    samples,
)

import keras_pnn as pnn
from keras_pnn.callbacks import Checkpoint, DriftInjection
from keras_pnn.training.resume import Position, load_state, metrics_of, save_state

X, Y = samples(22)
EPOCHS = 2
# 14 samples by fours.
STEPS = 4
STATE = "state.weights.h5"


def network(seed=5):
    """Another seed, another start and other dropout masks."""
    between = keras.layers.BatchNormalization(), keras.layers.Dropout(0.4, seed=seed)
    model = banks(*between)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.uniform(-0.5, 0.5, variable.shape))
    return model


def momentum():
    """An optimizer with a state, in eager steps much faster than Adam."""
    return keras.optimizers.SGD(0.02, momentum=0.9)


def sat(seed=5, eagerly=True, **kwargs):
    kwargs = {"rho": 0.2, "variation": pnn.Variation(resonance_shift=0.05), **kwargs}
    model = pnn.SATModel(network(seed), **kwargs)
    return compiled(model, momentum(), run_eagerly=eagerly)


def fit(model, *callbacks, epochs=EPOCHS, drift=True, **options):
    """The batches are all that `fit` needs: no order, no shuffle=False."""
    batches = pnn.datasets.Batches(X[:14], Y[:14], batch_size=4, seed=3)
    walk = DriftInjection("temperature", pnn.drift.RandomWalk(std=0.3))
    options["callbacks"] = [*([walk] if drift else []), *callbacks]
    return model.fit(batches, epochs=epochs, verbose=0, **options)


def validated(model, *callbacks, **options):
    return fit(model, *callbacks, drift=False, validation_data=(X, Y), **options)


def state(model):
    return numbers([*model.weights, *model.optimizer.variables])


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    """Ends the run at the end of a batch, or with batch=None of an epoch."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at = epoch, batch

    def end(self):
        raise Killed

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            self.end()

    def on_epoch_end(self, epoch, logs=None):
        if (epoch, None) == self.at:
            self.end()


class Dies(keras.callbacks.Callback):
    """A device that fails in a callback."""

    def __init__(self, moment, error=None):
        super().__init__()

        def die(*_, logs=None):
            raise error or pnn.DeviceError("first", 1)

        setattr(self, moment, die)


class Seen(keras.callbacks.Callback):
    """The epochs that were begun, and the logs of each batch."""

    def __init__(self):
        super().__init__()
        self.epochs, self.logs = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))


@pytest.fixture(scope="module")
def uninterrupted():
    model = sat()
    fit(model)
    return state(model)


def position(folder):
    with h5py.File(folder / STATE) as file:
        found = file["keras_pnn_position"].attrs
        return found["epoch"], found["batches"]


@pytest.mark.parametrize(
    ("every", "kill", "kept"),
    [
        (2, Kill(1, 2), (1, 2)),
        (2, Kill(0), (0, STEPS)),
        (None, Kill(1, 2), (1, 0)),
        (3, Kill(0, 1), None),
        (3, Kill(EPOCHS - 1), (EPOCHS, 0)),
    ],
    ids=["mid-epoch", "epoch end", "epochs", "no state", "done"],
)
def test_a_killed_run_goes_on_exactly(every, kill, kept, tmp_path, uninterrupted):
    folder = tmp_path / "state"
    # Before and after the checkpoint: the order of callbacks does not matter.
    done = kept == (EPOCHS, 0)
    callbacks = [Checkpoint(folder, every), kill] if done else [kill]
    with pytest.raises(Killed):
        fit(sat(), *callbacks, *([] if done else [Checkpoint(folder, every)]))
    assert (position(folder) if kept else None) == kept
    seen = Seen()
    # Another start, so that everything must come from the file.
    model = sat(seed=99 if kept else 5)
    fit(model, Checkpoint(folder, every), seen)
    assert_same(state(model), uninterrupted)
    first = kept[0] if kept else 0
    assert seen.epochs == list(range(first, EPOCHS))
    assert not folder.exists()


def test_a_run_killed_in_another_process_goes_on_exactly(tmp_path, uninterrupted):
    script = """
        import os, sys
        folder, *sys.path[:0] = sys.argv[1:]
        from test_checkpoint import Checkpoint, Kill, fit, sat
        Kill.end = lambda self: os.kill(os.getpid(), 9)
        fit(sat(), Checkpoint(folder, every=2), Kill(1, 2))
    """
    folder, here = tmp_path / "state", pathlib.Path(__file__).parent
    killed = run_script(script, folder, here, here.parent)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert position(folder) == (1, 2)
    model = sat(seed=99)
    fit(model, Checkpoint(folder, every=2))
    assert_same(state(model), uninterrupted)


def test_what_a_resumed_run_left_does_not_reach_another(tmp_path):
    folder = tmp_path / "state"
    with pytest.raises(Killed):
        fit(sat(), Checkpoint(folder, every=3), Kill(1, 3))
    model, seen = sat(), Seen()
    with pytest.raises(Killed):
        fit(model, Checkpoint(folder, every=3), Kill(1, 0))
    before = int(model.optimizer.iterations.numpy())
    fit(model, seen, epochs=1)
    assert seen.epochs == [0]
    assert int(model.optimizer.iterations.numpy()) == before + STEPS


def two_outputs(metrics):
    keras.utils.set_random_seed(5)
    inputs = keras.Input((4,))
    x = pnn.layers.MRRBank(5, activation="relu")(inputs)
    outputs = {n: pnn.layers.MRRBank(3, name=n)(x) for n in ("one", "two")}
    model = pnn.SATModel(keras.Model(inputs, outputs), rho=0.2)
    losses = {"one": LOSS, "two": LOSS}
    options = {"run_eagerly": True, **metrics}
    return compiled(model, momentum(), losses, **options)


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


# Several steps in one execution.


def several(together, *callbacks, **options):
    """Five batches, some at a time: the last execution of an epoch may have fewer."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    model = pnn.SATModel(model, rho=0.1, perturb="all")
    compiled(model, "adam", steps_per_execution=together)
    options |= {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}
    try:
        model.fit(X[:20], Y[:20], callbacks=list(callbacks), **options)
    except Killed:
        return None
    return state(model)


@pytest.fixture(scope="module")
def one_by_one():
    return several(1)


def test_killed_twice_in_one_epoch(one_by_one, tmp_path):
    folder = tmp_path / "state"
    # The second time while batches are passed over: nothing of this attempt may stay.
    for kill, kept in (((0, 2), (0, 2)), ((0, 0), (0, 2)), ((0, 4), (0, 4))):
        assert several(1, Checkpoint(folder, every=2), Kill(*kill)) is None
        assert position(folder) == kept
    assert_same(several(1, Checkpoint(folder, every=2)), one_by_one)


VALIDATION = {"validation_data": (X[:4], Y[:4])}


@pytest.mark.parametrize(
    ("every", "together", "kept", "others"),
    [
        # Keras counts the last execution of four as if it had four batches.
        (4, 4, 4, 2),
        (4, 4, 4, 3),
        # Where executions end beside the multiples of `every`.
        (3, 2, 4, 1),
        (5, 4, 5, 1),
    ],
)
def test_several_steps_per_execution(
    every, together, kept, others, one_by_one, tmp_path
):
    folder = tmp_path / "state"
    keeper = Checkpoint(folder, every)
    kill = Dies("on_test_batch_begin", Killed())
    assert several(together, keeper, kill, **VALIDATION) is None
    assert position(folder) == (0, kept)
    if kept % others:
        with pytest.raises(ValueError, match=r"Received: steps_per_execution=3 after"):
            several(others, Checkpoint(folder), **VALIDATION)
        return
    found = several(others, Checkpoint(folder), **VALIDATION)
    assert_same(one_by_one, found, 1e-6)


# A device that dies.


def on_bench(breaks=None, seed=5, eagerly=True):
    model = network(seed)
    bench = Bench(ring_chip(model), breaks, retries=1)
    online = pnn.SATModel(model, rho=0.2, device=bench)
    return compiled(online, momentum(), run_eagerly=eagerly)


@pytest.fixture(scope="module")
def measured():
    online = on_bench()
    fit(online, drift=False)
    # Two layers, two passes.
    assert online.device.calls == 2 * STEPS * 4
    return state(online)


@pytest.mark.parametrize(
    ("breaks", "layer", "batches", "eagerly"),
    [
        (4 * (STEPS + 2) + 4, "second", (1, 2), True),
        (4 * (STEPS + 2) + 4, "second", (1, 2), False),
        (1, "first", (0, 0), True),
    ],
)
def test_a_dead_device_leaves_the_state(
    breaks, layer, batches, eagerly, tmp_path, measured
):
    """In the first or the second pass: the state is that after the last whole step."""
    folder = tmp_path / "state"
    with pytest.raises(pnn.DeviceError, match=rf"'{layer}'.*OSError: no light") as info:
        fit(on_bench(breaks, eagerly=eagerly), Checkpoint(folder, every=4), drift=False)
    error = info.value
    assert error.layer == layer and error.call == breaks + 1
    assert isinstance(error.cause, OSError)
    (note,) = error.__notes__
    assert f"after {batches[1]} batches of epoch {batches[0] + 1}" in note
    assert str(folder) in note and "Checkpoint(" in note
    assert position(folder) == batches
    other = on_bench(seed=99, eagerly=eagerly)
    fit(other, Checkpoint(folder, every=4), drift=False)
    assert_same(state(other), measured, 0.0 if eagerly else 1e-4)


def test_a_dead_device_after_a_resume(tmp_path, measured):
    """What was passed over counts as done."""
    folder = tmp_path / "state"
    for breaks in (4 * 3 + 2, 2):
        with pytest.raises(pnn.DeviceError):
            fit(on_bench(breaks), Checkpoint(folder), drift=False)
        assert position(folder) == (0, 3)
    other = on_bench(seed=99)
    fit(other, Checkpoint(folder), drift=False)
    assert_same(state(other), measured)


def test_a_dead_device_without_a_checkpoint_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pnn.DeviceError) as info:
        fit(on_bench(4 * 2 + 3), drift=False)
    (note,) = info.value.__notes__
    assert "No state was kept" in note and "pnn.callbacks.Checkpoint(folder)" in note
    assert list(tmp_path.iterdir()) == []


def test_metrics_of_an_epoch_outlive_its_validation(tmp_path):
    """A device that dies in validation, whose metrics are the same variables."""
    seen, folder = Seen(), tmp_path / "state"
    callbacks = [seen, Checkpoint(folder), Dies("on_test_batch_end")]
    with pytest.raises(pnn.DeviceError):
        validated(on_bench(), *callbacks, epochs=1)
    assert position(folder) == (0, STEPS)
    history = validated(on_bench(seed=99), Checkpoint(folder), epochs=1)
    for name, value in seen.logs[-1].items():
        assert history.history[name] == [value]


class Coarse(keras.callbacks.Callback):
    """Validates the weights with fewer digits than they are trained with."""

    def on_test_begin(self, logs=None):
        self.own = self.model.get_weights()
        self.model.set_weights([np.round(w, 1) for w in self.own])

    def on_test_end(self, logs=None):
        self.model.set_weights(self.own)


def averaging(breaks=None):
    """Trains on a bench with averages of the weights."""
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    model = network()
    pat = pnn.PATModel(model, Bench(ring_chip(model), breaks))
    return compiled(pat, optimizer, run_eagerly=True)


@pytest.mark.parametrize(
    ("swap", "first"),
    [
        (keras.callbacks.SwapEMAWeights, True),
        (keras.callbacks.SwapEMAWeights, False),
        (Coarse, True),
    ],
)
def test_a_device_that_dies_in_validation_leaves_the_weights_of_training(
    swap, first, tmp_path
):
    """Though callbacks have others in the model then."""
    whole = averaging()
    validated(whole, swap())
    # The same callback in both runs: Keras leaves it as it was when the device died.
    callbacks = [swap(), Checkpoint(tmp_path / "state")][:: -1 if first else 1]
    # Two layers: in the first batch of the first validation.
    killed = averaging(breaks=2 * STEPS + 1)
    with pytest.raises(pnn.DeviceError):
        validated(killed, *callbacks)
    assert position(tmp_path / "state") == (0, STEPS)
    left = state(killed)
    resumed = averaging()
    load_state(resumed, tmp_path / "state")
    assert_same(state(resumed), left)
    validated(resumed, *callbacks)
    # Keras swaps weights by sums, which it rounds.
    assert_same(state(resumed), state(whole), 1e-6)


def test_averages_at_the_end_of_an_epoch_are_not_the_state(tmp_path):
    def swap():
        return keras.callbacks.SwapEMAWeights(swap_on_epoch=True)

    def keep():
        return Checkpoint(tmp_path / "state")

    whole = averaging()
    validated(whole, swap())
    with pytest.raises(ValueError, match=r"list the `Checkpoint` first.*'SwapEMA"):
        validated(averaging(), swap(), keep())
    with pytest.raises(pnn.DeviceError):
        validated(averaging(), keep(), swap(), Dies("on_epoch_end"))
    assert position(tmp_path / "state") == (1, 0)
    resumed = averaging()
    validated(resumed, keep(), swap())
    assert_same(state(resumed), state(whole), 1e-6)


@pytest.mark.parametrize(
    ("kept", "moment", "first"),
    [
        ((0, 2), "on_train_begin", True),
        ((0, 2), "on_train_batch_begin", False),
        ((1, 2), "on_train_begin", False),
        ((1, 2), "on_train_batch_begin", True),
    ],
)
def test_a_device_that_dies_as_a_run_is_resumed_changes_no_state(
    kept, moment, first, tmp_path
):
    folder = tmp_path / "state"
    model = sat()
    fit(model, epochs=1)
    save_state(model, folder, Position(*kept, metrics_of(model)))
    expected = state(model)
    callbacks = [Checkpoint(folder, every=2), Dies(moment)]
    with pytest.raises(pnn.DeviceError):
        fit(sat(seed=99), *(callbacks[::-1] if first else callbacks))
    other = sat(seed=99)
    found = load_state(other, folder)
    assert (found.epoch, found.batches) == kept
    assert_same(found.metrics, metrics_of(model))
    assert_same(state(other), expected)


# The file; refusals, and what is removed.


def test_installed_imperfections_stay(tmp_path):
    model, other = sat(), sat(seed=99)
    save_state(model, tmp_path, Position(1, 0))
    layer = other.model.get_layer("first")
    shift = layer.imperfections["resonance_shift"]
    shift.assign(np.full(shift.shape, 0.07, "float32"))
    assert load_state(other, tmp_path) == Position(1, 0)
    np.testing.assert_array_equal(shift.numpy(), np.full(shift.shape, 0.07, "float32"))
    controls = model.model.get_layer("first").controls
    assert_same(controls.values(), layer.controls.values())


def test_an_order_that_is_not_known_is_refused(tmp_path):
    model = sat()
    keep = Checkpoint(tmp_path / "state")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(11)
    for x, y, shuffle, received in (
        (X, Y, True, "ndarray, shuffle=True"),
        (data, None, True, "_BatchDataset, shuffle=True"),
        ((batch for batch in data), None, False, "generator"),
    ):
        options = {"shuffle": shuffle, "verbose": 0}
        for callbacks in (keep, keras.callbacks.CallbackList([keep], model=model)):
            with pytest.raises(ValueError, match=f"be known.*Received: {received}"):
                model.fit(x, y, callbacks=callbacks, **options)
    # An epoch of these begins where the last one ended.
    for x, y in ((X, Y), (data.repeat(), None)):
        options = {"shuffle": False, "steps_per_epoch": 1, "verbose": 0}
        with pytest.raises(ValueError, match="Received: steps_per_epoch=1"):
            model.fit(x, y, callbacks=[keep], **options)
    assert model.optimizer.iterations.numpy() == 0
    model.fit(X, Y, shuffle=False, verbose=0, callbacks=[keep])
    model.fit(data, shuffle=False, verbose=0, callbacks=keep)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"BackupAndRestore.*Received: Functional"):
        compiled(network()).fit(X, Y, verbose=0, callbacks=[Checkpoint(tmp_path)])


@pytest.mark.parametrize("damage", ["cut short", "no position", "other model"])
def test_what_is_no_state_of_the_model_is_refused(damage, tmp_path):
    model, path = sat(), tmp_path / STATE
    save_state(model, tmp_path, Position(1, 2))
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "no position":
        with h5py.File(path, "a") as file:
            del file["keras_pnn_position"]
    else:
        # The optimizer's state is as much a part of it.
        compiled(model, keras.optimizers.SGD(0.1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="`folder` must hold the state") as info:
        fit(model, Checkpoint(tmp_path))
    assert str(tmp_path) in str(info.value)
    assert path.read_bytes() == before


def test_one_file_is_kept_and_no_other_is_removed(tmp_path):
    model = sat()
    folder = tmp_path / "deep" / "state"
    for epoch, batches in ((0, 2), (0, 4), (1, 0)):
        save_state(model, folder, Position(epoch, batches))
    assert [p.name for p in folder.iterdir()] == [STATE]
    assert load_state(model, folder) == Position(1, 0)
    assert load_state(model, tmp_path / "nothing") is None
    (folder / "settings.json").write_text("{}")
    # What a kill in the middle of writing leaves.
    (folder / ".state.123.part.weights.h5").write_bytes(b"half")
    fit(sat(), Checkpoint(folder, every=2), epochs=1)
    assert [p.name for p in folder.iterdir()] == ["settings.json"]


@pytest.mark.parametrize("every", [0, 1.5, True, "epoch"])
def test_bad_arguments(every):
    with pytest.raises(ValueError, match="`every`"):
        Checkpoint("state", every=every)


class Doubling(keras.callbacks.Callback):
    """Doubles ρ after each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.rho *= 2


@pytest.mark.parametrize(
    ("keeper", "ascent"),
    [(keras.callbacks.BackupAndRestore, pnn.SAM), (Checkpoint, pnn.ASAM)],
)
def test_a_resumed_run_goes_on_with_its_radius(keeper, ascent, tmp_path):
    def run(*kill):
        model = sat(rho=None, ascent=ascent(0.01))
        fit(model, Doubling(), keeper(str(tmp_path / "state")), *kill, epochs=4)
        return model.rho

    with pytest.raises(Killed):
        run(Kill(1))
    np.testing.assert_allclose(run(), 0.16, rtol=1e-5)


def test_weights_of_a_run_without_an_ascent_leave_the_radius(tmp_path):
    path = tmp_path / "run.weights.h5"
    sat(rho=None, ascent=None).save_weights(path)
    model = sat(rho=0.3)
    model.load_weights(path)
    assert model.rho == pytest.approx(0.3)
