"""Mesh layers against a product of columns written out in NumPy."""

import doctest
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from mesh_columns import (
    ARRANGEMENTS,
    built,
    fields,
    gradient_of,
    imperfect,
    neighbours,
    objective,
    reference,
    unitary,
)

import keras_pnn as pnn
from keras_pnn.layers import Attenuators, MZIDense, MZIMesh, Photodetector, mzi
from keras_pnn.layers import mesh_initializers as initializers
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


@pytest.mark.parametrize("name", ["theta_error", "phi_error", "splitter_error"])
def test_one_imperfection_at_a_time(rng, name):
    layer = built(5)
    ideal = layer.transfer_matrix().numpy()
    variable = layer.imperfections[name]
    variable.assign(rng.normal(0, 0.2, variable.shape))
    np.testing.assert_allclose(layer.transfer_matrix(), reference(layer), atol=1e-12)
    assert np.abs(layer.transfer_matrix() - ideal).max() > 0.05
    layer.reset_imperfections()
    np.testing.assert_array_equal(layer.transfer_matrix(), ideal)


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
    assert not np.any(layer.imperfections["loss_db"])
    # Of what a device adds, so much that the sum is below 0 in some cells.
    for more in (0.0, rng.uniform(-0.5, 0.5, loss.shape)):
        plain.imperfections["loss_db"].assign(loss + more)
        layer.imperfections["loss_db"].assign_add(np.broadcast_to(more, loss.shape))
        np.testing.assert_allclose(
            layer.transfer_matrix(), reference(plain), atol=1e-12
        )
    config = json.loads(json.dumps(layer.get_config()))
    again = MZIMesh.from_config(config)
    np.testing.assert_array_equal(again.loss_db, loss)
    assert again.get_config() == config
    model = keras.Sequential([keras.Input((5,)), layer])
    plain.imperfections["loss_db"].assign(loss + 0.5)
    for device in pnn.devices.sweep(model, "loss_db", [0.5]):
        with device.installed(model):
            np.testing.assert_allclose(
                layer.transfer_matrix(), reference(plain), atol=1e-12
            )
    layer.reset_imperfections()
    plain.imperfections["loss_db"].assign(loss)
    np.testing.assert_allclose(layer.transfer_matrix(), reference(plain), atol=1e-12)


def test_loss_in_the_straight_parts_alone():
    layer = built(4, phase_initializer=initializers.Bar(0.0), straight_loss_db=2.0)
    # The outer modes pass straight in columns 1 and 3.
    power = np.abs(np.diag(layer.transfer_matrix())) ** 2
    np.testing.assert_allclose(power, 10 ** np.array([-0.4, 0, 0, -0.4]), rtol=1e-12)


def test_loss_of_one_cell_and_no_gain():
    layer = built(4, phase_initializer=initializers.Bar(0.0))
    loss = np.zeros((4, 2))
    loss[0, 1], loss[2, 0] = 3.0, -3.0
    layer.imperfections["loss_db"].assign(loss)
    power = np.abs(np.diag(layer.transfer_matrix())) ** 2
    # The negative loss counts as 0.
    np.testing.assert_allclose(power, [1, 1, 10**-0.3, 10**-0.3], rtol=1e-12)


def test_devices_lose_around_the_design():
    layer = MZIMesh(4, loss_db=0.1, dtype="float64")
    model = keras.Sequential([keras.Input((4,)), layer])
    (device,) = pnn.Variation(loss_db=1.0).sample(model, 1)
    with device.installed(model):
        total = np.asarray(layer.imperfections["loss_db"])
        exists = cell_mask(4)
        drawn = device.deviations["loss_db", 0]
        np.testing.assert_allclose(total, 0.1 + drawn, rtol=1e-12)
        assert (drawn[exists] != 0).all() and (drawn[~exists] == 0).all()
        assert (total < 0).any()
        power = np.sum(np.abs(layer.transfer_matrix()) ** 2, axis=0)
        assert (power <= 1 + 1e-12).all()


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_correct_makes_up_for_a_known_device(arrangement):
    layer = MZIMesh(8, arrangement, dtype="float64")
    model = keras.Sequential([keras.Input((8,)), layer])
    variation = pnn.Variation(theta_error=0.3, phi_error=0.3, splitter_error=0.02)
    target = unitary(8, seed=5)
    for device in variation.sample(model, 2):
        with device.installed(model):
            layer.program(target)
            before = np.linalg.norm(layer.transfer_matrix() - target) / np.sqrt(8)
            left = layer.correct(target)
            after = np.linalg.norm(layer.transfer_matrix() - target) / np.sqrt(8)
        assert after == pytest.approx(left, abs=1e-9)
        assert after < 0.2 * before and before > 0.3
        # The phases are the device's: on an ideal chip they are off.
        assert np.linalg.norm(layer.transfer_matrix() - target) > 0.1


