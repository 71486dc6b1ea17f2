"""Stuck controls: drawn, held in every pass, and programmed around."""

import keras
import models
import numpy as np
import pytest
import tensorflow as tf

import keras_pnn as pnn

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def hold(layer, name, index, value):
    """Lets one element of a control be stuck."""
    variable = layer.imperfections[f"{name}_stuck"]
    stuck = np.array(variable)
    stuck[index] = 1.0, value
    variable.assign(stuck)


def flags(model, variation, n=1):
    """What n devices of one bank hold, (n, inputs, units, 2)."""
    devices = variation.sample(model, n, seed=0)
    return np.stack([d.deviations["control_stuck", 0] for d in devices])


@pytest.mark.parametrize("at, low, high", [("zero", 0, 0), (0.3, 0.3, 0.3)])
def test_a_share_of_the_rings_is_stuck(at, low, high):
    model = models.bank(40, 50)
    drawn = flags(model, pnn.Variation(stuck=pnn.Stuck(0.03, at)), 4)
    stuck, value = drawn[..., 0], drawn[..., 1]
    assert set(np.unique(stuck)) == {0, 1}
    # Four standard deviations of 8,000 draws.
    assert abs(stuck.mean() - 0.03) < 4 * np.sqrt(0.03 * 0.97 / stuck.size)
    np.testing.assert_allclose(value[stuck == 1].min(), low)
    np.testing.assert_allclose(value[stuck == 1].max(), high)
    assert not value[stuck == 0].any()


def test_random_settings_fill_the_range():
    tuning = pnn.HeaterTuning(max_current=2.0)
    model = models.bank(40, 50, tuning=tuning)
    drawn = flags(model, pnn.Variation(stuck=pnn.Stuck(1.0, "random")))
    value = drawn[..., 1]
    assert 0 < value.min() < 0.01 and 1.99 < value.max() < 2
    assert abs(value.mean() - 1) < 4 * 2 / np.sqrt(12 * value.size)
    # Without a limit, up to the highest weight that is solved for.
    drawn = flags(models.bank(40, 50), pnn.Variation(stuck=pnn.Stuck(1.0, "random")))
    assert drawn[..., 1].max() == pytest.approx(0.15 * np.sqrt(1999), rel=0.01)


def test_a_mesh_has_a_draw_for_every_kind_of_phase():
    model = models.mesh()
    (device,) = pnn.Variation(stuck=pnn.Stuck(1.0, "random")).sample(model, 1)
    names = {name for name, _ in device.deviations}
    assert names == {"theta_stuck", "phi_stuck", "gamma_stuck"}
    theta = device.deviations["theta_stuck", 0]
    exists = model.layers[1].quantity("theta").exists
    assert theta[exists][:, 0].all() and not theta[~exists].any()
    assert len(np.unique(theta[exists][:, 1])) == exists.sum()
    assert theta.max() < 2 * np.pi


def test_a_larger_share_keeps_those_that_are_stuck():
    model = models.bank(20, 20)
    variation = pnn.Variation(stuck=pnn.Stuck(0.1))
    few, more = (flags(model, variation.scaled(f))[..., 0] for f in (0.5, 2.0))
    assert few.sum() < more.sum() and (more >= few).all()
    assert flags(model, variation.scaled(20.0))[..., 0].all()


@pytest.mark.parametrize(
    "make, name", [(models.bank, "control"), (models.mesh, "theta")]
)
def test_a_stuck_control_ignores_its_setting(make, name):
    model = make()
    part = pnn.layers.physical_layers(model)[0]
    x = X[:, : model.input_shape[-1]]
    index = (0, 0)
    hold(part, name, index, 0.2)
    before = np.asarray(model(x))
    value = np.array(part.controls[name])
    value[index] += 0.7
    part.controls[name].assign(value)
    np.testing.assert_array_equal(model(x), before)
    # It is as if it were set so.
    value[index] = 0.2
    part.controls[name].assign(value)
    part.reset_imperfections()
    np.testing.assert_array_equal(model(x), before)
    value[index] = 0.9
    part.controls[name].assign(value)
    assert np.abs(np.asarray(model(x)) - before).max() > 1e-3


def test_a_converter_does_not_move_it():
    dac = pnn.layers.DAC(2, 0.0, 1.0)
    model = models.bank(dac=dac)
    layer = model.get_layer("bank")
    hold(layer, "control", (0, 1), 0.123)
    expected = layer.tuning.weight(np.float32(0.123))
    assert layer.effective_weights()[0, 1] == expected


