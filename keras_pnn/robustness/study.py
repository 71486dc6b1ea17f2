"""A robustness study of one model: evaluated block by block, kept as it goes."""

import hashlib
import json
import math
import os

import keras
import numpy as np

from keras_pnn import _keras
from keras_pnn._version import __version__
from keras_pnn.devices.evaluation import DeviceEvaluator, evaluate_devices
from keras_pnn.robustness.fingerprint import computation, digest
from keras_pnn.robustness.inputs import first_samples
from keras_pnn.robustness.points import DESIGN, Plan, Point
from keras_pnn.robustness.results import Scan, Sensitivity
from keras_pnn.robustness.rows import Store

# More devices at once are no faster, and more is lost when a run is stopped.
LARGEST_BLOCK = 128


class Study:
    """All points of a plan, measured on one model.

    Points are evaluated in blocks: as many devices as fit the memory at once. A block
    is a pure function of the model's weights, the data and the plan, so that blocks
    can be measured on different machines, and again after an interruption, with the
    same result.

    Args:
        model: a compiled model.
        plan: the points.
        evaluator: evaluates devices on the data.
        data: what the evaluator has: `(x, y, sample_weight)`.
        calibration: its calibration inputs, or `None`.
    """

    def __init__(
        self,
        model: keras.Model,
        plan: Plan,
        evaluator: DeviceEvaluator,
        data: tuple,
        calibration=None,
    ):
        self.model, self.plan, self.evaluator = model, plan, evaluator
        self._given = data
        self._data = digest(keras.tree.flatten((data, calibration)))
        points = plan.points
        some = [plan.device(points[0])] * min(len(points), LARGEST_BLOCK)
        # Fixed, so that a point's figures do not depend on what is measured with it.
        evaluator.chunk = self.size = evaluator.devices_at_once(some)
        self.blocks = [
            points[i : i + self.size] for i in range(0, len(points), self.size)
        ]

    def check_outputs(self) -> None:
        """Raises ValueError where the end of a sweep or grid leaves the model.

        A measured curve ends where its measurement did, and is NaN beyond. Two samples
        on the design are enough to see it; what a device's own deviations add is seen
        in its figures.
        """
        samples = first_samples(self._given, 2)[0]
        for point in self.plan.ends():
            cause = None
            with self.plan.device(point).installed(self.model):
                try:
                    outputs = self.model(samples, training=False)
                    lost = any(map(_has_nan, keras.tree.flatten(outputs)))
                except ValueError as error:
                    # Outside a graph a layer may say so itself.
                    lost, cause = True, error
            if lost:
                axes = zip(self.plan.axes(point), point.index, strict=True)
                where = {a.axis.name: a.axis.ticks[i] for a, i in axes}
                argument = "grid" if point.section == "grid" else "sweeps"
                raise ValueError(
                    f"`{argument}` must stay where the model has outputs. Received: "
                    f"{where}, where they are NaN or out of range"
                ) from cause

    def fingerprint(self) -> str:
        """Returns a hash of all that the figures depend on."""
        plan, fabrication = self.plan, self.plan.fabrication
        axes = [*plan.sweeps.values(), *plan.grid]
        devices = [*(fabrication.devices or ()), *plan.trained_on.values()]
        pairs = [(k, v) for d in devices for k, v in sorted(d.deviations.items())]
        described = {
            "points": [repr(p) for p in plan.points],
            "axes": [(a.axis.name, a.axis.values.tolist()) for a in axes],
            "spreads": repr(fabrication.variation),
            "seed": fabrication.seed,
            "deviations": [repr(key) for key, _ in pairs],
            "block": self.size,
            "evaluator": [self.evaluator.batch_size, self.evaluator.batch_norm],
            "computation": computation(self.model),
            "version": __version__,
        }
        arrays = [np.asarray(v) for v in self._kept()]
        arrays += [array for _, array in pairs]
        text = json.dumps(described) + self._data + digest(arrays)
        return hashlib.sha256(text.encode()).hexdigest()

    def _kept(self) -> list[keras.Variable]:
        """The layers' variables but for those that the points set."""
        pairs = self.plan.device(self.plan.points[0]).bind(self.model)
        moved = {id(t.variable) for t, _ in pairs if t.nominal is not None}
        return [
            v
            for la in _keras.flat_layers(self.model)
            for v in (*la._trainable_variables, *la._non_trainable_variables)
            if id(v) not in moved
        ]

    def setting(self) -> dict:
        """Returns how the points are measured, for the report."""
        plan = self.plan
        fabrication = plan.fabrication
        scanned = [p.device for p in plan.points if p.section in ("sweep", "grid")]
        drawn = repr(fabrication.variation) if fabrication.variation else "as given"
        return {
            "devices": len(fabrication),
            "variation": drawn if len(fabrication) else "no devices",
            "seed": fabrication.seed,
            "devices in sweeps": max(scanned, default=DESIGN) + 1,
            "points": len(plan.points),
            "batch size": self.evaluator.batch_size,
            "batch normalisation": self.evaluator.batch_norm,
        }

    def alone(self, device) -> dict[str, float]:
        """Returns the metrics on one device, with batch statistics frozen."""
        x, y, sample_weight = self._given
        found = evaluate_devices(
            self.model,
            x,
            y,
            [device],
            self.evaluator.batch_size,
            sample_weight,
            chunk=1,
            verbose=0,
        ).values
        return {n: float(v[0]) for n, v in found.items() if np.ndim(v[0]) == 0}

    def rows(
        self,
        folder: str | os.PathLike | None = None,
        part: tuple[int, int] = (0, 1),
        verbose: int | str = "auto",
        label: str = "",
    ) -> list[dict]:
        """Measures the blocks of one part of the study.

        Args:
            folder: where to write each block as it is done, and to look for those
                that are there; `None` keeps them in memory.
            part: (i, n): the i-th of n parts, from 0.
            verbose: 0 is silent, 1 or `"auto"` shows a progress bar.
            label: printed before the bar.

        Returns:
            One dictionary for each point, in the plan's order.
        """
        index, parts = part
        mine = range(index, len(self.blocks), parts)
        store, done = None, {}
        if folder is not None:
            store = Store(folder, self.fingerprint(), part, len(self.blocks))
            done = store.read()
        shown = verbose not in (0, "0")
        if shown and label:
            print(label)
        bar = keras.utils.Progbar(
            len(mine), verbose=1 if shown else 0, unit_name="block"
        )
        for block in mine:
            if block not in done:
                done[block] = self._measure(self.blocks[block])
                if store:
                    store.add(block, done[block])
            bar.add(1)
        return [row for block in mine for row in done[block]]

    def _measure(self, points: list[Point]) -> list[dict]:
        devices = [self.plan.device(point) for point in points]
        found = self.evaluator.evaluate(devices, verbose=0)
        columns = {n: v for n, v in found.values.items() if np.ndim(v[0]) == 0}
        # Outputs that are NaN have no class, and yet an accuracy.
        lost = np.isnan(columns["loss"])
        return [
            {
                "section": point.section,
                "name": point.name,
                "index": list(point.index),
                "device": point.device,
                "metrics": {
                    name: math.nan if lost[i] else float(values[i])
                    for name, values in columns.items()
                },
            }
            for i, point in enumerate(points)
        ]

    def result(self, rows: list[dict]) -> dict:
        """Returns the fields of `ModelRobustness` that the rows of all points give."""
        found = {
            Point(r["section"], r["name"], tuple(r["index"]), r["device"]): r["metrics"]
            for r in rows
        }
        plan = self.plan
        count = len(plan.fabrication)
        names = list(found[Point("nominal")])

        def gather(points, shape):
            return {
                n: np.array([found[p][n] for p in points]).reshape(shape) for n in names
            }

        def scan(section, name, axes):
            places = [len(a.axis) for a in axes]
            mine = [p for p in plan.points if (p.section, p.name) == (section, name)]
            design = [p for p in mine if p.device == DESIGN]
            chips = [p for p in mine if p.device != DESIGN]
            on_chips = None
            if chips:
                on_chips = gather(chips, (*places, -1))
                on_chips = {n: np.moveaxis(v, -1, 0) for n, v in on_chips.items()}
            return Scan(
                tuple(a.axis for a in axes),
                gather(design, places) if design else None,
                on_chips,
            )

        fields = {
            "nominal": found[Point("nominal")],
            "sweeps": {
                name: scan("sweep", name, (axis,)) for name, axis in plan.sweeps.items()
            },
        }
        if count:
            points = [Point("device", device=d) for d in range(count)]
            fields["devices"] = gather(points, (count,))
            fields["labels"] = plan.fabrication.labels
        if plan.grid:
            fields["grid"] = scan("grid", "", plan.grid)
        if plan.alone:
            fields["sensitivity"] = self._sensitivity(found, names)
        return fields

    def transfer(self, rows: list[dict], metric: str) -> list[float]:
        """Returns a metric on each device that a model was trained on."""
        found = {r["name"]: r["metrics"] for r in rows if r["section"] == "transfer"}
        return [found[name][metric] for name in self.plan.trained_on]

    def _sensitivity(self, found, names) -> Sensitivity:
        pairs = [tuple(name.split("|", 1)) for name in self.plan.alone]
        pairs = [(int(layer), kind) for layer, kind in pairs]
        layers = sorted({layer for layer, _ in pairs})
        kinds = list(dict.fromkeys(kind for _, kind in pairs))
        metrics = {n: np.full((len(layers), len(kinds)), np.nan) for n in names}
        used = 1
        for (layer, kind), (name, chips) in zip(
            pairs, self.plan.alone.items(), strict=True
        ):
            used = max(used, len(chips))
            place = layers.index(layer), kinds.index(kind)
            for n in names:
                metrics[n][place] = np.mean(
                    [
                        found[Point("sensitivity", name, (), d)][n]
                        for d in range(len(chips))
                    ]
                )
        names = layer_names(self.model)
        return Sensitivity(
            tuple(names[layer] for layer in layers), tuple(kinds), metrics, used
        )


def _has_nan(output) -> bool:
    return bool(np.isnan(np.asarray(output)).any())


def layer_names(model: keras.Model) -> list[str]:
    """Returns the name of each layer; with a number where several have the same."""
    names = [la.name for la in _keras.flat_layers(model)]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]
