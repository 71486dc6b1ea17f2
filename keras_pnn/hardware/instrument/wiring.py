"""What is connected to what on the bench: the tables of a configuration, checked."""

import dataclasses
import string
from collections.abc import Mapping

import numpy as np

from keras_pnn.devices.process import number, short

# Arguments of `open_resource` that have keys of their own.
OPENING = (
    "resource_name",
    "open_timeout",
    "timeout",
    "read_termination",
    "write_termination",
)
# A limit that went through float32 is still the limit.
ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Instrument:
    """One instrument and how it is spoken to; `InstrumentDevice` explains the keys."""

    resource: str
    identity: str = ""
    timeout: float = 2.0
    read_termination: str = "\n"
    write_termination: str = "\n"
    pipeline: bool = False
    errors: str = "SYST:ERR?"
    setup: tuple[str, ...] = ("*CLS",)
    shutdown: tuple[str, ...] = ()
    options: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def parsed(cls, where: str, table) -> "Instrument":
        values = checked(where, table, cls)
        for key in ("resource", "identity", "read_termination", "write_termination"):
            text(f"{where}.{key}", values.get(key, ""))
        errors = text(f"{where}.errors", values.get("errors", ""))
        if errors and "?" not in errors:
            raise ValueError(
                f"`{where}.errors` must be a query, with a '?', or ''. "
                f"Received: {errors!r}"
            )
        options = dict(mapping(f"{where}.options", values.get("options", {}), True))
        taken = [key for key in options if key in OPENING or not isinstance(key, str)]
        if taken:
            raise ValueError(
                f"`{where}.options` must be further arguments of PyVISA's "
                f"`open_resource`, apart from {', '.join(OPENING)}. "
                f"Received: {short(taken[0])}"
            )
        if "timeout" in values:
            values["timeout"] = number(f"{where}.timeout", values["timeout"], above=0)
        for key in {"setup", "shutdown"} & values.keys():
            values[key] = commands(f"{where}.{key}", values[key])
        if not isinstance(values.get("pipeline", False), bool):
            raise ValueError(
                f"`{where}.pipeline` must be true or false. "
                f"Received: {values['pipeline']!r}"
            )
        return cls(**values)


