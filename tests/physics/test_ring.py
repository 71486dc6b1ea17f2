import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from transforms import assert_same_when_transformed, gradients

from keras_pnn.physics import ring

fraction = st.floats(0.0, 0.999)


def textbook_add_drop(phase, r1, r2, a):
    phase = np.asarray(phase, np.longdouble)
    denominator = 1 - 2 * r1 * r2 * a * np.cos(phase) + (r1 * r2 * a) ** 2
    through = (r2 * a) ** 2 - 2 * r1 * r2 * a * np.cos(phase) + r1**2
    return through / denominator, (1 - r1**2) * (1 - r2**2) * a / denominator


def numpy_row(detuning, half_width):
    square = (detuning / half_width) ** 2
    through, drop = square / (1 + square), 1 / (1 + square)
    before = np.cumprod(through, axis=-2) / through
    return through.prod(axis=-2), (drop * before).sum(axis=-2)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-6), ("float32", 1e-4)])
def test_add_drop_matches_the_textbook_form(dtype, rtol):
    phase = np.array([1e-3, 3e-3, 0.01, 0.1, 1.0, 3.0, -0.5], dtype)
    exact = textbook_add_drop(phase, 0.98, 0.97, 0.995)
    for got, expected in zip(
        ring.add_drop(phase, 0.98, 0.97, 0.995), exact, strict=True
    ):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected.astype("float64"), rtol=rtol)


@pytest.mark.parametrize("amplitude", [1.0, np.float64(1.0)])
def test_add_drop_without_loss_keeps_all_light(amplitude):
    phase = np.linspace(-4, 4, 41)
    through, drop = ring.add_drop(phase, 0.9, 0.8, amplitude)
    np.testing.assert_allclose(through + drop, 1, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-6), ("float32", 1e-4)])
def test_lorentzian_closed_form(dtype, rtol):
    detuning = np.array([1e-4, 1e-3, 0.05, 0.15, 1.0, 30.0], dtype)
    square = (detuning.astype("float64") / 0.15) ** 2
    through, drop = ring.lorentzian(detuning, 0.15, 0.0, 0.9)
    np.testing.assert_allclose(through, square / (1 + square), rtol=rtol)
    np.testing.assert_allclose(drop, 0.9 / (1 + square), rtol=rtol)


def test_lorentzian_is_the_add_drop_ring_near_resonance():
    r, phase = 0.99, np.linspace(-0.02, 0.02, 11)
    half_width = (1 - r**2) / r
    expected = ring.add_drop(phase, r, r, 1.0)
    for got, exact in zip(ring.lorentzian(phase, half_width), expected, strict=True):
        np.testing.assert_allclose(got, exact, atol=1e-4)


@pytest.mark.parametrize("rings", [1, 2, 3, 5, 8])
def test_row_matches_the_products(rings):
    rng = np.random.default_rng(rings)
    detuning = rng.uniform(0.02, 1.0, (2, rings, 4))
    through, drop = ring.wdm_row(detuning, 0.077)
    expected = numpy_row(detuning, 0.077)
    np.testing.assert_allclose(through, expected[0], rtol=1e-9)
    np.testing.assert_allclose(drop, expected[1], rtol=1e-9)


def test_row_meets_ring_0_first_and_takes_parameters_per_ring():
    detuning = np.zeros((2, 1))
    most = np.array([[0.3], [0.9]])
    through, drop = ring.wdm_row(detuning, 0.1, 0.1, most)
    np.testing.assert_allclose(through, [0.01])
    np.testing.assert_allclose(drop, [0.3 + 0.1 * 0.9])


def row_loss(detuning):
    through, drop = ring.wdm_row(detuning, 0.3)
    return tf.reduce_sum((through - drop) ** 2 + drop)


def test_row_gradient_with_rings_on_resonance():
    rng = np.random.default_rng(0)
    detuning = rng.uniform(-0.5, 0.5, (3, 2))
    # All T of channel 0 are exactly 0, one of channel 1.
    detuning[:, 0] = 0
    detuning[1, 1] = 0
    x = tf.constant(detuning)
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(x)
        (gradient,) = gradients(row_loss, [x])
    hessian = tf.reshape(
        outer.jacobian(gradient, x, experimental_use_pfor=False), (6, 6)
    ).numpy()

    graph = tf.function(row_loss)

    def numeric_gradient(at):
        at = tf.constant(at)
        steps = 1e-5 * np.eye(6).reshape(6, 3, 2)
        return np.array([graph(at + s) - graph(at - s) for s in steps]) / 2e-5

    np.testing.assert_allclose(
        gradient.numpy().ravel(), numeric_gradient(detuning), atol=1e-7
    )
    steps = 1e-4 * np.eye(6).reshape(6, 3, 2)
    numeric_hessian = [
        (numeric_gradient(detuning + s) - numeric_gradient(detuning - s)) / 2e-4
        for s in steps
    ]
    np.testing.assert_allclose(hessian, numeric_hessian, atol=1e-4)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-10)


def test_transformed():
    x = tf.constant(np.random.default_rng(1).uniform(-1, 1, (4, 3, 2)))
    assert_same_when_transformed(lambda each: gradients(row_loss, [each]), x)
    assert_same_when_transformed(lambda p: ring.add_drop(p, 0.9, 0.8, 0.99), x)


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (ring.lorentzian, (0.1, [0.1, -0.2]), "half_width"),
        (ring.lorentzian, (float("nan"), 0.1), "detuning"),
        (ring.lorentzian, (float("inf"), 0.1), "detuning"),
        (ring.lorentzian, (0.1, tf.constant(float("nan"))), "half_width"),
        (ring.lorentzian, (0.1, None), "half_width"),
        (ring.lorentzian, (0.1, 0.1, 1.5), "through_min"),
        (ring.lorentzian, (0.1, 0.1, 0.2, 0.9), "through_min \\+ drop_max"),
        (ring.add_drop, (0.1, 1.1, 0.9, 1.0), "r1"),
        (ring.add_drop, (0.1, 0.9, -0.1, 1.0), "r2"),
        (ring.add_drop, (0.1, 0.9, 0.9, "a"), "amplitude"),
        (ring.add_drop, (0.0, 1.0, 1.0, 1.0), "r1 \\* r2 \\* amplitude"),
        (ring.add_drop, (np.inf, 0.9, 0.9, 1.0), "phase"),
        (ring.wdm_row, ([0.1, 0.2], 0.1), "detuning"),
        (ring.wdm_row, (np.zeros((0, 2)), 0.1), "detuning"),
    ],
)
def test_bad_input(function, arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`.*Received"):
        function(*arguments)


def test_checks_leave_graph_tensors_alone():
    graph = tf.function(lambda x, width: ring.lorentzian(x, width)[0])
    assert np.isnan(graph(tf.constant(np.nan), tf.constant(0.1)))
