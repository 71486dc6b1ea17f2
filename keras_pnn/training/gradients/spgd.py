"""Estimate the gradients of all controls in parallel, with momentum."""

import keras
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.layers.lookup import physical_layers
from keras_pnn.training.gradients.differences import RandomDirections, random_signs


@keras.saving.register_keras_serializable(package="keras_pnn")
class SPGD(RandomDirections):
    """Estimates gradients of the controls by stochastic parallel descent (SPGD).

    ĝ = mean over directions of (L(c + s Δ) − L(c − s Δ)) / (2 s) · Δ, with Δ a random
    sign for each control, and g ← momentum · g + ĝ. With `keras.optimizers.SGD` this
    is gradient descent with momentum; an ascent uses the accumulated g too, which is
    less noisy than ĝ. Each pass of a step accumulates its own g.

    Other variables have exact derivatives behind the measured layers; in front of
    these, derivatives go through the layers' models.

    A training step takes 1 + 2 `directions` passes, and as many again for an ascent.

    Args:
        step: s, in the unit of the controls; a number above 0, or a Keras learning
            rate schedule of the step.
        directions: number of Δ to average.
        momentum: momentum, in [0, 1).

    Raises:
        ValueError: If an argument is out of its range; in training, if the model has
            no physical layer, or there is momentum on several replicas, or with LookSAM
            or ESAM, whose second pass is a branch of the step.

    Example:

    ```python
    online = pnn.SATModel(model, rho=0.05, device=bench,
                          gradient=pnn.SPGD(step=0.01, momentum=0.9))
    ```

    Reference:
        - Vorontsov and Sivokon, J. Opt. Soc. Am. A 15:2745 (1998)
    """

    def __init__(
        self,
        step: float | keras.optimizers.schedules.LearningRateSchedule = 0.01,
        directions: int = 1,
        momentum: float = 0.0,
    ):
        super().__init__(step, directions)
        self.momentum = _checks.real("momentum", momentum, low=0, below=1)
        self._sums: dict[tuple[int, int], keras.Variable] = {}

    def on(self, device):
        source = super().on(device)
        source._sums = {}
        return source

    def direction(self, like, seed, purpose):
        return random_signs(like, seed, ("spgd", *purpose))

    def variables(self, trainer):
        if not self.momentum or not trainer.model.built:
            return []
        controls = [
            v for la in physical_layers(trainer.model) for v in la.controls.values()
        ]
        if controls and not self._sums:
            replicas = trainer.distribute_strategy.num_replicas_in_sync
            if replicas > 1:
                raise ValueError(
                    "SPGD keeps its momentum on one replica: use momentum=0, and that "
                    f"of the optimizer. Received: momentum={self.momentum:g} on "
                    f"{replicas} replicas"
                )
            with tf.init_scope():
                self._sums = {
                    (index, id(v)): keras.Variable(
                        tf.zeros(v.shape, v.dtype), dtype=v.dtype, trainable=False
                    )
                    for index in (0, 1)
                    for v in controls
                }
        return list(self._sums.values())

    def __call__(self, trainer, batch, overrides, wrt, index=0):
        ascent = getattr(trainer, "ascent", None)
        if self.momentum and getattr(ascent, "branches", False):
            raise ValueError(
                "SPGD keeps no momentum of a second pass that is a branch of the step: "
                "use momentum=0, and that of the optimizer. Received: "
                f"momentum={self.momentum:g}, ascent={ascent!r}"
            )
        self.variables(trainer)
        return super().__call__(trainer, batch, overrides, wrt, index)

    def slopes(self, losses, wrt, index):
        estimates, _ = super().slopes(losses, wrt, index)
        if not self.momentum:
            return estimates, lambda: None
        sums = [self._sums[index, id(v)] for v in wrt]
        added = [
            self.momentum * tf.convert_to_tensor(s) + e
            for s, e in zip(sums, estimates, strict=True)
        ]

        def commit():
            for variable, value in zip(sums, added, strict=True):
                # A loss that overflowed must not stay in the sum.
                finite = tf.reduce_all(tf.math.is_finite(value))
                variable.assign(tf.where(finite, value, tf.convert_to_tensor(variable)))

        return added, commit
