"""Prepare a robustness study, which can be measured again when weights change."""

import os
import platform
import time
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn._version import __version__
from keras_pnn.devices.evaluation import check_digital
from keras_pnn.robustness.executor import check_executor
from keras_pnn.robustness.inputs import (
    better,
    first_step,
    named_models,
    reported_metric,
    shapes,
    specified,
)
from keras_pnn.robustness.model_study import Metrics, ModelStudy
from keras_pnn.robustness.points import OnTrained, Point
from keras_pnn.robustness.results import RobustnessResult, Transfer
from keras_pnn.robustness.specification import Specification


class Study:
    """A robustness study of one or several models, checked and ready to measure.

    Device evaluators and curvature operators are built once, so that measuring again,
    as during training, retraces nothing.

    Args:
        specification: what to measure.
        model, x, y, sample_weight, compare, name, data: as in `robustness_report`.

    Attributes:
        studies: name of a model → its `ModelStudy`.
        metric, mode, spec: the metric, whether its `"max"` or `"min"` is better, and
            its limit.

    Raises:
        ValueError: As in `robustness_report`.

    Example:

    >>> asked = pnn.robustness.Specification(
    ...     variation=pnn.Variation(resonance_shift=0.02), n=2, hessian=False,
    ...     landscape=False, worst_case=False,
    ... )
    >>> study = pnn.robustness.Study(asked, model, x_test, y_test)
    >>> report = study.measure(verbose=0)
    """

    def __init__(
        self,
        specification: Specification,
        model: keras.Model,
        x,
        y=None,
        sample_weight=None,
        compare: dict[str, keras.Model] | None = None,
        name: str | None = None,
        data: str = "",
    ):
        check_digital("A report must be made")
        models = named_models(model, name, compare)
        for label in specification.trained_on:
            if label not in models:
                expected = f"named as models of the report, {list(models)}"
                raise _checks.error("trained_on", expected, repr(label))
        everything = x, y, _ = _checks.data(x, y, sample_weight)
        steps = {label: first_step(label, m, everything) for label, m in models.items()}
        self.metric = reported_metric(models, steps, specification.metric)
        self.mode = better(model, self.metric, specification.mode)
        self.spec = specified(specification.spec, self.metric, models, steps)
        self.specification = specification
        self.studies: dict[str, ModelStudy] = {}
        for label, one in models.items():
            loss = float(steps[label]["loss"])
            try:
                study = ModelStudy(one, everything, specification, loss)
            except ValueError as error:
                if len(models) == 1:
                    raise
                raise ValueError(f"Model {label!r}: {error}") from error
            self.studies[label] = study
        self._described = {
            "data": data or "as given",
            "samples": _checks.sample_count(x),
            "shape of x": shapes(x),
            "shape of y": shapes(y),
        }

    def measure(
        self,
        cache_dir: str | os.PathLike | None = None,
        verbose: int | str = "auto",
        executor=None,
    ) -> RobustnessResult:
        """Measures with the present weights; see `robustness_report`."""
        check_executor(executor)
        start, shown = time.perf_counter(), _shown(verbose)
        trained_on = self.specification.trained_on
        models, on_trained = {}, []
        for label, found in self.points(cache_dir, (0, 1), verbose, executor):
            models[label] = self.studies[label].robustness(found, shown)
            points = map(OnTrained, trained_on)
            on_trained.append([found[point][self.metric] for point in points])
        transfer = None
        if trained_on:
            metrics = {self.metric: np.array(on_trained)}
            transfer = Transfer(tuple(models), tuple(trained_on), metrics)
        spec, samples = self.spec, self._described["samples"]
        settings = {n: s.setting(models[n].worst) for n, s in self.studies.items()}
        setting = {
            **self._described,
            **joint(settings),
            "metric": self.metric,
            "specification": spec,
            "mode": self.mode,
            "probe samples": min(self.specification.probe, samples),
            "versions": {
                "keras_pnn": __version__,
                "keras": keras.__version__,
                "tensorflow": tf.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "seconds": round(time.perf_counter() - start, 1),
        }
        return RobustnessResult(models, self.metric, self.mode, spec, transfer, setting)

    def points(
        self,
        cache_dir=None,
        part: tuple[int, int] = (0, 1),
        verbose: int | str = 0,
        executor=None,
    ) -> Iterator[tuple[str, dict[Point, Metrics]]]:
        """Measures the points of one part, and yields them model by model."""
        shown = _shown(verbose)
        for label, study in self.studies.items():
            if shown:
                print(f"{label}: devices and sweeps")
            yield label, study.measure(cache_dir, part, shown, executor)


def joint(settings: dict[str, dict]) -> dict:
    """Joins the settings of models; those that differ become `"<name> per model"`."""
    found = {}
    for key in dict.fromkeys(key for one in settings.values() for key in one):
        values = {label: one.get(key) for label, one in settings.items()}
        first, *others = values.values()
        alike = all(value == first for value in others)
        found |= {key: first} if alike else {f"{key} per model": values}
    return found


def _shown(verbose: int | str) -> int:
    return 0 if verbose in (0, "0") else 1
