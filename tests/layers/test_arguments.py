"""Check that each argument is checked: one table for all layers."""

import keras
import numpy as np
import pytest
from models import bits

import keras_pnn as pnn
from keras_pnn.layers import (
    ADC,
    DAC,
    Attenuators,
    BalancedDetector,
    ControlRange,
    MaskedSLM,
    MRRBank,
    MRRConv2D,
    MZIDense,
    MZIMesh,
    Photodetector,
    ShotNoise,
    mesh_initializers,
)

NAN, INF = np.nan, np.inf
CURVE = pnn.MeasuredTuning(np.linspace(0, 1, 9), np.linspace(-1, 1, 9), unit="nm")
RINGS, MESHES, CONVERTERS = (MRRBank,), (MZIMesh, MZIDense), (ADC, DAC)
CONV, SLM = (MRRConv2D,), (MaskedSLM,)
SHOWN = {"display_range": (0, 1)}
# Arguments that a layer needs.
NEEDED = {
    MRRBank: {"units": 3},
    MRRConv2D: {"filters": 4, "kernel_size": 2},
    MZIMesh: {"units": 4},
    MZIDense: {"units": 4},
    MaskedSLM: {"units": 3},
    ShotNoise: {"photons": 10},
    ADC: {"bits": 8, "low": 0, "high": 1},
    DAC: {"bits": 8, "low": 0, "high": 1},
}


def each(kinds, name, *values, **others):
    return [(kind, {name: v, **others}) for v in values for kind in kinds]


BAD = [
    *each(RINGS, "units", 0, 1.5, True),
    *each(RINGS, "bank_size", 4, (0, 2), (1, 2, 3), "ab"),
    *each(RINGS, "crosstalk", [[1, 2]], [1.0], [[2.0]], [[NAN]], "x", [[1], []]),
    *each(RINGS, "crosstalk", np.eye(3), bank_size=(2, 2)),
    *each(RINGS, "adc_bits", 1, 1.5, 25),
    *each(RINGS, "adc_range", 0, INF, adc_bits=4),
    *each(RINGS, "adc_range", 1.0),
    *each(RINGS, "channel_spacing", 0, "0.8"),
    *each(RINGS, "channel_spacing", 0.8, tuning=CURVE),
    *each(RINGS, "temperature_sensitivity", NAN, None),
    *each(RINGS, "tuning", "logistic"),
    *each(RINGS, "gain", 0.0, -1.0, "high", False),
    *each(CONV, "filters", 0, None),
    *each(CONV, "kernel_size", 0, (3,), "x", None),
    *each(CONV, "strides", 0),
    *each(CONV, "strides", 2, dilation_rate=2),
    *each(CONV, "dilation_rate", 1.5),
    *each(CONV, "groups", 0, 3),
    *each(CONV, "adc_bits", 4, groups=2),
    *each(CONV, "padding", "causal"),
    *each(CONV, "data_format", "channels"),
    *each(MESHES, "units", 1, 2.5, None),
    *each(MESHES, "arrangement", "diamond", None),
    *each(MESHES, "phase_initializer", "random", 3, None),
    *each(MESHES, "loss_db", -1, NAN, "a", None, 1j, np.zeros((4, 3)), [[1], [1, 2]]),
    *each((MZIDense,), "loss_db", np.zeros((4, 2))),
    *each(MESHES, "straight_loss_db", -1, NAN, np.zeros((4, 2))),
    *each((MZIMesh,), "crosstalk", np.eye(8), 1.0, "a", 1j * np.eye(16)),
    *each((MZIMesh,), "crosstalk", np.full((16, 16), NAN)),
    *each((Attenuators,), "units", 0),
    *each((mesh_initializers.Cross, mesh_initializers.Bar), "spread", -0.1, INF, "a"),
    *each(SLM, "units", 0),
    *each(SLM, "tile", 0, (4,), (4, 2.5)),
    *each(SLM, "grid", (3, 0), (1, 2, 3)),
    *each(SLM, "margin", -1, 0.5),
    *each(SLM, "pixel_repeat", (1, 0), None),
    *each(SLM, "display_range", (1, 0), (0,), 5, "ab", (0, NAN), (-INF, 0)),
    *each(SLM, "display_bits", 0, 25, **SHOWN),
    *each(SLM, "dac", DAC(8, 0, 1), DAC(8, -2, 1)),
    *each(SLM, "contrast", 1, INF),
    *each(SLM, "photons", 0, NAN, **SHOWN),
    *each(SLM, "read_noise", -0.1, None, **SHOWN),
    # They belong to a display.
    *each(SLM, "display_bits", 8),
    *each(SLM, "photons", 10),
    *each(SLM, "read_noise", 0.1),
    *each((*RINGS, *CONV, *MESHES, *SLM), "dac", 8),
    *each((*RINGS, *CONV), "dac", DAC(8, -1, 10)),
    *each(RINGS, "dac", DAC(8, 5, 9), tuning=pnn.HeaterTuning(max_current=4.0)),
    *each((Photodetector,), "ports", 0, 1.5, [], [0, 0], [-1], [0.5], "12"),
    *each((Photodetector,), "normalize", "l1", 2),
    *each((BalancedDetector,), "plus", [0], 3),
    *each((BalancedDetector,), "minus", [0]),
    *each((BalancedDetector,), "plus", [0, 1], [2, 2], [], minus=[2]),
    *each((BalancedDetector,), "minus", [-2], [0], plus=[0]),
    *each((ShotNoise,), "photons", 0, INF, "10"),
    *each((ShotNoise,), "seed", 1.5, (1, 2)),
    *each(CONVERTERS, "bits", 0, 25),
    *each(CONVERTERS, "low", -INF, "0"),
    *each(CONVERTERS, "high", 0, INF, None),
    *each((ControlRange,), "low", 1, 0, NAN, "0", None, high=0),
    *each((ControlRange,), "high", "1"),
    *each((ControlRange,), "low", INF),
]


