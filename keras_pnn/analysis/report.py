"""A robustness report, prepared once and measured as often as the weights change."""

import platform
import time

import keras
import numpy as np
import tensorflow as tf

from keras_pnn._version import __version__
from keras_pnn.analysis.measures import (
    curvature_of,
    hessian_options,
    landscape_of,
    search_radius,
    worst_case_of,
)
from keras_pnn.analysis.points import Fabrication, Plan, Scanned
from keras_pnn.analysis.report_inputs import (
    better,
    check_trained_on,
    first_samples,
    named_models,
    reported_metric,
    sample_count,
)
from keras_pnn.analysis.results import ModelRobustness, RobustnessResult, Transfer
from keras_pnn.analysis.study import Study
from keras_pnn.devices.population import DeviceEvaluator
from keras_pnn.layers.physical import active_substitute

# Of so many devices the mean tells layers apart.
SENSITIVE_DEVICES = 8


class Report:
    """All that `robustness_report` measures, checked and ready.

    Args:
        model, x, y, …: as in `robustness_report`.

    Attributes:
        studies: name of a model → its `Study`.
        metric, mode: what the specification is about.

    Raises:
        ValueError: as in `robustness_report`.
    """

    def __init__(
        self,
        model,
        x,
        y,
        devices=None,
        variation=None,
        n=32,
        sweeps=None,
        grid=None,
        spec=0.95,
        metric=None,
        hessian=True,
        landscape=True,
        compare=None,
        mode="auto",
        seed=0,
        sensitivity=True,
        worst_case=True,
        trained_on=None,
        sweep_devices=None,
        probe=1000,
        sample_weight=None,
        batch_size=500,
        memory_limit=1.0,
        batch_norm="frozen",
        calibration=None,
        data="",
        name=None,
    ):
        self._models = named_models(model, name, compare)
        self._options = hessian_options(hessian)
        if not isinstance(landscape, bool | dict):
            raise ValueError(
                "`landscape` must be True, False or a dictionary of arguments of "
                f"`loss_landscape`. Received: {landscape!r}"
            )
        for argument, value in (("probe", probe), ("batch_size", batch_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{argument}` must be a positive integer. Received: {value!r}"
                )
        if not np.isfinite(spec):
            raise ValueError(f"`spec` must be a finite number. Received: {spec!r}")
        if active_substitute() is not None:
            raise ValueError(
                "A report is one of simulated devices: make it outside "
                "`device.installed(model)`. Received: layers that a device measures"
            )
        check_trained_on(trained_on, self._models)
        everything = (x, y, sample_weight)
        self.metric = reported_metric(self._models, everything, metric)
        self.mode = better(model, self.metric, mode)
        self.spec, self._seed, self._landscape = float(spec), seed, landscape
        self._batch_size = batch_size
        self._trained_on = trained_on or {}
        self.studies = {
            label: self._study(
                one,
                everything,
                Fabrication(one, devices, variation, n, seed),
                sweeps=sweeps or {},
                grid=grid or {},
                sensitivity=sensitivity,
                sweep_devices=sweep_devices,
                memory_limit=memory_limit,
                batch_norm=batch_norm,
                calibration=calibration,
            )
            for label, one in self._models.items()
        }
        self._radius = {
            label: search_radius(study.plan, worst_case)
            for label, study in self.studies.items()
        }
        self._few = first_samples(everything, probe)
        self._described = {"data": data or "as given", "samples": sample_count(x)}

    def measure(self, rows=None, verbose="auto") -> RobustnessResult:
        """Measures with the weights as they are now.

        Args:
            rows, verbose: as in `robustness_report`.
        """
        start = time.perf_counter()
        found, transferred = {}, []
        for label, study in self.studies.items():
            lines = study.rows(
                rows, verbose=verbose, label=f"{label}: devices and sweeps"
            )
            others = self._others(label, study, verbose)
            found[label] = ModelRobustness(**study.result(lines), **others)
            transferred.append(study.transfer(lines, self.metric))
        transfer = None
        if self._trained_on:
            transfer = Transfer(
                tuple(self._models),
                tuple(self._trained_on),
                {self.metric: np.array(transferred)},
            )
        setting = {
            **self._described,
            **next(iter(self.studies.values())).setting(),
            "probe samples": sample_count(self._few[0]),
            "versions": _versions(),
            "seconds": round(time.perf_counter() - start, 1),
        }
        return RobustnessResult(
            found, self.metric, self.mode, self.spec, transfer, setting
        )

    def _others(self, label: str, study: Study, verbose) -> dict:
        """What is measured besides devices and sweeps."""
        model, few, seed = self._models[label], self._few, self._seed
        found = {}
        if self._radius[label]:
            radius = self._radius[label]
            found["worst"] = worst_case_of(
                study, few, radius, seed, self._batch_size, verbose
            )
        if self._options is not None:
            found["curvature"] = curvature_of(model, few, self._options, seed, verbose)
        if self._landscape is not False:
            curvature = found.get("curvature", {})
            found["landscape"] = landscape_of(
                model, few, self._landscape, curvature, seed, verbose
            )
        return found

    def _study(
        self,
        model,
        everything,
        fabrication: Fabrication,
        *,
        sweeps,
        grid,
        sensitivity,
        sweep_devices,
        memory_limit,
        batch_norm,
        calibration,
    ) -> Study:
        count = len(fabrication)
        sweep_devices = count if sweep_devices is None else sweep_devices
        if not 0 <= sweep_devices <= count or int(sweep_devices) != sweep_devices:
            raise ValueError(
                f"`sweep_devices` must be a whole number from 0 to {count}, the number "
                f"of devices. Received: {sweep_devices!r}"
            )
        for name, value in (("sweeps", sweeps), ("grid", grid)):
            if not isinstance(value, dict):
                raise ValueError(
                    f"`{name}` must be a dictionary of names and values. "
                    f"Received: {value!r}"
                )
        if grid and len(grid) != 2:
            raise ValueError(f"`grid` must have two names. Received: {list(grid)}")
        axes = {
            argument: {
                name: Scanned(fabrication, argument, name, values)
                for name, values in given.items()
            }
            for argument, given in (("sweeps", sweeps), ("grid", grid))
        }
        random = [a for found in axes.values() for a in found.values() if a.axis.random]
        if random and not sweep_devices:
            raise ValueError(
                "`sweep_devices` must be at least 1 for a sweep of random deviations. "
                f"Received: {sweep_devices}, with {random[0].axis.name!r}"
            )
        for device in self._trained_on.values():
            device.bind(model)
        plan = Plan(
            fabrication,
            axes["sweeps"],
            tuple(axes["grid"].values()),
            int(sweep_devices),
            SENSITIVE_DEVICES if sensitivity else 0,
            self._trained_on,
        )
        x, y, sample_weight = everything
        evaluator = DeviceEvaluator(
            model,
            x,
            y,
            batch_size=self._batch_size,
            sample_weight=sample_weight,
            memory_limit=memory_limit,
            batch_norm=batch_norm,
            calibration=calibration,
        )
        return Study(model, plan, evaluator, (everything, calibration))


def _versions() -> dict[str, str]:
    return {
        "keras_pnn": __version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
