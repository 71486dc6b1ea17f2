"""A robustness study of one model: evaluated block by block, kept as it goes."""

import hashlib
import json
import os

import keras
import numpy as np

from keras_pnn.analysis.points import DESIGN, Plan, Point
from keras_pnn.analysis.results import (
    ModelRobustness,
    Scan,
    Sensitivity,
)
from keras_pnn.analysis.rows import Store
from keras_pnn.devices.population import DeviceEvaluator
from keras_pnn.layers.physical import flat_layers, physical_layers

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
    """

    def __init__(
        self, model: keras.Model, plan: Plan, evaluator: DeviceEvaluator, data
    ):
        self.model, self.plan, self.evaluator = model, plan, evaluator
        self._data = _digest(keras.tree.flatten(data))
        points = plan.points
        some = [plan.device(points[0])] * min(len(points), LARGEST_BLOCK)
        # Fixed, so that a point's figures do not depend on what is measured with it.
        evaluator.chunk = self.size = evaluator.devices_at_once(some)
        self.blocks = [
            points[i : i + self.size] for i in range(0, len(points), self.size)
        ]

    def fingerprint(self) -> str:
        """Returns a hash of all that the figures depend on."""
        inner = [v for la in flat_layers(self.model) for v in _kept(la)]
        devices = self.plan.fabrication.devices or ()
        axes = [*self.plan.sweeps.values(), *self.plan.grid]
        described = {
            "points": [repr(p) for p in self.plan.points],
            "axes": [(a.axis.name, a.axis.values.tolist()) for a in axes],
            "spreads": repr(self.plan.fabrication.variation),
            "seed": self.plan.fabrication.seed,
            "block": self.size,
            "evaluator": [self.evaluator.batch_size, self.evaluator.batch_norm],
            "layers": [_described(la) for la in flat_layers(self.model)],
            "loss": [_described(part) for part in keras.tree.flatten(self.model.loss)],
            "metrics": self._metrics(),
        }
        arrays = [np.asarray(v) for v in inner]
        for device in (*devices, *self.plan.trained_on.values()):
            arrays += [device.deviations[key] for key in sorted(device.deviations)]
        text = json.dumps(described) + self._data + _digest(arrays)
        return hashlib.sha256(text.encode()).hexdigest()

    def _metrics(self) -> list[str]:
        inner = [
            m for one in self.model.metrics for m in getattr(one, "metrics", [one])
        ]
        return sorted(str(m.name) for m in inner)

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
        """Returns the metrics on one device, without filling a block for it."""
        block, self.evaluator.chunk = self.evaluator.chunk, 1
        try:
            found = self.evaluator.evaluate([device], verbose=0).values
        finally:
            self.evaluator.chunk = block
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
        return [
            {
                "section": point.section,
                "name": point.name,
                "index": list(point.index),
                "device": point.device,
                "metrics": {
                    name: float(values[i])
                    for name, values in found.values.items()
                    if np.ndim(values[i]) == 0
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
        order = [la.name for la in physical_layers(self.model)]
        layers = [n for n in order if n in {layer for layer, _ in pairs}]
        layers += [n for n in dict(pairs) if n not in layers]
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
        return Sensitivity(tuple(layers), tuple(kinds), metrics, used)

    def model_robustness(self, rows: list[dict], **others) -> ModelRobustness:
        """Returns the record of this model."""
        return ModelRobustness(**self.result(rows), **others)


def _kept(layer) -> list[keras.Variable]:
    """A layer's own variables but for imperfections, which are the study's."""
    own = [*layer._trainable_variables, *layer._non_trainable_variables]
    imperfect = {id(v) for v in getattr(layer, "imperfections", {}).values()}
    return [v for v in own if id(v) not in imperfect]


def _described(part) -> str:
    """What a layer or a loss computes, without the name it has in this process."""
    name = getattr(part, "__name__", type(part).__name__)
    try:
        config = part.get_config()
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return str(name)
    config.pop("name", None)
    return f"{name} {json.dumps(config, sort_keys=True, default=_plain_name)}"


def _plain_name(value) -> str:
    # The texts of other objects may hold addresses.
    return getattr(value, "__name__", type(value).__name__)


def _digest(arrays) -> str:
    found = hashlib.sha256()
    for array in arrays:
        if array is None:
            continue
        array = np.ascontiguousarray(array)
        found.update(str((array.dtype.str, array.shape)).encode())
        # Objects (strings) have no bytes of their own.
        found.update(
            array.tobytes() if array.dtype.kind != "O" else repr(array).encode()
        )
    return found.hexdigest()
