"""A robustness report in JSON's types: what was measured, and what follows from it."""

import dataclasses
import math

import numpy as np

from keras_pnn.devices.simulated import SimulatedDevice
from keras_pnn.robustness import statistics
from keras_pnn.robustness.report.words import open_ends


def as_dict(result) -> dict:
    """Returns a report in JSON's types; NaN and infinities become `None`.

    Args:
        result: a `RobustnessResult`.

    Returns:
        The fields of the result, by name, and beside what was measured the figures
        that follow from it, worked out anew in each call:

        - of each model: `statistics`, metric → mean, std, median, p05, p95, min and
          max over the devices, and `yield`, with `low` and `high` of its interval;
          both `None` without devices;
        - of each sweep and of the grid: the same `statistics` at each point;
        - of each sweep: `tolerance` at the specification, with `low`, `high`, `width`
          and whether these ends are those of the range (`low_is_end`, `high_is_end`);
          `mean_over_range`, metric → the area under the curve over the width of the
          range; and `yields`, one for each point of a spread, `None` for others;
        - of each axis: `positions`, its points along the line that they lie on.
    """
    found = {f.name: plain(getattr(result, f.name)) for f in dataclasses.fields(result)}
    for name, model in result.models.items():
        values, rate = found["models"][name], result.yield_of(name)
        values["statistics"] = plain(_statistics(model.devices))
        values["yield"] = plain(rate)
        for key, scan in model.sweeps.items():
            values["sweeps"][key] |= plain(_sweep_figures(result, scan))
            _add_positions(values["sweeps"][key], scan)
        if model.grid is not None:
            values["grid"]["statistics"] = plain(_statistics(model.grid.devices))
            _add_positions(values["grid"], model.grid)
    return found


def plain(value):
    """Returns a value in JSON's types; NaN and infinities become `None`.

    Args:
        value: records, arrays, dictionaries, sequences and numbers, nested as they are.
    """
    if isinstance(value, SimulatedDevice):
        return {
            f"{name}[{index}]": plain(array)
            for (name, index), array in value.deviations.items()
        }
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value):
        return {
            f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _statistics(devices) -> dict | None:
    """metric → statistics over the devices, the first axis."""
    if devices is None:
        return None
    return {metric: statistics.summary(values) for metric, values in devices.items()}


def _sweep_figures(result, scan) -> dict:
    metric, spec, mode = result.metric, result.spec, result.mode
    low, high = scan.tolerance(metric, spec, mode)
    ends = open_ends(scan, low, high)
    return {
        "statistics": _statistics(scan.devices),
        "tolerance": {
            "low": low,
            "high": high,
            "width": high - low,
            "low_is_end": ends[0],
            "high_is_end": ends[1],
        },
        "mean_over_range": {n: scan.area(n) for n in scan.design or scan.devices},
        "yields": scan.yields(metric, spec, mode) if scan.axes[0].random else None,
    }


def _add_positions(values: dict, scan) -> None:
    for one, axis in zip(values["axes"], scan.axes, strict=True):
        one["positions"] = plain(axis.positions)
