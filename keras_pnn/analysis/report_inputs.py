"""What a robustness report is given: models, data and metric that fit each other."""

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.devices.population import DeviceEvaluator
from keras_pnn.devices.simulated import SimulatedDevice


def named_models(model, name, compare) -> dict[str, keras.Model]:
    models = {name or model.name: model}
    for label, other in (compare or {}).items():
        if label in models:
            raise ValueError(
                "`compare` must give its models names of their own, and `model` is "
                f"called so. Received: {label!r}"
            )
        models[label] = other
    for label, one in models.items():
        if not getattr(one, "compiled", False):
            raise ValueError(
                "Models must be compiled, as for `evaluate`. "
                f"Received: {label!r}, not compiled"
            )
    return models


def reported_metric(models, data, metric) -> str:
    """The metric to report, after a step on a few samples with each model."""
    if not sample_count(data[0]):
        raise ValueError("`x` must hold at least 1 sample. Received: none")
    few = first_samples(data, 2, extremes=True)
    for label, model in models.items():
        try:
            evaluator = DeviceEvaluator(model, few[0], few[1], sample_weight=few[2])
            found = evaluator.evaluate([SimulatedDevice({})], verbose=0).values
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise ValueError(
                f"`x` and `y` must fit {label!r}, as for `evaluate`. Received: "
                f"{_shapes(data[0])} and {_shapes(data[1])}, on which a step fails: "
                f"{error}"
            ) from error
        if not np.isfinite(found["loss"]).all():
            raise ValueError(
                f"The loss of {label!r} must be finite: labels that the model has no "
                f"output for, or weights that are not finite? Received: a loss of "
                f"{float(found['loss'][0])} on the first samples"
            )
        if metric is None:
            metric = next((n for n in found if n != "loss"), "loss")
        if not isinstance(metric, str) or metric not in found:
            raise ValueError(
                f"`metric` must be one of {list(found)}, which {label!r} is compiled "
                f"with. Received: {metric!r}"
            )
        if np.ndim(found[metric][0]):
            raise ValueError(
                "`metric` must be one number for a device. Received: "
                f"{metric!r}, of shape {np.shape(found[metric][0])}"
            )
    return metric


def better(model, metric: str, mode: str) -> str:
    if mode in ("min", "max"):
        return mode
    if mode != "auto":
        raise ValueError(f"`mode` must be 'auto', 'max' or 'min'. Received: {mode!r}")
    if metric == "loss":
        return "min"
    inner = [m for one in model.metrics for m in getattr(one, "metrics", [one])]
    for one in inner:
        direction = getattr(one, "_direction", None)
        if one.name == metric and direction is not None:
            return "max" if direction == "up" else "min"
    raise ValueError(
        "`mode` must be 'max' or 'min' for a metric that does not say which is better. "
        f"Received: mode='auto' for {metric!r}"
    )


def check_trained_on(trained_on, models) -> None:
    for label, device in (trained_on or {}).items():
        if label not in models:
            raise ValueError(
                f"`trained_on` must name models of the report: {list(models)}. "
                f"Received: {label!r}"
            )
        if not isinstance(device, SimulatedDevice):
            raise ValueError(
                f"`trained_on[{label!r}]` must be a simulated device. "
                f"Received: {device!r}"
            )


def first_samples(data, count: int, extremes: bool = False):
    """The first samples; with those of the least and the largest label, if wanted."""
    rows = list(range(min(count, sample_count(data[0]))))
    labels = keras.tree.flatten(data[1])
    if extremes and len(labels) == 1 and np.asarray(labels[0]).dtype.kind in "iu":
        flat = np.asarray(labels[0]).reshape(len(labels[0]), -1)
        if flat.shape[1] == 1:
            rows += [int(flat.argmin()), int(flat.argmax())]
    return tuple(
        keras.tree.map_structure(
            lambda a: None if a is None else np.asarray(a)[rows], part
        )
        for part in data
    )


def sample_count(x) -> int:
    return len(next(a for a in keras.tree.flatten(x) if a is not None))


def _shapes(part) -> str:
    shapes = [np.shape(a) for a in keras.tree.flatten(part) if a is not None]
    return " ".join(map(str, shapes)) or "nothing"
