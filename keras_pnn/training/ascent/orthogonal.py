"""Split a gradient into parts along and across another: GSAM and LookSAM."""

import dataclasses

import keras
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.training.ascent.base import chosen, either, inner, plus
from keras_pnn.training.ascent.sam import SAM


@keras.saving.register_keras_serializable(package="keras_pnn")
class GSAM(SAM):
    """SAM that also narrows the gap between the losses at Θ + ΔΘ and Θ.

    The optimizer steps with g_s − α g_⊥, where g and g_s are the gradients at Θ and at
    Θ + ΔΘ, with respect to all trainable variables, and g_⊥ = g − (g·g_s/‖g_s‖²) g_s:
    to first order, the g_⊥ term lowers the gap h = L(Θ + ΔΘ) − L(Θ) without affecting
    L(Θ + ΔΘ). A step costs as much as one of `SAM`, plus the rest of the first gradient
    where only some variables are moved. In the paper ρ follows the learning rate; pass
    a schedule for that.

    `sharpness` is h, the paper's surrogate gap.

    Args:
        rho: radius ρ, as in `SAM`.
        alpha: α ≥ 0; 0 is `SAM`.

    Raises:
        ValueError: If `rho` or `alpha` is negative or not finite.

    Example:

    >>> sat = pnn.SATModel(model, ascent=pnn.GSAM(rho=0.1, alpha=0.4))

    Reference:
        - Zhuang et al., ICLR 2022, arXiv:2203.08065, algorithm 1
    """

    combines = True

    def __init__(
        self,
        rho: float | keras.optimizers.schedules.LearningRateSchedule = 0.05,
        alpha: float = 0.4,
    ):
        super().__init__(rho)
        self.alpha = _checks.real("alpha", alpha, low=0)

    def combined(self, first, second):
        along = tf.math.divide_no_nan(inner(first, second), inner(second, second))
        across = plus(first, -along, second)
        # With both passes at one point, the part across is only rounding.
        return chosen(self.apart, plus(second, -self.alpha, across), second)


@keras.saving.register_keras_serializable(package="keras_pnn")
class LookSAM(SAM):
    """SAM with a second pass in every k-th step, and its kept direction in between.

    In the steps 0, k, 2k, … the optimizer steps with g_s, the gradient at Θ + ΔΘ, whose
    part across the gradient g at Θ is kept: g_v = g_s − (g_s·g/‖g‖²) g. In between it
    steps with g + α (‖g‖/‖g_v‖) g_v. All gradients are with respect to all trainable
    variables, and each norm is over all of them. `warmup` ramps α as well as ρ, as the
    kept direction has the same length at any ρ.

    With `adversarial`, imperfections are moved, and finite differences taken, in the
    second passes only. `sharpness` is the mean of L(Θ + ΔΘ, θ_adv) − L(Θ, θ0) over the
    steps with a second pass.

    Args:
        rho: radius ρ, as in `SAM`.
        every: k, in steps of the optimizer; 1 is `SAM`.
        alpha: α ≥ 0, the size of the kept direction relative to g.

    Raises:
        ValueError: If `rho` or `alpha` is negative or not finite, or `every` is not an
            integer ≥ 1. When training begins: if there are several replicas.

    Example:

    >>> sat = pnn.SATModel(model, ascent=pnn.LookSAM(rho=0.1, every=5))

    Reference:
        - Liu et al., CVPR 2022, arXiv:2203.02714, algorithm 1
    """

    combines = True
    replicated = False
    follows = True
    branches = True
    # g_v/‖g_v‖: only the direction is used.
    memory = "direction"

    def __init__(
        self,
        rho: float | keras.optimizers.schedules.LearningRateSchedule = 0.05,
        every: int = 5,
        alpha: float = 0.7,
    ):
        super().__init__(rho)
        self.every = _checks.integer("every", every, low=1)
        self.alpha = _checks.real("alpha", alpha, low=0)

    def second(self, evaluate, batch, worst, first):
        self.measured = tf.equal(self.step.iteration % self.every, 0)
        return either(
            self.measured,
            lambda: evaluate(batch, worst()),
            lambda: dataclasses.replace(first, asked=0),
            first,
            self.step.trainer.trainable_variables,
        )

    def combined(self, first, second):
        along = tf.math.divide_no_nan(inner(first, second), inner(first, first))
        across = plus(second, -along, first)
        # With both passes at one point, the part across is only rounding, which would
        # be scaled to α‖g‖ in between.
        length = tf.where(self.apart, tf.sqrt(inner(across, across)), 0)
        share = tf.math.divide_no_nan(tf.ones_like(length), length)
        kept = [tf.convert_to_tensor(v) for v in self.kept]
        self.found = [
            v if a is None else tf.where(self.measured, tf.cast(share, v.dtype) * a, v)
            for a, v in zip(across, kept, strict=True)
        ]
        norm = tf.sqrt(inner(first, first))
        size = self.alpha * tf.cast(self.step.ramp, norm.dtype) * norm
        return chosen(self.measured, second, plus(first, size, kept))
