"""Estimate gradients by directional derivatives along Gaussian directions."""

import keras

from keras_pnn.devices.draws import standard_normal
from keras_pnn.training.gradients.differences import RandomDirections, seed_for


@keras.saving.register_keras_serializable(package="keras_pnn")
class ForwardGradient(RandomDirections):
    """Estimates gradients of the controls by forward gradients, (∇L · v) v.

    v ~ N(0, 1) for each control, so that E[(∇L · v) v] = ∇L: unbiased, with a variance
    that grows with the number of controls and falls with the number of directions.
    The directional derivative is measured, (L(c + s v) − L(c − s v)) / (2 s), which
    leaves an error of the order of s².

    Other variables have exact derivatives behind the measured layers; in front of
    these, derivatives go through the layers' models.

    A training step takes 1 + 2 `directions` passes, and as many again for an ascent.

    Args:
        directions: number of v to average.
        step: s, in the unit of the controls; a number above 0, or a Keras learning
            rate schedule of the step.

    Raises:
        ValueError: If `step` is not above 0, or `directions` is not an integer ≥ 1; in
            training, if the model has no physical layer.

    Example:

    ```python
    online = pnn.SATModel(model, ascent=None, device=bench,
                          gradient=pnn.ForwardGradient(directions=8))
    ```

    Reference:
        - Baydin et al., arXiv:2202.08587
    """

    def __init__(
        self,
        directions: int = 1,
        step: float | keras.optimizers.schedules.LearningRateSchedule = 0.01,
    ):
        super().__init__(step, directions)

    def direction(self, like, seed, purpose):
        seed = seed_for(seed, ("forward", *purpose))
        return standard_normal(like.shape, seed, like.dtype)
