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
        x, y, sample_weight = batch
        values = {id(v): t for v, t in overrides}
        watched = [tf.identity(values.get(id(v), tf.convert_to_tensor(v))) for v in wrt]
        mapping = [*overrides, *zip(wrt, watched, strict=True)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            scope = overriding(trainer, mapping)
            with scope, self.context(trainer):
                y_pred = trainer(x, training=True)
                loss = trainer._compute_loss(
                    x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
                )
            scaled = trainer.optimizer.scale_loss(loss)
        return Evaluation(loss, tape.gradient(scaled, watched), y_pred, scope)


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
