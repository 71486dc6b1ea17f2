"""Propagate fields in free space: the angular spectrum and Fresnel's approximation."""

import math

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics._tensors import TensorLike, as_complex, as_float64, sizes


def angular_spectrum(
    field: TensorLike,
    distance: TensorLike,
    wavelength: TensorLike,
    pitch: float,
    band_limit: bool = True,
    padding: int | None = None,
) -> tf.Tensor:
    """Propagates a field by its angular spectrum, exactly for the sampled field.

        E(z) = F⁻¹{ F{E} · exp(i k_z z) },   k_z = 2π √(1/λ² − f_x² − f_y²)

    Evanescent waves, with an imaginary k_z, decay with |z|. Phases are computed in
    float64, as k_z z is tens of thousands of rad. Derivatives with respect to field,
    distance and wavelength are exact, except that the band limit is held fixed.

    A discrete spectrum describes a periodic plane: light that leaves on one side comes
    back on the other. `padding` adds a dark margin for light to spread into, and the
    band limit removes waves that would cross the margin and come back.

    Args:
        field: Complex or real tensor of shape (..., height, width).
        distance: Distance in m, negative to propagate backwards: a number, or a tensor
            that broadcasts with the leading axes of `field`.
        wavelength: Wavelength in m, as `distance`.
        pitch: Distance between neighbouring pixels in m.
        band_limit: Whether to remove waves that the sampling cannot resolve:
            |f| > 1/(λ √(1 + (2 z Δf)²)) in each axis, with Δf = 1/(N · pitch).
        padding: Dark pixels added on each side, and cropped again; 0 makes the plane
            periodic. Default: half of each side of the field.

    Returns:
        Complex tensor, complex128 for a complex128 or float64 field, else complex64.

    Raises:
        ValueError: If `field` has fewer than two axes, `pitch` is not positive,
            `padding` is negative, or, for known values, a distance is not finite, a
            wavelength is not positive, or the distance is beyond (N · pitch)²/(2 λ),
            where only the mean passes the band limit. (On a periodic plane without
            band limit, any distance is allowed and exact.)

    Example:

    >>> field = np.zeros((64, 64), "complex64")
    >>> field[24:40, 24:40] = 1.0
    >>> far = angular_spectrum(field, 1e-3, wavelength=532e-9, pitch=2e-6)
    >>> far.shape, far.dtype
    (TensorShape([64, 64]), tf.complex64)

    Reference:

    - Goodman, Introduction to Fourier Optics, section 3.10.
    - Matsushima and Shimobaba, Opt. Express 17:19662 (2009), eq. 13: the band limit.
    """
    return _propagated(field, distance, wavelength, pitch, band_limit, padding, False)


def fresnel(
    field: TensorLike,
    distance: TensorLike,
    wavelength: TensorLike,
    pitch: float,
    band_limit: bool = True,
    padding: int | None = None,
) -> tf.Tensor:
    """Propagates a field in the paraxial approximation of Fresnel.

        E(z) = F⁻¹{ F{E} · exp(i k z − iπ λ z (f_x² + f_y²)) }

    Args:
        field, distance, wavelength, pitch, band_limit, padding: As in
            `angular_spectrum`, with the band limit |f| ≤ 1/(2 λ z Δf).

    Returns:
        Complex tensor, as `angular_spectrum`.

    Raises:
        ValueError: As `angular_spectrum`.

    Example:

    >>> field = np.ones((16, 16), "complex64")
    >>> fresnel(field, 1e-4, 532e-9, 2e-6, padding=0).shape
    TensorShape([16, 16])

    Reference:

    - Goodman, Introduction to Fourier Optics, section 4.2.
    """
    return _propagated(field, distance, wavelength, pitch, band_limit, padding, True)


def _propagated(field, distance, wavelength, pitch, band_limit, padding, paraxial):
    field = as_field(field)
    pitch = _checks.real("pitch", pitch, above=0)
    height, width = sizes(field)[-2:]
    pads = height // 2, width // 2
    if padding is not None:
        pads = (_checks.integer("padding", padding, low=0),) * 2
    place = (height + 2 * pads[0], width + 2 * pads[1]), distance, wavelength, pitch
    transfer = transfer_function(*place, band_limit, paraxial, dtype=field.dtype)
    if band_limit or padding != 0:
        check_distance(*place)
    return filtered(field, transfer, pads)


