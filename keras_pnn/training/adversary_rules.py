"""Choose how far an imperfection is moved, and by which derivative: rules of eq. 5."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn._signatures import Configured


class AdversaryRule(Configured):
    """The step rule of eq. 5: from dL/dθ to θ_adv − θ0.

    Base of the dataclasses `FiniteDifference` and `Autodiff`, which choose how dL/dθ is
    computed and share the fields `radius`, `normalize` and `sample_radius`.
    """

    # Forward passes per component of θ.
    passes_per_component = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool):
                _checks.boolean(field.name, getattr(self, field.name))
        object.__setattr__(self, "radius", _numbers("radius", self.radius, low=0))

    def move(self, gradient, radius):
        """Returns θ_adv − θ0 = r ⊙ (r ⊙ g) / ‖r ⊙ g‖₂, or r ⊙ g unnormalised.

        The tensors g = dL/dθ and r have the same shape; the result is 0 if r ⊙ g is.
        """
        scaled = radius * gradient
        if not self.normalize:
            return scaled
        # Dividing by the largest entry first, so that no square overflows.
        peak = tf.reduce_max(tf.abs(scaled))
        unit = scaled / tf.where(tf.equal(peak, 0), tf.ones_like(peak), peak)
        return tf.math.divide_no_nan(radius * unit, tf.norm(unit))


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True, repr=False)
class FiniteDifference(AdversaryRule):
    """Moves an imperfection to where the loss is higher, by finite differences.

    θ_adv = θ0 + r ⊙ (r ⊙ g) / ‖r ⊙ g‖₂ with g ≈ dL/dθ: ±r for a scalar, r g/‖g‖
    for equal radii. Use it for imperfections without a useful derivative. A central
    difference costs two forward passes per component of θ and training step, a forward
    difference costs one, but the curvature of the loss biases its sign.

    A common name, such as `"temperature"`, is one θ that all layers share: g is the
    sum over the layers, which must agree in its shape, and all move by one offset.
    `"<layer>/temperature"` is the θ of one layer. For an alias, such as
    `"splitter_imbalance"`, radius and step are in the unit of the alias.

    The authors' own rule, θ += 0.8 ΔL/δ with δ ~ U(0, 1)°, is

    >>> pnn.FiniteDifference(
    ...     radius=0.8, step=1.0, scheme="forward", normalize=False, sample_step=True
    ... )

    Args:
        radius: r, in the imperfection's unit: a number or an array of its shape,
            ≥ 0. A component of radius 0 is not moved, and costs nothing. It must keep
            the imperfection in its range: below 1 for a scale.
        step: δ of the difference, > 0, in the same unit and shape. Too small a step
            measures the rounding of the loss; too large a step does not measure the
            slope: for a rotation that moves the frame's edges by a pixel, one sign in
            five is wrong.
        scheme: `"central"`, (L(θ0 + δ) − L(θ0 − δ)) / 2δ, or `"forward"`,
            (L(θ0 + δ) − L(θ0)) / δ.
        normalize: `False` for θ_adv − θ0 = r ⊙ g; the radius is then a gain.
        sample_radius: whether r is multiplied by a fresh u ~ U(0, 1) at each
            optimizer step; under gradient accumulation the micro-batches share it.
        sample_step: whether δ is multiplied by a fresh u ~ U(0, 1], in the same way.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> turned = pnn.FiniteDifference(radius=1.0, step=0.1)  # degrees
    >>> sat = pnn.SATModel(model, rho=0.3, adversarial={"rotation": turned})

    Reference:
        - Xu et al., arXiv:2411.12352, eq. 5
    """

    radius: float | tuple
    step: float | tuple
    scheme: str = "central"
    normalize: bool = True
    sample_radius: bool = False
    sample_step: bool = False

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "step", _numbers("step", self.step, above=0))
        _checks.choice("scheme", self.scheme, ("central", "forward"))

    @property
    def passes_per_component(self) -> int:
        return 2 if self.scheme == "central" else 1


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True, repr=False)
class Autodiff(AdversaryRule):
    """Moves an imperfection to where the loss is higher, by automatic differentiation.

    As `FiniteDifference`, with dL/dθ from the first pass: no extra pass, however
    many components θ has. A common name is one θ that all layers share, if it has the
    same shape in all. If not (`"resonance_shift"` of two banks), each layer has its own
    θ, norm and u, as if each were named with this rule; the radius must then be a
    number.

    Args:
        radius, normalize, sample_radius: as in `FiniteDifference`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> drift = pnn.Autodiff(radius=0.5, sample_radius=True)  # K
    >>> sat = pnn.SATModel(model, rho=0.1, adversarial={"temperature": drift})

    Reference:
        - Xu et al., arXiv:2411.12352, eq. 5
    """

    radius: float | tuple
    normalize: bool = True
    sample_radius: bool = False


def check_rules(rules) -> dict[str, AdversaryRule]:
    """Returns `adversarial` as a dictionary."""
    if rules is None:
        return {}
    if not isinstance(rules, dict) or not all(
        isinstance(name, str) and isinstance(rule, AdversaryRule)
        for name, rule in rules.items()
    ):
        raise _checks.error(
            "adversarial",
            "a dictionary from names of imperfections to FiniteDifference or Autodiff",
            _checks.short(rules),
        )
    return dict(rules)


def _numbers(name: str, value, **bounds):
    """Returns a finite number, or tuples of them, that float32 can hold."""
    found = _checks.array(name, value, **bounds)
    with np.errstate(over="ignore"):
        _checks.array(name, found.astype("float32"), **bounds)
    return _tuples(found.tolist())


def _tuples(values):
    return tuple(map(_tuples, values)) if isinstance(values, list) else values
