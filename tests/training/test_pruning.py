"""The penalty on the slope of the tuning curve."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pnn as pnn

CONTROL = np.array([[0.0, 0.1, 0.3], [0.05, 0.7, 1.5]], "float32")


def slope(control, half_width):
    """Of w = 1 − 2 / (1 + u²), u = control / half_width."""
    u = control / half_width
    return 4 * u / (1 + u**2) ** 2 / half_width


def gradient(pruning, control):
    with tf.GradientTape() as tape:
        tape.watch(control)
        value = pruning(control)
    return tape.gradient(value, control)


@pytest.mark.parametrize("half_width", [0.15, 0.077])
def test_value_is_the_norm_of_the_slopes(half_width):
    pruning = pnn.OpticalPruning(0.3, pnn.LorentzianTuning(half_width))
    expected = 0.3 * np.linalg.norm(slope(CONTROL.astype("float64"), half_width))
    np.testing.assert_allclose(pruning(CONTROL), expected, rtol=1e-5)


def test_default_tuning_and_zero():
    np.testing.assert_allclose(
        pnn.OpticalPruning(1.0)(CONTROL),
        pnn.OpticalPruning(1.0, pnn.LorentzianTuning())(CONTROL),
    )
    assert float(pnn.OpticalPruning(0.0)(CONTROL)) == 0
    flat = gradient(pnn.OpticalPruning(0.5), tf.zeros((3,), "float64"))
    np.testing.assert_allclose(flat, np.zeros(3), atol=1e-12)


@pytest.mark.parametrize("tuning", [pnn.LorentzianTuning(), pnn.HeaterTuning()])
def test_derivatives_against_differences_and_on_resonance(tuning):
    """A control of 0 is where non-negative controls end up."""
    pruning = pnn.OpticalPruning(0.5, tuning)
    control = tf.constant(CONTROL, "float64")
    direction = tf.constant([[1.0, -0.5, 0.3], [0.2, 0.7, -1.0]], "float64")
    with tf.autodiff.ForwardAccumulator(control, direction) as accumulator:
        slopes = gradient(pruning, control)
    ends = [control + 1e-6 * direction, control - 1e-6 * direction]
    rise = (pruning(ends[0]) - pruning(ends[1])) / 2e-6
    bend = (gradient(pruning, ends[0]) - gradient(pruning, ends[1])) / 2e-6
    np.testing.assert_allclose(np.sum(slopes * direction), rise, rtol=1e-6)
    np.testing.assert_allclose(accumulator.jvp(slopes), bend, rtol=1e-6, atol=1e-7)


def test_in_training_it_lowers_the_slopes_and_is_in_the_loss():
    keras.utils.set_random_seed(0)
    layer = pnn.layers.MRRBank(3, control_regularizer=pnn.OpticalPruning(0.1))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=True)
    x, y = np.zeros((4, 4), "float32"), np.zeros((4, 3), "float32")
    before = model.evaluate(x, y, verbose=0)
    expected = 0.1 * np.linalg.norm(slope(layer.controls["control"].numpy(), 0.15))
    np.testing.assert_allclose(before, expected, rtol=1e-5)
    model.fit(x, y, epochs=5, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before


def test_config_round_trip():
    pruning = pnn.OpticalPruning(0.3, pnn.HeaterTuning(offset=-0.25))
    config = keras.saving.serialize_keras_object(pruning)
    again = keras.saving.deserialize_keras_object(config)
    np.testing.assert_array_equal(again(CONTROL), pruning(CONTROL))


def test_the_slopes_are_those_of_the_layer():
    tuning = pnn.HeaterTuning()
    pnn.layers.MRRBank(
        3, tuning=tuning, control_regularizer=pnn.OpticalPruning(0.1, tuning)
    )
    for other in (tuning, pnn.RingTunings([tuning, tuning])):
        with pytest.raises(ValueError, match=r"`control_reg.*Received: Lorentzian"):
            pnn.layers.MRRBank(
                3, tuning=other, control_regularizer=pnn.OpticalPruning(0.1)
            )


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`alpha` must be .*Received: -1"):
        pnn.OpticalPruning(-1)
    rings = pnn.RingTunings([pnn.HeaterTuning(), pnn.HeaterTuning(offset=-0.4)])
    with pytest.raises(ValueError, match=r"`tuning` must be one curve.*RingTunings"):
        pnn.OpticalPruning(0.1, rings)
