"""Rings that differ: fitted, measured one by one, and placed on a bank."""

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from transforms import gradients
from written import written

import keras_pnn as pnn

CURRENT = np.linspace(0, 3.0, 61)
OFFSETS = (-0.3, -0.45, -0.2, -0.6)


def heaters(**options):
    options = {"max_current": 3.0, **options}
    return [pnn.HeaterTuning(offset=offset, **options) for offset in OFFSETS]


def measured(unit="mA", **options):
    """A measured curve for each ring, in one of the units."""
    ohm = 375.0
    control = {"mA": CURRENT, "V": CURRENT * ohm / 1e3, "mW": CURRENT**2 * ohm / 1e3}
    curves = (np.asarray(t.weight(CURRENT)) for t in heaters(half_width=0.15))
    return [pnn.MeasuredTuning(control[unit], w, unit, **options) for w in curves]


def assert_close(config, expected, **tolerance):
    for name, value in expected.items():
        known = value is None or isinstance(value, str)
        right = value if known else pytest.approx(value, **tolerance)
        assert config[name] == right, name


# --- Fits.


@pytest.mark.parametrize(
    ("port", "period"), [("balanced", None), ("through", 1.1), ("drop", 1.1)]
)
def test_a_ring_is_found_in_its_weights(port, period):
    sizes = {"through_min": 0.1, "drop_max": 0.9, "free_spectral_range": period}
    ring = pnn.HeaterTuning(-0.35, 0.09, 0.6, port=port, max_current=3.0, **sizes)
    weight = np.asarray(ring.weight(CURRENT), "float64")
    for known in ({"half_width": 0.09}, {"efficiency": 0.6}):
        found = pnn.HeaterTuning.fit(
            CURRENT, weight, port, free_spectral_range=period and True, **known
        )
        assert found.residuals[0] < 1e-6
        assert_close(found.tuning.get_config(), ring.get_config(), rel=1e-3)
    if period:
        found = pnn.HeaterTuning.fit(CURRENT, weight, port, free_spectral_range=period)
        assert found.tuning.efficiency == pytest.approx(0.6, rel=1e-3)


def test_rings_are_fitted_one_by_one():
    noise = np.random.default_rng(0).normal(0, 0.01, (61, 4))
    weights = np.stack([t.weight(CURRENT) for t in heaters()], axis=1)
    found = pnn.HeaterTuning.fit(CURRENT, weights + noise)
    offsets = [tuning.offset for tuning in found.tunings]
    np.testing.assert_allclose(offsets, OFFSETS, atol=0.01)
    assert (np.abs(found.residuals - 0.01) < 0.003).all()
    assert str(found).count("\n") == 4 and "<table>" in found._repr_html_()
    assert len(found.to_dict()["rings"]) == 4
    bank = pnn.layers.MRRBank(4, tuning=pnn.RingTunings(found.tunings))
    assert bank(np.ones((2, 5), "float32")).shape == (2, 4)


@pytest.mark.parametrize(
    ("port", "period"), [("balanced", 4.0), ("through", None), ("drop", 4.0)]
)
def test_a_ring_is_found_in_its_spectrum(port, period):
    sizes = {"through_min": 0.1, "drop_max": 0.9, "free_spectral_range": period}
    ring = pnn.HeaterTuning(-0.3, 0.077, port=port, **sizes)
    wavelength = np.linspace(1538, 1548, 1001)
    # What the ring at rest shows a laser of 1543 nm that is swept.
    seen = ring.weight(0.0, 1543.0 - wavelength)
    scale = 1.0 if port == "balanced" else 3e-4
    found = pnn.HeaterTuning.fit_spectrum(
        wavelength, scale * np.asarray(seen), 1543.0, port, period and True
    )
    assert found.residuals[0] < 1e-5
    expected = ring.get_config()
    if port == "drop":
        # The scale is unknown there.
        expected |= {"through_min": 0.0, "drop_max": 1.0}
    assert_close(found.tuning.get_config(), expected, rel=2e-3, abs=1e-4)


def test_a_ring_is_found_in_a_spectrum_of_a_known_period():
    wavelength = np.linspace(1541, 1545, 401)
    turn = np.pi * (wavelength - 1542.7) / 1.5
    power = 1 - 0.9 / (1 + (np.sin(turn) / np.pi * 1.5 / 0.077) ** 2)
    tuning = pnn.HeaterTuning.fit_spectrum(
        wavelength, power, 1543.0, free_spectral_range=1.5
    ).tuning
    assert tuning.offset == pytest.approx(-0.3, abs=1e-6)
    assert tuning.half_width == pytest.approx(0.077, abs=1e-6)


def fit_unit(factor, **known):
    """A fit whose currents are in another unit."""
    weight = pnn.HeaterTuning().weight(CURRENT)
    return pnn.HeaterTuning.fit(factor * CURRENT, np.asarray(weight), **known)


