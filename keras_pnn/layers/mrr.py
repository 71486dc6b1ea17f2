"""Multiply by microring weights: the layers `MRRBank` and `MRRConv2D`.

Both take their weights from `RingLayer.weights_at` in `layers/ring_layer.py`, which
adds up the shifts of each ring and calls the layer's tuning. The tuning of Lorentzian
rings is `ResonanceTuning` in `physics/tuning/lorentzian.py`: `detuning` converts a
control to a detuning, and `_port_weight` converts that to a weight such as
through − drop, by `physics/ring.py`.
"""

from collections.abc import Callable

import keras
from keras import ops

from keras_pnn import _checks
from keras_pnn._signatures import passing_on
from keras_pnn.layers import convolution
from keras_pnn.layers.context import current
from keras_pnn.layers.mixins import last_axis
from keras_pnn.layers.ring_layer import RingLayer


@keras.saving.register_keras_serializable(package="keras_pnn")
class MRRBank(RingLayer):
    """A dense layer whose weights are the transmissions of microrings.

        λ₁ λ₂ λ₃ (inputs)
        ───○──○──○───► through ─┐
        ───○──○──○───► drop ────┴─ (−) ─► output, one row per unit

    `outputs = activation(gain · inputs · w(control) + bias)`, where `w` is the
    `tuning`: for the balanced readout of an ideal ring w = T − D = 1 − 2 / (1 + u²),
    with u the detuning over the half-width (Tait et al. 2017, eq. 1).

    Controls: `control`, of shape (inputs, units), in the unit of the tuning.
    Imperfections: `resonance_shift` (nm) and `half_width_error` (relative), one per
    ring, `temperature` (K, one for the chip), and `control_stuck`, rings whose control
    cannot be set, see `pnn.Stuck`. With `signed`, `reference_error` (relative), one for
    the bank.

    Args:
        units: number of outputs.
        activation: as in `Dense`.
        use_bias: whether a digital bias is added.
        tuning: a `Tuning`, from control to weight. Default `LorentzianTuning()`.
        kernel_initializer: draws the initial *weights*, for which the controls are
            solved.
        bias_initializer, bias_regularizer, bias_constraint: as in `Dense`.
        kernel_regularizer: acts on the effective weights.
        control_regularizer: acts on the controls.
        activity_regularizer: as in `Dense`.
        control_constraint: applied to the controls after each step. The default
            keeps them in the range of the tuning.
        temperature_sensitivity: resonance shift per kelvin, nm/K.
        crosstalk: thermal crosstalk, a matrix with ones on the diagonal, measured or
            as `physics.heater.crosstalk_matrix` and `nearest_neighbour` return it:
            between the rings of a row (columns, columns), or between all rings of
            the bank, row by row (rows · columns, rows · columns). Default: none.
        channel_spacing: distance between neighbouring channels in nm. If given, each
            channel passes all rings of its row. Default: it passes only its own ring.
        bank_size: (rows, columns) of the physical bank, on which the matrix is
            tiled. Default: one bank of the size of the matrix.
        dac: a quantiser of the controls, such as `pnn.layers.DAC`, with `low` ≥ 0.
        adc_bits: resolution of the readout, from 2 to 24, applied per tile before the
            digital sum (two's complement, so that a dark tile reads 0). Default: exact.
        adc_range: largest absolute readout. Default: for each sample the
            largest of its tiles (an auto-ranging receiver).
        gain: amplification behind the readout, electronic or digital: a number, an
            array of one number per output, or `True` for one trained number. It is not
            a control, so an ascent over controls does not change it. Default: 1.
        signed: whether a tuning of a single port, with transmissions T from 0 to 1,
            gives the weights 2 T − 1: twice a reading minus a reference, the sum of the
            inputs, which a row without rings reads. Both readings have their own
            steps and noise, so an output has √5 times the noise of a reading.
        read_noise: standard deviation of each reading of a row, in the unit of input
            times weight, in training and in inference. The noise of several tiles adds
            up.
        seed: seed of the noise, as in `ShotNoise`.

    Input shape: `(batch, ..., inputs)`.

    Output shape: `(batch, ..., units)`.

    Raises:
        ValueError: If an argument is out of its range, or the layer's inputs do not
            fit them or are complex.

    Example:

    >>> bank = pnn.layers.MRRBank(10, activation="relu")
    >>> bank(np.ones((2, 84), "float32")).shape
    TensorShape([2, 10])
    >>> distance = bank.program(np.zeros((84, 10)))

    Reference:
        - Tait et al., Sci. Rep. 7, 7430 (2017), doi:10.1038/s41598-017-07754-z
        - Xu et al., arXiv:2411.12352
    """

    @passing_on(RingLayer)
    def __init__(self, units: int, activation=None, use_bias: bool = True, **kwargs):
        super().__init__(activation, use_bias, **kwargs)
        self.units = _checks.integer("units", units, low=1)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    def build(self, input_shape) -> None:
        inputs = last_axis(input_shape)
        self._build_kernel((inputs, self.units))
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: inputs})

    def forward(self, inputs, controls, imperfections):
        kernel = self._kernel(controls, imperfections)
        inputs = ops.cast(inputs, kernel.dtype)
        if self.adc_bits is None:
            outputs = ops.matmul(inputs, kernel)
        else:
            outputs = self._tiled_product(inputs, kernel, imperfections)
        return self.activation(self._biased(outputs))

    def compute_output_shape(self, input_shape) -> tuple:
        return (*input_shape[:-1], self.units)


