"""Where light becomes numbers: photodiodes, their noise, and converters."""

import math
import numbers

import keras
import numpy as np
from keras import ops

from keras_pnn.layers.bank import whole
from keras_pnn.layers.limits import DAC
from keras_pnn.physics import detection


class _Detector(keras.layers.Layer):
    """What the detectors share: float32 or float64 outputs, fields left as they are.

    Inputs are not autocast: the square of an amplitude of 256 overflows float16, and
    a count of 2049 photons or the levels of 12 bits are not numbers of float16.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    @property
    def _output_dtype(self):
        return "float64" if self.compute_dtype == "float64" else "float32"

    def _real(self, inputs):
        """Returns the inputs in the output's dtype."""
        self._refuse_complex(inputs)
        return ops.cast(inputs, self._output_dtype)

    def _refuse_complex(self, inputs):
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if "complex" in dtype:
            raise ValueError(
                f"`inputs` of {type(self).__name__} must be real: put a "
                f"`Photodetector` layer before it. Received: dtype={dtype}"
            )

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def compute_output_spec(self, inputs):
        # The base class would take the compute dtype, float16 in mixed precision.
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self._output_dtype)


@keras.saving.register_keras_serializable(package="keras_pnn")
class Photodetector(_Detector):
    """Photodiodes behind the ports of a circuit: `|field|**2`.

    With `normalize="l2"`, the intensities of each sample are divided by their
    Euclidean norm over *all* ports, those that are not read included. The dark
    stays 0, with gradients that are 0.

    Outputs are float64 under a float64 policy and float32 under all others, mixed
    precision included.

    Args:
        normalize: `"l2"` or `None`. Default `None`.
        ports: The ports to read, in this order: an integer n for the first n, or
            a sequence of distinct indices from 0. Default all.

    Input shape: `(batch, ..., modes)`, complex or real fields.

    Output shape: `(batch, ..., ports)`, real.

    Raises:
        ValueError: If `normalize` is unknown, or if `ports` has no port, a port
            twice, or a port that the inputs have not.

    Example:

    >>> field = np.array([[3j, 4.0, 0.0]], "complex64")
    >>> pnn.layers.Photodetector()(field).numpy()
    array([[ 9., 16.,  0.]], dtype=float32)
    >>> logits = pnn.layers.Photodetector(normalize="l2", ports=10)
    >>> logits(np.ones((2, 64), "complex64")).shape
    TensorShape([2, 10])

    Reference:

    - Xu et al., arXiv:2411.12352, Fig. 4: the normalised readout of ten ports.
    """

    def __init__(self, normalize: str | None = None, ports=None, **kwargs):
        super().__init__(**kwargs)
        if normalize not in (None, "l2"):
            raise ValueError(
                f"`normalize` must be 'l2' or None. Received: normalize={normalize!r}"
            )
        self.normalize = normalize
        if ports is None:
            self.ports = None
        elif np.iterable(ports):
            self.ports = _distinct("ports", ports)
        else:
            self.ports = whole("`ports`", ports)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)

    def build(self, input_shape):
        if self.ports is not None:
            modes = _modes(input_shape)
            read = (self.ports - 1,) if isinstance(self.ports, int) else self.ports
            _check_within("ports", read, modes)
            self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: modes})
        self.built = True

    def call(self, inputs):
        outputs = ops.cast(detection.intensity(inputs), self._output_dtype)
        if self.normalize == "l2":
            outputs = _normalized(outputs)
        if self.ports is None:
            return outputs
        if isinstance(self.ports, int):
            return outputs[..., : self.ports]
        return ops.take(outputs, self.ports, axis=-1)

    def compute_output_shape(self, input_shape):
        if self.ports is None:
            return tuple(input_shape)
        read = self.ports if isinstance(self.ports, int) else len(self.ports)
        return (*input_shape[:-1], read)

    def get_config(self):
        ports = list(self.ports) if isinstance(self.ports, tuple) else self.ports
        return {**super().get_config(), "normalize": self.normalize, "ports": ports}


