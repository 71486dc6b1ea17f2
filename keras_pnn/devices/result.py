"""Hold the loss and the metrics of one model on many devices."""

import dataclasses
import itertools

import numpy as np

from keras_pnn import _checks, plotting
from keras_pnn._display import Shown, Table, dataframe
from keras_pnn.devices.axis import Axis

_STATISTICS = ("mean", "std", "p05", "min", "max")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DeviceEvaluation(Shown):
    """Loss and metrics of one model on many devices.

    A result of devices from `sweep` or `grid` keeps their axes: `table` has one line
    for each point, and `plot` draws a curve or a map.

    Args:
        values: name → array (devices,), the loss and the metrics; with further axes
            for a metric that is an array itself. All metrics are NaN for a device
            that gives NaN for some sample.
        samples: number of samples that each device was given.
        batch_size: samples at once.
        vectorized: whether the devices ran in one graph.
        batch_norm: statistics of batch normalisation, as in `DeviceEvaluator`.
        model: the model's name.
        labels: names of the devices, `""` for a device without one.
        axes: axes of the devices' sweep or grid; empty for other devices.

    Example:

    >>> warm = pnn.devices.sweep(model, "temperature", [-1, 0, 1])
    >>> result = pnn.evaluate_devices(model, x_test, y_test, warm)
    >>> result.to_dataframe()       # temperature (K), device, loss, accuracy
    """

    values: dict[str, np.ndarray]
    samples: int
    batch_size: int
    vectorized: bool
    batch_norm: str = "frozen"
    model: str = ""
    labels: tuple[str, ...] = ()
    axes: tuple[Axis, ...] = ()

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def __len__(self):
        return len(self.values["loss"])

    def summary(self, name: str) -> dict[str, float]:
        """Returns mean, std, 5th percentile, median, minimum and maximum."""
        v = self.values[name]
        return {
            "mean": float(np.mean(v)),
            "std": float(np.std(v)),
            "p05": float(np.percentile(v, 5)),
            "median": float(np.median(v)),
            "min": float(np.min(v)),
            "max": float(np.max(v)),
        }

    def to_dict(self) -> dict:
        """Returns everything in JSON's types."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            **fields,
            "values": {n: v.tolist() for n, v in self.values.items()},
            "labels": list(self.labels),
            "axes": [
                {"name": a.name, "unit": a.unit, "values": a.values.tolist()}
                for a in self.axes
            ],
        }

    def to_dataframe(self):
        """Returns one row for each device, as a pandas DataFrame.

        Its columns: one for each axis (`temperature (K)`), with numbers, or texts such
        as `"(0, 1)"` for points of several elements; `device`, the device's label; and
        each metric that is one number.

        Raises:
            ImportError: If pandas is not installed.
        """
        labels = self.labels or [""] * len(self)
        metrics = {n: self.values[n].tolist() for n in self._numbers()}
        rows = zip(self._places(), labels, *metrics.values(), strict=True)
        return dataframe(
            [
                {**place, "device": label, **dict(zip(metrics, values, strict=True))}
                for place, label, *values in rows
            ]
        )

    def plot(
        self,
        metric: str | None = None,
        name: str | None = None,
        compare: dict[str, "DeviceEvaluation"] | None = None,
        ax=None,
    ):
        """Draws a metric: along a sweep, as a map over a grid, else one dot per device.

        Args:
            metric: a metric, or `"loss"`. Default: the first metric.
            name: name of this result in the legend. Default: the model's name.
            compare: name → further results, with the same axes.
            ax: Matplotlib axes to draw on. Default: those of a new figure.

        Returns:
            The Matplotlib axes.

        Raises:
            ValueError: If there is no such metric, a result of `compare` has other
                axes, or there are more than two axes, or two axes with `compare`.
            ImportError: If Matplotlib is not installed.
        """
        known = self._numbers()
        if metric is None:
            metric = next((n for n in known if n != "loss"), "loss")
        _checks.choice("metric", metric, known)
        results = {name or self.model or "model": self, **(compare or {})}
        for label, other in results.items():
            if not isinstance(other, DeviceEvaluation) or metric not in other.values:
                expected = f"names and results with {metric!r}"
                raise _checks.error("compare", expected, f"{label!r}")
            ours, theirs = ([(a.name, a.ticks) for a in r.axes] for r in (self, other))
            if ours != theirs:
                raise _checks.error("compare", f"results along {ours}", theirs)
        values = {label: one.values[metric] for label, one in results.items()}
        if not self.axes:
            return plotting.distributions(values, metric, ax=ax)
        places, labels = [], []
        for axis in self.axes:
            on_line = axis.positions is not None
            places.append(axis.positions if on_line else np.arange(len(axis)))
            labels.append(axis.line_label if on_line else f"point of {axis.label}")
        if len(self.axes) == 1:
            return plotting.sweep(places[0], values, labels[0], metric, ax=ax)
        if len(self.axes) > 2 or len(results) > 1:
            raise ValueError(
                "A map shows one result along two axes. Received: "
                f"{len(results)} results along {len(self.axes)} axes"
            )
        ((label, found),) = values.items()
        found = found.reshape(tuple(map(len, self.axes)))
        ax = plotting.heat_map(*places[::-1], found, *labels[::-1], metric, ax=ax)
        ax.set_title(label)
        return ax

    def _numbers(self) -> list[str]:
        """Returns the metrics that are one number per device."""
        return [name for name, values in self.values.items() if values.ndim == 1]

    def _places(self) -> list[dict]:
        """Returns for each device {label of an axis: point}, a number or a text."""
        if not self.axes:
            return [{}] * len(self)
        points = [a.values if a.values.ndim == 1 else a.ticks for a in self.axes]
        labels = [a.label for a in self.axes]
        return [dict(zip(labels, p, strict=True)) for p in itertools.product(*points)]

    def _parts(self):
        if self.axes:
            names = self._numbers()
            columns = (*(axis.label for axis in self.axes), *names)
            ticks = itertools.product(*(axis.ticks for axis in self.axes))
            rows = [
                (*place, *(f"{self.values[n][i]:.4f}" for n in names))
                for i, place in enumerate(ticks)
            ]
            return [Table("", columns, rows)]
        rows = []
        for name in self.values:
            summary = self.summary(name)
            rows.append((name, *(f"{summary[key]:.4f}" for key in _STATISTICS)))
        return [Table("", ("", *_STATISTICS), rows)]

    def __repr__(self):
        along = "".join(f", along {axis.label}" for axis in self.axes)
        means = ", ".join(f"{n} {np.mean(v):.4g}" for n, v in self.values.items())
        count = f"{len(self)} device{'' if len(self) == 1 else 's'}"
        return f"<DeviceEvaluation of {count}{along}; means: {means}>"
