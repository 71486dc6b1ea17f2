"""Define the arguments of a robustness study, with their defaults and checks."""

import dataclasses
import os
from collections.abc import Iterable, Sequence

from keras_pnn import _checks
from keras_pnn._display import Brief
from keras_pnn.devices import SimulatedDevice, Variation
from keras_pnn.robustness.axes import Axis, SpreadAxis, axis_of
from keras_pnn.robustness.curvature import HessianOptions, landscape_options


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Specification(Brief):
    """What a robustness study measures on a model, and how.

    Whether it fits a model is checked when a `Study` is prepared.

    Args:
        devices, variation, n, …: as in `robustness_report`.

    Attributes:
        devices: a list of devices, or `None`; a `Variation` given here becomes
            `variation`.
        sweeps, grid: name → typed `Axis`.
        hessian: `HessianOptions`, or `None` for no curvature.
        landscape: arguments of `loss_landscape`, or `None` for no landscape.

    Raises:
        ValueError: If an argument is not as described.
        TypeError: If a keyword argument is unknown.

    Example:

    >>> asked = pnn.robustness.Specification(
    ...     variation=pnn.Variation(resonance_shift=0.02), n=8, spec=0.9
    ... )
    """

    devices: Sequence[SimulatedDevice] | Variation | None = None
    variation: Variation | None = None
    n: int = 32
    sweeps: dict | None = None
    grid: dict | None = None
    spec: float | None = None
    metric: str | None = None
    mode: str = "auto"
    fast: bool = False
    hessian: bool | dict | None = True
    landscape: bool | dict | None = True
    worst_case: bool | dict = True
    sensitivity: bool = True
    trained_on: dict | None = None
    hardware: str | os.PathLike | None = None
    sweep_devices: int | None = None
    probe: int = 1000
    seed: int = 0
    batch_size: int = 500
    memory_limit: float = 1.0
    batch_norm: str = "frozen"
    calibration: object = None

    def __post_init__(self):
        devices, variation = _devices(self.devices, self.variation)
        n = _checks.integer("n", self.n, 1)
        count = n if variation is not None else len(devices or ())
        taking = count if self.sweep_devices is None else self.sweep_devices
        if not isinstance(self.worst_case, bool | dict):
            expected = "True, False or a dictionary imperfection → radius"
            raise _checks.error("worst_case", expected, self.worst_case)
        checked = {
            "devices": devices,
            "variation": variation,
            "n": n,
            "sweeps": _axes("sweeps", self.sweeps),
            "grid": _axes("grid", self.grid),
            "spec": _checks.optional(_checks.real, "spec", self.spec),
            "mode": _checks.choice("mode", self.mode, ("auto", "max", "min")),
            "fast": _checks.boolean("fast", self.fast),
            "hessian": HessianOptions.of(self._unless_fast("hessian")),
            "landscape": landscape_options(self._unless_fast("landscape")),
            "sensitivity": _checks.boolean("sensitivity", self.sensitivity),
            "trained_on": by_name(
                "trained_on", self.trained_on, SimulatedDevice, "simulated devices"
            ),
            "sweep_devices": _checks.integer("sweep_devices", taking, 0, count),
            "probe": _checks.integer("probe", self.probe, 1),
            "seed": _checks.integer("seed", self.seed, 0),
            "batch_size": _checks.integer("batch_size", self.batch_size, 1),
            "memory_limit": _checks.real("memory_limit", self.memory_limit, above=0),
        }
        if len(checked["grid"]) not in (0, 2):
            received = list(checked["grid"])
            raise _checks.error("grid", "a dictionary of two names", received)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for axis in (*self.sweeps.values(), *self.grid.values()):
            self._check_spread(axis, count)

    def _unless_fast(self, name: str):
        """Returns an option, or `False` if `fast` switches it off."""
        given = getattr(self, name)
        if self.fast and isinstance(given, dict):
            expected = "no dictionary with fast=True, which leaves it out"
            raise _checks.error(name, expected, _checks.short(given))
        return False if self.fast else given

    def _check_spread(self, axis: Axis, count: int) -> None:
        """Raises ValueError if the study lacks the devices that an axis needs."""
        lacking, given = "`devices` or `variation`", bool(count)
        if isinstance(axis, SpreadAxis):
            lacking = "the `variation` that their other imperfections have"
            given = self.variation is not None
        if axis.random and not (given and self.sweep_devices):
            raise ValueError(
                f"Axis {axis.name!r} spreads devices: give {lacking}, and let "
                f"`sweep_devices` be at least 1. Received: {count} devices, of "
                f"which {self.sweep_devices} take part in sweeps"
            )


def _devices(devices, variation) -> tuple[list[SimulatedDevice] | None, object]:
    """Returns (devices, variation), of which at least one is `None`."""
    if devices is not None and variation is not None:
        raise ValueError("Give `devices` or `variation`, not both. Received: both")
    if isinstance(devices, Variation):
        return None, devices
    if devices is None:
        if not isinstance(variation, Variation | None):
            raise _checks.error("variation", "a `Variation`", _checks.short(variation))
        return None, variation
    # A list: an iterator would be empty for the second model.
    found = list(devices) if isinstance(devices, Iterable) else []
    if not found or not all(isinstance(d, SimulatedDevice) for d in found):
        expected = "a `Variation`, or a list of simulated devices, at least one"
        raise _checks.error("devices", expected, _checks.short(devices))
    return found, None


def _axes(argument: str, given: dict | None) -> dict[str, Axis]:
    values = by_name(argument, given, object, "values")
    return {name: axis_of(argument, name, points) for name, points in values.items()}


def by_name(argument: str, given: dict | None, kind: type, words: str) -> dict:
    """Returns a dictionary of names and values of a kind; empty for `None`."""
    found = {} if given is None else given
    pairs = found.items() if isinstance(found, dict) else [(None, None)]
    if not all(isinstance(n, str) and isinstance(v, kind) for n, v in pairs):
        expected = f"a dictionary of names (strings) and {words}"
        raise _checks.error(argument, expected, _checks.short(given))
    return found