def transfer_function(
    size: tuple[int, int],
    distance: TensorLike,
    wavelength: TensorLike,
    pitch: float,
    band_limit: bool = True,
    paraxial: bool = False,
    common_phase: bool = True,
    dtype: str = "complex64",
) -> tf.Tensor:
    """Computes the transfer function of free space for the spectrum of a plane.

    Args:
        size: (height, width) of the plane with its padding, in pixels.
        distance, wavelength, pitch, band_limit: as in `angular_spectrum`.
        paraxial: whether to approximate as in `fresnel`.
        common_phase: whether to include the phase k z of the straight wave. No
            detector sees it, and derivatives with respect to distance and wavelength
            are more precise without it.

    Returns:
        Complex tensor (..., height, width), frequencies in the order of `tf.signal`,
        with the leading axes of `distance` and `wavelength`.
    """
    _checks.tensor("distance", distance, np.isfinite, "finite")
    _checks.positive("wavelength", wavelength)
    z, wave = (as_float64(v)[..., None, None] for v in (distance, wavelength))
    square = sum(f**2 for f in np.ix_(*map(np.fft.fftfreq, size)))
    # sin² of the angle to the axis.
    sine = square * (wave / pitch) ** 2
    turns = z / wave
    decay = 1.0
    if paraxial:
        phase = -0.5 * sine
    else:
        # 1 replaces the arguments of unused roots, so that derivatives are finite.
        travels, one = sine < 1, tf.ones_like(sine)
        cosine = tf.sqrt(tf.where(travels, 1 - sine, one))
        # √(1 − s) − 1 without cancellation.
        phase = tf.where(travels, -sine / (1 + cosine), -one)
        decay = tf.sqrt(tf.where(travels, one, sine - 1))
        decay = tf.where(travels, 0 * one, decay)
        decay = tf.exp(-2 * math.pi * tf.abs(turns) * decay)
    phase = 2 * math.pi * turns * (phase + (1.0 if common_phase else 0.0))
    if band_limit:
        decay *= within_band(size, z, wave, pitch, paraxial)
    return phasor(phase, dtype, decay)


def within_band(size: tuple[int, int], distance, wavelength, pitch, paraxial=False):
    """Returns 1 for waves whose transfer function is sampled densely enough, else 0."""
    z, wave = (tf.stop_gradient(as_float64(v)) for v in (distance, wavelength))
    steps = (np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1]))
    passes = True
    for step, n in zip(steps, size, strict=True):
        # slope · tan(angle to the axis) is the phase step per sample, in half turns.
        slope = 2 * z / (n * pitch)
        root = tf.abs(slope) if paraxial else tf.sqrt(1 + slope**2)
        passes &= np.abs(step) / pitch * wave * root <= 1.0
    return tf.cast(passes, "float64")


def check_distance(size, distance, wavelength, pitch) -> None:
    """Checks that more than the mean of a field passes the band limit."""
    z, wave = _checks.concrete(distance), _checks.concrete(wavelength)
    if z is None or wave is None or not all(isinstance(n, int) for n in size):
        return
    longest = (min(size) * pitch) ** 2 / (2 * np.asarray(wave, "float64"))
    # Equality up to rounding passes.
    if (np.abs(z) > longest * (1 + 1e-9)).any():
        far, most = float(np.abs(z).max()), float(np.min(longest))
        expected = (
            f"at most {most:g} m, (N · pitch)²/(2 λ) for N = {min(size)} pixels of "
            f"{pitch:g} m with their padding, beyond which the sampling resolves none "
            "of the waves: use more pixels or padding, or a larger pitch"
        )
        raise _checks.error("distance", expected, f"{far:g}")


def filtered(
    field: tf.Tensor, transfer: tf.Tensor, pads: tuple[int, int] = (0, 0)
) -> tf.Tensor:
    """Multiplies the spectrum of a field: F⁻¹{ F{field} · transfer }.

    `pads` are the dark rows and columns added on each side, and cropped again;
    `transfer` has the size of the padded field.
    """
    height, width = sizes(field)[-2:]
    top, left = pads
    dark = [[0, 0]] * (field.shape.rank - 2) + [[top, top], [left, left]]
    wide = _filtered(tf.pad(field, dark), transfer)
    return wide[..., top : top + height, left : left + width]


@tf.custom_gradient
def _filtered(field, transfer):
    # The adjoint is the same operation with the conjugate of `transfer`, without the
    # factors of two separate transforms.
    def gradient(upstream):
        back = _filtered(upstream, tf.math.conj(transfer))
        # The gradient of `transfer`, which a graph prunes if it is not needed.
        count = tf.cast(tf.reduce_prod(tf.shape(field)[-2:]), upstream.dtype)
        own = tf.math.conj(tf.signal.fft2d(field)) * tf.signal.fft2d(upstream)
        return _summed(back, field), _summed(own / count, transfer)

    return tf.signal.ifft2d(tf.signal.fft2d(field) * transfer), gradient


def _summed(gradient, like):
    """Sums a gradient over the axes along which `like` was broadcast."""
    extra = gradient.shape.rank - like.shape.rank
    gradient = tf.reduce_sum(gradient, list(range(extra))) if extra else gradient
    ones = [
        axis
        for axis, (n, m) in enumerate(zip(like.shape, gradient.shape, strict=True))
        if n == 1 and m != 1
    ]
    return tf.reduce_sum(gradient, ones, keepdims=True) if ones else gradient


def phasor(phase: tf.Tensor, dtype: str = "complex64", amplitude=1.0) -> tf.Tensor:
    """Returns amplitude · exp(i phase), computed in the precision of the phase."""
    real = tf.as_dtype(dtype).real_dtype
    parts = (amplitude * part for part in (tf.cos(phase), tf.sin(phase)))
    return tf.complex(*(tf.cast(part, real) for part in parts))


def as_field(value) -> tf.Tensor:
    """Returns a field as complex64, or as complex128 if it has double precision."""
    given = tf.convert_to_tensor(value)
    wide = given.dtype in (tf.complex128, tf.float64)
    if given.shape.rank is not None and given.shape.rank < 2:
        expected = "a tensor of shape (..., height, width)"
        raise _checks.error("field", expected, f"shape {given.shape}")
    return as_complex(given, tf.complex128 if wide else tf.complex64)
