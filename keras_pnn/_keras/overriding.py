"""Substitute values for variables, also where nested functions read them.

A `keras.StatelessScope` alone is not enough. A `tf.function` that was traced earlier
has captured the variable itself, and one that is traced inside keeps the values of that
pass. A `tf.custom_gradient` differentiates with respect to the variables that it reads,
not the substituted values, and computes its gradient outside the scope. Gradients flow
through values that are assigned inside, whereas a real assignment has none.
"""

import contextlib
import copy
import functools
import inspect
import threading
import weakref
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.backend.common.stateless_scope import get_stateless_scope
from tensorflow.python.autograph.core import ag_ctx
from tensorflow.python.eager import record
from tensorflow.python.eager.polymorphic_function import autograph_util
from tensorflow.python.ops import custom_gradient, resource_variable_ops

from keras_pnn._keras.layers import own_variables, parts, seed_states


class OverridingScope(keras.StatelessScope):
    """A stateless scope whose values also hold in nested functions, or that raises.

    Inside, a `tf.function` runs as the Python function that it decorates, and a
    `tf.custom_gradient` counts the values that it reads among its variables. A variable
    assigned and read again gets the gradients of both reads, as in Keras' own steps.

    Args:
        model: the model that is called inside, held by a weak reference.
        pairs: the (variable, value) pairs.
        others: pairs whose values are the present ones of the variables.
        rematerialize: whether `tf.recompute_grad` recomputes in the backward pass,
            which has no second derivative.
    """

    def __init__(self, model, pairs, others, rematerialize: bool = True):
        super().__init__([*pairs, *others], collect_losses=True)
        self.rematerialize = rematerialize
        self.reads: list[dict] = []
        self._model = weakref.ref(model)
        self._given = {id(v): self.state_mapping[id(v)] for v, _ in pairs}
        # Without a scope, TensorFlow does not watch non-trainable variables either.
        self._constant = {id(v) for v, _ in others if not v.trainable}
        self._assigned: dict[int, keras.Variable] = {}
        # Under a `tf.distribute` strategy, a variable consists of components.
        self._behind = {
            id(component): variable
            for variable, _ in pairs
            for held in [variable._value]
            for component in [held, *getattr(held, "values", ())]
        }

    def __enter__(self):
        _install()
        return super().__enter__()

    def __exit__(self, *args, **kwargs):
        super().__exit__(*args, **kwargs)
        _uninstall()

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        constant = id(variable) in self._constant
        if value is not None and value.dtype.is_floating and not constant:
            for read in self.reads:
                read[id(variable)] = variable, value
        return value

    def add_update(self, update):
        variable, value = update
        if value.dtype.is_floating or value.dtype.is_complex:
            value = tf.stop_gradient(value)
            given = self._given.get(id(variable))
            if given is not None:
                value = value + (given - tf.stop_gradient(given))
        self._assigned[id(variable)] = variable
        self._constant.discard(id(variable))
        super().add_update((variable, value))

    def updates(self) -> list[tuple]:
        """Returns the (variable, value) pairs that were assigned inside."""
        return [(v, self.state_mapping[i]) for i, v in self._assigned.items()]

    def handing(self) -> list[str]:
        """Returns the names of layers that assigned a state for the next batch.

        Metrics, random states and the statistics of batch normalisation do not count.
        """
        model = self._model()
        others = {id(v) for v in [*model.metrics_variables, *seed_states(model)]}
        layers = [
            layer
            for variable, _ in self.updates()
            if id(variable) not in others
            for layer in self._owners(variable)
            if not isinstance(layer, keras.layers.BatchNormalization)
        ]
        return list(dict.fromkeys(layer.name for layer in layers))

    def again(self) -> "OverridingScope":
        """Returns a scope with the present values, for a gradient that runs later."""
        scope = copy.copy(self)
        scope.state_mapping = dict(self.state_mapping)
        scope.losses, scope.reads, scope._assigned = [], [], {}
        return scope

    def check_unassigned(self, variables, given: str) -> None:
        """Raises a ValueError if a layer assigned one of `variables`.

        `given` names, for the message, the source of their values.
        """
        for variable in variables:
            if id(variable) in self._assigned:
                raise ValueError(
                    f"Layer {self._names(variable)} must keep its variable "
                    f"`{variable.path}` as it is, since {given} gives it a value. "
                    "Received: a `call` that assigns it, as `SpectralNormalization` "
                    "does in training. Leave the variable out, or the layer that "
                    "assigns it"
                )

    def check_assigned(self, variable: tf.Variable) -> None:
        """Raises a ValueError if a layer assigns a `tf.Variable`.

        The scope cannot hold back such an assignment.
        """
        if self._owners(variable):
            raise ValueError(
                f"Layer {self._names(variable)} must keep what it assigns in `call` in "
                "a Keras variable, since a step may take several passes, of which one "
                "counts. Received: an assignment to a `tf.Variable`. Make it by "
                "`self.add_weight(..., trainable=False)`"
            )

    def _owners(self, variable) -> list[keras.layers.Layer]:
        """Returns the layers that hold a variable."""
        layers = parts(self._model())
        return [la for la in layers if any(v is variable for v in _held(la))]

    def _names(self, variable) -> str:
        return " and ".join(f"`{layer.name}`" for layer in self._owners(variable))

    def check(self, variable: tf.Variable) -> None:
        """Raises a ValueError if the `tf.Variable` behind a given value is read."""
        overridden = self._behind.get(id(variable))
        if overridden is not None:
            raise ValueError(
                f"Layer {self._names(overridden)} must read its variable "
                f"`{overridden.path}` as attribute in `call`, so that another value "
                "can stand for it. Received: a read of the `tf.Variable` itself, as by "
                "a concrete function or a `tf.Variable` that the layer keeps. Let "
                f"`call` use `self.{overridden.name}`, without "
                "`get_concrete_function`: Keras compiles it anyway"
            )