# --- Any matrix.

SHAPES = {"wide": (3, 6), "tall": (6, 3), "square": (4, 4)}


@pytest.mark.parametrize("dtype, accuracy", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("kind", ["real", "complex", "rank 1", "zero"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_dense_programs_any_matrix(rng, shape, kind, dtype, accuracy):
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


# --- Gradients against differences, in float64.


@pytest.mark.parametrize("coupled", [False, True], ids=["plain", "crosstalk"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_gradients_equal_differences(rng, arrangement, coupled):
    slots = cell_mask(4, arrangement).size
    crosstalk = np.eye(2 * slots) + rng.uniform(0, 0.1, (2 * slots, 2 * slots))
    layer = built(4, arrangement, crosstalk=crosstalk if coupled else None)
    imperfect(layer, rng)
    layer.imperfections["loss_db"].assign_add(np.full(layer._exists.shape, 0.1))
    x, step = fields(rng, 3, 4), 1e-5
    loss = tf.function(lambda: objective(layer, x))
    for which in ("controls", "imperfections"):
        for name, gradient in gradient_of(layer, x, which).items():
            variable = getattr(layer, which)[name]
            before = variable.numpy()
            for index in np.ndindex(before.shape):
                ends = []
                for sign in (1, -1):
                    moved = before.copy()
                    moved[index] += sign * step
                    variable.assign(moved)
                    ends.append(float(loss()))
                variable.assign(before)
                difference = (ends[0] - ends[1]) / (2 * step)
                assert gradient[index] == pytest.approx(difference, rel=1e-5, abs=1e-6)
            exists = layer.quantity(name).mask
            if exists is not None:
                exists = np.broadcast_to(exists, gradient.shape)
                assert (gradient[~exists] == 0).all()
                assert (gradient[exists] != 0).all()


def test_gradients_of_the_attenuators(rng):
    layer = MZIDense(3, dtype="float64")
    layer.build((None, 4))
    layer.attenuation.assign([0.9, 0.4, 0.0])
    layer.gain.assign(1.7)
    x = fields(rng, 3, 4)
    variables = [layer.attenuation, layer.gain]
    with tf.GradientTape() as tape:
        loss = objective(layer, x)
    gradients = tape.gradient(loss, [v.value for v in variables])
    for variable, gradient in zip(variables, gradients, strict=True):
        before = variable.numpy()
        for index in np.ndindex(before.shape):
            ends = []
            for sign in (1, -1):
                moved = np.array(before)
                moved[index] += sign * 1e-5
                # Past the constraint, which acts in the optimizer alone.
                variable.assign(moved)
                ends.append(float(objective(layer, x)))
            variable.assign(before)
            difference = (ends[0] - ends[1]) / 2e-5
            assert gradient.numpy()[index] == pytest.approx(difference, rel=1e-6)


# --- What Keras asks of a layer.


def network(units=3, names=(None, None), modes=4, **kwargs):
    inputs = keras.Input((modes,))
    hidden = Photodetector()(MZIMesh(modes, name=names[0], **kwargs)(inputs))
    outputs = Photodetector()(MZIDense(units, name=names[1], **kwargs)(hidden))
    return keras.Model(inputs, outputs)


def data(rng, samples=12, units=3, modes=4):
    x = rng.normal(size=(samples, modes)).astype("float32")
    return x, rng.uniform(size=(samples, units)).astype("float32")


def test_number_of_parameters():
    model = network(4, modes=6)
    mesh, dense = model.layers[1], model.layers[3]
    # Stored with the slots without a cell: 2 · 6 · 3 phases and 6 at the input.
    assert mesh.count_params() == 42 + (4 * 18 + 18)
    assert sum(v.shape.num_elements() for v in mesh.trainable_variables) == 42
    trainable = {v.name for v in dense.trainable_variables}
    assert trainable == {"theta", "phi", "gamma", "attenuation", "gain"}
    total = sum(np.prod(v.shape) for v in dense.trainable_variables)
    assert total == 42 + (2 * 8 + 4) + 4 + 1


def test_parts_have_names_of_their_own():
    model = network(names=("mesh", "dense"))
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


def test_a_saved_model_is_the_design(rng, tmp_path):
    x, y = data(rng)
    model = network(loss_db=0.05)
    model.compile("adam", loss="mse")
    model.fit(x, y, verbose=0)
    design = model(x).numpy()
    (device,) = pnn.Variation(theta_error=0.3, loss_db=0.2).sample(model, 1)
    with device.installed(model):
        assert np.abs(model(x) - design).max() > 1e-3
        stored = {}
        model.layers[1].save_own_variables(stored)
        assert len(stored) == 3
        model.save(tmp_path / "model.keras")
        model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), design)
    other = network(loss_db=0.05)
    assert np.abs(other(x) - design).max() > 1e-3
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other(x), design)


FULL = dict(
    arrangement="reck",
    phase_initializer=initializers.Cross(0.2, seed=3),
    phase_regularizer=keras.regularizers.L2(0.1),
    phase_constraint=pnn.layers.ControlRange(-7.0, 7.0),
    loss_db=0.2,
    straight_loss_db=0.1,
    dac=pnn.layers.DAC(9, 0.0, 6.2),
    dtype="float64",
    trainable=False,
    name="every_argument",
)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: MZIMesh(4, crosstalk=np.eye(20) + 0.01, **FULL),
        lambda: MZIMesh(4),
        lambda: MZIDense(3, **FULL),
        lambda: MZIDense(3),
        lambda: Attenuators(3, name="sigma", dtype="float64"),
    ],
    ids=["mesh", "plain mesh", "dense", "plain dense", "attenuators"],
)
def test_config_round_trip(rng, layer):
    layer = layer()
    config = layer.get_config()
    again = type(layer).from_config(json.loads(json.dumps(config)))
    assert json.dumps(again.get_config()) == json.dumps(config)
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    third = keras.saving.deserialize_keras_object(serialized)
    assert json.dumps(third.get_config()) == json.dumps(config)
    x = rng.normal(size=(3, 4))
    layer.build(x.shape)
    for other in (again, third):
        other.build(x.shape)
        if "initializer" in str(config) and layer.name == "every_argument":
            for ours, theirs in zip(layer.weights, other.weights, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        other.set_weights(layer.get_weights())
        np.testing.assert_array_equal(layer(x), other(x))


def test_every_argument_was_given_a_value_of_its_own():
    for full, plain in [
        (MZIMesh(4, crosstalk=np.eye(20) + 0.01, **FULL), MZIMesh(3)),
        (MZIDense(4, **FULL), MZIDense(3)),
    ]:
        ours, theirs = full.get_config(), plain.get_config()
        assert [k for k in ours if ours[k] == theirs[k]] == []


def test_a_square_dense_does_not_start_from_one_mesh_twice():
    layer = MZIDense(4)
    again = MZIDense.from_config(layer.get_config())
    for one in (layer, again):
        one.build((None, 4))
        phi = [np.asarray(mesh.controls["phi"]) for mesh in (one.u, one.v)]
        assert np.abs(phi[0] - phi[1]).max() > 0.1


POLICIES = {
    "float32": ("float32", 1e-5),
    "mixed_float16": ("float32", 5e-3),
    "mixed_bfloat16": ("float32", 5e-2),
    "bfloat16": ("bfloat16", 0.3),
    "float64": ("float64", 1e-12),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_dtype_policies(rng, policy):
    stored, accuracy = POLICIES[policy]
    model, exact = network(dtype=policy), network(dtype="float64")
    parts = zip(
        pnn.layers.physical_layers(model),
        pnn.layers.physical_layers(exact),
        strict=True,
    )
    for layer, double in parts:
        quantities = (*layer.controls.values(), *layer.imperfections.values())
        assert all(v.dtype == stored for v in quantities)
        for name, variable in layer.controls.items():
            double.controls[name].assign(np.asarray(variable, "float64"))
    x, y = data(rng)
    wide = "complex128" if policy == "float64" else "complex64"
    for mesh in (model.layers[1], model.layers[3]):
        inputs = rng.normal(size=(2, 4))
        assert mesh(inputs).dtype == mesh(keras.Input((4,))).dtype == wide
        assert mesh.transfer_matrix().dtype == wide
    y_pred = np.asarray(model(x), "float64")
    expected = np.asarray(exact(x))
    np.testing.assert_allclose(y_pred, expected, rtol=accuracy, atol=accuracy)
    before = [np.asarray(v, "float64") for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.5), loss="mse")
    history = model.fit(x, y, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    after = [np.asarray(v, "float64") for v in model.trainable_variables]
    assert all((a != b).any() for a, b in zip(before[:2], after[:2], strict=True))


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


def test_a_layer_may_be_built_inside_a_graph():
    layer = MZIDense(3)
    y = tf.function(lambda x: layer(x))(tf.ones((2, 4)))
    np.testing.assert_allclose(y, layer(np.ones((2, 4), "float32")), atol=1e-6)


def test_jit_compile_trains_alike(rng):
    x, y = data(rng)
    weights, losses = [], []
    for jit in (False, True):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((4,)), MZIDense(3), Photodetector()])
        model.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=jit)
        history = model.fit(x, y, epochs=3, batch_size=6, verbose=0, shuffle=False)
        losses.append(history.history["loss"])
        weights.append(model.get_weights())
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][-1] < losses[0][0]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


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
    model.compile("sgd", loss="mse")
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
    model.compile("sgd", loss="mse")
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
        for name, variable in {**layer.controls, **layer.imperfections}.items():
            quantity = layer.quantity(name)
            if quantity.mask is not None:
                exists = np.broadcast_to(quantity.mask, tuple(variable.shape))
                stored.append(np.asarray(variable)[~exists] - quantity.nominal)
    return np.concatenate(stored)