@keras.saving.register_keras_serializable(package="keras_pnn")
class BalancedDetector(_Detector):
    """Balanced photodetection: `|field[plus]|**2 - |field[minus]|**2`.

    Two photodiodes in series give one signed number for a pair of ports. For shot
    noise, which each diode has of its own, put `Photodetector` and `ShotNoise` in the
    place of this layer, and subtract their outputs.

    Outputs are float64 under a float64 policy and float32 under all others, mixed
    precision included.

    Args:
        plus: Sequence of port indices from 0, those that add. By default ports
            0, 2, 4, ...
        minus: Sequence of as many indices, those that subtract. By default ports
            1, 3, 5, ... No port may be listed twice, as its light reaches one
            diode.

    Input shape: `(batch, ..., modes)`, complex or real fields.

    Output shape: `(batch, ..., pairs)`, real.

    Raises:
        ValueError: If only one of `plus` and `minus` is given, if they differ in
            length, list a port twice or one that the inputs have not, or if the
            inputs have an odd number of ports without them.

    Example:

    >>> field = np.array([[3j, 1.0, 0.0, 2.0]], "complex64")
    >>> pnn.layers.BalancedDetector()(field).numpy()
    array([[ 8., -4.]], dtype=float32)
    """

    def __init__(self, plus=None, minus=None, **kwargs):
        super().__init__(**kwargs)
        if (plus is None) != (minus is None):
            raise ValueError(
                "`plus` and `minus` must be given together. "
                f"Received: plus={plus}, minus={minus}"
            )
        self.plus = self.minus = None
        if plus is not None:
            self.plus = _distinct("plus", plus)
            self.minus = _distinct("minus", minus)
            if len(self.plus) != len(self.minus) or set(self.plus) & set(self.minus):
                raise ValueError(
                    "`plus` and `minus` must list as many ports each, and none in "
                    f"common. Received: plus={plus}, minus={minus}"
                )
        self.input_spec = keras.layers.InputSpec(min_ndim=2)

    def build(self, input_shape):
        modes = _modes(input_shape)
        if self.plus is None and modes % 2:
            raise ValueError(
                "The number of ports must be even where `plus` and `minus` are not "
                f"given. Received: input_shape={tuple(input_shape)}"
            )
        if self.plus is not None:
            _check_within("plus", self.plus, modes)
            _check_within("minus", self.minus, modes)
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: modes})
        self.built = True

    def call(self, inputs):
        light = ops.cast(detection.intensity(inputs), self._output_dtype)
        if self.plus is None:
            return detection.balanced(light[..., ::2], light[..., 1::2])
        plus = ops.take(light, self.plus, axis=-1)
        return detection.balanced(plus, ops.take(light, self.minus, axis=-1))

    def compute_output_shape(self, input_shape):
        pairs = input_shape[-1] // 2 if self.plus is None else len(self.plus)
        return (*input_shape[:-1], pairs)

    def get_config(self):
        pairs = {
            "plus": None if self.plus is None else list(self.plus),
            "minus": None if self.minus is None else list(self.minus),
        }
        return {**super().get_config(), **pairs}


@keras.saving.register_keras_serializable(package="keras_pnn")
class ShotNoise(_Detector):
    """Photon counting: `k / photons` with `k ~ Poisson(intensity * photons)`.

    The noise is light's own, so it acts in training and in inference, with new
    draws at each call. The gradient is that of the noiseless layer, 1. Draws
    depend on `seed` and on how many calls there were; a layer compiled by XLA has
    other ones. Under `tf.vectorized_map` with one seed, all elements share them.

    Outputs are float64 under a float64 policy and float32 under all others, mixed
    precision included. A negative intensity raises eagerly and gives NaN in a
    graph.

    Args:
        photons: Float. Mean number of detected photons per unit of intensity.
        seed: Integer, or `None` for a random one. The state of the draws is not
            saved with the model: a loaded layer starts again at its seed.

    Input shape: any; real intensities, such as `Photodetector` gives.

    Output shape: that of the inputs.

    Raises:
        ValueError: If `photons` is not positive and finite, if `seed` is not an
            integer, or if the inputs are complex or (eagerly) negative.

    Example:

    >>> noise = pnn.layers.ShotNoise(photons=1000, seed=0)
    >>> noise(np.ones((2, 10), "float32")).shape      # 1 ± 0.03
    TensorShape([2, 10])
    """

    def __init__(self, photons: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        real = isinstance(photons, numbers.Real) and not isinstance(photons, bool)
        if not (real and 0 < photons < math.inf):
            raise ValueError(
                f"`photons` must be positive and finite. Received: photons={photons!r}"
            )
        self.photons = float(photons)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs):
        inputs = self._real(inputs)
        return detection.shot_noise(inputs, self.photons, self.seed_generator.next())

    def compute_output_spec(self, inputs):
        self._refuse_complex(inputs)
        return super().compute_output_spec(inputs)

    def get_config(self):
        own = {"photons": self.photons, "seed": self.seed}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="keras_pnn")