def spectrum_in(factor, laser):
    wavelength = np.linspace(1542, 1544, 101)
    power = 1 - 0.9 / (1 + ((wavelength - 1542.7) / 0.077) ** 2)
    return pnn.HeaterTuning.fit_spectrum(factor * wavelength, power, laser)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: pnn.HeaterTuning.fit(CURRENT, np.ones(61)), "with a resonance"),
        (
            lambda: pnn.HeaterTuning.fit_spectrum(CURRENT, 1 + 0.1 * CURRENT, 1.0),
            "with a resonance",
        ),
        (
            lambda: pnn.HeaterTuning.fit_spectrum(CURRENT, 0 * CURRENT, 1.0),
            "with a resonance",
        ),
        (lambda: pnn.HeaterTuning.fit(CURRENT[:5], np.ones(5)), "8 points"),
        (lambda: pnn.HeaterTuning.fit(CURRENT, np.ones(60)), "shapes"),
        (lambda: pnn.HeaterTuning.fit(-CURRENT, np.ones(61)), "current"),
        (
            lambda: pnn.HeaterTuning.fit(
                CURRENT, np.ones(61), half_width=0.1, efficiency=0.5
            ),
            "one known length",
        ),
        (lambda: pnn.HeaterTuning.fit(0 * CURRENT, np.ones(61)), "points that differ"),
        (lambda: fit_unit(1e-3), "current.*mA"),
        (lambda: fit_unit(1e-3, half_width=0.077), "current.*mA"),
        (lambda: fit_unit(1e3), "current.*mA"),
        (lambda: spectrum_in(1e-3, 1543.0), "laser.*nm"),
        (lambda: spectrum_in(1.0, 1.543), "laser.*nm"),
        (lambda: spectrum_in(1e-9, 1.543e-6), "wavelength.*nm"),
    ],
)
def test_what_cannot_be_fitted(call, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        call()


# --- Units of the control.


@pytest.mark.parametrize("unit", ["mA", "V", "mW"])
def test_curves_over_voltage_and_power(unit):
    curve, reference = measured(unit)[0], measured("mA")[0]
    control = curve.control(0.3)
    expected = reference.control(0.3)
    factor = {"mA": expected, "V": expected * 0.375, "mW": expected**2 * 0.375}
    assert curve.unit == unit
    assert control == pytest.approx(factor[unit], rel=1e-6)
    for name in ("heater_power", "heater_shift", "weight"):
        ours, theirs = getattr(curve, name)(control), getattr(reference, name)(expected)
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


# --- A curve for each ring.


def test_each_ring_of_a_bank_has_its_curve():
    rings = heaters()
    layer = pnn.layers.MRRBank(5, tuning=pnn.RingTunings(rings), bank_size=(3, 2))
    layer.build((None, 4))
    control = np.random.default_rng(0).uniform(0, 3, (4, 5)).astype("float32")
    layer.controls["control"].assign(control)
    weights = np.asarray(layer.effective_weights())
    power = np.asarray(layer.heater_power())
    for i, j in np.ndindex(4, 5):
        ring = rings[((j % 3) * 2 + i % 2) % 4]
        assert weights[i, j] == pytest.approx(float(ring.weight(control[i, j])))
        assert power[i, j] == pytest.approx(control[i, j] ** 2 * 0.375, rel=1e-5)


def test_rows_of_curves_repeat_over_the_bank():
    rings = np.array(heaters(), object).reshape(2, 2)
    layer = pnn.layers.MRRConv2D(3, 2, tuning=pnn.RingTunings(rings.tolist()))
    layer.build((None, 4, 4, 1))
    layer.controls["control"].assign(np.full((2, 2, 1, 3), 1.3))
    weights = np.asarray(layer.effective_weights()).reshape(4, 3)
    for i, j in np.ndindex(4, 3):
        assert weights[i, j] == pytest.approx(float(rings[j % 2, i % 2].weight(1.3)))


def test_more_curves_than_rings_are_refused_unless_the_bank_has_more():
    rings = heaters()
    square = pnn.RingTunings(np.array(rings, object).reshape(2, 2).tolist())
    for tuning, units in ((pnn.RingTunings(rings), 1), (square, 1)):
        layer = pnn.layers.MRRBank(units, tuning=tuning)
        with pytest.raises(ValueError, match=r"`tuning` .*1 rows × 3 .*`bank_size`"):
            layer.build((None, 3))
        layer = pnn.layers.MRRBank(units, tuning=tuning, bank_size=(2, 3))
        layer.build((None, 3))
        assert np.isfinite(layer.effective_weights()).all()


@pytest.mark.parametrize("make", [heaters, lambda: measured(margin=0.0)])
@pytest.mark.parametrize("crosstalk", [None, np.eye(4) + 0.03 * np.eye(4, k=1)])
def test_program_solves_each_ring(make, crosstalk):
    model = models.bank(4, 3, tuning=pnn.RingTunings(make()), crosstalk=crosstalk)
    layer = model.get_layer("bank")
    target = np.random.default_rng(1).uniform(-0.6, 0.6, (4, 3))
    assert layer.program(target) < 1e-4
    np.testing.assert_allclose(layer.effective_weights(), target, atol=1e-3)


def test_a_weight_beyond_a_rings_own_reach_is_clipped():
    rings = [pnn.HeaterTuning(offset=o, max_current=1.0) for o in (-0.3, -0.9)]
    layer = models.bank(2, 2, tuning=pnn.RingTunings(rings)).get_layer("bank")
    with pytest.raises(ValueError, match=r"`weight` must be in \[0"):
        layer.program(np.full((2, 2), -0.5))
    assert layer.program(np.full((2, 2), -0.5), clip=True) > 0.1


def test_training_export_and_files(tmp_path):
    model = models.banks(tuning=pnn.RingTunings(measured(margin=0.05)))
    x, y = models.samples()
    among = pnn.Variation(resonance_shift=0.01)
    sat = models.compiled(pnn.SATModel(model, rho=0.05, variation=among))
    losses = sat.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    before = np.asarray(model(x))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(x), before, atol=1e-6)
    assert again.get_layer("first").tuning == model.get_layer("first").tuning
    pnn.export_controls(model, tmp_path / "controls.csv")
    model.get_layer("first").controls["control"].assign(np.full((4, 5), 1.0))
    pnn.load_controls(model, tmp_path / "controls.csv")
    np.testing.assert_allclose(model(x), before, atol=1e-6)
    devices = among.sample(model, 2)
    models.compiled(model)
    found = pnn.evaluate_devices(model, x, y, devices, verbose=0)["loss"]
    with devices[1].installed(model):
        loss = model.evaluate(x, y, verbose=0)
    assert found[1] == pytest.approx(loss, rel=1e-4)


