"""Convert a trained digital network to weight banks or meshes."""

import dataclasses
import math
import re
from collections.abc import Callable

import keras
import numpy as np

from keras_pnn import _checks, _keras
from keras_pnn._display import Shown, Table
from keras_pnn._signatures import passing_on
from keras_pnn.layers.detectors import HomodyneDetector
from keras_pnn.layers.fields import check_fields, uses_of
from keras_pnn.layers.mrr import MRRBank, MRRConv2D
from keras_pnn.layers.mzi_dense import MZIDense
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.layers.ring_layer import RingLayer
from keras_pnn.layers.ring_program import controls_for

# With a gain, the ratio of a ring's reach to the largest weight.
_MARGIN = 1.1
# Not the kernel's constraint: the controls are limited to their range instead.
_COPIED = (
    "kernel_regularizer",
    "bias_regularizer",
    "bias_constraint",
    "activity_regularizer",
)
# Arguments that come from the digital layers.
_FROM_LAYER = (*_COPIED, "activation", "use_bias")
_GEOMETRY = ("strides", "padding", "data_format", "dilation_rate", "groups")


@dataclasses.dataclass(frozen=True, repr=False)
class Conversion(Shown):
    """A converted model, and the errors of its weights.

    Args:
        model: the converted model.
        layers: one dictionary for each converted layer: `name`, `weights` (their
            number), `clipped` (how many are out of range), `max_error` and `rms_error`
            (effective minus digital weight).
        kept: names of layers with weights that stay digital.
        optical_share: share of banks and meshes in the multiplications of one sample,
            counted in dense layers and convolutions (not in attention, recurrent and
            separable layers).
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
        rows = []
        for row in self.layers:
            counts = (str(row[key]) for key in ("weights", "clipped"))
            errors = (f"{row[key]:.4g}" for key in ("max_error", "rms_error"))
            rows.append((row["name"], *counts, *errors))
        columns = ("layer", "weights", "clipped", "max error", "rms error")
        share = f"{100 * self.optical_share:.4g} % of all multiplications are optical"
        kept = [f"kept digital: {', '.join(self.kept)}"] if self.kept else []
        kept += [f"{name}: {reason}" for name, reason in self.reasons.items()]
        return [Table("", columns, rows), share, *kept]


@passing_on(RingLayer, MZIDense, without=_FROM_LAYER)
def convert(
    model: keras.Model,
    tuning=None,
    gain: str | None = None,
    target: str = "mrr",
    **kwargs,
) -> Conversion:
    """Converts the `Dense` and `Conv2D` layers of a trained model to optics.

    In a bank, each weight becomes the nearest weight in the range of a ring. A mesh
    implements the matrix of a `Dense` layer exactly, and a `HomodyneDetector` follows
    it. Biases, their regularisers and all other layers are copied; kernel regularisers
    only for banks. Functional and `Sequential` models inside the model are converted
    too. The given model stays unchanged.

    Args:
        model: a built functional or `Sequential` model.
        tuning: the rings' tuning. Default `LorentzianTuning()`.
        gain: `"layer"` or `"column"`: gives each bank, or each of its outputs, a gain
            that scales its largest weight to 1/1.1 of its ring's reach. Weights beyond
            the reach then fit, and small weights use more of it, so that a shift of a
            ring changes them less. Default `None`: no gain.
        target: `"mrr"`: microring banks. `"mzi"`: an `MZIDense` for each `Dense`
            layer with at least two inputs and outputs; convolutions stay digital.
        **kwargs: further arguments of `MRRBank` and `MRRConv2D`, such as
            `temperature_sensitivity` or `bank_size`; with `target="mzi"`, of
            `MZIDense`, such as `arrangement` or `loss_db`.

    Returns:
        A `Conversion` with the new model, not compiled, and the errors by layer.

    Raises:
        ValueError: If the model is not built, is subclassed, has nothing to convert,
            is quantised (its kernels are integers), or holds a NaN; or if a mesh's
            complex fields reach a Keras layer.

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
    if _checks.choice("target", target, ("mrr", "mzi")) == "mzi":
        for name, value in (("tuning", tuning), ("gain", gain)):
            if value is not None:
                expected = "left out with target='mzi': a mesh has no rings"
                raise _checks.error(name, expected, _checks.short(value))
    # (layer, its copy, the function that programs the copy if that is optical)
    pairs: list[tuple[keras.layers.Layer, keras.layers.Layer, Callable | None]] = []

    def replace(layer):
        # Exact types: a subclass may compute something else.
        dense = type(layer) is keras.layers.Dense
        if target == "mrr" and (dense or type(layer) is keras.layers.Conv2D):
            copy, program = _bank(layer, tuning, gain, kwargs), _program_bank
        elif target == "mzi" and dense and min(layer.kernel.shape) >= 2:
            copy, program = _mesh(layer, kwargs), _program_mesh
        else:
            copy, program = layer.__class__.from_config(layer.get_config()), None
        pairs.append((layer, copy, program))
        return copy

    clone = keras.models.clone_model(model, clone_function=replace, recursive=True)
    if not clone.built:
        clone.build(model.input_shape)
    report, kept, reasons = [], [], {}
    for layer, copy, program in pairs:
        if program is not None:
            report.append(program(layer, copy))
            continue
        _copy_state(layer, copy)
        if layer.weights:
            kept.append(layer.name)
            reasons[layer.name] = _reason(layer, target)
    if not report:
        raise ValueError(
            f"`model` has no layer to convert to target={target!r}. Received layers: "
            + ", ".join(type(la).__name__ for la, *_ in pairs)
        )
    optical, digital = _multiplications(clone)
    return Conversion(clone, report, kept, optical / (optical + digital), reasons)


