"""Multiply images by masks on a spatial light modulator: the layer `MaskedSLM`."""

import math
import os
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_pnn import _checks
from keras_pnn._png import read_png, write_png
from keras_pnn.layers.limits import DAC, ControlRange, get_dac
from keras_pnn.layers.mixins import RealInputs, add_bias, biased, reading_noise
from keras_pnn.layers.physical import PhysicalLayer, check_built
from keras_pnn.physics import detection, frames, imaging


def _drawn_as_matrix(initializer) -> Callable:
    """Returns an initializer that draws a matrix (pixels, units), clipped to ±1."""

    def drawn(shape, dtype=None):
        units, height, width = shape
        matrix = initializer((height * width, units), dtype=dtype)
        return ops.clip(ops.reshape(ops.transpose(matrix), shape), -1.0, 1.0)

    return drawn


@keras.saving.register_keras_serializable(package="keras_pnn")
class MaskedSLM(RealInputs, PhysicalLayer):
    """A dense layer in free space: images times masks, summed by a camera.

        display            SLM frame           camera
        ┌──┬──┬──┬──┐      ┌──┬──┬──┬──┐       ┌──┬──┬──┬──┐
        │x │x │x │x │  ──► │m₀│m₁│m₂│m₃│  ──►  │Σ │Σ │Σ │Σ │
        │x │x │x │x │      │m₄│m₅│m₆│m₇│       │Σ │Σ │Σ │Σ │
        └──┴──┴──┴──┘      └──┴──┴──┴──┘       └──┴──┴──┴──┘

    `outputs = activation(Σ_pixels x · w)`: the display shows the image once for each
    unit, the spatial light modulator (SLM) attenuates each copy by the unit's mask,
    and a region of the camera sums the light (Xu et al., section 2.3). `w` is the
    frame of masks at the display's pixels: the whole frame is rotated, shifted and
    scaled about its centre, while display and camera stay in place. Light that misses
    the frame is lost.

    An SLM transmits from 0 to 1. A signed mask m is shown as t = (1 + m)/2, with
    margins and empty tiles at mid-grey; an entirely white frame measures Σx, and
    2 Σ x·t − Σ x is the signed sum. Negative inputs work in the same way: with
    `display_range=(low, high)` the display shows (x − low)/(high − low), and low · Σw
    of the aligned frame is added digitally. Without a display range, both are exact,
    and the layer is the signed product itself.

    Controls: `mask`, of shape (units, height, width), from −1 to 1.
    Imperfections of the frame: `rotation` (degrees, positive counter-clockwise as
    displayed), `shift` (SLM pixels, (y, x), positive down and right) and `scale`
    (nominally 1).

    Args:
        units: Integer. Number of outputs.
        tile: Height and width of a mask, and of the image. Default: those of the
            inputs; for flat inputs, a square.
        grid: Rows and columns of tiles on a frame. Units that do not fit go to
            further frames.
        margin: Rows and columns of mid-grey on each side of a mask, before
            `pixel_repeat`: one number for both, or two.
        pixel_repeat: Rows and columns of the SLM for one row and column of a mask.
        activation: As in `Dense`, applied digitally.
        use_bias: Whether a digital bias is added.
        display_range: (low, high) of the inputs that the display shows; values
            beyond are clipped. Default: signed inputs, displayed exactly.
        display_bits: Resolution of the display. Needs `display_range`.
        dac: A quantiser of the masks, such as `pnn.layers.DAC(8, -1, 1)`.
        contrast: Brightest over darkest transmission of the SLM, above 1: the frame
            shows w = m + (1 − m)/contrast. Default infinite.
        photons: Mean number of photons that the camera detects for one product of a
            white display pixel and a white mask pixel, which sets the shot noise
            of each sum, including that of the reference. Needs `display_range`.
        read_noise: Standard deviation of each reading of the camera, in the unit of
            one such product. Needs `display_range`.
        seed: Seed of the noise, as in `ShotNoise`.
        mask_initializer: Draws the masks as a matrix (height · width, units), clipped
            to ±1.
        mask_regularizer, bias_initializer, bias_regularizer: As in `Dense`.
        mask_constraint: As in `Dense`. The default keeps masks within ±1.

    Input shape: `(batch, height, width)`, `(batch, height, width, 1)` or
    `(batch, height · width)`.

    Output shape: `(batch, units)`.

    Raises:
        ValueError: If the inputs are complex or not of the size of `tile`, if an option
            of the display or the camera is out of range or needs `display_range`, or
            (eagerly) if a rotation or shift is NaN or a scale is not positive.

    Example:

    >>> layer = pnn.layers.MaskedSLM(144, activation="sigmoid")
    >>> layer(np.ones((8, 28, 28), "float32")).shape
    TensorShape([8, 144])
    >>> layer.frames().shape
    (12, 96, 240)

    Reference:

    - Xu et al., arXiv:2411.12352, section 2.3.
    - Wang et al., Nat. Commun. 13:123 (2022): photons per multiplication.
    """

    def __init__(
        self,
        units: int,
        tile: tuple[int, int] | None = None,
        grid: tuple[int, int] = (3, 4),
        margin: int | tuple[int, int] = (2, 1),
        pixel_repeat: int | tuple[int, int] = (1, 2),
        activation: str | Callable | None = None,
        use_bias: bool = False,
        display_range: tuple[float, float] | None = None,
        display_bits: int | None = None,
        dac: DAC | None = None,
        contrast: float | None = None,
        photons: float | None = None,
        read_noise: float = 0.0,
        seed: int | None = None,
        mask_initializer: str | keras.initializers.Initializer = "glorot_uniform",
        mask_regularizer: str | keras.regularizers.Regularizer | None = None,
        mask_constraint: str | keras.constraints.Constraint | None = "range",
        bias_initializer: str | keras.initializers.Initializer = "zeros",
        bias_regularizer: str | keras.regularizers.Regularizer | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = _checks.integer("units", units, low=1)
        self.tile = _checks.optional(_checks.pair, "tile", tile, low=1)
        self.grid = _checks.pair("grid", grid, low=1)
        self.margin = _checks.pair("margin", margin, low=0)
        self.pixel_repeat = _checks.pair("pixel_repeat", pixel_repeat, low=1)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.display_range = _checks.optional(_range, "display_range", display_range)
        self.display_bits = _checks.optional(
            _checks.integer, "display_bits", display_bits, 1, 24
        )
        self.dac = get_dac(dac)
        if isinstance(self.dac, DAC) and (self.dac.low, self.dac.high) != (-1, 1):
            raise ValueError(
                "`dac` must have steps from -1, black, to 1, white. Received: "
                f"low={self.dac.low}, high={self.dac.high}"
            )
        self.contrast = _checks.optional(_checks.real, "contrast", contrast, above=1)
        self.photons = _checks.optional(_checks.real, "photons", photons, above=0)
        self.read_noise = _checks.real("read_noise", read_noise, low=0)
        for name in ("display_bits", "photons", "read_noise"):
            if display_range is None and getattr(self, name):
                raise ValueError(
                    f"`{name}` needs `display_range`, the inputs shown as black and as "
                    f"white. Received: {name}={getattr(self, name)}"
                )
        self.seed = seed
        self._noisy = self.photons is not None or self.read_noise > 0
        if self._noisy:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.mask_initializer = keras.initializers.get(mask_initializer)
        self.mask_regularizer = keras.regularizers.get(mask_regularizer)
        self.mask_constraint = (
            ControlRange(-1.0, 1.0)
            if mask_constraint == "range"
            else keras.constraints.get(mask_constraint)
        )
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)

    def build(self, input_shape) -> None:
        size = _image_size(tuple(input_shape), self.tile)
        self.add_control(
            "mask",
            (self.units, *size),
            unit="",
            initializer=_drawn_as_matrix(self.mask_initializer),
            regularizer=self.mask_regularizer,
            constraint=self.mask_constraint,
        )
        self.add_imperfection("rotation", (), unit="deg")
        self.add_imperfection("shift", (2,), unit="px")
        self.add_imperfection("scale", (), unit="", nominal=1.0, lower_bound=0.0)
        add_bias(self, self.units)

    def as_set(self, controls):
        mask = controls["mask"]
        return {"mask": mask if self.dac is None else self.dac(mask)}

    def _met(self, shown, units: int, imperfections: dict):
        """Returns the values of frames at the display's pixels: (units, pixels)."""
        warped = imaging.affine(shown, **imperfections)
        weights = frames.untile(warped, units, self._size, **self._layout)
        return ops.reshape(weights, (units, -1))

    def _weights(self, mask, imperfections: dict):
        shown = self._leaking(frames.tile(mask, **self._layout))
        return self._met(shown, self.units, imperfections)

    def _leaking(self, values):
        """Returns signed values as a modulator of finite contrast shows them."""
        if self.contrast is None:
            return values
        return values + (1 - values) / self.contrast

    def forward(self, inputs, controls, imperfections):
        # A reshape alone would merge the pixels of two small images.
        _image_size(tuple(inputs.shape), self._size)
        mask = self.as_set(controls)["mask"]
        weights = self._weights(mask, imperfections)
        pixels = ops.reshape(inputs, (-1, math.prod(self._size)))
        # The camera's sum needs more digits than float16 has.
        pixels = ops.cast(pixels, weights.dtype)
        if self.display_range is None:
            outputs = ops.matmul(pixels, ops.transpose(weights))
        else:
            low, high = self.display_range
            shown = (pixels - low) / (high - low)
            if self.display_bits is None:
                shown = ops.clip(shown, 0.0, 1.0)
            else:
                shown = detection.quantize(shown, self.display_bits, 0.0, 1.0)
            total = self._read(shown, weights, imperfections)
            shown_masks = ops.cast(self._leaking(mask), weights.dtype)
            offset = ops.sum(shown_masks, axis=(1, 2))
            outputs = (high - low) * total + low * offset
        outputs = self.activation(biased(self, outputs))
        return ops.cast(outputs, self.compute_dtype)

    def _read(self, shown, weights, imperfections: dict):
        """Computes Σ shown · w from readings: twice the sum minus the reference."""
        signed = ops.matmul(shown, ops.transpose(weights))
        if not self._noisy:
            return signed
        cells = math.prod(self.grid)
        white = ops.ones((1, *self.frame_shape[1:]), dtype=weights.dtype)
        white = self._met(white, cells, imperfections)
        reference = ops.matmul(shown, ops.transpose(white))
        cell = np.arange(self.units) % cells
        light = (signed + ops.take(reference, cell, axis=1)) / 2
        # Rounding must not give a negative intensity; a dark sum keeps its slope.
        light = light + ops.stop_gradient(ops.relu(-light))
        return 2 * self._camera(light) - ops.take(self._camera(reference), cell, axis=1)

    def _camera(self, light):
        if self.photons is not None:
            seed = self.seed_generator.next()
            light = detection.shot_noise(light, self.photons, seed)
        if self.read_noise > 0:
            light = light + reading_noise(self, light)
        return light

    def compute_output_shape(self, input_shape) -> tuple:
        return (input_shape[0], self.units)

    def program(self, weights: np.ndarray, clip: bool = False) -> float:
        """Sets the masks to a signed matrix.

        Args:
            weights: array of shape (pixels, units), as the kernel of `Dense`.
            clip: whether weights are clipped to ±1.

        Returns:
            The distance left: the root mean square of shown minus given weight, in
            the aligned frame, with the steps of the `dac` and the contrast.

        Raises:
            ValueError: If the shape differs, a weight is NaN or infinite, or one is
                beyond ±1 and `clip` is `False`. The masks are then unchanged.
        """
        check_built(self)
        shape = (math.prod(self._size), self.units)
        weights = _checks.array("weights", weights, shape, broadcast=False)
        beyond = np.abs(weights).max()
        if beyond > 1 and not clip:
            raise ValueError(
                "`weights` must be within ±1, as an SLM has no gain, or `clip` true. "
                f"Received: a magnitude of {beyond}"
            )
        mask = np.clip(weights, -1, 1).T.reshape(self.units, *self._size)
        self.controls["mask"].assign(mask)
        shown = self._leaking(self.as_set(self.current_values()[0])["mask"])
        shown = np.asarray(shown, "float64").reshape(self.units, -1).T
        return float(np.sqrt(np.mean((shown - weights) ** 2)))

    def effective_weights(self) -> tf.Tensor:
        """Returns the signed matrix (pixels, units), with the present misalignment."""
        controls, imperfections = self.current_values()
        mask = self.as_set(controls)["mask"]
        return ops.transpose(self._weights(mask, imperfections))

    @property
    def _layout(self) -> dict:
        return {
            "grid": self.grid,
            "margin": self.margin,
            "pixel_repeat": self.pixel_repeat,
        }

    @property
    def _size(self) -> tuple[int, int]:
        return tuple(self.controls["mask"].shape[1:])

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(frames, height, width) in pixels of the modulator."""
        check_built(self)
        return frames.frame_shape(self.units, self._size, **self._layout)

    def frames(self) -> np.ndarray:
        """Returns the transmissions for the modulator: 0 to 1, (frames, y, x).

        Raises:
            ValueError: If a mask is NaN or beyond ±1.
        """
        controls, _ = self.current_values()
        mask = np.asarray(self.as_set(controls)["mask"])
        if not (np.abs(mask) <= 1).all():
            raise ValueError(
                "Masks must be within ±1 to be shown. Received: values from "
                f"{mask.min()} to {mask.max()}"
            )
        return (1 + np.asarray(frames.tile(mask, **self._layout))) / 2

    def save_frames(self, folder: str | os.PathLike) -> list[pathlib.Path]:
        """Writes `frames` as greyscale PNG files, black 0 and white 255.

        With a `DAC` of more than 8 bits, or a `dac` whose steps are not known, the
        files have 16 bits, and white is 65535. A signed sum needs a further frame,
        entirely white, as the reference. 8 bits have no middle: a mask of 0, mid-grey,
        is written as 128 and shows 0.004; `dac=DAC(8, -1, 1)` trains with these steps.

        Args:
            folder: where to write; it is created if it does not exist.

        Returns:
            The paths, `<layer>_000.png` and so on. Give the layer a name, since an
            automatic one differs from run to run.

        Raises:
            ValueError: If a mask is NaN or beyond ±1, or the `DAC` has more than 16
                bits, which no greyscale PNG file holds.
        """
        paths = self._frame_paths(folder)
        bits = 8
        if self.dac is not None:
            bits = self.dac.bits if isinstance(self.dac, DAC) else 16
        if bits > 16:
            raise ValueError(
                f"A greyscale PNG file has 16 bits at most: give MaskedSLM "
                f"'{self.name}' a `dac` of no more. Received: {bits} bits"
            )
        kind = "uint8" if bits <= 8 else "uint16"
        levels = np.rint(np.iinfo(kind).max * self.frames()).astype(kind)
        for path, level in zip(paths, levels, strict=True):
            write_png(path, level)
        return paths

    def load_frames(self, folder: str | os.PathLike) -> None:
        """Sets the masks from files of `save_frames`, to the precision of their bits.

        Nothing is set unless all files fit the layer.

        Raises:
            FileNotFoundError: If a frame is missing.
            ValueError: If a file is not a PNG picture, is damaged, or is not greyscale
                of the size of the layer's frames.
        """
        shape = self.frame_shape
        levels = [read_png(p, shape[1:]) for p in self._frame_paths(folder)]
        signed = 2 * np.stack([n / np.iinfo(n.dtype).max for n in levels]) - 1
        masks = frames.untile(signed, self.units, self._size, **self._layout)
        self.controls["mask"].assign(masks)

    def _frame_paths(self, folder) -> list[pathlib.Path]:
        names = (f"{self.name}_{i:03d}.png" for i in range(self.frame_shape[0]))
        return [pathlib.Path(folder) / name for name in names]

    def position(self, name, index):
        """Returns the frame, row and column of a mask pixel's first SLM pixel."""
        unit, *pixel = index
        frame, place = divmod(unit, math.prod(self.grid))
        cell = divmod(place, self.grid[1])
        sides = zip(
            self.pixel_repeat, cell, self._size, self.margin, pixel, strict=True
        )
        return frame, *(r * (c * (n + 2 * m) + m + p) for r, c, n, m, p in sides)


def _image_size(shape: tuple, tile: tuple[int, int] | None) -> tuple[int, int]:
    """Returns height and width of the images in inputs of a shape."""
    if len(shape) == 2 and shape[1] is not None:
        side = math.isqrt(shape[1])
        size = tile or (side, side)
        fits = math.prod(size) == shape[1]
    else:
        size = shape[1:3]
        fits = len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
        fits = fits and None not in size and tile in (None, size)
    if not fits:
        expected = f"of {tile[0]} × {tile[1]} pixels" if tile else "of one channel"
        raise ValueError(
            f"The inputs must be images {expected}: (batch, height, width), (batch, "
            "height, width, 1), or flat, with `tile` for images that are not square. "
            f"Received: input_shape={shape}, tile={tile}"
        )
    return tuple(int(n) for n in size)


def _range(name: str, value) -> tuple[float, float]:
    """Returns (low, high), both finite and low below high."""
    ends = [_checks.as_real(v) for v in value] if np.iterable(value) else []
    if len(ends) != 2 or not -math.inf < ends[0] < ends[1] < math.inf:
        raise _checks.error(name, "(low, high), finite, low below high", repr(value))
    return tuple(ends)
