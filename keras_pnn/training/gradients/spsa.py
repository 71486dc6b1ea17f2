"""Estimate gradients from losses alone, for devices without a model."""

import zlib

import keras
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.training.gradients.base import Evaluation, GradientSource


@keras.saving.register_keras_serializable(package="keras_pnn")
class SPSA(GradientSource):
    """Estimates gradients by simultaneous perturbation of all variables (SPSA).

    g = mean over directions of (L(v + c Δ) − L(v − c Δ)) / (2 c) · Δ, with Δ a random
    sign for each element. No derivative of any model is taken. The variance grows with
    the number of elements: use it for small systems, or to fine-tune a few controls
    (freeze the rest).

    A training step takes 1 + 2 `directions` passes, and as many again for an ascent.
    All passes see the same batch, dropout masks and noise of the model.

    Args:
        step: c, in the unit of the variables; a number above 0, or a Keras learning
            rate schedule of the step.
        directions: how many Δ are averaged.

    Raises:
        ValueError: If `step` is not above 0, or `directions` is not an integer ≥ 1.

    Example:

    ```python
    online = pnn.SATModel(model, ascent=None, device=bench,
                          gradient=pnn.SPSA(step=0.01, directions=4))
    ```

    Reference:
        - Spall, IEEE Trans. Automat. Contr. 37:332 (1992)
    """

    def __init__(
        self,
        step: float | keras.optimizers.schedules.LearningRateSchedule = 0.01,
        directions: int = 1,
    ):
        if not isinstance(step, keras.optimizers.schedules.LearningRateSchedule):
            step = _checks.real("step", step, above=0)
        self.step = step
        self.directions = _checks.integer("directions", directions, low=1)

    def get_config(self) -> dict:
        step = self.step
        if not isinstance(step, float):
            step = keras.saving.serialize_keras_object(step)
        return {"step": step, "directions": self.directions}

    @classmethod
    def from_config(cls, config):
        step = keras.saving.deserialize_keras_object(config["step"])
        return cls(step, config["directions"])

    def __call__(self, trainer, batch, overrides, wrt, index=0) -> Evaluation:
        values, _ = overrides.watch(wrt)
        loss, y_pred, scope = self.forward(trainer, batch, overrides)
        iteration = tf.convert_to_tensor(trainer.optimizer.iterations)
        step = self.step(iteration) if callable(self.step) else self.step
        gradients = [tf.zeros_like(v) for v in values]
        # One measurement at a time, in one order.
        last = loss
        for direction in range(self.directions):
            key = [trainer.seed, tf.cast(iteration, "int32")]
            signs = [
                random_signs(v, key, (index, direction, place))
                for place, v in enumerate(values)
            ]
            ends = []
            for side in (1.0, -1.0):
                moved = [
                    (variable, v + tf.cast(side * step, v.dtype) * s)
                    for variable, v, s in zip(wrt, values, signs, strict=True)
                ]
                with tf.control_dependencies([last]):
                    last = self.loss(trainer, batch, overrides.merged(moved))
                ends.append(last)
            slope = (ends[0] - ends[1]) / tf.cast(2 * step, loss.dtype)
            scaled = trainer.optimizer.scale_loss(slope)
            gradients = [
                g + tf.cast(scaled / self.directions, g.dtype) * s
                for g, s in zip(gradients, signs, strict=True)
            ]
        return Evaluation(loss, wrt, gradients, y_pred, scope, overrides)


def random_signs(like: tf.Tensor, seed: list, purpose: tuple) -> tf.Tensor:
    """Returns ±1 for each element, a pure function of seed and purpose."""
    code = zlib.crc32(repr(("spsa", *purpose)).encode()) & 0x7FFFFFFF
    seed = tf.random.experimental.stateless_fold_in(tf.stack(seed), code, alg="philox")
    # From whole numbers: XLA draws other floats than TensorFlow does.
    bits = tf.random.stateless_uniform(
        tf.shape(like), seed, minval=None, maxval=None, dtype="uint32", alg="philox"
    )
    return 1 - 2 * tf.cast(tf.bitwise.right_shift(bits, 31), like.dtype)
