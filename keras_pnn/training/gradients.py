"""Where a loss and its gradient come from: the model, or a device and the model."""

import contextlib
import dataclasses

import keras
import tensorflow as tf

from keras_pnn.layers.physical import measured_by, overriding


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One pass over a batch.

    Args:
        loss: the loss as `compute_loss` returns it.
        gradients: of the loss, times the optimizer's loss scale; `None` where the
            loss does not depend on a variable.
        y_pred: the model's outputs.
        scope: holds what the pass would have assigned.
    """

    loss: tf.Tensor
    gradients: list
    y_pred: object
    scope: keras.StatelessScope


class ModelGradient:
    """Loss and gradient of the model itself, by automatic differentiation.

    The pass assigns nothing: variables are read through a `StatelessScope`, so that
    two passes over one batch see the same state and the same random numbers.
    """

    def context(self, trainer):
        """The context in which the model is called."""
        return contextlib.nullcontext()

    def __call__(self, trainer, batch, overrides, wrt) -> Evaluation:
        """Evaluates a batch.

        Args:
            trainer: a compiled model.
            batch: (x, y, sample_weight).
            overrides: (variable, tensor) pairs: values other than the stored ones.
            wrt: variables to differentiate with respect to.
        """
        values = {id(v): t for v, t in overrides}
        watched = [tf.identity(values.get(id(v), tf.convert_to_tensor(v))) for v in wrt]
        mapping = [*overrides, *zip(wrt, watched, strict=True)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            loss, y_pred, scope = self._forward(trainer, batch, mapping)
            scaled = trainer.optimizer.scale_loss(loss)
        return Evaluation(loss, tape.gradient(scaled, watched), y_pred, scope)

    def loss(self, trainer, batch, overrides) -> tf.Tensor:
        """Evaluates a batch without derivatives; arguments as above."""
        return self._forward(trainer, batch, overrides)[0]

    def _forward(self, trainer, batch, overrides):
        x, y, sample_weight = batch
        scope = overriding(trainer, overrides)
        with scope, self.context(trainer):
            y_pred = trainer(x, training=True)
            loss = trainer._compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
            )
        return loss, y_pred, scope


class DeviceGradient(ModelGradient):
    """Outputs of a device, layer by layer; derivatives of the model.

    Args:
        device: an object with `measure(layer, inputs, controls)`.
    """

    def __init__(self, device):
        if not callable(getattr(device, "measure", None)):
            raise ValueError(
                "`device` must have a method measure(layer, inputs, controls). "
                f"Received: {device!r}"
            )
        self.device = device

    @contextlib.contextmanager
    def context(self, trainer):
        if hasattr(self.device, "attach"):
            self.device.attach(trainer.model)
        with measured_by(self.device):
            yield


def summed(tensors: list) -> list:
    """Returns dense tensors, added over replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1 or not tensors:
        return tensors
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def dense(gradient, variable: keras.Variable) -> tf.Tensor:
    """Returns a gradient as a tensor, zero where there is none."""
    if gradient is None:
        return tf.zeros(variable.shape, variable.dtype)
    return tf.convert_to_tensor(gradient)


def mixed(gradients: list, others: list, share: float) -> list:
    """Returns (1 − share) gradients + share others; `None` stays `None`."""
    if not share:
        return gradients
    return [
        None
        if g is None
        else (1 - share) * tf.convert_to_tensor(g) + share * tf.convert_to_tensor(o)
        for g, o in zip(gradients, others, strict=True)
    ]


def replaced(pairs: list, others: list) -> list:
    """Returns (variable, value) pairs, with those of `others` in their place."""
    given = {id(v) for v, _ in others}
    return [*(p for p in pairs if id(p[0]) not in given), *others]
