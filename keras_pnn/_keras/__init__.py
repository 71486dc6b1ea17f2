"""Access private attributes of Keras and TensorFlow, and replace some functions.

No other module of the package uses private attributes of Keras or TensorFlow, or
replaces their functions.
"""

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf
from keras.src.backend.common.global_state import get_global_attribute

from keras_pnn._keras.layers import flat_layers as flat_layers
from keras_pnn._keras.layers import global_seed_state as global_seed_state
from keras_pnn._keras.layers import is_built as is_built
from keras_pnn._keras.layers import outputs_of as outputs_of
from keras_pnn._keras.layers import own_trainable as own_trainable
from keras_pnn._keras.layers import own_variables as own_variables
from keras_pnn._keras.layers import parts
from keras_pnn._keras.layers import recurrent_states as recurrent_states
from keras_pnn._keras.layers import seed_states as seed_states
from keras_pnn._keras.lending import lent
from keras_pnn._keras.overriding import OverridingScope as OverridingScope
from keras_pnn._keras.overriding import inlining as inlining
from keras_pnn._keras.second_derivatives import (
    twice_differentiable as twice_differentiable,
)
from keras_pnn._keras.steps import Steps
from keras_pnn._keras.steps import in_fit as in_fit
from keras_pnn._keras.steps import make_test_functions as make_test_functions
from keras_pnn._keras.steps import retrace as retrace
from keras_pnn._keras.steps import start_at as start_at
from keras_pnn._keras.steps import wrap_step as wrap_step

_KINDS = ("train", "test", "predict")

# Losses and metrics.


def of_keras(part) -> bool:
    """Tells whether a layer, loss object or function comes with Keras."""
    kind = part if hasattr(part, "__qualname__") else type(part)
    return kind.__module__.startswith("keras.")


def compiled_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Returns the loss trackers and metrics that `compile` made."""
    found = [model._loss_tracker, model._compile_metrics, *loss_metrics(model)]
    return [m for m in found if m is not None]


def loss_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Returns the loss trackers of individual outputs."""
    return list(getattr(model._compile_loss, "metrics", ()))


def loss_tracker(model: keras.Model) -> keras.metrics.Metric:
    """Returns the metric that averages the loss over an epoch."""
    return model._loss_tracker


def compute_loss(
    model: keras.Model, x, y, y_pred, sample_weight, training: bool
) -> tf.Tensor:
    """Returns the loss as `fit` and `evaluate` compute it.

    A model's own `compute_loss` that does not take `training` is called without it.
    """
    return model._compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
    )


