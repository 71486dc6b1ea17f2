"""The MZI cell against a product of its parts, and against its printed forms."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_product import cell as by_parts

from keras_pnn.physics import interferometer

ANGLES = st.floats(-10, 10)
SMALL = st.floats(-0.7, 0.7)


def cell(theta, phi, *args, **kwargs):
    theta, phi = np.float64(theta), np.float64(phi)
    return interferometer.transfer_matrix(theta, phi, *args, **kwargs).numpy()


@settings(max_examples=50, deadline=None)
@given(ANGLES, ANGLES, SMALL, SMALL)
def test_cell_is_the_product_of_its_parts(theta, phi, first, second):
    found = cell(theta, phi, np.array([first, second]))
    np.testing.assert_allclose(found, by_parts(theta, phi, first, second), atol=1e-14)
    np.testing.assert_allclose(found @ found.conj().T, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(found), np.exp(1j * phi), atol=1e-13)


@pytest.mark.parametrize("theta", [0.0, 0.7, np.pi])
def test_convention_of_the_ideal_cell(theta):
    """Cross at θ = 0, bar at θ = π, φ at the upper output."""
    sin, cos, phase = np.sin(theta / 2), np.cos(theta / 2), np.exp(0.3j)
    expected = 1j * np.array([[phase * sin, phase * cos], [cos, -sin]])
    np.testing.assert_allclose(cell(theta, 0.3), expected, atol=1e-15)


@pytest.mark.parametrize("theta", [0.0, 0.7, 4.0])
@pytest.mark.parametrize("left, right", [(0.3, -0.2), (0.0, 0.4), (-0.5, 0.0)])
def test_imbalance_form_of_the_splitters(theta, left, right):
    """The cell as it is written with power imbalances l and r."""
    p, q = np.exp(0.5j * theta), np.exp(-0.5j * theta)
    a, b = np.sqrt((1 + left) * (1 + right)), np.sqrt((1 - left) * (1 - right))
    c, d = np.sqrt((1 - left) * (1 + right)), np.sqrt((1 + left) * (1 - right))
    expected = 0.5 * np.array(
        [[a * p - b * q, 1j * (c * p + d * q)], [1j * (d * p + c * q), -b * p + a * q]]
    )
    error = interferometer.angle_from_imbalance(np.array([left, right]))
    np.testing.assert_allclose(cell(theta, 0, error), expected, atol=1e-15)


def test_imbalance_and_angle_are_inverse():
    imbalance = np.linspace(-1, 1, 21)
    angle = interferometer.angle_from_imbalance(imbalance)
    back = interferometer.imbalance_from_angle(angle)
    np.testing.assert_allclose(back, imbalance, atol=1e-15)
    np.testing.assert_allclose(angle[0], np.pi / 4)
    # The power that goes straight on is (1 + e) / 2.
    through = np.cos(np.pi / 4 + angle.numpy()) ** 2
    np.testing.assert_allclose(through, (1 + imbalance) / 2, atol=1e-15)


def test_loss_is_in_decibels_of_power():
    power = np.abs(cell(1.0, 0.5, loss_db=3.0) @ [1, 0]) ** 2
    np.testing.assert_allclose(power.sum(), 10**-0.3, rtol=1e-14)


def test_arguments_broadcast():
    theta, phi = np.ones((3, 1)), np.ones((1, 4))
    cells = interferometer.transfer_matrix(theta, phi, np.zeros((5, 1, 1, 2)))
    assert cells.shape == (5, 3, 4, 2, 2)
    assert cells.dtype == tf.complex128
    assert interferometer.transfer_matrix(1.0, 0.0).dtype == tf.complex64
    # A number is the error of both splitters.
    np.testing.assert_array_equal(cell(1.0, 0.3, 0.1), cell(1.0, 0.3, [0.1, 0.1]))


def test_gradients():
    values = [np.float64(0.7), np.float64(-0.4), np.array([0.1, -0.2]), np.float64(0.3)]
    weights = np.random.default_rng(0).normal(size=(2, 2, 2))

    def number(*args):
        cell = interferometer.transfer_matrix(*args)
        return tf.reduce_sum(weights[0] * tf.math.real(cell)) + tf.reduce_sum(
            weights[1] * tf.math.imag(cell) ** 2
        )

    exact, numeric = tf.test.compute_gradient(
        number, [tf.constant(v) for v in values], 1e-5
    )
    for a, b in zip(exact, numeric, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"theta": np.nan}, "`theta` must be finite"),
        ({"phi": np.inf}, "`phi` must be finite"),
        ({"splitter_error": [np.nan, 0.0]}, "`splitter_error` must be finite"),
        ({"splitter_error": [0.1, 0.1, 0.1]}, "last axis of `splitter_error`"),
        ({"theta": np.ones(3), "phi": np.ones(4)}, r"`theta`.*Received: shapes \[\(3,"),
        ({"theta": np.ones(3), "splitter_error": np.ones((4, 2))}, "must broadcast"),
        ({"loss_db": -0.1}, "`loss_db` must be finite and ≥ 0. Received: -0.1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        interferometer.transfer_matrix(**{"theta": 1.0, "phi": 0.0, **arguments})


@pytest.mark.parametrize("imbalance", [1.01, -1.01, np.nan])
def test_imbalance_outside_its_range(imbalance):
    with pytest.raises(ValueError, match=r"`imbalance` must be in \[-1, 1\]"):
        interferometer.angle_from_imbalance(imbalance)
