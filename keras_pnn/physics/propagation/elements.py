"""Compute complex transmissions: lenses, apertures, tilts, aberrations, warps."""

import math

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics import imaging
from keras_pnn.physics._tensors import TensorLike, as_float64
from keras_pnn.physics.propagation.free_space import as_field, phasor


def lens(
    size: tuple[int, int],
    focal_length: TensorLike,
    wavelength: TensorLike,
    pitch: float,
    shift: TensorLike = (0.0, 0.0),
    on_pixel: bool = True,
    dtype: str = "complex64",
) -> tf.Tensor:
    """Returns the transmission of a thin lens, exp(−iπ (x² + y²)/(λ f)).

    Args:
        size: (height, width) of the plane in pixels.
        focal_length: Focal length in m, negative for a diverging lens.
        wavelength: Wavelength in m. Both are numbers, or tensors that broadcast.
        pitch: Distance between neighbouring pixels in m.
        shift: (y, x) of the lens's axis from the centre, in pixels.
        on_pixel: Whether the centre is pixel N // 2; otherwise it is the middle of the
            plane, between two pixels if N is even.
        dtype: `"complex64"` or `"complex128"`.

    Returns:
        Complex tensor (..., height, width), with the axes of `focal_length` and
        `wavelength`.

    Raises:
        ValueError: If `pitch` is not positive, `shift` is not a pair, or, for known
            values, a wavelength is not positive, a shift is not finite, or
            |focal_length| is below N · pitch²/λ, where the phase turns by more than π
            from pixel to pixel at the rim, N/2 pixels from the axis.

    Example:

    >>> lens((128, 128), 5e-3, wavelength=532e-9, pitch=2e-6).shape
    TensorShape([128, 128])

    Reference:

    - Goodman, Introduction to Fourier Optics, section 5.1.
    """
    pitch = _checks.real("pitch", pitch, above=0)
    _checks.positive("wavelength", wavelength)
    shift = _parameter("shift", shift, (2,), "(y, x)")
    known, wave = _checks.concrete(focal_length), _checks.concrete(wavelength)
    if known is not None and wave is not None:
        moved = _checks.concrete(shift)
        across = np.max(size if moved is None else size + 2 * np.abs(moved))
        least = across * pitch**2 / np.asarray(wave, "float64")
        good = np.isfinite(known) & (np.abs(known) >= least * (1 - 1e-9))
        if not good.all():
            expected = (
                f"at least {float(np.max(least)):g} m in magnitude, N · pitch²/λ for N "
                f"= {across:g} pixels of {pitch:g} m, twice the distance from axis to "
                "rim: the phase of a stronger lens turns by more than π from pixel to "
                "pixel there"
            )
            raise _checks.error("focal_length", expected, _checks.short(known[()]))
    y, x = _coordinates(size, shift, on_pixel)
    bend = math.pi * pitch**2 / (as_float64(wavelength) * as_float64(focal_length))
    return phasor(-bend[..., None, None] * (y**2 + x**2), dtype)


def aperture(
    size: tuple[int, int],
    diameter: float | tuple[float, float],
    pitch: float,
    shape: str = "circle",
    on_pixel: bool = True,
    dtype: str = "complex64",
) -> tf.Tensor:
    """Returns the transmission of an opening: 1 inside, 0 outside.

    Args:
        size: (height, width) of the plane in pixels.
        diameter: Diameter or side in m, one number or (y, x); infinite for a slit.
        pitch: Distance between neighbouring pixels in m.
        shape: `"circle"` or `"rectangle"`. The rim belongs to the opening.
        on_pixel: As in `lens`.
        dtype: `"complex64"` or `"complex128"`.

    Returns:
        Complex tensor (height, width).

    Raises:
        ValueError: If a diameter or `pitch` is not positive, or `shape` is unknown.

    Example:

    >>> float(tf.math.real(tf.reduce_sum(aperture((8, 8), 4.0, 1.0))))
    13.0
    """
    pitch = _checks.real("pitch", pitch, above=0)
    _checks.choice("shape", shape, ("circle", "rectangle"))
    half = np.asarray(diameter, "float64") / (2 * pitch)
    if half.shape not in ((), (2,)) or not (half > 0).all():
        raise _checks.error("diameter", "> 0, one number or (y, x)", repr(diameter))
    y, x = _coordinates(size, (0.0, 0.0), on_pixel)
    tall, wide = np.broadcast_to(half, (2,))
    y, x = tf.abs(y) / tall, tf.abs(x) / wide
    inside = y**2 + x**2 <= 1 if shape == "circle" else (y <= 1) & (x <= 1)
    return tf.cast(inside, dtype)


