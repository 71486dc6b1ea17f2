"""Calibration: what is measured, what is fitted, and what is left alone."""

import dataclasses
import json

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from scpi_bench import network

import keras_pnn as pnn
from keras_pnn.devices import DeviceSet, SimulatedDevice
from keras_pnn.hardware.calibration import fitting
from keras_pnn.hardware.calibration.fitting import Problem
from keras_pnn.hardware.calibration.measurement import (
    Readings,
    probes_like,
    settings_of,
)
from keras_pnn.hardware.calibration.unknowns import gather
from keras_pnn.layers.lookup import find, quantities
from keras_pnn.physics.mesh import cell_mask

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")


def fields(n, modes, seed=1):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, modes)) + 1j * rng.normal(size=(n, modes))
    return values.astype("complex64")


def mesh_network(modes=4):
    inputs = keras.Input((modes,), dtype="complex64")
    mesh = pnn.layers.MZIMesh(modes, phase_initializer="cross", name="mesh")
    return keras.Model(inputs, mesh(inputs))


def bank(units, seed, **kwargs):
    draw = keras.initializers.GlorotUniform(seed=seed)
    return pnn.layers.MRRBank(units, kernel_initializer=draw, **kwargs)


def bank_network(**kwargs):
    first = bank(4, 1, name="first", **kwargs)
    return keras.Sequential([keras.Input((4,)), first, bank(3, 2, name="second")])


def one_bank(**kwargs):
    return keras.Sequential([keras.Input((4,)), bank(4, 1, name="bank", **kwargs)])


SHIFT = ("resonance_shift", 0)


def shifted_bank(std=0.06, seed=1, **kwargs):
    """A bank and a device whose rings are shifted, and the shifts."""
    model = one_bank(**kwargs)
    (device,) = pnn.Variation(resonance_shift=std).sample(model, 1, seed=seed)
    return model, device, device.deviations[SHIFT]


def calibrate(model, device, inputs=X, **kwargs):
    return pnn.calibrate(model, device, inputs, verbose=0, **kwargs)


def fitted(model, device, inputs=X, **kwargs):
    """Calibrates resonance shifts alone: the result, and the shifts of the bank."""
    result = calibrate(model, device, inputs, imperfections="resonance_shift", **kwargs)
    return result, result.device.deviations.get(SHIFT)


def asked(model, inputs=X, device=None, **kwargs):
    """What a device is asked: layer, inputs and controls of each measurement."""
    bench = Bench(model, device)
    calibrate(model, bench, inputs, iterations=1, **kwargs)
    return bench.asked


class Bench:
    """A device by the protocol alone, which notes what it is asked."""

    def __init__(self, model, device=None, change=None):
        device = SimulatedDevice({}) if device is None else device
        self.device = device.attach(model)
        self.change = change
        self.asked = []

    def measure(self, layer, inputs, controls):
        noted = {name: np.asarray(c) for name, c in controls.items()}
        self.asked.append((layer.name, np.asarray(inputs), noted))
        outputs = self.device.measure(layer, inputs, controls)
        if self.change is None:
            return outputs
        return self.change(layer, outputs.numpy(), len(self.asked))


@pytest.fixture(scope="module")
def mesh():
    """A mesh, its device, and the calibration of all its imperfections."""
    model = mesh_network()
    spread = {"theta_error": 0.1, "phi_error": 0.1, "splitter_error": 0.1}
    (device,) = pnn.Variation(spread).sample(model, 1, seed=3)
    before = models.bits(model)
    result = calibrate(model, device, fields(8, 4))
    assert models.bits(model) == before
    return model, device, result


def test_phases_and_splitters_of_a_mesh_are_recovered(mesh):
    _, device, result = mesh
    assert result.converged
    residual = result.residuals["mesh"]
    assert residual["fit_before"] > 0.1 and residual["held_out_before"] > 0.1
    assert residual["fit_after"] < 1e-4 and residual["held_out_after"] < 1e-4
    for key, deviation in device.deviations.items():
        np.testing.assert_allclose(result.device.deviations[key], deviation, atol=1e-3)
    assert np.abs(result.device.deviations["loss_db", 0]).max() < 1e-3