def reported(loss: tf.Tensor) -> tf.Tensor:
    """Scales one replica's share of a loss to the value that Keras reports.

    The number of replicas is that of the current `tf.distribute` strategy.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return loss * replicas if replicas > 1 else loss


def count_losses(model: keras.Model, y, y_pred, sample_weight) -> None:
    """Updates the loss trackers of individual outputs."""
    if loss_metrics(model):
        model._compile_loss(y, y_pred, sample_weight)


def losses(model: keras.Model) -> list[keras.losses.Loss]:
    """Returns the losses given to `compile`; empty until a loss has been computed."""
    found = getattr(model._compile_loss, "_flat_losses", None)
    return [each.loss for each in found or ()]


def sample_losses(model: keras.Model, y, y_pred, sample_weight) -> tf.Tensor:
    """Returns the loss of each sample, summed over all outputs."""

    def by_sample(loss):
        def call(*args):
            with lent(loss, {"reduction": "none"}):
                values = loss(*args)
            # Averaged before the sum, since outputs may differ in rank.
            return tf.reduce_mean(values, list(range(1, len(values.shape))))

        return call

    compiled = model._compile_loss
    each = [one._replace(loss=by_sample(one.loss)) for one in compiled._flat_losses]
    with lent(compiled, {"_flat_losses": each}):
        return compiled(y, y_pred, sample_weight)


def from_probabilities(model: keras.Model) -> bool:
    """Tells whether the loss takes probabilities, by its argument `from_logits`."""
    for loss in losses(model):
        parameters = inspect.signature(getattr(loss, "fn", loss.call)).parameters
        if "from_logits" in parameters:
            default = {"from_logits": parameters["from_logits"].default}
            return not {**default, **getattr(loss, "_fn_kwargs", {})}["from_logits"]
    return False


def build_metrics(model: keras.Model, batch) -> None:
    """Makes the variables of losses and metrics, as the first batch of `fit` does."""
    model._symbolic_build(data_batch=batch)


def has_metrics(model: keras.Model) -> bool:
    """Tells whether the losses and metrics have their variables, and thus values.

    With several replicas, `fit` makes the variables before the first step.
    """
    made = model._compile_loss, model._compile_metrics
    return all(part is None or part.built for part in made)


def compile_state(model: keras.Model) -> tuple:
    """Returns the objects that `compile` makes anew at each call."""
    return model._loss_tracker, model._compile_loss, model._compile_metrics


_KEPT = "_keras_pnn_kept"


class _Kept:
    """Holds the contents of `kept`; not a container, or Keras would save them."""

    def __init__(self, state: tuple):
        self.state, self.contents = state, {}


def kept(model: keras.Model) -> dict:
    """Returns a dictionary attached to a model, for example for its graphs.

    It is freed with the model, even if its contents refer to the model. `compile` and
    any replacement of weights, as by `quantize`, empty it. It is neither saved nor
    copied with the model.
    """
    # Bypasses Keras' tracking of attributes.
    attributes, state = vars(model), (*compile_state(model), *model.weights)
    found = attributes.get(_KEPT)
    # By identity: some of them compare by value.
    if found is None or list(map(id, found.state)) != list(map(id, state)):
        found = attributes[_KEPT] = _Kept(state)
    return found.contents


def compile_arguments(model: keras.Model) -> dict:
    """Returns the arguments that `compile` was called with."""
    return model._compile_config.config


def named_metrics(model: keras.Model) -> dict[str, keras.metrics.Metric]:
    """Returns name in `evaluate`'s results → metric given to `compile`.

    With several outputs, a name joins those of output and metric. Empty until the
    metrics are built.
    """
    compiled = model._compile_metrics
    if compiled is None or not compiled.built:
        return {}
    names, metrics = list(compiled.result()), compiled.metrics
    if len(names) != len(metrics):
        # A metric with several results: only plain names are known.
        names = [m.name for m in metrics]
    return dict(zip(names, metrics, strict=True))


def direction(metric: keras.metrics.Metric | None) -> str | None:
    """Returns whether a metric improves `"up"` or `"down"`; `None` if unknown."""
    return getattr(metric, "_direction", None)


def lent_compile(
    model: keras.Model, trainer: keras.Model
) -> contextlib.AbstractContextManager[None]:
    """Lends a model the compiled state of another until the block ends.

    The model's own compiled state, if any, is restored afterwards.
    """
    # The attributes set by `compile` that a model's `compute_loss` may use.
    names = ("_compile_loss", "loss", "optimizer", "compiled")
    return lent(model, {name: getattr(trainer, name) for name in names})


def replaced_call(
    layer: keras.layers.Layer, call: Callable
) -> contextlib.AbstractContextManager[None]:
    """Replaces the `call` of a layer until the block ends."""
    return lent(layer, {"call": call})


# Attributes that Keras sets on tensors; tensors derived from them lack these.
_ON_TENSORS = MASK, LOGITS = ("_keras_mask", "_keras_logits")


def tensor_attributes(tensor) -> dict:
    """Returns the attributes that Keras sets on a tensor: its mask and its logits."""
    found = {name: getattr(tensor, name, None) for name in _ON_TENSORS}
    return {name: value for name, value in found.items() if value is not None}


def set_tensor_attributes(tensor, attributes: dict) -> None:
    """Sets the attributes from `tensor_attributes` on another tensor."""
    for name, value in attributes.items():
        setattr(tensor, name, value)


# Graphs of nodes.


def functional(model: keras.layers.Layer):
    """Returns the graph of nodes of a model or of the one it wraps; `None` without one.

    A wrapper is a model whose attribute `model` is the model that it calls.
    """
    while True:
        if hasattr(model, "_functional"):
            model = model._functional
        if getattr(model, "_nodes_by_depth", None) is not None:
            # A subclass with a `call` of its own may do anything with its layers.
            own = type(model).call.__module__.startswith("keras.")
            return model if own else None
        model = getattr(model, "model", None)
        if not isinstance(model, keras.Model):
            return None


def model_in_training() -> keras.Model | None:
    """Returns the model being called with `training=True`; `None` without one."""
    call = get_global_attribute("current_call_ctx")
    model = getattr(call, "entry_layer", None)
    training = getattr(call, "training", False)
    return model if training and isinstance(model, keras.Model) else None


def nodes(graph) -> list:
    """Returns the nodes of a graph in the order in which they run."""
    depths = sorted(graph._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in graph._nodes_by_depth[depth]]


def calls(layer: keras.layers.Layer) -> list:
    """Returns the nodes made by calls of a layer on symbolic inputs."""
    return list(layer._inbound_nodes)


def cannot_vectorize(error: Exception) -> bool:
    """Tells whether `tf.vectorized_map` failed for lack of a converter."""
    return "pfor" in str(error) or "onverter" in str(error)


# Models and the functions that they compile.

# Model → the models around it.
_wrappers: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def add_wrapper(wrapper: keras.Model, model: keras.Model) -> None:
    """Registers a model whose compiled functions trace the layers of another model."""
    _wrappers.setdefault(model, weakref.WeakSet()).add(wrapper)


def models_around(model: keras.layers.Layer) -> list[keras.Model]:
    """Returns the models in a model or layer, including itself, and their wrappers."""
    inside = [m for m in parts(model) if isinstance(m, keras.Model)]
    return inside + [w for m in inside for w in _wrappers.get(m, ()) if w not in inside]


@contextlib.contextmanager
def set_aside(model: keras.layers.Layer) -> Iterator[None]:
    """Makes a model, its inner models and its wrappers retrace their functions.

    When the block ends, the earlier functions are restored.
    """
    known = models_around(model)
    before = [
        (each, kind, getattr(each, f"{kind}_function"), _compiled_as(each))
        for each in known
        for kind in _KINDS
    ]
    for each, kind, function, _ in before:
        if isinstance(function, Steps):
            function.detach()
        setattr(each, f"{kind}_function", None)
    try:
        yield
    finally:
        for each, kind, function, compiled in before:
            # A run that failed inside may have left its wrappers.
            vars(each).pop(f"make_{kind}_function", None)
            # Functions of a model that was recompiled inside are out of date.
            same = _compiled_as(each) is compiled
            setattr(each, f"{kind}_function", function if same else None)
            if same and isinstance(function, Steps):
                function.attach()
        for new in models_around(model):
            # A wrapper made inside the block has no earlier functions.
            if new not in known:
                for kind in _KINDS:
                    setattr(new, f"{kind}_function", None)


def _compiled_as(model: keras.Model):
    return getattr(model, "_compile_config", None)
