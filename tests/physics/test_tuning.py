import functools
import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.interpolate import CubicSpline
from transforms import assert_same_when_transformed, gradients
from written import written

from keras_pnn.physics import tuning as tunings

CURRENT = np.linspace(0, 2.5, 60)
SHIFT = np.linspace(0, 1.0, 60)


def dip(x, center=0.3, half_width=0.1):
    return 1 - 2 / (1 + ((x - center) / half_width) ** 2)


def measured(unit="nm", **kwargs):
    control = SHIFT if unit == "nm" else CURRENT
    x = control if unit == "nm" else 0.53 * 0.375 * control**2
    return tunings.MeasuredTuning(control, dip(x), unit, **kwargs)


TUNINGS = {
    "lorentzian": tunings.LorentzianTuning(),
    "heater": tunings.HeaterTuning(),
    "heater_through": tunings.HeaterTuning(
        0.02, port="through", through_min=0.05, drop_max=0.8, max_current=2.0
    ),
    "heater_low_range": tunings.HeaterTuning(max_current=0.8),
    "measured_nm": measured("nm"),
    "measured_mA": measured("mA"),
    "measured_smooth": measured("mA", smoothing=1e-3),
    "measured_noisy": tunings.MeasuredTuning(
        CURRENT[10:],
        dip(0.19875 * CURRENT[10:] ** 2)
        + 0.004 * np.random.default_rng(0).normal(size=50),
        "mA",
        margin=0.05,
        extend_below=True,
    ),
}
HEATERS = [
    tunings.HeaterTuning(
        offset, port=port, max_current=top, through_min=0.05, drop_max=0.9,
        free_spectral_range=period,
    )
    for port in ("balanced", "through", "drop")
    for period in (None, 0.9)
    for offset, top in ((-0.3, None), (-0.3, 1.6), (0.2, None))
]  # fmt: skip
each = pytest.mark.parametrize("tuning", TUNINGS.values(), ids=TUNINGS.keys())


def some_controls(tuning):
    low, high = tuning.control_range
    return np.linspace(low, min(high, 2.0), 9)[1:-1]


# --- Closed forms


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-6), ("float32", 1e-4)])
def test_lorentzian_closed_form_and_inverse(dtype, rtol):
    tuning = tunings.LorentzianTuning(0.15)
    control = np.array([0.0, 1e-3, 0.1, 0.2, 0.5, 3.0], dtype)
    weight = tuning.weight(control, 0.01, 0.1)
    u = (control.astype("float64") + 0.01) / (0.15 * 1.1)
    assert weight.dtype == dtype
    np.testing.assert_allclose(weight, 1 - 2 / (1 + u**2), rtol=rtol)
    weight = np.linspace(-1, 0.999, 50)
    expected = 0.15 * np.sqrt((1 + weight) / (1 - weight))
    np.testing.assert_allclose(tuning.control(weight), expected)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-6), ("float32", 1e-4)])
@pytest.mark.parametrize("port", ["balanced", "through"])
def test_heater_closed_form(dtype, rtol, port):
    tuning = tunings.HeaterTuning(
        -0.3, 0.077, port=port, through_min=0.05, drop_max=0.9
    )
    current = np.array([0.0, 0.5, 1.0, 1.229, 1.4, 3.0], dtype)
    u = (-0.3 + 0.53 * 0.375 * current.astype("float64") ** 2) / 0.077
    through = (u**2 + 0.05) / (1 + u**2)
    expected = through - 0.9 / (1 + u**2) if port == "balanced" else through
    np.testing.assert_allclose(tuning.weight(current), expected, rtol=rtol)


def test_the_chips_ring_needs_1_229_milliampere():
    tuning = tunings.HeaterTuning(offset=-0.3)
    np.testing.assert_allclose(tuning.control(-1.0), 1.229, atol=5e-4)
    np.testing.assert_allclose(tuning.heater_power(1.229), 0.566, atol=5e-4)
    np.testing.assert_allclose(tuning.heater_shift(1.229), 0.3, atol=5e-4)
    np.testing.assert_allclose(tuning.detuning(1.229), 0, atol=5e-4)


