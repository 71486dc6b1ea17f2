"""Convert a trained digital network to one of weight banks."""

import dataclasses
import math

import keras
import numpy as np

from keras_pnn import _checks, _keras
from keras_pnn._display import Shown, Table
from keras_pnn._signatures import passing_on
from keras_pnn.layers.fields import check_fields, uses_of
from keras_pnn.layers.mrr import MRRBank, MRRConv2D
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.layers.ring_layer import RingLayer
from keras_pnn.layers.ring_program import controls_for

# How far the largest weight stays from the end of a ring's reach, with a gain.
_MARGIN = 1.1
# Not the kernel's constraint: the controls are limited to their range instead.
_COPIED = (
    "kernel_regularizer",
    "bias_regularizer",
    "bias_constraint",
    "activity_regularizer",
)
# What the digital layers have themselves.
_FROM_LAYER = (*_COPIED, "activation", "use_bias")
_GEOMETRY = ("strides", "padding", "data_format", "dilation_rate", "groups")


@dataclasses.dataclass(frozen=True, repr=False)
class Conversion(Shown):
    """A converted model, and the errors of its weights.

    Args:
        model: the model of weight banks.
        layers: one dictionary for each converted layer: `name`, `weights` (their
            number), `clipped` (those out of range), `max_error` and `rms_error`
            (effective minus digital weight).
        kept: names of layers with weights that stay digital.
        optical_share: share of the multiplications of one sample that weight banks
            do, of those in dense layers and convolutions (attention, recurrent and
            separable layers are not counted).
        reasons: name of a layer in `kept` → why it stays digital.

    Example:

    >>> conversion = pnn.convert(digital)
    >>> sum(layer["clipped"] for layer in conversion.layers)
    0
    """

    model: keras.Model
    layers: list[dict]
    kept: list[str]
    optical_share: float
    reasons: dict[str, str]

    def _parts(self):
        rows = [
            (
                row["name"],
                str(row["weights"]),
                str(row["clipped"]),
                f"{row['max_error']:.4g}",
                f"{row['rms_error']:.4g}",
            )
            for row in self.layers
        ]
        columns = ("layer", "weights", "clipped", "max error", "rms error")
        share = f"{100 * self.optical_share:.4g} % of all multiplications are optical"
        kept = [f"kept digital: {', '.join(self.kept)}"] if self.kept else []
        kept += [f"{name}: {reason}" for name, reason in self.reasons.items()]
        return [Table("", columns, rows), share, *kept]


@passing_on(RingLayer, without=_FROM_LAYER)
def convert(
    model: keras.Model, tuning=None, gain: str | None = None, **kwargs
) -> Conversion:
    """Converts the `Dense` and `Conv2D` layers of a trained model to weight banks.

    Each weight becomes the nearest weight in the range of a ring. Biases, regularisers
    and all other layers are copied. Functional and `Sequential` models inside the
    model are converted too. The given model stays unchanged.

    Args:
        model: a built functional or `Sequential` model.
        tuning: the rings' tuning. Default `LorentzianTuning()`.
        gain: `"layer"` or `"column"`: gives each bank, or each of its outputs, the
            gain at which its largest weight is within 10 % of the reach of its ring.
            Weights beyond the reach fit then, and small ones grow, so that a shift of
            a ring changes them less. Default `None`: no gain.
        **kwargs: further arguments of `MRRBank` and `MRRConv2D`, such as
            `temperature_sensitivity` or `bank_size`.

    Returns:
        A `Conversion` with the new model, not compiled, and the errors by layer.

    Raises:
        ValueError: If the model is not built, is subclassed, has nothing to convert,
            is quantised (its kernels are integers), or holds a NaN; or if a mesh's
            complex fields reach a layer of Keras.

    Example:

    >>> conversion = pnn.convert(model, bank_size=(4, 4))
    >>> print(conversion)
    >>> conversion.model.compile(loss="mse", metrics=["mae"])
    """
    if not isinstance(model, keras.Sequential | keras.Model) or not model.built:
        raise _checks.error("model", "a built Keras model", repr(model))
    if not hasattr(model, "operations") and not isinstance(model, keras.Sequential):
        raise ValueError(
            "`model` must be functional or Sequential, since the layers of a "
            f"subclassed model may do anything. Received: {type(model).__name__}"
        )
    quantised = {
        part.name: part.quantization_mode
        for part in _keras.flat_layers(model)
        if part.quantization_mode is not None
    }
    if quantised:
        raise ValueError(
            "`model` must not be quantised, since integers are no weights: convert it "
            "before `quantize`, and give the banks a `dac` for the steps of their "
            f"drivers. Received: quantised layers {quantised}"
        )
    check_fields(model)
    _checks.choice("gain", gain, (None, "layer", "column"))
    pairs: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def replace(layer):
        bank = _bank(layer, tuning, gain, kwargs)
        pairs.append((layer, bank))
        return bank

    clone = keras.models.clone_model(model, clone_function=replace, recursive=True)
    if not clone.built:
        clone.build(model.input_shape)
    report, kept = [], []
    for layer, bank in pairs:
        if isinstance(bank, RingLayer) and not isinstance(layer, RingLayer):
            report.append(_program(layer, bank, gain is not None))
        else:
            _copy_state(layer, bank)
            if layer.weights:
                kept.append(layer.name)
    if not report:
        raise ValueError(
            "`model` has no Dense or Conv2D layer to convert. Received layers: "
            + ", ".join(type(la).__name__ for la, _ in pairs)
        )
    optical, digital = _multiplications(clone)
    reasons = {la.name: _reason(la) for la, _ in pairs if la.name in kept}
    return Conversion(clone, report, kept, optical / (optical + digital), reasons)