class ADC(_Detector):
    """An analogue-to-digital converter with `2**bits` even levels.

    Values go to the nearest level and are clipped to the range. The gradient is 1
    inside the range, the ends included, and 0 outside (straight-through). The
    default range is that of `Photodetector(normalize="l2")`.

    Outputs are float64 under a float64 policy and float32 under all others, mixed
    precision included.

    Args:
        bits: Integer from 1 to 24. Resolution.
        low: Float. Lowest level.
        high: Float. Highest level, above `low`.

    Input shape: any, real.

    Output shape: that of the inputs.

    Raises:
        ValueError: If `bits` is not from 1 to 24, if `low` is not below `high`,
            both finite, or if the inputs are complex or (eagerly) NaN.

    Example:

    >>> adc = pnn.layers.ADC(bits=2, high=3.0)
    >>> adc(np.array([[0.4, 1.6, 9.0]], "float32")).numpy()
    array([[0., 2., 3.]], dtype=float32)

    Reference:

    - Bengio et al., arXiv:1308.3432: the straight-through estimator.
    """

    def __init__(self, bits: int, low: float = 0.0, high: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        for name, value in (("low", low), ("high", high)):
            if not isinstance(value, numbers.Real) or isinstance(value, bool):
                raise ValueError(
                    f"`{name}` must be a number. Received: {name}={value!r}"
                )
        self._converter = DAC(bits, low, high)

    @property
    def bits(self) -> int:
        """The resolution."""
        return self._converter.bits

    @property
    def low(self) -> float:
        """The lowest level."""
        return self._converter.low

    @property
    def high(self) -> float:
        """The highest level."""
        return self._converter.high

    def call(self, inputs):
        return self._converter(self._real(inputs))

    def compute_output_spec(self, inputs):
        self._refuse_complex(inputs)
        return super().compute_output_spec(inputs)

    def get_config(self):
        return {**super().get_config(), **self._converter.get_config()}


def _normalized(light):
    """light over its norm on the last axis, 0 where all of it is 0."""
    peak = ops.stop_gradient(ops.max(light, axis=-1, keepdims=True))
    bright = peak >= np.finfo(keras.backend.standardize_dtype(light.dtype)).tiny
    # The result does not depend on the scale, so a constant peak leaves the
    # gradient exact, and squares of faint light do not vanish in float32.
    scaled = light / ops.where(bright, peak, ops.ones_like(peak))
    square = ops.sum(scaled * scaled, axis=-1, keepdims=True)
    return scaled * ops.rsqrt(ops.where(bright, square, ops.ones_like(square)))


def _distinct(name, ports):
    listed = list(ports) if np.iterable(ports) else []
    valid = all(
        isinstance(p, numbers.Integral) and not isinstance(p, bool) and p >= 0
        for p in listed
    )
    if not (listed and valid and len(set(listed)) == len(listed)):
        raise ValueError(
            f"`{name}` must list distinct port indices, each 0 or more. "
            f"Received: {name}={ports!r}"
        )
    return tuple(int(p) for p in listed)


def _modes(input_shape):
    if input_shape[-1] is None:
        raise ValueError(
            "The last axis of the inputs must be known. "
            f"Received: input_shape={tuple(input_shape)}"
        )
    return input_shape[-1]


def _check_within(name, ports, modes):
    if max(ports) >= modes:
        raise ValueError(
            f"`{name}` must be ports of the inputs, 0 to {modes - 1}. "
            f"Received: port {max(ports)}"
        )