def test_a_ring_at_rest_has_no_current():
    tuning = tunings.HeaterTuning(offset=-0.3)
    idle = float(tuning.weight(np.float64(0)))
    assert tuning.control(idle) == 0
    assert tuning.control(np.float32(idle)) == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("unit", ["nm", "mA"])
@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-10), ("float32", 2e-5)])
def test_measured_is_scipys_spline(unit, dtype, atol):
    tuning = measured(unit)
    control = SHIFT if unit == "nm" else CURRENT
    x = control if unit == "nm" else 0.53 * 0.375 * control**2
    at = np.random.default_rng(0).uniform(0.1, 0.9, (3, 20)).astype(dtype)
    at_x = at if unit == "nm" else 0.53 * 0.375 * at.astype("float64") ** 2
    weight = tuning.weight(at)
    assert weight.dtype == dtype
    np.testing.assert_allclose(weight, CubicSpline(x, dip(x))(at_x), atol=atol)
    on_points = tuning.weight(control.astype(dtype))
    np.testing.assert_allclose(on_points, dip(x), atol=atol)


def test_measured_shifts_add_in_nm():
    by_current, by_shift = measured("mA"), measured("nm")
    shift = float(by_current.heater_shift(np.float64(1.0)))
    np.testing.assert_allclose(
        by_current.weight(np.float64(1.0), 0.05),
        by_shift.weight(np.float64(shift), 0.05),
        atol=1e-3,
    )
    np.testing.assert_allclose(by_current.heater_power(2.0), 1.5)
    assert by_shift.heater_power(0.2) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_measured_half_width_stretches_about_the_resonance(sign):
    x = np.linspace(0, 1, 200)
    tuning = tunings.MeasuredTuning(x, sign * dip(x), "nm")
    np.testing.assert_allclose(tuning.resonance, 0.3, atol=1e-3)
    weight = tuning.weight(np.linspace(0.1, 0.9, 30), half_width_error=0.2)
    expected = sign * dip(np.linspace(0.1, 0.9, 30), half_width=0.12)
    np.testing.assert_allclose(weight, expected, atol=1e-3)
    # A flank has it at its lowest weight.
    flank = tunings.MeasuredTuning(x, dip(x, center=0.0), "nm")
    np.testing.assert_allclose(flank.resonance, 0, atol=1e-3)


# --- What every tuning keeps


@pytest.mark.parametrize("tuning", [*TUNINGS.values(), *HEATERS], ids=repr)
def test_controls_give_their_weights(tuning):
    low, high = tuning.weight_range
    wanted = tuning.clip(np.linspace(low, high, 41))
    control = tuning.control(wanted)
    tuning.validate(control)
    np.testing.assert_allclose(tuning.weight(control), wanted, atol=2e-6)
    least, most = tuning.control_range
    grid = np.linspace(least, min(most, 8.0), 20001)
    seen = np.asarray(tuning.weight(grid))
    assert low - 1e-6 <= seen.min() and seen.max() <= high + 1e-6
    np.testing.assert_allclose([seen.min(), seen.max()], [low, high], atol=1e-3)
    # The smallest control of that weight.
    for weight, found in zip(wanted[1:-1:4], control[1:-1:4], strict=True):
        crossed = np.flatnonzero(np.diff(np.sign(seen - weight)))
        assert not len(crossed) or found <= grid[crossed[0] + 1] + 1e-3


@each
def test_clip_is_the_nearest_reachable(tuning):
    low, high = tuning.clip([-np.inf, np.inf])
    inside = np.linspace(low, high, 11)
    np.testing.assert_array_equal(tuning.clip(inside), inside)
    assert tuning.clip(np.float32([[-5], [5]])).shape == (2, 1)
    tuning.control(tuning.clip(np.linspace(-2, 2, 41)))
    # Also where the ends are rounded to float32.
    assert np.isfinite(tuning.control(np.float32([low, high]))).all()
    if not np.isfinite(tuning.control_range[1]):
        assert high == 0.999