def test_heaters_that_are_stuck_draw_their_power():
    model = models.bank(tuning=pnn.HeaterTuning())
    layer = model.get_layer("bank")
    hold(layer, "control", (0, 0), 2.0)
    assert float(layer.heater_power()[0, 0]) == pytest.approx(4 * 0.375)


def test_it_has_no_gradient_and_ascent_does_not_move_it():
    model = models.banks()
    layer = model.get_layer("first")
    hold(layer, "control", (1, 2), 0.2)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(X) ** 2)
    slope = tape.gradient(loss, layer.controls["control"].value)
    assert slope[1, 2] == 0 and np.count_nonzero(slope) > 10
    sat = models.compiled(pnn.SATModel(model, rho=0.1), keras.optimizers.SGD(0.1))
    before = np.array(layer.controls["control"])
    sat.fit(X, np.zeros(8, int), epochs=2, verbose=0)
    after = np.array(layer.controls["control"])
    assert before[1, 2] == after[1, 2] and np.mean(before != after) > 0.5


def test_training_among_stuck_controls_is_reproducible():
    variation = pnn.Variation(stuck=pnn.Stuck(0.2, "random"), resonance_shift=0.02)
    runs = []
    for _ in range(2):
        sat = pnn.SATModel(models.banks(), ascent=None, variation=variation, seed=1)
        history = models.compiled(sat).fit(X, np.zeros(8, int), epochs=2, verbose=0)
        runs.append(history.history["loss"])
    assert runs[0] == runs[1] and np.isfinite(runs[0]).all()
    again = pnn.Variation.from_config(variation.get_config())
    assert repr(again) == repr(variation)


def test_what_is_stuck_stays_where_it_is():
    """Draws on top of a device neither add up nor free its stuck controls."""
    model = models.banks()
    held = np.zeros((4, 5, 2))
    held[1, 2] = 1, 0.2
    chip = pnn.SimulatedDevice.from_dict(model, {"first/control_stuck": held})
    more = pnn.Variation({"first/stuck": pnn.Stuck(1.0, 0.3)})
    with chip.installed(model):
        ((_, value),) = more.values(model, (0, 0))
    expected = np.where(held[..., :1] > 0.5, held, [1.0, 0.3])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    # The same with a device in the loop, and in full from the first step on.
    layer = model.get_layer("first")
    chip.attach(model)
    sat = pnn.SATModel(model, ascent=None, variation=more, warmup=100, device=chip)
    sat.compile("sgd", "mse")
    drawn = sat._drawn((0, 0), ramp=0.0)
    with drawn.scope(model):
        found = chip.measure(layer, tf.ones((1, 4)), layer.current_values()[0])
    layer.imperfections["control_stuck"].assign(expected)
    np.testing.assert_allclose(found, layer(np.ones((1, 4))), rtol=1e-5)


def test_what_is_stuck_does_not_drift():
    model = models.compiled(models.banks())
    for name in ("stuck", "first/control_stuck"):
        drift = pnn.callbacks.DriftInjection(name, pnn.drift.Linear(0.1))
        with pytest.raises(ValueError, match="moves gradually"):
            model.fit(X, np.zeros(8, int), callbacks=[drift], verbose=0)
    with pytest.raises(ValueError, match="moves gradually"):
        adversarial = {"control_stuck": pnn.Autodiff(0.1)}
        sat = pnn.SATModel(model, rho=0.1, adversarial=adversarial)
        models.compiled(sat).fit(X, np.zeros(8, int), verbose=0)
    with pytest.raises(ValueError, match="stuck=Stuck"):
        pnn.Variation(control_stuck=0.1).sample(model, 1)
    with pytest.raises(ValueError, match="0 or 1 in front"):
        pnn.SimulatedDevice.from_dict(model, {"control_stuck": 0.3})


def test_devices_evaluate_as_installed(tmp_path):
    model = models.compiled(models.banks())
    variation = pnn.Variation(stuck=pnn.Stuck(0.2, 0.1))
    devices = variation.sample(model, 3)
    y = np.arange(8) % 3
    found = pnn.evaluate_devices(model, X, y, devices, verbose=0)["loss"]
    for device, loss in zip(devices, found, strict=True):
        with device.installed(model):
            assert model.evaluate(X, y, verbose=0) == pytest.approx(loss, rel=1e-5)
    assert len(np.unique(found)) == 3
    devices.save(tmp_path / "chips.npz")
    again = pnn.DeviceSet.load(tmp_path / "chips.npz")
    assert pnn.evaluate_devices(model, X, y, again, verbose=0)["loss"][1] == found[1]
    devices[0].to_csv(model, tmp_path / "chip.csv")
    one = pnn.SimulatedDevice.from_csv(model, tmp_path / "chip.csv")
    models.assert_same(one.deviations.values(), devices[0].deviations.values())


