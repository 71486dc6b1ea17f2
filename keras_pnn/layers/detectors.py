"""Detect light: photodiodes, their shot noise, and the converter behind them."""

import itertools
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_pnn import _checks
from keras_pnn.layers.limits import DAC
from keras_pnn.layers.mixins import (
    ConfiguredLayer,
    RealInputs,
    WideOutputs,
    add_bias,
    biased,
    last_axis,
    refuse_complex,
)
from keras_pnn.physics import detection


class _Detector(WideOutputs, ConfiguredLayer):
    """Base of layers with real outputs in the shape of their inputs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_output_shape(self, input_shape) -> tuple:
        return tuple(input_shape)


class FieldDetector(_Detector):
    """Base of layers that detect fields."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)

    def _intensity(self, inputs):
        return ops.cast(detection.intensity(inputs), self._output_dtype)

    def _build_for(self, input_shape, **ports) -> None:
        """Fixes the number of ports; `ports` are arguments that list some of them."""
        modes = last_axis(input_shape)
        for name, listed in ports.items():
            if max(listed, default=0) >= modes:
                expected = f"ports of the inputs, 0 to {modes - 1}"
                raise _checks.error(name, expected, f"port {max(listed)}")
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: modes})


class _OfIntensities(RealInputs, _Detector):
    """Base of layers that take real inputs, and compute in the output's dtype."""

    def call(self, inputs):
        refuse_complex(self, inputs)
        return self._of_real(ops.cast(inputs, self._output_dtype))