@each
def test_gradients_match_finite_differences(tuning):
    point = [np.array([some_controls(tuning)[3]]), np.array([0.01]), np.array([0.05])]

    def weight(values):
        return tuning.weight(*tf.unstack(values))

    x, h = tf.constant(np.stack(point)), 1e-5

    def gradient(values):
        return gradients(weight, [values])[0]

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        first = gradient(x)
    second = tf.squeeze(tape.jacobian(first, x, experimental_use_pfor=False))
    steps = h * np.eye(3)[:, :, None]
    numeric = [(weight(x + s) - weight(x - s)) / (2 * h) for s in steps]
    np.testing.assert_allclose(first, numeric, rtol=1e-5, atol=1e-6)
    numeric = [(gradient(x + s) - gradient(x - s)) / (2 * h) for s in steps]
    np.testing.assert_allclose(second, np.squeeze(numeric), rtol=1e-3, atol=1e-3)
    assert np.abs(second).max() > 1e-3


@pytest.mark.parametrize(
    "name", ["lorentzian", "heater_through", "measured_mA", "measured_noisy"]
)
def test_transformed(name):
    tuning = TUNINGS[name]
    control = tf.constant(some_controls(tuning))

    def run(shift):
        def weight(control):
            return tuning.weight(control, shift, 0.02)

        def slope(control):
            return gradients(weight, [control])[0]

        return weight(control), slope(control), *gradients(slope, [control])

    assert_same_when_transformed(run, tf.constant([[0.0], [0.005]], "float64"))


@each
def test_dtype_and_broadcasting(tuning):
    low = tuning.control_range[0] + 0.5
    weight = tuning.weight(tf.fill((2, 1), low), np.zeros(3, "float32"))
    assert weight.shape == (2, 3)
    assert weight.dtype == "float32"
    assert tuning.weight(np.float64(low)).dtype == "float64"
    assert tuning.weight(keras.Variable([low])).dtype == "float32"
    assert tuning.control(tuning.clip(0.0)).dtype == "float64"


@each
def test_serialisation_round_trip(tuning):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(tuning)))
    again = tunings.get(config)
    assert again == tuning
    assert hash(again) == hash(tuning)
    assert repr(again) == repr(tuning)
    control = some_controls(tuning)
    np.testing.assert_array_equal(again.weight(control), tuning.weight(control))
    assert type(tuning).from_config(tuning.get_config()) == tuning


@each
def test_bad_calls(tuning):
    _, highest = tuning.weight_range
    with pytest.raises(ValueError, match=r"`weight`.*in \[.*Received"):
        tuning.control(highest + 0.01)
    with pytest.raises(ValueError, match=r"`weight`.*in \[.*Received"):
        tuning.control([tuning.clip(0.0), -1.5])
    for call in (tuning.control, tuning.clip):
        with pytest.raises(ValueError, match=r"`weight`.*NaN.*Received"):
            call(np.nan)
    for bad in (np.nan, -0.1, np.inf, [0.5, 1e9 * tuning.control_range[1]]):
        with pytest.raises(ValueError, match=r"`control`.*Received"):
            tuning.validate(bad)
    with pytest.raises(ValueError, match=r"`control`.*NaN.*Received"):
        tuning.weight(np.nan)
    with pytest.raises(ValueError, match=r"`half_width_error`.*Received"):
        tuning.weight(0.5, half_width_error=-1.0)
    tuning.validate(np.float32(some_controls(tuning)))


# --- Rows


@pytest.mark.parametrize("port", ["balanced", "through"])
def test_row_of_one_ring_is_the_ring(port):
    tuning = tunings.HeaterTuning(port=port, through_min=0.1, drop_max=0.7)
    current = np.array([0.3, 1.0, 1.3])
    detuning = tuning.detuning(current).numpy()[None, :]
    error = np.array([[0.1]])
    np.testing.assert_allclose(
        tuning.row_weight(detuning, error), tuning.weight(current, 0.0, 0.1)
    )


def test_row_of_distant_rings_is_each_ring_alone():
    tuning = tunings.LorentzianTuning()
    control = np.array([0.0, 0.1, 0.3])
    detuning = control[:, None] + 1e4 * (1 - np.eye(3))
    np.testing.assert_allclose(
        tuning.row_weight(detuning), tuning.weight(control), atol=1e-6
    )


def test_measured_curve_cannot_model_a_row():
    with pytest.raises(ValueError, match="cannot model a row"):
        measured().row_weight(np.zeros((2, 2)))


# --- Leaving a measured curve