def tilt(
    size: tuple[int, int],
    angle: TensorLike,
    wavelength: TensorLike,
    pitch: float,
    dtype: str = "complex64",
) -> tf.Tensor:
    """Returns the transmission that deflects light, exp(2πi (y sin α + x sin β)/λ).

    Args:
        size: (height, width) of the plane in pixels.
        angle: (α, β) in rad, the deflection of light towards positive y and x.
        wavelength: Wavelength in m, a number or a tensor.
        pitch: Distance between neighbouring pixels in m.
        dtype: `"complex64"` or `"complex128"`.

    Returns:
        Complex tensor (..., height, width), with the axes of `wavelength`; 1 in the
        middle of the plane. In a graph, NaN where a sine is beyond λ/(2 pitch).

    Raises:
        ValueError: If `pitch` is not positive, `angle` is not a pair, or, for known
            values, a wavelength is not positive, or the sine of an angle is beyond
            λ/(2 pitch), that of the steepest wave that the pixels sample.

    Example:

    >>> tilt((8, 8), (0.0, 0.01), wavelength=532e-9, pitch=2e-6).shape
    TensorShape([8, 8])
    """
    pitch = _checks.real("pitch", pitch, above=0)
    _checks.positive("wavelength", wavelength)
    sine = tf.sin(as_float64(angle))
    if not sine.shape.is_compatible_with((2,)):
        raise _checks.error("angle", "(y, x)", f"shape {sine.shape}")
    wave, known = _checks.concrete(wavelength), _checks.concrete(angle)
    if wave is not None and known is not None:
        steepest = np.min(wave) / (2 * pitch)
        if not (np.abs(np.sin(known)) <= steepest).all():
            expected = f"within ±{math.asin(min(1, steepest)):g} rad, λ/(2 pitch)"
            raise _checks.error("angle", expected, repr(angle))
    y, x = _coordinates(size, (0.0, 0.0), on_pixel=False)
    turns = pitch / as_float64(wavelength)[..., None, None] * sine
    # A wave that is too steep would alias to a flatter one.
    nan = tf.constant(math.nan, turns.dtype)
    turns *= tf.where(tf.abs(turns) <= 0.5 * (1 + 1e-9), tf.ones_like(turns), nan)
    return phasor(2 * math.pi * (y * turns[..., :1] + x * turns[..., 1:]), dtype)


def aberration(
    size: tuple[int, int],
    defocus: TensorLike = 0.0,
    astigmatism: TensorLike = (0.0, 0.0),
    dtype: str = "complex64",
) -> tf.Tensor:
    """Returns the transmission of an aberrated wavefront.

        phase = defocus √3 (2ρ² − 1) + √6 ρ² (a cos 2θ + b sin 2θ),   (a, b) astigmatism

    with ρ = 1 on the circle whose diameter is the plane's shorter side.

    Args:
        size: (height, width) of the plane in pixels.
        defocus: Root mean square of the phase over that circle, in rad.
        astigmatism: (a, b), root mean squares at 0° and at 45°, in rad.
        dtype: `"complex64"` or `"complex128"`.

    Returns:
        Complex tensor (height, width).

    Raises:
        ValueError: If `defocus` is not one number or `astigmatism` is not a pair, or,
            for known values, one is not finite.

    Example:

    >>> aberration((8, 8), defocus=0.5).shape
    TensorShape([8, 8])

    Reference:

    - Noll, J. Opt. Soc. Am. 66:207 (1976), table I: Zernike terms 4 to 6.
    """
    y, x = (2 * v / min(size) for v in _coordinates(size, (0.0, 0.0), False))
    flat = _parameter("defocus", defocus, (), "one number")
    cross = _parameter("astigmatism", astigmatism, (2,), "a pair (0°, 45°)")
    phase = flat * math.sqrt(3) * (2 * (x**2 + y**2) - 1)
    # y points down, but θ runs counter-clockwise as displayed.
    phase += math.sqrt(6) * (cross[0] * (x**2 - y**2) - 2 * cross[1] * x * y)
    return phasor(phase, dtype)


def warp(
    transmission: TensorLike,
    rotation: TensorLike = 0.0,
    shift: TensorLike = (0.0, 0.0),
    scale: TensorLike = 1.0,
    outside: complex = 1.0,
) -> tf.Tensor:
    """Rotates, shifts and scales a complex transmission about the middle of the plane.

    Real and imaginary parts are interpolated (bilinearly), not the phase, which jumps
    by 2π where the transmission is smooth. See `imaging.affine` for the parameters,
    and for derivatives in an aligned plane.

    Args:
        transmission: Complex tensor (height, width).
        rotation: Angle in degrees, counter-clockwise as displayed.
        shift: (y, x) in pixels, down and to the right.
        scale: Magnification; above 1 enlarges.
        outside: Transmission beyond the rim.

    Returns:
        Complex tensor (height, width).

    Raises:
        ValueError: As `imaging.affine`.

    Example:

    >>> turned = warp(lens((64, 64), 1e-2, 532e-9, 2e-6), rotation=0.5)
    """
    field = as_field(transmission)
    beyond = tf.constant(outside, field.dtype)
    parts = tf.stack([tf.math.real(field - beyond), tf.math.imag(field - beyond)], -1)
    moved = imaging.affine(parts[None], rotation, shift, scale)[0]
    return tf.complex(moved[..., 0], moved[..., 1]) + beyond


def _parameter(name: str, value, shape: tuple, expected: str) -> tf.Tensor:
    """Returns an argument in float64; checks that it has the shape and is finite."""
    _checks.tensor(name, value, np.isfinite, "finite")
    found = as_float64(value)
    if not found.shape.is_compatible_with(shape):
        raise _checks.error(name, expected, f"shape {tuple(found.shape)}")
    return found


def _coordinates(size, shift, on_pixel: bool):
    """Returns y, of shape (height, 1), and x, (width,), in pixels from the centre."""
    shift = as_float64(shift)
    centers = [n // 2 if on_pixel else (n - 1) / 2 for n in size]
    y, x = (np.arange(n) - c for n, c in zip(size, centers, strict=True))
    return y[:, None] - shift[0], x - shift[1]
