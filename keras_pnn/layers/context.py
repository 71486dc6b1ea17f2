"""Override the values of variables, and the outputs of layers by measurements.

`valued` gives a measurement the derivative of the model, as in physics-aware training.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import keras
import tensorflow as tf

from keras_pnn import _keras


class Overrides(Mapping):
    """An immutable mapping from variables to the values that replace theirs.

    Inside `with overrides.scope(model):` the model's variables have these values, and
    assignments leave the variables as they are. `read` holds values of further
    variables that were read already; these are not members of the mapping.
    """

    def __init__(
        self, pairs: Mapping | Iterable[tuple] = (), read: Iterable[tuple] = ()
    ):
        items = pairs.items() if isinstance(pairs, Mapping) else pairs
        # By identity: variables compare by value, and cannot be hashed.
        self._pairs = {id(variable): (variable, value) for variable, value in items}
        self._read = {id(v): (v, value) for v, value in read if v not in self}

    def __getitem__(self, variable: keras.Variable):
        return self._pairs[id(variable)][1]

    def __contains__(self, variable) -> bool:
        return id(variable) in self._pairs

    def __iter__(self) -> Iterator[keras.Variable]:
        return (variable for variable, _ in self._pairs.values())

    def __len__(self) -> int:
        return len(self._pairs)

    def items(self) -> list[tuple]:
        """Returns the (variable, value) pairs; variables cannot be set members."""
        return list(self._pairs.values())

    def value(self, variable: keras.Variable) -> tf.Tensor:
        """Returns the value of a variable: its override, or what it stores."""
        pair = self._pairs.get(id(variable)) or self._read.get(id(variable))
        return tf.convert_to_tensor(pair[1] if pair else variable)

    def reading(self, variables: Iterable[keras.Variable]) -> "Overrides":
        """Returns these overrides, with what other variables store read here, once.

        TensorFlow cannot know that two reads of a variable give the same value. With
        one read, what several passes have in common is computed once, such as the
        layers in front of the first control.
        """
        # XLA cannot read strings.
        numbers = [v for v in variables if v.dtype != "string"]
        read = [*self._read.values(), *((v, self.value(v)) for v in numbers)]
        return Overrides(self.items(), read)

    def merged(self, other: Mapping | Iterable[tuple]) -> "Overrides":
        """Returns these overrides with those of `other`, which replace them."""
        pairs = [*self.items(), *Overrides(other).items()]
        return Overrides(pairs, self._read.values())

    def watch(self, variables: Iterable[keras.Variable]) -> tuple[list, "Overrides"]:
        """Returns tensors to differentiate with respect to, and overrides with them."""
        variables = list(variables)
        watched = [tf.identity(self.value(v)) for v in variables]
        return watched, self.merged(zip(variables, watched, strict=True))

    def scope(
        self, model: keras.Model, rematerialize: bool = True
    ) -> _keras.OverridingScope:
        """Returns the scope in which these values are in force for a model's loss.

        They also are in functions under `tf.function`, which run as the functions
        that they decorate, and under `tf.recompute_grad` and `tf.custom_gradient`, as
        well as in their gradients. Reading a variable past the scope raises an error.
        What is assigned inside are the scope's `updates()`, of whatever kind the
        variables are. Without `rematerialize`, `tf.recompute_grad` and
        `keras.RematScope`, which have no second derivative, do nothing.
        """
        # Keras hands a regulariser None for a variable that the scope does not hold.
        regularized = [v for v in model.trainable_variables if v.regularizer]
        others = self.reading(regularized)._read.values()
        return _keras.OverridingScope(model, self.items(), others, rematerialize)


@contextlib.contextmanager
def restoring(variables: Iterable) -> Iterator[None]:
    """Gives variables the values back that they have now, when the block ends."""
    before = [(variable, variable.numpy()) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


@dataclasses.dataclass(frozen=True)
class Context:
    """Options for the calls of physical layers in one thread.

    Args:
        substitute: a function from (layer, inputs, controls, the layer's own outputs)
            to the outputs to use; `None` for the layer's own.
        kept: ids of the imperfections that loading weights does not reset.
        stacked: whether a surrounding `tf.vectorized_map` stacks kernels.
    """

    substitute: Callable | None = None
    kept: frozenset[int] = frozenset()
    stacked: bool = False


_thread = threading.local()


def current() -> Context:
    """Returns the context of the present thread."""
    return getattr(_thread, "context", Context())


@contextlib.contextmanager
def _changed(**changes) -> Iterator[None]:
    before = current()
    _thread.context = dataclasses.replace(before, **changes)
    try:
        yield
    finally:
        _thread.context = before


@contextlib.contextmanager
def substituting(substitute: Callable | None) -> Iterator[None]:
    """Lets a function give the outputs of every physical layer, see `Context`.

    Layers under `tf.function` are reached too, traced before or not.
    """
    with _changed(substitute=substitute), _keras.inlining():
        yield


def keeping(
    variables: Iterable[keras.Variable],
) -> contextlib.AbstractContextManager[None]:
    """Lets imperfections stay as they are when weights are loaded inside."""
    return _changed(kept=current().kept.union(map(id, variables)))


def kernels_per_device() -> contextlib.AbstractContextManager[None]:
    """Tells layers that a surrounding `tf.vectorized_map` stacks their kernels.

    TensorFlow cannot vectorise a convolution over its filters, so inside this
    context a convolution is written as patches times kernel.
    """
    return _changed(stacked=True)


def valued(measured, modelled):
    """Returns the values of `measured` with the derivatives of `modelled`.

    The mask of the outputs is kept, and so are the logits behind a softmax or sigmoid
    where `measured` has them too: a simulated device does, a bench does not.
    """
    outputs = _valued(measured, modelled)
    theirs, ours = map(_keras.tensor_attributes, (measured, modelled))
    logits = ours.pop(_keras.LOGITS, None)
    # The logits of the model alone would not belong to the measured values.
    if logits is not None and _keras.LOGITS in theirs:
        ours[_keras.LOGITS] = _valued(theirs[_keras.LOGITS], logits)
    _keras.set_tensor_attributes(outputs, ours)
    return outputs


@tf.custom_gradient
def _valued(measured, modelled):
    return tf.identity(measured), lambda upstream: (None, upstream)


def measure(device, layer, inputs, controls: dict, modelled):
    """Returns what a device measures for one layer, or `None` if it has none.

    A device has `measure(layer, inputs, controls)`, on tensors; or
    `measure_in_graph(layer, inputs, controls, modelled)`, which is also given the
    layer's own outputs. Either may return `None`: the layer is not on the device.
    """
    if hasattr(device, "measure_in_graph"):
        return device.measure_in_graph(layer, inputs, controls, modelled)
    return device.measure(layer, inputs, controls)


def measured_by(
    device, block=None, seen: list | None = None, join: Callable | None = None
) -> contextlib.AbstractContextManager[None]:
    """Lets a device give the outputs of every physical layer inside.

    Values are the device's; gradients are those of the layers' own `forward`, or those
    of what `join(layer, inputs, controls, measured, modelled)` returns. `block` is that
    of `measuring_block`. The layers that the device measures are added to `seen`.
    """

    def substitute(layer, inputs, controls, modelled):
        measured = measure(device, layer, inputs, controls, modelled)
        if measured is None:
            return modelled
        if seen is not None:
            seen.append(layer)
        if join is not None:
            return join(layer, inputs, controls, measured, modelled)
        return valued(measured, modelled)

    substitute.device, substitute.block = device, block
    return substituting(substitute)


def measuring_device():
    """Returns the device that measures in the present context, or `None`."""
    return getattr(current().substitute, "device", None)


def measuring_block():
    """Returns the block of the present context beyond which nothing may measure.

    `None` where there is none, as in the steps of a trainer with its own device.
    """
    return getattr(current().substitute, "block", None)