@each
def test_half_widths_that_do_not_exist_are_nan_in_a_graph(tuning):
    errors = np.array([-0.2, -1.0, -1.5, 0.0, 0.1], "float32")
    good = errors > -1

    def weight(control, error):
        return tuning.weight(control, 0.0, error)

    def run(error):
        control = tf.fill(errors.shape, 0.7)
        return weight(control, error), *gradients(weight, [control, error])

    found, *slopes = tf.function(run, jit_compile=True)(tf.constant(errors))
    np.testing.assert_array_equal(np.isnan(found), ~good)
    assert np.isfinite(np.array(slopes)[:, good]).all()
    mapped = tf.vectorized_map(
        lambda e: weight(0.7, e), tf.constant(errors), fallback_to_while_loop=False
    )
    np.testing.assert_allclose(mapped, found, rtol=1e-5)
    expected = tuning.weight(0.7, 0.0, errors[good])
    np.testing.assert_allclose(found[good], expected, rtol=1e-5)


@pytest.mark.parametrize("tuning", [TUNINGS["lorentzian"], TUNINGS["heater"]])
def test_a_row_with_a_half_width_that_does_not_exist_is_nan_in_a_graph(tuning):
    detuning = tf.constant([[[0.1, 0.8], [-0.7, 0.2]]] * 3)
    error = tf.constant([[[0.0], [0.1]], [[0.0], [-1.5]], [[-1.0], [0.0]]])
    weight = tf.function(tuning.row_weight)(detuning, error)
    np.testing.assert_array_equal(np.isnan(weight), [[False] * 2] + [[True] * 2] * 2)


@pytest.mark.parametrize("jit", [False, True])
def test_leaving_the_curve_is_nan_in_a_graph_and_an_error_elsewhere(jit):
    tuning = measured("nm")

    @tf.function(jit_compile=jit)
    def run(control):
        return tuning.weight(control), *gradients(tuning.weight, [control])

    for result in run(tf.constant([-0.01, 0.0, 0.5, 1.0, 1.01])):
        np.testing.assert_array_equal(np.isnan(result), [1, 0, 0, 0, 1])
    for control, shift in ((2.6, 0.0), (0.1, -0.1), (2.4, 0.2)):
        with pytest.raises(ValueError, match=r"`shift`.*measured curve.*Received"):
            measured("mA").weight(control, shift)


def test_ends_rounded_to_float32_are_on_the_curve():
    tuning = tunings.MeasuredTuning(
        0.1 + np.linspace(0, 1.7, 9), dip(np.linspace(0, 0.3, 9)), "mA"
    )
    ends = np.float32(tuning.control_range)
    tuning.validate(ends)
    assert np.isfinite(tuning.weight(ends)).all()


# --- Making a measured curve


def test_overshoot_is_reported():
    x = np.arange(8.0)
    with pytest.warns(UserWarning, match="leaves the range|turns at"):
        tuning = tunings.MeasuredTuning(x, (x > 3) * 1.0, "nm", smoothing=0)
    grid = tuning.weight(np.linspace(0, 7, 5001)).numpy()
    expected = max(grid.max() - 1, -grid.min())
    np.testing.assert_allclose(tuning.overshoot, expected, rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tunings.MeasuredTuning(x, x, "nm").overshoot < 1e-9


# --- Noise

NOISE = 0.004
CURVES = {
    "mA": ("mA", lambda i: np.asarray(tunings.HeaterTuning().weight(i)), 4.0, 1),
    "nm": ("nm", lambda x: dip(x, 0.25, 0.077), 0.6, 1),
    "drop port": ("nm", lambda x: -dip(x, 0.25, 0.077), 0.6, 1),
    "resonance near the end": ("nm", lambda x: dip(x, 0.55, 0.2), 0.6, 1),
    "one flank": ("nm", lambda x: dip(x, 0.7, 0.2), 0.6, 0),
    "two resonances": ("nm", lambda x: dip(x, 0.1, 0.03) + dip(x, 0.4, 0.05), 0.6, 3),
}


def noisy(control, curve, noise=NOISE, seed=0):
    return curve(control) + noise * np.random.default_rng(seed).normal(
        size=len(control)
    )


def turning_points(weights):
    return int(np.sum(np.diff(np.sign(np.diff(weights))) != 0))


@pytest.mark.parametrize("points", [81, 200])
@pytest.mark.parametrize(("unit", "curve", "end", "turns"), CURVES.values(), ids=CURVES)
def test_a_noisy_curve_turns_at_its_resonance_alone(unit, curve, end, turns, points):
    control = np.linspace(0, end, points)
    weight = noisy(control, curve)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The bottom of a dip may lie between two points.
        warnings.filterwarnings("ignore", "The spline leaves the range")
        tuning = tunings.MeasuredTuning(control, weight, unit)
    fine = np.linspace(0, end, 4001)
    assert turning_points(curve(fine)) == turns
    found = np.asarray(tuning.weight(fine))
    assert turning_points(found) == turns
    assert len(tuning.turning_points) == turns
    assert np.std(found - curve(fine)) < NOISE
    assert 0.4 * NOISE < tuning.residual < 1.2 * NOISE
    on_points = np.asarray(tuning.weight(control)) - weight
    np.testing.assert_allclose(np.sqrt(np.mean(on_points**2)), tuning.residual)
    assert f"residual {tuning.residual:.2g}, {turns} turning" in repr(tuning)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1])
