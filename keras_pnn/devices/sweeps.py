"""Create devices that differ in chosen values of imperfections."""

import itertools
from collections.abc import Sequence

import keras
import numpy as np

from keras_pnn import _checks
from keras_pnn.devices.axis import Axis
from keras_pnn.devices.named import deviations_of, given_once
from keras_pnn.devices.simulated import DeviceSet, SimulatedDevice
from keras_pnn.layers.lookup import architecture, common_unit
from keras_pnn.layers.quantity import Quantity


def sweep(
    model: keras.layers.Layer, name: str, values: Sequence | np.ndarray
) -> DeviceSet:
    """Returns one device for each value of one imperfection, nominal otherwise.

    Args:
        model: a built model.
        name: an imperfection of all layers (`"temperature"`) or of one
            (`"mrr_bank_1/temperature"`).
        values: deviations from the nominal value, in the imperfection's unit: 0.05
            is a `"scale"` of 1.05. Either (n,), each for every element, or (n, …),
            with a value for each element: `"shift"` by one pixel down is `[(1, 0)]`.

    Returns:
        A `DeviceSet` whose `axes` hold name, unit and values. The result of
        `evaluate_devices` keeps them.

    Raises:
        ValueError: If the model has no imperfection of that name, or if a value is not
            finite, has another shape, or lies outside the imperfection's range (a scale
            of 0).

    Example:

    >>> warm = pnn.devices.sweep(model, "temperature", np.linspace(-2, 2, 9))
    >>> result = pnn.evaluate_devices(model, x_test, y_test, warm)
    >>> print(result)                           # one line for each temperature
    >>> result.plot("accuracy")
    """
    return grid(model, {name: values})


def grid(model: keras.layers.Layer, values: dict) -> DeviceSet:
    """Returns one device for each combination of values of several imperfections.

    The last name varies fastest, so that a result reshaped to the numbers of values has
    one axis for each name.

    Args:
        model: a built model.
        values: name → values, each as in `sweep`.

    Returns:
        A `DeviceSet`, as from `sweep`, with one axis for each name.

    Raises:
        ValueError: As in `sweep`; or if there is no name, or two names address one
            variable.

    Example:

    >>> moved = pnn.devices.grid(
    ...     model, {"rotation": [-1, 0, 1], "shift": [(0, 0), (1, 0), (0, 1)]}
    ... )
    >>> accuracy = pnn.evaluate_devices(model, x_test, y_test, moved)["accuracy"]
    >>> np.reshape(accuracy, (3, 3))            # rotation, shift
    """
    if not values:
        example = "{'temperature': [-1, 0, 1]}"
        expected = f"a dictionary with at least one imperfection, such as {example}"
        raise _checks.error("values", expected, repr(values))
    points = {n: np.atleast_1d(_checks.array(n, v)) for n, v in values.items()}
    addressed = given_once(model, points)
    axes, steps = [], []
    for name, found in addressed.items():
        axes.append(Axis(name, common_unit(found), points[name]))
        texts = [f"{name} = {_text(found, point)}" for point in points[name]]
        moved = [deviations_of(name, found, point) for point in points[name]]
        steps.append(list(zip(texts, moved, strict=True)))
    shapes = architecture(model, [q.name for q in itertools.chain(*addressed.values())])
    devices = []
    for chosen in itertools.product(*steps):
        texts, moved = zip(*chosen, strict=True)
        merged = {key: value for one in moved for key, value in one.items()}
        devices.append(SimulatedDevice(merged, shapes, ", ".join(texts)))
    return DeviceSet(devices, tuple(axes))


def _text(found: list[Quantity], point: np.ndarray) -> str:
    """A point of a sweep, with the nominal value that it is added to, unless 0."""
    text = ", ".join(f"{v:g}" for v in np.ravel(point))
    text = text if point.ndim == 0 else f"({text})"
    # A converted quantity (a power imbalance) is not in the nominal value's unit.
    nominal = {q.nominal for q in found if q.convert is None} - {None}
    if nominal <= {0}:
        return text
    # Layers of different designs have different nominal values.
    base = f"{nominal.pop():g}" if len(nominal) == 1 else "nominal"
    negative = point.ndim == 0 and point < 0
    return f"{base} - {text[1:]}" if negative else f"{base} + {text}"
