"""Replay the measurements of a device from its log."""

import operator
import os
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from keras_pnn._files import storable
from keras_pnn.hardware import log as measurement_log
from keras_pnn.hardware.acquisition import Acquisition, DeviceError
from keras_pnn.hardware.device import HardwareDevice
from keras_pnn.hardware.log import Record, request_digest


class RecordedDevice(HardwareDevice):
    """Replays the log of a `HardwareDevice`, bit for bit.

    A measurement is found by the layer's name, the inputs and the controls, to the
    last bit. Repeated measurements are replayed in the order of the log; further
    requests get the last one. The device is also a sequence of its records.

    With noisy readings, the log of an interrupted and resumed run does not replay the
    run as a whole: measurements after the last saved state were made twice, and the
    readings before the interruption are replayed first. Use one log for each part of
    such a run, and replay each from its initial state.

    Validation in a `fit` on a device is measured and logged too: replay it with a `fit`
    that has the same `validation_data` and `validation_freq`.

    Args:
        path: a file that `HardwareDevice(log=path)` wrote.
        layers: names of the physical layers that were on the device, `None` for all.

    Raises:
        ValueError: If the file is not such a log, or is damaged.
        FileNotFoundError: If the file does not exist.

    Example:

    >>> recorded = pnn.RecordedDevice("bench.log")
    >>> with recorded.installed(model):
    ...     model.evaluate(x_test, y_test)
    >>> [(r.layer, r.inputs.shape, r.seconds) for r in recorded]
    """

    def __init__(self, path: str | os.PathLike, layers: Sequence[str] | None = None):
        super().__init__(layers=layers)
        self.path = os.path.abspath(os.fspath(path))
        self._ids = measurement_log.record_ids(self.path)
        self._acquisition = Replay(self)

    def __len__(self):
        return len(self._ids)

    def __iter__(self) -> Iterator[Record]:
        return measurement_log.read(self.path, self._ids)

    def __getitem__(self, index: int) -> Record:
        number = self._ids[operator.index(index)]
        (record,) = measurement_log.read(self.path, [number])
        return record


class Replay(Acquisition):
    """Returns logged measurements instead of measuring."""

    def __init__(self, device: RecordedDevice):
        super().__init__(device)
        # Digest of a request → positions of the records that answer it.
        self._queues: dict[str, deque[int]] = {}
        for place, record in enumerate(device):
            self._queues.setdefault(record.digest, deque()).append(place)

    def _obtain(self, layer, inputs, controls, shape, dtype) -> np.ndarray:
        device = self._device
        call = device.calls = device.calls + 1
        try:
            outputs = self._next(layer.name, inputs, controls).outputs
            # The log keeps bfloat16 as float32, which holds all its values.
            kept = storable(np.empty(0, dtype)).dtype
            if (outputs.shape, outputs.dtype) != (shape, kept):
                raise ValueError(
                    f"The record must have {dtype} outputs of shape {shape}. "
                    f"Received: {outputs.dtype}, shape {outputs.shape}"
                )
        except (LookupError, ValueError) as error:
            device.failures += 1
            raise DeviceError(layer.name, call, error) from error
        return outputs.astype(dtype)

    def _next(self, layer: str, inputs, controls) -> Record:
        places = self._queues.get(request_digest(layer, inputs, controls))
        if places is None:
            why = " with these inputs and controls: not one bit may differ"
            known = {record.layer for record in self._device}
            if layer not in known:
                known = ", ".join(sorted(known)) or "none"
                why = f", only of: {known}. Pass `layers` if the device had these alone"
            path = self._device.path
            raise LookupError(f"{path} has no measurement of this layer{why}")
        return self._device[places.popleft() if len(places) > 1 else places[0]]
