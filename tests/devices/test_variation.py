"""Draws of devices: what they depend on, and what they look like."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from models import modulator

import keras_pnn as pnn
from keras_pnn.devices.draws import standard_normal
from keras_pnn.physics.mesh import cell_mask as mesh_cells


def two_banks(names=(None, None)):
    first = pnn.layers.MRRBank(5, name=names[0])
    second = pnn.layers.MRRBank(4, name=names[1])
    return keras.Sequential([keras.Input((3,)), first, second])


def meshes(names=("first", "second")):
    first = pnn.layers.MZIMesh(6, name=names[0])
    second = pnn.layers.MZIMesh(6, "reck", loss_db=0.1, name=names[1])
    return keras.Sequential([keras.Input((6,)), first, second])


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.deviations.keys() == b.deviations.keys()
        for key, value in a.deviations.items():
            np.testing.assert_array_equal(value, b.deviations[key])


def saved_and_loaded(variation):
    config = keras.saving.serialize_keras_object(variation)
    return keras.saving.deserialize_keras_object(config)


GOLDEN = [-0.37994, 0.65532, 1.60897]
VARIATION = pnn.Variation(resonance_shift=0.08, temperature=1.0, half_width_error=0.1)


@pytest.mark.parametrize(
    ("make", "variation"),
    [(two_banks, VARIATION), (meshes, pnn.Variation(splitter_imbalance=0.15))],
)
def test_draws_do_not_depend_on_names_or_wrappers(make, variation):
    one, other = make(("a", "b")), make(("c", "d"))
    devices = variation.sample(one, 3, seed=5)
    nested = keras.Sequential([keras.Input(other.input_shape[1:]), other])
    for model in (other, pnn.SATModel(other), nested):
        assert_same(devices, variation.sample(model, 3, seed=5))
    assert_same(devices, saved_and_loaded(variation).sample(one, 3, seed=5))
    compiled = tf.function(lambda seed: variation.values(one, seed))
    for i, device in enumerate(devices):
        drawn = [q.value(d) for q, d in device.bind(one)]
        expected = sorted(v.numpy().tobytes() for v in drawn)
        values = [value for _, value in variation.values(one, (5, i))]
        assert sorted(v.numpy().tobytes() for v in values) == expected
        traced = [value for _, value in compiled(tf.constant([5, i]))]
        for value, eager in zip(traced, values, strict=True):
            np.testing.assert_allclose(value, eager, atol=1e-6)


def test_a_device_does_not_depend_on_how_many_or_on_the_others():
    model = two_banks()
    many = VARIATION.sample(model, 6, seed=1)
    assert_same(many[:2], VARIATION.sample(model, 2, seed=1))
    alone = pnn.Variation(resonance_shift=0.08).sample(model, 1, seed=1)[0]
    for key, value in alone.deviations.items():
        np.testing.assert_array_equal(value, many[0].deviations[key])
    shift = ("resonance_shift", 0)
    values = [d.deviations[shift] for d in many]
    values += [d.deviations[shift] for d in VARIATION.sample(model, 6, seed=2)]
    assert len({v.tobytes() for v in values}) == 12


def test_layers_and_quantities_have_their_own_draws_but_one_temperature():
    banks = pnn.layers.MRRBank(4), pnn.layers.MRRBank(4)
    model = keras.Sequential([keras.Input((4,)), *banks])
    (device,) = VARIATION.sample(model, 1)
    drawn = dict(device.deviations)
    zero, one = (drawn.pop(("temperature", i)) for i in range(2))
    assert zero == one != 0
    assert len({v.tobytes() for v in drawn.values()}) == 4


def test_one_layer_by_its_name():
    model = two_banks(("first", "second"))
    (device,) = pnn.Variation({"second/resonance_shift": 0.08}).sample(model, 1)
    assert list(device.deviations) == [("resonance_shift", 1)]
    # The same draw as when all layers deviate.
    (both,) = pnn.Variation(resonance_shift=0.08).sample(model, 1)
    np.testing.assert_array_equal(
        device.deviations["resonance_shift", 1], both.deviations["resonance_shift", 1]
    )
    # A name with a layer wins, in whatever order they come.
    for spreads in (
        {"second/resonance_shift": 0.0, "resonance_shift": 0.08},
        {"resonance_shift": 0.08, "second/resonance_shift": 0.0},
    ):
        (mixed,) = pnn.Variation(spreads).sample(model, 1)
        assert mixed.deviations["resonance_shift", 0].any()
        assert not mixed.deviations["resonance_shift", 1].any()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_draws_do_not_depend_on_the_compiler(dtype):
    def draw(seed):
        return tf.cast(standard_normal((40, 50), seed, dtype), "float64")

    seed = tf.constant([3, 5])
    expected = draw(seed).numpy()
    for jit_compile in (False, True):
        found = tf.function(draw, autograph=False, jit_compile=jit_compile)(seed)
        atol = 0.02 if dtype == "bfloat16" else 1e-6
        np.testing.assert_allclose(found, expected, atol=atol)
    # Golden: another machine goes on with the same devices.
    np.testing.assert_allclose(expected[0, :3], GOLDEN, atol=0.02)
    assert scipy.stats.kstest(np.ravel(expected), "norm").pvalue > 0.01


def test_statistics():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((40,)), pnn.layers.MRRBank(50)])
    devices = pnn.Variation(resonance_shift=0.08, temperature=2.0).sample(model, 40)
    shifts = np.stack([d.deviations["resonance_shift", 0] for d in devices])
    n = shifts.size
    assert abs(shifts.mean()) < 4 * 0.08 / np.sqrt(n)
    assert abs(shifts.std() - 0.08) < 4 * 0.08 / np.sqrt(2 * n)
    # Between devices and between rings alike: no axis shares its draws.
    for axis in range(3):
        means = shifts.mean(axis=axis)
        error = 0.08 / np.sqrt(shifts.shape[axis])
        spread = 4 * error / np.sqrt(2 * means.size)
        assert abs(means.std() - error) < spread
    kelvin = np.array([d.deviations["temperature", 0] for d in devices])
    assert abs(kelvin.std() - 2.0) < 4 * 2.0 / np.sqrt(2 * 40)


def test_weights_deviate_from_their_present_value():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    kernel = model.layers[0].kernel.numpy()
    (device,) = pnn.Variation(kernel=0.3).sample(model, 1)
    with device.installed(model):
        moved = model.layers[0].kernel.numpy()
    np.testing.assert_array_equal(moved, kernel + device.deviations["kernel", 0])
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), kernel)
    assert np.abs(moved - kernel).max() > 0.05


def test_correlation_function():
    length, n = 3.0, 400
    correlated = pnn.Correlated(0.5, length)
    draws = np.stack([correlated.draw((2, 3, 5), (0, i), "float64") for i in range(n)])
    # (kh, kw·…) flattened are columns, the last axis rows.
    samples = draws.reshape(n, 30)
    column, row = np.divmod(np.arange(30), 5)
    distance = np.abs(np.subtract.outer(column, column))
    distance += np.abs(np.subtract.outer(row, row))
    expected = 0.25 * np.exp(-distance / length)
    measured = samples.T @ samples / n
    # The variance of a sample covariance of Gaussians is (s_ii s_jj + s_ij²) / n.
    errors = np.sqrt((0.25**2 + expected**2) / n)
    assert (np.abs(measured - expected) < 5 * errors).all()


@pytest.mark.parametrize("length", [1e-3, 1e9, 1e20])
def test_extreme_correlation_lengths(length):
    draw = pnn.Correlated(0.5, length).draw((30, 40), (0, 1), "float64").numpy()
    if length < 1:
        assert abs(draw.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * draw.size)
    else:
        assert draw.std() < 1e-2 and abs(draw.mean()) > 1e-3


def test_correlated_in_a_variation_and_a_scalar():
    model = two_banks()
    correlated = pnn.Correlated(0.08, 2.0)
    variation = pnn.Variation(resonance_shift=correlated, temperature=correlated)
    (device,) = variation.sample(model, 1)
    assert device.deviations["resonance_shift", 1].shape == (5, 4)
    assert device.deviations["temperature", 0].shape == ()
    assert_same([device], saved_and_loaded(variation).sample(model, 1))


def test_tfp_distribution():
    import tensorflow_probability as tfp

    model = two_banks()
    uniform = tfp.distributions.Uniform(0.2, 0.3)
    (device,) = pnn.Variation(resonance_shift=uniform).sample(model, 1)
    for index, shape in enumerate([(3, 5), (5, 4)]):
        drawn = device.deviations["resonance_shift", index]
        assert drawn.shape == shape and drawn.dtype == "float32"
        assert drawn.min() >= 0.2 and drawn.max() <= 0.3 and drawn.std() > 0
    # A distribution of vectors lies along the last axis.
    along = tfp.distributions.MultivariateNormalDiag(np.arange(4.0), 1e-6 * np.ones(4))
    variation = pnn.Variation({f"{model.layers[1].name}/resonance_shift": along})
    (device,) = variation.sample(model, 1)
    drawn = device.deviations["resonance_shift", 1]
    np.testing.assert_allclose(drawn, np.tile(np.arange(4.0), (5, 1)), atol=1e-4)
    with pytest.raises(ValueError, match="shape that ends"):
        pnn.Variation(resonance_shift=along).sample(model, 1)
    with pytest.raises(ValueError, match="pass other distributions again"):
        pnn.Variation(resonance_shift=uniform).get_config()


def test_slots_without_a_cell_are_never_drawn():
    model = meshes()
    variation = pnn.Variation(
        theta_error=0.1,
        phi_error=pnn.Correlated(0.1, 2.0),
        splitter_error=0.1,
        loss_db=0.1,
        theta=0.1,
    )
    (device,) = variation.sample(model, 1)
    assert len(device.deviations) == 10
    # In this order in every process, and so in a file.
    assert list(device.architecture) == list(variation.spreads)
    for (name, index), drawn in device.deviations.items():
        exists = mesh_cells(6, ("clements", "reck")[index])
        assert drawn.shape[:2] == exists.shape and not exists.all()
        assert (drawn[exists] != 0).all() and (drawn[~exists] == 0).all()
        assert drawn.dtype == "float32", name
    with device.installed(model):
        loss = model.layers[1].imperfections["loss_db"].numpy()
    ideal = np.full((~exists).sum(), 0.1, "float32")
    np.testing.assert_array_equal(loss[~exists], ideal)


@pytest.mark.parametrize(("layer", "spread"), [("", 0.15), ("second/", 0.7)])
def test_imbalance_of_splitters_is_drawn_and_becomes_an_angle(layer, spread):
    model = meshes()
    drawn, angles = (
        pnn.Variation({f"{layer}{name}": spread}).sample(model, 2, seed=3)
        for name in ("splitter_error", "splitter_imbalance")
    )
    keys = [("splitter_error", i) for i in ((1,) if layer else (0, 1))]
    for one, other in zip(drawn, angles, strict=True):
        assert list(one.deviations) == list(other.deviations) == keys
        for key in keys:
            imbalance = one.deviations[key].astype("float64")
            # What no splitter has is taken to the end of the range.
            expected = -np.arcsin(np.clip(imbalance, -1, 1)) / 2
            np.testing.assert_allclose(other.deviations[key], expected, atol=1e-6)
            assert (np.abs(imbalance) > 1).any() == (spread > 0.5)


def test_an_imperfection_under_two_names():
    variation = pnn.Variation(splitter_error=0.1, splitter_imbalance=0.1)
    with pytest.raises(ValueError, match=r"must be given once.*splitter_error"):
        variation.sample(meshes(), 1)
    # One layer's own spread goes before that of all layers, under either name.
    mixed = pnn.Variation({"splitter_error": 0.1, "first/splitter_imbalance": 0.0})
    (device,) = mixed.sample(meshes(), 1)
    assert not device.deviations["splitter_error", 0].any()
    assert device.deviations["splitter_error", 1].any()


def test_draws_that_do_not_exist_are_refused():
    model = modulator()
    drawn = pnn.Variation(scale=0.3).sample(model, 20)
    values = np.array([d.deviations["scale", 0] for d in drawn])
    # The same draws, the lowest of them just above a scale of 0, and just below.
    widest = 0.3 / -values.min()
    assert len(pnn.Variation(scale=0.99 * widest).sample(model, 20)) == 20
    message = r"'slm/scale' must be above 0.*TruncatedNormal.*smaller.*Received: "
    with pytest.raises(ValueError, match=message):
        pnn.Variation(scale=1.01 * widest).sample(model, 20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pnn.Variation(), "Received: nothing"),
        (lambda: pnn.Variation(resonance_shift=-0.1), "`resonance_shift`.*-0.1"),
        (lambda: pnn.Variation(resonance_shift=np.inf), "`resonance_shift`.*inf"),
        (lambda: pnn.Variation(resonance_shift="big"), "`resonance_shift`.*'big'"),
        (lambda: pnn.Correlated(-1.0, 1.0), "`std` .*≥ 0. Received: -1"),
        (lambda: pnn.Correlated(1.0, 0.0), "`length` .*> 0. Received: 0"),
        (lambda: VARIATION.scaled(-1), "`factor` .*≥ 0. Received: -1"),
        (lambda: VARIATION.sample(two_banks(), 0), "`n` .*≥ 1. Received: 0"),
        (lambda: VARIATION.sample(two_banks(), 1, -1), "`seed` .*≥ 0. Received: -1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "name", "listed"),
    [
        (two_banks, "third/resonance_shift", "resonance_shift.*bias"),
        (two_banks, "splitter_imbalance", "resonance_shift.*bias"),
        (meshes, "third/splitter_imbalance", "splitter_error"),
    ],
)
def test_bad_names_list_what_exists(make, name, listed):
    with pytest.raises(ValueError, match=f"{listed}.*Received: '{name}'"):
        pnn.Variation({name: 0.1}).sample(make(), 1)
