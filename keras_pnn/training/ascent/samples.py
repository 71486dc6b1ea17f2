"""Split the loss into the losses of single samples."""

import keras
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.training.gradients.base import Batch


def losses_of(trainer, batch: Batch, y_pred) -> tf.Tensor:
    """Returns the weighted loss of each sample, without the losses of layers."""
    _, y, sample_weight = batch
    with keras.StatelessScope():
        return _keras.sample_losses(trainer, y, y_pred, sample_weight)


def check_loss(trainer, batch: Batch, y_pred, what: str) -> None:
    """Checks that the loss is a mean over samples, after it has been computed once."""
    received = ""
    model, losses = trainer.model, _keras.losses(trainer)
    if type(model).compute_loss is not keras.Model.compute_loss:
        received = f"`compute_loss` of {type(model).__name__}"
    elif not losses:
        received = "loss=None"
    elif sums := [v for v in losses if v.reduction in ("sum", "none", None)]:
        received = f"{sums[0].name} with reduction={sums[0].reduction!r}"
    elif not _by_sample(trainer, batch, y_pred):
        received = f"{losses[0].name}, which gives one number for a batch"
    if received:
        raise ValueError(
            f"{what} needs a loss that is a mean over samples, such as those of Keras. "
            f"Received: {received}"
        )


def _by_sample(trainer, batch: Batch, y_pred) -> bool:
    values = losses_of(trainer, batch, y_pred)
    expected = keras.tree.flatten(y_pred)[0].shape[0]
    return bool(values.shape.rank) and values.shape[0] in (None, expected)