def test_the_noise_is_that_of_the_points_and_not_of_the_curve(width):
    x = np.linspace(0, 0.6, 81)
    weight = noisy(x, lambda x: dip(x, 0.25, width))
    assert 0.5 * NOISE < tunings.MeasuredTuning(x, weight, "nm").residual < 1.5 * NOISE


def test_a_measured_flank_that_no_lorentzian_has_is_followed():
    x = np.linspace(0, 0.6, 101)
    weight = dip(x, 0.25, 0.077) + 0.012 * np.sin(2 * np.pi * x / 0.04)
    weight += 0.002 * np.random.default_rng(0).normal(size=101)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuning = tunings.MeasuredTuning(x, weight, "nm")
        close = tunings.MeasuredTuning(x, weight, "nm", smoothing=1e-4)
    assert tuning.residual < 1.02 * close.residual


def test_a_clean_curve_passes_through_its_points():
    for tuning in (measured("nm"), measured("mA")):
        assert tuning.residual < 1e-12 and len(tuning.turning_points) == 1
        np.testing.assert_allclose(tuning.weight_range[0], -1, atol=2e-3)
    # Rounding makes no turning points that count.
    rounded = tunings.MeasuredTuning(SHIFT, np.round(dip(SHIFT), 4), "nm")
    assert rounded.residual < 1e-4 and len(rounded.turning_points) == 1


def test_a_noisy_curve_through_all_points_is_told():
    control = np.linspace(0, 0.6, 81)
    weight = noisy(control, CURVES["nm"][1])
    with pytest.warns(UserWarning, match=r"turns at \d+ controls.*smoothing") as told:
        tuning = tunings.MeasuredTuning(control, weight, "nm", smoothing=0.0)
    assert len(told) == 1
    assert f"turns at {len(tuning.turning_points)} controls" in str(told[0].message)
    assert len(tuning.turning_points) > 5
    np.testing.assert_allclose(tuning.weight(control), weight, atol=1e-9)


def test_smoothing_is_the_distance_allowed():
    x = np.linspace(0, 1, 100)
    weight = noisy(x, dip, 0.02)
    for allowed in (0.015, 0.02, 0.03):
        tuning = tunings.MeasuredTuning(x, weight, "nm", smoothing=allowed)
        assert 0.8 * allowed < tuning.residual <= allowed
        assert len(tuning.turning_points) == 1
    with pytest.warns(UserWarning, match="more than smoothing=0.001 allows"):
        tunings.MeasuredTuning(x, weight, "nm", smoothing=0.001)


def test_what_no_resonance_explains_is_told():
    x = np.linspace(0, 0.6, 121)
    steps = dip(x, 0.3, 0.2) + 0.12 * np.sin(60 * x)
    with pytest.warns(UserWarning, match=r"stays 0\.\d+ \(rms\) away.*`smoothing`"):
        tunings.MeasuredTuning(x, steps, "nm")


# --- Ends of a measured curve