def _multiplications(model) -> tuple[int, int]:
    """Returns how many multiplications of one sample are optical, and digital.

    Those of layers with a kernel, a matrix or more; sizes that are unknown count as 1.
    """
    optical = digital = 0
    for use in uses_of(model):
        layer, matrix = use.layer, getattr(use.layer, "kernel", None)
        if isinstance(layer, RingLayer):
            matrix = layer.controls["control"]
        if matrix is None or len(matrix.shape) < 2:
            continue
        shape = layer.compute_output_shape(use.shape)[1:]
        depthwise = "Depthwise" in type(layer).__name__
        outputs = math.prod(matrix.shape[-2 if depthwise else -1 :])
        places = math.prod(n or 1 for n in shape) // outputs
        count = max(places, 1) * math.prod(matrix.shape)
        if isinstance(layer, RingLayer):
            optical += count
        else:
            digital += count
    return optical, digital


def _reason(layer) -> str:
    if isinstance(layer, PhysicalLayer):
        return "it is optical already, and has no weights of rings to convert"
    if "Normalization" in type(layer).__name__:
        return "it scales and shifts each value by statistics"
    kind = type(layer).__name__
    return f"a {kind} is not exactly a Dense or Conv2D, and may compute something else"


def _copy_state(layer, copy) -> None:
    copy.set_weights(layer.get_weights())
    for part in _keras.parts(copy):
        # `Normalization` applies values derived from its weights.
        if hasattr(part, "finalize_state"):
            part.finalize_state()


def _bank(layer, tuning, gain, kwargs):
    activation = getattr(layer, "activation", None)
    # A layer as activation may have weights, which are not to be shared.
    if isinstance(activation, keras.layers.Layer):
        activation = activation.__class__.from_config(activation.get_config())
    common = {
        "name": layer.name,
        "activation": activation,
        "use_bias": getattr(layer, "use_bias", True),
        **{name: getattr(layer, name, None) for name in _COPIED},
        "trainable": layer.trainable,
        "tuning": tuning,
        "dtype": layer.dtype_policy,
        **kwargs,
    }
    # Exact types: a subclass may compute something else.
    if gain is not None and type(layer) in (keras.layers.Dense, keras.layers.Conv2D):
        outputs = layer.kernel.shape[-1]
        common["gain"] = 1.0 if gain == "layer" else np.ones(outputs)
    if type(layer) is keras.layers.Dense:
        return MRRBank(layer.units, **common)
    if type(layer) is keras.layers.Conv2D:
        geometry = {name: getattr(layer, name) for name in _GEOMETRY}
        return MRRConv2D(layer.filters, layer.kernel_size, **geometry, **common)
    return layer.__class__.from_config(layer.get_config())


def _gain(weights: np.ndarray, bank: RingLayer) -> np.ndarray:
    """Returns the gain at which the weights are in reach of their rings."""
    low, high = (bank.curve.clip(np.full(weights.shape, s)) for s in (-9.0, 9.0))
    reach = np.where(weights < 0, low, high)
    # A single detector reaches no negative weight, whatever the gain.
    share = np.where(reach * weights > 0, weights / np.where(reach, reach, 1), 0.0)
    rings = tuple(range(weights.ndim - (1 if np.ndim(bank.gain) else 0)))
    largest = share.max(axis=rings)
    return np.where(largest > 0, _MARGIN * largest, 1.0)


def _program(layer, bank, by_gain: bool) -> dict:
    weights, gain = np.asarray(layer.kernel, "float64"), 1.0
    if by_gain:
        gain = _gain(weights, bank)
        # That of the configuration too, with which it is built again.
        bank.gain = gain if gain.ndim else float(gain)
        bank.gain_variable.assign(gain)
    digital, weights = weights, weights / gain
    reached = bank.curve.clip(weights)
    controls, missed = controls_for(bank, reached)
    bank.controls["control"].assign(controls)
    if bank.use_bias:
        bank.bias.assign(layer.bias)
    if getattr(layer.activation, "weights", None):
        bank.activation.build_from_config(layer.activation.get_build_config())
        _copy_state(layer.activation, bank.activation)
    error = gain * np.asarray(bank.effective_weights(), "float64") - digital
    return {
        "name": layer.name,
        "weights": weights.size,
        "clipped": int(np.sum((np.abs(reached - weights) > 1e-12) | missed)),
        "max_error": float(np.max(np.abs(error))),
        "rms_error": float(np.sqrt(np.mean(error**2))),
    }
