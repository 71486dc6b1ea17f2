"""Trace a model's loss and its Hessian-vector product, once per model."""

import functools
import inspect
import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.layers.context import Overrides

# Model → what it was compiled with, and its graphs by what they differentiate. Nothing
# here refers to a model but weakly, so that graphs are freed with their model.
_kept: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def loss_graphs(model: keras.Model, variables: list, batch_norm: str) -> "LossGraphs":
    """Returns the graphs of a model's loss, which are kept as long as the model.

    `HessianOperator` says what makes a new graph.

    Args:
        model: a compiled, built model.
        variables: those that the loss is a function of.
        batch_norm: `"frozen"` or `"batch"`, as in `hessian_eigenvalues`.
    """
    compiled, graphs = _kept.get(model, ((), {}))
    state = _keras.compile_state(model)
    if not compiled or any(
        ref() is not now for ref, now in zip(compiled, state, strict=True)
    ):
        # A loss may refer to its model: held weakly, too.
        graphs = {}
        _kept[model] = tuple(map(_weakly, state)), graphs
    # The graphs hold their variables, so that no other variable takes an id.
    key = batch_norm, *map(id, variables)
    if key not in graphs:
        graphs[key] = LossGraphs(model, variables, batch_norm)
    return graphs[key]


def _weakly(value):
    return (lambda: None) if value is None else weakref.ref(value)


class LossGraphs:
    """The loss over one batch and its Hessian-vector product, as graphs.

    Both are functions of (vector, x, y, sample_weight), with a vector in the order of
    the variables, that return a pair: the loss and Hv for `product`; for `moved_loss`
    the loss where the variables are moved by the vector, and 0.

    Args:
        model, variables, batch_norm: as in `loss_graphs`.
    """

    def __init__(self, model: keras.Model, variables: list, batch_norm: str):
        self._model = weakref.ref(model)
        self._variables = list(variables)
        self._sizes = [int(np.prod(v.shape)) for v in variables]
        self._training = batch_norm == "batch"
        self.product = self._graph(LossGraphs._product)
        self.moved_loss = self._graph(LossGraphs._moved_loss)

    def _graph(self, method):
        # TensorFlow warns of retracing by what it counts for each Python function. Of
        # a method it would count the traces of all models together.
        function = functools.partial(method, self)
        return tf.function(function, autograph=False, reduce_retracing=True)

    def _parts(self, vector):
        pairs = zip(tf.split(vector, self._sizes), self._variables, strict=True)
        return [tf.cast(tf.reshape(part, v.shape), v.dtype) for part, v in pairs]

    def _loss(self, overrides, x, y, sample_weight):
        model = self._model()
        scope = overrides.scope(model, rematerialize=False)
        with scope, _keras.twice_differentiable():
            outputs = model(x, **_training_argument(model.call, self._training))
            loss = model.compute_loss(
                x=x,
                y=y,
                y_pred=outputs,
                sample_weight=sample_weight,
                **_training_argument(model.compute_loss, self._training),
            )
        # Keras divides a loss by the replicas of the strategy it is made under.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return loss * replicas if replicas > 1 else loss

    def _moved_loss(self, vector, x, y, sample_weight):
        pairs = zip(self._variables, self._parts(vector), strict=True)
        overrides = Overrides((v, tf.convert_to_tensor(v) + part) for v, part in pairs)
        return self._loss(overrides, x, y, sample_weight), tf.zeros(())

    def _product(self, vector, x, y, sample_weight):
        values, overrides = Overrides().watch(self._variables)
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(values)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(values)
                loss = self._loss(overrides, x, y, sample_weight)
            gradients = inner.gradient(loss, values)
            pairs = [
                (tf.convert_to_tensor(gradient), part)
                for gradient, part in zip(gradients, self._parts(vector), strict=True)
                if gradient is not None
            ]
        if not pairs:
            return loss, tf.zeros_like(vector)
        gradients, parts = zip(*pairs, strict=True)
        products = outer.gradient(
            gradients,
            values,
            output_gradients=parts,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        flat = [tf.cast(tf.reshape(p, [-1]), vector.dtype) for p in products]
        return loss, tf.concat(flat, 0)


def _training_argument(function, training):
    if "training" in inspect.signature(function).parameters:
        return {"training": training}
    return {}
