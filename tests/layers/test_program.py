"""Weights that are asked for, and the controls that give them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import measured

import keras_pnn as pnn
from keras_pnn.layers import (
    DAC,
    ControlRange,
    MaskedSLM,
    MRRBank,
    MRRConv2D,
    MZIDense,
)


def bank(outputs=4, inputs=8, **kwargs):
    layer = MRRBank(outputs, dtype="float64", **kwargs)
    layer.build((None, inputs))
    return layer


@pytest.mark.parametrize("high", [None, 1.0, float("inf")])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_range_keeps_values_inside_and_the_dtype(high, dtype):
    x = np.array([-1.0, 0.25, 0.75, 3.0], dtype)
    kept = ControlRange(0.5, high)(tf.constant(x))
    assert kept.dtype == dtype
    np.testing.assert_array_equal(kept, np.clip(x, 0.5, high))


def neighbours(n, strength=0.05):
    return np.eye(n) + strength * (1 - np.eye(n))


@pytest.mark.parametrize("tuning", [pnn.HeaterTuning(), pnn.LorentzianTuning()])
@pytest.mark.parametrize(
    "options",
    [
        {"crosstalk": neighbours(8)},
        {"channel_spacing": 0.8},
        {"crosstalk": neighbours(8), "channel_spacing": 0.8},
        # The last tile has two rings in a row of five.
        {"crosstalk": neighbours(5), "bank_size": (3, 5)},
    ],
)
def test_crosstalk_and_neighbours_are_compensated(rng, tuning, options):
    inputs = 7 if "bank_size" in options else 8
    layer = bank(inputs=inputs, tuning=tuning, **options)
    weights = rng.uniform(-0.5, 0.5, (inputs, 4))
    layer.program(weights)
    np.testing.assert_allclose(layer.effective_weights(), weights, rtol=0, atol=1e-4)


def test_what_neighbours_put_out_of_reach_is_an_error():
    # A ring on resonance without heat of its own is warmed by all others.
    layer = bank(crosstalk=neighbours(8))
    before = np.asarray(layer.controls["control"])
    weights = np.full((8, 4), 0.9)
    weights[0] = -1.0
    with pytest.raises(ValueError, match=r"`weights` must be in reach.* Received: 4"):
        layer.program(weights)
    np.testing.assert_array_equal(layer.controls["control"], before)
    layer.program(weights, clip=True)
    assert np.all(np.asarray(layer.effective_weights())[0] > -0.9)


@pytest.mark.parametrize(
    "options",
    [
        {"control_constraint": ControlRange(0.0, 1.0)},
        {"dac": DAC(24, 0.0, 1.0)},
        {"dac": DAC(24, 0.0, 1.0), "control_constraint": None},
    ],
)
def test_controls_stay_within_constraint_and_converter(options):
    layer = bank(tuning=pnn.HeaterTuning(), kernel_initializer="ones", **options)
    assert np.max(layer.controls["control"]) <= 1.0
    # On resonance at 1.23 mA.
    with pytest.raises(ValueError, match=r"from 0 to 1 mA.* Received: 32 weights"):
        layer.program(np.full((8, 4), -1.0))
    layer.program(np.full((8, 4), -1.0), clip=True)
    np.testing.assert_array_equal(layer.controls["control"], 1.0)


def test_ranges_without_a_common_part_are_refused():
    with pytest.raises(
        ValueError, match=r"must overlap. Received: \[0, inf\], \[2, 3\]"
    ):
        MRRBank(2, control_constraint=ControlRange(2.0, 3.0), dac=DAC(8, 0.0, 1.0))


def test_controls_within_the_converter_keep_a_gradient():
    layer = MRRBank(3, tuning="heater", dac=DAC(8, 0.0, 3.0))
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.program(np.full((4, 3), 0.9999), clip=True)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    x, y = np.ones((8, 4), "float32"), np.full((8, 3), -4.0, "float32")
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert np.max(layer.controls["control"]) <= 3.0


def test_clipped_weights_stay_off_the_ends_of_a_measured_curve():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.layers[0].kernel.assign(np.full((4, 3), 2.0))
    conversion = pnn.convert(model, tuning=measured("nm"))
    assert conversion.layers[0]["clipped"] == 12
    converted = conversion.model
    converted.compile(loss="mse")
    devices = pnn.Variation(resonance_shift=0.001).sample(converted, 3, seed=0)
    found = pnn.evaluate_devices(
        converted, np.ones((2, 4)), np.ones((2, 3)), devices, verbose=0
    )
    assert np.isfinite(found["loss"]).all()


def test_controls_of_a_conversion_can_be_exported_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(2, 3)])
    model.layers[0].kernel.assign(np.full((3, 3, 1, 2), 2.0))
    converted = pnn.convert(model, tuning=measured("nm")).model
    assert isinstance(converted.layers[-1], MRRConv2D)
    pnn.export_controls(converted, tmp_path / "controls.csv")
    pnn.load_controls(converted, tmp_path / "controls.csv")


def test_a_weight_out_of_reach_spoils_no_other_output(rng):
    layer = bank(3, 6, channel_spacing=1.0)
    weights = np.clip(rng.normal(0, 0.35, (6, 3)), -0.6, 0.6)
    weights[2, 0] = 1.0
    layer.program(weights, clip=True)
    found = np.asarray(layer.effective_weights())
    np.testing.assert_allclose(found[:, 1:], weights[:, 1:], rtol=0, atol=1e-5)
    others = np.delete(found[:, 0] - weights[:, 0], 2)
    np.testing.assert_allclose(others, 0, rtol=0, atol=1e-3)


def test_a_hotter_ring_compensates_those_at_their_limit():
    # The cold rings stay at the start of their curve, the middle one at its end.
    control = np.linspace(0.5, 1, 60)
    weight = pnn.LorentzianTuning().weight(control - 0.5)
    tuning = pnn.MeasuredTuning(control, weight, unit="nm")
    crosstalk = np.eye(5) + 0.1 * (np.eye(5, k=1) + np.eye(5, k=-1))
    layer = bank(1, 5, tuning=tuning, crosstalk=crosstalk, control_constraint=None)
    low, high = tuning.weight_range
    layer.program([[low], [low], [high], [low], [low]], clip=True)
    shift = np.asarray(layer.controls["control"])[:, 0]
    heated = crosstalk @ shift
    np.testing.assert_allclose(heated[2], 1.0, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.delete(shift, 2), 0.5, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "layer, shape, target, clip",
    [
        (MRRBank(3, dac=DAC(6, 0.0, 1.0)), (4,), (4, 3), {}),
        (MRRBank(3, channel_spacing=0.8), (4,), (4, 3), {"clip": True}),
        (MRRConv2D(3, 2, dac=DAC(6, 0.0, 1.0)), (4, 4, 1), (2, 2, 1, 3), {}),
        (MaskedSLM(3, dac=DAC(6, -1, 1)), (2, 2), (4, 3), {}),
        (MaskedSLM(3, contrast=50.0), (2, 2), (4, 3), {}),
    ],
)
def test_programming_returns_the_distance_that_is_left(rng, layer, shape, target, clip):
    layer.build((None, *shape))
    weights = rng.uniform(-0.99, 0.99, target)
    left = layer.program(weights, **clip)
    missed = np.asarray(layer.effective_weights(), "float64") - weights
    assert isinstance(left, float)
    assert left == pytest.approx(np.sqrt(np.mean(missed**2)), rel=1e-3, abs=1e-6)
    assert clip or left > 1e-3
    # The device at hand does not count.
    for variable in layer.imperfections.values():
        variable.assign(variable + 0.1)
    assert layer.program(weights, **clip) == left


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_programming_a_matrix_returns_the_distance_that_is_left(rng, shape):
    layer = MZIDense(shape[0], dac=DAC(6, 0.0, 2 * np.pi))
    layer.build((None, shape[1]))
    matrix = 100 * rng.normal(size=shape)
    left = layer.program(matrix)
    missed = np.linalg.norm(layer.transfer_matrix() - matrix)
    assert left == pytest.approx(missed / np.linalg.norm(matrix), rel=1e-3)
    assert 0.01 < left < 0.5
    assert layer.program(np.zeros(shape)) == 0


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1e39, 1e-39])
def test_a_matrix_beyond_the_range_of_the_gain_is_refused(rng, scale):
    matrix = scale * rng.normal(size=(3, 3))
    layer = MZIDense(3, name="dense")
    layer.build((None, 3))
    before = layer.transfer_matrix().numpy()
    message = r"`matrix` must be in the range of float32"
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=message):
        layer.program(matrix)
    np.testing.assert_array_equal(layer.transfer_matrix(), before)
    wide = MZIDense(3, dtype="float64")
    wide.build((None, 3))
    assert wide.program(matrix) < 1e-12
