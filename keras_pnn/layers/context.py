"""Override the values of variables, and replace outputs of layers by measurements.

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
        """Returns these overrides, with other variables read once, at this point.

        TensorFlow cannot know that two reads of a variable give the same value. With
        one read, several passes share common computations, such as the layers before
        the first control.
        """
        # XLA cannot read strings.
        numbers = [v for v in variables if v.dtype != "string"]
        read = [*self._read.values(), *((v, self.value(v)) for v in numbers)]
        return Overrides(self.items(), read)

    def merged(self, other: Mapping | Iterable[tuple]) -> "Overrides":
        """Returns these overrides, updated by those of `other`."""
        pairs = [*self.items(), *Overrides(other).items()]
        return Overrides(pairs, self._read.values())

    def watch(self, variables: Iterable[keras.Variable]) -> tuple[list, "Overrides"]:
        """Returns tensors for a gradient tape to watch, and overrides that use them."""
        variables = list(variables)
        watched = [tf.identity(self.value(v)) for v in variables]
        return watched, self.merged(zip(variables, watched, strict=True))

    def scope(
        self, model: keras.Model, rematerialize: bool = True
    ) -> _keras.OverridingScope:
        """Returns the scope in which a model's loss is computed with these values.

        The values also hold inside `tf.function`, which runs as the Python function
        that it decorates, and inside `tf.recompute_grad`, `tf.custom_gradient` and
        their gradients. Reading a variable past the scope raises an error. The scope's
        `updates()` hold what is assigned inside, to variables of any kind. Without
        `rematerialize`, `tf.recompute_grad` and `keras.RematScope`, which have no
        second derivative, do nothing.
        """
        # Keras passes None to the regulariser of a variable that the scope lacks.
        regularized = [v for v in model.trainable_variables if v.regularizer]
        others = self.reading(regularized)._read.values()
        return _keras.OverridingScope(model, self.items(), others, rematerialize)


@contextlib.contextmanager
def restoring(variables: Iterable) -> Iterator[None]:
    """Restores the present values of variables when the block ends."""
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
    """Lets a function replace the outputs of every physical layer, see `Context`.

    This includes layers under `tf.function`, traced before or not.
    """
    with _changed(substitute=substitute), _keras.inlining():
        yield


def keeping(
    variables: Iterable[keras.Variable],
) -> contextlib.AbstractContextManager[None]:
    """Keeps imperfections as they are when weights are loaded inside."""
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
    if `measured` has them too: a simulated device does, a bench does not.
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
    """Returns a device's outputs for one layer, or `None` if it lacks the layer.

    A device has `measure(layer, inputs, controls)`, on tensors; or
    `measure_in_graph(layer, inputs, controls, modelled)`, which also receives the
    layer's own outputs. Either returns `None` if the layer is not on the device.
    """
    if hasattr(device, "measure_in_graph"):
        return device.measure_in_graph(layer, inputs, controls, modelled)
    return device.measure(layer, inputs, controls)


def measured_by(
    device, block=None, seen: list | None = None, join: Callable | None = None
) -> contextlib.AbstractContextManager[None]:
    """Lets a device replace the outputs of every physical layer inside.

    Values come from the device, gradients from the layers' own `forward`. If given,
    `join(layer, inputs, controls, measured, modelled)` returns the outputs instead.
    `measuring_block` returns `block`. Measured layers are appended to `seen`.
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
    """Returns the `with` block to which functions that measure are confined.

    `None` if there is none, as in the steps of a trainer with its own device.
    """
    return getattr(current().substitute, "block", None)
