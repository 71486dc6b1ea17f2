"""Mesh layers against a product of columns written out in NumPy."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from mesh_columns import (
    ARRANGEMENTS,
    built,
    distance,
    fields,
    imperfect,
    reference,
    unitary,
)
from mesh_product import neighbours

import keras_pnn as pnn
from keras_pnn.layers import Attenuators, MZIDense, MZIMesh, Photodetector
from keras_pnn.physics.mesh import cell_mask

SIZES = (2, 5, 8)


# --- The physics, against NumPy in float64.


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("units", SIZES)
def test_outputs_are_the_product_of_the_columns(rng, units, arrangement):
    layer = imperfect(built(units, arrangement, straight_loss_db=0.3), rng)
    expected = reference(layer, straight_db=0.3)
    np.testing.assert_allclose(layer.transfer_matrix(), expected, atol=1e-12)
    for shape in ((1, units), (20, units), (2, 3, units)):
        x = fields(rng, *shape)
        np.testing.assert_allclose(layer(x), x @ expected.T, atol=1e-12)


@pytest.mark.parametrize("dtype, accuracy", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("units", SIZES)
def test_program_then_matrix_now(units, arrangement, dtype, accuracy):
    layer = built(units, arrangement, dtype=dtype)
    for matrix in (unitary(units), np.eye(units), np.eye(units)[::-1]):
        layer.program(matrix)
        np.testing.assert_allclose(layer.transfer_matrix(), matrix, atol=accuracy)


def test_loss_of_the_design(rng):
    # Every mode of 6 columns meets 6 cells or straight parts of 0.5 dB.
    layer = built(6, loss_db=0.5, straight_loss_db=0.5)
    layer.program(unitary(6))
    expected = unitary(6) * 10 ** (-6 * 0.5 / 20)
    np.testing.assert_allclose(layer.transfer_matrix(), expected, atol=1e-12)
    np.testing.assert_array_equal(layer.imperfections["loss_db"], np.full((6, 3), 0.5))
    layer.imperfections["loss_db"].assign(np.zeros((6, 3)))
    layer.reset_imperfections()
    np.testing.assert_allclose(layer.transfer_matrix(), expected, atol=1e-12)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_loss_of_each_cell_of_the_design(rng, arrangement):
    loss = rng.uniform(0, 1, cell_mask(5, arrangement).shape)
    layer, plain = built(5, arrangement, loss_db=loss), built(5, arrangement)
    for name, variable in layer.controls.items():
        plain.controls[name].assign(variable)

    def assert_loss(expected):
        plain.imperfections["loss_db"].assign(expected)
        matrix = layer.transfer_matrix()
        np.testing.assert_allclose(matrix, reference(plain), atol=1e-12)

    assert not np.any(layer.imperfections["loss_db"])
    assert_loss(loss)
    # Of what a device adds, so much that the sum is below 0 in some cells.
    more = rng.uniform(-0.5, 0.5, loss.shape)
    layer.imperfections["loss_db"].assign(more)
    assert_loss(loss + more)
    config = json.loads(json.dumps(layer.get_config()))
    again = MZIMesh.from_config(config)
    np.testing.assert_array_equal(again.loss_db, loss)
    assert again.get_config() == config
    model = keras.Sequential([keras.Input((5,)), layer])
    (device,) = pnn.devices.sweep(model, "loss_db", [0.5])
    with device.installed(model):
        assert_loss(loss + 0.5)
    layer.reset_imperfections()
    assert_loss(loss)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_correct_compensates_a_known_device(arrangement):
    layer = MZIMesh(8, arrangement, dtype="float64")
    model = keras.Sequential([keras.Input((8,)), layer])
    variation = pnn.Variation(theta_error=0.3, phi_error=0.3, splitter_error=0.02)
    target = unitary(8, seed=5)
    for device in variation.sample(model, 2):
        with device.installed(model):
            layer.program(target)
            before = distance(layer, target)
            left = layer.correct(target)
            after = distance(layer, target)
        assert after == pytest.approx(left, abs=1e-9)
        assert after < 0.2 * before and before > 0.3
        # The phases are the device's: on an ideal chip they are off.
        assert distance(layer, target) > 0.04


# --- Any matrix.

WIDE, TALL, SQUARE = (3, 6), (6, 3), (4, 4)


@pytest.mark.parametrize(
    "shape, kind, dtype",
    [
        (WIDE, "real", "float64"),
        (WIDE, "zero", "float64"),
        (TALL, "complex", "float64"),
        (SQUARE, "rank 1", "float64"),
        (WIDE, "complex", "float32"),
        (TALL, "rank 1", "float32"),
        (TALL, "zero", "float32"),
        (SQUARE, "real", "float32"),
    ],
)
def test_dense_programs_any_matrix(rng, shape, kind, dtype):
    accuracy = 1e-12 if dtype == "float64" else 1e-5
    layer = MZIDense(shape[0], dtype=dtype)
    layer.build((None, shape[1]))
    matrix = rng.normal(size=shape)
    if kind == "complex":
        matrix = matrix + 1j * rng.normal(size=shape)
    elif kind == "rank 1":
        matrix = np.outer(matrix[:, 0], matrix[0])
    elif kind == "zero":
        matrix = 0 * matrix
    layer.program(matrix)
    scale = accuracy * max(np.linalg.norm(matrix, 2), 1)
    np.testing.assert_allclose(layer.transfer_matrix(), matrix, atol=scale)
    x = rng.normal(size=(7, shape[1])).astype(dtype)
    np.testing.assert_allclose(layer(x), x @ matrix.T, atol=10 * scale)
    attenuation = np.asarray(layer.attenuation)
    assert attenuation.shape == (min(shape),)
    assert attenuation.min() >= 0 and attenuation.max() <= 1
    largest = np.linalg.norm(matrix, 2)
    assert float(layer.gain) == pytest.approx(1 if kind == "zero" else largest)


def test_dense_is_the_product_of_its_parts(rng):
    layer = MZIDense(3, "reck", straight_loss_db=0.2, dtype="float64")
    layer.build((None, 5))
    imperfect(layer.u, rng)
    imperfect(layer.v, rng)
    layer.attenuation.assign([0.9, 0.5, 0.1])
    layer.gain.assign(-3.0)
    sigma = np.zeros((3, 5))
    np.fill_diagonal(sigma, [-2.7, -1.5, -0.3])
    expected = reference(layer.u, 0.2) @ sigma @ reference(layer.v, 0.2)
    np.testing.assert_allclose(layer.transfer_matrix(), expected, atol=1e-12)
    x = fields(rng, 2, 4, 5)
    np.testing.assert_allclose(layer(x), x @ expected.T, atol=1e-12)


def test_attenuators_never_amplify():
    layer = MZIDense(3)
    model = keras.Sequential([keras.Input((4,)), layer, Photodetector()])
    model.compile(keras.optimizers.SGD(10.0), loss="mse")
    model.fit(np.ones((8, 4)), np.full((8, 3), 5.0), verbose=0)
    attenuation = np.asarray(layer.attenuation)
    assert attenuation.min() >= 0 and attenuation.max() <= 1
    assert float(layer.gain) != 1


@pytest.mark.parametrize("modes, units", [(3, 5), (5, 3), (4, 4), (1, 2)])
def test_attenuators_drop_and_leave_dark(rng, modes, units):
    layer = Attenuators(units, dtype="float64")
    x = fields(rng, 2, modes)
    expected = np.zeros((2, units), complex)
    n = min(modes, units)
    expected[:, :n] = x[:, :n]
    np.testing.assert_array_equal(layer(x), expected)


# --- What Keras asks of a layer.


def test_parts_have_names_of_their_own():
    named = MZIMesh(6, name="mesh"), MZIDense(4, name="dense")
    model = keras.Sequential([keras.Input((6,)), *named])
    names = [la.name for la in pnn.layers.physical_layers(model)]
    assert sorted(names) == ["dense_sigma", "dense_u", "dense_v", "mesh"]
    twice = keras.Sequential([keras.Input((6,)), MZIDense(4), MZIDense(4)])
    names = [la.name for la in pnn.layers.physical_layers(twice)]
    assert len(set(names)) == 6


def test_frozen_layers_have_nothing_to_train():
    for layer in (MZIMesh(6, trainable=False), MZIDense(4, trainable=False)):
        model = keras.Sequential([keras.Input((6,)), layer])
        assert model.trainable_variables == []
        layer.trainable = True
        assert len(model.trainable_variables) in (3, 8)


def test_a_square_dense_does_not_start_from_one_mesh_twice():
    layer = MZIDense(4)
    again = MZIDense.from_config(layer.get_config())
    for one in (layer, again):
        one.build((None, 4))
        phi = [np.asarray(mesh.controls["phi"]) for mesh in (one.u, one.v)]
        assert np.abs(phi[0] - phi[1]).max() > 0.1


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", [MZIMesh, MZIDense, Attenuators])
def test_inputs_keep_their_digits_in_mixed_precision(rng, kind, policy):
    layer, exact = kind(4, dtype=policy), kind(4, dtype="float64")
    for one in (layer, exact):
        one.build((None, 4))
    for ours, theirs in zip(
        exact.trainable_variables, layer.trainable_variables, strict=True
    ):
        ours.assign(np.asarray(theirs, "float64"))
    # Beyond the largest number of float16.
    x = 7e4 * rng.uniform(0.5, 1, (3, 4)).astype("float32")
    inputs = keras.Input((4,))
    outputs = exact(x.astype("float64"))
    for behind in (layer(x), keras.Model(inputs, layer(inputs))(x)):
        np.testing.assert_allclose(behind, outputs, atol=1e-5 * 7e4)


@pytest.mark.parametrize("layer", [MZIMesh(4), MZIDense(3)], ids=["mesh", "dense"])
@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
)
def test_inputs_of_any_dtype(rng, layer, dtype):
    x = tf.cast(rng.normal(size=(5, 4)), dtype)
    y = layer(x)
    assert y.dtype == tf.complex64
    np.testing.assert_allclose(y, layer(tf.cast(x, "complex64")), atol=1e-6)
    inputs = keras.Input((4,), dtype=dtype)
    outputs = layer(inputs)
    assert outputs.dtype == "complex64"
    np.testing.assert_allclose(keras.Model(inputs, outputs)(x), y, atol=1e-6)


@pytest.mark.parametrize("layer, units", [(MZIMesh(4), 4), (MZIDense(3), 3)])
def test_symbolic_shapes(rng, layer, units):
    for shape in ((None, 4), (7, 4), (None, 5, 4), (None, None, 4), (2, None, 4)):
        outputs = layer(keras.Input(batch_shape=shape))
        assert outputs.shape == (*shape[:-1], units)
        assert layer.compute_output_shape(shape) == (*shape[:-1], units)
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, Photodetector()(layer(inputs)))
    x = rng.normal(size=(3, 2, 4)).astype("float32")
    expected = np.abs(x @ np.transpose(layer.transfer_matrix())) ** 2
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    apart = keras.layers.TimeDistributed(layer)(keras.Input((5, 4)))
    assert apart.shape == (None, 5, units)


def test_regularizer_and_constraint_of_the_phases():
    layer = MZIMesh(
        3,
        phase_regularizer=keras.regularizers.L2(0.5),
        phase_constraint=pnn.layers.ControlRange(-0.1, 0.1),
    )
    model = keras.Sequential([keras.Input((3,)), layer, Photodetector()])
    phases = [np.asarray(layer.controls[n], "float64") for n in ("theta", "phi")]
    expected = 0.5 * sum(np.sum(p**2) for p in phases)
    assert float(sum(layer.losses)) == pytest.approx(expected, rel=1e-5)
    model.compile("sgd", loss="mse", run_eagerly=True)
    model.fit(np.ones((4, 3)), np.ones((4, 3)), verbose=0)
    for name in ("theta", "phi"):
        assert np.abs(layer.controls[name]).max() <= np.float32(0.1)
    assert np.abs(layer.controls["gamma"]).max() > 0.1


@pytest.mark.parametrize("coupled", [False, True], ids=["plain", "crosstalk"])
def test_what_a_constraint_leaves_in_slots_without_a_cell_is_ignored(coupled):
    layer = MZIMesh(
        4,
        phase_constraint=pnn.layers.ControlRange(0.5, 3.0),
        crosstalk=neighbours(4, "clements", 0.1) if coupled else None,
    )
    model = keras.Sequential([keras.Input((4,)), layer, Photodetector()])
    model.compile("sgd", loss="mse", run_eagerly=True)
    model.fit(np.ones((4, 4)), np.ones((4, 4)), verbose=0)
    exists = cell_mask(4)
    matrix = layer.transfer_matrix().numpy()
    for name in ("theta", "phi"):
        stored = layer.controls[name].numpy()
        np.testing.assert_array_equal(stored[~exists], np.float32(0.5))
        layer.controls[name].assign(np.where(exists, stored, 2.0))
    np.testing.assert_array_equal(layer.transfer_matrix(), matrix)


def empty_slots(model):
    """What is stored where no mesh of the model has a cell."""
    stored = []
    for layer in pnn.layers.physical_layers(model):
        for quantity in map(layer.quantity, [*layer.controls, *layer.imperfections]):
            stored.append(np.asarray(quantity.variable)[~quantity.exists])
    return np.concatenate(stored)


def test_slots_without_a_cell_stay_as_they_are(rng):
    x, y = rng.normal(size=(12, 4)), rng.uniform(size=(12, 3))
    inputs = keras.Input((4,))
    crosstalk = np.eye(16) + 0.02
    mesh = MZIMesh(4, crosstalk=crosstalk, dac=pnn.layers.DAC(8, 0.1, 6.2))
    outputs = Photodetector()(MZIMesh(4, "reck")(Photodetector()(mesh(inputs)))[:, :3])
    model = keras.Model(inputs, outputs)
    # Of the 8 and 10 slots, 2 and 4 hold no cell.
    assert empty_slots(model).size == (2 + 4) * 11
    noise = pnn.Variation(theta=0.1, theta_error=0.1, splitter_imbalance=0.1)
    sat = pnn.SATModel(model, rho=0.2, variation=noise)
    sat.compile(keras.optimizers.Adam(0.05), loss="mse", run_eagerly=True)
    before = [v.numpy() for v in model.trainable_variables]
    sat.fit(x, y, epochs=2, batch_size=6, verbose=0)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert (variable.numpy() != value).any()
    assert not empty_slots(model).any()
    (device,) = noise.sample(model, 1)
    theta = mesh.controls["theta"].numpy()
    with device.installed(model):
        assert (mesh.controls["theta"].numpy() != theta)[cell_mask(4)].all()
        assert not empty_slots(model).any()


# --- Values that a device cannot have.


@pytest.mark.parametrize("name", ["", "mesh/"])
def test_given_imbalances_and_losses_must_exist(name):
    layer = MZIMesh(4, loss_db=0.5, name="mesh", dtype="float64")
    model = keras.Sequential([keras.Input((4,)), layer, Photodetector()])
    for value in (2.0, -1.01):
        with pytest.raises(ValueError, match=rf"imbalance` must.*Received: {value:g}"):
            pnn.devices.sweep(model, f"{name}splitter_imbalance", [0.0, value])
    with pytest.raises(ValueError, match=r"`loss_db`.*in each cell.*Received: -0.1"):
        pnn.devices.sweep(model, f"{name}loss_db", [-0.6, 0.0])
    assert len(pnn.devices.sweep(model, f"{name}splitter_imbalance", [-1, 1])) == 2
    (lossless,) = pnn.devices.sweep(model, f"{name}loss_db", [-0.5])
    with lossless.installed(model):
        power = np.sum(np.abs(layer.transfer_matrix()) ** 2, axis=0)
    np.testing.assert_allclose(power, 1, atol=1e-12)


def test_given_losses_are_added_to_those_of_each_cell():
    loss = np.full((4, 2), 0.5)
    loss[0, 0] = 0.25
    model = keras.Sequential([keras.Input((4,)), MZIMesh(4, loss_db=loss)])
    with pytest.raises(ValueError, match=r"`loss_db`.*in each cell.*Received: -0.05"):
        pnn.devices.sweep(model, "loss_db", [-0.3])
    assert len(pnn.devices.sweep(model, "loss_db", [-0.25])) == 1


def test_draws_beyond_the_range_count_as_its_ends():
    layer = MZIMesh(4, dtype="float64")
    model = keras.Sequential([keras.Input((4,)), layer])
    variation = pnn.Variation(splitter_imbalance=3.0)
    for device in variation.sample(model, 2):
        angles = device.deviations["splitter_error", 0][cell_mask(4)]
        assert np.abs(angles).max() == pytest.approx(np.pi / 4)