def test_slots_without_a_cell_stay_nominal(mesh):
    exists = cell_mask(4)
    for (name, _), deviation in mesh[2].device.deviations.items():
        assert not deviation[~exists].any(), name
    assert mesh[2].imperfections["mesh/splitter_error"]["unknowns"] == 2 * exists.sum()


def test_result_is_a_record(mesh, tmp_path):
    model, _, result = mesh
    assert isinstance(result, pnn.Calibration) and result.layers == ("mesh",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seed = 1
    record = json.loads(json.dumps(result.to_dict()))
    assert "device" not in record
    assert record["residuals"] == result.residuals
    assert (record["settings"], record["settings_held_out"]) == (8, 2)
    assert record["samples"] == {"mesh": 16}
    text = str(result)
    for part in ("mesh/theta_error", "held out", "8 settings (2 held out)", "seed 0"):
        assert part in text
    record["residuals"]["mesh"].clear()
    assert result.residuals["mesh"]
    DeviceSet([result.device]).save(tmp_path / "twin.npz")
    (loaded,) = DeviceSet.load(tmp_path / "twin.npz")
    with result.device.installed(model):
        expected = models.bits(model)
    with loaded.installed(model):
        assert models.bits(model) == expected


@pytest.mark.parametrize("tuning", [None, pnn.HeaterTuning()])
def test_resonance_shifts_are_recovered(tuning):
    model, device, true = shifted_bank(seed=2, tuning=tuning)
    result, found = fitted(model, device, settings=24)
    assert list(result.imperfections) == ["bank/resonance_shift"]
    np.testing.assert_allclose(found, true, atol=1e-4)
    assert np.abs(true).max() > 0.05


def test_an_output_with_a_stuck_ring_is_suspected():
    model = one_bank(tuning=pnn.HeaterTuning())
    held = np.zeros((4, 4, 2))
    held[1, 2] = 1, 0.3
    shifts = {"resonance_shift": np.random.default_rng(0).normal(0, 0.02, (4, 4))}
    device = pnn.SimulatedDevice.from_dict(model, {"control_stuck": held, **shifts})
    result, _ = fitted(model, device)
    ((layer, output, left),) = result.suspects
    assert (layer, output) == ("bank", 2) and left > 0.1
    assert "not explained: bank output 2" in str(result)
    values = np.square(result.outputs["bank"])
    assert values.argmax() == 2 and len(values) == 4
    # Together they are the residual of the layer.
    residual = result.residuals["bank"]
    low, high = sorted((residual["fit_after"], residual["held_out_after"]))
    assert low <= np.sqrt(values.mean()) <= high
    healthy, _ = fitted(model, pnn.SimulatedDevice.from_dict(model, shifts))
    assert not healthy.suspects


def test_shifts_widths_and_temperature_together():
    # A common shift of all rings may be heat or fabrication; the sum must be right.
    model = bank_network(activation="relu")
    spread = {"resonance_shift": 0.08, "half_width_error": 0.03, "temperature": 1.0}
    (device,) = pnn.Variation(spread).sample(model, 1, seed=4)
    result = calibrate(model, device)
    # Without a scale for each unknown it takes about 2000 iterations.
    assert result.converged and result.iterations < 1000
    found, true = result.device.deviations, device.deviations
    for index in (0, 1):
        np.testing.assert_allclose(
            found["resonance_shift", index] + 0.08 * found["temperature", index],
            true["resonance_shift", index] + 0.08 * true["temperature", index],
            atol=1e-3,
        )
        width = found["half_width_error", index] - true["half_width_error", index]
        assert np.abs(width).max() < 5e-3
    # The prior splits it: rings of many shifts and one temperature.
    assert abs(found["temperature", 0] - true["temperature", 0]) < 0.6
    assert max(r["held_out_after"] for r in result.residuals.values()) < 1e-3


def test_a_temperature_is_one_number_for_the_chip():
    # The first bank does not feel it, and must be given it all the same.
    model = bank_network(temperature_sensitivity=0.0)
    (device,) = pnn.devices.sweep(model, "temperature", [1.3])
    result = calibrate(model, device, imperfections="temperature", settings=4)
    assert list(result.imperfections) == ["temperature"]
    assert result.imperfections["temperature"]["unknowns"] == 1
    assert result.layers == ("first", "second")
    for index in (0, 1):
        found = result.device.deviations["temperature", index]
        np.testing.assert_allclose(found, 1.3, atol=1e-4)
    # Of one layer alone where that is asked for.
    result = calibrate(model, device, imperfections=["second/temperature"], settings=2)
    assert list(result.device.deviations) == [("temperature", 1)]
    assert result.layers == ("second",)


def test_geometry_of_a_modulator_is_recovered_within_its_bound():
    layer = pnn.layers.MaskedSLM(4, margin=2, name="slm")
    model = keras.Sequential([keras.Input((6, 6)), layer])
    variation = pnn.Variation(rotation=1.0, shift=0.3, scale=0.02)
    (device,) = variation.sample(model, 1, seed=2)
    images = np.random.default_rng(2).uniform(size=(10, 6, 6)).astype("float32")
    # So wide a prior would let the search try scales of 0 and less.
    result = calibrate(model, device, images, settings=4, prior={"scale": 5.0})
    for key, deviation in device.deviations.items():
        np.testing.assert_allclose(result.device.deviations[key], deviation, atol=1e-3)


def test_noise_of_the_readings_is_what_is_left():
    (model, device, true), noise = shifted_bank(), 0.02
    rng = np.random.default_rng(5)

    def noisy(layer, outputs, call):
        rms = np.sqrt(np.mean(outputs**2))
        return outputs + noise * rms * rng.normal(size=outputs.shape)

    x = np.random.default_rng(6).normal(size=(40, 4)).astype("float32")
    result, found = fitted(model, Bench(model, device, noisy), x)
    residual = result.residuals["bank"]
    assert residual["held_out_before"] > 0.2
    assert 0.7 * noise < residual["held_out_after"] < 1.5 * noise
    assert 0.7 * noise < residual["fit_after"] < 1.2 * noise
    assert np.sqrt(np.mean((found - true) ** 2)) < 5e-3


def test_what_is_held_out_is_not_fitted():
    model, device, _ = shifted_bank()
    clean, shifts = fitted(model, device, settings=4)

    def wrong_at_last(layer, outputs, call):
        # One pass through the model, then four settings, of which one is held out.
        return -3 * outputs if call == 5 else outputs

    bench = Bench(model, device, wrong_at_last)
    spoilt, found = fitted(model, bench, settings=4)
    np.testing.assert_allclose(found, shifts, atol=1e-6)
    assert clean.residuals["bank"]["held_out_after"] < 1e-4
    assert spoilt.residuals["bank"]["held_out_after"] > 1


def test_what_no_reading_depends_on_stays_nominal():
    model, device, true = shifted_bank()
    dark = X * np.float32([1, 1, 0, 1])
    _, own = fitted(model, device, dark, probes=0, settings=4)
    _, probed = fitted(model, device, dark, settings=4)
    assert not own[2].any()
    np.testing.assert_allclose(own[3], true[3], atol=1e-3)
    np.testing.assert_allclose(probed, true, atol=1e-3)


def test_search_starts_from_the_present_imperfections():
    model, device, true = shifted_bank()
    shift = model.get_layer("bank").imperfections["resonance_shift"]
    with device.installed(model):
        result, found = fitted(model, device, settings=2)
        np.testing.assert_array_equal(shift, true)
    assert result.residuals["bank"]["fit_before"] < 1e-6
    np.testing.assert_allclose(found, true, atol=1e-4)


def test_a_start_beyond_the_prior_is_kept():
    """The model is the device; its shifts are up to 60 standard deviations away."""
    model, device, _ = shifted_bank()
    kwargs = {"settings": 4, "prior": {"resonance_shift": 0.002}}
    with device.installed(model):
        result, _ = fitted(model, device, **kwargs)
    assert result.residuals["bank"]["fit_before"] < 1e-6
    assert result.residuals["bank"]["held_out_after"] < 0.01
    assert not result.imperfections["bank/resonance_shift"]["at_limit"]
    away, found = fitted(model, device, **kwargs)
    counted = away.imperfections["bank/resonance_shift"]["at_limit"]
    assert counted == np.count_nonzero(np.abs(found) > 0.0199) > 5
    assert f"{counted:>10}" in away.table()


def test_a_search_that_ends_in_a_valley_of_its_own_begins_again(monkeypatch):
    model = network(seed=1, units=3)
    (device,) = pnn.Variation(resonance_shift=0.03).sample(model, 1, seed=1)
    x = np.random.default_rng(0).random((10, 4)).astype("float32")
    prior, true = {"resonance_shift": 0.03}, device.deviations[SHIFT]
    result, found = fitted(model, device, x, prior=prior)
    np.testing.assert_allclose(found, true, atol=1e-3)
    assert result.converged and result.residuals["bank"]["held_out_after"] < 1e-4
    monkeypatch.setattr(fitting, "_UNEXPLAINED", np.inf)
    _, once = fitted(model, device, x, prior=prior)
    assert np.abs(once - true).max() > 0.1


def test_a_prior_may_name_any_layer_that_shares_an_imperfection():
    model = bank_network()
    found, every = find(model, "temperature"), quantities(model)
    for name in ("temperature", "first/temperature", "second/temperature"):
        # Also one that is not measured.
        for fitted in (found, found[:1]):
            (unknown,) = gather(fitted, {name: 0.7}, every)
            assert unknown.std == 0.7
    both = {"first/temperature": 0.7, "second/temperature": 0.5}
    with pytest.raises(ValueError, match=r"`prior`.*'temperature'.*0\.5, 0\.7"):
        gather(found, both, every)


def test_imperfections_may_be_those_of_another_result():
    model, device = one_bank(), SimulatedDevice({})
    first = calibrate(model, device, settings=2)
    again = calibrate(model, device, settings=2, imperfections=first.imperfections)
    assert list(again.imperfections) == list(first.imperfections)


def test_imperfections_that_are_not_fitted_are_those_of_the_model():
    model = one_bank()
    layer = model.get_layer("bank")
    layer.imperfections["half_width_error"].assign(np.full((4, 4), 0.2))
    (device,) = pnn.Variation(resonance_shift=0.05).sample(model, 1)
    result, _ = fitted(model, device, settings=4)
    assert result.residuals["bank"]["held_out_after"] < 1e-4
    assert list(result.device.deviations) == [("resonance_shift", 0)]


def test_same_seed_same_measurements_and_result():
    model, device, _ = shifted_bank()
    kwargs = {"settings": 3, "iterations": 5, "seed": 4}
    benches = [Bench(model, device) for _ in range(2)]
    found = [fitted(model, bench, **kwargs)[1] for bench in benches]
    np.testing.assert_array_equal(*found)
    one, again = ([c["control"] for _, _, c in bench.asked] for bench in benches)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one[-1] - asked(model, settings=3, seed=5)[-1][2]["control"]).max()


