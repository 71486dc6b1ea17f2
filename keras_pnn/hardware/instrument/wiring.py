"""Define the tables of a configuration: instruments, and the channels of each layer.

The tables are pydantic models, so this module needs the extra `[instruments]`;
`InstrumentDevice` imports it when a device is made.
"""

import functools
import math
import re
import string
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from keras_pnn import _checks

# Relative tolerance of limits, for values rounded to float32.
ROUNDING = 1e-6
# Arguments of `open_resource` that have separate keys.
OPENING = (
    "resource_name",
    "open_timeout",
    "timeout",
    "read_termination",
    "write_termination",
)


def _channel_numbers(text: str) -> tuple[int, ...]:
    """Returns the channels in a list: `"1:4,7"` → (1, 2, 3, 4, 7)."""
    pairs = [part.partition(":") for part in text.split(",")]
    spans = [range(int(first), int(last or first) + 1) for first, _, last in pairs]
    numbers = tuple(number for span in spans for number in span)
    if not all(spans) or len(set(numbers)) < len(numbers):
        raise ValueError
    return numbers


def _channels(given) -> str:
    several = isinstance(given, list | tuple)
    text = ",".join(map(str, given)) if several else str(given)
    try:
        _channel_numbers(text)
    except ValueError:
        raise ValueError(
            "must be different whole numbers, a list or a text such as '1:4,7'"
        ) from None
    return text


def _python_number(value):
    return value.item() if isinstance(value, np.generic) else value


def _not_zero(value: float) -> float:
    if value == 0:
        raise ValueError("must not be 0")
    return value


def _query(command: str) -> str:
    if "?" not in command:
        raise ValueError("must be a query, with a '?'")
    return command


def _as_tuple(commands):
    if isinstance(commands, str):
        return (commands,)
    return tuple(commands) if isinstance(commands, list) else commands


def _further_options(options: dict[str, Any]) -> dict[str, Any]:
    taken = [key for key in options if key in OPENING]
    if taken:
        raise ValueError(
            "must be further arguments of PyVISA's `open_resource`, apart from "
            f"{', '.join(OPENING)}; {taken[0]!r} is one of these"
        )
    return options


def _pattern(text: str, info) -> str:
    if text and not info.data.get("answers_per_command", 1):
        raise ValueError("must go with `answers_per_command` of 1 or more")
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"must be a regular expression ({error})") from None
    return text


def _placeholders(command: str) -> list[tuple[str, str]]:
    """Returns name and format of each pair of braces in a template."""
    fields = string.Formatter().parse(command)
    return [(name, form) for _, name, form, _ in fields if name is not None]


def _check_template(command: str, single: set[str], several: set[str]) -> None:
    """Checks the placeholders of a command for one channel, or for several at once."""
    example = {"value": 0.5, "channel": 1, "values": "0.5", "channels": "1"}
    try:
        found = {name for name, _ in _placeholders(command)}
        command.format(**{name: example.get(name, "") for name in found})
    except (ValueError, LookupError, AttributeError) as error:
        raise ValueError(f"must be a template that numbers fit ({error})") from None
    everything = several | {"channels"}
    if found != single and not several <= found <= everything:
        raise ValueError(
            f"must hold {_braced(single)} for a command for each channel, or "
            f"{_braced(everything)} for one for all"
        )


def _braced(names: set[str]) -> str:
    return " and ".join(f"{{{name}}}" for name in sorted(names))


def _rounding_room(minimum: float, maximum: float) -> float:
    """Returns how far beyond a limit a number counts as the limit itself."""
    return ROUNDING * max(abs(minimum), abs(maximum))


Number = Annotated[float, BeforeValidator(_python_number)]
Factor = Annotated[Number, AfterValidator(_not_zero)]
Commands = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Query = Annotated[str, AfterValidator(_query)]
QueryOrNone = Annotated[str, AfterValidator(lambda text: text and _query(text))]


class Table(pydantic.BaseModel):
    """Base of tables that refuse unknown keys and do not convert values."""

    model_config = pydantic.ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False
    )


