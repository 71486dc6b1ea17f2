"""The MZI cell against a product of its parts, written out in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pnn.physics import interferometer

ANGLES = st.floats(-10, 10)
SMALL = st.floats(-0.7, 0.7)


def by_parts(theta, phi, first=0.0, second=0.0):
    """Splitter, arms, splitter, output phase: one matrix after the other."""

    def splitter(angle):
        cos, sin = np.cos(np.pi / 4 + angle), np.sin(np.pi / 4 + angle)
        return np.array([[cos, 1j * sin], [1j * sin, cos]])

    arms = np.diag([np.exp(0.5j * theta), np.exp(-0.5j * theta)])
    out = np.diag([np.exp(1j * phi), 1])
    return out @ splitter(second) @ arms @ splitter(first)


@settings(max_examples=50, deadline=None)
@given(ANGLES, ANGLES, SMALL, SMALL)
def test_cell_is_the_product_of_its_parts(theta, phi, first, second):
    cell = interferometer.transfer_matrix(
        np.float64(theta), np.float64(phi), np.array([first, second])
    ).numpy()
    np.testing.assert_allclose(cell, by_parts(theta, phi, first, second), atol=1e-14)
    np.testing.assert_allclose(cell @ cell.conj().T, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(cell), np.exp(1j * phi), atol=1e-13)


def test_convention_of_the_ideal_cell():
    theta, phi = 0.7, 0.3
    expected = 1j * np.array(
        [
            [
                np.exp(1j * phi) * np.sin(theta / 2),
                np.exp(1j * phi) * np.cos(theta / 2),
            ],
            [np.cos(theta / 2), -np.sin(theta / 2)],
        ]
    )
    cell = interferometer.transfer_matrix(np.float64(theta), np.float64(phi))
    np.testing.assert_allclose(cell, expected, atol=1e-15)


@pytest.mark.parametrize("theta, power", [(0.0, [[0, 1], [1, 0]]), (np.pi, np.eye(2))])
def test_cross_and_bar(theta, power):
    cell = interferometer.transfer_matrix(np.float64(theta), np.float64(0))
    np.testing.assert_allclose(np.abs(cell) ** 2, power, atol=1e-15)


def test_imbalance_form_of_the_splitters():
    """The cell as it is written with power imbalances l and r."""
    left, right, theta = 0.3, -0.2, 1.1
    p, q = np.exp(0.5j * theta), np.exp(-0.5j * theta)
    a, b = np.sqrt((1 + left) * (1 + right)), np.sqrt((1 - left) * (1 - right))
    c, d = np.sqrt((1 - left) * (1 + right)), np.sqrt((1 + left) * (1 - right))
    expected = 0.5 * np.array(
        [[a * p - b * q, 1j * (c * p + d * q)], [1j * (d * p + c * q), -b * p + a * q]]
    )
    error = interferometer.angle_from_imbalance(np.array([left, right]))
    cell = interferometer.transfer_matrix(np.float64(theta), np.float64(0), error)
    np.testing.assert_allclose(cell, expected, atol=1e-15)


def test_imbalance_and_angle_are_inverse():
    imbalance = np.linspace(-1, 1, 21)
    angle = interferometer.angle_from_imbalance(imbalance)
    np.testing.assert_allclose(
        interferometer.imbalance_from_angle(angle), imbalance, atol=1e-15
    )
    np.testing.assert_allclose(angle[0], np.pi / 4)
    # Power that goes straight on is (1 + e) / 2.
    through = np.cos(np.pi / 4 + angle.numpy()) ** 2
    np.testing.assert_allclose(through, (1 + imbalance) / 2, atol=1e-15)


def test_loss_is_in_decibels_of_power():
    cell = interferometer.transfer_matrix(np.float64(1.0), np.float64(0.5), loss_db=3.0)
    power = np.abs(cell.numpy() @ [1, 0]) ** 2
    np.testing.assert_allclose(power.sum(), 10**-0.3, rtol=1e-14)


def test_arguments_broadcast():
    theta, phi = np.ones((3, 1)), np.ones((1, 4))
    cells = interferometer.transfer_matrix(theta, phi, np.zeros((5, 1, 1, 2)))
    assert cells.shape == (5, 3, 4, 2, 2)
    assert cells.dtype == tf.complex128
    assert interferometer.transfer_matrix(1.0, 0.0).dtype == tf.complex64


def test_a_number_is_the_error_of_both_splitters():
    both = interferometer.transfer_matrix(np.float64(1.0), 0.3, [0.1, 0.1])
    cell = interferometer.transfer_matrix(np.float64(1.0), 0.3, 0.1)
    np.testing.assert_array_equal(cell, both)


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
        (
            {"loss_db": -0.1},
            "`loss_db` must be finite and >= 0. Received: loss_db=-0.1",
        ),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        interferometer.transfer_matrix(**{"theta": 1.0, "phi": 0.0, **arguments})


@pytest.mark.parametrize("imbalance", [1.01, -1.01, np.nan])
def test_imbalance_outside_its_range(imbalance):
    with pytest.raises(ValueError, match=r"`imbalance` must be in \[-1, 1\]"):
        interferometer.angle_from_imbalance(imbalance)
