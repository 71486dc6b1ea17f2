import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transforms import assert_same_when_transformed, gradients

from keras_pnn.physics import detection


def second_derivative(function, x):
    (second,) = gradients(lambda x: gradients(function, [x])[0], [x])
    return second


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_levels(dtype):
    x = np.linspace(-2, 2, 401).astype(dtype)
    y = detection.quantize(x, 3, -1.0, 1.0)
    assert y.dtype == dtype
    levels = np.linspace(-1, 1, 8)
    nearest = levels[np.abs(np.clip(x, -1, 1)[:, None] - levels).argmin(axis=1)]
    assert len(np.unique(y)) == 8
    tie = np.abs(np.abs(np.clip(x, -1, 1) - nearest) - 1 / 7) < 1e-6
    np.testing.assert_allclose(y[~tie], nearest[~tie], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-1e3, 1e3),
    st.integers(1, 24),
    st.floats(-10, 10, allow_subnormal=False),  # TensorFlow takes those for 0.
    st.floats(0.1, 10),
)
def test_error_is_half_a_step_and_levels_stay(x, bits, low, span):
    high, x = low + span, np.float64(x)
    y = detection.quantize(x, bits, low, high).numpy()
    step = span / (2**bits - 1)
    assert abs(y - np.clip(x, low, high)) <= step / 2 + 1e-9
    assert low <= y <= high
    np.testing.assert_allclose(detection.quantize(y, bits, low, high), y, atol=1e-12)


def test_straight_through_gradient():
    x = tf.constant([-1.5, -1.0, -0.3, 0.4, 1.0, 1.5])
    (slope,) = gradients(lambda x: detection.quantize(x, 4, -1.0, 1.0), [x])
    np.testing.assert_array_equal(slope, [0, 1, 1, 1, 1, 0])


def test_second_derivative():
    x = tf.constant(np.linspace(-1.5, 1.5, 6).reshape(3, 2))

    def second(x):
        return second_derivative(lambda x: detection.quantize(x, 3, -1.0, 1.0) ** 3, x)

    expected = 6 * detection.quantize(x, 3, -1.0, 1.0).numpy() * (np.abs(x) <= 1)
    np.testing.assert_allclose(second(x), expected)
    assert_same_when_transformed(second, x)


# --- The square law.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("complex64", "float32"),
        ("complex128", "float64"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int32", "float32"),
    ],
)
def test_intensity_values_and_dtypes(given, expected):
    turned = 1j if "complex" in given else 1
    field = (np.array([3.0, -4.0, 0.0]) * turned).astype(given)
    for value in (field, tf.constant(field)):
        light = detection.intensity(value)
        assert light.dtype == expected
        np.testing.assert_array_equal(light, [9, 16, 0])


def test_intensity_of_python_numbers_has_the_precision_of_keras():
    assert detection.intensity([1 + 1j, 2]).dtype == "float32"
    assert detection.intensity(2.0).dtype == "float32"
    np.testing.assert_array_equal(detection.intensity([1 + 1j, 2]), [2, 4])
    before = keras.config.floatx()
    try:
        keras.config.set_floatx("float64")
        assert detection.intensity([1 + 1j, 2]).dtype == "float64"
        assert detection.intensity([1.5]).dtype == "float64"
    finally:
        keras.config.set_floatx(before)


def test_intensity_gradient_in_the_dark_and_elsewhere():
    parts = tf.constant([[0.0, 0.0], [0.3, -1.2]], tf.float64)

    def light(parts):
        return detection.intensity(tf.complex(parts[:, 0], parts[:, 1]))

    np.testing.assert_array_equal(gradients(light, [parts])[0], 2 * parts)
    np.testing.assert_array_equal(second_derivative(light, parts), np.full((2, 2), 2.0))


def test_balanced_is_the_difference_of_intensities():
    np.testing.assert_array_equal(
        detection.balanced(np.array([1.0, 2.0]), 0.5), [0.5, 1.5]
    )
    with pytest.raises(ValueError, match="complex128"):
        detection.balanced(np.array([1j]), 0.5)


# --- Shot noise.


def test_counts_are_poisson_quantiles():
    uniform = (np.arange(20000) + 0.5) / 20000
    normal = stats.norm.ppf(uniform)
    for mean in (0.0, 0.01, 1.0, 9.9, 10.0, 30.0, 1000.0):
        draw = detection._few if mean < 10 else detection._many
        counts = draw(tf.fill(normal.shape, tf.constant(mean, tf.float64)), normal)
        off = np.abs(counts - stats.poisson.ppf(uniform, mean))
        assert off.max() <= 1
        assert off.mean() <= (1e-3 if mean < 10 else 0.003)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("light", [0.002, 0.3, 1.5, 40.0])