def test_what_the_device_is_asked():
    model = one_bank(control_constraint=pnn.layers.ControlRange(0.05, 0.3))
    present = model.get_layer("bank").controls["control"].numpy()
    found = asked(model, settings=5, probes=7, imperfections="temperature")
    assert len(found) == 1 + 5
    _, inputs, controls = zip(*found, strict=True)
    np.testing.assert_array_equal(inputs[0], X)
    for i in range(1, 6):
        np.testing.assert_array_equal(inputs[i][: len(X)], X)
        assert inputs[i].shape == (len(X) + 7, 4) and inputs[i].dtype == np.float32
        assert X.min() <= inputs[i].min() and inputs[i].max() <= X.max()
    np.testing.assert_array_equal(controls[0]["control"], present)
    np.testing.assert_array_equal(controls[1]["control"], present)
    drawn = np.stack([c["control"] for c in controls[2:]])
    assert drawn.min() >= np.float32(0.05) and drawn.max() <= np.float32(0.3)
    assert drawn.std(axis=0).min() > 0


def drawn(layer, control, n=8, **spread):
    """The random values of a control, at n settings."""
    settings = settings_of(layer, n + 1, spread, np.random.default_rng(0))
    np.testing.assert_array_equal(settings[0][control], layer.controls[control])
    return np.stack([setting[control] for setting in settings[1:]])