class Sent(float):
    """A number in a command: as the command formats it, else to its last digit."""

    def __format__(self, specification: str) -> str:
        # `repr` is the shortest text that gives the same number again.
        return format(float(self), specification) if specification else repr(self)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Numbers that are sent: the currents of a layer, or its inputs."""

    where: str
    instrument: str
    command: str
    channels: tuple[int, ...]
    minimum: float
    maximum: float
    scale: float = 1.0
    offset: float = 0.0
    beyond: str = "refuse"
    listed: str = ""

    @classmethod
    def parsed(cls, where: str, table) -> "Setting":
        values = checked(where, table, cls, own=("where", "listed"))
        fields(where, values["command"], ({"value", "channel"}, {"values"}))
        for key in {"minimum", "maximum", "offset"} & values.keys():
            values[key] = number(f"{where}.{key}", values[key])
        if "scale" in values:
            values["scale"] = factor(f"{where}.scale", values["scale"])
        if not values["minimum"] < values["maximum"]:
            raise ValueError(
                f"`{where}.minimum` must be below its maximum. Received: "
                f"{values['minimum']:g} and {values['maximum']:g}"
            )
        if values.get("beyond", "refuse") not in ("refuse", "clip"):
            raise ValueError(
                f"`{where}.beyond` must be 'refuse' or 'clip'. "
                f"Received: {short(values['beyond'])}"
            )
        return cls(where, **with_channels(where, values)).check_limits()

    def sendable(self, values: np.ndarray) -> np.ndarray:
        """Returns values as they may be sent.

        Args:
            values: (..., channels), in the layer's unit.

        Returns:
            A float64 array, within the limits.

        Raises:
            ValueError: there is not one for each channel, or one is not finite, or
                beyond the limits and not to be clipped.
        """
        values = np.asarray(values)
        if np.iscomplexobj(values) or values.shape[-1:] != (len(self.channels),):
            raise ValueError(
                f"`{self.where}` must be real, of shape (..., {len(self.channels)}), "
                f"one for each channel. Received: {values.dtype} of shape "
                f"{values.shape}"
            )
        values = values.astype("float64")
        room = ROUNDING * max(abs(self.minimum), abs(self.maximum))
        inside = (values >= self.minimum - room) & (values <= self.maximum + room)
        wrong = ~(np.isfinite(values) & (inside | (self.beyond == "clip")))
        if wrong.any():
            first = tuple(np.argwhere(wrong)[0])
            raise ValueError(
                f"`{self.where}` must be from {self.minimum:g} to {self.maximum:g}; "
                f"nothing was sent. Received: {values[first]:.7g} for channel "
                f"{self.channels[first[-1]]}"
            )
        return np.clip(values, self.minimum, self.maximum)

    def commands(self, values: np.ndarray) -> list[str]:
        """Returns the commands that set one value on each channel.

        Args:
            values: (channels,), in the layer's unit.

        Raises:
            ValueError: as in `sendable`.
        """
        sent = [Sent(v) for v in self._scaled(self.sendable(values))]
        if self.listed:
            joined = ",".join(map(format, sent))
            return [self.command.format(values=joined, channels=self.listed)]
        return [
            self.command.format(value=v, channel=c)
            for c, v in zip(self.channels, sent, strict=True)
        ]

    def _scaled(self, values):
        return self.scale * values + self.offset

    def check_limits(self) -> "Setting":
        """Returns itself, if its command's format rounds to no number beyond a limit.

        Raises:
            ValueError: it does.
        """
        written = [w for w in string.Formatter().parse(self.command) if w[1] == "value"]
        for limit in (self.minimum, self.maximum) if written else ():
            for specification in (w[2] for w in written if w[2]):
                text = format(Sent(self._scaled(limit)), specification)
                if not self._holds(text):
                    raise ValueError(
                        f"`{self.where}.command` must write its limits as numbers "
                        f"within them. Received: {text.strip()!r} for {limit:g}, with "
                        f"the format {specification!r}"
                    )
        return self

    def _holds(self, text: str) -> bool:
        try:
            value = (float(text) - self.offset) / self.scale
        except ValueError:
            return False
        room = ROUNDING * max(abs(self.minimum), abs(self.maximum))
        return self.minimum - room <= value <= self.maximum + room


@dataclasses.dataclass(frozen=True)
class Reading:
    """Numbers that are read: the detectors at a layer's outputs."""

    where: str
    instrument: str
    command: str
    channels: tuple[int, ...]
    scale: float = 1.0
    offset: float = 0.0
    trigger: tuple[str, ...] = ()
    delay: float = 0.0
    listed: str = ""

    @classmethod
    def parsed(cls, where: str, table) -> "Reading":
        values = checked(where, table, cls, own=("where", "listed"))
        fields(where, values["command"], ({"channel"}, {"channels"}))
        if "?" not in values["command"]:
            raise ValueError(
                f"`{where}.command` must be a query, with a '?'. "
                f"Received: {values['command']!r}"
            )
        if "scale" in values:
            values["scale"] = factor(f"{where}.scale", values["scale"])
        if "offset" in values:
            values["offset"] = number(f"{where}.offset", values["offset"])
        if "delay" in values:
            values["delay"] = number(f"{where}.delay", values["delay"], minimum=0)
        if "trigger" in values:
            values["trigger"] = commands(f"{where}.trigger", values["trigger"])
        return cls(where, **with_channels(where, values))

    def commands(self) -> list[str]:
        """Returns the queries that read all channels."""
        if self.listed:
            return [self.command.format(channels=self.listed)]
        return [self.command.format(channel=c) for c in self.channels]

    def values(self, readings: list[float]) -> np.ndarray:
        """Returns readings in the layer's unit.

        Raises:
            ValueError: their number is not that of the channels.
        """
        if len(readings) != len(self.channels):
            raise ValueError(
                f"`{self.where}` has {len(self.channels)} channels. "
                f"Received: {len(readings)} readings"
            )
        return self.scale * np.asarray(readings, "float64") + self.offset


