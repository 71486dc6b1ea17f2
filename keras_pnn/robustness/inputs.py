"""Check that the models, data and metric of a robustness study fit together."""

import re
import textwrap

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _keras
from keras_pnn.devices import DeviceEvaluator, SimulatedDevice
from keras_pnn.devices.evaluation import off_nominal
from keras_pnn.devices.fit import misfit
from keras_pnn.layers.lookup import quantities
from keras_pnn.robustness.specification import by_name

# Keras metrics that are a share of hits, from 0 to 1.
_ACCURACIES = (
    keras.metrics.Accuracy,
    keras.metrics.BinaryAccuracy,
    keras.metrics.CategoricalAccuracy,
    keras.metrics.SparseCategoricalAccuracy,
    keras.metrics.TopKCategoricalAccuracy,
    keras.metrics.SparseTopKCategoricalAccuracy,
)


def named_models(model, name, compare) -> dict[str, keras.Model]:
    """Returns name → model, the main model first; checks that each is ready."""
    if not isinstance(name, str | None):
        raise _checks.error("name", "a string or None", repr(name))
    compare = by_name("compare", compare, object, "models")
    _check_model("model", model)
    models = {name or model.name: model}
    for label, other in compare.items():
        if label in models:
            expected = "named differently from `model`"
            raise _checks.error("compare", expected, repr(label))
        _check_model(f"compare[{label!r}]", other)
        models[label] = other
    for label, one in models.items():
        check_design(label, one)
    return models


def _check_model(argument: str, model) -> None:
    if not isinstance(model, keras.Model):
        raise _checks.error(argument, "a Keras model", _checks.short(model))
    _checks.compiled(argument, model)
    if not model.built:
        expected = "built: give it a `keras.Input`, or call it on a batch"
        raise _checks.error(argument, expected, f"'{model.name}', not built")


def check_design(label: str, model: keras.Model) -> None:
    """Raises ValueError if an imperfection of a model is not nominal."""
    for quantity in quantities(model):
        if off_nominal(quantity):
            raise ValueError(
                "A report starts from the design, with every imperfection at its "
                "nominal value: make it outside `device.installed(model)`, call "
                "`layer.reset_imperfections()`, or give the device in `devices`. "
                f"Received: model {label!r}, where '{quantity.path}' is off its "
                "nominal value"
            )


def first_step(label: str, model: keras.Model, data: tuple) -> dict[str, np.ndarray]:
    """Returns loss and metrics on the first samples and those of extreme labels.

    If the model lacks an output for a label, the step fails or the loss is not finite.
    """
    x, y, sample_weight = first_samples(data, 2, extremes=True)
    try:
        evaluator = DeviceEvaluator(model, x, y, sample_weight=sample_weight)
        found = evaluator.evaluate([SimulatedDevice({})], verbose=0).values
    except (tf.errors.OpError, ValueError, TypeError, AttributeError) as error:
        if problem := misfit(model, *data[:2]):
            raise problem from None
        raise ValueError(
            f"Arguments `x` and `y` must fit {label!r}, as for `evaluate`. Received: "
            f"{shapes(data[0])} and {shapes(data[1])}, on which a step fails: "
            f"{brief(error)}"
        ) from error
    if not np.isfinite(found["loss"]).all():
        raise ValueError(
            f"The loss of {label!r} must be finite: labels that the model has no "
            "output for, or weights that are not finite? Received: a loss of "
            f"{float(found['loss'][0])} on the first samples and those of the "
            "least and the largest label"
        )
    return {name: values[0] for name, values in found.items()}


def reported_metric(models: dict, steps: dict, metric: str | None) -> str:
    """Returns the metric to report, by default the first compiled one.

    `steps` maps the name of a model to the result of `first_step`.
    """
    for label, found in steps.items():
        if metric is None:
            compiled = [n for n in _keras.named_metrics(models[label]) if n in found]
            metric = next(iter(compiled), "loss")
        if not isinstance(metric, str) or metric not in found:
            expected = f"one of {list(found)}, which {label!r} is compiled with"
            raise _checks.error("metric", expected, repr(metric))
        if np.ndim(found[metric]):
            received = f"{metric!r}, of shape {np.shape(found[metric])}"
            raise _checks.error("metric", "one number for a device", received)
    return metric


def specified(spec: float | None, metric: str, models: dict, steps: dict) -> float:
    """Returns the specification, by default 0.95 for a Keras accuracy."""
    counted = [_keras.named_metrics(m).get(metric) for m in models.values()]
    if spec is None:
        if not all(isinstance(hits, _ACCURACIES) for hits in counted):
            expected = f"the value that {metric!r}, no accuracy of Keras, must keep"
            raise _checks.error("spec", expected, spec)
        return 0.95
    if 0 <= spec <= 1:
        return spec
    for found, hits in zip(steps.values(), counted, strict=True):
        # A user's metric named like an accuracy might be in percent.
        share = "acc" in metric.lower() and 0 < abs(found[metric]) <= 1
        if isinstance(hits, _ACCURACIES) or share:
            expected = f"from 0 to 1 for {metric!r}, such as 0.95 for 95 %"
            raise _checks.error("spec", expected, spec)
    return spec


def better(model: keras.Model, metric: str, mode: str) -> str:
    """Returns `"max"` or `"min"`: which values of a metric are better."""
    if mode != "auto":
        return mode
    if metric in ("loss", *(m.name for m in _keras.loss_metrics(model))):
        return "min"
    found = {m.name: m for m in model.metrics} | _keras.named_metrics(model)
    direction = _keras.direction(found.get(metric))
    if direction is None:
        expected = "'max' or 'min' for a metric that does not say which is better"
        raise _checks.error("mode", expected, f"mode='auto' for {metric!r}")
    return "max" if direction == "up" else "min"


def first_samples(data: tuple, count: int, extremes: bool = False) -> tuple:
    """Returns the first samples, and with `extremes` those of extreme labels."""
    rows = list(range(min(count, _checks.sample_count(data[0]))))
    for labels in keras.tree.flatten(data[1]) if extremes else ():
        labels = np.asarray(labels)
        if labels.size and labels.dtype.kind in "biuf":
            each = labels.size // len(labels)
            rows += [int(labels.argmin()) // each, int(labels.argmax()) // each]
    return keras.tree.map_structure(
        lambda a: None if a is None else np.asarray(a)[rows], data
    )


def shapes(part) -> str:
    """Returns the shapes of a structure of arrays as text."""
    found = [np.shape(a) for a in keras.tree.flatten(part) if a is not None]
    return " ".join(map(str, found)) or "none"


def brief(error: Exception) -> str:
    """Returns the message of a Keras or TensorFlow error, without tracebacks."""
    # Keras writes the cause in bold, on a line below the layer that raised it.
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    lines = [line.strip() for line in text.splitlines()]
    noise = ("File ", "Detected at ", "Graph execution error", "in user code", "[[")
    plain = [line for line in lines if line and not line.startswith(noise)]
    # Tracebacks of the user's code end with the error itself.
    named = [line for line in plain if re.match(r"\w+(Error|Exception): ", line)]
    layer = plain and plain[0].startswith("Exception encountered")
    said = named[-1] if named else " ".join(plain[: 2 if layer else 1])
    said = said or type(error).__name__
    return textwrap.shorten(said, 240, placeholder=" …")
