import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pnn.layers import ADC, BalancedDetector, Photodetector, ShotNoise
from keras_pnn.physics import detection

LAYERS = [
    lambda **k: Photodetector(**k),
    lambda **k: Photodetector(normalize="l2", ports=[5, 0, 3], **k),
    lambda **k: Photodetector(ports=2, **k),
    lambda **k: Photodetector(ports=[[5, 0], 3, (1, 2)], **k),
    lambda **k: BalancedDetector(**k),
    lambda **k: BalancedDetector(plus=[5, 1], minus=[0, 2], **k),
    lambda **k: ShotNoise(photons=100, seed=1, **k),
    lambda **k: ADC(bits=3, low=-1.0, high=2.0, **k),
]
OF_FIELDS = LAYERS[:6]


@pytest.fixture
def field():
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(2, 4, 6))
    return parts[0] + 1j * parts[1]


# --- Closed forms.


def test_intensity_of_all_and_of_some_ports(field):
    light = np.abs(field) ** 2
    for ports, read in ((None, range(6)), (2, [0, 1]), ((5, 0, 3), [5, 0, 3])):
        layer = Photodetector(ports=ports, dtype="float64")
        np.testing.assert_allclose(layer(field), light[:, list(read)], rtol=1e-14)
        np.testing.assert_allclose(layer(field.real), field.real[:, read] ** 2)
    ports = np.array([4, 1])
    np.testing.assert_allclose(Photodetector(ports=ports)(field), light[:, ports], 1e-6)


def test_groups_of_ports_are_summed(field):
    light = np.abs(field) ** 2
    layer = Photodetector("l2", ports=[[0, 2, 4], 5, np.array([1])], dtype="float64")
    light /= np.linalg.norm(light, axis=-1, keepdims=True)
    expected = [light[:, [0, 2, 4]].sum(-1), light[:, 5], light[:, 1]]
    np.testing.assert_allclose(layer(field), np.stack(expected, -1), rtol=1e-13)
    again = Photodetector.from_config(layer.get_config())
    assert again.ports == layer.ports == ((0, 2, 4), 5, (1,))
    for wrong in ([[0, 1], [1, 2]], [[0, 1], []], [[0, 1], 0], [[0, [1]]], [["a"]]):
        with pytest.raises(ValueError, match="`ports` must be"):
            Photodetector(ports=wrong)
    with pytest.raises(ValueError, match=r"port 6"):
        Photodetector(ports=[[0, 6], [1]])(field)


def test_the_norm_is_over_all_ports_before_some_are_read(field):
    light = np.abs(field) ** 2
    expected = (light / np.linalg.norm(light, axis=-1, keepdims=True))[:, :2]
    layer = Photodetector(normalize="l2", ports=2, dtype="float64")
    np.testing.assert_allclose(layer(field), expected, rtol=1e-13)
    flat = tf.math.l2_normalize(light, axis=-1)
    layer = Photodetector("l2", dtype="float64")
    np.testing.assert_allclose(layer(field), flat, rtol=1e-13)


@settings(max_examples=25, deadline=None)
# Beyond, the intensity of a faint port is no normal number of float32, and counts as 0.
@given(st.integers(0, 10**6), st.floats(-15, 15))
def test_normalised_intensity_does_not_depend_on_power(seed, decades):
    field = np.random.default_rng(seed).normal(size=(2, 5)).astype("complex64")
    light = Photodetector("l2")(field).numpy()
    np.testing.assert_allclose(np.linalg.norm(light, axis=-1), 1, rtol=1e-5)
    scaled = Photodetector("l2")((field * 10**decades).astype("complex64"))
    np.testing.assert_allclose(scaled, light, rtol=1e-4, atol=1e-6)


def test_balanced_pairs(field):
    light = np.abs(field) ** 2
    layer = BalancedDetector(dtype="float64")
    np.testing.assert_allclose(layer(field), light[:, ::2] - light[:, 1::2], 1e-13)
    layer = BalancedDetector(plus=[5, 1], minus=[0, 2], dtype="float64")
    expected = light[:, [5, 1]] - light[:, [0, 2]]
    np.testing.assert_allclose(layer(field), expected, rtol=1e-13)


def test_quantize_is_the_converter():
    x = np.linspace(-2, 3, 101).astype("float32")[None]
    layer = ADC(3, low=-1.0, high=2.0)
    np.testing.assert_array_equal(layer(x), detection.quantize(x, 3, -1.0, 2.0))


