"""Describe a robustness study once: its arguments, their defaults, their checks."""

import dataclasses
from collections.abc import Iterable, Sequence

from keras_pnn import _checks
from keras_pnn.devices import SimulatedDevice, Variation
from keras_pnn.robustness.axes import Axis, SpreadAxis, axis_of
from keras_pnn.robustness.curvature import HessianOptions, landscape_options


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Specification:
    """What a robustness study measures on a model, and how.

    `robustness_report`, `robustness_rows` and the callback `RobustnessReport` take
    these arguments. Whether they fit a model is checked when a `Study` is prepared.

    Args:
        devices, variation, n, …: as in `robustness_report`.

    Attributes:
        devices: a list of devices, or `None`: a `Variation` in their place becomes
            `variation`.
        sweeps, grid: name → typed `Axis`.
        hessian: `HessianOptions`, or `None` for no curvature.
        landscape: arguments of `loss_landscape`, or `None` for no landscape.

    Raises:
        ValueError: If an argument is not as described, whatever the model.
        TypeError: If there is no such argument.
    """

    devices: Sequence[SimulatedDevice] | Variation | None = None
    variation: Variation | None = None
    n: int = 32
    sweeps: dict | None = None
    grid: dict | None = None
    spec: float | None = None
    metric: str | None = None
    mode: str = "auto"
    hessian: bool | dict | None = True
    landscape: bool | dict | None = True
    worst_case: bool | dict = True
    sensitivity: bool = True
    trained_on: dict | None = None
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
        sweep_devices = self.sweep_devices
        if sweep_devices is None:
            sweep_devices = count
        grid = _axes("grid", self.grid)
        if len(grid) not in (0, 2):
            raise _checks.error("grid", "a dictionary of two names", list(grid))
        worst_case = self.worst_case
        if not isinstance(worst_case, bool | dict):
            expected = "True, False or a dictionary imperfection → radius"
            raise _checks.error("worst_case", expected, worst_case)
        checked = {
            "devices": devices,
            "variation": variation,
            "n": n,
            "sweeps": _axes("sweeps", self.sweeps),
            "grid": grid,
            "spec": _checks.optional(_checks.real, "spec", self.spec),
            "mode": _checks.choice("mode", self.mode, ("auto", "max", "min")),
            "hessian": HessianOptions.of(self.hessian),
            "landscape": landscape_options(self.landscape),
            "sensitivity": _checks.boolean("sensitivity", self.sensitivity),
            "trained_on": _trained_on(self.trained_on),
            "sweep_devices": _checks.integer("sweep_devices", sweep_devices, 0, count),
            "probe": _checks.integer("probe", self.probe, 1),
            "seed": _checks.integer("seed", self.seed, 0),
            "batch_size": _checks.integer("batch_size", self.batch_size, 1),
            "memory_limit": _checks.real("memory_limit", self.memory_limit, above=0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self._check_random_axes(count)

    def _check_random_axes(self, count: int) -> None:
        """Raises ValueError if the study lacks the devices that an axis spreads."""
        for axis in (*self.sweeps.values(), *self.grid.values()):
            drawn = isinstance(axis, SpreadAxis)
            given = self.variation is not None if drawn else count
            if axis.random and not (given and self.sweep_devices):
                lacking = "`devices` or `variation`"
                if drawn:
                    lacking = "the `variation` that their other imperfections have"
                raise ValueError(
                    f"Axis {axis.name!r} spreads devices: give {lacking}, and let "
                    f"`sweep_devices` be at least 1. Received: {count} devices, of "
                    f"which {self.sweep_devices} take part in sweeps"
                )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to measure besides the design."""
        parts = (self.devices, self.variation, self.sweeps, self.grid, self.hessian)
        found = (*parts, self.worst_case)
        return self.landscape is None and all(not part for part in found)


def _devices(devices, variation) -> tuple[list[SimulatedDevice] | None, object]:
    """Returns (devices, variation), of which at least one is `None`."""
    if devices is not None and variation is not None:
        raise ValueError("Give `devices` or `variation`, not both. Received: both")
    if isinstance(devices, Variation):
        devices, variation = None, devices
    if variation is not None and not isinstance(variation, Variation):
        raise _checks.error("variation", "a `Variation`", _checks.short(variation))
    if devices is None:
        return None, variation
    expected = "a `Variation`, or a list of simulated devices, at least one"
    if not isinstance(devices, Iterable):
        raise _checks.error("devices", expected, _checks.short(devices))
    # A list: an iterator would be empty for the second model.
    devices = list(devices)
    if not devices or not all(isinstance(d, SimulatedDevice) for d in devices):
        raise _checks.error("devices", expected, _checks.short(devices))
    return devices, None


def _axes(argument: str, given: dict | None) -> dict[str, Axis]:
    given = {} if given is None else given
    if not isinstance(given, dict) or not all(isinstance(n, str) for n in given):
        expected = "a dictionary of names (strings) and values"
        raise _checks.error(argument, expected, _checks.short(given))
    return {name: axis_of(argument, name, values) for name, values in given.items()}


def _trained_on(given) -> dict[str, SimulatedDevice]:
    given = {} if given is None else given
    devices = given.values() if isinstance(given, dict) else [None]
    if not all(isinstance(device, SimulatedDevice) for device in devices):
        expected = "a dictionary of models' names and simulated devices"
        raise _checks.error("trained_on", expected, _checks.short(given))
    return given