@keras.saving.register_keras_serializable(package="keras_pnn")
class Photodetector(FieldDetector):
    """Detects the intensity at the ports of a circuit: `|field|**2`.

    With `normalize="l2"`, the intensities of each sample are divided by their
    Euclidean norm over *all* ports, including those that are not read. Dark samples
    stay 0, with gradients of 0.

    Args:
        normalize: `"l2"` or `None`. Default `None`.
        ports: The ports to read, in this order: an integer n for the first n, or
            a sequence of distinct indices from 0. Default all. An entry may itself be a
            sequence of indices: one wide detector that sums their intensities.

    Input shape: `(batch, ..., modes)`, complex or real fields.

    Output shape: `(batch, ..., ports)`, float32, or float64 under a float64 policy.

    Raises:
        ValueError: If `normalize` is unknown, if `ports` or a group in it is empty, or
            if a port is listed twice or is not a port of the inputs.

    Example:

    >>> field = np.array([[3j, 4.0, 0.0]], "complex64")
    >>> pnn.layers.Photodetector()(field).numpy()
    array([[ 9., 16.,  0.]], dtype=float32)
    >>> logits = pnn.layers.Photodetector(normalize="l2", ports=10)
    >>> logits(np.ones((2, 64), "complex64")).shape
    TensorShape([2, 10])
    >>> wide = pnn.layers.Photodetector(ports=[[0, 1], [2]])
    >>> wide(field).numpy()
    array([[25.,  0.]], dtype=float32)

    Reference:

    - Xu et al., arXiv:2411.12352, Fig. 4: the normalised readout of ten ports.
    """

    def __init__(
        self,
        normalize: str | None = None,
        ports: int | Sequence[int | Sequence[int]] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.normalize = _checks.choice("normalize", normalize, (None, "l2"))
        # Sizes of the groups of listed ports to sum; `None` if each is a single port.
        self._sizes = None
        if np.iterable(ports):
            entries = [tuple(p) if np.iterable(p) else p for p in ports]
            groups = [p if isinstance(p, tuple) else (p,) for p in entries]
            self._read = _distinct("ports", itertools.chain(*groups), shown=ports)
            sizes = [len(group) for group in groups]
            if min(sizes) < 1:
                raise _checks.error("ports", "groups of ports, none empty", repr(ports))
            if set(sizes) != {1}:
                self._sizes = sizes
            self.ports = tuple(keras.tree.pack_sequence_as(entries, self._read))
        else:
            self.ports = _checks.optional(_checks.integer, "ports", ports, low=1)
            self._read = None if ports is None else tuple(range(self.ports))

    def build(self, input_shape) -> None:
        if self._read is not None:
            self._build_for(input_shape, ports=self._read)

    def call(self, inputs):
        outputs = self._intensity(inputs)
        if self.normalize == "l2":
            outputs = _normalized(outputs)
        if self._read is None:
            return outputs
        outputs = ops.take(outputs, self._read, axis=-1)
        if self._sizes is None:
            return outputs
        sums = np.repeat(np.eye(len(self._sizes)), self._sizes, axis=0)
        return ops.matmul(outputs, ops.cast(sums, outputs.dtype))

    def compute_output_shape(self, input_shape) -> tuple:
        if self._read is None:
            return tuple(input_shape)
        return (*input_shape[:-1], len(self._sizes or self._read))


@keras.saving.register_keras_serializable(package="keras_pnn")
class BalancedDetector(FieldDetector):
    """Detects balanced pairs of ports: `|field[plus]|**2 - |field[minus]|**2`.

    Two photodiodes in series give one signed number for a pair of ports. Shot noise
    arises in each diode: to include it, use `Photodetector` and `ShotNoise` in place
    of this layer, and subtract their outputs.

    Args:
        plus: Sequence of port indices from 0, which add. By default ports 0, 2, 4, ...
        minus: Sequence of as many indices, which subtract. By default ports
            1, 3, 5, ... No port may be listed twice, as its light reaches only one
            diode.

    Input shape: `(batch, ..., modes)`, complex or real fields.

    Output shape: `(batch, ..., pairs)`, float32, or float64 under a float64 policy.

    Raises:
        ValueError: If only one of `plus` and `minus` is given, if they differ in
            length, if a port is listed twice or is not a port of the inputs, or if
            neither is given and the number of ports is odd.

    Example:

    >>> field = np.array([[3j, 1.0, 0.0, 2.0]], "complex64")
    >>> pnn.layers.BalancedDetector()(field).numpy()
    array([[ 8., -4.]], dtype=float32)
    """

    def __init__(
        self,
        plus: Sequence[int] | None = None,
        minus: Sequence[int] | None = None,
        **kwargs,
    ):
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

    def build(self, input_shape) -> None:
        self._build_for(input_shape, plus=self.plus or (), minus=self.minus or ())
        if self.plus is None and input_shape[-1] % 2:
            raise ValueError(
                "The number of ports must be even without `plus` and `minus`. "
                f"Received: input_shape={tuple(input_shape)}"
            )

    def call(self, inputs):
        light = self._intensity(inputs)
        if self.plus is None:
            return detection.balanced(light[..., ::2], light[..., 1::2])
        plus = ops.take(light, self.plus, axis=-1)
        return detection.balanced(plus, ops.take(light, self.minus, axis=-1))

    def compute_output_shape(self, input_shape) -> tuple:
        pairs = input_shape[-1] // 2 if self.plus is None else len(self.plus)
        return (*input_shape[:-1], pairs)


@keras.saving.register_keras_serializable(package="keras_pnn")
class HomodyneDetector(FieldDetector):
    """Detects the real part of fields: `activation(Re(field) + bias)`.

    Each field f meets a local oscillator l in a 50:50 splitter. The two outputs differ
    by |f + l|²/2 − |f − l|²/2 = 2 Re(f l*), here in units that make this Re(f).

    Args:
        activation: as in `Dense`.
        use_bias: whether a digital bias is added.
        bias_initializer, bias_regularizer, bias_constraint: as in `Dense`.

    Input shape: `(batch, ..., modes)`, complex or real fields.

    Output shape: that of the inputs, float32, or float64 under a float64 policy.

    Raises:
        ValueError: If the number of modes is unknown.

    Example:

    >>> field = np.array([[3j, 1.0 - 1j]], "complex64")
    >>> pnn.layers.HomodyneDetector()(field).numpy()
    array([[0., 1.]], dtype=float32)

    Reference:

    - Shen et al., Nat. Photonics 11:441 (2017): real matrices by meshes.
    """

    def __init__(
        self,
        activation=None,
        use_bias: bool = True,
        bias_initializer="zeros",
        bias_regularizer=None,
        bias_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.bias_constraint = keras.constraints.get(bias_constraint)

    def build(self, input_shape) -> None:
        self._build_for(input_shape)
        add_bias(self, input_shape[-1])

    def call(self, inputs):
        real = ops.cast(ops.real(inputs), self._output_dtype)
        return self.activation(biased(self, real))


@keras.saving.register_keras_serializable(package="keras_pnn")
class ShotNoise(_OfIntensities):
    """Counts photons: `k / photons` with `k ~ Poisson(intensity * photons)`.

    The noise is inherent in light, so it acts in training and in inference, with new
    draws at each call. Draws depend on `seed` and on the number of calls; see
    `physics.detection.shot_noise` for the gradient, XLA and negative intensities.

    Args:
        photons: Float. Mean number of detected photons per unit of intensity.
        seed: Integer, or `None` for a random one. The state of the draws is not
            saved with the model: a loaded layer starts again at its seed.

    Input shape: any; real intensities, such as `Photodetector` gives.

    Output shape: that of the inputs, float32, or float64 under a float64 policy.

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
        self.photons = _checks.real("photons", photons, above=0)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def _of_real(self, inputs):
        return detection.shot_noise(inputs, self.photons, self.seed_generator.next())


@keras.saving.register_keras_serializable(package="keras_pnn")
class ADC(_OfIntensities):
    """Digitizes a readout to `2**bits` even levels, see `physics.detection.quantize`.

    The default range is that of `Photodetector(normalize="l2")`.

    Args:
        bits: Integer from 1 to 24. Resolution.
        low: Float. Lowest level.
        high: Float. Highest level, above `low`.

    Input shape: any, real.

    Output shape: that of the inputs, float32, or float64 under a float64 policy.

    Raises:
        ValueError: If `bits` is not from 1 to 24, if `low` and `high` are not finite or
            not in order, or if the inputs are complex or (eagerly) NaN.

    Example:

    >>> adc = pnn.layers.ADC(bits=2, high=3.0)
    >>> adc(np.array([[0.4, 1.6, 9.0]], "float32")).numpy()
    array([[0., 2., 3.]], dtype=float32)
    """

    def __init__(self, bits: int, low: float = 0.0, high: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self._converter = DAC(bits, low, high)
        self.bits = self._converter.bits
        self.low, self.high = self._converter.low, self._converter.high

    def _of_real(self, inputs):
        return self._converter(inputs)


def _normalized(light):
    """Returns light over its norm on the last axis; 0 if all of it is dark."""
    peak = ops.stop_gradient(ops.max(light, axis=-1, keepdims=True))
    bright = peak >= np.finfo(keras.backend.standardize_dtype(light.dtype)).tiny
    # The result does not depend on the scale, so a constant peak leaves the
    # gradient exact, and squares of faint light do not vanish in float32.
    scaled = light / ops.where(bright, peak, ops.ones_like(peak))
    square = ops.sum(scaled * scaled, axis=-1, keepdims=True)
    return scaled * ops.rsqrt(ops.where(bright, square, ops.ones_like(square)))


def _distinct(name: str, ports, shown=None) -> tuple[int, ...]:
    try:
        indices = tuple(_checks.integer(name, port, low=0) for port in ports)
    except (TypeError, ValueError):
        indices = ()
    if not indices or len(set(indices)) < len(indices):
        expected = "distinct port indices, each 0 or more"
        raise _checks.error(name, expected, repr(ports if shown is None else shown))
    return indices