def test_shot_noise_acts_in_inference_and_is_seeded():
    x = np.full((200, 50), 2.0, "float32")
    layer = ShotNoise(photons=50, seed=7)
    first, second = layer(x, training=False).numpy(), layer(x).numpy()
    for noisy in (first, second):
        assert abs(noisy.mean() - 2) < 4 * np.sqrt(0.04 / x.size)
        assert abs(noisy.var() - 0.04) < 4 * 0.04 * np.sqrt(2.01 / x.size)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / 100
    again = ShotNoise(photons=50, seed=7)
    np.testing.assert_array_equal(again(x), first)
    np.testing.assert_array_equal(again(x), second)
    assert np.any(ShotNoise(photons=50, seed=8)(x) != first)
    assert ShotNoise(50).trainable_variables == []


# --- Gradients.


@pytest.mark.parametrize("make", OF_FIELDS)
def test_gradient_against_finite_differences(make, field):
    layer = make(dtype="float64")
    weights = np.random.default_rng(1).normal(size=layer(field).shape)

    def loss(real, imaginary):
        return tf.reduce_sum(layer(tf.complex(real, imaginary)) ** 2 * weights)

    parts = [tf.constant(field.real), tf.constant(field.imag)]
    exact, numeric = tf.test.compute_gradient(loss, parts, 1e-5)
    np.testing.assert_allclose(exact, numeric, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("faint", [0.0, 1e-30, 1e-20, 1e-10])
def test_darkness_is_zero_with_finite_gradients(faint):
    parts = tf.constant([[faint, 0.0, 0.0], [1.0, 0.0, 2.0]])
    layer = Photodetector(normalize="l2")
    with tf.GradientTape() as tape:
        tape.watch(parts)
        light = layer(tf.complex(parts, tf.zeros_like(parts)))
        loss = tf.reduce_sum(light * [1.0, 2.0, 3.0])
    if faint < 1e-19:
        np.testing.assert_array_equal(light[0], [0, 0, 0])
    else:
        np.testing.assert_allclose(light[0], [1, 0, 0], rtol=1e-6)
    gradient = tape.gradient(loss, parts).numpy()
    assert np.all(np.isfinite(gradient))
    # A single bright port is 1 whatever its power.
    assert abs(gradient[0, 0] * max(faint, 1e-30)) < 1e-6


# --- Keras.


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize(
    "policy", ["float32", "mixed_float16", "mixed_bfloat16", "float64"]
)
@pytest.mark.parametrize("dtype", ["complex64", "complex128", "float32", "float64"])
def test_symbolic_dtype_and_shape_are_the_real_ones(make, policy, dtype):
    layer = make(dtype=policy)
    takes_fields = isinstance(layer, (Photodetector, BalancedDetector))
    if "complex" in dtype and not takes_fields:
        pytest.skip("real inputs only")
    symbolic = layer(keras.Input((6,), dtype=dtype))
    assert symbolic.dtype == ("float64" if policy == "float64" else "float32")
    outputs = layer(np.ones((3, 6), dtype) * 300)
    assert outputs.dtype == symbolic.dtype
    assert outputs.shape[1:] == symbolic.shape[1:]
    assert symbolic.shape[0] is None
    assert np.all(np.isfinite(outputs))
    assert tuple(layer.compute_output_shape((None, 6))) == symbolic.shape


def test_real_inputs_keep_their_precision_in_mixed_precision():
    x = np.array([[1 + 2**-12, 500.0]], "float32")
    light = Photodetector(dtype="mixed_float16")(x)
    np.testing.assert_array_equal(light, x * x)


@pytest.mark.parametrize("make", LAYERS)
def test_masks_pass(make):
    x = np.ones((2, 3, 6), "float32")
    masked = keras.layers.Masking()(x)
    outputs = make()(masked)
    np.testing.assert_array_equal(
        keras.src.backend.get_keras_mask(outputs), np.ones((2, 3), bool)
    )
    assert outputs.shape[:2] == (2, 3)


def test_fields_under_jit_and_vectorized_map(field):
    for make in OF_FIELDS:
        layer = make(dtype="float64")
        expected = layer(field)
        jitted = tf.function(layer, jit_compile=True)(field)
        np.testing.assert_allclose(jitted, expected, rtol=1e-12)
        stacked = tf.constant(np.stack([field, 2 * field]))
        mapped = tf.vectorized_map(layer, stacked, fallback_to_while_loop=False)
        np.testing.assert_allclose(mapped[0], expected, rtol=1e-12)


# --- Arguments that cannot be.


def test_negative_intensity_is_refused_eagerly_and_nan_in_a_graph():
    x = np.array([[-0.5, 1.0]], "float32")
    layer = ShotNoise(10, seed=0)
    with pytest.raises(ValueError, match=r"`intensity`.*Received"):
        layer(x)
    np.testing.assert_array_equal(np.isnan(tf.function(layer)(x)), [[True, False]])
