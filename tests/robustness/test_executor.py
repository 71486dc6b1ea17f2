"""Studies on the workers of an executor, which may die, and what is no executor."""

import concurrent.futures
import itertools
import multiprocessing
import os
import pathlib
import pickle
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import keras
import pytest

import keras_pnn as pnn
from keras_pnn.robustness import ProcessPool, executor
from keras_pnn.robustness.cache import Cache

BLOCKS = 12
ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Worker(concurrent.futures.Executor):
    """Runs in this process what it is given, but for the calls of some numbers."""

    def __init__(self, dies=(), closed=()):
        self.dies, self.closed, self.calls = set(dies), set(closed), 0

    def submit(self, function, *args):
        call, self.calls = self.calls, self.calls + 1
        future = Future()
        if call in self.closed:
            raise BrokenProcessPool
        if call in self.dies:
            future.set_exception(BrokenProcessPool())
            return future
        try:
            # As between processes.
            future.set_result(pickle.loads(pickle.dumps(function))(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def in_workers(model, data, quiet, worker=None, **study):
    """The models of a small report, measured here and by workers."""
    asked = {**quiet, "variation": pnn.Variation(resonance_shift=0.02), "n": 1, **study}
    found = [
        pnn.robustness_report(model, *data, executor=one, **asked).to_dict()
        for one in (None, worker or Worker())
    ]
    return [one["models"] for one in found]


def test_workers_make_the_whole(report, whole):
    with ThreadPoolExecutor(3) as threads:
        assert report(executor=threads) == whole


@pytest.mark.parametrize("dies", [[0], [3, 12], range(3, 12)], ids=str)
def test_blocks_of_workers_that_died_are_measured_again(report, whole, tmp_path, dies):
    worker = Worker(dies)
    assert report(executor=worker, cache_dir=tmp_path) == whole
    assert worker.calls == BLOCKS + len(dies)
    # Nothing is left but the points.
    assert [path.name for path in tmp_path.iterdir()] == ["points-0of1.sqlite"]
    again = Worker()
    assert report(executor=again, cache_dir=tmp_path) == whole
    assert again.calls == 0


def test_a_broken_executor_leaves_the_rest_to_this_process(report, whole):
    worker = Worker(dies=range(5, BLOCKS), closed=[BLOCKS])
    with pytest.warns(UserWarning, match=r"Worker have died: the last 7 blocks"):
        assert report(executor=worker) == whole


def test_workers_that_always_die(report):
    with pytest.raises(RuntimeError, match=r"3 times.*__main__.*memory_limit"):
        report(executor=Worker(dies=range(1000)))


def test_an_executor_that_gives_up(report, whole, tmp_path):
    class Cluster(Worker):
        def submit(self, function, *args):
            future = super().submit(function, *args)
            if self.calls > 4:
                future = Future()
                future.cancel()
                future.set_running_or_notify_cancel()
            return future

    with pytest.raises(RuntimeError, match=r"Cluster gave up.* 8 blocks are missing"):
        report(executor=Cluster(), cache_dir=tmp_path)
    # Nothing is lost, though those that are done may come behind others.
    again = Worker()
    assert report(executor=again, cache_dir=tmp_path) == whole
    assert again.calls == 8


def test_what_was_measured_stays_after_an_error(report, whole, tmp_path, monkeypatch):
    add, added = Cache.add, []

    def stopped(self, points):
        if len(added) == 4:
            raise KeyboardInterrupt
        added.append(points)
        add(self, points)

    class Slow(Worker):
        """Never comes to its last block."""

        last = None

        def submit(self, function, *args):
            if self.calls < BLOCKS - 1:
                return super().submit(function, *args)
            self.last = Future()
            return self.last

    slow = Slow()
    with monkeypatch.context() as patch:
        patch.setattr(Cache, "add", stopped)
        with pytest.raises(KeyboardInterrupt) as error:
            report(executor=slow, cache_dir=tmp_path)
    # While the error is held, as by a `with` block that waits for the workers.
    assert error.tb and slow.last.cancelled()
    assert [path.name for path in tmp_path.iterdir()] == ["points-0of1.sqlite"]
    worker = Worker()
    assert report(executor=worker, cache_dir=tmp_path) == whole
    assert worker.calls == BLOCKS - 4


def test_what_was_submitted_is_cancelled_when_the_executor_fails(report):
    class Closed(Worker):
        futures = ()

        def submit(self, function, *args):
            if len(self.futures) == 2:
                raise RuntimeError("no more")
            self.futures = [*self.futures, Future()]
            return self.futures[-1]

    closed = Closed()
    with pytest.raises(RuntimeError, match="no more"):
        report(executor=closed)
    assert all(future.cancelled() for future in closed.futures)


def test_layers_with_noise_draw_the_same_in_workers(network, data, quiet):
    noisy = network(extra=[keras.layers.GaussianNoise(0.3), pnn.layers.ShotNoise(50)])
    here, there = in_workers(noisy, data, quiet, n=2)
    assert here == there


def test_workers_need_nothing_of_training(network, data, quiet):
    """Neither its device, nor arguments that cannot be saved."""
    model = network()
    chip = pnn.Variation(resonance_shift=0.02).sample(model, 1)[0]
    online = pnn.SATModel(model, device=chip, perturb=lambda v: "control" in v.path)
    online.compile("adam", model.loss, metrics=["accuracy"])
    online.train_on_batch(*data)
    study = {"variation": None, "devices": [chip], "trained_on": {online.name: chip}}
    here, there = in_workers(online, data, quiet, **study)
    assert here == there


def test_workers_have_the_floats_of_keras(network, data, quiet):
    class Elsewhere(Worker):
        """Runs with the settings of a new process."""

        def submit(self, *args):
            keras.config.set_floatx("float32")
            return super().submit(*args)

    keras.config.set_floatx("float64")
    try:
        model = network()
        # Made with these floats, which Keras does not save with it.
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(loss=loss, metrics=["accuracy"])
        here, there = in_workers(model, data, quiet, Elsewhere())
    finally:
        keras.config.set_floatx("float32")
    assert here == there


def test_workers_need_no_library_of_the_hardware(model, prepared, tmp_path):
    silicon = pathlib.Path(pnn.deploy.__file__).with_name("silicon.yaml")
    library = tmp_path / "mine.yaml"
    library.write_bytes(silicon.read_bytes())
    sent = pickle.dumps(prepared(hardware=library).studies[model.name])
    library.unlink()
    assert pickle.loads(sent).block(range(1))


# What is refused.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (4, r"`executor` must be a `concurrent.futures.Executor`. Received: 4"),
        (type("Client", (), {"get_executor": None})(), r"`client.get_executor\(\)`"),
        (
            concurrent.futures.ProcessPoolExecutor(
                1, multiprocessing.get_context("fork")
            ),
            "spawns its processes, as .*ProcessPool.*one that forks",
        ),
    ],
    ids=["number", "client", "fork"],
)
def test_what_is_no_executor(report, given, message):
    with pytest.raises(ValueError, match=message):
        report(executor=given)


