"""Train each layer by its own loss: physical local learning."""

import keras
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.devices.draws import whole_numbers
from keras_pnn.training.gradients.base import ModelGradient
from keras_pnn.training.gradients.differences import seed_for
from keras_pnn.training.local_classifier import LocalClassifier


@keras.saving.register_keras_serializable(package="keras_pnn")
class PhyLL(ModelGradient):
    """Trains each block of a `LocalClassifier` alone: physical local learning (PhyLL).

    In each step the batch is sent twice: with its labels, which gives each block the
    goodness g⁺, and with wrong ones, drawn for each sample, which gives g⁻. The loss is

        L = mean over samples of Σ_k log(1 + exp(−θ (g_k⁺ − g_k⁻)))

    and no derivative leaves its block. Within a block, the derivative of the physical
    layer is its model's, at the measured states. With the physical layers frozen and
    digital layers behind them, as in the authors' experiments, no model of the hardware
    is used at all.

    The loss given to `compile` is used only in `evaluate` and validation, where each
    input is sent with all labels. In training, `loss` is L, and metrics see only the
    two labels that were sent: an accuracy is that of choosing between the two.

    A training step needs 2 settings of each layer, and 4 with an ascent.

    Args:
        theta: θ, a number above 0. The authors use 4 and 5.

    Raises:
        ValueError: If `theta` is not above 0; in training, if the model is not a
            `LocalClassifier`, targets are not one integer label per sample, or the
            ascent needs outputs for all labels (`SAF`, `MESA`, and `ESAM` with
            gamma < 1).
        tf.errors.InvalidArgumentError: In training without XLA, if a label is not
            from 0 to `classes` − 1.

    Example:

    ```python
    blocks = [pnn.layers.MRRBank(24) for _ in range(2)]
    local = pnn.LocalClassifier(blocks, classes=10)
    sat = pnn.SATModel(local, ascent=None, gradient=pnn.PhyLL(theta=4.0))
    ```

    Reference:
        - Momeni et al., Science 382:1297 (2023), arXiv:2304.11042, and the code that
          goes with it
    """

    def __init__(self, theta: float = 4.0):
        self.theta = _checks.real("theta", theta, above=0)

    def modelled(self):
        return PhyLL(self.theta)

    def forward(self, trainer, batch, overrides, asked, join=None):
        model, (x, y, weight) = trainer.model, batch
        self._check(trainer, y)
        right = tf.reshape(tf.cast(y, "int32"), [-1])
        tf.debugging.Assert(
            tf.reduce_all((right >= 0) & (right < model.classes)),
            [f"Labels must be from 0 to {model.classes - 1}. Received:", right],
        )
        wrong = _other_labels(trainer, right, model.classes)
        scope = overrides.scope(trainer)
        with scope, self.measuring(trainer, asked, join):
            both = [
                model.goodness(x, labels, cut=True, training=True)
                for labels in (right, wrong)
            ]
            local = [
                tf.nn.softplus(-self.theta * tf.cast(a - b, keras.config.floatx()))
                for a, b in zip(*both, strict=True)
            ]
            each = tf.add_n(local)
            if weight is not None:
                each *= tf.reshape(tf.cast(weight, each.dtype), [-1])
            losses = [tf.reduce_mean(each), *trainer.losses]
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            loss = tf.add_n([tf.cast(v, each.dtype) for v in losses]) / replicas
            y_pred = _outputs(model, (right, wrong), map(tf.add_n, both))
            return loss, y_pred, scope

    def _check(self, trainer, y) -> None:
        if not isinstance(trainer.model, LocalClassifier):
            received = f"a {type(trainer.model).__name__}"
            raise _checks.error("model", "a pnn.LocalClassifier for PhyLL", received)
        shape = getattr(y, "shape", None)
        if shape is None or len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
            received = f"targets of shape {shape}"
            raise _checks.error("y", "one integer label per sample", received)
        ascent = getattr(trainer, "ascent", None)
        if getattr(ascent, "by_outputs", False):
            raise ValueError(
                f"{type(ascent).__name__} goes by outputs for all labels, of which "
                f"PhyLL knows two in training. Received: ascent={ascent!r}"
            )


def _other_labels(trainer, labels, classes: int) -> tf.Tensor:
    """Draws a wrong label for each sample, a pure function of seed and step."""
    iteration = tf.cast(tf.convert_to_tensor(trainer.optimizer.iterations), "int32")
    seed = seed_for([trainer.seed, iteration], ("phyll",))
    bits = whole_numbers(tf.shape(labels), seed)
    draw = tf.cast(tf.cast(bits, "int64") % (classes - 1), labels.dtype)
    return (labels + 1 + draw) % classes


def _outputs(model, labels, sums) -> tf.Tensor:
    """The outputs for the labels that were sent; the lowest possible for others."""
    least, found = -len(model.blocks), 0
    for label, value in zip(labels, sums, strict=True):
        chosen = tf.one_hot(label, model.classes, dtype=value.dtype)
        found += chosen * (value - least)[:, None]
    return found + least