def _held(layer: keras.layers.Layer) -> Iterator:
    yield from own_variables(layer)
    # States of RNNs, which Keras does not track.
    yield from keras.tree.flatten(getattr(layer, "states", None))
    yield from (v for v in vars(layer).values() if isinstance(v, tf.Variable))


def _scope() -> OverridingScope | None:
    """Returns the active scope of the current thread."""
    scope = get_stateless_scope()
    return scope if isinstance(scope, OverridingScope) else None


# Replacements of TensorFlow's functions while a scope is open. In other threads, each
# does what the original does.


def _inlined(before):
    def call(function, *args, **kwargs):
        python = function.python_function
        own = getattr(inspect.unwrap(python), "__module__", None) or ""
        wanted = _scope() is not None or (
            getattr(_thread, "inlining", 0)
            and get_global_attribute("current_call_ctx") is not None
        )
        if not wanted or own.partition(".")[0] in ("keras", "tensorflow"):
            return before(function, *args, **kwargs)
        if function._autograph:
            options = function._experimental_autograph_options
            python = autograph_util.py_func_from_autograph(python, options)
            # Surrounding functions, such as Keras' own steps, may disable conversion.
            with ag_ctx.ControlStatusCtx(ag_ctx.Status.UNSPECIFIED):
                return python(*args, **kwargs)
        return python(*args, **kwargs)

    return call


def _overridden(before):
    def decorated(function, args, kwargs):
        scope = _scope()
        if scope is None:
            return before(function, args, kwargs)
        recomputes = function.__qualname__ == _RECOMPUTE
        if not scope.rematerialize and recomputes:
            return inspect.getclosurevars(function).nonlocals["f"](*args, **kwargs)

        @functools.wraps(function)
        def inside(*args, **kwargs):
            earlier = scope.again()
            result, gradient = function(*args, **kwargs)
            signature = inspect.signature(gradient)
            if not _takes_variables(signature):
                # Plain Keras asks it for gradients of trainable variables only.
                for key, (variable, value) in list(scope.reads[-1].items()):
                    watched = record.should_record_backprop([value])
                    if not (variable.trainable or watched):
                        del scope.reads[-1][key]
            # A recomputation draws the same random numbers.
            later = earlier if recomputes else scope.again()

            def in_scope(*upstream, **variables):
                with later.again():
                    return gradient(*upstream, **variables)

            in_scope.__signature__ = signature
            return result, in_scope

        return before(inside, args, kwargs)

    return decorated


_thread = threading.local()


@contextlib.contextmanager
def inlining() -> Iterator[None]:
    """Runs each `tf.function` within a layer's call as the function it decorates.

    Temporary changes of layers then also apply to functions that were traced earlier,
    and do not persist in graphs traced inside.
    """
    _install()
    _thread.inlining = getattr(_thread, "inlining", 0) + 1
    try:
        yield
    finally:
        _thread.inlining -= 1
        _uninstall()


# `tf.recompute_grad` is a custom gradient; its closure holds the wrapped function.
_RECOMPUTE = "recompute_grad.<locals>.inner"


def _takes_variables(signature: inspect.Signature) -> bool:
    kinds = {p.kind for p in signature.parameters.values()}
    return "variables" in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds


def _watching(before):
    class Watcher(before):
        """Counts values that stand for variables among the variables read."""

        def __enter__(self):
            self._scope, self._read = _scope(), {}
            if self._scope is not None:
                self._scope.reads.append(self._read)
            return super().__enter__()

        def __exit__(self, *error):
            if self._scope is not None:
                self._scope.reads.pop()
            return super().__exit__(*error)

        def watched_variables(self):
            graph = tf.compat.v1.get_default_graph()
            values = [value for _, value in self._read.values()]
            if not tf.executing_eagerly() and hasattr(graph, "capture"):
                values = [graph.capture(value) for value in values]
            return (*super().watched_variables(), *values)

    return Watcher


def _checked(before):
    def accessed(variable):
        scope = _scope()
        if scope is not None:
            scope.check(variable)
        before(variable)

    return accessed


def _held_back(before):
    def assign(variable, *args, **kwargs):
        scope = _scope()
        if scope is not None:
            scope.check_assigned(variable)
        return before(variable, *args, **kwargs)

    return assign


_REPLACED = (
    (type(tf.function(lambda: None)), "__call__", _inlined),
    (custom_gradient, "_graph_mode_decorator", _overridden),
    (custom_gradient, "_eager_mode_decorator", _overridden),
    (record, "VariableWatcher", _watching),
    (resource_variable_ops, "variable_accessed", _checked),
    (resource_variable_ops.ResourceVariable, "assign", _held_back),
    (resource_variable_ops.ResourceVariable, "assign_add", _held_back),
    (resource_variable_ops.ResourceVariable, "assign_sub", _held_back),
)
_lock = threading.Lock()
_open = 0
_before: list = []


def _install() -> None:
    global _open
    with _lock:
        if _open == 0:
            for place, name, replacement in _REPLACED:
                original = getattr(place, name)
                _before.append(original)
                setattr(place, name, replacement(original))
        _open += 1


def _uninstall() -> None:
    global _open
    with _lock:
        _open -= 1
        if _open == 0:
            for (place, name, _), original in zip(_REPLACED, _before, strict=True):
                setattr(place, name, original)
            _before.clear()
