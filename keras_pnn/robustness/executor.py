"""Measure the blocks of a study on the workers of an executor."""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import pickle
import tempfile
import textwrap
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError

import keras
import tensorflow as tf

from keras_pnn import _checks, _warnings
from keras_pnn._version import __version__

# How many times in a row workers may die without finishing a block.
_DEATHS = 3
# Threads of one worker share Keras' state and the study.
_ONE_AT_A_TIME = threading.Lock()


class ProcessPool(concurrent.futures.Executor):
    """Runs a study on processes of this machine, and replaces those that die.

    Processes are spawned, since TensorFlow does not survive a fork. Each imports the
    script that started it, so a script must do its work under
    `if __name__ == "__main__":`. Processes inherit the environment, and with it Keras'
    backend. `concurrent.futures.ProcessPoolExecutor` with the context `"spawn"` works
    as well, but replaces no process.

    The processes end with the pool or with the process that started them. They end at
    once if an exception leaves the `with` block: an interrupt does not wait for blocks.

    Args:
        workers: number of processes.
        threads: number of TensorFlow threads in each process. Default: the machine's
            processors divided by `workers`, at least 1. With the same number, figures
            are the same to the last bit, whatever the number of workers.

    Raises:
        ValueError: If a number is below 1.

    Example:

    >>> with pnn.robustness.ProcessPool(2, threads=1) as pool:
    ...     report = pnn.robustness_report(
    ...         model, x_test, y_test, variation=variation, n=4, fast=True,
    ...         executor=pool, verbose=0,
    ...     )
    """

    def __init__(self, workers: int, threads: int | None = None):
        self.workers = _checks.integer("workers", workers, 1)
        share = max(1, (os.cpu_count() or 1) // workers)
        threads = share if threads is None else threads
        self.threads = _checks.integer("threads", threads, 1)
        self._context = multiprocessing.get_context("spawn")
        # Nothing is sent. Workers end when this end closes, even by a kill.
        self._watched, self._held = self._context.Pipe(duplex=False)
        self._pool = self._started()

    def submit(self, function, /, *args, **kwargs):
        try:
            return self._pool.submit(function, *args, **kwargs)
        except BrokenExecutor:
            self._pool.shutdown(wait=False)
            self._pool = self._started()
            return self._pool.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False):
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def __exit__(self, kind, error, traceback):
        if kind is not None:
            self._held.close()
        return super().__exit__(kind, error, traceback)

    def _started(self):
        return concurrent.futures.ProcessPoolExecutor(
            self.workers,
            self._context,
            initializer=_prepare_worker,
            initargs=(self.threads, self._watched),
        )


def _prepare_worker(threads: int, watched: multiprocessing.connection.Connection):
    """Limits TensorFlow's threads; ends the process when the pipe is closed."""

    def end():
        with contextlib.suppress(EOFError, OSError):
            watched.recv()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def check_executor(executor) -> None:
    """Raises ValueError if it is not an executor, or would fork TensorFlow."""
    if executor is None:
        return
    if not isinstance(executor, concurrent.futures.Executor):
        expected = "a `concurrent.futures.Executor`"
        if hasattr(executor, "get_executor"):
            expected += "; of a Dask client `client.get_executor()`"
        raise _checks.error("executor", expected, _checks.short(executor))
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise _checks.error(
            "executor",
            "one that spawns its processes, as `pnn.robustness.ProcessPool` does: "
            "TensorFlow does not survive a fork",
            "one that forks",
        )


