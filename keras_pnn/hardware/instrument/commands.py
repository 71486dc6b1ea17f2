"""Check the templates of SCPI commands, and read lists of channels."""

import math
import string

# A limit that went through float32 is still the limit.
ROUNDING = 1e-6
# Settings of a control that a command must tell apart: as a converter of 3 bits.
_SETTINGS = 8


def channel_numbers(text: str) -> tuple[int, ...]:
    """Returns the channels in a list: `"1:4,7"` → (1, 2, 3, 4, 7)."""
    pairs = [part.partition(":") for part in text.split(",")]
    spans = [range(int(first), int(last or first) + 1) for first, _, last in pairs]
    numbers = tuple(number for span in spans for number in span)
    if not all(spans) or len(set(numbers)) < len(numbers):
        raise ValueError
    return numbers


def placeholders(command: str) -> list[str]:
    """Returns the names in the braces of a template."""
    fields = string.Formatter().parse(command)
    return [name for _, name, *_ in fields if name is not None]


def check_template(command: str, single: set[str], several: set[str]) -> None:
    """Checks the placeholders of a command for one channel, or for several at once."""
    example = {"value": 0.5, "channel": 1, "values": "0.5", "channels": "1"}
    try:
        found = set(placeholders(command))
        command.format(**{name: example.get(name, "") for name in found})
    except (ValueError, LookupError, AttributeError) as error:
        raise ValueError(f"must be a template that numbers fit ({error})") from None
    everything = several | {"channels"}
    if found != single and not several <= found <= everything:
        raise ValueError(
            f"must hold {_braced(single)} for a command for each channel, or "
            f"{_braced(everything)} for one for all"
        )


def check_rounding(
    command: str, minimum: float, maximum: float, scale: float, offset: float
) -> None:
    """Checks that the formats of a command take no number beyond a limit."""
    room = rounding_room(minimum, maximum)
    fields = [field for field in string.Formatter().parse(command) if field[2]]
    for _, name, specification, _ in fields:
        for limit in (minimum, maximum) if name == "value" else ():
            text = format(scale * limit + offset, specification)
            try:
                value = (float(text) - offset) / scale
            except ValueError:
                value = math.nan
            if not minimum - room <= value <= maximum + room:
                raise ValueError(
                    "must write its limits as numbers within them; the format "
                    f"{specification!r} writes {text.strip()!r} for {limit:g}"
                )


def check_steps(
    command: str, minimum: float, maximum: float, scale: float, offset: float
) -> None:
    """Checks that the formats of a command tell settings of a control apart."""
    settings = [
        scale * (minimum + (maximum - minimum) * i / (_SETTINGS - 1)) + offset
        for i in range(_SETTINGS)
    ]
    for _, name, specification, _ in string.Formatter().parse(command):
        if name != "value":
            continue
        written = {float(format(s, specification)) for s in settings}
        if len(written) < _SETTINGS:
            raise ValueError(
                f"must write {_SETTINGS} settings from {minimum:g} to {maximum:g} as "
                f"numbers that differ; the format {specification!r} writes "
                f"{len(written)}"
            )


def rounding_room(minimum: float, maximum: float) -> float:
    """Returns how far beyond a limit a number counts as the limit itself."""
    return ROUNDING * max(abs(minimum), abs(maximum))


def _braced(names: set[str]) -> str:
    return " and ".join(f"{{{name}}}" for name in sorted(names))