def test_the_derivative_is_that_of_each_ring():
    tuning = pnn.RingTunings(heaters())
    control = tf.constant([1.0, 1.2, 0.8, 1.5], "float64")
    (slope,) = gradients(tuning.weight, [control])
    for ring, c, s in zip(heaters(), control.numpy(), slope.numpy(), strict=True):
        step = float(ring.weight(c + 1e-6) - ring.weight(c - 1e-6)) / 2e-6
        assert s == pytest.approx(step, rel=1e-3)


def test_a_calibration_of_rings_that_differ():
    model = models.bank(3, 2, tuning=pnn.RingTunings(heaters()), use_bias=False)
    (chip,) = pnn.Variation(resonance_shift=0.02).sample(model, 1)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    twin = pnn.calibrate(
        model, chip.attach(model), x, ["resonance_shift"], iterations=300, verbose=0
    )
    key = ("resonance_shift", 0)
    found, true = twin.device.deviations[key], chip.deviations[key]
    np.testing.assert_allclose(found, true, atol=2e-3)


def test_curves_from_files(tmp_path):
    curves = [np.asarray(t.weight(CURRENT)) for t in heaters(half_width=0.15)]
    headings = [("I (mA)", "a", "b", "c", "d")]
    rows = zip(CURRENT, *curves, strict=True)
    together = written(tmp_path / "all.csv", [*headings, *rows])
    paths = []
    for i, curve in enumerate(curves):
        rows = [("current_mA", "weight"), *zip(CURRENT, curve, strict=True)]
        paths.append(written(tmp_path / f"{i}.csv", rows))
    table = pnn.RingTunings.from_csv(together, shape=(2, 2), margin=0.1)
    files = pnn.RingTunings.from_csv(paths, shape=(2, 2), margin=0.1)
    assert table == files and table.tunings.shape == (2, 2)
    assert table.tunings[1, 0].margin == 0.1
    assert pnn.RingTunings.from_csv(paths).tunings.shape == (4,)
    with pytest.raises(ValueError, match=r"shape.*Received: 4 rings"):
        pnn.RingTunings.from_csv(paths, shape=(2, 3))
    for heading, rows, message in (
        ("I (A)", [(0, 0), (1, 1), (2, 2)], "4 points"),
        ("I (kΩ)", [(0, 0), (1, 1), (2, 2), (3, 3)], "one control with its unit"),
    ):
        bad = written(tmp_path / "bad.csv", [(heading, "a"), *rows])
        with pytest.raises(ValueError, match=message):
            pnn.RingTunings.from_csv(bad)


def test_curves_that_do_not_fit_together():
    one = pnn.HeaterTuning()
    nested = [pnn.RingTunings([one]), one]
    for bad in ([], [one, "ring"], [[one], [one, one]], nested, one, None):
        with pytest.raises(ValueError, match=r"`tunings` must be tunings.*Received"):
            pnn.RingTunings(bad)
    with pytest.raises(ValueError, match="in one unit"):
        pnn.RingTunings([one, pnn.LorentzianTuning()])
    low = pnn.MeasuredTuning([0, 0.1, 0.2, 0.3], [0.9, 0.5, 0, -0.5], "mA")
    high = pnn.MeasuredTuning([0.4, 0.5, 0.6, 0.7], [0.9, 0.5, 0, -0.5], "mA")
    with pytest.raises(ValueError, match="overlap"):
        pnn.RingTunings([low, high])
    with pytest.raises(ValueError, match="`channel_spacing`"):
        pnn.layers.MRRBank(2, tuning=pnn.RingTunings([one]), channel_spacing=0.8)
    with pytest.raises(ValueError, match="one value for each ring"):
        pnn.RingTunings([one, one]).weight([0.1, 0.2, 0.3])
