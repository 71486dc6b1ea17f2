"""Move along the gradient that is particular to a batch: Friendly-SAM."""

import keras
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.training.ascent.sam import SAM


@keras.saving.register_keras_serializable(package="keras_pnn")
class FriendlySAM(SAM):
    """Ascent along the part of the gradient that is particular to the batch.

    ΔΘ = ρ d/‖d‖₂ with d = g − σ m and m ← δ m + (1 − δ) g, the moving average of the
    gradients, which approximates the gradient of all data. m begins at 0 and includes
    the present g, as in the paper; the authors' code subtracts the previous m, which
    begins at the first g. A step costs as much as one of `SAM`.

    `sharpness` is L(Θ + ΔΘ) − L(Θ), which can be negative, since d need not point
    uphill.

    Args:
        rho: radius ρ, as in `SAM`.
        sigma: σ, the share of the average that is subtracted; 0 is `SAM`.
        decay: δ of the average, in [0, 1), per batch.

    Raises:
        ValueError: If `rho` or `sigma` is negative or not finite, or `decay` is not in
            [0, 1).

    Example:

    >>> sat = pnn.SATModel(model, ascent=pnn.FriendlySAM(rho=0.1, decay=0.9))

    Reference:
        - Li et al., CVPR 2024, arXiv:2403.12350, algorithm 1
    """

    follows = True
    memory = "mean_gradient"

    def __init__(
        self,
        rho: float | keras.optimizers.schedules.LearningRateSchedule = 0.05,
        sigma: float = 1.0,
        decay: float = 0.9,
    ):
        super().__init__(rho)
        self.sigma = _checks.real("sigma", sigma, low=0)
        self.decay = _checks.real("decay", decay, low=0, below=1)

    def remembered(self, trainer, moved):
        return moved

    def __call__(self, values, gradients, iteration):
        # The loss scale may change from step to step.
        scale = self.step.trainer.optimizer.scale_loss(tf.constant(1.0))
        gradients = [g / tf.cast(scale, g.dtype) for g in gradients]
        self.found = [
            self.decay * tf.convert_to_tensor(m) + (1 - self.decay) * g
            for m, g in zip(self.kept, gradients, strict=True)
        ]
        particular = [
            g - self.sigma * m for g, m in zip(gradients, self.found, strict=True)
        ]
        return super().__call__(values, particular, iteration)
