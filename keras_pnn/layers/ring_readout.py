"""Read the products of a bank: reference, noise, converter, gain and bias."""

import math

import keras
import tensorflow as tf
from keras import ops

from keras_pnn.layers.mixins import biased, reading_noise
from keras_pnn.physics import detection


class RingReadout:
    """Mixin of `RingLayer` for the readout behind its rings."""

    def _biased(self, outputs):
        """Applies what follows the product: noise, the gain, and the bias."""
        if self.read_noise and self.adc_bits is None:
            noise = reading_noise(self, outputs)
            if self.signed:
                # The noise of the reference is common to all outputs.
                noise = 2 * noise + reading_noise(self, outputs[..., :1])
            outputs = outputs + math.sqrt(self.tiles[1]) * noise
        if self.gain_variable is not None:
            outputs = outputs * ops.cast(self.gain_variable, outputs.dtype)
        return biased(self, outputs)

    def _tiled_product(self, inputs, kernel, imperfections: dict):
        """Multiplies inputs (…, fan_in) by the kernel, reading each tile by the ADC."""
        tiles = self.tiles[1]
        padding = tiles * self.columns - self.fan_in
        inputs = ops.pad(inputs, [[0, 0]] * (len(inputs.shape) - 1) + [[0, padding]])
        inputs = ops.reshape(inputs, (*ops.shape(inputs)[:-1], tiles, self.columns))
        rows = self.by_row(kernel)
        if self.signed:
            # Rows of transmissions, and the reference row without rings.
            reference = 1 + ops.cast(imperfections["reference_error"], rows.dtype)
            one = reference * ops.ones_like(rows[:1])
            rows = ops.concatenate([(rows + reference) / 2, one], axis=0)
        partial = ops.einsum("...tc,utc->...tu", inputs, rows)
        # The readout has more steps than float16 or bfloat16 can represent.
        dtype = keras.backend.result_type(partial.dtype, "float32")
        partial = ops.cast(partial, dtype)
        if self.read_noise:
            partial = partial + reading_noise(self, partial)
        if self.adc_range is None:
            axes = tuple(range(1, len(partial.shape)))
            peak = ops.max(ops.abs(partial), axis=axes, keepdims=True)
            peak = tf.stop_gradient(ops.maximum(peak, keras.config.epsilon()))
            # The largest readout is the highest code.
            scale = peak / (1 - 2.0 ** (1 - self.adc_bits))
            partial = scale * self._read_out(partial / scale, 1.0)
        else:
            partial = self._read_out(partial, self.adc_range)
        if self.signed:
            partial = 2 * partial[..., :-1] - partial[..., -1:]
        return ops.cast(ops.sum(partial, axis=-2), inputs.dtype)

    def _read_out(self, value, limit: float):
        """Rounds to two's complement codes, of which `-limit` is the lowest."""
        high = limit * (1 - 2.0 ** (1 - self.adc_bits))
        return detection.quantize(value, self.adc_bits, -limit, high)
