"""Drive physical layers on laboratory instruments that speak SCPI."""

import contextlib
import inspect
import os
import time
import tomllib
import weakref
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_pnn import _checks
from keras_pnn._signatures import passing_on
from keras_pnn.hardware.device import DeviceError, HardwareDevice
from keras_pnn.hardware.instrument.measurable import check_layer, existing
from keras_pnn.hardware.instrument.scpi import InstrumentError, Session, parse_readings
from keras_pnn.layers.lookup import physical_layers
from keras_pnn.layers.physical import PhysicalLayer

if TYPE_CHECKING:
    from keras_pnn.hardware.instrument.wiring import Bench, Wiring


class InstrumentDevice(HardwareDevice):
    """Physical layers on a bench of instruments, driven through PyVISA.

    When the controls of a layer change, they are set on a current source. For each
    sample, the inputs are then set as optical powers, and the outputs are read from
    detectors, on the same instrument or another. The model computes layers that are not
    in the configuration.

    ```toml
    [device]                            # optional: arguments of HardwareDevice
    max_batch = 64
    settle = 0.01                       # s, after the controls were set

    [instruments.bench]                 # a name of your choice
    resource = "TCPIP0::192.168.0.7::5025::SOCKET"
    identity = "Keysight"               # must be in the answer to *IDN?
    setup = ["*RST", "*CLS"]            # sent whenever the connection is opened
    shutdown = ["OUTP OFF"]             # sent by `close`

    [layers.bank.controls.control]      # layer "bank", its control "control"
    instrument = "bench"
    channels = "1:16"                   # in the order of np.ravel(control)
    command = "SOUR:CURR (@{channels}),{values}"
    minimum = 0.0                       # in the layer's unit, here mA
    maximum = 3.0
    scale = 0.001                       # the instrument counts in A

    [layers.bank.inputs]
    instrument = "bench"
    channels = "1:4"
    command = "SOUR{channel}:POW {value}"
    minimum = 0.0
    maximum = 1.0
    scale = 0.001

    [layers.bank.outputs]
    instrument = "bench"
    channels = "1:4"
    command = "READ? (@{channels})"
    scale = 1250.0                      # from A to the layer's outputs
    ```

    A command with `{values}` (and `{channels}`) is sent once for all channels, a
    command with `{value}` and `{channel}` once for each. The number sent is
    `scale * value + offset`, with all digits of a float64 or formatted as in
    `{value:.6f}`, which must distinguish 8 settings of a control; a reading becomes
    `scale * reading + offset`. Elements that the hardware lacks (the last cell of odd
    columns of a mesh) have no channel.

    Limits are in the layer's unit. If any value is beyond them, nothing is sent to any
    channel; with `beyond = "clip"` the limit is sent instead. SAT needs `"clip"`, since
    its second pass may move controls beyond a limit.

    More keys of an instrument:

    - `timeout`: s for one answer, default 2.
    - `read_termination`, `write_termination`: default a newline.
    - `errors`: the query that ends each exchange, default `"SYST:ERR?"`; its answer
      must begin with 0. `""` for an instrument without one.
    - `answers_per_command`: number of lines in the answer to a command that is not a
      query, default 0; 1 for a driver that acknowledges commands.
    - `acknowledgement`: a regular expression that each of these lines must match.
      Default: any line is accepted. Set it if a refusal has no other sign.
    - `pipeline`: default false; true sends the commands of one sample in one piece,
      which saves 40 ms for each on a TCP socket, if the instrument reads line by line.
    - `options`: more arguments of PyVISA's `open_resource` (a baud rate).

    More keys of `outputs`: `trigger` (commands before each reading) and `delay` (s
    between inputs and reading). `backend` (at the top level) is PyVISA's; default
    `"@py"`.

    If an answer is left unread after an exchange, the connection is reopened and the
    call retried. An exchange without `errors` ends with a query for `identity`; without
    either, on a socket or a serial line, the device waits for further answers as long
    as the exchange took, at least 50 ms.

    Readings are the layer's outputs, so a bias or an activation needs a separate layer.
    Inputs and outputs are real vectors: a mesh, whose outputs are fields, needs a
    `HardwareDevice` whose `measure` returns them, or a physical layer of your own that
    ends in detectors.

    Args:
        configuration: a dict of the form above.
        **options: arguments of `HardwareDevice`, which override those in `device`.

    Raises:
        ValueError: If a key of the configuration is missing, unknown or wrong.
        ImportError: If pydantic is not installed; the extra `[instruments]` has it.

    Example:

    >>> with pnn.InstrumentDevice.from_toml("bench.toml") as device:
    ...     with device.installed(model):
    ...         model.evaluate(x_test, y_test)

    Reference:
        - SCPI-1999, Standard Commands for Programmable Instruments
        - PyVISA, https://pyvisa.readthedocs.io
    """

    @passing_on(HardwareDevice, without=("layers",))
    def __init__(self, configuration: dict, **options):
        self.bench = _bench(configuration)
        options = {**self.bench.device, **options}
        known = inspect.signature(HardwareDevice).parameters.keys() - {"layers"}
        unknown = options.keys() - known
        if unknown:
            raise _checks.error(
                "device",
                f"a table with keys among {', '.join(sorted(known))}",
                ", ".join(sorted(unknown)),
            )
        super().__init__(layers=list(self.bench.layers), **options)
        self._sessions = _new_sessions(self.bench)
        # The layers that have been compared with the configuration.
        self._compared = weakref.WeakSet()

    @classmethod
    @passing_on(HardwareDevice, without=("layers",))
    def from_toml(cls, path: str | os.PathLike, **options) -> "InstrumentDevice":
        """Reads the configuration from a TOML file.

        Args:
            path: the file.
            **options: as in the class.

        Raises:
            ValueError: If the file is not TOML, or as in the class.
        """
        with open(path, "rb") as file:
            try:
                configuration = tomllib.load(file)
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                expected = f"a TOML file ({error})"
                raise _checks.error("path", expected, os.fspath(path)) from error
        return cls(configuration, **options)

    def open(self) -> "InstrumentDevice":
        """Opens all instruments now; otherwise each is opened when first needed.

        Raises:
            InstrumentError: If one cannot be opened, or is not the expected one.
        """
        for session in self._sessions.values():
            session.open()
        return self

    def close(self) -> None:
        """Sends the shutdown commands and closes all instruments.

        Raises:
            InstrumentError: If an instrument that was in use did not accept its
                shutdown commands. It may still drive the chip.
        """
        if self._acquisition.abandoned:
            # The abandoned call may still use the present sessions.
            InstrumentDevice.recover(self)
        sessions, self._sessions = self._sessions, _new_sessions(self.bench)
        # All sessions are shut down, even if one exchange is interrupted.
        with contextlib.ExitStack() as closing:
            for session in sessions.values():
                closing.callback(session.retire)
                if session.used:
                    closing.callback(session.exchange, session.instrument.shutdown)

    def __enter__(self):
        try:
            return self.open()
        except BaseException as error:
            # Instruments opened before the failure may already drive the chip.
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind, exception, traceback):
        try:
            self.close()
        except InstrumentError as failure:
            if exception is None:
                raise
            exception.add_note(f"When it was closed, it failed too: {failure}")

    def attach(self, model: keras.layers.Layer) -> "InstrumentDevice":
        """Compares the configuration with the layers of a model.

        Training and `installed` call it.

        Raises:
            ValueError: If the model lacks a physical layer of a configured name; or if
                the controls, inputs or outputs of one differ in number from its
                channels, it does not map real vectors to real vectors (a mesh, a
                convolution, an image on a modulator), or it has a bias, an activation
                or weights other than its controls.
        """
        super().attach(model)
        for layer in physical_layers(model):
            if layer.name in self.bench.layers:
                self._compare(layer)
        return self

    def _compare(self, layer: PhysicalLayer) -> None:
        check_layer(layer, self.bench.layers[layer.name])
        self._compared.add(layer)

    def acquire(self, layer, inputs, controls: dict, shape=None, dtype=None):
        """See `HardwareDevice.acquire`.

        Raises:
            DeviceError: Also, at once and with nothing sent, if the layer does not
                fit the configuration, or if a control or an input of any sample is
                beyond its limits.
        """
        wiring = self.bench.layers.get(layer.name)
        try:
            if wiring is None:
                raise ValueError(
                    f"The configuration has layers {', '.join(self.bench.layers)}. "
                    f"Received: layer '{layer.name}'"
                )
            if layer not in self._compared:
                self._compare(layer)
            wiring.inputs.sendable(inputs)
            _control_commands(wiring, layer, controls)
        except ValueError as error:
            self.failure = DeviceError(layer.name, self.calls + 1, error)
            raise self.failure from error
        return super().acquire(layer, inputs, controls, shape, dtype)

    def configure(self, layer: PhysicalLayer, controls: dict) -> None:
        """See `HardwareDevice.configure`; nothing is sent beyond a limit."""
        _set_controls(self._sessions, self.bench.layers[layer.name], layer, controls)

    def measure(
        self, layer: PhysicalLayer, inputs: np.ndarray, controls: dict
    ) -> np.ndarray:
        """Sets the inputs (..., inputs) and reads the outputs, sample by sample.

        Sets the controls anew if an instrument was opened since `configure`.

        Raises:
            InstrumentError: If an instrument refuses, does not answer, or answers
                with anything but numbers.
        """
        # Read once, since `recover` may replace them while this thread hangs.
        sessions, wiring = self._sessions, self.bench.layers[layer.name]
        settings = wiring.controls.values()
        if any(layer.name not in sessions[s.instrument].holds for s in settings):
            _set_controls(sessions, wiring, layer, controls)
            time.sleep(self.settle)
        rows = np.reshape(inputs, (-1, np.shape(inputs)[-1]))
        outputs = np.array([_sample(sessions, wiring, row) for row in rows])
        return outputs.reshape(*np.shape(inputs)[:-1], -1)

    def recover(self) -> None:
        """Drops all connections; the next call opens them again."""
        sessions, self._sessions = self._sessions, _new_sessions(self.bench)
        for name, session in sessions.items():
            self._sessions[name].used = session.used
            session.retire()