@keras.saving.register_keras_serializable(package="keras_pnn")
class MRRConv2D(RingLayer):
    """A 2-D convolution whose kernel is a microring weight bank.

    Each patch of the input is one vector on the bank's channels, each filter one
    row: (kh · kw · channels) × filters rings. Everything else is as in `MRRBank`.

    Controls: `control`, of shape (kh, kw, channels, filters).

    Args:
        filters: number of output channels.
        kernel_size: an integer or (height, width).
        strides, padding, data_format, dilation_rate, groups: as in `Conv2D`.
        **kwargs: those of `MRRBank`.

    Input shape: `(batch, height, width, channels)`, or channels first.

    Output shape: `(batch, new_height, new_width, filters)`, or channels first.

    Raises:
        ValueError: If an argument is out of its range, or the layer's inputs do not
            fit them or are complex.

    Example:

    >>> layer = pnn.layers.MRRConv2D(6, 5, padding="same", activation="relu")
    >>> layer(np.ones((2, 28, 28, 1), "float32")).shape
    TensorShape([2, 28, 28, 6])

    Reference:
        - Xu et al., arXiv:2411.12352, Fig. 2
    """

    @passing_on(RingLayer)
    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = (1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, int] = (1, 1),
        groups: int = 1,
        activation: str | Callable | None = None,
        use_bias: bool = True,
        **kwargs,
    ):
        super().__init__(activation, use_bias, **kwargs)
        self.filters = _checks.integer("filters", filters, low=1)
        self.kernel_size = _checks.pair("kernel_size", kernel_size, low=1)
        self.strides = _checks.pair("strides", strides, low=1)
        self.dilation_rate = _checks.pair("dilation_rate", dilation_rate, low=1)
        padding = str(padding).lower()
        self.padding = _checks.choice("padding", padding, ("valid", "same"))
        self.data_format = _checks.choice(
            "data_format",
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
        )
        self.groups = _checks.integer("groups", groups, low=1)
        if self.filters % self.groups:
            raise ValueError(
                f"`groups` must divide the {self.filters} filters. Received: {groups}"
            )
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(
                "`strides` and `dilation_rate` cannot both be above 1. "
                f"Received: strides={strides}, dilation_rate={dilation_rate}"
            )
        if self.groups > 1 and self.adc_bits is not None:
            raise ValueError(
                f"`adc_bits` needs `groups=1`. Received: groups={self.groups}"
            )
        self.input_spec = keras.layers.InputSpec(ndim=4)

    @property
    def _channel_axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1

    def build(self, input_shape) -> None:
        channels = input_shape[self._channel_axis]
        if channels is None or channels % self.groups:
            raise ValueError(
                f"The number of input channels must be known and a multiple of the "
                f"{self.groups} groups. Received: input_shape={input_shape}"
            )
        # Raises an error if the kernel does not fit.
        output_shape = self.compute_output_shape(input_shape)
        if self.adc_bits is not None and None in output_shape[1:]:
            raise ValueError(
                "`adc_bits` needs images of known height and width. "
                f"Received: input_shape={input_shape}"
            )
        self._build_kernel((*self.kernel_size, channels // self.groups, self.filters))
        axes = {self._channel_axis: channels}
        self.input_spec = keras.layers.InputSpec(ndim=4, axes=axes)

    def forward(self, inputs, controls, imperfections):
        kernel = self._kernel(controls, imperfections)
        inputs = ops.cast(inputs, kernel.dtype)
        # TensorFlow has no convolution with channels first on the CPU.
        first = self.data_format == "channels_first"
        images = ops.transpose(inputs, (0, 2, 3, 1)) if first else inputs
        if self.adc_bits is not None:
            images, axes = self._padded(images)
            patches = convolution.patches(images, axes)
            outputs = self._tiled_product(patches, kernel, imperfections)
        elif current().stacked:
            images, axes = self._padded(images)
            outputs = convolution.convolve(images, kernel, axes, self.groups)
        else:
            outputs = ops.conv(
                images,
                kernel,
                strides=self.strides,
                padding=self.padding,
                data_format="channels_last",
                dilation_rate=self.dilation_rate,
            )
        outputs = self._biased(outputs)
        if first:
            outputs = ops.transpose(outputs, (0, 3, 1, 2))
        return self.activation(outputs)

    def _padded(self, images):
        return convolution.padded(
            images, self.kernel_size, self.strides, self.dilation_rate, self.padding
        )

    def compute_output_shape(self, input_shape) -> tuple:
        first = self.data_format == "channels_first"
        batch, *rest = input_shape
        geometry = zip(
            rest[1:] if first else rest[:-1],
            self.kernel_size,
            self.strides,
            self.dilation_rate,
            strict=True,
        )
        sizes = [convolution.output_size(*axis, self.padding) for axis in geometry]
        return (batch, self.filters, *sizes) if first else (batch, *sizes, self.filters)
