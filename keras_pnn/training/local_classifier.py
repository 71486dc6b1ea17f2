"""Classify by how well each label fits an input, block by block."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_pnn import _checks
from keras_pnn.layers.lookup import physical_layers


@keras.saving.register_keras_serializable(package="keras_pnn")
class LocalClassifier(keras.Model):
    """Classifies by the label that fits an input best: a network for `pnn.PhyLL`.

    The features, followed by `scale` times the one-hot vector of a label, pass through
    blocks in series, y_k = B_k(y_{k−1}). Each block has a goodness,

        g_k = cos(y_k, p_k), p_k a fixed vector of N(0, 1)

    (with |y_k| for complex outputs), and the output for a label is the sum of the
    goodness of all blocks, at most the number of blocks in magnitude. No last layer is
    needed. An input is classified by sending it once for each label.

    Args:
        blocks: two or more layers or models, each with a physical layer and outputs of
            shape (batch, units), such as a `keras.Sequential` of a bank and an
            activation.
        classes: number of labels, an integer ≥ 2.
        scale: the value that stands for a label; about the largest feature.
        seed: seed of the p_k, an integer ≥ 0.

    Input shape: `(batch, features)`.

    Output shape: `(batch, classes)`.

    Raises:
        ValueError: If there are fewer than two blocks, a block is not a Keras layer or
            has no physical layer, or another argument is out of its range.

    Example:

    ```python
    blocks = [
        keras.Sequential([pnn.layers.MRRBank(24), keras.layers.Activation("tanh")])
        for _ in range(2)
    ]
    local = pnn.LocalClassifier(blocks, classes=10)
    sat = pnn.SATModel(local, ascent=None, gradient=pnn.PhyLL())
    ```

    Reference:
        - Momeni et al., Science 382:1297 (2023), and the code that goes with it
        - Hinton, arXiv:2212.13345: a goodness for each layer
    """

    def __init__(
        self,
        blocks: Sequence[keras.layers.Layer],
        classes: int,
        scale: float = 1.0,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        blocks = list(blocks)
        bad = [
            b
            for b in blocks
            if not isinstance(b, keras.layers.Layer) or not physical_layers(b)
        ]
        if len(blocks) < 2 or bad:
            expected = "two Keras layers or more, each with a physical layer"
            received = f"without one: {_checks.short(bad[0])}" if bad else len(blocks)
            raise _checks.error("blocks", expected, received)
        self.blocks = blocks
        self.classes = _checks.integer("classes", classes, low=2)
        self.scale = _checks.real("scale", scale, above=0)
        self.seed = _checks.integer("seed", seed, low=0)

    def build(self, input_shape):
        shape = (input_shape[0], input_shape[-1] + self.classes)
        for block in self.blocks:
            if not block.built:
                block.build(shape)
            shape = block.compute_output_shape(shape)
        self.built = True

    def goodness(
        self, inputs, labels, cut: bool = False, training: bool | None = None
    ) -> list:
        """Returns the goodness of each block for labels of the inputs, shape (batch,).

        With `cut`, gradients stop before each block.
        """
        inputs = ops.cast(inputs, self.compute_dtype)
        label = self.scale * ops.one_hot(labels, self.classes, dtype=inputs.dtype)
        y, found = ops.concatenate([inputs, label], axis=-1), []
        for place, block in enumerate(self.blocks):
            y = block(ops.stop_gradient(y) if cut else y, training=training)
            light = y if keras.backend.is_float_dtype(y.dtype) else ops.abs(y)
            light = ops.cast(light, keras.backend.result_type(light.dtype, "float32"))
            unit = self.direction(place, light.shape[-1])
            unit = ops.convert_to_tensor(unit, light.dtype)
            found.append(ops.sum(ops.normalize(light, axis=-1) * unit, axis=-1))
        return found

    def direction(self, place: int, units: int) -> np.ndarray:
        """Returns p_k of the block with index `place`, scaled to length 1."""
        draw = np.random.default_rng([self.seed, place]).normal(size=units)
        return draw / np.linalg.norm(draw)

    def call(self, inputs, training=None):
        ones = ops.ones_like(inputs[:, 0], dtype="int32")
        sums = [
            sum(self.goodness(inputs, label * ones, training=training))
            for label in range(self.classes)
        ]
        return ops.stack(sums, axis=-1)

    def compute_output_shape(self, input_shape) -> tuple:
        return (input_shape[0], self.classes)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "blocks": [keras.saving.serialize_keras_object(b) for b in self.blocks],
            "classes": self.classes,
            "scale": self.scale,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        blocks = [
            keras.saving.deserialize_keras_object(b, custom_objects=custom_objects)
            for b in config["blocks"]
        ]
        return cls(**{**config, "blocks": blocks})