@pytest.mark.parametrize("ascent", ["sam", "asam"])
def test_slots_without_a_cell_stay_as_they_are(rng, ascent):
    x, y = data(rng)
    inputs = keras.Input((4,))
    crosstalk = np.eye(16) + 0.02
    mesh = MZIMesh(4, crosstalk=crosstalk, dac=pnn.layers.DAC(8, 0.1, 6.2))
    outputs = Photodetector()(MZIMesh(4, "reck")(Photodetector()(mesh(inputs)))[:, :3])
    model = keras.Model(inputs, outputs)
    # Of the 8 and 10 slots, 2 and 4 hold no cell.
    assert empty_slots(model).size == (2 + 4) * 7
    noise = pnn.Variation(theta=0.1, theta_error=0.1, splitter_imbalance=0.1)
    sat = pnn.SATModel(model, rho=0.2, ascent=ascent, variation=noise)
    sat.compile(keras.optimizers.Adam(0.05), loss="mse")
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


# --- Whole paths.


def test_sharpness_aware_training_learns_a_matrix(rng):
    keras.utils.set_random_seed(0)
    x = fields(rng, 64, 8).astype("complex64")
    y = np.abs(x @ unitary(8).T) ** 2
    inputs = keras.Input((8,), dtype="complex64")
    model = keras.Model(inputs, Photodetector()(MZIMesh(8)(inputs)))
    sat = pnn.SATModel(model, rho=0.02)
    sat.compile(keras.optimizers.Adam(0.05), loss="mse")
    history = sat.fit(x, y, epochs=30, batch_size=16, verbose=0).history
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert min(history["sharpness"]) > 0


