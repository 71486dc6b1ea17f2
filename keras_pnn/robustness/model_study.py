"""Measure all points of a robustness study on one model."""

import contextlib
import copy
import json
import math
import os

import keras
import numpy as np

from keras_pnn import _checks, _files, _keras
from keras_pnn._version import __version__
from keras_pnn.deploy import hardware_cost
from keras_pnn.devices import DeviceEvaluator
from keras_pnn.robustness.cache import Cache
from keras_pnn.robustness.curvature import CurvatureStudy
from keras_pnn.robustness.executor import measured
from keras_pnn.robustness.identity import data_digest, described
from keras_pnn.robustness.inputs import first_samples
from keras_pnn.robustness.light_path import LightPath
from keras_pnn.robustness.points import GRID, Nominal, OnScan, Plan, Point, gathered
from keras_pnn.robustness.results import ModelRobustness, WorstCase
from keras_pnn.robustness.specification import Specification
from keras_pnn.robustness.worst_case import WorstCaseSearch, default_radius
from keras_pnn.training.trainer import Trainer

# Larger blocks are no faster, and lose more work when a run is stopped.
LARGEST_BLOCK = 128
# Samples whose light is shown.
SHOWN = 3

# Metrics of a point.
Metrics = dict[str, float]


class ModelStudy:
    """The study of one model: its points and the evaluators that measure them.

    Points are evaluated in blocks of as many devices as fit in memory at once. A block
    is a pure function of the model's weights, the data and the specification, so it
    gives the same result on another machine or after an interruption. `data` is
    `(x, y, sample_weight)`, and `loss` is the model's loss on a few samples. A pickled
    study holds its arguments, and measures the points only.
    """

    def __init__(
        self, model: keras.Model, data: tuple, specification: Specification, loss: float
    ):
        self.model, self._specification, self._loss = model, specification, loss
        self._given = data
        few = first_samples(data, specification.probe)
        self._probe = _checks.sample_count(few[0])
        hessian, landscape = specification.hessian, specification.landscape
        self._curvature = CurvatureStudy(
            model, few, hessian, landscape, specification.seed
        )
        self._plan = Plan(model, specification)
        self.points = self._plan.points
        self._data = data_digest(data, specification.calibration)
        x, y, sample_weight = data
        batch_size = specification.batch_size
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
        some = [self._plan.device(Nominal())] * min(len(self.points), LARGEST_BLOCK)
        # Fixed, so that a point's figures do not depend on which points are missing.
        self.block_size = self._evaluator.devices_at_once(some)
        self._evaluator.chunk = self.block_size
        self._check_outputs(first_samples(data, 2)[0])
        self._cost()
        radius = specification.worst_case
        if radius is True:
            radius = default_radius(self._plan)
        self._search = None
        if radius:
            self._search = WorstCaseSearch(
                model, few[0], few[1], radius, batch_size, few[2]
            )
            # The worst device is measured alone, with batch statistics frozen.
            self._frozen = DeviceEvaluator(model, x, y, batch_size, sample_weight, 1)

    def __reduce__(self):
        model, compiled = self.model, None
        if isinstance(model, Trainer):
            # Workers need no training objects, such as a device in the loop.
            model, compiled = model.model, model.get_compile_config()
        # States of random generators and RNNs, which a model file does not keep.
        states = [np.asarray(variable) for variable in _unsaved(model)]
        asked = copy.copy(self._specification)
        for name in ("hessian", "landscape", "worst_case", "hardware"):
            object.__setattr__(asked, name, None)
        return _made, (model, compiled, states, self._given, asked, self._loss)

    def measure(
        self,
        cache_dir: str | os.PathLike | None,
        part: tuple[int, int],
        verbose: int,
        executor=None,
    ) -> dict[Point, Metrics]:
        """Measures the points of one part with the present weights.

        Blocks are dealt to the parts in turn. Workers of an `executor` measure; only
        this process stores their results.
        """
        points, size = self.points, self.block_size
        numbers = range(len(points))
        blocks = [numbers[i : i + size] for i in numbers[::size]][part[0] :: part[1]]
        cache, done = None, {}
        if cache_dir is not None:
            cache = Cache(cache_dir, self.digest(), len(points), self._loss, part)
            done = cache.read()
        missing = [block for block in blocks if not done.keys() >= set(block)]
        bar = keras.utils.Progbar(len(blocks), verbose=verbose, unit_name="block")
        bar.add(len(blocks) - len(missing))
        pairs = ((block, self.block(block)) for block in missing)
        if executor is not None:
            pairs = measured(executor, self, missing, cache_dir)
        # After an error here, workers get no more blocks.
        with contextlib.closing(pairs):
            for block, found in pairs:
                new = dict(zip(block, found, strict=True))
                done |= new
                if cache is not None:
                    cache.add(new)
                bar.add(1)
        return {points[i]: done[i] for block in blocks for i in block}

    def robustness(self, found: dict[Point, Metrics], verbose: int) -> ModelRobustness:
        """Returns the results of a model from its points, and measures the rest."""
        fields = {**gathered(self._plan, found), "cost": self._cost()}
        samples = first_samples(self._given, SHOWN)[0]
        fields["light"] = LightPath.of(self.model, samples)
        if self._search is not None:
            if verbose:
                print("worst case")
            device, losses = self._search.run(seed=self._specification.seed)
            (metrics,) = _metrics(self._frozen, [device])
            fields["worst"] = WorstCase(
                self._search.radius, metrics, losses, self._probe, device
            )
        return ModelRobustness(**fields, **self._curvature.measure(verbose))

    def _cost(self):
        library = self._specification.hardware
        return None if library is None else hardware_cost(self.model, library)

    def setting(self, worst: WorstCase | None) -> dict:
        """Returns the settings of the measurement, for the report."""
        specification, count = self._specification, len(self._plan.devices)
        drawn = "as given"
        if specification.variation is not None:
            drawn = repr(specification.variation)
        scanned = {p.device for p in self.points if isinstance(p, OnScan)}
        found = {
            "SHA-256 of the data": self._data[:12],
            "devices": count,
            "variation": drawn if count else "no devices",
            "seed": specification.seed,
            "devices in sweeps": len(scanned - {None}),
            "points": len(self.points),
            "batch size": self._evaluator.batch_size,
            "batch normalisation": specification.batch_norm,
        }
        if specification.calibration is not None:
            count = _checks.sample_count(specification.calibration)
            found["calibration samples"] = count
        if worst is not None:
            starts, losses = worst.losses.shape
            found["search for the worst case"] = f"{starts} starts × {losses - 1} steps"
        return found

    def digest(self) -> str:
        """Returns a digest of everything that the points' metrics depend on."""
        plan, specification = self._plan, self._specification
        axes = [axis for axes in plan.scans.values() for axis in axes]
        deviations = [
            pair
            for device in (*plan.devices, *plan.trained_on.values())
            for pair in sorted(device.deviations.items())
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
                self.block_size,
                described(self.model),
                __version__,
            ]
        )
        # Values of layers' variables that the points do not set.
        pairs = plan.device(Nominal()).bind(self.model)
        moved = {id(q.variable) for q, _ in pairs if q.nominal is not None}
        own = [
            np.asarray(variable)
            for layer in _keras.flat_layers(self.model)
            for variable in _keras.own_variables(layer)
            if id(variable) not in moved
        ]
        arrays = [array for _, array in deviations] + own
        return _files.digest(text, self._data, data_digest(arrays))

    def block(self, block: range) -> list[Metrics]:
        """Returns the metrics of the points with the numbers in `block`."""
        devices = [self._plan.device(self.points[i]) for i in block]
        # NaN outputs have no class, but still yield an accuracy.
        return [
            dict.fromkeys(m, math.nan) if math.isnan(m["loss"]) else m
            for m in _metrics(self._evaluator, devices)
        ]

    def _check_outputs(self, samples) -> None:
        """Raises ValueError if the model has no outputs at an end of a sweep or grid.

        A measured curve is NaN beyond its ends, which two samples on the design reveal.
        Deviations of devices that lead beyond them show in their figures.
        """
        for point in self.points:
            if not isinstance(point, OnScan) or point.device is not None:
                continue
            axes = list(zip(self._plan.scans[point.scan], point.place, strict=True))
            if any(0 < i < len(axis) - 1 for axis, i in axes):
                continue
            cause = None
            with self._plan.device(point).installed(self.model):
                try:
                    outputs = keras.tree.flatten(self.model(samples, training=False))
                    lost = any(np.isnan(np.asarray(output)).any() for output in outputs)
                except ValueError as error:
                    # Outside a graph, a layer may raise the error itself.
                    lost, cause = True, error
            if lost:
                where = {axis.name: axis.ticks[i] for axis, i in axes}
                argument = "grid" if point.scan is GRID else "sweeps"
                raise ValueError(
                    f"`{argument}` must stay where the model has outputs. Received: "
                    f"{where}, where they are NaN or out of range"
                ) from cause


def _unsaved(model: keras.Model) -> list[keras.Variable]:
    return [
        *_keras.seed_states(model),
        *_keras.recurrent_states(model),
        _keras.global_seed_state(),
    ]


def _made(model, compiled, states: list, *others) -> ModelStudy:
    """Restores a pickled study in a worker."""
    if compiled is not None:
        model.compile(**keras.saving.deserialize_keras_object(compiled))
    for variable, state in zip(_unsaved(model), states, strict=True):
        variable.assign(state)
    return ModelStudy(model, *others)


def _metrics(evaluator: DeviceEvaluator, devices: list) -> list[Metrics]:
    """Returns for each device its metrics that are single numbers."""
    found = evaluator.evaluate(devices, verbose=0).values
    columns = {name: v for name, v in found.items() if np.ndim(v) == 1}
    return [
        {name: float(v[i]) for name, v in columns.items()} for i in range(len(devices))
    ]
