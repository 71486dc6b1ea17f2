"""Measure batches on a device, with averaging, retries, time limits and a log.

After a failure, `_reading` waits and retries; `_attempt` first calls the device's
`recover` and sets its controls anew. When no retry is left, a `DeviceError` is raised
and nothing of the batch is logged.
"""

import concurrent.futures
import copy
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np

from keras_pnn._files import storable
from keras_pnn.hardware import log as measurement_log

# Longest wait before a retry, in seconds.
LONGEST_WAIT = 60.0
# Longest delay of a keyboard interrupt, in seconds.
_LONGEST_DEAF = 0.2


class DeviceError(RuntimeError):
    """Raised when a measurement fails despite retries, or cannot be retried.

    Args:
        layer: name of the layer that was measured.
        call: number of the call to the device's `measure`, from 1.
        cause: the last exception, if there was one.

    Example:

    >>> try:
    ...     online.fit(x_train, y_train, verbose=0)
    ... except pnn.DeviceError as error:
    ...     print(error)
    """

    # Keras would replace it by a RuntimeError with the arguments of `Layer.call`.
    _keras_call_info_injected = True

    def __init__(self, layer: str, call: int, cause: BaseException | None = None):
        super().__init__(layer, call, cause)
        self.layer = layer
        self.call = call
        self.cause = cause

    def __str__(self):
        cause = "an unknown cause"
        if self.cause is not None:
            cause = f"{type(self.cause).__name__}: {self.cause}"
        return (
            f"The device failed at layer '{self.layer}', in measurement {self.call}: "
            f"{cause}"
        )


class Acquisition:
    """Measures batches with a `HardwareDevice`, one at a time.

    A separate object, so that a lab's subclass of the device may use any names. It
    reads the settings from the device, where they may be changed.
    """

    def __init__(self, device, log=None):
        # A weak reference, so that the worker's thread ends with the device.
        self._device = weakref.proxy(device)
        self._log = None if log is None else measurement_log.prepare(log)
        self._lock = threading.RLock()
        self._worker: _Worker | None = None
        # Layer name → its last configured controls.
        self._configured: dict[str, dict[str, np.ndarray]] = {}
        # Whether a call of the lab's code was given up since the last `recover`, and
        # may still talk to the hardware.
        self.abandoned = False
        # The last exception inside a graph, which passes on only its text.
        self.raised: BaseException | None = None

    def run(self, layer, inputs, controls, shape, dtype) -> np.ndarray:
        """Measures a batch; arguments as in `HardwareDevice.acquire`, checked."""
        worker = self._worker
        if worker is not None and worker.thread is threading.current_thread():
            raise RuntimeError(
                "`measure`, `configure` and `recover` must not call `acquire`, which "
                f"waits for them. Received: a call for layer '{layer.name}'"
            )
        with self._lock:
            try:
                outputs = self._obtain(layer, inputs, controls, shape, dtype)
                self._device.failure = None
                return outputs
            except BaseException as error:
                if isinstance(error, DeviceError):
                    self._device.failure = error
                self._configured.clear()
                raise

    def _obtain(self, layer, inputs, controls, shape, dtype) -> np.ndarray:
        """Measures a batch and logs it; arguments are as they are sent."""
        before, started = self._device.calls, time.perf_counter()
        step = self._device.max_batch or len(inputs)
        parts = [inputs[i : i + step] for i in range(0, len(inputs), step)]
        outputs = np.concatenate(
            [self._averaged(layer, p, controls, shape[1:], dtype) for p in parts]
        )
        if self._log is not None:
            record = measurement_log.Record(
                layer=layer.name,
                inputs=inputs,
                controls=controls,
                outputs=outputs,
                seconds=time.perf_counter() - started,
                attempts=self._device.calls - before,
                digest=measurement_log.request_digest(layer.name, inputs, controls),
            )
            measurement_log.append(self._log, record)
        return outputs

    def _averaged(self, layer, inputs, controls, shape, dtype) -> np.ndarray:
        wide = "complex128" if dtype.kind == "c" else "float64"
        shape, readings = (len(inputs), *shape), []
        for _ in range(self._device.repeats):
            reading = self._reading(layer, inputs, controls, shape, dtype)
            # Copied: a driver may return the same buffer each time.
            readings.append(reading.astype(wide))
        return np.mean(readings, axis=0).astype(dtype)

    def _reading(self, layer, inputs, controls, shape, dtype) -> np.ndarray:
        """Returns one usable reading; retries calls that fail."""
        for attempt in range(self._device.retries + 1):
            call = self._device.calls + 1
            if attempt:
                # Larger powers overflow; the longest wait is reached long before.
                wait = self._device.backoff * 2.0 ** min(attempt - 1, 100)
                time.sleep(min(wait, LONGEST_WAIT))
            values, cause = self._attempt(attempt > 0, layer, inputs, controls)
            if cause is None:
                try:
                    reading = usable(values, shape, dtype)
                except Exception as error:
                    self._device.failures += 1
                    raise DeviceError(layer.name, call, error) from error
                cause = not_finite(reading, dtype)
                if cause is None:
                    return reading
            self._device.failures += 1
            if isinstance(cause, NotImplementedError):
                break
        raise DeviceError(layer.name, call, cause) from cause

    def _attempt(self, again: bool, layer, inputs, controls) -> tuple:
        """Returns the result of `measure`, and the error if anything failed."""
        try:
            if again or self.abandoned:
                # The state of the hardware is unknown after a failure, and an answer
                # to an abandoned call must not be taken for ours.
                self._configured.clear()
                self._limited("recover")
                self.abandoned = False
            self._configure(layer, controls)
            self._device.calls += 1
            sent = copy.deepcopy((inputs, controls))
            return self._limited("measure", layer, *sent), None
        # Returned, since an error held by a frame of its own traceback would form a
        # cycle that keeps the device alive.
        except Exception as error:
            return None, error

    def _configure(self, layer, controls: dict) -> None:
        before = self._configured.pop(layer.name, None)
        if (
            before is None
            or before.keys() != controls.keys()
            or not all(np.array_equal(before[n], controls[n]) for n in controls)
        ):
            self._limited("configure", layer, copy.deepcopy(controls))
            time.sleep(self._device.settle)
        self._configured[layer.name] = controls

    def _limited(self, name: str, *args):
        """Calls a method of the device in the worker's thread, with the time limit."""
        if self._worker is None:
            self._worker = _Worker()
        method, timeout = getattr(self._device, name), self._device.timeout
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        try:
            future = self._worker.start(lambda: method(*args))
            while not future.done() and (left := deadline - time.monotonic()) > 0:
                # A signal that arrives just before a wait does not end it.
                concurrent.futures.wait([future], min(left, _LONGEST_DEAF))
            if future.done():
                return future.result()
        except Exception:
            raise
        except BaseException:
            # An interrupt: the thread may still be in the call.
            self._drop_worker()
            raise
        self._drop_worker()
        expected = f"`{name}` must return within {timeout:g} s"
        raise TimeoutError(f"{expected}. Received: nothing")

    def _drop_worker(self) -> None:
        self._worker.give_up()
        self._worker = None
        self.abandoned = True