def test_many_devices_equal_one_after_the_other(rng):
    x, y = data(rng, modes=8)
    model = network(modes=8)
    model.compile("sgd", loss="mse", metrics=["mae"])
    variation = pnn.Variation(
        theta_error=0.1, phi_error=0.1, splitter_imbalance=0.15, loss_db=0.2
    )
    devices = variation.sample(model, 3, seed=2)
    together = pnn.evaluate_devices(model, x, y, devices, batch_size=6, verbose=0)
    assert together.vectorized
    for i, device in enumerate(devices):
        with device.installed(model):
            loss, mae = model.evaluate(x, y, verbose=0)
        assert together["loss"][i] == pytest.approx(loss, rel=1e-4)
        assert together["mae"][i] == pytest.approx(mae, rel=1e-4)
    assert np.std(together["loss"]) > 1e-3 * np.mean(together["loss"])


def test_drift_of_a_phase(rng):
    x, y = data(rng)
    model = network(names=("mesh", "dense"))
    model.compile(keras.optimizers.SGD(0.0), loss="mse")
    layer = model.get_layer("mesh")
    drift = pnn.callbacks.DriftInjection(
        "mesh/theta_error", pnn.drift.Linear(0.2), during="validation", every="epoch"
    )
    history = model.fit(
        x, y, validation_data=(x, y), epochs=3, callbacks=[drift], verbose=0
    ).history
    assert not np.any(layer.imperfections["theta_error"])
    for epoch in range(3):
        layer.imperfections["theta_error"].assign(np.full((4, 2), 0.2 * epoch))
        expected = model.evaluate(x, y, verbose=0)
        assert history["val_loss"][epoch] == pytest.approx(expected, rel=1e-5)
    assert np.ptp(history["val_loss"]) > 1e-3