@pytest.mark.parametrize(
    "tuning",
    [
        pnn.HeaterTuning(),
        pnn.HeaterTuning(max_current=0.9),
        pnn.HeaterTuning(offset=0.4),
        pnn.LorentzianTuning(),
        pnn.MeasuredTuning(np.linspace(0, 2, 9), np.linspace(-1, 0.8, 9), unit="mA"),
    ],
)
def test_rings_are_set_over_their_range(tuning):
    values = drawn(one_bank(tuning=tuning).get_layer("bank"), "control")
    low, high = tuning.control_range
    assert low <= values.min() and values.max() <= high
    assert values.std() > 0
    if tuning.weight_range[0] < 0 and np.isinf(high) and tuning.unit == "mA":
        # Both flanks of the resonance.
        detuning = np.asarray(tuning.detuning(values))
        assert detuning.min() < -0.05 and detuning.max() > 0.05


def test_probes_of_complex_fields_are_not_stronger_than_the_layers_own():
    own = fields(6, 4)
    probes = probes_like(own, 8, np.random.default_rng(0))
    assert probes.shape == (8, 4) and probes.dtype == np.complex64
    assert np.abs(probes).max() <= np.abs(own).max() * (1 + 1e-6)
    assert np.abs(probes.imag).max() > 0