class _Worker:
    """Runs functions one by one in one thread, which can be given up.

    The thread ends when the worker is given up or dropped: at once or, if a
    function hangs, when it returns. An executor of the standard library would keep
    the process from ending until then.
    """

    def __init__(self):
        self._jobs = queue.SimpleQueue()
        self.thread = threading.Thread(
            target=_serve, args=(self._jobs,), name="keras_pnn device", daemon=True
        )
        self.thread.start()
        self.give_up = weakref.finalize(self, self._jobs.put, None)

    def start(self, function: Callable) -> concurrent.futures.Future:
        """Returns the future result of a function."""
        future = concurrent.futures.Future()
        self._jobs.put((future, function))
        return future


def _serve(jobs: queue.SimpleQueue) -> None:
    while (job := jobs.get()) is not None:
        future, function = job
        try:
            future.set_result(function())
        # The waiting caller gets every error, even an interrupt.
        except BaseException as error:
            future.set_exception(error)
        # The job's objects must not live until the next job.
        del job, future, function


def usable(values, shape: tuple, dtype: np.dtype) -> np.ndarray:
    """Checks the result of `measure`; returns it as an array of its own precision."""
    kind = "complex" if dtype.kind == "c" else "real floating-point"
    expected = f"`measure` must return {kind} numbers of shape {shape}."
    if values is None:
        raise TypeError(f"{expected} Received: None")
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "fc":
        # A masked element is not a reading.
        values = values.filled(np.nan)
    array = storable(values)
    if array.dtype.kind != ("c" if dtype.kind == "c" else "f"):
        raise TypeError(f"{expected} Received: dtype {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{expected} Received: shape {array.shape}")
    return array


def not_finite(reading: np.ndarray, dtype: np.dtype) -> ArithmeticError | None:
    """Returns the error for a reading that is not finite in the layer's precision."""
    with np.errstate(over="ignore"):
        bad = np.count_nonzero(~np.isfinite(reading.astype(dtype)))
    if not bad:
        return None
    return ArithmeticError(
        f"`measure` must return finite {dtype} numbers. Received: NaN or infinity in "
        f"{bad} of {reading.size}"
    )
