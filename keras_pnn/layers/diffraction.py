"""Diffract light: encoding, free space, lenses and apertures.

To add an imperfection, declare it in `build` and use it in `forward`; devices, drift,
sweeps and training need nothing else.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.layers.detector_array import DetectorArray
from keras_pnn.layers.diffraction_masks import PhaseMask
from keras_pnn.layers.fields import Passive, PlaneOutputs
from keras_pnn.layers.mixins import RealInputs
from keras_pnn.layers.optics import PITCH, WAVELENGTH, Optics
from keras_pnn.physics import propagation
from keras_pnn.physics._tensors import as_complex, as_float64
from keras_pnn.physics.propagation import free_space


@keras.saving.register_keras_serializable(package="keras_pnn")
class Encode(RealInputs, PlaneOutputs, Passive):
    """Encodes images as fields: resizes them (bilinearly), and adds dark pixels.

    Args:
        encoding: `"amplitude"`: the field is the pixel; `"intensity"`: its square
            root; or `"phase"`: exp(i pixel), pixels in rad, with dark pixels around.
        size: (height, width) that images are resized to, one number for both.
            Default: that of the images.
        padding: dark pixels on each side.

    Input shape: `(batch, height, width)` or `(batch, height, width, 1)`, real; for
    `"intensity"` not negative.

    Output shape: `(batch, height + 2 · padding, width + 2 · padding)` after resizing,
    complex64; complex128 with the policy `"float64"`.

    Raises:
        ValueError: If an argument is out of range, the inputs are complex or not images
            of one channel, or (eagerly) an intensity is negative.

    Example:

    >>> encode = pnn.layers.Encode("intensity", size=64, padding=32)
    >>> encode(np.ones((2, 28, 28), "float32")).shape
    TensorShape([2, 128, 128])
    """

    def __init__(
        self,
        encoding: str = "amplitude",
        size: int | tuple[int, int] | None = None,
        padding: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        kinds = ("amplitude", "phase", "intensity")
        self.encoding = _checks.choice("encoding", encoding, kinds)
        self.size = _checks.optional(_checks.pair, "size", size, low=1)
        self.padding = _checks.integer("padding", padding, low=0)

    def _act(self, inputs):
        height, width = _image_size(inputs.shape)
        dtype = tf.as_dtype(self._output_dtype)
        images = tf.cast(tf.convert_to_tensor(inputs), dtype.real_dtype)
        images = tf.reshape(images, (-1, height, width))
        if self.size not in (None, (height, width)):
            # As matrix products, which have second derivatives.
            rows, columns = map(_resizing, (height, width), self.size)
            rows, columns = (tf.constant(m, images.dtype) for m in (rows, columns))
            images = tf.einsum("Yy,byx,Xx->bYX", rows, images, columns)
        if self.encoding == "phase":
            fields = tf.complex(tf.cos(images), tf.sin(images))
        else:
            if self.encoding == "intensity":
                _checks.not_negative("inputs", images)
                dark = tf.equal(images, 0)
                # Gives a slope of 0 in the dark, where that of a root is infinite.
                one = tf.ones_like(images)
                images = tf.where(dark, images, tf.sqrt(tf.where(dark, one, images)))
            fields = as_complex(images, dtype)
        return tf.pad(fields, [[0, 0], *([[self.padding] * 2] * 2)])

    def compute_output_shape(self, input_shape) -> tuple:
        size = self.size or _image_size(input_shape)
        return (input_shape[0], *(n + 2 * self.padding for n in size))


def _image_size(shape) -> tuple[int, int]:
    shape = tuple(shape)
    if (
        len(shape) not in (3, 4)
        or None in shape[1:]
        or (len(shape) == 4 and shape[3] != 1)
    ):
        expected = "(batch, height, width) or (batch, height, width, 1)"
        raise ValueError(
            f"The inputs of `Encode` must have the shape {expected}. "
            f"Received: shape {shape}"
        )
    return shape[1:3]


def _resizing(n: int, size: int) -> np.ndarray:
    """Returns the matrix (size, n) that resizes a row of pixels bilinearly."""
    place = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(n)))


@keras.saving.register_keras_serializable(package="keras_pnn")
class FreeSpace(Optics):
    """Propagates fields over a distance, see `physics.propagation.angular_spectrum`.

    The phase k z of the straight wave, which no detector sees, is left out. All devices
    have the band limit of the design.

    Imperfections: `distance_error` in µm, and `wavelength_shift` in nm (shared).

    Args:
        distance: distance in m.
        wavelength: wavelength in m. Default, as for `pitch`: that of the reference.
        pitch: distance between neighbouring pixels in m.
        band_limit: whether to remove waves that the sampling cannot resolve.
        padding: dark pixels added on each side during propagation, and cropped again;
            0 makes the plane periodic. Default: half of each side.

    Input shape: `(batch, height, width)`, complex, or real amplitudes.

    Output shape: that of the inputs, complex64; complex128 with the policy
    `"float64"`.

    Raises:
        ValueError: If an argument is out of range, the inputs are not planes, or the
            distance is beyond what the sampling resolves.

    Example:

    >>> layer = pnn.layers.FreeSpace(2e-3, wavelength=532e-9, pitch=2e-6)
    >>> layer(np.ones((1, 64, 64), "complex64")).shape
    TensorShape([1, 64, 64])

    Reference:

    - Xu et al., Nat. Commun. 17, 1766 (2026): the default wavelength and pitch.
    """

    def __init__(
        self,
        distance: float,
        wavelength: float = WAVELENGTH,
        pitch: float = PITCH,
        band_limit: bool = True,
        padding: int | None = None,
        **kwargs,
    ):
        super().__init__(wavelength, pitch, **kwargs)
        self.distance = _checks.real("distance", distance)
        self.band_limit = _checks.boolean("band_limit", band_limit)
        self.padding = _checks.optional(_checks.integer, "padding", padding, low=0)

    def build(self, input_shape):
        size = self.compute_output_shape(input_shape)[1:]
        self.input_spec = keras.layers.InputSpec(shape=(None, *size))
        self._pads = tuple(
            n // 2 if self.padding is None else self.padding for n in size
        )
        self._wide = tuple(n + 2 * p for n, p in zip(size, self._pads, strict=True))
        if self.band_limit or self.padding != 0:
            free_space.check_distance(
                self._wide, self.distance, self.wavelength, self.pitch
            )
        self.add_imperfection("distance_error", (), unit="µm")
        self._add_wavelength_shift()

    def forward(self, inputs, controls, imperfections):
        distance = self.distance + 1e-6 * as_float64(imperfections["distance_error"])
        transfer = free_space.transfer_function(
            self._wide,
            distance,
            self._wave(imperfections),
            self.pitch,
            band_limit=False,
            common_phase=False,
            dtype=self._output_dtype,
        )
        if self.band_limit:
            place = self._wide, self.distance, self.wavelength, self.pitch
            transfer *= tf.cast(free_space.within_band(*place), transfer.dtype)
        return free_space.filtered(self._fields(inputs), transfer, self._pads)


@keras.saving.register_keras_serializable(package="keras_pnn")
class Lens(Optics):
    """Multiplies fields by a thin lens, exp(−iπ (x² + y²)/(λ f)), and its aberrations.

    Imperfections: `decenter` of the axis, (y, x) in pixels, limited so that the phase
    turns by at most π from pixel to pixel at the rim; `defocus` and `astigmatism` (0°,
    45°), root mean squares in rad, see `physics.propagation.aberration`; and
    `wavelength_shift` in nm (shared).

    Args:
        focal_length: focal length in m, negative for a diverging lens.
        wavelength, pitch: as in `FreeSpace`.
        on_pixel: whether the axis meets pixel N // 2 or the middle of the plane.

    Input shape, output shape: as in `FreeSpace`.

    Raises:
        ValueError: If an argument is out of range, the inputs are not planes, or the
            lens is too strong for the pitch.

    Example:

    >>> lens = pnn.layers.Lens(5e-3)
    >>> lens(np.ones((1, 64, 64), "complex64")).shape
    TensorShape([1, 64, 64])
    """

    def __init__(
        self,
        focal_length: float,
        wavelength: float = WAVELENGTH,
        pitch: float = PITCH,
        on_pixel: bool = True,
        **kwargs,
    ):
        super().__init__(wavelength, pitch, **kwargs)
        self.focal_length = _checks.real("focal_length", focal_length)
        self.on_pixel = _checks.boolean("on_pixel", on_pixel)

    def build(self, input_shape):
        size = self.compute_output_shape(input_shape)[1:]
        propagation.lens(size, self.focal_length, self.wavelength, self.pitch)
        # With a larger offset, the phase would alias at the rim.
        room = abs(self.focal_length) * self.wavelength / self.pitch**2 - max(size)
        room = max(room / 2, 1e-9)
        bounds = {"lower_bound": -room, "upper_bound": room}
        self.add_imperfection("decenter", (2,), unit="px", **bounds)
        self.add_imperfection("defocus", (), unit="rad")
        self.add_imperfection("astigmatism", (2,), unit="rad")
        self._add_wavelength_shift()

    def forward(self, inputs, controls, imperfections):
        fields, dtype = self._fields(inputs), self._output_dtype
        size = tuple(fields.shape[1:])
        transmission = propagation.lens(
            size,
            self.focal_length,
            self._wave(imperfections),
            self.pitch,
            imperfections["decenter"],
            self.on_pixel,
            dtype,
        )
        wavefront = [imperfections[name] for name in ("defocus", "astigmatism")]
        return fields * (transmission * propagation.aberration(size, *wavefront, dtype))


@keras.saving.register_keras_serializable(package="keras_pnn")
class Aperture(PlaneOutputs, Passive):
    """Passes light inside an opening, see `physics.propagation.aperture`.

    Args:
        diameter: diameter or side in m, one number or (y, x).
        pitch: as in `FreeSpace`.
        shape: `"circle"` or `"rectangle"`.
        on_pixel: whether the centre is pixel N // 2 or the middle of the plane.

    Input shape, output shape: as in `FreeSpace`.

    Raises:
        ValueError: If an argument is out of range, or the inputs are not planes.

    Example:

    >>> stop = pnn.layers.Aperture(100e-6)
    >>> stop(np.ones((1, 64, 64), "complex64")).shape
    TensorShape([1, 64, 64])
    """

    def __init__(
        self,
        diameter: float | tuple[float, float],
        pitch: float = PITCH,
        shape: str = "circle",
        on_pixel: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.diameter = tuple(diameter) if np.iterable(diameter) else diameter
        self.pitch, self.shape = pitch, shape
        self.on_pixel = _checks.boolean("on_pixel", on_pixel)
        self._opening((1, 1))

    def _opening(self, size):
        given = self.diameter, self.pitch, self.shape, self.on_pixel
        return propagation.aperture(size, *given, dtype=self._output_dtype)

    def _act(self, inputs):
        fields = self._fields(inputs)
        return fields * self._opening(tuple(fields.shape[1:]))


def diffractive(
    masks: int = 5,
    distance: float | Sequence[float] = 2e-3,
    size: int | tuple[int, int] = 64,
    margin: int = 32,
    detectors: DetectorArray | None = None,
    nonlinearity=None,
    encoding: str = "amplitude",
    wavelength: float = WAVELENGTH,
    pitch: float = PITCH,
    band_limit: bool = True,
    padding: int | None = None,
    name: str | None = None,
    **mask,
) -> keras.Sequential:
    """Builds a diffractive network: encoder, masks in free space, detectors.

        image ─► Encode ─► [ FreeSpace ─► PhaseMask ─► nonlinearity ] × masks
                                                ─► FreeSpace ─► DetectorArray

    Args:
        masks: number of phase masks.
        distance: distance in m between planes, one for all, or `masks + 1` of them.
        size, encoding: of the image, see `Encode`.
        margin: dark pixels around the image, the `padding` of `Encode`.
        detectors: where light is read. Default: ten detectors, `DetectorArray()`.
        nonlinearity: a function without arguments that returns a layer acting on
            fields, such as `pnn.layers.Threshold`. Default: none.
        wavelength, pitch, band_limit, padding: of all layers, see `FreeSpace`.
        name: name of the model.
        **mask: further arguments of each `PhaseMask`.

    Returns:
        A `keras.Sequential` model; its first call builds it.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> model = pnn.layers.diffractive(masks=2)
    >>> model(np.ones((3, 28, 28), "float32")).shape
    TensorShape([3, 10])

    Reference:

    - Lin et al., Science 361:1004 (2018).
    """
    masks = _checks.integer("masks", masks, low=0)
    distances = list(distance) if np.iterable(distance) else [distance] * (masks + 1)
    if len(distances) != masks + 1:
        expected = f"one number, or {masks + 1}, one more than there are masks"
        raise _checks.error("distance", expected, repr(distance))
    light = {"wavelength": wavelength, "pitch": pitch}

    def space(z):
        return FreeSpace(z, band_limit=band_limit, padding=padding, **light)

    stack = [Encode(encoding, size, margin)]
    for z in distances[:-1]:
        stack += [space(z), PhaseMask(**light, **mask)]
        if nonlinearity is not None:
            stack.append(nonlinearity())
    stack += [space(distances[-1]), detectors or DetectorArray()]
    return keras.Sequential(stack, name=name)
