"""A robustness report, prepared once and measured as often as the weights change."""

import platform
import time

import keras
import numpy as np
import tensorflow as tf

from keras_pnn._version import __version__
from keras_pnn.devices.evaluation import DeviceEvaluator, checked_data
from keras_pnn.layers.context import current
from keras_pnn.robustness.inputs import (
    better,
    check_attainable,
    check_design,
    check_spec,
    check_trained_on,
    check_whole,
    chosen_devices,
    first_samples,
    first_steps,
    is_whole,
    named_models,
    naming,
    reported_metric,
    sample_count,
)
from keras_pnn.robustness.measures import (
    check_curvature,
    curvature_of,
    hessian_options,
    landscape_of,
    landscape_options,
    worst_case_of,
)
from keras_pnn.robustness.points import Fabrication, Plan, Scanned
from keras_pnn.robustness.radii import search_radius
from keras_pnn.robustness.report.setting import data_setting, joint, study_setting
from keras_pnn.robustness.results import ModelRobustness, RobustnessResult, Transfer
from keras_pnn.robustness.study import Study

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
        self._landscape = landscape_options(landscape)
        for argument, value, least in (
            ("n", n, 1),
            ("probe", probe, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            check_whole(argument, value, least)
        check_spec(spec)
        devices, variation = chosen_devices(devices, variation)
        if current().substitute is not None:
            raise ValueError(
                "A report is one of simulated devices: make it outside "
                "`device.installed(model)`. Received: layers that a device measures"
            )
        check_design(self._models)
        check_trained_on(trained_on, self._models)
        everything = checked_data(x, y, sample_weight)
        steps = first_steps(self._models, everything)
        self.metric = reported_metric(self._models, steps, metric)
        self.mode = better(model, self.metric, mode)
        check_attainable(spec, self.metric, self._models, steps)
        self.spec, self._seed = float(spec), int(seed)
        self._batch_size = int(batch_size)
        self._trained_on = trained_on or {}
        self._few = first_samples(everything, probe)
        self.studies, self._radius = {}, {}
        for label, one in self._models.items():
            with naming(label, self._models):
                check_curvature(one, self._few, self._options, self._landscape)
                self.studies[label] = self._study(
                    one,
                    everything,
                    Fabrication(one, devices, variation, n, seed),
                    sweeps={} if sweeps is None else sweeps,
                    grid={} if grid is None else grid,
                    sensitivity=sensitivity,
                    sweep_devices=sweep_devices,
                    memory_limit=memory_limit,
                    batch_norm=batch_norm,
                    calibration=calibration,
                )
                self.studies[label].check_outputs()
                self._radius[label] = search_radius(
                    self.studies[label].plan, worst_case
                )
        samples = sample_count(everything[0])
        self._described = {"data": data or "as given", "samples": samples}

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
        settings = {
            label: study_setting(study, found[label].worst)
            for label, study in self.studies.items()
        }
        setting = {
            **self._described,
            **data_setting(self._few, self._described["samples"]),
            **joint(settings),
            "metric": self.metric,
            "specification": self.spec,
            "mode": self.mode,
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
        if self._landscape is not None:
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
        if not is_whole(sweep_devices, 0) or sweep_devices > count:
            raise ValueError(
                f"`sweep_devices` must be a whole number from 0 to {count}, the number "
                f"of devices. Received: {sweep_devices!r}"
            )
        for name, value in (("sweeps", sweeps), ("grid", grid)):
            if not isinstance(value, dict) or not all(
                isinstance(key, str) for key in value
            ):
                raise ValueError(
                    f"`{name}` must be a dictionary of names (strings) and values. "
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
        return Study(model, plan, evaluator, everything, calibration)


def _versions() -> dict[str, str]:
    return {
        "keras_pnn": __version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
