"""Take the second pass on the samples whose loss rises most: ESAM."""

import dataclasses
import math

import keras
import tensorflow as tf

from keras_pnn import _checks, _keras
from keras_pnn.devices.draws import folded, whole_numbers
from keras_pnn.training import bench
from keras_pnn.training.ascent.base import either
from keras_pnn.training.ascent.sam import SAM
from keras_pnn.training.ascent.samples import check_loss, losses_of
from keras_pnn.training.gradients.base import Batch, times_samples


@keras.saving.register_keras_serializable(package="keras_pnn")
class ESAM(SAM):
    """SAM on a random share of the controls, and on the samples whose loss rises most.

    Each element of ΔΘ = ρ g/‖g‖₂ is kept with probability β and divided by β. A
    forward pass at Θ + ΔΘ then tells how much the loss of each sample rises, and the
    second gradient is the mean over the share γ of the batch, ⌈γ n⌉ samples, whose loss
    rises most. A step thus takes a forward pass and 1 + γ times a forward and a
    backward pass. The authors' code leaves out whole tensors where the paper, and this
    class, leave out elements.

    Batch normalisation in the second pass uses statistics of the kept samples, and
    dropout draws other masks for them than in the first. `sharpness` is
    L(Θ + ΔΘ) − L(Θ) over the whole batch.

    Args:
        rho: radius ρ, as in `SAM`.
        beta: β in (0, 1], the share of the elements that are moved.
        gamma: γ in (0, 1], the share of the samples in the second gradient; 0.5 in
            the paper. With 1 for both it is `SAM`.

    Raises:
        ValueError: If `rho` is negative or not finite, or `beta` or `gamma` is not in
            (0, 1]. When training begins, with γ < 1: if the loss is not a mean over
            samples, the model has stateful RNNs, or there are several replicas.

    Example:

    >>> sat = pnn.SATModel(model, ascent=pnn.ESAM(rho=0.1, gamma=0.5))

    Reference:
        - Du et al., ICLR 2022, arXiv:2110.03141, algorithm 1
    """

    def __init__(
        self,
        rho: float | keras.optimizers.schedules.LearningRateSchedule = 0.05,
        beta: float = 0.6,
        gamma: float = 0.4,
    ):
        super().__init__(rho)
        self.beta = _checks.real("beta", beta, above=0, high=1)
        self.gamma = _checks.real("gamma", gamma, above=0, high=1)
        # Each replica would rank only its own samples.
        self.replicated = self.gamma == 1
        self.branches = self.by_outputs = self.gamma < 1

    def __call__(self, values, gradients, iteration):
        steps = super().__call__(values, gradients, iteration)
        if self.beta == 1:
            return steps
        sizes = [tf.size(s) for s in steps]
        parts = tf.split(self._kept(tf.add_n(sizes)), sizes)
        return [
            tf.where(tf.reshape(kept, tf.shape(s)), s / self.beta, tf.zeros_like(s))
            for s, kept in zip(steps, parts, strict=True)
        ]

    def _kept(self, size) -> tf.Tensor:
        """True with probability β: a pure function of seed and step."""
        bits = whole_numbers([size], folded(self.step.seed, "esam"))
        most = min(round(self.beta * 2**32), 2**32 - 1)
        return bits < tf.constant(most, "uint32")

    def second(self, evaluate, batch, worst, first):
        if self.gamma == 1:
            return super().second(evaluate, batch, worst, first)
        trainer, worst = self.step.trainer, worst()
        check_loss(trainer, batch, first.y_pred, "ESAM with gamma < 1")
        if _keras.recurrent_states(trainer.model):
            raise ValueError(
                "ESAM leaves samples out of the second pass, and a stateful RNN has a "
                f"state for each: pass gamma=1. Received: gamma={self.gamma}, model "
                f"'{trainer.model.name}'"
            )

        def on_some():
            layers: list = []
            loss, y_pred, _ = trainer.gradient.forward(trainer, batch, worst, layers)
            rise = losses_of(trainer, batch, y_pred)
            rise -= losses_of(trainer, batch, first.y_pred)
            found = evaluate(_highest(batch, rise, self.gamma), worst)
            asked = found.asked + times_samples(len(layers), batch)
            return dataclasses.replace(found, loss=loss, asked=asked)

        taken = on_some
        if not bench.devices_of(trainer):
            # Before the branch, so that TensorFlow shares work with the first pass. A
            # device would be measured in vain if the branch is not taken.
            found = on_some()

            def taken():
                return found

        return either(
            # Otherwise no loss rises, and samples cannot be ranked.
            self.apart,
            taken,
            lambda: evaluate(batch, worst),
            first,
            trainer.trainable_variables,
        )


def _highest(batch: Batch, values: tf.Tensor, share: float) -> Batch:
    """The share of a batch that has the highest values, in the batch's order."""
    samples, tolerance = values.shape[0], 1e-6
    if samples is not None:
        count = math.ceil(share * samples - tolerance)
    else:
        samples = tf.cast(tf.shape(values)[0], "float64")
        count = tf.cast(tf.math.ceil(share * samples - tolerance), "int32")
    places = tf.sort(tf.math.top_k(values, count).indices)
    return Batch(
        keras.tree.map_structure(
            lambda a: None if a is None else tf.gather(a, places), tuple(batch)
        )
    )
