"""Send the error to each layer by a fixed random matrix."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _keras
from keras_pnn.layers.context import valued
from keras_pnn.layers.lookup import physical_layers
from keras_pnn.training.gradients.base import (
    Evaluation,
    ModelGradient,
    sample_size,
    times_samples,
    wide,
)


@keras.saving.register_keras_serializable(package="keras_pnn")
class FeedbackAlignment(ModelGradient):
    """Sends the error at the outputs straight to each layer: direct feedback alignment.

    The network is cut in front of each measured layer. The gradient that
    backpropagation would send through a cut is replaced by B e, with e = ∂L/∂outputs of
    the sample, and B a fixed matrix of N(0, 1/√outputs) for each cut. Between two cuts,
    derivatives are local: the model's at the measured states. Behind the last cut this
    is physics-aware training. If a cross-entropy uses the logits of a softmax or
    sigmoid, these count as the outputs.

    The gradient is biased: the layers in front adapt to B.

    A training step needs 1 setting of each layer, and 2 with an ascent.

    Args:
        seed: seed of the matrices, an integer ≥ 0.

    Raises:
        ValueError: If `seed` is not an integer ≥ 0, or there is no device; in training,
            if the device measures fewer than two layers.

    Example:

    ```python
    online = pnn.SATModel(model, ascent=None, device=bench,
                          gradient=pnn.FeedbackAlignment(seed=0))
    ```

    Reference:
        - Filipovich et al., Optica 9:1323 (2022)
        - Nøkland, NeurIPS 2016, arXiv:1609.01596
    """

    needs_device = True

    def __init__(self, seed: int = 0):
        self.seed = _checks.integer("seed", seed, low=0)

    def feedback(self, place: int, outputs: int, inputs: int) -> np.ndarray:
        """Returns B for the layer with index `place`, of shape (outputs, inputs)."""
        draw = np.random.default_rng([self.seed, place]).normal(size=(outputs, inputs))
        return draw / math.sqrt(outputs)

    def __call__(self, trainer, batch, overrides, wrt, index=0) -> Evaluation:
        watched, overrides = overrides.watch(wrt)
        places = {id(la): i for i, la in enumerate(physical_layers(trainer.model))}
        asked: list = []
        error: list = []
        name = type(self).__name__

        def join(layer, inputs, controls, measured, modelled):
            imperfections = layer.current_values()[1]
            local = layer.forward(tf.stop_gradient(inputs), controls, imperfections)

            @tf.custom_gradient
            def cut(inputs, outputs):
                def gradient(upstream):
                    if not error:
                        # The pass that finds the error needs no gradient at the inputs.
                        return tf.zeros_like(inputs), upstream
                    (found,) = error
                    size = sample_size(inputs.shape, name)
                    matrix = self.feedback(places[id(layer)], found.shape[1], size)
                    sent = tf.matmul(found, tf.constant(matrix, found.dtype))
                    sent = tf.reshape(sent, tf.shape(inputs))
                    return tf.cast(sent, inputs.dtype), upstream

                return tf.identity(outputs), gradient

            whole = valued(measured, local)
            outputs = cut(inputs, whole)
            # Keras does not know mask and logits of a new tensor.
            attributes = _keras.tensor_attributes(whole)
            if _keras.LOGITS in attributes:
                attributes[_keras.LOGITS] = cut(inputs, attributes[_keras.LOGITS])
            _keras.set_tensor_attributes(outputs, attributes)
            return outputs

        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(watched)
            loss, y_pred, scope = self.forward(trainer, batch, overrides, asked, join)
            scaled = trainer.optimizer.scale_loss(loss)
        if len({id(layer) for layer in asked}) < 2:
            raise ValueError(
                "FeedbackAlignment needs two measured layers or more; with one, use "
                "pnn.PATModel. Received: a device that measures layer "
                f"'{asked[0].name}' alone"
            )
        outputs = [
            _keras.tensor_attributes(y).get(_keras.LOGITS, y)
            for y in keras.tree.flatten(y_pred)
        ]
        errors = tape.gradient(
            scaled, outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        flat = [tf.reshape(wide(e), [-1, sample_size(e.shape, name)]) for e in errors]
        error.append(tf.concat([tf.cast(e, flat[0].dtype) for e in flat], axis=1))
        gradients = tape.gradient(scaled, watched)
        del tape
        count = times_samples(len(asked), batch)
        return Evaluation(loss, wrt, gradients, y_pred, scope, count)
