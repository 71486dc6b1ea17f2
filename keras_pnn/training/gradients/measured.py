"""Differentiate each layer by measurements of its device: the base of two sources."""

from collections.abc import Callable

import keras
import tensorflow as tf

from keras_pnn.layers import MZIMesh
from keras_pnn.layers.context import Overrides, valued
from keras_pnn.training.gradients.base import ModelGradient


class LayerGradient(ModelGradient):
    """Base of sources that measure the derivatives of each layer, at its own inputs.

    The chain rule over the layers is digital. Imperfections that training moves, and
    digital parts of a layer (a bias), have the derivatives of its model.

    A subclass implements `check` and `differentiate`.
    """

    needs_device = True

    def measures_inputs(self, layer) -> bool:
        """Tells whether `differentiate` measures the derivative with respect to inputs.

        If not, this derivative is taken from the layer's model.
        """
        return False

    def check(self, layer, model: keras.Model) -> None:
        """Raises ValueError for a layer that the source cannot differentiate."""

    def differentiate(
        self, layer, inputs, controls: dict, outputs, upstream, wanted: list, asked
    ) -> tuple:
        """Measures derivatives of one layer, in the graph of the backward pass.

        Args:
            layer, inputs, controls: the layer, its inputs and its controls.
            outputs: the measured outputs.
            upstream: the gradient with respect to `outputs`, as TensorFlow defines it.
            wanted: names of controls.
            asked: a list to which the layer is added for each further setting.

        Returns:
            The derivative with respect to the inputs, `None` unless measured, and a
            dictionary of derivatives with respect to the wanted controls.
        """
        raise NotImplementedError

    def imperfections(self, layer) -> dict:
        """Returns a layer's imperfections: the device's, or else the model's."""
        told = getattr(self.device, "imperfections", None)
        return told(layer) if callable(told) else layer.current_values()[1]

    def _join(self, trainer, wrt: list, asked: list) -> Callable:
        among = Overrides((v, None) for v in wrt)

        def join(layer, inputs, controls, measured, modelled):
            names = list(controls)
            wanted = [n for n in names if layer.controls[n] in among]
            if wanted:
                self.check(layer, trainer.model)
            fixed = {n: tf.stop_gradient(c) for n, c in controls.items()}
            measures_inputs = self.measures_inputs(layer)
            given = tf.stop_gradient(inputs) if measures_inputs else inputs
            # All other derivatives are the model's.
            others = layer.forward(given, fixed, layer.current_values()[1])
            if not wanted and not measures_inputs:
                return valued(measured, others)

            @tf.custom_gradient
            def joined(inputs, others, *values):
                def gradient(upstream):
                    of_inputs, found = self.differentiate(
                        layer, inputs, controls, measured, upstream, wanted, asked
                    )
                    if of_inputs is None:
                        of_inputs = tf.zeros_like(inputs)
                    slopes = [
                        tf.cast(found[n], v.dtype) if n in found else tf.zeros_like(v)
                        for n, v in zip(names, values, strict=True)
                    ]
                    return of_inputs, upstream, *slopes

                return tf.identity(measured), gradient

            return joined(inputs, others, *(controls[n] for n in names))

        return join


def of_set_phases(layer: MZIMesh, slopes: dict) -> dict:
    """Converts derivatives with respect to produced phases to those of the set phases.

    They differ by the crosstalk of the mesh. The keys are `theta`, `phi`, `gamma`.
    """
    if layer.crosstalk is None:
        return slopes
    exists = tf.constant(layer.quantity("theta").exists)
    both = tf.stack([slopes["theta"], slopes["phi"]])
    matrix = tf.constant(layer.crosstalk, both.dtype)
    flat = tf.linalg.matvec(matrix, tf.reshape(both, [-1]), transpose_a=True)
    both = tf.where(exists, tf.reshape(flat, both.shape), tf.zeros_like(both))
    return {**slopes, "theta": both[0], "phi": both[1]}


def refuse(source, layer, expected: str, received: str) -> ValueError:
    """Returns the error for a layer that a source cannot differentiate."""
    return ValueError(
        f"{type(source).__name__} needs {expected}. Received: layer '{layer.name}', "
        f"{received}"
    )
