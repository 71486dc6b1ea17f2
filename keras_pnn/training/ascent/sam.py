"""Move variables to where the loss around them is worst: SAM (eq. 3) and ASAM.

`SAM.__call__` computes ΔΘ; `SATModel._ascended` in `training/sat.py` applies the
warm-up and adds it to Θ. `training/adversary.py` moves imperfections (eq. 5).
"""

import keras
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn._display import brief
from keras_pnn.training.ascent.base import Ascent
from keras_pnn.training.gradients.base import wide

_SCHEDULE = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable(package="keras_pnn")
class SAM(Ascent):
    """Ascent along the gradient: ΔΘ = ρ g / ‖g‖₂, one norm over all variables.

    Args:
        rho: radius ρ, in the unit of the perturbed variables; a number or a
            `keras.optimizers.schedules.LearningRateSchedule` of the step. A number
            can be changed during training: `sat.rho = 0.1`.

    Raises:
        ValueError: If `rho` is negative or not finite.

    Example:

    >>> sat = pnn.SATModel(model, ascent=pnn.SAM(rho=0.1))
    >>> sat.rho = 0.05

    Reference:
        - Xu et al., arXiv:2411.12352, eq. 3
        - Foret et al., ICLR 2021, arXiv:2010.01412
    """

    moves = True

    def __init__(
        self, rho: float | keras.optimizers.schedules.LearningRateSchedule = 0.05
    ):
        self.schedule = rho if isinstance(rho, _SCHEDULE) else None
        # A variable, so that a new value reaches a step that is already traced.
        self._rho = None
        if self.schedule is None:
            value = _checks.real("rho", rho, low=0)
            self._rho = keras.Variable(value, trainable=False, name="rho")

    @property
    def rho(self):
        """The radius: a number, or the schedule."""
        return self.schedule if self._rho is None else float(self._rho.numpy())

    @rho.setter
    def rho(self, value):
        if self._rho is None:
            raise ValueError(
                "`rho` follows a schedule and cannot be set. Received: "
                f"rho={value!r} for {self.schedule!r}"
            )
        self._rho.assign(_checks.real("rho", value, low=0))

    @property
    def suspect(self):
        return "" if self.rho == 0 else f"rho={brief(self.rho)}"

    def states(self):
        own = {} if self._rho is None else {"rho": self._rho}
        return {**own, **super().states()}

    def radius(self, iteration) -> tf.Tensor:
        """Returns the radius of a step, in float64."""
        rho = self.schedule(iteration) if self._rho is None else self._rho
        return tf.cast(tf.convert_to_tensor(rho), "float64")

    @property
    def apart(self) -> tf.Tensor:
        """Whether the second pass of this step is at another point than the first."""
        if self.step.adversarial:
            return tf.constant(True)
        radius = self.radius(self.step.iteration)
        return radius * tf.cast(self.step.ramp, radius.dtype) > 0

    def scale(self, value):
        """Returns the elementwise scale T of the ascent: here 1."""
        return tf.ones_like(value)

    def __call__(self, values: list, gradients: list, iteration) -> list:
        """Returns ΔΘ, a step for each variable in its dtype; zero for zero gradients.

        `values` are the variables' values; `gradients` are ∂L/∂Θ, dense, times any
        common factor, and `None` where the loss does not depend on a variable.
        """
        scales = [self.scale(wide(v)) for v in values]
        scaled = [
            tf.zeros_like(t) if g is None else t * tf.cast(g, t.dtype)
            for t, g in zip(scales, gradients, strict=True)
        ]
        # Dividing by the largest entry first: a loss scale of 2¹⁵ or more, squared,
        # would overflow.
        peaks = [tf.reduce_max(tf.abs(s)) for s in scaled if s.shape.num_elements()]
        peak = tf.reduce_max(tf.stack([tf.cast(p, "float64") for p in peaks]))
        safe = tf.where(tf.equal(peak, 0), tf.ones_like(peak), peak)
        unit = [s / tf.cast(safe, s.dtype) for s in scaled]
        square = tf.add_n([tf.cast(tf.reduce_sum(u * u), "float64") for u in unit])
        factor = tf.math.divide_no_nan(self.radius(iteration), tf.sqrt(square))
        return [
            tf.cast(tf.cast(factor, u.dtype) * t * u, v.dtype)
            for u, t, v in zip(unit, scales, values, strict=True)
        ]


@keras.saving.register_keras_serializable(package="keras_pnn")
class ASAM(SAM):
    """Adaptive ascent: ΔΘ = ρ T² g / ‖T g‖₂ with T = |Θ| + η.

    Large controls move further than small ones. Use `SAM` for meshes, since this step
    changes when 2π is added to a phase.

    Args:
        rho: radius ρ, relative; a number or a schedule, as in `SAM`.
        eta: η, the scale T of a control at zero, in the unit of the variables.

    Raises:
        ValueError: If `rho` or `eta` is negative or not finite.

    Example:

    >>> sat = pnn.SATModel(model, ascent=pnn.ASAM(rho=0.5, eta=0.01))

    Reference:
        - Kwon et al., ICML 2021, arXiv:2102.11600
    """

    def __init__(
        self,
        rho: float | keras.optimizers.schedules.LearningRateSchedule = 0.05,
        eta: float = 0.01,
    ):
        super().__init__(rho)
        self.eta = _checks.real("eta", eta, low=0)

    def scale(self, value):
        """Returns T = |Θ| + η."""
        return tf.abs(value) + tf.cast(self.eta, value.dtype)
