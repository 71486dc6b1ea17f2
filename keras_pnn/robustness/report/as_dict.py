"""Turn a robustness result into JSON: what was measured, and what follows from it."""

import dataclasses
import json
import math

import numpy as np

from keras_pnn.devices import SimulatedDevice
from keras_pnn.robustness import statistics
from keras_pnn.robustness.report.words import open_ends


def as_json(result) -> str:
    """Returns a `RobustnessResult` as JSON, on one line."""
    return json.dumps(as_dict(result), allow_nan=False, ensure_ascii=False) + "\n"


def as_dict(result) -> dict:
    """Returns a `RobustnessResult` in JSON's types; what is not finite is `None`.

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
    found = _fields(result)
    for name, model in result.models.items():
        values = found["models"][name]
        values["statistics"] = plain(_statistics(model.devices))
        values["yield"] = plain(result.yield_of(name))
        for key, scan in model.sweeps.items():
            values["sweeps"][key] |= plain(_sweep_figures(result, scan))
        if model.grid is not None:
            values["grid"]["statistics"] = plain(_statistics(model.grid.devices))
    return found


def plain(value):
    """Returns records, arrays and numbers, however nested, in JSON's types."""
    if isinstance(value, SimulatedDevice):
        named = value.deviations.items()
        return {f"{name}[{index}]": plain(array) for (name, index), array in named}
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _fields(record) -> dict:
    names = [field.name for field in dataclasses.fields(record)]
    return {name: plain(getattr(record, name)) for name in names}


def _statistics(devices: dict | None) -> dict | None:
    """Returns metric → statistics over the devices, the first axis."""
    return devices and {name: statistics.summary(v) for name, v in devices.items()}


def _sweep_figures(result, scan) -> dict:
    asked = result.metric, result.spec, result.mode
    low, high = scan.tolerance(*asked)
    low_is_end, high_is_end = open_ends(scan, low, high)
    return {
        "statistics": _statistics(scan.devices),
        "tolerance": {
            "low": low,
            "high": high,
            "width": high - low,
            "low_is_end": low_is_end,
            "high_is_end": high_is_end,
        },
        "mean_over_range": {n: scan.area(n) for n in scan.design or scan.devices},
        "yields": scan.yields(*asked) if scan.axes[0].random else None,
    }
