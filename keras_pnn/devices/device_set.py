"""Keep simulated devices together, and in one file."""

import json
import os
from collections.abc import Sequence

import numpy as np

from keras_pnn import _files
from keras_pnn.devices.simulated import SimulatedDevice

_FORMAT = "keras_pnn.devices/1"


class DeviceSet(Sequence):
    """A sequence of simulated devices, saved and loaded as one `.npz` file.

    Args:
        devices: the devices, which deviate in the same variables.

    Raises:
        ValueError: If the devices deviate in different variables.
    """

    def __init__(self, devices: Sequence[SimulatedDevice]):
        self._devices = tuple(devices)
        for device in self._devices:
            first = self._devices[0]
            if (
                device.deviations.keys() != first.deviations.keys()
                or device.architecture != first.architecture
            ):
                raise ValueError(
                    "Argument `devices` must deviate in the same variables. "
                    f"Received: {first!r} and {device!r}"
                )

    def __len__(self):
        return len(self._devices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return DeviceSet(self._devices[index])
        return self._devices[index]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the devices to `path` (`.npz`, arrays only)."""
        keys = list(self[0].deviations) if self._devices else []
        header = {
            "format": _FORMAT,
            "labels": [d.label for d in self],
            "keys": keys,
            "architecture": self[0].architecture if self._devices else {},
        }
        arrays = {
            f"a{i}": np.stack([d.deviations[key] for d in self])
            for i, key in enumerate(keys)
        }
        # To a file, since NumPy would add a suffix to a path.
        with _files.atomic(path) as part, open(part, "wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "DeviceSet":
        """Reads devices that `save` wrote.

        Raises:
            ValueError: If the file is not one of these, or is cut short.
            FileNotFoundError: If there is no file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                if header["format"] != _FORMAT:
                    raise KeyError(header["format"])
                keys = [(name, int(index)) for name, index in header["keys"]]
                labels, shapes = header["labels"], header["architecture"]
                stacks = [file[f"a{i}"] for i in range(len(keys))]
                rows = list(zip(labels, *stacks, strict=True))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                "Argument `path` must be an .npz file written by `DeviceSet.save`. "
                f"Received: {os.fspath(path)} ({type(error).__name__}: {error})"
            ) from error
        return cls(
            [
                SimulatedDevice(dict(zip(keys, arrays, strict=True)), shapes, label)
                for label, *arrays in rows
            ]
        )