def test_phases_are_set_anywhere_and_only_where_there_are_shifters():
    layer, exists = mesh_network().get_layer("mesh"), cell_mask(4)
    moved = drawn(layer, "theta") - layer.controls["theta"].numpy()
    assert not moved[:, ~exists].any()
    assert np.abs(moved).max() <= np.pi * (1 + 1e-6) and moved[:, exists].std() > 1.2


def test_spread_limits_the_settings_within_the_constraint():
    layer = mesh_network().get_layer("mesh")
    present = {name: v.numpy() for name, v in layer.controls.items()}
    spread = {"theta": 0.2, "phi": 0.2, "mesh/phi": 0}
    assert not (drawn(layer, "phi", **spread) - present["phi"]).any()
    moved = np.abs(drawn(layer, "theta", **spread) - present["theta"])
    assert 0.1 < moved.max() <= 0.2 + 1e-6
    model = one_bank(control_constraint=pnn.layers.ControlRange(0.05, 0.3))
    values = drawn(model.get_layer("bank"), "control", **{"bank/control": 5})
    assert values.min() == np.float32(0.05) and values.max() == np.float32(0.3)


def test_hardware_and_layers_that_it_leaves_to_the_model():
    model = bank_network()
    (device,) = pnn.Variation(resonance_shift=0.06).sample(model, 1, seed=1)
    bench = models.Bench(device.attach(model), layers=["second"], max_batch=10)
    before = models.bits(model)
    result, _ = fitted(model, bench, settings=4)
    assert models.bits(model) == before
    # 12 samples once, and 12 with as many probes at each setting.
    assert bench.calls == 2 + 4 * 3
    assert result.layers == ("second",)
    assert list(result.device.deviations) == [("resonance_shift", 1)]
    true = device.deviations["resonance_shift", 1]
    found = result.device.deviations["resonance_shift", 1]
    np.testing.assert_allclose(found, true, atol=1e-3)
    for leaves, names in ((bench, "first/resonance_shift"), (models.Silent(), None)):
        with pytest.raises(ValueError, match="leaves all of them to the model"):
            calibrate(model, leaves, imperfections=names)
    misspelt = models.Bench(device, layers=["first", "secnod"])
    with pytest.raises(ValueError, match=r"first, second\. Received: secnod"):
        calibrate(model, misspelt, settings=4)
    assert misspelt.calls == 0


def test_each_layer_is_measured_at_its_measured_inputs():
    model = bank_network()
    (device,) = pnn.Variation(resonance_shift=0.06).sample(model, 1, seed=1)
    given = {}
    found = asked(model, device=device, settings=2, imperfections="temperature")
    for name, inputs, _ in found:
        given.setdefault(name, inputs)
    with device.installed(model):
        hidden = model.get_layer("first")(X).numpy()
    np.testing.assert_allclose(given["second"], hidden, rtol=1e-5, atol=1e-6)
    assert np.abs(given["second"] - model.get_layer("first")(X)).max() > 1e-2


def test_a_failing_device_leaves_the_model_as_it_was():
    model = bank_network()
    before = models.bits(model)
    bench = models.Bench(models.ring_chip(model), breaks=4)
    with pytest.raises(pnn.DeviceError, match="no light"):
        calibrate(model, bench)
    assert models.bits(model) == before


