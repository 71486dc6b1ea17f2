"""What a robustness report is given: models, data and metric that fit each other."""

import contextlib
import numbers
import re
import textwrap
from collections.abc import Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.devices.evaluation import DeviceEvaluator
from keras_pnn.devices.simulated import SimulatedDevice
from keras_pnn.devices.variation import Variation
from keras_pnn.layers.lookup import physical_layers

# Keras' metrics that count hits: from 0 to 1.
ACCURACIES = (
    keras.metrics.Accuracy,
    keras.metrics.BinaryAccuracy,
    keras.metrics.CategoricalAccuracy,
    keras.metrics.SparseCategoricalAccuracy,
    keras.metrics.TopKCategoricalAccuracy,
    keras.metrics.SparseTopKCategoricalAccuracy,
)


def named_models(model, name, compare) -> dict[str, keras.Model]:
    """Returns name → model, each compiled and built; `model` is the first."""
    if not (name is None or isinstance(name, str)):
        raise ValueError(f"`name` must be a string or None. Received: {name!r}")
    compare = {} if compare is None else compare
    if not isinstance(compare, dict) or not all(isinstance(n, str) for n in compare):
        raise ValueError(
            "`compare` must be a dictionary of names (strings) and models. "
            f"Received: {compare!r}"
        )
    _check_model("`model`", model)
    models = {name or model.name: model}
    for label, other in compare.items():
        if label in models:
            raise ValueError(
                "`compare` must give its models names of their own, and `model` is "
                f"called so. Received: {label!r}"
            )
        _check_model(f"`compare[{label!r}]`", other)
        models[label] = other
    return models


def _check_model(argument: str, model) -> None:
    if not isinstance(model, keras.Model):
        raise ValueError(f"{argument} must be a Keras model. Received: {model!r}")
    if not model.compiled:
        raise ValueError(
            f"{argument} must be compiled, as for `evaluate`. "
            f"Received: model '{model.name}', not compiled"
        )
    if not model.built:
        raise ValueError(
            f"{argument} must be built: give it a `keras.Input`, or call it on a "
            f"batch. Received: model '{model.name}', not built"
        )


def check_design(models) -> None:
    """Raises ValueError if an imperfection of a model is off its nominal value."""
    for label, model in models.items():
        for layer in physical_layers(model):
            for name, variable in layer.imperfections.items():
                value = tf.convert_to_tensor(variable)
                nominal = tf.cast(layer.quantity(name).nominal, value.dtype)
                if np.any(value != nominal):
                    raise ValueError(
                        "A report starts from the design, with every imperfection at "
                        "its nominal value: make it outside `device.installed(model)`, "
                        "call `layer.reset_imperfections()`, or give the device in "
                        f"`devices`. Received: model {label!r}, where "
                        f"'{layer.name}/{name}' is off its nominal value"
                    )


def check_whole(argument: str, value, least: int) -> None:
    """Raises ValueError if a value is no whole number, or too small."""
    if not is_whole(value, least):
        raise ValueError(
            f"`{argument}` must be a whole number >= {least}. Received: {value!r}"
        )