@pytest.mark.parametrize("unit", ["mA", "nm"])
def test_margin_in_nm_from_both_ends(unit):
    for margin, nm in ((None, 0.1), (0.0, 0.0), (0.25, 0.25)):
        tuning = measured(unit, margin=margin)
        low, high = (np.float64(end) for end in tuning.training_range)
        span = float(tuning.heater_shift(np.float64(tuning.control_range[1])))
        np.testing.assert_allclose(tuning.heater_shift(low), nm, atol=1e-12)
        np.testing.assert_allclose(tuning.heater_shift(high), span - nm)
    assert tunings.LorentzianTuning().training_range == (0, np.inf)
    for bad in (-0.1, 0.7, "wide"):
        with pytest.raises(ValueError, match=r"`margin`.*Received"):
            measured(unit, margin=bad)


@pytest.mark.parametrize("noise", [0.0, NOISE])
def test_a_curve_is_continued_below_its_first_point(noise):
    current = np.linspace(0.8, 2.5, 60)

    def curve(i):
        return 1.1 * dip(0.53 * 0.375 * np.square(i), 0.3, 0.1) - 0.05

    weight = noisy(current, curve, noise)
    assert tunings.MeasuredTuning(current, weight, "mA").control_range[0] == 0.8
    tuning = tunings.MeasuredTuning(current, weight, "mA", extend_below=True)
    assert tuning.control_range == (0.0, 2.5)
    below = np.linspace(0, 0.8, 30)
    np.testing.assert_allclose(
        tuning.weight(below), curve(below), atol=1e-3 + 3 * noise
    )
    assert len(tuning.turning_points) == 1
    joint = tuning.weight(0.8 + 1e-6 * np.array([-3.0, -1.0, 1.0, 3.0]))
    np.testing.assert_allclose(np.diff(joint, 2), 0, atol=1e-9)
    # And by the margin below 0, for rings that rest and are cooled.
    beyond = np.array([-0.1, -0.05, -0.01])
    rest = np.zeros(3)
    expected = 1.1 * dip(beyond, 0.3, 0.1) - 0.05
    np.testing.assert_allclose(
        tuning.weight(rest, beyond), expected, atol=1e-3 + 3 * noise
    )
    assert tuning.training_range[0] == 0.0
    with pytest.raises(ValueError, match="measured curve"):
        tuning.weight(0.0, -0.11)
    with pytest.raises(ValueError, match=r"`extend_below` must be False.*Lorentzian"):
        two = dip(current, 1.0, 0.1) + dip(current, 2.0, 0.2)
        tunings.MeasuredTuning(current, two, "mA", extend_below=True)


@pytest.mark.parametrize("unit", ["mA", "nm"])
def test_a_curve_from_rest_is_continued_below_it(unit):
    tuning = measured(unit, extend_below=True, margin=0.08)
    assert tuning.control_range == measured(unit).control_range
    np.testing.assert_allclose(tuning.weight(0.0, -0.08), dip(-0.08), atol=1e-3)
    # What only a cold ring has is no weight that a control gives.
    assert tuning.weight_range[1] == pytest.approx(measured(unit).weight_range[1])
    flank = tunings.MeasuredTuning(
        SHIFT[:30], -dip(SHIFT, -0.02)[:30], "nm", extend_below=True, margin=0.08
    )
    assert flank.weight_range[1] == pytest.approx(-dip(0.0, -0.02), abs=1e-3)
    np.testing.assert_allclose(flank.control(flank.weight_range[1]), 0.0, atol=1e-6)
    assert not any(turn < 0 for turn in flank.turning_points)


def test_falling_controls_are_turned_round():
    falling = tunings.MeasuredTuning(SHIFT[::-1], dip(SHIFT)[::-1], "nm")
    assert falling == measured()


@pytest.mark.parametrize(
    ("control", "weight", "unit", "parts"),
    [
        ("current_mA", "weight", "mA", 1),
        ("I (A)", "weight", "mA", 1e-3),
        ("I (µA)", " weight", "mA", 1e3),
        ("U / mV", "w", "V", 1e3),
        ("P (W)", "w", "mW", 1e-3),
        ("detuning_nm", "Weight (a.u.)", "nm", 1),
        ("Δλ / nm", "w", "nm", 1),
        ("Resonance shift (pm)", "w", "nm", 1e3),
    ],
)
def test_from_csv(tmp_path, control, weight, unit, parts):
    rows = [(weight, "t (s)", control), *zip(dip(SHIFT), SHIFT, SHIFT, strict=True)]
    path = written(tmp_path / "curve.csv", rows)
    tuning = tunings.MeasuredTuning.from_csv(path, resistance=300.0)
    expected = tunings.MeasuredTuning(SHIFT / parts, dip(SHIFT), unit, resistance=300.0)
    assert tuning == expected