@dataclasses.dataclass(frozen=True)
class Wiring:
    """All that belongs to one layer."""

    controls: dict[str, Setting]
    inputs: Setting
    outputs: Reading

    @classmethod
    def parsed(cls, where: str, table, instruments) -> "Wiring":
        values = checked(where, table, cls)
        controls = {
            name: Setting.parsed(f"{where}.controls.{name}", control)
            for name, control in mapping(f"{where}.controls", values["controls"])
        }
        inputs = Setting.parsed(f"{where}.inputs", values["inputs"])
        outputs = Reading.parsed(f"{where}.outputs", values["outputs"])
        for part in (*controls.values(), inputs, outputs):
            if text(f"{part.where}.instrument", part.instrument) not in instruments:
                raise ValueError(
                    f"`{part.where}.instrument` must be one of "
                    f"{', '.join(instruments)}. Received: {part.instrument!r}"
                )
        return cls(controls, inputs, outputs)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A whole configuration."""

    instruments: dict[str, Instrument]
    layers: dict[str, Wiring]
    device: dict = dataclasses.field(default_factory=dict)
    backend: str = "@py"

    @classmethod
    def parsed(cls, table) -> "Bench":
        """Checks a configuration.

        Raises:
            ValueError: a key is missing, unknown, or has a value that cannot be.
        """
        values = checked("configuration", table, cls)
        instruments = {
            name: Instrument.parsed(f"instruments.{name}", instrument)
            for name, instrument in mapping("instruments", values["instruments"])
        }
        layers = {
            name: Wiring.parsed(f"layers.{name}", layer, instruments)
            for name, layer in mapping("layers", values["layers"])
        }
        _check_apart(
            [s for w in layers.values() for s in w.controls.values()],
            [w.inputs for w in layers.values()],
        )
        device = dict(mapping("device", values.get("device", {}), empty=True))
        if "layers" in device:
            raise ValueError(
                "`device.layers` must not be given: the layers on the device are those "
                f"under `layers`. Received: {device['layers']!r}"
            )
        backend = values.get("backend", "@py")
        text("backend", backend)
        return cls(instruments, layers, device, backend)


def _check_apart(controls: list[Setting], inputs: list[Setting]) -> None:
    """Raises ValueError if a control shares a channel, with a control or an input.

    What one layer is set to must stay while another is set and measured. Inputs and
    detectors may be shared among layers: they are set and read anew for each.
    """
    taken: dict[tuple, str] = {}
    for position, setting in enumerate((*controls, *inputs)):
        for channel in setting.channels:
            key = setting.instrument, setting.command, channel
            if key in taken:
                raise ValueError(
                    f"`{setting.where}.channels` must be channels of its own, apart "
                    f"from those of `{taken[key]}`. Received: {channel}, which both "
                    "have"
                )
            if position < len(controls):
                taken[key] = setting.where


def checked(where: str, table, kind, own: tuple[str, ...] = ()) -> dict:
    """A table's entries, if they are arguments of `kind` and none is missing."""
    given = dict(mapping(where, table))
    known = {f.name: f for f in dataclasses.fields(kind) if f.name not in own}
    needed = [
        name
        for name, f in known.items()
        if f.default is f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in needed if name not in given]
    unknown = [name for name in given if name not in known]
    if missing or unknown:
        problem = [f"without {', '.join(missing)}"] if missing else []
        problem += [f"with {', '.join(map(str, unknown))}"] if unknown else []
        raise ValueError(
            f"`{where}` must have the keys {', '.join(needed)}, and may have "
            f"{', '.join(n for n in known if n not in needed) or 'no other'}. "
            f"Received: a table {' and '.join(problem)}"
        )
    return given


def mapping(where: str, value, empty: bool = False):
    if not isinstance(value, Mapping) or not (value or empty):
        raise ValueError(
            f"`{where}` must be a table{'' if empty else ' with entries'}. "
            f"Received: {short(value)}"
        )
    return value.items()


def text(where: str, value) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{where}` must be a text. Received: {short(value)}")
    return value


def factor(where: str, value) -> float:
    if number(where, value) == 0:
        raise ValueError(f"`{where}` must not be 0. Received: {short(value)}")
    return float(value)


def commands(where: str, value) -> tuple[str, ...]:
    """One command or several, as a tuple."""
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list | tuple):
        raise ValueError(
            f"`{where}` must be a command or a list of them. Received: {short(value)}"
        )
    return tuple(text(where, command) for command in several)


def placeholders(where: str, command) -> set[str]:
    """The names in braces of a template."""
    try:
        parts = list(string.Formatter().parse(text(f"{where}.command", command)))
    except ValueError as error:
        raise ValueError(
            f"`{where}.command` must be a template ({error}). Received: {command!r}"
        ) from None
    return {name for _, name, *_ in parts if name is not None}


def fields(where: str, command, kinds: tuple[set[str], set[str]]) -> bool:
    """Whether a template is for one channel; else it is for all of them at once."""
    found = placeholders(where, command)
    example = {"value": Sent(0.5), "channel": 1, "values": "0.5", "channels": "1"}
    try:
        command.format(**{name: example.get(name, "") for name in found})
    except (ValueError, LookupError, AttributeError) as error:
        raise ValueError(
            f"`{where}.command` must be a template that numbers fit ({error}). "
            f"Received: {command!r}"
        ) from None
    single, several = kinds[0], kinds[1] | {"channels"}
    if found == single:
        return True
    if not (kinds[1] <= found <= several):
        raise ValueError(
            f"`{where}.command` must hold {braced(single)} for a command for each "
            f"channel, or {braced(several)} for one for all. Received: {command!r}"
        )
    return False


def braced(names: set[str]) -> str:
    return " and ".join(f"{{{name}}}" for name in sorted(names))


def with_channels(where: str, values: dict) -> dict:
    """`values` with the channels as numbers, and as a list for a command for all."""
    given = values["channels"]
    listed = given if isinstance(given, str) else ",".join(map(str, listing(given)))
    numbers = numbered(where, given)
    single = "channel" in placeholders(where, values["command"])
    return {**values, "channels": numbers, "listed": "" if single else listed}


def listing(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def numbered(where: str, given) -> tuple[int, ...]:
    """`"1:4,7"` or `[1, 2, 3, 4, 7]` → (1, 2, 3, 4, 7)."""
    numbers, correct = [], True
    try:
        for part in given.split(",") if isinstance(given, str) else listing(given):
            first, _, last = str(part).strip().partition(":")
            span = range(int(first), int(last or first) + 1)
            correct &= len(span) > 0
            numbers += span
    except ValueError:
        correct = False
    if not correct or not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"`{where}.channels` must be different whole numbers, a list or a text "
            f"such as '1:4,7'. Received: {short(given)}"
        )
    return tuple(numbers)
