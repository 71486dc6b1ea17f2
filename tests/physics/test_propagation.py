"""Propagation and elements against closed forms; derivatives against differences."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from transforms import assert_same_when_transformed, gradients

from keras_pnn.physics import imaging
from keras_pnn.physics.propagation import (
    aberration,
    angular_spectrum,
    aperture,
    fresnel,
    lens,
    tilt,
    warp,
)
from keras_pnn.physics.propagation.free_space import transfer_function

WAVE, PITCH = 532e-9, 2e-6
K = 2 * np.pi / WAVE
PERIODIC = {"band_limit": False, "padding": 0}
BOTH = pytest.mark.parametrize("propagate", [angular_spectrum, fresnel])


def plane(n):
    """y and x in m of a square plane, from pixel n // 2."""
    return PITCH * (np.indices((n, n)) - n // 2)


def random_field(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


@BOTH
def test_a_gaussian_beam_widens_bends_and_slips_by_gouy(propagate):
    waist, z = 20e-6, 3e-3
    rayleigh = np.pi * waist**2 / WAVE
    y, x = plane(128)
    square = y**2 + x**2
    found = propagate(np.exp(-square / waist**2), z, WAVE, PITCH)
    assert found.dtype == tf.complex128
    width = waist * np.sqrt(1 + (z / rayleigh) ** 2)
    radius = z + rayleigh**2 / z
    phase = K * z + K * square / (2 * radius) - np.arctan(z / rayleigh)
    expected = waist / width * np.exp(-square / width**2 + 1j * phase)
    # The beam is paraxial to 1e-4; single precision of the field costs 1e-6.
    np.testing.assert_allclose(found, expected, atol=2e-4)
    single = propagate(np.exp(-square / waist**2).astype("float32"), z, WAVE, PITCH)
    assert single.dtype == tf.complex64
    np.testing.assert_allclose(single, found, atol=1e-6)


@BOTH
@pytest.mark.parametrize("orders", [(0, 0), (3, -5)])
def test_a_plane_wave_gains_its_phase(propagate, orders):
    """On a periodic plane without a band limit over any distance."""
    n, z = 32, 0.02
    angle = np.arcsin(WAVE * np.array(orders) / (n * PITCH))
    wave = tilt((n, n), angle, WAVE, PITCH, "complex128")
    cosine = np.sqrt(1 - np.sum(np.sin(angle) ** 2))
    if propagate is fresnel:
        cosine = 1 - np.sum(np.sin(angle) ** 2) / 2
    found = propagate(wave, z, WAVE, PITCH, **PERIODIC)
    np.testing.assert_allclose(found, wave * np.exp(1j * K * z * cosine), atol=1e-9)


@BOTH
def test_a_slit_casts_the_shadow_of_fresnel_integrals(propagate):
    n, half, z = 2048, 50, 6e-3
    x = np.arange(n) - n // 2 + 0.5
    slit = np.tile(np.abs(x) < half, (2, 1)).astype("complex128")
    scale = PITCH * np.sqrt(2 / (WAVE * z))
    s, c = scipy.special.fresnel(scale * (x[:, None] - [half, -half]))
    edges = c + 1j * s
    expected = (edges[:, 1] - edges[:, 0]) / (1 + 1j) * np.exp(1j * K * z)
    found = propagate(slit, z, WAVE, PITCH, **PERIODIC)[0]
    near = np.abs(x) < 200
    np.testing.assert_allclose(found[near], expected[near], atol=0.02)


@pytest.mark.parametrize("zones", [1.0, 1.5, 2.0])
def test_behind_a_circular_aperture_the_axis_is_bright_or_dark(zones):
    n, radius = 256, 90e-6
    hole = aperture((n, n), 2 * radius, PITCH)
    z = radius**2 / (WAVE * zones)
    found = np.abs(angular_spectrum(hole, z, WAVE, PITCH)[n // 2, n // 2]) ** 2
    assert found == pytest.approx(4 * np.sin(np.pi * zones / 2) ** 2, abs=0.08)


def test_a_grating_is_imaged_at_its_talbot_length(rng):
    period, n = 16, 64
    grating = np.tile(random_field(rng, period, period), (4, 4))
    talbot = 2 * (period * PITCH) ** 2 / WAVE
    found = fresnel(grating, talbot, WAVE, PITCH, **PERIODIC)
    np.testing.assert_allclose(found, grating * np.exp(1j * K * talbot), atol=1e-8)
    half = fresnel(grating, talbot / 2, WAVE, PITCH, **PERIODIC)
    shifted = np.roll(grating, (period // 2, period // 2), (0, 1))
    expected = shifted * np.exp(1j * K * talbot / 2)
    np.testing.assert_allclose(half, expected, atol=1e-8)
    assert found.shape == (n, n)


def test_a_lens_focuses_to_an_airy_disc():
    n, focal, diameter = 256, 5e-3, 256e-6
    size = (n, n)
    field = aperture(size, diameter, PITCH) * lens(size, focal, WAVE, PITCH)
    spot = np.abs(angular_spectrum(field, focal, WAVE, PITCH)) ** 2
    y, x = plane(n)
    v = np.pi * diameter * np.hypot(y, x) / (WAVE * focal)
    airy = (2 * scipy.special.j1(v) / np.where(v > 0, v, 1)) ** 2
    airy[n // 2, n // 2] = 1.0
    np.testing.assert_allclose(spot / spot.max(), airy, atol=0.01)
    peak = (np.pi * diameter**2 / 4 / (WAVE * focal)) ** 2
    assert spot.max() == pytest.approx(peak, rel=0.02)
    # Between pixels, four of them share the peak.
    field = aperture(size, diameter, PITCH, on_pixel=False)
    field *= lens(size, focal, WAVE, PITCH, on_pixel=False)
    spot = np.abs(angular_spectrum(field, focal, WAVE, PITCH)) ** 2
    np.testing.assert_allclose(spot, spot[::-1, ::-1], rtol=1e-2, atol=1e-2)


@BOTH
def test_energy_stays_and_time_can_be_reversed(rng, propagate):
    field = random_field(rng, 2, 24, 32)
    there = propagate(field, 7e-3, WAVE, PITCH, **PERIODIC)
    assert np.sum(np.abs(there) ** 2) == pytest.approx(np.sum(np.abs(field) ** 2))
    back = propagate(there, -7e-3, WAVE, PITCH, **PERIODIC)
    np.testing.assert_allclose(back, field, atol=1e-10)
    single = field.astype("complex64")
    there = propagate(single, 7e-3, WAVE, PITCH, **PERIODIC)
    energy = np.sum(np.abs(single) ** 2)
    assert np.sum(np.abs(there) ** 2) == pytest.approx(energy, rel=1e-6)


def test_evanescent_waves_decay_both_ways():
    pitch, n = 0.2e-6, 8
    wave = np.tile([1.0, -1.0], (n, n // 2))
    for z in (1e-7, -1e-7):
        found = angular_spectrum(wave, z, WAVE, pitch, **PERIODIC)
        decay = np.exp(-K * 1e-7 * np.sqrt((WAVE / (2 * pitch)) ** 2 - 1))
        np.testing.assert_allclose(found, decay * wave, atol=1e-12)


def test_padding_keeps_light_that_leaves_from_coming_back():
    n, z = 64, 2e-3
    field = aperture((n, n), 40e-6, PITCH, "rectangle", dtype="complex128")
    wide = angular_spectrum(field, z, WAVE, PITCH, padding=8 * n)
    errors = [
        np.abs(angular_spectrum(field, z, WAVE, PITCH, **kwargs) - wide).max()
        for kwargs in (PERIODIC, {"padding": 0}, {}, {"padding": 2 * n})
    ]
    assert errors[0] > errors[2] > errors[3]
    assert errors[2] < 0.05 and errors[3] < 0.02


@pytest.mark.parametrize("paraxial", [False, True])
def test_the_band_limit_is_that_of_the_reference(paraxial):
    size, z = (32, 48), 1e-3
    found = np.abs(transfer_function(size, z, WAVE, PITCH, paraxial=paraxial)) > 0
    for axis, n in enumerate(size):
        step = 1 / (n * PITCH)
        limit = 1 / (WAVE * np.sqrt(1 + (2 * z * step) ** 2))
        if paraxial:
            limit = 1 / (2 * WAVE * z * step)
        passing = np.abs(np.fft.fftfreq(n, PITCH)) <= limit
        assert 3 < passing.sum() < n
        np.testing.assert_array_equal(found.any(1 - axis), passing)


def test_the_common_phase_can_be_left_out():
    z = 5e-3
    both = [
        transfer_function((48, 48), z, WAVE, PITCH, common_phase=c, dtype="complex128")
        for c in (True, False)
    ]
    np.testing.assert_allclose(both[0], both[1] * np.exp(1j * K * z), atol=1e-9)


def test_distances_and_wavelengths_broadcast_with_a_batch(rng):
    field = random_field(rng, 2, 3, 12, 16)
    z, waves = np.array([[1e-4], [2e-4]]), np.array([500e-9, 600e-9, 700e-9])
    found = angular_spectrum(field, z, waves, PITCH)
    for i in range(2):
        for j in range(3):
            one = angular_spectrum(field[i, j], z[i, 0], waves[j], PITCH)
            np.testing.assert_allclose(found[i, j], one, atol=1e-12)


@pytest.mark.parametrize("pitch", [PITCH, 0.3e-6])
@pytest.mark.parametrize("padding", [0, None])
def test_derivatives_equal_differences(rng, pitch, padding):
    """Evanescent waves included, of fields with different distances."""
    field = tf.constant(random_field(rng, 2, 6, 8))
    weights = rng.normal(size=(2, 6, 8))
    start = [tf.constant([3e-6, 5e-6], "float64"), tf.constant(532e-9, "float64")]

    def loss(z, wave, real):
        outputs = angular_spectrum(
            field * tf.complex(real, 0.5 * real), z, wave, pitch, False, padding
        )
        return tf.reduce_sum(weights * tf.abs(outputs) ** 2)

    point = [*start, tf.constant(rng.normal(size=(2, 6, 8)))]
    exact = gradients(loss, point)
    for i, (value, slope) in enumerate(zip(point, exact, strict=True)):
        bump = rng.normal(size=value.shape) * float(tf.reduce_max(tf.abs(value)))
        moved = [
            loss(*point[:i], value + s * 1e-6 * bump, *point[i + 1 :]) for s in (1, -1)
        ]
        expected = float(moved[0] - moved[1]) / 2e-6
        assert float(tf.reduce_sum(slope * bump)) == pytest.approx(expected, rel=1e-5)


def test_graphs_xla_and_maps_agree(rng):
    field = tf.constant(random_field(rng, 2, 8, 8))

    def run(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            far = angular_spectrum(field, z, WAVE, PITCH, padding=4)
            far *= lens((8, 8), 1e-3 + z, WAVE, PITCH, dtype="complex128")
            light = tf.reduce_sum(tf.abs(far[:, :3]) ** 2)
        return light, tape.gradient(light, z)

    assert_same_when_transformed(run, tf.constant([1e-5, 4e-5], "float64"), 1e-6)


# Elements


def test_elements_take_several_wavelengths():
    size, waves = (3, 2), np.array([500e-9, 600e-9])
    bent = lens(size, [[1e-3], [2e-3]], waves, PITCH)
    deflecting = tilt(size, (0.01, -0.02), waves, PITCH)
    for j, wave in enumerate(waves):
        one = tilt(size, (0.01, -0.02), wave, PITCH)
        np.testing.assert_array_equal(deflecting[j], one)
        for i, focal in enumerate((1e-3, 2e-3)):
            np.testing.assert_array_equal(bent[i, j], lens(size, focal, wave, PITCH))


def test_a_lens_and_defocus_are_the_same_up_to_a_constant():
    size = (64, 64)
    bent = lens(size, 2e-2, WAVE, PITCH, on_pixel=False, dtype="complex128")
    radius = 32 * PITCH
    amount = -np.pi * radius**2 / (WAVE * 2e-2) / (2 * np.sqrt(3))
    same = bent * np.conj(aberration(size, amount, dtype="complex128"))
    np.testing.assert_allclose(same, same[0, 0] * np.ones(size), atol=1e-9)


def test_aberrations_have_their_rms_and_angle():
    size = (200, 200)
    y, x = np.indices(size) - 99.5
    inside = np.hypot(y, x) < 100
    for given in ((0.3, (0, 0)), (0, (0.3, 0)), (0, (0, 0.3))):
        phase = np.angle(aberration(size, *given))[inside]
        assert np.std(phase) == pytest.approx(0.3, rel=0.01)
        assert np.mean(phase) == pytest.approx(0, abs=0.003)
    across = np.angle(aberration(size, astigmatism=(0.1, 0.2)))
    assert across[100, 190] > 0 > across[10, 100]
    assert across[30, 170] > 0 > across[30, 30]  # 45° is at the upper right.


def test_tilt_moves_a_spot():
    size, z, angle = (128, 128), 2e-3, (0.01, -0.02)
    y, x = plane(128)
    beam = np.exp(-(y**2 + x**2) / 20e-6**2)
    beam = beam * tilt(size, angle, WAVE, PITCH, "complex128")
    light = np.abs(angular_spectrum(beam, z, WAVE, PITCH)) ** 2
    for axis, expected in zip((y, x), angle, strict=True):
        center = np.sum(axis * light) / np.sum(light)
        assert center == pytest.approx(z * np.tan(expected), rel=2e-3)


def test_a_tilt_that_aliases_is_nan_in_a_graph():
    angles = tf.Variable([0.0, 0.0])
    steepest = np.arcsin(WAVE / (2 * PITCH))

    @tf.function
    def graph():
        with tf.GradientTape() as tape:
            field = tilt((4, 6), angles, WAVE, PITCH)
            total = tf.reduce_sum(tf.math.real(field))
        return field, tape.gradient(total, angles)

    for share, finite in ((0.99, True), (1.01, False), (-1.01, False)):
        angles.assign([0.0, share * steepest])
        field, slope = graph()
        assert np.isfinite(np.abs(field)).all() == finite
        assert np.isfinite(slope[1]) == finite


def test_apertures_have_their_area():
    size = (100, 100)
    circle = np.sum(np.real(aperture(size, 80e-6, 1e-6)))
    assert circle == pytest.approx(np.pi * 40**2, rel=0.01)
    box = np.real(aperture(size, (10e-6, 4e-6), 1e-6, "rectangle", on_pixel=False))
    assert box.sum() == 40 and box[45:55, 48:52].all()
    slit = np.real(aperture(size, (np.inf, 4e-6), 1e-6, on_pixel=False))
    assert slit.sum() == 400 and slit[:, 48:52].all()


def test_a_mask_is_warped_as_a_complex_number(rng):
    phase = rng.uniform(0, 2 * np.pi, (12, 15))
    mask = np.exp(1j * phase)
    motion = {"rotation": 3.0, "shift": (0.4, -1.3), "scale": 1.02}
    for outside in (1.0, 0.0, 0.5j):
        found = warp(mask, **motion, outside=outside)
        real, imaginary, inside = (
            imaging.affine(part, **motion).numpy()
            for part in (mask.real, mask.imag, np.ones(mask.shape))
        )
        expected = real + 1j * imaginary + outside * (1 - inside)
        np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(warp(mask), mask, atol=1e-15)
    assert np.abs(warp(mask, rotation=0.01) - mask).max() > 1e-4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: angular_spectrum(np.ones(3), 1e-3, WAVE, PITCH), "`field`.*height"),
        (lambda: angular_spectrum(np.ones((8, 8)), 1.0, WAVE, PITCH), "`distance`.*at"),
        (lambda: fresnel(np.ones((8, 8)), -1.0, WAVE, PITCH), "`distance`.*at most"),
        (lambda: fresnel(np.ones((8, 8)), np.nan, WAVE, PITCH), "`distance`.*finite"),
        (lambda: fresnel(np.ones((8, 8)), 1e-4, 0.0, PITCH), "`wavelength`.*> 0"),
        (lambda: fresnel(np.ones((8, 8)), 1e-4, WAVE, -1.0), "`pitch`.*> 0"),
        (lambda: fresnel(np.ones((8, 8)), 1e-4, WAVE, 1.0, padding=-1), "`padding`"),
        (lambda: lens((64, 64), 1e-4, WAVE, PITCH), "`focal_length`.*at least"),
        (lambda: lens((64, 64), 0.0, WAVE, PITCH), "`focal_length`"),
        (lambda: lens((64, 64), 6e-4, WAVE, PITCH, (0, -40)), "`focal_length`.*axis"),
        (lambda: lens((64, 64), 1e-2, WAVE, PITCH, 3.0), r"`shift`.*\(y, x\)"),
        (lambda: lens((64, 64), 1e-2, WAVE, PITCH, (0, np.nan)), "`shift`.*finite"),
        (lambda: aberration((8, 8), astigmatism=0.1), "`astigmatism`.*pair"),
        (lambda: aberration((8, 8), astigmatism=(0, 0, 1)), "`astigmatism`.*pair"),
        (lambda: aberration((8, 8), [0.1, 0.2]), "`defocus`.*one number"),
        (lambda: aberration((8, 8), np.nan), "`defocus`.*finite"),
        (lambda: tilt((8, 8), (0, 0.2), WAVE, PITCH), "`angle`.*within"),
        (lambda: tilt((8, 8), 0.01, WAVE, PITCH), r"`angle`.*\(y, x\)"),
        (lambda: aperture((8, 8), (1e-6,) * 3, PITCH), "`diameter`.*one number"),
        (lambda: aperture((8, 8), 0.0, PITCH), "`diameter`.*> 0"),
        (lambda: aperture((8, 8), 1e-6, PITCH, "star"), "`shape`"),
        (lambda: warp(np.ones((3, 3)), scale=-1.0), "`scale`"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        call()