@pytest.mark.parametrize("heading", ["Wavelength (nm)", "λ (nm)", "laser_nm", "x_nm"])
def test_a_sweep_of_the_laser_is_refused(tmp_path, heading):
    rows = zip(1550 + SHIFT, dip(SHIFT), strict=True)
    path = written(tmp_path / "scan.csv", [(heading, "weight"), *rows])
    with pytest.raises(ValueError, match=r"scan\.csv, line 1.*laser.*Received"):
        tunings.MeasuredTuning.from_csv(path)
    # However it is named: no resonance shifts so far.
    with pytest.raises(ValueError, match=r"control.*laser.*Received: 1550"):
        tunings.MeasuredTuning(1550 + SHIFT, dip(SHIFT), "nm")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("current,weight\n0,0\n", "line 1.*mA, V, mW or nm"),
        ("a_mA,b_nm,weight\n0,0,0\n", "line 1.*one control"),
        ("c_mA,weight\n0,0\n1,1\n2,2\n", "at least 4 points"),
        ("c_mA,weight\n0,0\n1,1\n2,x\n3,3\n", "line 4.*finite number"),
        ("c_mA,weight\n0,0\n2,1\n1,2\n3,3\n", "line 4.*monotonic"),
        ("c_mA,weight\n-1,0\n1,1\n2,2\n3,3\n", "line 2.*≥ 0"),
        ("c_mA,weight\n0,1\n1,1\n2,1\n3,1\n", "constant"),
    ],
)
def test_bad_csv(tmp_path, text, match):
    path = tmp_path / "ring.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=f"ring.csv.*{match}.*Received"):
        tunings.MeasuredTuning.from_csv(path)


# --- Other constructors


POINTS = {"control": [0, 1, 2, 3], "weight": [0, 1, 2, 3], "unit": "mA"}


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (tunings.LorentzianTuning, {"half_width": 0.0}),
        (
            tunings.HeaterTuning,
            {"offset": np.nan, "half_width": -1, "efficiency": 0, "resistance": 0}
            | {"port": "add", "max_current": 0, "through_min": 1.0, "drop_max": 1.1},
        ),
        (
            functools.partial(tunings.MeasuredTuning, **POINTS),
            {"control": [0, 1, 2, np.nan], "weight": [0, np.inf, 2, 3], "unit": "ma"}
            | {"efficiency": -1.0, "resistance": 0.0, "smoothing": -1.0},
        ),
    ],
)
def test_bad_arguments(make, arguments):
    for name, value in arguments.items():
        with pytest.raises(ValueError, match=f"`{name}`.*Received"):
            make(**{name: value})


def test_bad_points_and_ports():
    with pytest.raises(ValueError, match=r"`through_min \+ drop_max`.*Received"):
        tunings.HeaterTuning(through_min=0.1)
    for control, name in (
        ([0, 1, 2], "control"),
        ([0, 1, 1, 3], "control\\[2\\]"),
        ([-1, 1, 2, 3], "control\\[0\\]"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`.*Received"):
            tunings.MeasuredTuning(control, POINTS["weight"], "nm")


def test_get():
    assert tunings.get() == tunings.LorentzianTuning()
    assert tunings.get("heater") == tunings.HeaterTuning()
    assert tunings.get("LorentzianTuning") == tunings.LorentzianTuning()
    tuning = measured()
    assert tunings.get(tuning) is tuning
    plain = {"class_name": "HeaterTuning", "config": {"offset": 0.1}}
    assert tunings.get(plain) == tunings.HeaterTuning(0.1)
    for bad in ("linear", 3, {"offset": 1}, tunings.HeaterTuning):
        with pytest.raises(ValueError, match=r"`tuning` must be.*Received"):
            tunings.get(bad)