def measured(
    executor, study, blocks: list[range], folder: str | os.PathLike | None
) -> Iterator[tuple[range, list[dict]]]:
    """Yields blocks of a `ModelStudy` and their metrics, as workers finish them.

    The study is written to a file that every worker reads once: in `folder`, for
    workers on other machines, or in a temporary folder. A block whose worker died is
    measured again by the executor or, if that accepts no more work, in this process.
    """
    if not blocks:
        return
    # Workers may have another working directory.
    place = None if folder is None else pathlib.Path(folder).absolute()
    with tempfile.TemporaryDirectory(prefix="study_", dir=place) as own:
        path = os.path.join(own, "study.pickle")
        pathlib.Path(path).write_bytes(_pickled(study))
        task = functools.partial(measure_block, path, __version__, study.digest())
        left, deaths = list(blocks), 0
        while left:
            before, futures, gave_up = len(left), {}, None
            try:
                with contextlib.suppress(BrokenExecutor):
                    for block in left:
                        futures[executor.submit(task, block)] = block
                takes_more = len(futures) == before
                for future in concurrent.futures.as_completed(futures):
                    try:
                        found = future.result()
                    except BrokenExecutor:
                        continue
                    except CancelledError as error:
                        # Other futures may be done.
                        gave_up = error
                        continue
                    except ImportError as error:
                        found = f"{type(error).__name__}: {error}"
                        raise _other_version(found) from error
                    left.remove(futures[future])
                    yield futures[future], found
            finally:
                for future in futures:
                    future.cancel()
            if gave_up is not None:
                raise RuntimeError(
                    f"{type(executor).__name__} gave up its work, as Dask's does when "
                    f"its scheduler dies: {len(left)} blocks are missing. The same "
                    "call with a new one measures them, and not those that are in "
                    "`cache_dir` by now."
                ) from gave_up
            if not takes_more:
                _warnings.warn(
                    f"The workers of {type(executor).__name__} have died: the last "
                    f"{len(left)} blocks are measured in this process. "
                    "`pnn.robustness.ProcessPool` replaces workers."
                )
                yield from ((block, study.block(block)) for block in left)
                return
            deaths = 0 if len(left) < before else deaths + 1
            if deaths == _DEATHS:
                raise RuntimeError(
                    f"Workers died {deaths} times before they finished a block. Is "
                    'the call under `if __name__ == "__main__":` in its script, and '
                    "do a study and a block, see `memory_limit`, fit the memory of "
                    "each?"
                )


def measure_block(path: str, version: str, digest: str, block: range) -> list[dict]:
    """Measures one block in a worker; the study in the file must have this digest."""
    if version != __version__:
        raise _other_version(f"a worker that has {__version__}", version)
    with _ONE_AT_A_TIME:
        study, own = _loaded(path)
        if own != digest:
            raise _checks.error(
                "model",
                "one that is the same after it was saved and loaded, and `cache_dir` "
                "must not be written by other studies meanwhile",
                "another study in the worker",
            )
        return study.block(block)


def _other_version(found: str, version: str = __version__) -> ValueError:
    expected = f"one whose workers have keras_pnn {version}"
    return _checks.error("executor", expected, found)


@functools.lru_cache(maxsize=1)
def _loaded(path: str) -> tuple:
    """Returns a study and its digest; cached, since loading may outlast a block."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            # Keras warns that the optimizer, which is not needed, was not loaded.
            warnings.simplefilter("ignore")
            settings, pickled = pickle.load(file)
            # Set before the study is loaded, which depends on them.
            keras.config.set_floatx(settings["floatx"])
            keras.config.set_epsilon(settings["epsilon"])
            study = pickle.loads(pickled)
            return study, study.digest()
    except FileNotFoundError as error:
        expected = "a folder that the workers see too, under the same path"
        raise _checks.error("cache_dir", expected, f"no {path} there") from error
    except Exception as error:
        raise _not_sent("loaded by a worker", error) from error


def _pickled(study) -> bytes:
    settings = {"floatx": keras.config.floatx(), "epsilon": keras.config.epsilon()}
    try:
        return pickle.dumps((settings, pickle.dumps(study)))
    except Exception as error:
        raise _not_sent("saved for the workers", error) from error


def _not_sent(what: str, error: Exception) -> ValueError:
    said = textwrap.shorten(str(error), 240, placeholder=" …")
    return ValueError(
        f"Model, data and arguments must be such that they can be {what}: your own "
        "layers, losses and metrics registered with Keras (by `keras.saving."
        "register_keras_serializable`), in a module that workers import. "
        f"Received: {type(error).__name__}: {said}"
    )
