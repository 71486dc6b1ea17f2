"""Planes of light: layers against the physics, frames, detectors, training, devices."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import planes
from tensorflow_probability import distributions as tfd

import keras_pnn as pnn
from keras_pnn.layers import (
    DAC,
    AmplitudeMask,
    Aperture,
    DetectorArray,
    Encode,
    FreeSpace,
    Lens,
    PhaseBlocks,
    PhaseMask,
    PhaseRoughness,
    Saturable,
    Threshold,
    diffractive,
)
from keras_pnn.physics import propagation

WAVE, PITCH = 532e-9, 2e-6
TURN = 2 * np.pi


@pytest.fixture
def fields(rng):
    return rng.normal(size=(2, 24, 20)) + 1j * rng.normal(size=(2, 24, 20))


def without_common_phase(values):
    values = np.asarray(values)
    return values * np.exp(-1j * np.angle(values[..., :1, :1]))


@pytest.mark.parametrize("band_limit, padding", [(False, 0), (True, None), (True, 6)])
def test_free_space_is_the_angular_spectrum(fields, band_limit, padding):
    options = {"band_limit": band_limit, "padding": padding}
    layer = FreeSpace(5e-4, dtype="float64", **options)
    for moved, longer in ((0.0, 0.0), (7.0, 3.0)):
        layer(fields)
        layer.imperfections["distance_error"].assign(moved)
        layer.imperfections["wavelength_shift"].assign(longer)
        z, wave = 5e-4 + 1e-6 * moved, WAVE + 1e-9 * longer
        expected = propagation.angular_spectrum(fields, z, wave, PITCH, **options)
        if band_limit and moved:
            continue  # The design's band limit is another.
        np.testing.assert_allclose(
            without_common_phase(layer(fields)),
            without_common_phase(expected),
            atol=1e-9,
        )


def test_a_lens_is_that_of_its_wavelength_with_its_aberrations(fields):
    layer = Lens(2e-3, on_pixel=False, dtype="float64")
    layer(fields)
    device = {"decenter": (1.5, -0.5), "defocus": 0.3, "astigmatism": (0.1, 0.2)}
    for name, value in {**device, "wavelength_shift": 4.0}.items():
        layer.imperfections[name].assign(value)
    size, kind = fields.shape[1:], {"dtype": "complex128"}
    lens = propagation.lens(size, 2e-3, WAVE + 4e-9, PITCH, (1.5, -0.5), False, **kind)
    wavefront = propagation.aberration(size, 0.3, (0.1, 0.2), **kind)
    np.testing.assert_allclose(layer(fields), fields * (lens * wavefront), atol=1e-6)


def test_a_lens_off_by_more_than_the_sampling_allows_is_refused():
    # The strongest lens for 70 pixels, on 64.
    model = keras.Sequential([keras.Input((64, 64)), Lens(70 * PITCH**2 / WAVE)])
    model.layers[0].imperfections["decenter"].assign((2.9, -2.9))
    assert np.isfinite(np.abs(model(np.ones((1, 64, 64), "complex64")))).all()
    with pytest.raises(ValueError, match=r"decenter' must be (above -|below )3"):
        pnn.devices.sweep(model, "decenter", [(3.1, 0.0)])


@pytest.mark.parametrize("size", [None, 12, (5, 9)])
def test_encoding(rng, size):
    images = rng.uniform(size=(2, 6, 7, 1)).astype("float32")
    images[0, 2] = 0.0
    resized = images[..., 0]
    if size is not None:
        pair = (size, size) if isinstance(size, int) else size
        resized = tf.image.resize(images, pair)[..., 0].numpy()
    expected = {
        "amplitude": resized,
        "intensity": np.sqrt(resized),
        "phase": np.exp(1j * resized),
    }
    for encoding, field in expected.items():
        found = Encode(encoding, size, padding=2)(images)
        assert found.dtype == tf.complex64
        dark = [(0, 0), (2, 2), (2, 2)]
        np.testing.assert_allclose(found, np.pad(field, dark), atol=1e-6)
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        light = tf.reduce_sum(tf.math.real(Encode("intensity")(x)))
    assert np.isfinite(tape.gradient(light, x)).all()


# Masks


def phase_mask(fields, **kwargs):
    layer = PhaseMask(dtype="float64", **kwargs)
    layer(fields)
    return layer, np.asarray(layer.controls["phase"])


def transmission(layer, fields):
    return np.asarray(layer(fields) / fields)[0]


def test_imperfections_of_a_mask_are_those_of_the_physics(fields):
    layer, phase = phase_mask(fields)
    mask = np.exp(1j * phase)
    np.testing.assert_allclose(transmission(layer, fields), mask, atol=1e-12)
    dead = np.zeros(phase.shape)
    dead[3, 5], dead[4, 5], dead[0, 0] = 1.0, 1.0, 0.25
    device = {"rotation": 3.0, "shift": (0.5, -1.0), "scale": 0.98, "tilt": (1.0, 2.0)}
    device |= {"phase_gain": 1.1, "phase_offset": 0.3, "wavelength_shift": 20.0}
    device |= {"dead_pixels": dead}
    assert device.keys() == layer.imperfections.keys()
    # The source is one for all layers.
    assert [n for n in device if layer.quantity(n).shared] == ["wavelength_shift"]
    for name, value in device.items():
        layer.imperfections[name].assign(value)
        assert np.abs(transmission(layer, fields) - mask).max() > 1e-3, name
        layer.reset_imperfections()
    for name, value in device.items():
        layer.imperfections[name].assign(value)
    wave = WAVE + 20e-9
    shown = 1.1 * WAVE / wave * phase * (1 - dead) + 0.3
    expected = propagation.warp(np.exp(1j * shown), 3.0, (0.5, -1.0), 0.98)
    expected *= propagation.tilt(phase.shape, (1e-3, 2e-3), wave, PITCH, "complex128")
    np.testing.assert_allclose(transmission(layer, fields), expected, atol=1e-6)


@pytest.mark.parametrize("outside", [1.0, 0.0])
def test_beyond_a_moved_mask_light_passes_or_is_lost(fields, outside):
    layer, _ = phase_mask(fields, outside=outside)
    layer.imperfections["shift"].assign((3.0, 0.0))
    rim = transmission(layer, fields)[:3]
    np.testing.assert_allclose(rim, outside * np.ones(rim.shape), atol=1e-12)


def test_a_shift_may_be_given_in_micrometres():
    model = planes()
    device = pnn.devices.sweep(model, "shift_um", [(3.0, -1.0)])[0]
    with device.installed(model):
        for layer in pnn.layers.physical_layers(model):
            if "shift" in layer.imperfections:
                np.testing.assert_allclose(layer.imperfections["shift"], (1.5, -0.5))


def test_phases_are_set_in_the_steps_of_a_converter_with_straight_gradients(fields):
    dac = DAC(3, -1.0, -1.0 + TURN * 7 / 8)
    layer, phase = phase_mask(fields, dac=dac)
    layer.controls["phase"].assign(phase + 9.0)
    controls, _ = layer.current_values()
    with tf.GradientTape() as tape:
        tape.watch(controls["phase"])
        outputs = layer.as_set(controls)["phase"]
    shown = np.asarray(outputs)
    codes = (shown + 1.0) / (TURN / 8)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-9)
    assert set(np.round(codes).ravel()) == set(range(8))
    apart = np.abs(np.angle(np.exp(1j * (shown - phase - 9.0))))
    assert apart.max() <= TURN / 16 + 1e-9
    slope = tape.gradient(outputs, controls["phase"])
    np.testing.assert_array_equal(slope, np.ones(phase.shape))


def test_a_converter_of_less_than_a_turn_sets_its_nearest_end(fields):
    layer, phase = phase_mask(fields, dac=DAC(2, 1.0, 4.0))
    # 5.5 is in the middle of what is left out, 1 a turn later is 7.28.
    wanted = {5.6: 4.0, 5.7: 1.0, 7.2: 1.0, 8.2: 2.0, -2.0: 4.0, 2.4: 2.0}
    phase[0, : len(wanted)] = list(wanted)
    layer.controls["phase"].assign(phase)
    shown = layer.as_set(layer.current_values()[0])["phase"]
    np.testing.assert_allclose(shown[0, : len(wanted)], list(wanted.values()))


def test_a_tilt_beyond_the_sampling_is_refused_and_never_aliases(data):
    model = planes()
    refused = r"tilt' must be (above -|below )133\.395"
    with pytest.raises(ValueError, match=refused):
        pnn.Variation(tilt=200.0).sample(model, 1)
    with pytest.raises(ValueError, match=refused):
        pnn.devices.sweep(model, "tilt", [0.0, 150.0])
    with pytest.raises(ValueError, match=r"radius.*reaches too far"):
        among = {"tilt": pnn.Autodiff(150.0)}
        compiled(pnn.SATModel(model, adversarial=among)).fit(*data, verbose=0)
    model.layers[2].imperfections["tilt"].assign((150.0, 0.0))
    assert np.isnan(model.predict(data[0], verbose=0)).all()
    # Where pixels are finer than half a wavelength, none is too steep.
    fine = PhaseMask(pitch=0.2e-6)
    fine.build((None, 4, 4))
    assert np.isinf(fine.quantity("tilt").room).all()


def test_frames_show_the_nearest_level_a_turn_aside(fields, tmp_path, rng):
    layer, phase = phase_mask(fields, name="first")
    layer.controls["phase"].assign(phase - 20.0)
    levels = layer.frame()
    assert levels.dtype == "uint8" and levels.shape == phase.shape
    apart = np.angle(np.exp(1j * (levels * TURN / 256 - phase + 20.0)))
    assert np.abs(apart).max() <= TURN / 512 + 1e-9
    # As measured: not even, in no order, and less than a turn.
    lookup = rng.permutation(5.5 * np.linspace(0, 1, 256) ** 1.3)
    levels = layer.frame(lookup).astype(int)
    apart = np.abs(np.angle(np.exp(1j * (lookup[levels] - phase + 20.0))))
    others = np.angle(np.exp(1j * (lookup - (phase - 20.0)[..., None])))
    np.testing.assert_allclose(apart, np.abs(others).min(-1), atol=1e-9)
    path = layer.save_frame(tmp_path, lookup)
    assert path.name == "first.png"
    before = lookup[levels]
    layer.controls["phase"].assign(np.zeros(phase.shape))
    layer.load_frame(tmp_path, lookup)
    np.testing.assert_allclose(layer.controls["phase"], before, atol=1e-6)
    wide = np.linspace(0, TURN, 65536, endpoint=False)
    assert layer.frame(wide).dtype == "uint16"
    layer.save_frame(tmp_path, wide)
    with pytest.raises(ValueError, match=r"`lookup` must be .* 65536 levels"):
        layer.load_frame(tmp_path)
    with pytest.raises(ValueError, match=r"`lookup` must be .*256"):
        layer.frame(np.zeros(7))


def test_amplitudes_stay_within_range_and_dead_pixels_are_dark(fields, tmp_path):
    layer = AmplitudeMask(dtype="float64", name="amplitudes")
    layer(fields)
    variable = layer.controls["amplitude"]
    np.testing.assert_array_equal(variable.constraint(tf.constant([-1.0, 2.0])), (0, 1))
    values = np.linspace(0, 1, variable.shape[0] * variable.shape[1])
    variable.assign(values.reshape(variable.shape))
    layer.imperfections["dead_pixels"].assign(np.eye(*variable.shape))
    expected = values.reshape(variable.shape) * (1 - np.eye(*variable.shape))
    np.testing.assert_allclose(transmission(layer, fields), expected, atol=1e-12)
    assert layer.frame().min() == 0 and layer.frame().max() == 255
    layer.save_frame(tmp_path)
    layer.load_frame(tmp_path)
    np.testing.assert_allclose(np.ravel(variable), values, atol=0.5 / 255)


@pytest.mark.parametrize("dac", [None, DAC(8, 0, 1)])
def test_amplitudes_never_amplify_and_find_back(fields, dac):
    layer = AmplitudeMask(dtype="float64", amplitude_constraint=None, dac=dac)
    layer(fields)
    variable = layer.controls["amplitude"]
    values = np.full(variable.shape, 0.6)
    values[0], values[1] = 1.7, -0.4
    variable.assign(values)
    shown = np.clip(values, 0, 1)
    np.testing.assert_allclose(transmission(layer, fields), shown, atol=1e-12)
    with tf.GradientTape() as tape:
        light = tf.reduce_sum(tf.abs(layer(fields)) ** 2)
    slope = tape.gradient(light, variable.value)
    expected = 2 * shown * np.sum(np.abs(fields) ** 2, 0)
    np.testing.assert_allclose(slope, expected, atol=1e-9)


def test_roughness_counts_no_turns_and_blocks_are_constant(rng):
    phase = tf.constant(rng.uniform(0, TURN, (6, 7)), "float32")
    rough = PhaseRoughness(0.5)
    turns = tf.constant(TURN * rng.integers(-2, 3, (6, 7)), "float32")
    assert float(rough(phase)) == pytest.approx(float(rough(phase + turns)), rel=1e-4)
    assert float(rough(0 * phase + 3.0)) == 0.0
    expected = sum(np.mean(1 - np.cos(np.diff(phase, axis=axis))) for axis in (0, 1))
    assert float(rough(phase)) == pytest.approx(0.5 * expected, rel=1e-5)
    blocks = np.asarray(PhaseBlocks(3)(phase))
    for y, x in ((0, 0), (3, 3), (3, 6)):
        block = np.exp(1j * np.asarray(phase)[y : y + 3, x : x + 3])
        found = blocks[y : y + 3, x : x + 3]
        np.testing.assert_allclose(found, np.angle(block.mean()), atol=1e-5)
    np.testing.assert_allclose(PhaseBlocks(3)(blocks), blocks, atol=1e-5)


# Nonlinearities and detectors


def test_nonlinearities_keep_the_phase_and_have_finite_slopes(fields):
    light = np.abs(fields) ** 2
    level = light.mean((1, 2), keepdims=True)
    laws = {
        Threshold(0.5): np.maximum(light - 0.5 * level, 0),
        Saturable(2.0, 0.3): light * np.exp(-2.0 / (1 + light / 0.3)),
    }
    for layer, expected in laws.items():
        layer = type(layer).from_config({**layer.get_config(), "dtype": "float64"})
        found = np.asarray(layer(fields))
        np.testing.assert_allclose(np.abs(found) ** 2, expected, atol=1e-5)
        bright = np.abs(found) > 1e-3
        turned = np.angle(found[bright] / fields[bright])
        np.testing.assert_allclose(turned, 0, atol=1e-9)
    # Dark, all alike (just at a threshold of 1), and ordinary.
    for x in (np.zeros((1, 4, 4)), np.ones((1, 4, 4)), light[:1]):
        for layer in (Threshold(1.0), Threshold(0.5), Saturable()):
            x = tf.constant(x, "complex64")
            with tf.GradientTape() as tape:
                tape.watch(x)
                power = tf.reduce_sum(tf.abs(layer(x)) ** 2)
            assert np.isfinite(np.abs(tape.gradient(power, x))).all()


def test_the_grid_is_that_of_the_reference():
    detectors = DetectorArray(grid=(3, 4, 3), size=9, extent=63)
    corners = [r[:2] for r in detectors.placed((128, 128))]
    rows = {32: (32, 59, 86), 59: (32, 50, 68, 86), 86: (32, 59, 86)}
    assert corners == [(y, x) for y, columns in rows.items() for x in columns]


def test_detectors_sum_the_light_of_their_pixels(fields):
    regions = [(0, 1, 4, 5), (20, 0, 4, 20), (6, 6, 1, 1)]
    light = np.abs(fields) ** 2
    sums = [light[:, y : y + h, x : x + w].sum((1, 2)) for y, x, h, w in regions]
    sums = np.stack(sums, -1)
    powers = DetectorArray(regions, normalize=None, dtype="float64")
    np.testing.assert_allclose(powers(fields), sums)
    shares = DetectorArray(regions)(fields.astype("complex64"))
    assert shares.dtype == tf.float32
    np.testing.assert_allclose(shares, sums / sums.sum(-1, keepdims=True), rtol=1e-5)
    dark = tf.zeros((1, 24, 20))
    with tf.GradientTape() as tape:
        tape.watch(dark)
        outputs = DetectorArray(regions)(dark)
    np.testing.assert_array_equal(outputs, np.zeros((1, 3)))
    np.testing.assert_array_equal(tape.gradient(outputs, dark), np.zeros(dark.shape))


# Networks


@pytest.fixture
def data(rng):
    y = np.arange(12) % 3
    x = rng.uniform(0, 0.3, (12, 6, 6)).astype("float32")
    for image, label in zip(x, y, strict=True):
        image[:, 2 * label : 2 * label + 2] += 0.7
    return x, y


def compiled(model, **options):
    adam = keras.optimizers.Adam(0.1)
    loss = "sparse_categorical_crossentropy"
    model.compile(adam, loss, metrics=["accuracy"], **options)
    return model


def test_a_network_learns(data):
    model = compiled(planes(nonlinearity=Threshold))
    assert [type(layer).__name__ for layer in model.layers[:4]] == [
        "Encode",
        "FreeSpace",
        "PhaseMask",
        "Threshold",
    ]
    history = model.fit(*data, epochs=30, verbose=0).history
    assert history["accuracy"][-1] == 1.0
    assert history["loss"][-1] < 0.75 * history["loss"][0]


RANDOM = {"rotation": 2.0, "shift": 0.5, "distance_error": 5.0, "tilt": 1.0}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: pnn.SATModel(
            m,
            ascent=None,
            adversarial={
                "rotation": pnn.FiniteDifference(2.0, 0.5),
                "wavelength_shift": pnn.Autodiff(5.0),
            },
        ),
        lambda m: pnn.PATModel(m, pnn.Variation(RANDOM).sample(m, 1)[0]),
    ],
    ids=["adversary", "pat"],
)
def test_networks_train_robustly_and_on_a_device(data, wrap):
    # A graph takes longer to make than the steps.
    trainer = compiled(wrap(planes()), run_eagerly=True)
    losses = trainer.fit(*data, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_dead_pixels_and_steps_in_robust_training_and_in_frames(data, tmp_path):
    """Some pixels of each device are dead; frames hold what the design sets."""
    model = planes(dac=DAC(4, 0, TURN * 15 / 16))
    broken = tfd.Bernoulli(probs=0.1)
    random = pnn.Variation(dead_pixels=broken, rotation=1.0)
    trainer = pnn.SATModel(model, rho=0.2, variation=random)
    compiled(trainer, run_eagerly=True)
    losses = trainer.fit(*data, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    (device,) = random.sample(model, 1)
    (mask, _) = (la for la in model.layers if isinstance(la, PhaseMask))
    with device.installed(model):
        dead = np.asarray(mask.imperfections["dead_pixels"])
        assert set(dead.ravel()) == {0.0, 1.0} and 0.02 < dead.mean() < 0.3
        outputs = np.asarray(model(data[0]))
        assert np.isfinite(outputs).all()
        frame = mask.frame()
    shown = np.asarray(mask.as_set(mask.current_values()[0])["phase"])
    np.testing.assert_allclose(frame / 256 * TURN, shown, atol=1e-6)
    mask.save_frame(tmp_path)
    mask.load_frame(tmp_path)
    with device.installed(model):
        np.testing.assert_allclose(model(data[0]), outputs, atol=1e-5)


def test_drift_and_the_report(data, tmp_path):
    model = compiled(planes())
    still = model.evaluate(*data, verbose=0)[0]
    warming = pnn.callbacks.DriftInjection(
        "distance_error", pnn.drift.Linear(20.0, start=20.0), during="validation"
    )
    moved = model.evaluate(*data, verbose=0, callbacks=[warming])[0]
    assert abs(moved - still) > 1e-4
    result = pnn.robustness_report(
        model,
        *data,
        devices=pnn.Variation(RANDOM).sample(model, 3),
        sweeps={"rotation": [-1.0, 0.0, 1.0]},
        hessian=False,
        landscape=False,
        worst_case=False,
        verbose=0,
    )
    (found,) = result.models.values()
    field, first = data[0][:3], None
    for layer in model.layers:
        fields, field = field, layer(field)
        light = np.abs(field) ** 2
        first = np.sum(light, (1, 2)) if first is None else first
        if isinstance(layer, PhaseMask):
            phase = np.asarray(layer.controls["phase"])
            np.testing.assert_allclose(found.light.phases[layer.name], phase % TURN)
            assert layer.name not in found.light.light
        elif not isinstance(layer, DetectorArray):
            np.testing.assert_allclose(found.light.light[layer.name], light, rtol=1e-5)
            share = np.mean(np.sum(light, (1, 2)) / first)
            assert found.light.shares[layer.name] == pytest.approx(share, rel=1e-5)
    powers = DetectorArray(layer.regions, normalize=None)(fields)
    caught = np.mean(np.sum(powers, -1) / first)
    assert found.light.shares[layer.name] == pytest.approx(caught, rel=1e-5)
    assert found.light.regions == layer.regions
    result.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "rotation" in page
    part = page[page.index("<h2>Light and masks</h2>") :]
    part = part[: part.index("</section>")]
    # Two masks, and three samples on four planes with three detectors.
    assert part.count("data:image/png;base64,") >= 2 + 3 * 4
    assert all(layer.name in part for layer in model.layers if "Lens" not in str(layer))
    assert "light" in result.table().lower() and "phases" not in str(result.to_dict())
    again = model.evaluate(*data, verbose=0)[0]
    assert again == pytest.approx(still, rel=1e-6)


def test_controls_go_to_the_lab_and_back(tmp_path):
    model = planes(masks=1)
    (mask,) = (la for la in model.layers if isinstance(la, PhaseMask))
    before = np.asarray(mask.controls["phase"])
    pnn.export_controls(model, tmp_path / "controls.csv")
    mask.controls["phase"].assign(np.zeros(before.shape))
    pnn.load_controls(model, tmp_path / "controls.csv")
    np.testing.assert_allclose(mask.controls["phase"], before, atol=1e-6)


PLANE = np.ones((1, 16, 16), "complex64")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: FreeSpace(0.1)(PLANE), "`distance` must be at most"),
        (lambda: FreeSpace(1e-4, wavelength=0.0), "`wavelength` .*> 0"),
        (lambda: FreeSpace(1e-4, pitch=-1.0), "`pitch` .*> 0"),
        (lambda: FreeSpace(1e-4, padding=-1), "`padding`"),
        (lambda: FreeSpace(1e-4)(PLANE[..., None]), r"\(batch, height, width\)"),
        (lambda: Lens(1e-6)(PLANE), "`focal_length` must be at least"),
        (lambda: Aperture(0.0), "`diameter`"),
        (lambda: PhaseMask((8, 16))(PLANE), "`shape` .* 16 × 16"),
        (lambda: PhaseMask(outside=2.0), "`outside`"),
        (lambda: PhaseMask(rotation=1.0), "imperfection.*Variation"),
        (lambda: Encode()(PLANE), "must be real"),
        (lambda: Encode("intensity")(-np.ones((1, 4, 4))), "`inputs`.*≥ 0"),
        (lambda: Encode("colour"), "`encoding`"),
        (lambda: Encode()(np.ones((1, 4, 4, 3))), "batch, height, width, 1"),
        (lambda: DetectorArray([(0, 0, 4, 4), (3, 3, 2, 2)])(PLANE), "overlap"),
        (lambda: DetectorArray([(14, 0, 4, 4)])(PLANE), "on the plane of 16 × 16"),
        (lambda: DetectorArray([(0, 0, 4)]), "`regions`"),
        (lambda: DetectorArray(size=9)(PLANE), "overlap"),
        (lambda: DetectorArray(grid=()), "`grid`"),
        (lambda: DetectorArray(grid=3), "`grid`"),
        (lambda: FreeSpace(float("nan")), "`distance`"),
        (lambda: Encode(size=(4, 4, 4)), "`size`"),
        (lambda: Threshold(-1.0), "`share`"),
        (lambda: Saturable(saturation=0.0), "`saturation`"),
        (lambda: PhaseRoughness(-1.0), "`strength`"),
        (lambda: PhaseBlocks(0), "`size`"),
        (lambda: diffractive(masks=2, distance=[1e-3] * 2), "`distance` .*3"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=rf"(?s){message}.*Received"):
        call()


@pytest.mark.parametrize(
    "make",
    [
        lambda: FreeSpace(1e-4, padding=0),
        PhaseMask,
        AmplitudeMask,
        lambda: DetectorArray([(0, 0, 2, 2)]),
    ],
)
def test_a_layer_keeps_the_plane_that_it_was_built_for(make):
    layer = make()
    layer(PLANE)
    for other in (PLANE[:, :1], np.ones((1, 24, 16), "complex64")):
        with pytest.raises(ValueError, match="incompatible"):
            layer(other)


def test_a_distance_is_calibrated(data):
    model = planes(masks=1)
    device = pnn.devices.sweep(model, "distance_error", [4.0])[0]
    found = pnn.calibrate(model, device, data[0], ["distance_error"])
    with found.device.installed(model):
        errors = [
            float(layer.imperfections["distance_error"])
            for layer in pnn.layers.physical_layers(model)
            if "distance_error" in layer.imperfections
        ]
    np.testing.assert_allclose(errors, 4.0, atol=0.5)


def test_light_is_followed_with_a_batch_size_and_noise_as_they_are(data):
    images = keras.Input(batch_shape=(4, 6, 6))
    inputs = pnn.layers.ShotNoise(1000, seed=0)(images)
    model = keras.Model(images, planes(masks=1)(inputs))
    (noise,) = (la for la in model.layers if isinstance(la, pnn.layers.ShotNoise))
    before = np.asarray(noise.seed_generator.state)
    path = pnn.robustness.LightPath.of(model, data[0][:3])
    assert {light.shape for light in path.light.values()} == {(3, 16, 16)}
    np.testing.assert_array_equal(noise.seed_generator.state, before)
    assert pnn.robustness.LightPath.of(keras.Sequential([images]), None) is None
