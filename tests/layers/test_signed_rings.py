"""Signed weights from a through port alone: the reference, and what it costs."""

import keras
import models
import numpy as np
import pytest

import keras_pnn as pnn

THROUGH = pnn.HeaterTuning(port="through")
X = np.random.default_rng(0).uniform(0, 1, (40, 6)).astype("float32")
BATCH = np.ones((4000, 6), "float32")


def signed(inputs=6, units=3, **kwargs):
    kwargs = {"tuning": THROUGH, "signed": True, **kwargs}
    return models.bank(inputs, units, **kwargs)


def test_weights_are_twice_the_transmission_less_one(tmp_path):
    model = signed()
    layer = model.get_layer("bank")
    target = np.random.default_rng(1).uniform(-0.95, 0.95, (6, 3))
    assert layer.program(target) < 1e-5
    control = np.asarray(layer.controls["control"])
    transmission = np.asarray(THROUGH.weight(control))
    np.testing.assert_allclose(2 * transmission - 1, target, atol=1e-5)
    np.testing.assert_allclose(model(X), X @ target, atol=1e-4)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(X), model(X))
    with pytest.raises(ValueError, match="weight"):
        layer.program(np.full((6, 3), -1.2))
    assert layer.program(np.full((6, 3), -1.2), clip=True) == pytest.approx(0.2)


def test_initial_weights_have_both_signs():
    weights = np.asarray(signed().get_layer("bank").effective_weights())
    assert weights.min() < 0 < weights.max()


def test_noise_below_zero_is_no_sign():
    control = np.linspace(0, 1, 41)
    transmission = (models.dip(control) + 1) / 2 - 0.004
    tuning = pnn.MeasuredTuning(control, transmission, "nm")
    bank = models.bank(30, 10, tuning=tuning).layers[-1]
    weights = np.asarray(bank.effective_weights())
    # Magnitudes of both signs, and not all negative ones at the resonance.
    assert (weights > 0.02).mean() > 0.8


def test_an_error_of_the_reference_moves_all_outputs_alike():
    model = signed()
    before = np.asarray(model(X))
    model.get_layer("bank").imperfections["reference_error"].assign(0.1)
    expected = before - 0.1 * X.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model(X), expected, atol=1e-5)
    assert "reference_error" not in models.bank().get_layer("bank").imperfections


@pytest.mark.parametrize("tiles", [1, 2])
def test_its_noise_is_that_of_two_readings(tiles):
    size = (3, 6 // tiles)
    options = {"read_noise": 0.1, "seed": 0, "bank_size": size}
    for bits in (None, 20):
        more = {**options, "adc_bits": bits}
        plain = np.asarray(models.bank(6, 3, tuning=THROUGH, **more)(BATCH))
        ours = np.asarray(signed(**more)(BATCH))
        step = np.sqrt(tiles) * 0.1
        np.testing.assert_allclose(plain.std(axis=0), step, rtol=0.05)
        np.testing.assert_allclose(ours.std(axis=0), np.sqrt(5) * step, rtol=0.05)
        # The reference is common to all: 1 of 5 parts of the variance.
        common = np.corrcoef(ours.T)[0, 1], np.corrcoef(plain.T)[0, 1]
        np.testing.assert_allclose(common, [0.2, 0.0], atol=0.06)


@pytest.mark.parametrize("conv", [False, True])
def test_both_readings_have_steps(conv):
    options = {"tuning": THROUGH, "signed": True, "use_bias": False}
    options |= {"adc_bits": 6, "adc_range": 8.0}
    keras.utils.set_random_seed(0)
    if conv:
        layer, x = pnn.layers.MRRConv2D(3, (1, 1), **options), X[:, None, None]
    else:
        layer, x = pnn.layers.MRRBank(3, **options), X
    layer.build(x.shape)
    layer.imperfections["reference_error"].assign(0.05)
    outputs = np.asarray(layer(x)).reshape(-1, 3)
    control = np.asarray(layer.controls["control"]).reshape(6, 3)
    step = 8.0 / 2**5
    readings = step * np.round(X @ np.asarray(THROUGH.weight(control)) / step)
    reference = step * np.round(1.05 * X.sum(axis=1, keepdims=True) / step)
    np.testing.assert_allclose(outputs, 2 * readings - reference, atol=1e-5)


def test_conversion_training_and_cost():
    inputs = keras.Input((6,))
    digital = keras.Model(inputs, keras.layers.Dense(3, name="dense")(inputs))
    found = pnn.convert(digital, tuning=THROUGH, signed=True, gain="layer")
    assert found.layers[0]["clipped"] == 0
    np.testing.assert_allclose(found.model(X), digital(X), atol=1e-4)
    noise = pnn.Variation(reference_error=0.02, resonance_shift=0.01)
    sat = models.compiled(pnn.SATModel(found.model, rho=0.05, variation=noise))
    sat.fit(X, np.zeros(40, int), verbose=0)
    devices = noise.sample(found.model, 3)
    losses = pnn.evaluate_devices(sat, X, np.zeros(40, int), devices, verbose=0)
    assert len(np.unique(losses["loss"])) == 3
    ours, plain = (
        pnn.hardware_cost(m).layers[0]
        for m in (found.model, models.bank(6, 3, tuning=THROUGH))
    )
    assert ours["photodiodes"] == plain["photodiodes"] + 1 == 4
    assert ours["converters"] == plain["converters"] + 1
    share = ours["laser_shot_noise_mW"] / plain["laser_shot_noise_mW"]
    assert share == pytest.approx(1.25 * 4 / 3)


def test_a_tuning_with_negative_weights_is_refused():
    with pytest.raises(ValueError, match=r"`signed`.*port='through'"):
        pnn.layers.MRRBank(3, signed=True)
