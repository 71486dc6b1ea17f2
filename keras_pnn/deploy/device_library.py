"""Read the numbers of optical and electronic devices from a YAML file."""

import contextlib
import os
import pathlib
import re
from typing import NamedTuple

from keras_pnn import _checks

_SILICON = pathlib.Path(__file__).with_name("silicon.yaml")
_PREFIXES = {
    "f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "m": 1e-3,
    "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
}  # fmt: skip
_UNIT = re.compile(rf"(?P<prefix>[{''.join(_PREFIXES)}]?)(?P<base>W|J|Hz|s|m|m2)")
# Figures that `Prices` divides by.
_POSITIVE = (
    "rate", "bandwidth", "efficiency", "responsivity",
    "bits", "range", "rows", "columns",
)  # fmt: skip


class Figure(NamedTuple):
    """One number of a device: value, unit and source."""

    value: float
    unit: str
    source: str


def read_library(library: str | os.PathLike) -> dict[str, Figure]:
    """Returns the figures of a library by name, such as `"ring.loss"`.

    Figures that a YAML file omits are those of `"silicon"`.
    """
    if not isinstance(library, str | os.PathLike):
        raise _checks.error("library", "'silicon' or a path", _checks.short(library))
    figures = _parsed(_SILICON)
    if library == "silicon":
        return figures
    for name, given in _parsed(library).items():
        if name not in figures:
            expected = f"{library}: expected one of {', '.join(figures)}"
            raise ValueError(f"{expected}. Received: {name!r}")
        factor = _factor(given.unit, figures[name].unit)
        if factor is None:
            raise ValueError(
                f"{library}: expected a unit of '{name}' that converts to "
                f"{figures[name].unit}. Received: {given.unit!r}"
            )
        converted = given._replace(value=given.value * factor, unit=figures[name].unit)
        figures[name] = converted
    return figures


def _parsed(path) -> dict[str, Figure]:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "Libraries of devices need PyYAML: pip install 'keras-pnn[cost]'"
        ) from error
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML. Received: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected devices with their figures. Received: "
            f"{_checks.short(content)}"
        )
    found = {}
    for device, figures in content.items():
        if not isinstance(figures, dict):
            raise _wrong(path, device, "figures, each with a name", figures)
        for key, figure in figures.items():
            found[f"{device}.{key}"] = _figure(path, f"{device}.{key}", figure)
    return found


def _figure(path, name: str, given) -> Figure:
    expected = "a mapping of value, unit and source"
    if not isinstance(given, dict) or set(given) != set(Figure._fields):
        raise _wrong(path, name, expected, given)
    unit, source = given["unit"], given["source"]
    if not all(isinstance(text, str) and text.strip() for text in (unit, source)):
        raise _wrong(path, name, f"{expected}, the last two not empty", given)
    value = given["value"]
    if isinstance(value, str):
        # YAML reads 1e-3, without a point, as a string.
        with contextlib.suppress(ValueError):
            value = float(value)
    limits = {} if unit == "dBm" else {"low": 0}
    if name.endswith(_POSITIVE):
        limits = {"above": 0}
    if name.endswith("wall_plug_efficiency"):
        limits["high"] = 1
    return Figure(_checks.real(f"{path}: {name}", value, **limits), unit, source)


def _factor(unit: str, expected: str) -> float | None:
    """Returns the factor from `unit` to `expected`; `None` if they do not convert."""
    if unit == expected:
        return 1.0
    given, wanted = map(_UNIT.fullmatch, (unit, expected))
    if not given or not wanted or given["base"] != wanted["base"]:
        return None
    factor = _PREFIXES[given["prefix"]] / _PREFIXES[wanted["prefix"]]
    return factor**2 if given["base"] == "m2" else factor


def _wrong(path, name: str, expected: str, received) -> ValueError:
    return ValueError(
        f"{path}: expected for '{name}' {expected}. Received: {_checks.short(received)}"
    )
