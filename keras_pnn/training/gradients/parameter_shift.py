"""Measure derivatives of a device's outputs at shifted controls."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.layers import MZIMesh
from keras_pnn.layers.context import measure
from keras_pnn.layers.fields import detected
from keras_pnn.layers.limits import DAC
from keras_pnn.layers.ring_layer import RingLayer
from keras_pnn.training.gradients.base import one_by_one, wide
from keras_pnn.training.gradients.measured import LayerGradient, of_set_phases, refuse

# Shifts and the factors of their differences.
_OF_PHASE = ((math.pi / 2, 1 / 2),)
_OF_THETA = (
    (math.pi / 2, 1 / (8 - 8 * math.sqrt(0.5))),
    (3 * math.pi / 2, -1 / (8 + 8 * math.sqrt(0.5))),
)


@keras.saving.register_keras_serializable(package="keras_pnn")
class ParameterShift(LayerGradient):
    """Differentiates a device by its outputs at shifted controls.

    **Meshes.** Each intensity I behind an `MZIMesh` depends on one phi or gamma as
    a + b cos φ + c sin φ, whatever the phase and splitter errors and the losses. A
    theta, applied as ±θ/2 in the two arms, adds cos(θ/2) and sin(θ/2), through light
    that bypasses its cell. With D(s) = I(φ + s) − I(φ − s),

        ∂I/∂φ = D(π/2) / 2
        ∂I/∂θ = (D(π/2) / (1 − √½) − D(3π/2) / (1 + √½)) / 8

    exactly. Only intensities are used, so a `Photodetector` or a `BalancedDetector`
    must follow each mesh, in a model of layers that Keras can see (functional or
    Sequential). With `crosstalk`, controls are set so that only one phase shifts, and
    the matrix transforms the derivatives back: exact if the chip's crosstalk is the
    layer's. This needs all of theta and phi, so that none may be stuck; stuck phases
    are found as in `Adjoint`. A `dac` rounds the shifts. It wraps a theta into one turn
    by changing phi and gamma, so that none of these may be stuck then.

    **Microrings.** The weight of a ring is not sinusoidal in its control, and

        ∂y/∂c ≈ (y(c + s) − y(c − s)) / (2 s)

    is approximate. For a Lorentzian of half-width h, u = c/h and t = s/h, the result is
    (1 + u²)² / ((1 + u²)² + 2 t² (1 − u²) + t⁴) times the derivative: at most 2 t² too
    low, on resonance. One ring is shifted in all rows at once, as rows are independent.

    Derivatives with respect to the inputs of a layer, which digital variables in front
    of it need, are those of its model. The loss follows by the chain rule.

    A training step needs 1 + 4 T + 2 P settings of a mesh with T thetas and P other
    phases, and 1 + 2 n of a bank with n inputs; twice as many with an ascent.

    Args:
        ring_step: s, in the unit of the rings' control.

    Raises:
        ValueError: If `ring_step` is not above 0, or there is no device; in training,
            if a measured layer with trainable controls is not an `MZIMesh`, `MRRBank`
            or `MRRConv2D`; the fields behind a mesh go to other layers than detectors;
            a `dac` of a mesh covers less than a turn; a crosstalk matrix of a mesh
            cannot be inverted, or is combined with a `dac`; or a ring layer has an
            activation of its own, or crosstalk between its rows.
        tf.errors.InvalidArgumentError: In training, if a theta or phi is known to be
            stuck in a mesh with crosstalk, or a phi or gamma in one with a `dac`. With
            XLA, derivatives are NaN instead.

    Example:

    ```python
    online = pnn.SATModel(model, ascent=None, device=bench,
                          gradient=pnn.ParameterShift())
    ```

    Reference:
        - Schuld et al., Phys. Rev. A 99:032331 (2019): the rule of two terms
        - Wierichs et al., Quantum 6:677 (2022): the rule of four
    """

    def __init__(self, ring_step: float = 0.01):
        self.ring_step = _checks.real("ring_step", ring_step, above=0)

    def check(self, layer, model):
        if isinstance(layer, RingLayer):
            if layer.activation is not keras.activations.linear:
                name = getattr(layer.activation, "__name__", "an activation")
                expected = "banks without an activation; add it as a layer"
                raise refuse(self, layer, expected, f"with {name}")
            if layer.crosstalk is not None and len(layer.crosstalk) != layer.columns:
                # All rows are shifted at once.
                expected = "banks whose rows do not warm each other"
                raise refuse(self, layer, expected, "with crosstalk between all rings")
        elif not isinstance(layer, MZIMesh):
            expected = "meshes (MZIMesh) or microrings (MRRBank, MRRConv2D)"
            raise refuse(self, layer, expected, f"a {type(layer).__name__}")
        elif not detected(model, layer):
            expected = (
                "intensities: a Photodetector or BalancedDetector right behind each "
                "mesh, in a functional or Sequential model"
            )
            raise refuse(self, layer, expected, "whose fields go elsewhere")
        elif _span(layer.dac) < 2 * np.pi:
            received = f"with {layer.dac!r}"
            raise refuse(self, layer, "meshes whose dac covers a turn", received)
        elif layer.crosstalk is not None:
            if layer.dac is not None:
                expected = "meshes without a dac where there is crosstalk"
                raise refuse(self, layer, expected, "with both")
            if not np.linalg.cond(_among_existing(layer)) < 1e6:
                raise refuse(self, layer, "crosstalk that can be inverted", "without")

    def differentiate(
        self, layer, inputs, controls, outputs, upstream, wanted, asked
    ) -> tuple:
        def shifted(changes: dict) -> tf.Tensor:
            """The outputs at controls + changes."""
            moved = {n: c + changes.get(n, 0) for n, c in controls.items()}
            return measure(self.device, layer, inputs, moved, outputs)

        if isinstance(layer, RingLayer):
            found, settings = self._rings(layer, controls, upstream, shifted)
        else:
            upstream *= _one_if_free(layer, self.imperfections(layer), upstream)
            found, settings = _phases(layer, controls, outputs, upstream, shifted)
        asked += [layer] * settings
        return None, {name: found[name] for name in wanted}

    def _rings(self, layer, controls, upstream, shifted) -> tuple:
        control = controls["control"]
        upstream = wide(upstream)
        axis = getattr(layer, "_channel_axis", -1) % upstream.shape.rank
        others = [a for a in range(upstream.shape.rank) if a != axis]
        step = tf.constant(self.ring_step, control.dtype)

        def slopes(ring):
            one = tf.one_hot(ring, layer.fan_in, dtype=control.dtype)[:, None]
            row = tf.broadcast_to(step * one, [layer.fan_in, layer.outputs])
            row = tf.reshape(row, control.shape)
            ahead, behind = _pair(shifted, {"control": row})
            change = tf.cast(wide(ahead) - wide(behind), upstream.dtype)
            return tf.reduce_sum(upstream * change, others) / (2 * self.ring_step)

        found = one_by_one(slopes, np.arange(layer.fan_in), upstream.dtype)
        return {"control": tf.reshape(found, control.shape)}, 2 * layer.fan_in


def _phases(layer, controls, outputs, upstream, shifted) -> tuple:
    """Derivatives with respect to the phases of a mesh, and the number of settings."""
    exists = {n: layer.quantity(n).exists for n in controls}
    flat = np.concatenate([e.ravel() for e in exists.values()])
    existing = np.flatnonzero(flat)
    place = tf.constant(existing[:, None], "int32")
    dtype = controls["theta"].dtype
    # As I = |y|², the gradient with respect to the fields y is 2 y ∂L/∂I.
    power = tf.math.real(outputs * tf.math.conj(outputs))
    weights = tf.math.real(upstream * tf.math.conj(outputs))
    weights = tf.math.divide_no_nan(weights, 2 * power)
    back = None
    if layer.crosstalk is not None:
        phases = exists["theta"].size + exists["phi"].size
        back = np.eye(len(existing))
        heated = existing < phases
        back[np.ix_(heated, heated)] = np.linalg.inv(_among_existing(layer))

    def by_name(flattened) -> dict:
        parts = tf.split(flattened, [e.size for e in exists.values()])
        pairs = zip(exists.items(), parts, strict=True)
        return {n: tf.reshape(part, e.shape) for (n, e), part in pairs}

    def shift(number):
        """The changes of the controls that shift one phase by 1 rad."""
        if back is None:
            element = tf.gather(tf.constant(existing, "int32"), number)
            change = tf.one_hot(element, len(flat), dtype=dtype)
        else:
            column = tf.gather(tf.constant(back.T, dtype), number)
            change = tf.scatter_nd(place, column, [len(flat)])
        return by_name(change)

    def by(rule):
        def slope(number):
            unit, found = shift(number), tf.zeros((), weights.dtype)
            for distance, factor in rule:
                with tf.control_dependencies([found]):
                    pair = _pair(shifted, {n: distance * c for n, c in unit.items()})
                ahead, behind = (tf.math.real(y * tf.math.conj(y)) for y in pair)
                found += factor * tf.reduce_sum(weights * (ahead - behind))
            return found

        return slope

    thetas = int(exists["theta"].sum())
    numbers = np.arange(len(existing))
    found = [
        one_by_one(by(_OF_THETA), numbers[:thetas], weights.dtype),
        one_by_one(by(_OF_PHASE), numbers[thetas:], weights.dtype),
    ]
    slopes = by_name(tf.scatter_nd(place, tf.concat(found, axis=0), [len(flat)]))
    return of_set_phases(layer, slopes), 2 * (thetas + len(existing))


def _one_if_free(layer: MZIMesh, imperfections: dict, like) -> tf.Tensor:
    """Returns 1 if no phase that shifts need is stuck; else raises (XLA: NaN)."""
    if layer.crosstalk is not None:
        names, cause = ("theta", "phi"), "crosstalk"
    elif layer.dac is not None:
        names, cause = ("phi", "gamma"), "a dac"
    else:
        return tf.ones((), like.dtype)
    stuck = tf.zeros((), "bool")
    for name in names:
        flags = imperfections[f"{name}_stuck"][..., 0] > 0.5
        stuck |= tf.reduce_any(flags & layer.quantity(name).exists)
    tf.debugging.Assert(
        tf.logical_not(stuck),
        [
            f"ParameterShift needs meshes without {cause} where {' or '.join(names)} "
            "is stuck: use Adjoint or CentralDifference. Received: layer "
            f"'{layer.name}' with both"
        ],
    )
    return tf.cast(tf.where(stuck, math.nan, 1.0), like.dtype)


def _span(dac) -> float:
    """The range of a converter plus one step, in rad."""
    if not isinstance(dac, DAC):
        return math.inf
    # A turn in float32 is slightly less, hence the tolerance.
    return (dac.high - dac.low) / (1 - 0.5**dac.bits) + 1e-6


def _among_existing(layer: MZIMesh) -> np.ndarray:
    """The crosstalk between the phase shifters that exist."""
    exists = layer.quantity("theta").exists.ravel()
    both = np.concatenate([exists, exists])
    return layer.crosstalk[np.ix_(both, both)]


def _pair(shifted, changes: dict) -> tuple:
    """Measures the outputs at controls + changes, then at controls − changes."""
    ahead = shifted(changes)
    with tf.control_dependencies([ahead]):
        return ahead, shifted({n: -c for n, c in changes.items()})
