import keras
import numpy as np
import pytest
import tensorflow as tf
from transforms import assert_same_when_transformed, gradients

from keras_pnn.physics import heater


def test_the_chip_needs_half_a_milliwatt_for_0_3_nm():
    np.testing.assert_allclose(heater.power(1.229), 0.566, atol=5e-4)
    np.testing.assert_allclose(heater.resonance_shift(1.229), 0.3, atol=5e-4)
    current = heater.current_for_shift(np.float64(0.3), 0.53, 375.0)
    np.testing.assert_allclose(current, 1.229, atol=5e-4)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-5)])
def test_closed_form(dtype, rtol):
    current = np.linspace(0, 5, 11).astype(dtype)
    shift = heater.resonance_shift(current, 0.4, 200.0)
    assert shift.dtype == dtype
    np.testing.assert_allclose(shift, 0.4 * current**2 * 0.2, rtol=rtol)


@pytest.mark.parametrize(
    "current, resistance, dtype",
    [
        (0.1, 375.0, "float32"),
        (np.ones(2), 375.0, "float64"),
        (np.ones(2, int), 375.0, "float32"),
        (np.float64(1.0), 375.0, "float64"),
        (tf.ones(2, "float16"), 375.0, "float32"),
        (tf.ones(2), np.float64(375.0), "float32"),
        (tf.ones(2), np.ones(2), "float64"),
        (keras.Variable([2.0]), 375.0, "float32"),
    ],
)
def test_the_widest_array_decides_the_dtype(current, resistance, dtype):
    found = heater.power(current, resistance)
    assert found.dtype == dtype
    expected = np.square(np.asarray(current)) * np.asarray(resistance) / 1000
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_crosstalk_sums_over_heaters():
    crosstalk = np.array([[1.0, 0.2, 0.0], [0.1, 1.0, 0.3], [0.0, 0.4, 1.0]])
    current = np.random.default_rng(0).uniform(0, 2, (4, 3))
    shift = heater.resonance_shift(current, crosstalk=crosstalk)
    expected = 0.53 * (current**2 * 0.375) @ crosstalk.T
    np.testing.assert_allclose(shift, expected, rtol=1e-12)
    one_dimensional = heater.resonance_shift(current[0], crosstalk=crosstalk)
    np.testing.assert_allclose(one_dimensional, expected[0], rtol=1e-12)


def test_crosstalk_matrix_by_distance():
    matrix = heater.crosstalk_matrix(np.array([0.0, 50.0, 120.0]), 0.1, 40.0).numpy()
    expected = 0.1 * np.exp(-np.array([[0, 50, 120], [50, 0, 70], [120, 70, 0]]) / 40)
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(matrix, expected, rtol=1e-12)


def test_gradients():
    current, h = np.array([0.0, 0.7, 2.0]), 1e-6
    crosstalk = heater.crosstalk_matrix(np.arange(3.0), 0.3, 2.0)

    def loss(x):
        return tf.reduce_sum(heater.resonance_shift(x, crosstalk=crosstalk) ** 2)

    def by_loss(x):
        return gradients(loss, [x])

    steps = h * np.eye(3)
    numeric = [(loss(current + s) - loss(current - s)) / (2 * h) for s in steps]
    (exact,) = by_loss(tf.constant(current))
    np.testing.assert_allclose(exact, numeric, atol=1e-7)
    assert_same_when_transformed(by_loss, tf.constant([current, current[::-1]]))


def test_positions_have_a_finite_gradient():
    positions = tf.constant([[0.0, 0.0], [1.0, 2.0]], "float64")
    (slope,) = gradients(lambda p: heater.crosstalk_matrix(p, 0.1, 1.0), [positions])
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: heater.power(np.nan), "current"),
        (lambda: heater.power(np.array([1j])), "current"),
        (lambda: heater.power(1.0, 0.0), "resistance"),
        (lambda: heater.resonance_shift(1.0, efficiency=-1.0), "efficiency"),
        (lambda: heater.resonance_shift([1.0], crosstalk=np.eye(2)), "crosstalk"),
        (lambda: heater.resonance_shift(1.0, crosstalk=np.eye(1)), "crosstalk"),
        (lambda: heater.resonance_shift([1.0], crosstalk=[[np.nan]]), "crosstalk"),
        (lambda: heater.crosstalk_matrix([0.0, np.nan], 0.1, 1.0), "positions"),
        (lambda: heater.crosstalk_matrix(np.zeros((1, 1, 1)), 0.1, 1.0), "positions"),
        (lambda: heater.crosstalk_matrix([0.0], -0.1, 1.0), "coefficient"),
        (lambda: heater.crosstalk_matrix([0.0], 0.1, 0.0), "decay_length"),
    ],
)
def test_bad_input(call, name):
    with pytest.raises(ValueError, match=f"`{name}`.*Received"):
        call()


def test_neighbours_in_rows_and_columns():
    matrix = heater.nearest_neighbour((2, 3), 0.1)
    expected = np.eye(6)
    for i, j in ((0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)):
        expected[i, j] = expected[j, i] = 0.1
    np.testing.assert_array_equal(matrix, expected)
    for shape, share in (((0, 2), 0.1), ((2, 2), 1.1), ((2, 2), -0.1)):
        with pytest.raises(ValueError, match="Received"):
            heater.nearest_neighbour(shape, share)