def test_hessian_of_a_mesh_equals_differences(rng):
    start = initializers.Haar(seed=2)
    layer = MZIMesh(4, phase_initializer=start, dtype="float64")
    inputs = keras.Input((4,), dtype="float64")
    model = keras.Model(inputs, Photodetector(dtype="float64")(layer(inputs)))
    model.compile("sgd", loss=keras.losses.MeanSquaredError(dtype="float64"))
    x, y = rng.normal(size=(5, 4)), rng.uniform(size=(5, 4))
    result = pnn.hessian_eigenvalues(model, x, y, k=2, tolerance=1e-8)
    variables = [layer.controls[n] for n in ("theta", "phi", "gamma")]

    def slope(flat):
        parts = np.split(flat, [8, 16])
        for variable, part in zip(variables, parts, strict=True):
            variable.assign(part.reshape(variable.shape))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients = tape.gradient(loss, [v.value for v in variables])
        return np.concatenate([g.numpy().ravel() for g in gradients])

    flat = np.concatenate([v.numpy().ravel() for v in variables])
    rows = [
        (slope(flat + 1e-5 * unit) - slope(flat - 1e-5 * unit)) / 2e-5
        for unit in np.eye(flat.size)
    ]
    dense = np.linalg.eigvalsh((np.array(rows) + np.transpose(rows)) / 2)
    assert result.parameters == 20 and result.converged.all()
    np.testing.assert_allclose(result.eigenvalues, dense[:-3:-1], rtol=1e-6)


def test_training_on_a_device(rng):
    x, _ = data(rng)
    model, teacher = (
        keras.Sequential([keras.Input((4,)), MZIMesh(4), Photodetector()])
        for _ in range(2)
    )
    # What another mesh gives, so that there is something to learn.
    y = teacher.predict(x, verbose=0)
    (device,) = pnn.Variation(theta_error=0.3, splitter_imbalance=0.2).sample(model, 1)
    sat = pnn.SATModel(model, rho=0.05, device=device)
    sat.compile(keras.optimizers.Adam(0.02), loss="mse")
    # Loss and gradients are those at the device: it learns there.
    with device.installed(model):
        expected = float(sat.evaluate(x, y, verbose=0))
    first = sat.train_on_batch(x, y, return_dict=True)["loss"]
    assert first == pytest.approx(expected, rel=1e-5)
    ideal = float(sat.evaluate(x, y, verbose=0))
    assert expected != pytest.approx(ideal, rel=1e-3)
    sat.fit(x, y, epochs=30, batch_size=12, verbose=0)
    with device.installed(model):
        assert sat.evaluate(x, y, verbose=0) < 0.8 * expected