def test_a_report_counts_them():
    model = models.compiled(models.banks(), metrics=["accuracy"])
    report = pnn.robustness_report(
        model, X, np.arange(8) % 3, n=3, hessian=False, landscape=False, verbose=0,
        variation=pnn.Variation(stuck=pnn.Stuck(0.3), resonance_shift=0.02),
    )  # fmt: skip
    (found,) = report.models.values()
    # The worst case has no slope to climb there.
    assert list(found.worst.radius) == ["resonance_shift"]
    assert "control_stuck" in map(str, found.sensitivity.kinds)


@pytest.mark.parametrize("crosstalk", [None, np.eye(6) + 0.05 * np.eye(6, k=1)])
def test_rings_are_programmed_around_those_that_are_stuck(crosstalk):
    rng = np.random.default_rng(0)
    tuning = pnn.HeaterTuning(offset=-0.6)
    model = models.bank(6, 3, tuning=tuning, crosstalk=crosstalk)
    layer = model.get_layer("bank")
    for index in ((0, 1), (3, 2), (4, 2)):
        hold(layer, "control", index, 2.5)
    target = rng.uniform(-0.9, 0.9, (6, 3))
    left = layer.program(target)
    error = np.asarray(layer.effective_weights()) - target
    stuck = np.zeros((6, 3), bool)
    stuck[0, 1] = stuck[3, 2] = stuck[4, 2] = True
    assert np.abs(error[~stuck]).max() < 1e-4
    assert left == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-3)
    # Unknown, their heat moves others.
    known = np.array(layer.imperfections["control_stuck"])
    layer.reset_imperfections()
    layer.program(target)
    layer.imperfections["control_stuck"].assign(known)
    blind = np.abs(np.asarray(layer.effective_weights()) - target)[~stuck].max()
    assert blind > 0.1 if crosstalk is not None else blind < 1e-4


@pytest.mark.parametrize("method", ["program", "correct"])
def test_a_mesh_is_programmed_around_those_that_are_stuck(method):
    from scipy.stats import unitary_group

    unitary = unitary_group.rvs(6, random_state=0)
    keras.utils.set_random_seed(0)
    layer = pnn.layers.MZIMesh(6)
    layer.build((None, 6))
    assert getattr(layer, method)(unitary) < 1e-6
    errors = []
    for name, index in (("theta", (2, 1)), ("phi", (3, 0))):
        hold(layer, name, index, 0.0)
    errors = [layer.lossless_matrix() - unitary]
    left = getattr(layer, method)(unitary)
    errors.append(layer.lossless_matrix() - unitary)
    blind, around = (np.linalg.norm(e) / np.sqrt(6) for e in errors)
    assert left == pytest.approx(around, abs=1e-6)
    assert around < 0.7 * blind
    assert np.asarray(layer.transfer_matrix()) == pytest.approx(
        layer.lossless_matrix(), abs=1e-5
    )


def test_what_is_refused():
    for options in ((1.2,), (-0.1,), (0.1, "one"), (0.1, np.nan), (True,)):
        with pytest.raises(ValueError, match="Received"):
            pnn.Stuck(*options)
    for spreads in ({"stuck": 0.1}, {"resonance_shift": pnn.Stuck(0.1)}):
        with pytest.raises(ValueError, match="`stuck` must be a `Stuck`"):
            pnn.Variation(**spreads)
    tuning = pnn.HeaterTuning(max_current=2.0)
    with pytest.raises(ValueError, match=r"in \[0, 2\].*Received: 3"):
        pnn.Variation(stuck=pnn.Stuck(0.1, 3.0)).sample(models.bank(tuning=tuning), 1)
    held = np.zeros((2, 2, 2))
    for current in (-0.5, 2.5):
        held[0, 1] = 1, current
        with pytest.raises(ValueError, match=r"in \[0, 2\] mA.*Received"):
            pnn.SimulatedDevice.from_dict(
                models.bank(tuning=tuning), {"control_stuck": held}
            )
    slm = keras.Sequential([keras.Input((4, 4)), pnn.layers.MaskedSLM(2)])
    with pytest.raises(ValueError, match="'stuck'"):
        pnn.Variation(stuck=pnn.Stuck(0.1)).sample(slm, 1)