class Instrument(Table):
    """One instrument and its protocol; `InstrumentDevice` explains the keys."""

    resource: str
    identity: str = ""
    timeout: Annotated[Number, Field(gt=0)] = 2.0
    read_termination: str = "\n"
    write_termination: str = "\n"
    pipeline: bool = False
    errors: QueryOrNone = "SYST:ERR?"
    answers_per_command: Annotated[
        int, BeforeValidator(_python_number), Field(ge=0)
    ] = 0
    acknowledgement: Annotated[str, AfterValidator(_pattern)] = ""
    setup: Commands = ("*CLS",)
    shutdown: Commands = ()
    options: Annotated[dict[str, Any], AfterValidator(_further_options)] = Field(
        default_factory=dict
    )


class Wire(Table):
    """Base of numbers that are sent to, or read from, channels of an instrument."""

    instrument: str
    # As listed in a command for all channels.
    channels: Annotated[str, PlainValidator(_channels)]
    scale: Factor = 1.0
    offset: Number = 0.0
    # The table's place in the configuration, for messages.
    _where: str = pydantic.PrivateAttr("")

    @functools.cached_property
    def numbers(self) -> tuple[int, ...]:
        """The channels, in order."""
        return _channel_numbers(self.channels)

    def _filled(self, sent: Sequence[float]) -> list[str]:
        """Returns the commands for all channels, with a number for each."""
        if "channel" in dict(_placeholders(self.command)):
            pairs = zip(self.numbers, sent, strict=True)
            return [self.command.format(channel=c, value=v) for c, v in pairs]
        values = ",".join(map(str, sent))
        return [self.command.format(channels=self.channels, values=values)]

    def check_count(self, count: int, what: str) -> None:
        """Checks that there is a channel for each of `count` numbers."""
        if count != len(self.numbers):
            raise _checks.error(
                f"{self._where}.channels",
                f"{count}, the number of {what}",
                f"{len(self.numbers)} channels",
            )


class Setting(Wire):
    """Numbers that are sent to a layer: its inputs, or its controls."""

    minimum: Number
    maximum: Number
    beyond: Literal["refuse", "clip"] = "refuse"
    # Last, since it is checked against the limits.
    command: str
    # How many values between the limits a command must distinguish.
    _steps: ClassVar[int] = 0

    @pydantic.field_validator("maximum")
    @classmethod
    def _check_maximum(cls, maximum: float, info) -> float:
        if not info.data.get("minimum", -np.inf) < maximum:
            raise ValueError("must be above the minimum")
        return maximum

    @pydantic.field_validator("command")
    @classmethod
    def _check_command(cls, command: str, info) -> str:
        _check_template(command, {"channel", "value"}, {"values"})
        keys = ("minimum", "maximum", "scale", "offset")
        # A number that failed validation is missing.
        if all(key in info.data for key in keys):
            for name, form in _placeholders(command):
                if name == "value":
                    cls._check_format(form, *(info.data[key] for key in keys))
        return command

    @classmethod
    def _check_format(cls, form: str, minimum, maximum, scale, offset) -> None:
        """Checks that the format keeps limits in range and steps distinct."""
        room = _rounding_room(minimum, maximum)
        for limit in (minimum, maximum) if form else ():
            text = format(scale * limit + offset, form)
            try:
                value = (float(text) - offset) / scale
            except ValueError:
                value = math.nan
            if not minimum - room <= value <= maximum + room:
                raise ValueError(
                    "must write its limits as numbers within them; the format "
                    f"{form!r} writes {text.strip()!r} for {limit:g}"
                )
        settings = scale * np.linspace(minimum, maximum, cls._steps) + offset
        written = {float(format(setting, form)) for setting in settings}
        if len(written) < cls._steps:
            raise ValueError(
                f"must write {cls._steps} settings from {minimum:g} to {maximum:g} as "
                f"numbers that differ; the format {form!r} writes {len(written)}"
            )

    def sendable(self, values: np.ndarray) -> np.ndarray:
        """Returns values (..., channels) in the layer's unit, checked and clipped."""
        values = np.asarray(values)
        if np.iscomplexobj(values) or values.shape[-1:] != (len(self.numbers),):
            raise _checks.error(
                self._where,
                f"real, of shape (..., {len(self.numbers)}), one for each channel",
                f"{values.dtype} of shape {values.shape}",
            )
        values = values.astype("float64")
        room = _rounding_room(self.minimum, self.maximum)
        inside = (values >= self.minimum - room) & (values <= self.maximum + room)
        wrong = ~(np.isfinite(values) & (inside | (self.beyond == "clip")))
        if wrong.any():
            first = tuple(np.argwhere(wrong)[0])
            raise _checks.error(
                self._where,
                f"from {self.minimum:g} to {self.maximum:g}; nothing was sent",
                f"{values[first]:.7g} for channel {self.numbers[first[-1]]}",
            )
        return np.clip(values, self.minimum, self.maximum)

    def commands(self, values: np.ndarray) -> list[str]:
        """Returns the commands that set one `sendable` value on each channel."""
        # Without a format, Python writes a float with all its digits.
        return self._filled((self.scale * self.sendable(values) + self.offset).tolist())