def _bench(configuration: dict) -> "Bench":
    try:
        # Not at the top: `import keras_pnn` does not need pydantic.
        from keras_pnn.hardware.instrument.wiring import Bench
    except ImportError as error:
        raise ImportError(
            "`InstrumentDevice` needs pydantic: pip install 'keras-pnn[instruments]'"
        ) from error
    return Bench.parsed(configuration)


def _control_commands(
    wiring: "Wiring", layer: PhysicalLayer, controls: dict
) -> list[tuple[str, list[str]]]:
    """Returns instrument and commands of each control; raises beyond a limit."""
    return [
        (setting.instrument, setting.commands(existing(layer, name, controls[name])))
        for name, setting in wiring.controls.items()
    ]


def _new_sessions(bench: "Bench") -> dict[str, Session]:
    """Returns an unopened session for each instrument."""
    return {
        name: Session(name, instrument, bench.backend)
        for name, instrument in bench.instruments.items()
    }


def _set_controls(
    sessions: dict[str, Session], wiring: "Wiring", layer: PhysicalLayer, controls: dict
) -> None:
    for session in sessions.values():
        session.holds.discard(layer.name)
    for instrument, commands in _control_commands(wiring, layer, controls):
        sessions[instrument].exchange(commands)
        sessions[instrument].holds.add(layer.name)


def _sample(
    sessions: dict[str, Session], wiring: "Wiring", inputs: np.ndarray
) -> np.ndarray:
    """Sets the inputs for one sample and reads its outputs."""
    reading, settings = wiring.outputs, wiring.inputs.commands(inputs)
    source, meter = sessions[wiring.inputs.instrument], sessions[reading.instrument]
    queries = reading.commands()
    if source is meter and not reading.delay:
        answers = meter.exchange([*settings, *reading.trigger, *queries])
    else:
        source.exchange(settings)
        time.sleep(reading.delay)
        answers = meter.exchange([*reading.trigger, *queries])
    return reading.values(parse_readings(answers[-len(queries) :]))