def test_mean_variance_and_granularity_of_shot_noise(light, dtype):
    n, photons = 40000, 8.0
    x = np.full(n, light, dtype)
    noisy = detection.shot_noise(x, photons, seed=(3, 4))
    assert noisy.dtype == dtype
    noisy = noisy.numpy().astype("float64")
    counts = noisy * photons
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    assert counts.min() >= 0
    variance = light / photons
    assert abs(noisy.mean() - light) < 4 * np.sqrt(variance / n)
    # The variance of a squared deviation, with the kurtosis of a Poisson count.
    spread = variance * np.sqrt((2 + 1 / (light * photons)) / n)
    assert abs(noisy.var() - variance) < 4 * spread


def test_shot_noise_is_a_pure_function_of_the_seed():
    x = np.full(500, 2.0, "float32")
    first = detection.shot_noise(x, 10.0, (1, 2)).numpy()
    np.testing.assert_array_equal(detection.shot_noise(x, 10.0, (1, 2)), first)
    as_tensor = detection.shot_noise(x, 10.0, tf.constant([1, 2], tf.int64))
    np.testing.assert_array_equal(as_tensor, first)
    assert not np.any(detection.shot_noise(np.zeros(1000), 10.0, (1, 2)))
    for other in ((1, 3), (2, 2), (2, 1)):
        draws = detection.shot_noise(x, 10.0, other).numpy()
        assert abs(np.corrcoef(draws, first)[0, 1]) < 4 / np.sqrt(len(x))
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 4 / np.sqrt(len(x))


def test_shot_noise_gradient_is_straight_through():
    x = tf.constant([0.0, 0.4, 5.0, 60.0], tf.float64)
    upstream = tf.constant([1.0, -2.0, 3.0, 4.0], tf.float64)
    photons = tf.constant([3.0, 30.0, 1.0, 2.0], tf.float64)

    def noisy(x, photons):
        return detection.shot_noise(x, photons, (1, 2)) * upstream

    by_x, by_photons = gradients(noisy, [x, photons])
    np.testing.assert_array_equal(by_x, upstream)
    assert by_photons is None


def test_shot_noise_under_jit_and_vectorized_map():
    x = tf.constant([[0.1, 0.7, 4.0, 90.0], [0.3, 2.0, 8.0, 300.0]], tf.float64)
    seeds = tf.constant([[1, 2], [1, 3]])

    def noisy_and_curvature(pair):
        def noisy(x):
            return detection.shot_noise(x, 2.0, pair[1])

        return noisy(pair[0]), second_derivative(lambda x: noisy(x) ** 3, pair[0])

    def mapped(x, seeds):
        return tf.vectorized_map(
            noisy_and_curvature, (x, seeds), fallback_to_while_loop=False
        )

    noisy, curvature = mapped(x, seeds)
    for row in range(2):
        alone = detection.shot_noise(x[row], 2.0, seeds[row])
        np.testing.assert_allclose(noisy[row], alone)
    np.testing.assert_allclose(curvature, 6 * noisy)
    jitted = tf.function(mapped, jit_compile=True)
    noisy, curvature = jitted(x, seeds)
    np.testing.assert_allclose(curvature, 6 * noisy)
    np.testing.assert_allclose(noisy * 2, np.round(noisy * 2))
    assert np.all(np.abs(noisy - x) < 6 * np.sqrt(x / 2) + 2)
    np.testing.assert_array_equal(jitted(x, seeds)[0], noisy)


def test_what_cannot_be_counted_is_nan_in_a_graph():
    noisy = tf.function(lambda x: detection.shot_noise(x, 2.0, (1, 2)))
    out = noisy(tf.constant([-1e-3, np.nan, 0.0, 20.0])).numpy()
    np.testing.assert_array_equal(np.isnan(out), [True, True, False, False])


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (detection.quantize, (0.0, 25, 0.0, 1.0), "bits"),
        (detection.quantize, (0.0, 2.0, 0.0, 1.0), "bits"),
        (detection.quantize, (np.nan, 2, 0.0, 1.0), "x"),
        (detection.quantize, (0.0, 2, 1.0, 1.0), "high - low"),
        (detection.quantize, (0.0, 2, -np.inf, 1.0), "low"),
        (detection.quantize, (0.0, 2, 0.0, np.nan), "high"),
        (detection.shot_noise, (-0.1, 1.0, (0, 0)), "intensity"),
        (detection.shot_noise, (np.array([1j]), 1.0, (0, 0)), "intensity"),
        (detection.shot_noise, (1.0, 0.0, (0, 0)), "photons"),
        (detection.shot_noise, (1.0, 1.0, 3), "seed"),
        (detection.shot_noise, (1.0, 1.0, (1, 2, 3)), "seed"),
        (detection.shot_noise, (1.0, 1.0, (1.0, 2.0)), "seed"),
        (detection.shot_noise, (1.0, 1.0, None), "seed"),
    ],
)
def test_bad_input(function, arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`.*Received"):
        function(*arguments)
