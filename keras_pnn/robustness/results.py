"""Hold the measurements of a robustness study, and derive statistics from them."""

import dataclasses
import math
import os
import pathlib

import numpy as np

from keras_pnn import _checks, _files
from keras_pnn._display import Brief, Shown, dataframe
from keras_pnn.curvature.eigenvalues import HessianResult
from keras_pnn.curvature.landscape import Landscape
from keras_pnn.curvature.spectrum import DensityResult, TraceResult
from keras_pnn.deploy import HardwareCost
from keras_pnn.devices import SimulatedDevice
from keras_pnn.robustness import statistics
from keras_pnn.robustness.axes import Axis
from keras_pnn.robustness.light_path import LightPath
from keras_pnn.robustness.report.export import as_csv, as_dict, as_json, rows
from keras_pnn.robustness.report.formatting import specification
from keras_pnn.robustness.report.html import html
from keras_pnn.robustness.report.sections import sections
from keras_pnn.robustness.report.text import text


@dataclasses.dataclass(frozen=True)
class Yield:
    """The number of devices that keep the specification: `passed` of `n`.

    Args:
        passed: number of devices that keep it.
        n: number of all devices.

    Example:

    >>> low, high = pnn.robustness.Yield(20, 20).interval
    >>> round(low, 3)
    0.839
    """

    passed: int
    n: int

    @property
    def value(self) -> float:
        """The share that passed."""
        return self.passed / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval, within [0, 1] and never of width 0.

        Reference:

        - [Wilson, 1927](https://doi.org/10.1080/01621459.1927.10502953)
        """
        from scipy.stats import binomtest

        low, high = binomtest(self.passed, self.n).proportion_ci(method="wilson")
        # At the ends the bounds are exact; rounding would leave 1e-17 there.
        low = float(low) if self.passed else 0.0
        return low, float(high) if self.passed < self.n else 1.0

    @classmethod
    def of(cls, values: np.ndarray, spec: float, mode: str) -> "Yield":
        """Counts the values (devices,) that keep a specification; NaN breaks it."""
        kept = statistics.margin(values, spec, mode) >= 0
        return cls(int(kept.sum()), len(kept))

    def to_dict(self) -> dict:
        """Returns the counts, the share and its interval."""
        low, high = self.interval
        counts = dataclasses.asdict(self)
        return {**counts, "yield": self.value, "low": low, "high": high}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scan(Brief):
    """Metrics along one axis (a sweep) or two (a grid), of the design and of devices.

    Args:
        axes: one or two `Axis`.
        design: metric → (points, …), for the design without other deviations; `None`
            if an axis is random.
        devices: metric → (devices, points, …), with the scanned deviations added to
            each device's own (spreads replace them, factors multiply them); `None`
            without devices.

    Example:

    >>> scan = report.models["plain"].sweeps["temperature"]
    >>> low, high = scan.tolerance("accuracy", 0.8, "max")  # K
    """

    axes: tuple[Axis, ...]
    design: dict[str, np.ndarray] | None
    devices: dict[str, np.ndarray] | None

    def summary(self, metric: str) -> dict[str, np.ndarray] | None:
        """Returns statistics over the devices at each point; `None` without devices."""
        return self.devices and statistics.summary(self.devices[metric])

    def central(self, metric: str) -> np.ndarray:
        """Returns the mean over devices (points, …), or the design without devices."""
        if self.devices is None:
            return self.design[metric]
        return self.devices[metric].mean(0)

    def yields(self, metric: str, spec: float, mode: str) -> list[Yield] | None:
        """Returns the yield at each point of a sweep; `None` without devices."""
        if self.devices is None:
            return None
        return [Yield.of(column, spec, mode) for column in self.devices[metric].T]

    def tolerance(self, metric: str, spec: float, mode: str) -> tuple[float, float]:
        """Returns the interval around 0 in which `central` keeps a specification.

        A bound is the last point before the curve first breaks the specification, or
        the end of the range if the curve keeps it as far as measured. Both are NaN if
        the curve, linear between points, breaks it at 0, if 0 is not in the range, or
        if the points do not lie on a line through 0.
        """
        if self.axes[0].positions is None:
            return math.nan, math.nan
        x, values = self._curve(metric)
        over = statistics.margin(values, spec, mode)
        if not x[0] <= 0 <= x[-1] or not np.interp(0, x, over) >= 0:
            return math.nan, math.nan
        # A difference, to avoid −0.0.
        return 0.0 - _reach(-x[::-1], over[::-1]), _reach(x, over)

    def area(self, metric: str) -> float:
        """Returns the mean of `central` over a sweep's range; NaN without positions."""
        from scipy.integrate import trapezoid

        if self.axes[0].positions is None:
            return math.nan
        x, values = self._curve(metric)
        if x[0] == x[-1]:
            return float(values.mean())
        return float(trapezoid(values, x) / (x[-1] - x[0]))

    def _curve(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns increasing positions along a sweep, and `central` there."""
        x = self.axes[0].positions
        order = np.argsort(x, kind="stable")
        return x[order], self.central(metric)[order].astype("float64")


def _reach(x: np.ndarray, over: np.ndarray) -> float:
    """Returns the last position to the right of 0 before the margin is negative."""
    right = x > 0
    # NaN breaks a specification.
    kept = np.logical_and.accumulate(over[right] >= 0)
    return float(x[right][kept].max(initial=0.0))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class WorstCase(Brief):
    """The worst device that an ascent over the imperfections found within a radius.

    Args:
        radius: imperfection → largest root mean square deviation over its elements
            that the search allowed, in its unit.
        metrics: loss and metrics of the device, on all data.
        losses: (restarts, steps + 1) losses along the ascents, on the search's data.
        samples: number of samples that the search used.
        device: the worst device found.

    Example:

    >>> worst = report.models["plain"].worst
    >>> with worst.device.installed(model):
    ...     model.evaluate(x_test, y_test, verbose=0)
    """

    radius: dict[str, float]
    metrics: dict[str, float]
    losses: np.ndarray
    samples: int
    device: SimulatedDevice


@dataclasses.dataclass(frozen=True)
class Kind:
    """A deviation measured alone: an imperfection of devices, or an end of a sweep.

    `imperfection` is without a layer; `end` is the value at the sweep's end, as text.
    """

    imperfection: str
    end: str = ""

    def __str__(self):
        return f"{self.imperfection} = {self.end}" if self.end else self.imperfection

    def to_dict(self) -> str:
        """Returns the kind as text, for JSON."""
        return str(self)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sensitivity(Brief):
    """Metrics with one kind of imperfection in one layer alone.

    Args:
        layers: names of the layers.
        kinds: kinds of deviation; as text, `"resonance_shift"` for the devices, and
            `"temperature = 2"` for the end of a sweep.
        metrics: metric → (layers, kinds), the mean over the devices used or, for an
            end of a sweep, the value of the design; NaN if a layer has no such
            imperfection.
        devices: number of devices used.

    Example:

    >>> found = report.models["plain"].sensitivity
    >>> found.metrics["accuracy"].shape == (len(found.layers), len(found.kinds))
    True
    """

    layers: tuple[str, ...]
    kinds: tuple[Kind, ...]
    metrics: dict[str, np.ndarray]
    devices: int


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Curvature(Brief):
    """The Hessian of the loss over some variables.

    Args:
        eigenvalues: the largest and the smallest eigenvalues.
        trace: the sum of all eigenvalues.
        density: the spectral density.

    Example:

    >>> found = report.models["plain"].curvature
    """

    eigenvalues: HessianResult
    trace: TraceResult
    density: DensityResult


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Transfer(Brief):
    """Metrics of models trained on one device and tested on others.

    Args:
        models: names of the models, the rows.
        devices: the columns, each the name of the model that was trained on it.
        metrics: metric → (models, devices).

    Example:

    >>> found = pnn.robustness_report(
    ...     model, x_test, y_test, name="plain", trained_on={"plain": devices[0]},
    ...     fast=True, worst_case=False, verbose=0,
    ... )
    >>> found.transfer
    """

    models: tuple[str, ...]
    devices: tuple[str, ...]
    metrics: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ModelRobustness(Brief):
    """The results of one model in a report.

    Args:
        nominal: loss and metrics of the design.
        devices: metric → (devices,), each device as fabricated; `None` without devices.
        labels: names of the devices.
        sweeps: name → one-dimensional `Scan`.
        grid: a two-dimensional `Scan`, or `None`.
        worst: the adversarial worst case, or `None`.
        sensitivity: the `Sensitivity` per layer and kind, or `None`.
        curvature: `"controls"` and `"all"` → `Curvature`; empty if not measured.
        landscape: the loss around the controls, or `None`.
        cost: the `HardwareCost`, or `None`.
        light: the `LightPath` of a diffractive network, or `None`.

    Example:

    >>> found = report.models["plain"]
    >>> found.nominal["accuracy"], found.devices["accuracy"].min()
    """

    nominal: dict[str, float]
    devices: dict[str, np.ndarray] | None = None
    labels: tuple[str, ...] = ()
    sweeps: dict[str, Scan] = dataclasses.field(default_factory=dict)
    grid: Scan | None = None
    worst: WorstCase | None = None
    sensitivity: Sensitivity | None = None
    curvature: dict[str, Curvature] = dataclasses.field(default_factory=dict)
    landscape: Landscape | None = None
    cost: HardwareCost | None = None
    light: LightPath | None = None

    def yield_of(self, metric: str, spec: float, mode: str) -> Yield | None:
        """Returns the yield over the devices; `None` without devices."""
        return self.devices and Yield.of(self.devices[metric], spec, mode)

    def summary(self, metric: str) -> dict[str, float] | None:
        """Returns statistics of a metric over the devices; `None` without values."""
        values = (self.devices or {}).get(metric)
        return None if values is None else statistics.summary(values)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RobustnessResult(Shown):
    """The result of `robustness_report`.

    Args:
        models: name → `ModelRobustness`, first the model of the report, then those of
            `compare`.
        metric: the metric that the specification limits.
        mode: `"max"`: `metric` must be at least `spec`; `"min"`: at most.
        spec: the specification.
        transfer: the `Transfer` between devices, or `None`.
        setting: settings of the measurement: data with their shapes and hash,
            specification, seeds, batch normalisation, versions, seconds;
            `"<name> per model"` for settings that differ between models.

    Example:

    >>> report.save("report.json")
    >>> report.models["plain"].nominal["accuracy"]
    """

    models: dict[str, ModelRobustness]
    metric: str
    mode: str
    spec: float
    transfer: Transfer | None
    setting: dict

    def yield_of(self, name: str) -> Yield | None:
        """Returns the yield of a model over the devices; `None` without devices."""
        return self.models[name].yield_of(self.metric, self.spec, self.mode)

    def summary(self) -> str:
        """Returns the conclusion in words and the main figures, as text.

        Statistics of one model are in `report.models[name].summary(metric)`.
        """
        return text(self, short=True)

    def to_dict(self) -> dict:
        """Returns the report in JSON's types; NaN and infinities become `None`.

        Besides the fields, by name, it holds figures derived from them:

        - for each model: `statistics`, metric → mean, std, median, p05, p95, min and
          max over the devices, and `yield`, with `low` and `high` of its interval;
          both `None` without devices;
        - for each sweep and the grid: the same `statistics` at each point;
        - for each sweep: `tolerance` at the specification, with `low`, `high`, `width`
          and whether its ends are those of the range (`low_is_end`, `high_is_end`);
          `mean_over_range`, metric → the area under the curve over the width of the
          range; and `yields`, one for each point of a spread, `None` for others;
        - for each axis: `positions`, its points along the line that they lie on.
        """
        return as_dict(self)

    def table(self) -> str:
        """Returns the report as tables of text."""
        return text(self)

    def to_dataframe(self):
        """Returns one row for each measured point, as a pandas DataFrame.

        It has the columns of the CSV file:

        - `model`: the model's name;
        - `section`: `"nominal"`, `"device"`, `"sweep"`, `"grid"`, `"worst"`,
          `"sensitivity"` or `"transfer"`;
        - `name`: the sweep, the grid's two axes, the radii of the worst case, or the
          layer;
        - `value`, `value_2`: the point along the axes, a number, or a text such as
          `"(0, 0.5)"` for a point of several elements; the kind of imperfection of a
          sensitivity;
        - `device`: the device's label, `"design"`, or `""` for a mean over devices;
        - each metric in a column of its name, in its own unit (0 … 1 for accuracy).
        """
        return dataframe(rows(self))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the report; an older file is replaced only by a complete one.

        Args:
            path: the file; missing folders are created. The suffix gives the format:
                `.html` is one file including the plots, `.json` is `to_dict()`, `.csv`
                has one row for each measured point.

        Raises:
            ValueError: If the suffix is none of these.
            ImportError: If the format is HTML and Matplotlib is not installed.
        """
        writers = {".html": html, ".json": as_json, ".csv": as_csv}
        suffix = pathlib.Path(path).suffix.lower()
        if suffix not in writers:
            raise _checks.error("path", "a file in .html, .json or .csv", path)
        content = writers[suffix](self)
        with _files.atomic(path) as part:
            part.write_text(content, "utf-8")

    def _parts(self):
        return [
            part
            for section in sections(self)[:2]
            for part in (*section.text, section.meaning, *section.tables)
            if part
        ]

    def __repr__(self):
        names = ", ".join(self.models)
        return f"<RobustnessResult of {names}: {specification(self)}>"