def test_noise_aware_training_meets_the_devices_that_are_sampled(rng):
    x, y = data(rng)
    model = network()
    variation = pnn.Variation(theta_error=0.2, splitter_imbalance=0.2)
    sat = pnn.SATModel(model, ascent=None, variation=variation, seed=3)
    sat.compile(keras.optimizers.SGD(0.0), loss="mse")
    history = sat.fit(x, y, epochs=3, batch_size=12, verbose=0).history["loss"]
    for loss, device in zip(history, variation.sample(model, 3, seed=3), strict=True):
        with device.installed(model):
            expected = float(sat.evaluate(x, y, verbose=0))
        assert loss == pytest.approx(expected, rel=1e-4)
    assert len(set(history)) == 3
    assert not empty_slots(model).any()
    for layer in pnn.layers.physical_layers(model):
        assert not any(np.any(v) for v in layer.imperfections.values())


def test_networks_of_one_architecture_meet_the_same_device():
    one, other = network(), network(names=("alpha", "beta"))
    variation = pnn.Variation(theta_error=0.1, splitter_imbalance=0.1, loss_db=0.1)
    ours, theirs = (variation.sample(m, 1, seed=4)[0] for m in (one, other))
    assert ours.deviations.keys() == theirs.deviations.keys()
    assert len(ours.deviations) == 9
    for key, value in ours.deviations.items():
        np.testing.assert_array_equal(value, theirs.deviations[key])
    with theirs.installed(one), ours.installed(other):
        for a, b in zip(
            pnn.layers.physical_layers(one),
            pnn.layers.physical_layers(other),
            strict=True,
        ):
            for name, variable in a.imperfections.items():
                np.testing.assert_array_equal(variable, b.imperfections[name])


def test_docstring_examples_run():
    finder = doctest.DocTestFinder(recurse=False)
    spots = {"pnn": pnn, "np": np, "keras": keras}
    for thing in (MZIMesh, MZIDense):
        (example,) = finder.find(thing, thing.__name__, globs=spots)
        assert doctest.DocTestRunner().run(example).failed == 0
    assert mzi.MZIMesh is pnn.layers.MZIMesh


# --- Positions on the chip.


def test_position_is_the_upper_mode_and_the_column():
    layer = built(5, "reck")
    exists = cell_mask(5, "reck")
    places = {layer.position("theta", tuple(i)) for i in np.argwhere(exists)}
    expected = {("", m, k) for m in range(4) for k in range(m, 2 * 5 - 3 - m, 2)}
    assert places == expected and len(places) == 10
    assert layer.position("gamma", (3,)) == ("", 3, "")
    assert Attenuators(3).position("gain", ()) == ("", "", "")


# --- Values that a device cannot have.


@pytest.mark.parametrize("name", ["", "mesh/"])
def test_given_imbalances_and_losses_must_exist(name):
    layer = MZIMesh(4, loss_db=0.5, name="mesh", dtype="float64")
    model = keras.Sequential([keras.Input((4,)), layer, Photodetector()])
    for value in (2.0, -1.01):
        with pytest.raises(ValueError, match=rf"imbalance` must.*Received: {value:g}"):
            pnn.devices.sweep(model, f"{name}splitter_imbalance", [0.0, value])
    with pytest.raises(ValueError, match=r"`loss_db` of a cell.*Received: -0.1"):
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
    with pytest.raises(ValueError, match=r"`loss_db` of a cell.*Received: -0.05"):
        pnn.devices.sweep(model, "loss_db", [-0.3])
    assert len(pnn.devices.sweep(model, "loss_db", [-0.25])) == 1


def test_draws_beyond_the_range_count_as_its_ends():
    layer = MZIMesh(4, dtype="float64")
    model = keras.Sequential([keras.Input((4,)), layer])
    variation = pnn.Variation(splitter_imbalance=3.0)
    for device in variation.sample(model, 2):
        angles = device.deviations["splitter_error", 0][cell_mask(4)]
        assert np.abs(angles).max() == pytest.approx(np.pi / 4)


# --- Arguments that cannot be.

BAD = [
    *[({"units": u}, "`units`.*≥ 2") for u in (1, 0, -4, 2.5, None, "many", True)],
    ({"arrangement": "diamond"}, "clements.*reck"),
    ({"arrangement": None}, "clements.*reck"),
    *[({"phase_initializer": p}, "haar.*uniform") for p in ("random", 3, None)],
    *[({"loss_db": v}, "`loss_db`") for v in (-1, np.nan, np.inf, "a", None, 1j)],
    *[({"loss_db": v}, "`loss_db`") for v in (np.zeros((4, 3)), [[1], [1, 2]])],
    *[({"straight_loss_db": v}, "`straight_loss_db`") for v in (-1, np.nan, "a")],
    ({"straight_loss_db": np.zeros((4, 2))}, "`straight_loss_db`"),
    ({"dac": 8}, "dac"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=str)
@pytest.mark.parametrize("kind", [MZIMesh, MZIDense])
def test_bad_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}.*Received"):
        kind(**{"units": 4, **arguments})