def _multiplications(model) -> tuple[int, int]:
    """Returns the numbers of optical and digital multiplications of one sample.

    Counts layers whose kernel has two or more axes; unknown sizes count as 1.
    """
    optical = digital = 0
    for use in uses_of(model):
        # A layer in a `TimeDistributed` runs at each step of the outputs.
        wrapped = isinstance(use.layer, keras.layers.Wrapper)
        layer = use.layer.layer if wrapped else use.layer
        if isinstance(layer, RingLayer):
            sizes = layer.controls["control"].shape
        elif isinstance(layer, MZIDense):
            sizes = layer.v.units, layer.units
        else:
            sizes = getattr(getattr(layer, "kernel", None), "shape", ())
        if len(sizes) < 2:
            continue
        outputs = _size(use.layer.compute_output_shape(use.shape))
        kind, weights = type(layer).__name__, math.prod(sizes)
        if isinstance(layer, keras.layers.EinsumDense):
            _, names, kept = re.split(",|->", layer.equation)
            named = zip(names, sizes, strict=True)
            count = outputs * math.prod(n for name, n in named if name not in kept)
        elif "Transpose" in kind:
            # The kernel is applied at each place of the inputs, not of the outputs.
            count = _size(use.shape) // sizes[-1] * weights
        else:
            channels = sizes[-2 if "Depthwise" in kind else -1 :]
            count = max(outputs // math.prod(channels), 1) * weights
        if isinstance(layer, RingLayer | MZIDense):
            optical += count
        else:
            digital += count
    return optical, digital


def _size(shape: tuple) -> int:
    """Returns the number of values in one sample; unknown sizes count as 1."""
    return math.prod(n or 1 for n in shape[1:])


def _reason(layer, target: str) -> str:
    kind = type(layer).__name__
    if target == "mzi" and type(layer) in (keras.layers.Dense, keras.layers.Conv2D):
        return f"a mesh is for vectors of two values or more, and this is a {kind}"
    if isinstance(layer, PhysicalLayer):
        return "it is optical already, and has no weights of rings to convert"
    if "Normalization" in type(layer).__name__:
        return "it scales and shifts each value by statistics"
    return f"a {kind} is not exactly a Dense or Conv2D, and may compute something else"


def _copy_state(layer, copy) -> None:
    copy.set_weights(layer.get_weights())
    for part in _keras.parts(copy):
        # `Normalization` applies values derived from its weights.
        if hasattr(part, "finalize_state"):
            part.finalize_state()


def _activation(layer):
    activation = layer.activation
    # A layer as activation may have weights, which must not be shared.
    if isinstance(activation, keras.layers.Layer):
        return activation.__class__.from_config(activation.get_config())
    return activation


def _mesh(layer, kwargs) -> keras.Sequential:
    """Returns a mesh of a `Dense` layer's size, followed by a detector."""
    common = {"trainable": layer.trainable, "dtype": layer.dtype_policy}
    detector = HomodyneDetector(
        _activation(layer),
        layer.use_bias,
        layer.bias_initializer,
        layer.bias_regularizer,
        layer.bias_constraint,
        activity_regularizer=layer.activity_regularizer,
        name=f"{layer.name}_detector",
        **common,
    )
    mesh = MZIDense(layer.units, name=f"{layer.name}_mesh", **common, **kwargs)
    return keras.Sequential([mesh, detector], name=layer.name)


def _program_mesh(layer, converted) -> dict:
    mesh, detector = converted.layers
    digital = np.asarray(layer.kernel, "float64")
    mesh.program(digital.T)
    _copy_digital(layer, detector)
    error = np.asarray(mesh.transfer_matrix()).T.real - digital
    return _row(layer, 0, error)


def _bank(layer, tuning, gain, kwargs) -> RingLayer:
    """Returns a bank of a layer's size, with a gain of 1 if one is asked for."""
    common = {
        "name": layer.name,
        "activation": _activation(layer),
        "use_bias": layer.use_bias,
        **{name: getattr(layer, name) for name in _COPIED},
        "trainable": layer.trainable,
        "tuning": tuning,
        "dtype": layer.dtype_policy,
        **kwargs,
    }
    if gain is not None:
        common["gain"] = 1.0 if gain == "layer" else np.ones(layer.kernel.shape[-1])
    if isinstance(layer, keras.layers.Dense):
        return MRRBank(layer.units, **common)
    geometry = {name: getattr(layer, name) for name in _GEOMETRY}
    return MRRConv2D(layer.filters, layer.kernel_size, **geometry, **common)


def _gain(weights: np.ndarray, bank: RingLayer) -> np.ndarray:
    """Returns the gain that brings the weights into reach of their rings."""
    low, high = (bank.curve.clip(np.full(weights.shape, s)) for s in (-9.0, 9.0))
    reach = np.where(weights < 0, low, high)
    # A single detector reaches no negative weight, whatever the gain.
    share = np.where(reach * weights > 0, weights / np.where(reach, reach, 1), 0.0)
    rings = tuple(range(weights.ndim - (1 if np.ndim(bank.gain) else 0)))
    largest = share.max(axis=rings)
    return np.where(largest > 0, _MARGIN * largest, 1.0)


def _program_bank(layer, bank) -> dict:
    weights, gain = np.asarray(layer.kernel, "float64"), 1.0
    if bank.gain is not None:
        gain = _gain(weights, bank)
        # Also the argument, which `get_config` saves.
        bank.gain = gain if gain.ndim else float(gain)
        bank.gain_variable.assign(gain)
    digital, weights = weights, weights / gain
    reached = bank.curve.clip(weights)
    controls, missed = controls_for(bank, reached)
    bank.controls["control"].assign(controls)
    _copy_digital(layer, bank)
    error = gain * np.asarray(bank.effective_weights(), "float64") - digital
    clipped = np.sum((np.abs(reached - weights) > 1e-12) | missed)
    return _row(layer, int(clipped), error)


def _copy_digital(layer, converted) -> None:
    """Copies the bias, and the state of an activation."""
    if layer.use_bias:
        converted.bias.assign(layer.bias)
    if getattr(layer.activation, "weights", None):
        converted.activation.build_from_config(layer.activation.get_build_config())
        _copy_state(layer.activation, converted.activation)


def _row(layer, clipped: int, error: np.ndarray) -> dict:
    return {
        "name": layer.name,
        "weights": error.size,
        "clipped": clipped,
        "max_error": float(np.max(np.abs(error))),
        "rms_error": float(np.sqrt(np.mean(error**2))),
    }