class Control(Setting):
    """Numbers that training sets, for which a coarse format would lose steps."""

    # As many as a 3-bit converter has.
    _steps: ClassVar[int] = 8


class Reading(Wire):
    """Numbers that are read: the detectors at a layer's outputs."""

    command: Query
    trigger: Commands = ()
    delay: Annotated[Number, Field(ge=0)] = 0.0

    @pydantic.field_validator("command")
    @classmethod
    def _check_command(cls, command: str) -> str:
        _check_template(command, {"channel"}, {"channels"})
        return command

    def commands(self) -> list[str]:
        """Returns the queries that read all channels."""
        # Queries have no placeholder for a number, so these are ignored.
        return self._filled(self.numbers)

    def values(self, readings: list[float]) -> np.ndarray:
        """Returns readings in the layer's unit."""
        if len(readings) != len(self.numbers):
            raise _checks.error(
                self._where,
                f"read as {len(self.numbers)} numbers, one for each channel",
                f"{len(readings)} readings",
            )
        return self.scale * np.asarray(readings, "float64") + self.offset


class Wiring(Table):
    """The controls, inputs and outputs of one layer."""

    controls: Annotated[dict[str, Control], Field(min_length=1)]
    inputs: Setting
    outputs: Reading


class Bench(Table):
    """A whole configuration."""

    instruments: Annotated[dict[str, Instrument], Field(min_length=1)]
    layers: Annotated[dict[str, Wiring], Field(min_length=1)]
    device: dict[str, Any] = Field(default_factory=dict)
    backend: str = "@py"

    @classmethod
    def parsed(cls, configuration: dict) -> "Bench":
        """Returns a configuration as tables, checked."""
        try:
            bench = cls.model_validate(configuration)
        except pydantic.ValidationError as error:
            problems = error.errors(include_url=False)
            raise ValueError("\n".join(map(_in_words, problems))) from None
        for layer, wiring in bench.layers.items():
            parts = {f"controls.{name}": c for name, c in wiring.controls.items()}
            parts |= {"inputs": wiring.inputs, "outputs": wiring.outputs}
            for key, part in parts.items():
                part._where = f"layers.{layer}.{key}"
                name = f"{part._where}.instrument"
                _checks.choice(name, part.instrument, bench.instruments)
        _check_apart(bench.layers.values())
        return bench


def _in_words(problem: dict) -> str:
    """Returns the message for a pydantic error: place, expectation and value."""
    place = ".".join(map(str, problem["loc"])) or "configuration"
    expected = f": {problem['msg']}"
    if problem["type"] == "value_error":
        # Raised above, as a verb and its object.
        expected = f" {problem['ctx']['error']}"
    return f"Argument `{place}`{expected}. Received: {_checks.short(problem['input'])}"


def _check_apart(layers) -> None:
    """Raises ValueError if a control shares a channel with a control or an input.

    The controls of one layer must stay while another is set and measured. Inputs and
    detectors may be shared among layers, since they are set and read anew for each.
    """
    taken: dict[tuple, str] = {}
    settings = [control for wiring in layers for control in wiring.controls.values()]
    for setting in [*settings, *(wiring.inputs for wiring in layers)]:
        for channel in setting.numbers:
            key = setting.instrument, setting.command, channel
            if key in taken:
                raise _checks.error(
                    f"{setting._where}.channels",
                    f"channels of its own, apart from those of `{taken[key]}`",
                    f"{channel}, which both have",
                )
            if isinstance(setting, Control):
                taken[key] = setting._where