class Held(keras.layers.Layer):
    """Has a value that no configuration holds."""

    def __init__(self, lock):
        super().__init__()
        self.held = lock

    def call(self, inputs):
        return inputs


def unregistered(y, y_pred):
    return keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)


@pytest.mark.parametrize(
    ("layers", "loss", "message"),
    [
        (
            [Held(threading.Lock())],
            unregistered,
            r"Model, data and arguments must.*Held",
        ),
        ([], unregistered, r"losses and metrics registered.*'unregistered'"),
    ],
    ids=["layer", "loss"],
)
def test_a_model_that_cannot_be_sent(network, data, quiet, layers, loss, message):
    model = network(extra=layers)
    model.compile(loss=loss, metrics=["accuracy"])
    with pytest.raises(ValueError, match=message):
        in_workers(model, data, quiet)


def test_workers_with_another_package(report, monkeypatch):
    class Other(Worker):
        def submit(self, function, *args):
            with monkeypatch.context() as patch:
                patch.setattr(executor, "__version__", "0.0.1")
                return super().submit(function, *args)

    with pytest.raises(ValueError, match=r"workers have keras_pnn .*that has 0\.0\.1"):
        report(executor=Other())


def test_a_study_that_is_another_one_in_the_worker(prepared, model, tmp_path):
    study = prepared().studies[model.name]
    path = tmp_path / "study.pickle"
    path.write_bytes(executor._pickled(study))
    version, digest = executor.__version__, study.digest()
    assert executor.measure_block(str(path), version, digest, range(1))
    with pytest.raises(ValueError, match=r"`model` must be one that is the same"):
        executor.measure_block(str(path), version, "other", range(1))
    with pytest.raises(ValueError, match=r"`cache_dir` must be a folder.*workers see"):
        executor.measure_block(str(tmp_path / "no"), version, digest, range(1))


# Processes.


def test_processes_make_the_whole_are_replaced_and_end(
    report, whole, tmp_path, monkeypatch
):
    # One at a time: each imports TensorFlow.
    with pytest.raises(KeyboardInterrupt), ProcessPool(1, threads=1) as pool:
        first, submit, calls = pool._pool, pool.submit, itertools.count()

        def dies(function, *args):
            if next(calls) == 3:
                # Blocks that are submitted later wait behind it.
                submit(os._exit, 1)
            return submit(function, *args)

        monkeypatch.setattr(pool, "submit", dies)
        assert report(executor=pool, cache_dir=tmp_path) == whole
        assert pool._pool is not first
        processes = list(pool._pool._processes.values())
        slow = pool.submit(time.sleep, 100)
        raise KeyboardInterrupt
    # It does not wait for them, as the end of the script would not.
    assert isinstance(slow.exception(), BrokenProcessPool)
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize("arguments", [(0,), (1, 0)], ids=str)
def test_numbers_of_processes(arguments):
    with pytest.raises(ValueError, match="must be an integer ≥ 1"):
        ProcessPool(*arguments)
