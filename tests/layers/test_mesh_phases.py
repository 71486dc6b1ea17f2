"""Phases as heaters and converters set them: crosstalk, DAC steps, whole turns."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from mesh_columns import (
    ARRANGEMENTS,
    as_set,
    built,
    distance,
    fields,
    gradient_of,
    imperfect,
    quantised,
    reference,
    unitary,
)
from mesh_product import neighbours

import keras_pnn as pnn
from keras_pnn.layers import mesh_initializers as initializers
from keras_pnn.physics.mesh import cell_mask


@pytest.mark.parametrize("dtype, accuracy", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_crosstalk(rng, arrangement, dtype, accuracy):
    slots = cell_mask(4, arrangement).size
    crosstalk = np.eye(2 * slots) + rng.uniform(-0.1, 0.1, (2 * slots, 2 * slots))
    dac = pnn.layers.DAC(12, 0.5, 6.0)
    for options in ({}, {"dac": dac}):
        layer = built(4, arrangement, crosstalk=crosstalk, dtype=dtype, **options)
        imperfect(layer, rng)
        quantise = quantised if options else None
        expected = reference(layer, 0.0, crosstalk, quantise)
        # A DAC step may fall differently in float32.
        coarse = accuracy if not options or dtype == "float64" else 0.02
        np.testing.assert_allclose(layer.transfer_matrix(), expected, atol=coarse)
        x = tf.constant(rng.normal(size=(3, 4)), dtype)
        wide = "complex128" if dtype == "float64" else "complex64"
        assert layer(x).dtype == layer.transfer_matrix().dtype == wide
        assert layer(keras.Input((4,))).dtype == wide


def test_dac_rounds_the_phases_modulo_a_turn(rng):
    layer = built(5, dac=pnn.layers.DAC(3, 0.5, 6.0))
    for variable in layer.controls.values():
        variable.assign(rng.uniform(-9, 9, variable.shape))
    expected = reference(layer, dac=lambda phase: quantised(phase, 3))
    np.testing.assert_allclose(layer.transfer_matrix(), expected, atol=1e-12)
    # Turns more change nothing; with one of theta the others go to other steps.
    before = layer.transfer_matrix().numpy()
    for name, variable in layer.controls.items():
        variable.assign(variable + (4 if name == "theta" else 2) * np.pi)
    np.testing.assert_allclose(layer.transfer_matrix(), before, atol=1e-12)


def test_gradient_of_a_dac_is_straight_through(rng):
    layer = built(4, dac=pnn.layers.DAC(4, 0.0, 6.0))
    x = fields(rng, 3, 4)
    turns = 2 * np.pi * rng.integers(-2, 3, (4, 2))
    layer.controls["theta"].assign(rng.uniform(0.5, 5.5, (4, 2)) + turns)
    layer.controls["phi"].assign(rng.uniform(0.5, 5.5, (4, 2)))
    layer.controls["gamma"].assign([0.5, 6.2, 0.5, 6.2 - np.pi])
    gradients = gradient_of(layer, x)
    plain = built(4)
    within = as_set(layer, np.asarray)
    for name, variable in plain.controls.items():
        variable.assign(quantised(within[name], 4, 0.0, 6.0))
    # A phase beyond the highest code has no gradient.
    assert (within["gamma"] > 6).any() and (within["theta"] < 6).all()
    for name, expected in gradient_of(plain, x).items():
        assert np.abs(expected[within[name] > 6]).min(initial=1) > 1e-3
        expected = expected * (within[name] < 6)
        np.testing.assert_allclose(gradients[name], expected, atol=1e-12)


FINE = pnn.layers.DAC(24, 0.0, 2 * np.pi)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_fine_dac_changes_nothing(rng, arrangement):
    """Half of the cells near the cross state have a theta below 0."""
    start = initializers.Cross(0.3, seed=1)
    plain, fine = (
        imperfect(built(8, arrangement, phase_initializer=start, dac=dac), rng)
        for dac in (None, FINE)
    )
    for name, variable in plain.imperfections.items():
        fine.imperfections[name].assign(variable)
    assert (np.asarray(plain.controls["theta"]) < 0).sum() > 5
    np.testing.assert_allclose(
        fine.transfer_matrix(), plain.transfer_matrix(), atol=1e-5
    )
    x = fields(rng, 3, 8)
    np.testing.assert_allclose(fine(x), plain(x), atol=1e-5)


@pytest.mark.parametrize(
    "dac, dtype, accuracy",
    [(None, "float64", 1e-12), (FINE, "float64", 1e-5), (FINE, "float32", 1e-5)],
    ids=["exact", "dac", "dac float32"],
)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("method", ["program", "correct"])
def test_programming_with_crosstalk(rng, method, arrangement, dac, dtype, accuracy):
    crosstalk = neighbours(6, arrangement, 0.05)
    layer = built(6, arrangement, crosstalk=crosstalk, dac=dac, dtype=dtype)
    if method == "correct":
        for name in ("theta_error", "phi_error"):
            variable = layer.imperfections[name]
            variable.assign(rng.normal(0, 0.2, variable.shape))
    left = getattr(layer, method)(unitary(6))
    assert distance(layer, unitary(6)) < accuracy
    assert left == pytest.approx(distance(layer, unitary(6)), abs=1e-6)
    for variable in layer.controls.values() if dac else ():
        assert (variable.numpy() >= 0).all()
        assert (variable.numpy() < np.array(2 * np.pi, dtype)).all()


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("coupled", [False, True], ids=["plain", "crosstalk"])
def test_correct_returns_the_distance_of_the_steps_of_a_dac(rng, coupled, arrangement):
    dac = pnn.layers.DAC(4, 0.0, 2 * np.pi)
    crosstalk = neighbours(5, arrangement, 0.05) if coupled else None
    layer = built(5, arrangement, dac=dac, crosstalk=crosstalk)
    imperfect(layer, rng)
    left = layer.correct(unitary(5))
    # Losses do not count.
    layer.imperfections["loss_db"].assign(np.zeros(layer._exists.shape))
    expected = reference(layer, 0.0, crosstalk, lambda p: quantised(p, 4, 0, 2 * np.pi))
    apart = np.linalg.norm(expected - unitary(5)) / np.sqrt(5)
    assert left == pytest.approx(apart, rel=1e-9) and left > 0.05


@pytest.mark.parametrize("dtype, accuracy", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("with_dac, coupled", [(False, True), (True, False)])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_wrap_keeps_the_matrix(rng, arrangement, coupled, with_dac, dtype, accuracy):
    layer = built(
        6,
        arrangement,
        crosstalk=neighbours(6, arrangement, 0.05) if coupled else None,
        dac=pnn.layers.DAC(6, 0.0, 2 * np.pi) if with_dac else None,
        dtype=dtype,
    )
    imperfect(layer, rng)
    for variable in layer.controls.values():
        variable.assign(rng.uniform(-20, 20, variable.shape))
    # The next number below 0, which is rounded up to 2π.
    layer.controls["gamma"].assign([-1e-30, -1e-9, 0.0, 7.0, -7.0, 13.0])
    before = layer.transfer_matrix().numpy()
    assert layer.wrap() < accuracy
    np.testing.assert_allclose(layer.transfer_matrix(), before, atol=accuracy)
    for variable in layer.controls.values():
        assert variable.dtype == dtype and (variable.numpy() >= 0).all()
        assert (variable.numpy() < np.array(2 * np.pi, dtype)).all()
    again = {n: v.numpy() for n, v in layer.controls.items()}
    layer.wrap()
    for name, variable in layer.controls.items():
        np.testing.assert_allclose(variable, again[name], atol=10 * accuracy)


def test_no_phase_is_stored_as_a_whole_turn():
    for dtype in ("float32", "bfloat16", "float64"):
        layer = built(2, dtype=dtype)
        near = np.array([[np.nextafter(2 * np.pi, 0)], [1.0]])
        layer._store(near, near, [7.0, -7.0])
        stored = np.asarray(layer.controls["theta"], "float64")
        assert 6.2 < stored[0, 0] < 2 * np.pi and stored[1, 0] == 1
        np.testing.assert_allclose(layer.controls["gamma"], [7.0, -7.0])


@pytest.mark.parametrize(
    "low, coupled", [(-np.pi, False), (-1.0, True), (0.5, False), (4.0, True)]
)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_converter_may_start_anywhere(arrangement, coupled, low):
    layer = built(
        6,
        arrangement,
        crosstalk=neighbours(6, arrangement, 0.05) if coupled else None,
        dac=pnn.layers.DAC(16, low, low + 2 * np.pi),
        dtype="float32",
    )
    assert layer.program(unitary(6)) < 1e-3
    assert distance(layer, unitary(6)) < 1e-3
    assert layer.wrap() < 1e-3
    for variable in layer.controls.values():
        there = variable.numpy()[layer.quantity(variable.name).exists]
        assert (there >= np.float32(low)).all()
        assert (there < low + 2 * np.pi).all()


def test_the_highest_code_is_set_as_it_is():
    """A whole turn of theta is not wrapped to 0, which would move other phases."""
    layer = built(4, dac=pnn.layers.DAC(5, -np.pi, np.pi), dtype="float32")
    layer.program(unitary(4))
    layer.controls["theta"].assign(np.full((4, 2), np.pi))
    once = layer.as_set(layer.controls)
    for name, variable in layer.controls.items():
        variable.assign(once[name])
    for name, phase in layer.as_set(layer.controls).items():
        np.testing.assert_array_equal(phase, once[name])


@pytest.mark.parametrize("method", ["program", "correct"])
def test_a_converter_of_less_than_a_turn_is_reported(method):
    layer = built(8, dac=pnn.layers.DAC(12, 0.0, 1.5 * np.pi), name="short")
    with pytest.warns(UserWarning, match="phases of layer 'short' are clipped"):
        left = getattr(layer, method)(unitary(8))
    assert left == pytest.approx(distance(layer, unitary(8)), rel=1e-6)
    assert left > 0.1


@pytest.mark.parametrize("high", [2 * np.pi, 2 * np.pi * (1 - 2**-6)])
@pytest.mark.parametrize("coupled", [False, True], ids=["plain", "crosstalk"])
def test_programming_returns_the_distance_that_is_left(recwarn, coupled, high):
    crosstalk = neighbours(8, "clements", 0.1) if coupled else None
    layer = built(8, crosstalk=crosstalk, dac=pnn.layers.DAC(6, 0.0, high))
    left = layer.program(unitary(8))
    assert left == pytest.approx(distance(layer, unitary(8)), rel=1e-6)
    assert 0.01 < left < 0.5 and not recwarn.list
    # Imperfections and losses of one device do not count.
    imperfect(layer, np.random.default_rng(0))
    assert layer.program(unitary(8)) == left


def test_wrapping_with_crosstalk_returns_how_far_the_matrix_has_moved():
    slots = 2 * cell_mask(8).size
    crosstalk = np.eye(slots) + 0.1 * (np.eye(slots, k=1) + np.eye(slots, k=-1))
    layer = built(8, crosstalk=crosstalk)
    assert layer.program(unitary(8)) < 1e-12
    before = layer.transfer_matrix().numpy()
    moved = layer.wrap()
    assert moved == pytest.approx(distance(layer, before), rel=1e-6) and moved > 0.01
