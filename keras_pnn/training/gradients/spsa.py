"""Estimate gradients from losses alone, for devices without a model."""

import keras

from keras_pnn.training.gradients.differences import RandomDirections, random_signs


@keras.saving.register_keras_serializable(package="keras_pnn")
class SPSA(RandomDirections):
    """Estimates gradients by simultaneous perturbation of all variables (SPSA).

    g = mean over directions of (L(v + c Δ) − L(v − c Δ)) / (2 c) · Δ, with Δ a random
    sign for each element. No model is differentiated. The variance grows with the
    number of elements: use it for small systems, or to fine-tune a few controls (freeze
    the rest).

    A training step takes 1 + 2 `directions` passes, and as many again for an ascent.
    All passes see the same batch, dropout masks and noise of the model.

    Args:
        step: c, in the unit of the variables; a number above 0, or a Keras learning
            rate schedule of the step.
        directions: number of Δ to average.

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

    digital = False

    def direction(self, like, seed, purpose):
        return random_signs(like, seed, purpose)