def test_layers_keep_their_precision_also_after_an_error():
    model = one_bank()
    layer = model.get_layer("bank")
    device = pnn.devices.sweep(model, "temperature", [1.0])[0]
    calibrate(model, device, imperfections="temperature", settings=2)
    assert layer.compute_dtype == "float32"
    # At settings beyond a measured curve a weight is NaN.
    curve = np.linspace(0.0, 0.5, 9)
    model = one_bank(tuning=pnn.MeasuredTuning(curve, 4 * curve - 1, unit="nm"))
    layer = model.get_layer("bank")
    layer.controls["control"].assign(np.full((4, 4), 0.1))
    layer.imperfections["resonance_shift"].assign(np.full((4, 4), 0.2))
    before = models.bits(model)
    with pytest.raises(ValueError, match=r"must be finite at all settings.* in bank"):
        calibrate(model, Dark())
    assert models.bits(model) == before and layer.compute_dtype == "float32"


class Dark:
    """A device that gives no light, in whole numbers."""

    def measure(self, layer, inputs, controls):
        return tf.zeros((len(inputs), 4), "int32")


def test_a_dark_device_is_fitted_without_dividing_by_nothing():
    model = one_bank()
    result = calibrate(model, Dark(), imperfections="temperature", settings=2)
    assert np.isfinite(list(result.residuals["bank"].values())).all()
    assert np.isfinite(result.device.deviations["temperature", 0])


@keras.saving.register_keras_serializable(package="test_calibration")
class Modulators(pnn.layers.PhysicalLayer):
    """A lab's own layer, which computes in float32 alone."""

    def build(self, input_shape):
        self.add_control("voltage", input_shape[-1:], unit="V")
        self.add_imperfection("half_wave_error", input_shape[-1:], unit="V")

    def forward(self, inputs, controls, imperfections):
        scale = tf.constant(0.7, "float32")
        voltage = controls["voltage"] + imperfections["half_wave_error"]
        inputs = tf.cast(inputs, self.compute_dtype)
        return inputs * tf.cos(scale * voltage) ** 2


class Noisy(Modulators):
    """Modulators whose model draws noise."""

    def build(self, input_shape):
        super().build(input_shape)
        self.generator = keras.random.SeedGenerator(3)

    def forward(self, inputs, controls, imperfections):
        outputs = super().forward(inputs, controls, imperfections)
        return outputs + keras.random.normal(tf.shape(outputs), seed=self.generator)


def test_noise_of_the_model_is_frozen_and_its_seed_comes_back():
    layer = Noisy(name="own")
    model = keras.Sequential([keras.Input((4,)), layer])
    before, prior = models.bits(model), {"half_wave_error": 0.2}
    kwargs = {"prior": prior, "spread": {"voltage": 2.0}, "iterations": 1}
    calibrate(model, SimulatedDevice({}), **kwargs)
    assert models.bits(model) == before
    controls = [{"voltage": layer.controls["voltage"].numpy()}] * 2
    fit = np.ones((2, len(X)), bool)
    readings = Readings(layer, X, controls, np.stack([X, X]), fit)
    found = find(model, "half_wave_error")
    problem = Problem([readings], gather(found, prior, found), noise=1e-3)
    assert problem(problem.start)[0] == problem(problem.start)[0]
    assert models.bits(model) == before