def label(given):
    return given.__name__ if isinstance(given, type) else str(given)[:50]


@pytest.mark.parametrize("kind, arguments", BAD, ids=label)
def test_bad_arguments(kind, arguments):
    """The first of the arguments is the one that the message names."""
    name = next(iter(arguments))
    with pytest.raises(ValueError, match=rf"(?s)`{name}`.*Received"):
        kind(**{**NEEDED.get(kind, {}), **arguments})


@pytest.mark.parametrize(
    "layer, shape",
    [
        (MRRBank(3), (2, None)),
        (MRRConv2D(3, 2), (2, 4, 4, None)),
        (MRRConv2D(4, 2, groups=2), (2, 4, 4, 3)),
        (MRRConv2D(4, 6), (2, 4, 4, 3)),
        (MRRConv2D(3, 3, adc_bits=4), (2, None, 8, 2)),
        (MRRBank(3, crosstalk=np.eye(3)), (2, 4)),
        (MRRBank(3, gain=[1.0, 2.0]), (2, 2)),
        (MZIMesh(4), (2, 5)),
        (MZIMesh(4), (4,)),
        (MZIMesh(4), (2, 3, 3)),
        (Attenuators(3), (2, None)),
        (MZIDense(3), (2, 1)),
        (MZIDense(3), (4,)),
        (MZIDense(3), (2, None)),
        (Photodetector(ports=7), (None, 6)),
        (Photodetector(ports=[0, 6]), (None, 6)),
        (Photodetector(ports=2), (None, None)),
        (BalancedDetector([6], [0]), (None, 6)),
        (BalancedDetector([0], [9]), (None, 6)),
        (BalancedDetector(), (None, 5)),
        (BalancedDetector(), (None, None)),
        (MaskedSLM(3), (None, 12)),
        (MaskedSLM(3), (None, 4, 5, 2)),
        (MaskedSLM(3), (None, 4, 5, 1, 1)),
        (MaskedSLM(3), (None, None)),
        (MaskedSLM(3), (None, None, 5)),
        (MaskedSLM(3, tile=(5, 4)), (None, 4, 5)),
        (MaskedSLM(3, tile=(4, 4)), (None, 20)),
    ],
    ids=lambda given: given.name if hasattr(given, "name") else str(given),
)
def test_shapes_that_cannot_be_built(layer, shape):
    with pytest.raises(ValueError, match=r"Received: .*(shape|port|size)"):
        layer.build(shape)


