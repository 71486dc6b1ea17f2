"""Measure all points of a robustness study on one model."""

import json
import math
import os

import keras
import numpy as np

from keras_pnn import _files, _keras
from keras_pnn._version import __version__
from keras_pnn.devices import DeviceEvaluator
from keras_pnn.robustness.cache import Cache
from keras_pnn.robustness.curvature import CurvatureStudy
from keras_pnn.robustness.gather import gathered
from keras_pnn.robustness.identity import data_digest, described
from keras_pnn.robustness.inputs import first_samples, sample_count
from keras_pnn.robustness.points import GRID, Nominal, OnScan, Plan, Point
from keras_pnn.robustness.radius import search_radius
from keras_pnn.robustness.results import ModelRobustness, WorstCase
from keras_pnn.robustness.specification import Specification
from keras_pnn.robustness.worst_case import WorstCaseSearch

# More devices at once are no faster, and more is lost when a run is stopped.
LARGEST_BLOCK = 128

# Metrics of a point.
Metrics = dict[str, float]


class ModelStudy:
    """The study of one model: its points, and what measures them, built once.

    Points are evaluated in blocks: as many devices as fit the memory at once. A block
    is a pure function of the model's weights, the data and the specification, so that
    blocks can be measured on different machines, and again after an interruption,
    with the same result.

    Args:
        model: a compiled model.
        data: `(x, y, sample_weight)`.
        specification: of the study.
        loss: of the model on a few samples.

    Attributes:
        plan: the points and their devices.

    Raises:
        ValueError: If the specification does not fit the model.
    """

    def __init__(
        self,
        model: keras.Model,
        data: tuple,
        specification: Specification,
        loss: float,
    ):
        self.model, self.specification, self._loss = model, specification, loss
        few = first_samples(data, specification.probe)
        self._probe = sample_count(few[0])
        self._curvature = CurvatureStudy(
            model,
            few,
            specification.hessian,
            specification.landscape,
            specification.seed,
        )
        self.plan = Plan(model, specification)
        x, y, sample_weight = data
        batch_size = specification.batch_size
        self._data = data_digest(data, specification.calibration)
        self._evaluator = DeviceEvaluator(
            model,
            x,
            y,
            batch_size=batch_size,
            sample_weight=sample_weight,
            memory_limit=specification.memory_limit,
            batch_norm=specification.batch_norm,
            calibration=specification.calibration,
        )
        points = self.plan.points
        some = [self.plan.device(Nominal())] * min(len(points), LARGEST_BLOCK)
        # Fixed, so that a point's figures do not depend on what is measured with it.
        self._size = self._evaluator.devices_at_once(some)
        self._evaluator.chunk = self._size
        self._check_outputs(first_samples(data, 2)[0])
        self._search = self._frozen = None
        if radius := search_radius(self.plan, specification.worst_case):
            self._search = WorstCaseSearch(
                model, few[0], few[1], radius, batch_size, few[2]
            )
            # The worst device is measured alone, with batch statistics frozen.
            self._frozen = DeviceEvaluator(model, x, y, batch_size, sample_weight, 1)

    def measure(
        self,
        cache_dir: str | os.PathLike | None = None,
        part: tuple[int, int] = (0, 1),
        verbose: int = 0,
    ) -> dict[Point, Metrics]:
        """Measures the points of one part of the study, with the weights as they are.

        Args:
            cache_dir: folder that keeps each block as it is done, and has those that
                are done already; `None` keeps nothing.
            part: (i, n): the i-th of n parts, from 0. Parts take turns in blocks.
            verbose: 1 shows a progress bar.
        """
        points, size = self.plan.points, self._size
        blocks = [
            range(i, min(i + size, len(points))) for i in range(0, len(points), size)
        ][part[0] :: part[1]]
        cache, done = None, {}
        if cache_dir is not None:
            cache = Cache(cache_dir, self.digest(), len(points), self._loss, part)
            done = cache.read()
        bar = keras.utils.Progbar(len(blocks), verbose=verbose, unit_name="block")
        for block in blocks:
            if not done.keys() >= set(block):
                found = self._measure([points[i] for i in block])
                new = dict(zip(block, found, strict=True))
                done |= new
                if cache is not None:
                    cache.add(new)
            bar.add(1)
        return {points[i]: done[i] for block in blocks for i in block}

    def robustness(self, found: dict[Point, Metrics], verbose: int) -> ModelRobustness:
        """Returns all that a report says of the model.

        Args:
            found: the metrics of all points. The worst case, the curvature and the
                landscape are measured here.
            verbose: 1 says what is measured.
        """
        fields = gathered(self.plan, found)
        if self._search is not None:
            fields["worst"] = self._worst_case(verbose)
        return ModelRobustness(**fields, **self._curvature.measure(verbose))

    def setting(self, worst: WorstCase | None) -> dict:
        """Returns how the model was measured, for the report.

        Args:
            worst: the worst case that was found, if any.
        """
        specification, points = self.specification, self.plan.points
        count = len(self.plan.fabrication.devices)
        drawn = "as given"
        if specification.variation is not None:
            drawn = repr(specification.variation)
        scanned = {p.device for p in points if isinstance(p, OnScan)}
        found = {
            "SHA-256 of the data": self._data[:12],
            "devices": count,
            "variation": drawn if count else "no devices",
            "seed": specification.seed,
            "devices in sweeps": len(scanned - {None}),
            "points": len(points),
            "batch size": self._evaluator.batch_size,
            "batch normalisation": specification.batch_norm,
        }
        if specification.calibration is not None:
            found["calibration samples"] = sample_count(specification.calibration)
        if worst is not None:
            starts, losses = worst.losses.shape
            found["search for the worst case"] = f"{starts} starts × {losses - 1} steps"
        return found

    def digest(self) -> str:
        """Returns a digest of all that the points' metrics depend on."""
        plan, specification = self.plan, self.specification
        axes = [axis for axes in plan.scans.values() for axis in axes]
        devices = [*plan.fabrication.devices, *plan.trained_on.values()]
        deviations = [
            pair for device in devices for pair in sorted(device.deviations.items())
        ]
        text = json.dumps(
            [
                [repr(point) for point in plan.points],
                [(axis.name, axis.values.tolist()) for axis in axes],
                repr(specification.variation),
                [repr(key) for key, _ in deviations],
                specification.seed,
                specification.batch_norm,
                self._evaluator.batch_size,
                self._size,
                described(self.model),
                __version__,
            ]
        )
        arrays = [array for _, array in deviations] + self._own_values()
        return _files.digest(text, self._data, data_digest(arrays))

    def _own_values(self) -> list[np.ndarray]:
        """Returns the values of the layers' variables that the points do not set."""
        pairs = self.plan.device(Nominal()).bind(self.model)
        moved = {id(q.variable) for q, _ in pairs if q.nominal is not None}
        return [
            np.asarray(variable)
            for layer in _keras.flat_layers(self.model)
            for variable in _keras.own_variables(layer)
            if id(variable) not in moved
        ]

    def _measure(self, points: list[Point]) -> list[Metrics]:
        devices = [self.plan.device(point) for point in points]
        columns = _scalars(self._evaluator.evaluate(devices, verbose=0).values)
        # Outputs that are NaN have no class, and yet an accuracy.
        lost = np.isnan(columns["loss"])
        return [
            {n: math.nan if lost[i] else float(v[i]) for n, v in columns.items()}
            for i in range(len(points))
        ]

    def _worst_case(self, verbose: int) -> WorstCase:
        if verbose:
            print("worst case")
        device, losses = self._search.run(seed=self.specification.seed)
        found = _scalars(self._frozen.evaluate([device], verbose=0).values)
        metrics = {name: float(values[0]) for name, values in found.items()}
        return WorstCase(self._search.radius, metrics, losses, self._probe, device)

    def _check_outputs(self, samples) -> None:
        """Raises ValueError where the end of a sweep or grid leaves the model.

        A measured curve ends where its measurement did, and is NaN beyond. Two samples
        on the design are enough to see it; what a device's own deviations add is seen
        in its figures.
        """
        for point in self.plan.ends():
            cause = None
            with self.plan.device(point).installed(self.model):
                try:
                    outputs = keras.tree.flatten(self.model(samples, training=False))
                    lost = any(np.isnan(np.asarray(output)).any() for output in outputs)
                except ValueError as error:
                    # Outside a graph a layer may say so itself.
                    lost, cause = True, error
            if lost:
                axes = zip(self.plan.scans[point.scan], point.place, strict=True)
                where = {axis.name: axis.ticks[i] for axis, i in axes}
                argument = "grid" if point.scan is GRID else "sweeps"
                raise ValueError(
                    f"`{argument}` must stay where the model has outputs. Received: "
                    f"{where}, where they are NaN or out of range"
                ) from cause


def _scalars(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the metrics that are one number for a device."""
    return {name: v for name, v in values.items() if np.ndim(v) == 1}
