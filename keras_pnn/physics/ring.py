"""Compute the transmission of a microring, and of a row of microrings.

`ResonanceTuning` in `physics/tuning/lorentzian.py` computes weights from both.
"""

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics._tensors import TensorLike, as_tensors


def add_drop(
    phase: TensorLike, r1: TensorLike, r2: TensorLike, amplitude: TensorLike
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the power transmissions of an add-drop ring.

    ```
    drop  ◄──────── r2 ────────
                  (    )
    input ───────── r1 ───────► through

    through = ((r1 - r2 a)² + 4 r1 r2 a sin²(phase/2)) / D
    drop    = (1 - r1²) (1 - r2²) a / D
    D       = (1 - r1 r2 a)² + 4 r1 r2 a sin²(phase/2)
    ```

    This is the textbook form with `1 - cos` as `2 sin²`, accurate near resonance.

    Args:
        phase: Round-trip phase in rad; 0 is resonance.
        r1: Self-coupling amplitude of the input coupler, in [0, 1].
        r2: Self-coupling amplitude of the drop coupler, in [0, 1].
        amplitude: Single-pass amplitude `a`, in [0, 1]. `r1 * r2 * amplitude` must
            be below 1, since a ring has coupling or loss.

    Returns:
        The fractions of the input power at the two ports, `(through, drop)`.

    Raises:
        ValueError: If, eagerly, an argument is out of its range.

    Example:

    >>> through, drop = add_drop(0.0, r1=0.5, r2=0.5, amplitude=1.0)
    >>> float(through), float(drop)
    (0.0, 1.0)

    Reference:

    - Bogaerts et al., "Silicon microring resonators", Laser Photonics Rev. 6:47
      (2012), the add-drop ring.
    """
    _checks.tensor("phase", phase, np.isfinite, "finite")
    for name, value in (("r1", r1), ("r2", r2), ("amplitude", amplitude)):
        _checks.fraction(name, value)
    phase, r1, r2, a = as_tensors(phase, r1, r2, amplitude)
    _checks.tensor("r1 * r2 * amplitude", r1 * r2 * a, lambda v: v < 1, "below 1")
    wave = 4 * r1 * r2 * a * tf.square(tf.sin(phase / 2))
    denominator = tf.square(1 - r1 * r2 * a) + wave
    through = (tf.square(r1 - r2 * a) + wave) / denominator
    # (1 - r)(1 + r) keeps the digits of 1 - r² for weak couplers.
    coupling = (1 - r1) * (1 + r1) * (1 - r2) * (1 + r2)
    return through, coupling * a / denominator


def lorentzian(
    detuning: TensorLike,
    half_width: TensorLike,
    through_min: TensorLike = 0.0,
    drop_max: TensorLike = 1.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the power transmissions of a ring near one resonance.

    ```
    u       = detuning / half_width
    through = (u² + through_min) / (1 + u²)
    drop    = drop_max / (1 + u²)
    ```

    Args:
        detuning: Resonance minus laser, in nm, finite.
        half_width: Half the full width at half maximum, in nm: wavelength / (2 Q).
        through_min: Through power on resonance, in [0, 1].
        drop_max: Drop power on resonance, in [0, 1]. `through_min + drop_max` must
            not be above 1, since no more light leaves than enters.

    Returns:
        The fractions of the input power at the two ports, `(through, drop)`.

    Raises:
        ValueError: If, eagerly, an argument is out of its range.

    Example:

    >>> through, drop = lorentzian(0.15, half_width=0.15)
    >>> float(through - drop)
    0.0

    Reference:

    - Bogaerts et al., "Silicon microring resonators", Laser Photonics Rev. 6:47
      (2012).
    - Tait et al., "Neuromorphic photonic networks using silicon photonic weight
      banks", Sci. Rep. 7:7430 (2017): the weight, through minus drop.
    """
    _checks.tensor("detuning", detuning, np.isfinite, "finite")
    _checks.positive("half_width", half_width)
    _checks.fraction("through_min", through_min)
    _checks.fraction("drop_max", drop_max)
    least, most = _checks.concrete(through_min), _checks.concrete(drop_max)
    if least is not None and most is not None:
        # The margin is for float32 sums such as 0.9 + 0.1.
        total = least.astype("float64") + most
        _checks.tensor("through_min + drop_max", total, lambda v: v <= 1 + 1e-6, "≤ 1")
    detuning, half_width, through_min, drop_max = as_tensors(
        detuning, half_width, through_min, drop_max
    )
    # Not `** 2`, whose third derivative is NaN at 0.
    square = tf.square(detuning / half_width)
    return (square + through_min) / (1 + square), drop_max / (1 + square)


def wdm_row(
    detuning: TensorLike,
    half_width: TensorLike,
    through_min: TensorLike = 0.0,
    drop_max: TensorLike = 1.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the power transmissions of a row of rings on one bus.

    ```
    channels ──► ring 0 ──► ring 1 ──► … ──► through
                   │          │
                   └──────────┴────────────► drop

    through_k = Π_j T_j(k)
    drop_k    = Σ_j drop_j(k) Π_{i<j} T_i(k)
    ```

    Every channel passes every ring, ring 0 first. The products are taken pairwise, so
    that derivatives of any order stay finite where a ring is on resonance.

    Args:
        detuning: Float tensor of shape `(..., rings, channels)`: each ring's
            resonance minus each channel's laser, in nm. The number of rings
            must be known statically.
        half_width, through_min, drop_max: As in `lorentzian`; a value per ring has
            the shape `(..., rings, 1)`.

    Returns:
        The fractions of each channel's power at the two ends of the row,
        `(through, drop)`, each of shape `(..., channels)`.

    Raises:
        ValueError: If shapes do not fit, or eagerly: an argument is out of its range.

    Example:

    >>> through, drop = wdm_row([[0.0, 0.8], [-0.8, 0.0]], half_width=0.077)
    >>> through.shape
    TensorShape([2])

    Reference:

    - Tait et al., "Neuromorphic photonic networks using silicon photonic weight
      banks", Sci. Rep. 7:7430 (2017).
    """
    through, drop = lorentzian(detuning, half_width, through_min, drop_max)
    # A parameter given per ring may broadcast only one of the two.
    through, drop = through + tf.zeros_like(drop), drop + tf.zeros_like(through)
    if through.shape.rank is None or through.shape.rank < 2 or not through.shape[-2]:
        raise ValueError(
            "Argument `detuning` must have the shape (..., rings, channels), with a "
            f"known number of rings, at least 1. Received: shape {through.shape}"
        )
    while through.shape[-2] > 1:
        through, drop = _halve(through, drop)
    return through[..., 0, :], drop[..., 0, :]


def _halve(through, drop):
    """Joins rings in neighbouring pairs; half as many remain."""
    even = through.shape[-2] // 2 * 2
    first, second = through[..., 0:even:2, :], through[..., 1:even:2, :]
    joined_drop = drop[..., 0:even:2, :] + first * drop[..., 1:even:2, :]
    joined_through = first * second
    if even == through.shape[-2]:
        return joined_through, joined_drop
    return (
        tf.concat([joined_through, through[..., even:, :]], axis=-2),
        tf.concat([joined_drop, drop[..., even:, :]], axis=-2),
    )