def test_a_layer_of_ones_own():
    layer = Modulators(name="own")
    model = keras.Sequential([keras.Input((4,)), layer])
    device = SimulatedDevice({("half_wave_error", 0): np.float32([0.1, -0.2, 0.3, 0])})
    with pytest.raises(ValueError, match="'own/half_wave_error' in V"):
        calibrate(model, device)
    prior = {"half_wave_error": 0.2}
    with pytest.raises(ValueError, match=r"`spread` must say .*own/voltage"):
        calibrate(model, device, prior=prior)
    result = calibrate(model, device, prior=prior, spread={"voltage": 2.0})
    found = result.device.deviations["half_wave_error", 0]
    np.testing.assert_allclose(found, [0.1, -0.2, 0.3, 0], atol=1e-4)
    assert result.imperfections["own/half_wave_error"]["prior"] == 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda la, y, call: np.where(y > 0, y, np.nan), "finite.* NaN"),
        (lambda la, y, call: y[:, :2], r"\(12, 4\).*shape \(12, 2\)"),
        (lambda la, y, call: y + 1j, "dtype complex"),
        (lambda la, y, call: np.full(y.shape, "a"), "dtype <U1"),
        (lambda la, y, call: y * (np.inf if call == 3 else 1), "finite float32"),
    ],
)
def test_readings_of_another_form_are_refused(change, message):
    model = one_bank()
    before = models.bits(model)
    with pytest.raises(ValueError, match=f"(?s)'bank'.*{message}"):
        calibrate(model, Bench(model, change=change))
    assert models.bits(model) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"imperfections": "humidity"}, r"resonance_shift.*Received: 'humidity'"),
        ({"imperfections": []}, "an imperfection to fit"),
        ({"device": object()}, r"`device` must be .*`measure"),
        ({"inputs": X[:0]}, r"`inputs`.*at least 1.*lengths \[0\]"),
        ({"inputs": None}, "`inputs`"),
        ({"inputs": np.full((3, 4), np.nan)}, "`inputs` must be finite"),
        ({"settings": 1}, "`settings` must be an integer ≥ 2"),
        ({"holdout": 0.0}, "`holdout` must be .* > 0 and < 1"),
        ({"noise": 0.0}, "`noise`"),
        ({"prior": {"resonance_shift": -1}}, "resonance_shift"),
        ({"prior": 5}, "`prior` must be a dict.*5"),
        ({"spread": [1]}, "`spread` must be a dict"),
        ({"imperfections": 5}, "`imperfections` must be a name.*5"),
        ({"imperfections": [5]}, "`imperfections` must be a name"),
        ({"prior": {"humidity": 1}}, "`prior`.* of imperfections.*'humidity'"),
        ({"spread": {"humidity": 1}}, "`spread`.* of controls.*'humidity'"),
        ({"spread": {"control": -1}}, "control"),
        ({"probes": -1}, "`probes`"),
        ({"iterations": 0}, "`iterations`"),
        ({"tolerance": -1.0}, "`tolerance`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_measured(arguments, message):
    model = one_bank()
    bench = Bench(model)
    arguments = {"device": bench, "inputs": X, **arguments}
    with pytest.raises(ValueError, match=message):
        calibrate(model, **arguments)
    assert not bench.asked


def test_amplitudes_are_no_fields():
    model = mesh_network()
    bench = Bench(model, change=lambda la, y, call: np.abs(y))
    with pytest.raises(ValueError, match=r"'mesh'.*return complex.*Received.*float32"):
        calibrate(model, bench, fields(4, 4), settings=2)


def test_models_that_cannot_be_fitted():
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="imperfection to fit"):
        calibrate(dense, SimulatedDevice({}))
    twice = keras.Sequential([keras.Input((4,)), one_bank(), one_bank()])
    with pytest.raises(ValueError, match="Received: bank more than once"):
        calibrate(twice, SimulatedDevice({}))
    model = one_bank()
    weights = pnn.Variation(bias=0.1).sample(model, 1)[0]
    with pytest.raises(ValueError, match="bias"):
        calibrate(model, weights)


def test_iterations_end_the_search(capsys):
    model, device, _ = shifted_bank()
    result = calibrate(model, device, iterations=2)
    assert result.iterations == 2 and not result.converged
    assert "not converged" in result.table()
    assert not capsys.readouterr().out
    pnn.calibrate(model, device, X, iterations=2, settings=2)
    shown = capsys.readouterr().out
    assert "setting" in shown and "residual" in shown


def test_a_wrapper_and_its_model_have_one_twin():
    model, device, _ = shifted_bank()
    kwargs = {"settings": 2, "iterations": 20}
    one, shifts = fitted(model, device, **kwargs)
    other, same = fitted(pnn.SATModel(model), device, **kwargs)
    assert one.device.architecture == other.device.architecture
    np.testing.assert_array_equal(same, shifts)


def test_the_device_stays_attached_to_its_own_model():
    model, other = one_bank(), one_bank()
    (device,) = pnn.Variation(resonance_shift=0.06).sample(model, 1, seed=1)
    device.attach(other)
    calibrate(model, device, imperfections="temperature", settings=2)
    layer = other.get_layer("bank")
    assert device.measure(layer, X, layer.current_values()[0]).shape == (12, 4)