@pytest.mark.parametrize(
    "crosstalk",
    [np.eye(4), np.eye(8), np.ones(16), 1.0, "a", [[1], [1, 2]], np.eye(16) * (1 + 1j)],
    ids=str,
)
def test_bad_crosstalk(crosstalk):
    with pytest.raises(ValueError, match=r"`crosstalk`.*\(16, 16\).*Received: shape"):
        MZIMesh(4, crosstalk=crosstalk)


def test_crosstalk_must_be_finite():
    matrix = np.eye(16)
    matrix[0, 1] = np.nan
    with pytest.raises(ValueError, match=r"`crosstalk`.*finite.*Received: 1 elem"):
        MZIMesh(4, crosstalk=matrix)


def test_a_dense_takes_one_loss_for_both_meshes():
    with pytest.raises(
        ValueError, match=r"`loss_db` must be a finite number.*Received"
    ):
        MZIDense(4, loss_db=np.zeros((4, 2)))


@pytest.mark.parametrize("shape", [(2, 5), (4,), (2, 3, 3)], ids=str)
def test_wrong_width_of_the_inputs(shape):
    with pytest.raises(ValueError, match=r"4 modes.*Received: shape"):
        MZIMesh(4)(np.ones(shape, "float32"))
    layer = built(4, dtype="float32")
    with pytest.raises(ValueError, match=r"4 modes.*Received: shape"):
        layer(np.ones(shape, "float32"))
    with pytest.raises(ValueError, match="4 modes"):
        layer(keras.Input(batch_shape=shape))


@pytest.mark.parametrize("shape", [(2, 1), (4,), (2, None)], ids=str)
def test_widths_that_a_dense_cannot_have(shape):
    with pytest.raises(ValueError, match=r"2 modes or more.*Received: shape"):
        MZIDense(3).build(shape)


def test_width_of_a_built_dense():
    layer = MZIDense(3)
    layer.build((None, 4))
    with pytest.raises(ValueError, match=r"4 modes.*Received: shape"):
        layer(np.ones((2, 5), "float32"))


@pytest.mark.parametrize("method", ["program", "correct"])
def test_matrices_that_a_mesh_cannot_be(method):
    set_to = getattr(built(4), method)
    with pytest.raises(ValueError, match=r"must be unitary.*Received"):
        set_to(2 * np.eye(4))
    with pytest.raises(ValueError, match=r"finite.*Received"):
        set_to(np.full((4, 4), np.nan))
    wrong = np.eye(3), np.eye(4)[:3], np.ones(4), np.eye(4, dtype=bool), "unit"
    for bad in (*wrong, [[1, 0], [1]]):
        with pytest.raises(ValueError, match=r"shape \(4, 4\).*Received"):
            set_to(bad)


def test_a_matrix_that_is_refused_changes_nothing():
    layer = MZIDense(3)
    layer.build((None, 4))
    before = [v.numpy() for v in layer.trainable_variables]
    with pytest.raises(ValueError, match=r"finite.*Received: NaN"):
        layer.program(np.full((3, 4), np.nan))
    for bad in (np.ones((4, 3)), np.ones((3, 4, 1)), np.ones((3, 4), object)):
        with pytest.raises(ValueError, match=r"shape \(3, 4\).*Received"):
            layer.program(bad)
    for variable, value in zip(layer.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("kind", [MZIMesh, MZIDense])
def test_a_layer_that_is_not_built_says_so(kind):
    calls = [lambda la: la.program(np.eye(4)), lambda la: la.transfer_matrix()]
    if kind is MZIMesh:
        calls += [lambda la: la.correct(np.eye(4)), lambda la: la.wrap()]
    for call in calls:
        with pytest.raises(ValueError, match=r"built.*Received"):
            call(kind(4))
