"""Measure batches on a device: parts, repeats, time limits, the log."""

import threading
import time
import weakref

import numpy as np

from keras_pnn.hardware import log as measurement_log
from keras_pnn.hardware.arrays import not_finite, usable
from keras_pnn.hardware.log import Record
from keras_pnn.hardware.worker import StillRunning, Worker

LONGEST_WAIT = 60.0


class DeviceError(RuntimeError):
    """A device failed for good.

    Args:
        layer: name of the layer that was measured.
        call: number of the call of the device's `measure`, from 1.
        cause: the last exception, if there was one.
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

    It is an object of its own, so that a lab's subclass may use whatever names it
    likes, and reads the settings from the device, so that they may be changed.

    Args:
        device: the device that has it.
        log: path of its log, or `None`.

    Attributes:
        abandoned: whether a call of the lab's code was given up, and may still talk to
            the hardware, since `recover` was called last.
        raised: what the last measurement inside a graph raised, if it did; the graph
            itself knows only the text.
    """

    def __init__(self, device, log=None):
        # The device's thread ends with the device, if that is in no cycle.
        self._device = weakref.proxy(device)
        self._log = None if log is None else measurement_log.prepare(log)
        self._lock = threading.RLock()
        self._worker: Worker | None = None
        # Layer name → the controls that it was configured with last.
        self._configured: dict[str, dict[str, np.ndarray]] = {}
        self.abandoned = False
        self.raised: BaseException | None = None

    def check_thread(self, layer) -> None:
        """Raises RuntimeError in the lab's own code, which would wait for itself."""
        worker = self._worker
        if worker is not None and worker.thread is threading.current_thread():
            raise RuntimeError(
                "`measure`, `configure` and `recover` must not call `acquire`, which "
                f"waits for them. Received: a call for layer '{layer.name}'"
            )

    def run(self, layer, inputs, controls, shape, dtype) -> np.ndarray:
        """Measures a batch; arguments as in `HardwareDevice.acquire`, checked."""
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

    def in_graph(self, *args) -> np.ndarray:
        """As `HardwareDevice.acquire`; `raising` finds what it raises."""
        try:
            return self._device.acquire(*args)
        except BaseException as error:
            self.raised = error
            raise

    def _obtain(self, layer, inputs, controls, shape, dtype) -> np.ndarray:
        """Measures a batch and logs it; arguments are as they are sent."""
        before, started = self._device.calls, time.perf_counter()
        step = self._device.max_batch or len(inputs)
        parts = [inputs[i : i + step] for i in range(0, len(inputs), step)]
        outputs = np.concatenate(
            [
                self._averaged(
                    layer,
                    part,
                    controls,
                    shape if len(parts) == 1 else (len(part), *shape[1:]),
                    dtype,
                )
                for part in parts
            ]
        )
        if self._log is not None:
            record = Record(
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
        if self._device.repeats == 1:
            return self._reading(layer, inputs, controls, shape, dtype).astype(dtype)
        total = np.zeros(shape, "complex128" if dtype.kind == "c" else "float64")
        for _ in range(self._device.repeats):
            total += self._reading(layer, inputs, controls, shape, dtype)
        return (total / self._device.repeats).astype(dtype)

    def _reading(self, layer, inputs, controls, shape, dtype) -> np.ndarray:
        """One usable reading: a call, repeated where it fails."""
        for attempt in range(self._device.retries + 1):
            call = self._device.calls + 1
            if attempt:
                self._wait(attempt)
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
        """What `measure` returned, and what was raised before it could."""
        try:
            if again or self.abandoned:
                # The state of the hardware is not known after a failure, and what an
                # abandoned call still asks for must not be taken for our answer.
                self._configured.clear()
                self._limited("recover")
                self.abandoned = False
            self._configure(layer, controls)
            self._device.calls += 1
            copies = {name: value.copy() for name, value in controls.items()}
            return self._limited("measure", layer, inputs.copy(), copies), None
        # Returned: kept in a variable of a frame that is in its traceback, it would
        # keep the device alive.
        except Exception as error:
            return None, error

    def _wait(self, attempt: int) -> None:
        # Powers beyond this are longer than the longest wait, or overflow.
        wait = self._device.backoff * 2.0 ** min(attempt - 1, 100)
        time.sleep(min(wait, LONGEST_WAIT))

    def _configure(self, layer, controls: dict) -> None:
        if _same(self._configured.get(layer.name), controls):
            return
        self._configured.pop(layer.name, None)
        copies = {name: value.copy() for name, value in controls.items()}
        self._limited("configure", layer, copies)
        time.sleep(self._device.settle)
        self._configured[layer.name] = controls

    def _limited(self, name: str, *args):
        """Calls a method of the lab's in the worker's thread, under the time limit."""
        if self._worker is None:
            self._worker = Worker()
        method, timeout = getattr(self._device, name), self._device.timeout
        try:
            return self._worker.run(lambda: method(*args), timeout)
        except StillRunning:
            self._drop_worker()
            raise TimeoutError(
                f"`{name}` must return within {timeout:g} s. Received: nothing"
            ) from None
        except Exception:
            raise
        except BaseException:
            # An interrupt: the thread may still be in the call.
            self._drop_worker()
            raise

    def _drop_worker(self) -> None:
        self._worker.give_up()
        self._worker = None
        self.abandoned = True


def _same(before: dict | None, controls: dict) -> bool:
    return (
        before is not None
        and before.keys() == controls.keys()
        and all(np.array_equal(before[name], controls[name]) for name in controls)
    )