@pytest.mark.parametrize(
    "layer, shape, wrong",
    [
        (MRRBank(3), (1, 3), [(1, 2), (3,)]),
        (MRRConv2D(3, 2), (1, 4, 4, 3), [(1, 4, 4, 2), (1, 4, 3)]),
        (MZIMesh(4), (1, 4), [(2, 5), (4,), (2, 3, 3)]),
        (MZIDense(3), (1, 4), [(2, 5), (4,)]),
        (MaskedSLM(3), (1, 4, 5), [(2, 2, 5), (4, 10), (1, 5, 4), (2, 4, 5, 2), (20,)]),
        (Photodetector(ports=2), (1, 6), [(1, 4)]),
        (BalancedDetector(), (1, 6), [(1, 4)]),
    ],
    ids=lambda given: given.name if hasattr(given, "name") else "",
)
def test_inputs_of_another_shape_than_built_for(layer, shape, wrong):
    layer(np.ones(shape, "float32"))
    for other in wrong:
        with pytest.raises(ValueError, match=r"[Rr]eceived|expected axis"):
            layer(np.ones(other, "float32"))


@pytest.mark.parametrize(
    "layer, modes, bad",
    [
        (MRRBank(3), 4, [np.zeros((3, 4)), np.zeros(4), 0.0, np.full((4, 3), 1.5)]),
        (MaskedSLM(3), 4, [np.zeros((3, 4)), 0.0, np.full((4, 3), -1.5)]),
        (MZIMesh(4), 4, [np.eye(3), np.eye(4, dtype=bool), "unit", 2 * np.eye(4)]),
        (
            MZIDense(3),
            4,
            [np.ones((4, 3)), 0.0, np.ones((3, 4), object)],
        ),
    ],
    ids=lambda given: given.name if hasattr(given, "name") else "",
)
def test_weights_that_are_refused_change_nothing(layer, modes, bad):
    layer.build((None, modes))
    before = bits(layer)
    shape = {MZIMesh: (4, 4), MZIDense: (3, 4)}.get(type(layer), (4, 3))
    for weights in (*bad, [[1, 0], [1]], np.full(shape, NAN)):
        with pytest.raises(ValueError, match="Received"):
            layer.program(weights)
        if isinstance(layer, MZIMesh):
            with pytest.raises(ValueError, match="Received"):
                layer.correct(weights)
    if isinstance(layer, MRRBank | MaskedSLM):
        for weight in (NAN, INF):
            with pytest.raises(ValueError, match=r"`weights`.*Received"):
                layer.program(np.full(shape, weight), clip=True)
    assert bits(layer) == before


@pytest.mark.parametrize("layer", [ShotNoise(9), ADC(3)], ids=lambda la: la.name)
def test_fields_in_place_of_intensities_are_refused(layer):
    for inputs in (keras.Input((6,), dtype="complex64"), np.ones((1, 6), "complex64")):
        with pytest.raises(ValueError, match=r"`inputs`.*Received: dtype=complex64"):
            layer(inputs)


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (MRRBank, {"half_width": 0.1}, "no argument `half_width`.*LorentzianTuning"),
        (MRRConv2D, {"max_current": 4}, "argument of HeaterTuning.*tuning=.*max_curr"),
        (MRRBank, {"temperature": 1.0}, r"is an imperfection.*pnn\.Variation\(temper"),
        (MZIMesh, {"theta_error": 0.1}, r"imperfection.*pnn\.Variation\(theta_error"),
        (MaskedSLM, {"rotation": 3}, "imperfection.*Received: rotation=3"),
        (MZIDense, {"bits": 4}, "is an argument of `pnn.layers.DAC`"),
        (MRRBank, {"nonsense": 1}, "Unrecognized keyword arguments.*nonsense"),
    ],
)
def test_arguments_that_belong_elsewhere(kind, arguments, message):
    first = (3, 3) if kind is MRRConv2D else (4,)
    with pytest.raises(ValueError, match=message):
        kind(*first, **arguments)
