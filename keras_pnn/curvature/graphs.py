"""Trace a model's loss and its Hessian-vector product, once per model."""

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.devices.mapped import graph
from keras_pnn.layers.context import Overrides


def loss_graphs(model: keras.Model, variables: list, batch_norm: str) -> "LossGraphs":
    """Returns the graphs of a model's loss as a function of some variables.

    They are kept with the model; see `HessianOperator` for when new ones are traced.
    """
    kept = _keras.kept(model)
    # The graphs keep their variables alive, so that their ids stay unique.
    key = "loss", batch_norm, *map(id, variables)
    if key not in kept:
        kept[key] = LossGraphs(model, variables, batch_norm)
    return kept[key]


class LossGraphs:
    """The loss over one batch and its Hessian-vector product, as graphs.

    Vectors are in the order of the variables, and move them:

    - `moved_loss(vector, x, y, sample_weight)` returns the loss where the variables
      are moved by the vector, in a tuple.
    - `product(vector, point, x, y, sample_weight)` returns, where they are moved by
      `point`, the loss, Hv, the gradient g, and the derivative of vᵀg with respect to
      the factor, 1, with which the loss enters backpropagation; it equals vᵀg.
    """

    def __init__(self, model: keras.Model, variables: list, batch_norm: str):
        self.model = model
        self.variables = list(variables)
        self.sizes = [int(np.prod(v.shape)) for v in variables]
        self.training = batch_norm == "batch"
        self.checked = False
        # Names of layers whose state passes from batch to batch, once traced.
        self.handing: list[str] = []
        self.product = graph(self._product, reduce_retracing=True)
        self.moved_loss = graph(self._moved_loss, reduce_retracing=True)

    def _parts(self, vector):
        pairs = zip(tf.split(vector, self.sizes), self.variables, strict=True)
        return [tf.cast(tf.reshape(part, v.shape), v.dtype) for part, v in pairs]

    def _loss(self, overrides, x, y, sample_weight):
        model, training = self.model, self.training
        scope = overrides.scope(model, rematerialize=False)
        with scope, _keras.twice_differentiable():
            outputs = model(x, training=training)
            loss = _keras.compute_loss(model, x, y, outputs, sample_weight, training)
        scope.check_unassigned(self.variables, "the point of the derivative")
        self.handing = scope.handing()
        return _keras.reported(loss)

    def _moved_loss(self, vector, x, y, sample_weight):
        return (self._loss(self._moved(vector), x, y, sample_weight),)

    def _moved(self, vector):
        pairs = zip(self.variables, self._parts(vector), strict=True)
        return Overrides((v, tf.convert_to_tensor(v) + part) for v, part in pairs)

    def _product(self, vector, point, x, y, sample_weight):
        values, overrides = self._moved(point).watch(self.variables)
        zero = tf.UnconnectedGradients.ZERO
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(values)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(values)
                loss = self._loss(overrides, x, y, sample_weight)
            factor = tf.ones_like(loss)
            outer.watch(factor)
            gradients = inner.gradient(loss, values, factor, zero)
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        starts = [*values, factor]
        *products, linear = outer.gradient(gradients, starts, self._parts(vector), zero)
        return loss, _joined(products), _joined(gradients), linear


def _joined(parts):
    return tf.concat([tf.cast(tf.reshape(p, [-1]), tf.float64) for p in parts], 0)