def is_whole(value, least: int) -> bool:
    """Returns whether a value is a whole number, of Python or NumPy, not too small."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value >= least


def check_spec(spec) -> None:
    real = isinstance(spec, numbers.Real) and not isinstance(spec, bool)
    if not real or not np.isfinite(spec):
        raise ValueError(f"`spec` must be a finite number. Received: {spec!r}")


def chosen_devices(devices, variation):
    """Returns (devices, variation), of which one at least is None.

    Args:
        devices: any iterable of devices, a `Variation` in its place, or `None`.
        variation: a `Variation` or `None`.
    """
    if devices is not None and variation is not None:
        raise ValueError("Give `devices` or `variation`, not both. Received: both")
    if isinstance(devices, Variation):
        return None, devices
    if devices is None or hasattr(devices, "__len__"):
        return devices, variation
    if not isinstance(devices, Iterable):
        raise ValueError(
            "`devices` must be a list of simulated devices, or a `Variation`. "
            f"Received: {devices!r}"
        )
    # An iterator would be empty for the second model.
    return list(devices), variation


@contextlib.contextmanager
def naming(label: str, models) -> Iterator[None]:
    """Says in a ValueError which of several models it is about."""
    try:
        yield
    except ValueError as error:
        if len(models) == 1:
            raise
        raise ValueError(f"Model {label!r}: {error}") from error


def first_steps(models, data) -> dict[str, dict[str, np.ndarray]]:
    """Returns name of a model → its loss and metrics on a few samples.

    The first samples, and those of the least and the largest labels: where the model
    has no output for a label, one of these fails.

    Raises:
        ValueError: the step fails, or its loss is not finite.
    """
    few = first_samples(data, 2, extremes=True)
    steps = {}
    for label, model in models.items():
        try:
            evaluator = DeviceEvaluator(model, few[0], few[1], sample_weight=few[2])
            found = evaluator.evaluate([SimulatedDevice({})], verbose=0).values
        except (tf.errors.OpError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"`x` and `y` must fit {label!r}, as for `evaluate`. Received: "
                f"{_shapes(data[0])} and {_shapes(data[1])}, on which a step fails: "
                f"{brief(error)}"
            ) from error
        if not np.isfinite(found["loss"]).all():
            raise ValueError(
                f"The loss of {label!r} must be finite: labels that the model has no "
                "output for, or weights that are not finite? Received: a loss of "
                f"{float(found['loss'][0])} on the first samples and those of the "
                "least and the largest label"
            )
        steps[label] = {name: values[0] for name, values in found.items()}
    return steps


def reported_metric(models, steps, metric) -> str:
    """Returns the metric to report, which every model has, as one number."""
    for label, found in steps.items():
        if metric is None:
            compiled = [n for n in compiled_metrics(models[label]) if n in found]
            metric = next(iter(compiled), "loss")
        if not isinstance(metric, str) or metric not in found:
            raise ValueError(
                f"`metric` must be one of {list(found)}, which {label!r} is compiled "
                f"with. Received: {metric!r}"
            )
        if np.ndim(found[metric]):
            raise ValueError(
                "`metric` must be one number for a device. Received: "
                f"{metric!r}, of shape {np.shape(found[metric])}"
            )
    return metric


def check_attainable(spec, metric: str, models, steps) -> None:
    """Raises ValueError for an accuracy to be kept that is not from 0 to 1."""
    if 0 <= spec <= 1:
        return
    for label, found in steps.items():
        hits = isinstance(compiled_metrics(models[label]).get(metric), ACCURACIES)
        # One of the user's own, which might also count in percent.
        share = "acc" in metric.lower() and 0 < abs(found[metric]) <= 1
        if hits or share:
            raise ValueError(
                f"`spec` must be from 0 to 1 for {metric!r}, such as 0.95 for 95 %. "
                f"Received: {spec!r}"
            )


def better(model, metric: str, mode: str) -> str:
    """Returns `"max"` or `"min"`: which values of a metric are better."""
    if mode in ("min", "max"):
        return mode
    if mode != "auto":
        raise ValueError(f"`mode` must be 'auto', 'max' or 'min'. Received: {mode!r}")
    if metric in ("loss", *(m.name for m in model._compile_loss.metrics)):
        return "min"
    found = {m.name: m for m in model.metrics} | compiled_metrics(model)
    direction = getattr(found.get(metric), "_direction", None)
    if direction is not None:
        return "max" if direction == "up" else "min"
    raise ValueError(
        "`mode` must be 'max' or 'min' for a metric that does not say which is better. "
        f"Received: mode='auto' for {metric!r}"
    )


def compiled_metrics(model) -> dict[str, keras.metrics.Metric]:
    """Returns name in `evaluate`'s results → compiled metric, after a first step.

    Of several outputs, the name is that of the output and the metric.
    """
    compiled = model._compile_metrics
    if compiled is None or not compiled.built:
        return {}
    names, metrics = list(compiled.result()), compiled.metrics
    if len(names) != len(metrics):
        # A metric with several results: only plain names are known.
        names = [m.name for m in metrics]
    return dict(zip(names, metrics, strict=True))


def check_trained_on(trained_on, models) -> None:
    if not isinstance(trained_on, dict | None):
        raise ValueError(
            "`trained_on` must be a dictionary of models' names and devices. "
            f"Received: {trained_on!r}"
        )
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
    """The first samples; with those of the least and the largest labels, if wanted."""
    rows = list(range(min(count, sample_count(data[0]))))
    if extremes:
        rows += _extremes(data[1])
    return tuple(
        keras.tree.map_structure(
            lambda a: None if a is None else np.asarray(a)[rows], part
        )
        for part in data
    )


def _extremes(y) -> list[int]:
    """The samples with the least and the largest label of each output."""
    rows = []
    for labels in keras.tree.flatten(y):
        labels = None if labels is None else np.asarray(labels)
        if labels is not None and labels.size and labels.dtype.kind in "biuf":
            places = np.ravel(labels)
            each = labels.size // len(labels)
            rows += [int(places.argmin()) // each, int(places.argmax()) // each]
    return rows


def sample_count(x) -> int:
    return len(next(a for a in keras.tree.flatten(x) if a is not None))


def brief(error: Exception) -> str:
    """Returns what an error of Keras or TensorFlow says, without its traces."""
    lines = [line.strip() for line in str(error).splitlines()]
    noise = ("File ", "Detected at ", "Graph execution error", "in user code", "[[")
    plain = [line for line in lines if line and not line.startswith(noise)]
    # Traces of a user's code end with the error itself.
    named = [line for line in plain if re.match(r"\w+(Error|Exception): ", line)]
    said = named[-1] if named else plain[0] if plain else type(error).__name__
    return textwrap.shorten(said, 240, placeholder=" …")


def _shapes(part) -> str:
    shapes = [np.shape(a) for a in keras.tree.flatten(part) if a is not None]
    return " ".join(map(str, shapes)) or "nothing"
