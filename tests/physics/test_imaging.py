"""The warp against SciPy's, its derivatives against differences, masks in tiles."""

import functools

import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pnn.physics import imaging
from keras_pnn.physics.imaging import affine

ALIGNED = (0.0, (0.0, 0.0), 1.0)
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


def eager(function):
    return function


def compiled(function):
    return tf.function(function, jit_compile=True)


def sources(size, rotation=0.0, shift=(0.0, 0.0), scale=1.0, center=None):
    """Where pixels come from, in the complex plane: x to the right, y up."""
    middle = (np.array(size) - 1) / 2 if center is None else np.array(center)
    rows, columns = np.indices(size)
    offset = columns - middle[1] - shift[1] - 1j * (rows - middle[0] - shift[0])
    source = offset * np.exp(-1j * np.deg2rad(rotation)) / scale
    return np.stack([middle[0] - source.imag, middle[1] + source.real])


def by_scipy(image, *parameters, **center):
    places = sources(image.shape, *parameters, **center)
    return scipy.ndimage.map_coordinates(
        image.astype("float64"), places, order=1, mode="grid-constant", cval=0
    )


def draw(rng):
    return rng.uniform(-180, 180), rng.uniform(-4, 4, 2), rng.uniform(0.5, 2)


def draw_off_pixels(rng, size):
    """Parameters with which no sample is within 1e-3 of a row or column."""
    while True:
        parameters = draw(rng)
        places = sources(size, *parameters)
        if np.abs(places - np.round(places)).min() > 1e-3:
            return parameters


def draw_batch(rng, size, batch):
    each = [draw_off_pixels(rng, size) for _ in range(batch)]
    return tuple(np.array(values) for values in zip(*each, strict=True))


def tensors(values):
    return [tf.constant(value, "float64") for value in values]


def gradients(function, values):
    with tf.GradientTape() as tape:
        tape.watch(values)
        value = function(*values)
    return tape.gradient(value, values)


def quotients(function, values, step):
    """One-sided difference quotients by each entry of each value."""
    start, slopes = function(*values), []
    for i, value in enumerate(values):
        slope = np.zeros(value.shape)
        for entry in np.ndindex(slope.shape):
            moved = np.array(value)
            moved[entry] += step
            moved = [*values[:i], tf.constant(moved), *values[i + 1 :]]
            slope[entry] = (function(*moved) - start) / step
        slopes.append(slope)
    return slopes


def central(function, values, step):
    right, left = (quotients(function, values, h) for h in (step, -step))
    return [(a + b) / 2 for a, b in zip(right, left, strict=True)]


def assert_close(got, expected, **tolerance):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


# Values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_scipy(dtype):
    rng = np.random.default_rng(0)
    for i in range(40):
        size = tuple(rng.integers(1, 25, 2))
        image = rng.random(size).astype(dtype)
        parameters = draw(rng)
        center = tuple(rng.uniform(-3, 20, 2)) if i % 2 else None
        warped = affine(image, *parameters, center=center)
        assert warped.dtype == dtype
        np.testing.assert_allclose(
            warped,
            by_scipy(image, *parameters, center=center),
            rtol=0,
            atol=TOLERANCE[dtype],
        )


@pytest.mark.parametrize(
    "dtype, size", [("float32", (8, 5)), ("float64", (1, 6)), ("float64", (1, 1))]
)
def test_equals_scipy_compiled(dtype, size):
    rng = np.random.default_rng(1)
    image = rng.random(size).astype(dtype)
    warp = compiled(affine)
    for parameters in [draw(rng) for _ in range(20)] + [ALIGNED]:
        np.testing.assert_allclose(
            warp(image, *tensors(parameters)),
            by_scipy(image, *parameters),
            rtol=0,
            atol=TOLERANCE[dtype],
        )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_parameters_for_each_image(jit_compile):
    rng = np.random.default_rng(2)
    images = rng.random((3, 6, 7, 2))
    each = tensors(draw_batch(rng, (6, 7), 3))
    warped = tf.function(affine, jit_compile=jit_compile)(images, *each)
    for i, channel in np.ndindex(3, 2):
        np.testing.assert_allclose(
            warped[i, ..., channel],
            affine(images[i, ..., channel], *[value[i] for value in each]),
            rtol=0,
            atol=1e-14,
        )


@pytest.mark.parametrize("which", range(4))
def test_some_parameters_for_each_image(which):
    rng = np.random.default_rng(2)
    images = rng.random((3, 6, 7, 2))
    each = draw_batch(rng, (6, 7), 3)
    # One of them for each image, or none.
    given = [v if i == which else v[0] for i, v in enumerate(each)]
    every = [v if i == which else v[[0, 0, 0]] for i, v in enumerate(each)]
    np.testing.assert_allclose(
        affine(images, *given), affine(images, *every), rtol=0, atol=1e-14
    )


def test_ranks():
    rng = np.random.default_rng(3)
    images = rng.random((3, 6, 7))
    parameters = draw_batch(rng, (6, 7), 3)
    warped = affine(images, *parameters)
    assert warped.shape == (3, 6, 7)
    np.testing.assert_array_equal(
        warped, affine(images[..., None], *parameters)[..., 0]
    )
    assert affine(images[:1], [10.0], [[1.0, 0.0]], [2.0]).shape == (1, 6, 7)
    assert affine(images[:0], 10.0).shape == (0, 6, 7)
    assert affine(images[:0], np.zeros(0)).shape == (0, 6, 7)


def test_a_large_image_in_float32_is_as_precise():
    image = np.random.default_rng(4).random((200, 200)).astype("float32")
    parameters = (179.9, (30.1, -0.7), 1.1)
    np.testing.assert_allclose(
        affine(image, *parameters), by_scipy(image, *parameters), rtol=0, atol=1e-6
    )


# Convention


DOT = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 0]], "float64")


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"rotation": 90.0}, [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
        ({"rotation": -90.0}, [[0, 0, 0], [0, 0, 0], [0, 1, 0]]),
        ({"rotation": 180.0}, [[0, 0, 0], [1, 0, 0], [0, 0, 0]]),
        ({"shift": (1.0, 0.0)}, [[0, 0, 0], [0, 0, 0], [0, 0, 1]]),
        ({"shift": (0.0, -1.0)}, [[0, 0, 0], [0, 1, 0], [0, 0, 0]]),
        ({"shift": (0.0, 1.0)}, [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ({"shift": (-0.25, 0.0)}, [[0, 0, 0.25], [0, 0, 0.75], [0, 0, 0]]),
        ({"scale": 2.0}, [[0, 0, 0.25], [0, 0, 0.5], [0, 0, 0.25]]),
        ({"scale": 0.5}, [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ({"rotation": 90.0, "center": (1, 2)}, [[0, 0, 0], [0, 0, 1], [0, 0, 0]]),
        ({"rotation": 90.0, "center": (0, 1)}, [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ({"rotation": -90.0, "center": (2, 2)}, [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ({"rotation": 90.0, "center": (2, 2)}, [[0, 0, 0], [0, 0, 0], [0, 1, 0]]),
        # Turned up, and then moved to the left.
        (
            {"rotation": 90.0, "shift": (0.0, -1.0)},
            [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        ),
    ],
)
def test_convention(parameters, expected):
    np.testing.assert_array_equal(affine(DOT, **parameters), expected)


def test_enlarged():
    image = np.zeros((5, 5))
    image[2, 2:4] = 1
    expected = np.outer([0, 0.5, 1, 0.5, 0], [0, 0.5, 1, 1, 1])
    np.testing.assert_array_equal(affine(image, scale=2.0), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("side", [6, 7])
def test_quarter_turns_are_exact(jit_compile, dtype, side):
    image = np.random.default_rng(5).random((side, side)).astype(dtype)
    warp = tf.function(affine, jit_compile=jit_compile)
    for turns in range(-5, 6):
        np.testing.assert_array_equal(
            warp(image, tf.constant(90.0 * turns)), np.rot90(image, turns)
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whole_shifts_are_exact(dtype):
    image = np.random.default_rng(6).random((5, 6)).astype(dtype)
    for down in (-6, -4, 0, 1, 5):
        for right in (-5, -1, 0, 3):
            np.testing.assert_array_equal(
                affine(image, shift=(down, right)),
                scipy.ndimage.shift(image, (down, right), order=0),
            )


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (3, 4, 5), (2, 3, 4, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_identity_is_exact(size, dtype):
    image = np.random.default_rng(7).normal(size=size).astype(dtype)
    warped = affine(image)
    assert warped.dtype == dtype
    np.testing.assert_array_equal(warped, image)


# First derivatives


@pytest.mark.parametrize(
    "dtype, shared, wrap",
    [
        ("float32", False, eager),
        ("float64", True, eager),
        ("float64", False, compiled),
        ("float32", True, compiled),
    ],
)
def test_adjoint_in_the_image(dtype, shared, wrap):
    rng = np.random.default_rng(8)
    x, y = rng.random((2, 3, 9, 8, 2)).astype(dtype)
    parameters = draw(rng) if shared else draw_batch(rng, (9, 8), 3)

    @wrap
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            warped = affine(x, *parameters)
        return warped, tape.gradient(warped, x, y)

    warped, back = both(tf.constant(x))
    assert back.dtype == dtype
    forward = np.sum(warped.numpy().astype("float64") * y)
    assert forward > 10
    np.testing.assert_allclose(
        np.sum(back.numpy().astype("float64") * x), forward, rtol=TOLERANCE[dtype]
    )


def test_linear_in_the_image():
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(2, 9, 8))
    warp = functools.partial(affine, rotation=17.0, shift=(0.3, -1.2), scale=1.3)
    np.testing.assert_allclose(
        warp(2 * x - 3 * y), 2 * warp(x) - 3 * warp(y), rtol=0, atol=1e-13
    )


def weighted(seed, size=(3, 5, 6, 2)):
    """A number from images that are warped."""
    x, weights = np.random.default_rng(seed).normal(size=(2, *size))
    return lambda *parameters: tf.reduce_sum(weights * affine(x, *parameters))


@pytest.mark.parametrize("shared, wrap", [(True, eager), (False, compiled)])
def test_derivatives_in_the_parameters(shared, wrap):
    rng = np.random.default_rng(10)
    number = weighted(11)
    exact = wrap(functools.partial(gradients, number))
    for _ in range(2):
        drawn = draw_off_pixels(rng, (5, 6)) if shared else draw_batch(rng, (5, 6), 3)
        values = tensors(drawn)
        assert_close(exact(values), central(number, values, 1e-6), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("wrap", [eager, compiled])
def test_derivatives_on_pixels_are_means(wrap):
    number = weighted(12)
    exact = wrap(functools.partial(gradients, number))
    for parameters in [
        ALIGNED,
        # The first row of zeros, too.
        (0.0, (1.0, -2.0), 1.0),
        (-90.0, (0.5, 1.5), 1.0),
        # Some on pixels, some on a row or a column only, some between.
        (0.0, (0.0, 0.5), 2.0),
    ]:
        values = tensors(parameters)
        right, left = (quotients(number, values, step) for step in (1e-7, -1e-7))
        for slope, a, b in zip(exact(values), right, left, strict=True):
            assert np.all(np.abs(a - b) > 1e-3)
            np.testing.assert_allclose(slope, (a + b) / 2, rtol=1e-5, atol=1e-5)


# Second derivatives


def hessian_vector(function, values, vectors):
    with tf.GradientTape() as tape:
        tape.watch(values)
        slopes = gradients(function, values)
        product = sum(
            tf.reduce_sum(a * b) for a, b in zip(slopes, vectors, strict=True)
        )
    return tape.gradient(product, values)


def inner(a, b):
    return sum(np.sum(np.asarray(x) * y) for x, y in zip(a, b, strict=True))


def along(rng, values):
    return [rng.normal(size=value.shape) for value in values]


@pytest.mark.parametrize("shared", [True, False])
def test_second_derivatives(shared):
    rng = np.random.default_rng(13)
    size = (3, 5, 6)
    drawn = draw_off_pixels(rng, (5, 6)) if shared else draw_batch(rng, (5, 6), 3)
    values = tensors((rng.normal(size=size), *drawn))
    weights = rng.normal(size=size)

    def number(image, *parameters):
        return tf.reduce_sum(weights * affine(image, *parameters) ** 2)

    step = 1e-5
    directions = [along(rng, values) for _ in range(2)]
    products = [hessian_vector(number, values, tensors(v)) for v in directions]
    for v, got in zip(directions, products, strict=True):
        above, below = (
            gradients(number, [a + h * b for a, b in zip(values, v, strict=True)])
            for h in (step, -step)
        )
        expected = [(a - b) / (2 * step) for a, b in zip(above, below, strict=True)]
        assert all(np.any(np.abs(e) > 1e-3) for e in expected)
        assert_close(got, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        inner(products[0], directions[1]), inner(products[1], directions[0]), rtol=1e-10
    )


def test_mixed_second_derivatives_when_aligned():
    """The slope by a parameter is linear in the image, whatever it means."""
    rng = np.random.default_rng(14)
    weights = rng.normal(size=(5, 6))
    values = tensors((rng.normal(size=(5, 6)), *ALIGNED))
    other = tf.constant(rng.normal(size=(5, 6)))
    nothing = [tf.zeros_like(v) for v in values[1:]]
    v = tensors([np.zeros((5, 6)), *along(rng, values[1:])])

    def number(image, *parameters):
        return tf.reduce_sum(weights * affine(image, *parameters))

    expected = gradients(number, [other, *values[1:]])[1:]
    assert_close(
        hessian_vector(number, values, [other, *nothing])[1:], expected, rtol=1e-12
    )
    np.testing.assert_allclose(
        inner(hessian_vector(number, values, v)[:1], [other]),
        inner(expected, v[1:]),
        rtol=1e-12,
    )


# Properties


@settings(max_examples=20, deadline=None)
@given(st.floats(-180, 180), st.integers(0, 1000))
def test_there_and_back(rotation, seed):
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((33, 32))
    frequency, phase = rng.uniform(-0.15, 0.15, 2), rng.uniform(0, 7)
    image = np.sin(frequency[0] * rows + frequency[1] * columns + phase)
    back = affine(affine(image, rotation), -rotation).numpy()
    inside = np.hypot(rows - 16, columns - 15.5) < 14
    np.testing.assert_allclose(back[inside], image[inside], atol=0.015)


@settings(max_examples=20, deadline=None)
@given(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 1000))
def test_the_sum_is_kept_inside(down, right, seed):
    image = np.pad(np.random.default_rng(seed).random((4, 5)), 3)
    np.testing.assert_allclose(
        tf.reduce_sum(affine(image, shift=(down, right))), image.sum(), rtol=1e-13
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_dark_stays_dark(seed):
    parameters = draw(np.random.default_rng(seed))
    assert not np.any(affine(np.zeros((5, 6)), *parameters))


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-180, 180),
    st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
    st.floats(0.7, 1.5),
    st.tuples(st.floats(-4, 4), st.floats(-4, 4)),
)
def test_a_blob_goes_where_it_should(rotation, shift, scale, offset):
    rows, columns = np.indices((50, 49))
    middle = np.array([24.5, 24.0])
    at = middle + offset
    image = np.exp(-((rows - at[0]) ** 2 + (columns - at[1]) ** 2) / (2 * 1.5**2))
    warped = affine(image, rotation, shift, scale).numpy()
    centroid = np.array([(rows * warped).sum(), (columns * warped).sum()])
    # x to the right, y up.
    turned = scale * np.exp(1j * np.deg2rad(rotation)) * (offset[1] - 1j * offset[0])
    expected = middle + shift + [-turned.imag, turned.real]
    np.testing.assert_allclose(centroid / warped.sum(), expected, atol=0.05)
    np.testing.assert_allclose(warped.sum(), scale**2 * image.sum(), rtol=0.05)


# Graphs and variables


def test_unknown_sizes():
    rng = np.random.default_rng(15)
    unknown = tf.TensorSpec((None, None, None, 2), "float64")
    angles = tf.TensorSpec((None,), "float64")
    angle = tf.TensorSpec((), "float64")

    @tf.function(input_signature=[unknown, angles, angle])
    def warp(images, each, shared):
        warped = affine(images, each, (0.5, -1.0), 1.2), affine(images, shared)
        assert all(w.shape[-1] == 2 for w in warped)
        return warped

    for size in [(3, 5, 6, 2), (1, 1, 4, 2)]:
        images, each = rng.random(size), rng.uniform(-90, 90, size[0])
        expected = affine(images, each, (0.5, -1.0), 1.2), affine(images, 10.0)
        assert_close(warp(images, each, 10.0), expected, rtol=0, atol=1e-14)


def test_vectorized_map():
    rng = np.random.default_rng(16)
    images, weights = rng.random((2, 2, 5, 6))
    rotations = tf.constant(rng.uniform(-90, 90, 4))

    def slopes(rotation):
        def number(image, rotation):
            return tf.reduce_sum(weights * affine(image, rotation, (0.3, 0.1), 1.1))

        values = [tf.constant(images), rotation]
        return number(*values), *gradients(number, values)

    mapped = tf.vectorized_map(slopes, rotations, fallback_to_while_loop=False)
    looped = zip(*[slopes(rotation) for rotation in rotations], strict=True)
    assert_close(mapped, [tf.stack(each) for each in looped], rtol=1e-12)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_nan_in_a_graph(jit_compile):
    image = np.ones((4, 5), "float32")
    warp = tf.function(affine, jit_compile=jit_compile)
    for rotation, shift, scale in [
        (np.nan, (0.0, 0.0), 1.0),
        (np.inf, (0.0, 0.0), 1.0),
        (10.0, (0.0, 0.0), 0.0),
        (10.0, (0.0, 0.0), -1.0),
        (10.0, (0.0, 0.0), np.nan),
        (10.0, (0.0, np.nan), 1.0),
    ]:
        warped = warp(
            image, tf.constant(rotation), tf.constant(shift), tf.constant(scale)
        )
        assert np.all(np.isnan(warped))
    warped = warp(
        image[None].repeat(2, 0),
        tf.constant([np.nan, 10.0]),
        tf.constant([0.0, 0.0]),
        tf.constant(1.0),
    )
    assert np.all(np.isnan(warped[0]))
    assert np.all(np.isfinite(warped[1]))


@pytest.mark.parametrize("kind", [tf.Variable, keras.Variable])
def test_variables_get_gradients(kind):
    number = weighted(17)
    values = [10.0, np.array([0.3, -0.6]), 1.1]
    variables = [kind(value, dtype="float64") for value in values]
    with tf.GradientTape() as tape:
        loss = number(*variables)
    watched = [
        getattr(v, "value", v) if kind is keras.Variable else v for v in variables
    ]
    assert_close(
        tape.gradient(loss, watched), gradients(number, tensors(values)), rtol=1e-12
    )


def test_shift_of_tensors():
    number = weighted(18)
    parts = tensors((0.3, -0.6))
    slopes = gradients(lambda y, x: number(10.0, (y, x)), parts)
    (expected,) = gradients(lambda s: number(10.0, s), [tf.stack(parts)])
    np.testing.assert_allclose(tf.stack(slopes), expected, rtol=1e-12)
    assert all(
        g is not None for g in gradients(lambda y: number(0.0, (y, 0)), parts[:1])
    )


@pytest.mark.parametrize(
    "image_dtype, dtype, wrap",
    [
        ("float32", "float32", compiled),
        ("float32", "float32", eager),
        ("float32", "float64", eager),
        ("float64", "float32", eager),
    ],
)
def test_gradients_have_their_own_dtypes(image_dtype, dtype, wrap):
    rng = np.random.default_rng(19)
    x, weights = rng.normal(size=(2, 5, 6)).astype("float32")
    # Exact in float32.
    parameters = (10.0, np.array([0.25, -0.75]), 1.125)

    @wrap
    def slopes(x, weights, *parameters):
        values = [x, *parameters]
        return gradients(lambda *v: tf.reduce_sum(weights * affine(*v)), values)

    got = slopes(
        tf.constant(x, image_dtype),
        tf.constant(weights, image_dtype),
        *[tf.constant(value, dtype) for value in parameters],
    )
    assert [g.dtype for g in got] == [image_dtype, dtype, dtype, dtype]
    exact = gradients(
        lambda *v: tf.reduce_sum(weights * affine(*v)), tensors((x, *parameters))
    )
    assert_close(got, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("bad", [{"scale": -1.0}, {"rotation": np.nan}, {"scale": 0.0}])
def test_a_map_that_is_none_has_no_gradient_of_zero(bad, jit_compile):
    """A gradient of 0 would stop a training without a word."""

    @tf.function(jit_compile=jit_compile)
    def gradients(image, rotation, scale):
        with tf.GradientTape() as tape:
            tape.watch([image, rotation, scale])
            total = tf.reduce_sum(affine(image, rotation, (0.0, 0.0), scale))
        return tape.gradient(total, [image, rotation, scale])

    values = {"rotation": 0.0, "scale": 1.0, **bad}
    image, *others = gradients(
        tf.ones((4, 5)), *(tf.constant(v) for v in values.values())
    )
    assert np.isnan(image).all() and np.isnan(others).all()


# Errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scale": 0.0}, "`scale` must be positive and finite. Received: scale=0"),
        ({"scale": -1.0}, "`scale` must be positive and finite. Received: scale=-1"),
        ({"scale": np.nan}, "`scale` must be positive and finite. Received: scale=nan"),
        ({"scale": [1.0, 1.0, 0.0]}, "`scale` must be positive.*Received"),
        ({"rotation": np.nan}, "`rotation` must be finite. Received: rotation=nan"),
        ({"rotation": np.inf}, "`rotation` must be finite. Received: rotation=inf"),
        ({"shift": (np.nan, 0.0)}, "`shift` must be finite. Received: shift=nan"),
        ({"shift": (0.0, -np.inf)}, "`shift` must be finite. Received: shift=-inf"),
        ({"image": np.ones(3)}, "`image` must have the shape.*Received: shape"),
        ({"image": np.ones((1, 2, 3, 4, 5))}, "`image` must have.*Received: shape"),
        ({"image": np.ones((3, 3), "complex64")}, "`image` must be real.*Received"),
        ({"center": (1.0, float("nan"))}, "`center`.*Received"),
        ({"center": (1.0, 2.0, 3.0)}, "`center`.*Received"),
        ({"center": 1.0}, "`center`.*Received"),
        ({"rotation": np.zeros(2)}, r"`rotation` must be .*Received: shape \(2,\)"),
        ({"rotation": np.zeros((3, 1))}, r"`rotation` must be .*Received: shape"),
        ({"scale": np.ones(2)}, r"`scale` must be a scalar.*Received: shape \(2,\)"),
        ({"shift": np.zeros((2, 2))}, r"`shift` must be .*Received: shape \(2, 2\)"),
        ({"shift": (1.0,)}, r"`shift` must be \(y, x\).*Received: shape \(1,\)"),
        ({"shift": (1.0, 2.0, 3.0)}, r"`shift` must be .*Received: shape \(3,\)"),
        ({"shift": 1.0}, r"`shift` must be .*Received: shape \(\)"),
        (
            {"image": np.ones((3, 3)), "rotation": np.zeros(3)},
            r"`rotation` must be a scalar. Received: shape \(3,\)",
        ),
        (
            {"image": np.ones((3, 3)), "shift": np.zeros((3, 2))},
            r"`shift` must be .*Received: shape \(3, 2\)",
        ),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        affine(**{"image": np.ones((3, 4, 4)), **arguments})


# Tiles


def layouts():
    def pairs(least, most):
        return st.tuples(st.integers(least, most), st.integers(least, most))

    return st.fixed_dictionaries(
        {
            "units": st.integers(1, 7),
            "tile": pairs(1, 4),
            "grid": pairs(1, 3),
            "margin": pairs(0, 2),
            "pixel_repeat": pairs(1, 3),
        }
    )


def place(unit, row, column, layout):
    """Frame, rows and columns that show one pixel of a mask."""
    frame, unit = divmod(unit, layout["grid"][0] * layout["grid"][1])
    tile = divmod(unit, layout["grid"][1])
    slices = []
    for i, pixel in enumerate((row, column)):
        side = layout["tile"][i] + 2 * layout["margin"][i]
        start = tile[i] * side + layout["margin"][i] + pixel
        repeat = layout["pixel_repeat"][i]
        slices.append(slice(start * repeat, (start + 1) * repeat))
    return frame, *slices


def split(layout):
    return {k: v for k, v in layout.items() if k not in ("units", "tile")}


def test_layout_of_the_reference():
    assert imaging.frame_shape(144, (28, 28)) == (12, 96, 240)
    assert imaging.tile(np.ones((144, 28, 28))).shape == (12, 96, 240)
    assert imaging.frame_shape(10, (12, 12)) == (1, 48, 112)
    frame = imaging.tile(np.ones((10, 12, 12)))[0].numpy()
    assert frame.sum() == 10 * 12 * 12 * 2
    assert not frame[32:, 56:].any()
    assert frame[16:32].any(0).sum() == frame[32:, :56].any(0).sum() * 2


def test_pixels_by_hand():
    masks = np.arange(1.0, 31.0, dtype="float32").reshape(5, 2, 3)
    frames = imaging.tile(masks, (2, 2), (2, 3), (1, 2), (1, 2), fill=-1.0).numpy()
    assert frames.dtype == "float32"
    assert frames.shape == (2, 8, 28)
    assert frames[0, 1, 4] == frames[0, 1, 5] == 1
    assert frames[0, 2, 9] == 6
    assert frames[0, 1, 18] == 7
    assert frames[0, 5, 4] == 13
    # Unit 3, pixel (1, 2): the last tile of the frame, 14 columns on.
    np.testing.assert_array_equal(frames[0, 6, 21:25], [23, 24, 24, -1])
    assert frames[1, 1, 4] == 25
    # Margins, and three tiles without a mask.
    assert np.all(frames[0, [0, 3, 4, 7]] == -1)
    assert np.all(frames[0][:, [0, 3, 10, 13, 14, 17, 24, 27]] == -1)
    assert np.all(frames[1, :, 14:] == -1)
    assert np.all(frames[1, 4:] == -1)
    assert np.sum(frames != -1) == 5 * 2 * 3 * 2


@settings(max_examples=30, deadline=None)
@given(layouts(), st.integers(0, 1000))
def test_layouts(layout, seed):
    rng = np.random.default_rng(seed)
    masks = rng.normal(size=(layout["units"], *layout["tile"]))
    expected = np.full(imaging.frame_shape(**layout), 0.5)
    cut, noise = np.zeros_like(masks), rng.normal(size=expected.shape)
    for index in np.ndindex(masks.shape):
        there = place(*index, layout)
        expected[there] = masks[index]
        cut[index] = noise[there].mean()
    frames = imaging.tile(masks, fill=0.5, **split(layout))
    np.testing.assert_array_equal(frames, expected)
    np.testing.assert_allclose(imaging.untile(frames, **layout), masks, rtol=1e-14)
    # Repeated pixels are averaged.
    np.testing.assert_allclose(imaging.untile(noise, **layout), cut, atol=1e-14)


def test_gradient_of_tile_is_untile():
    layout = {
        "tile": (3, 2),
        "grid": (2, 2),
        "margin": (1, 0),
        "pixel_repeat": (2, 3),
    }
    rng = np.random.default_rng(20)
    weights = rng.normal(size=imaging.frame_shape(5, **layout))
    (slope,) = gradients(
        lambda masks: tf.reduce_sum(weights * imaging.tile(masks, **layout)),
        [tf.constant(rng.normal(size=(5, 3, 2)))],
    )
    np.testing.assert_allclose(
        slope, 6 * imaging.untile(weights, 5, **layout), rtol=1e-13
    )


def test_one_number_for_both_sides():
    masks = np.random.default_rng(21).random((3, 4, 4))
    frames = imaging.tile(masks, grid=2, tile=4, margin=1, pixel_repeat=2)
    np.testing.assert_array_equal(
        frames, imaging.tile(masks, (2, 2), (4, 4), (1, 1), (2, 2))
    )
    np.testing.assert_array_equal(imaging.untile(frames, 3, 4, 2, 1, 2), masks)
    assert imaging.pair("x", np.int64(3)) == imaging.pair("x", [3, 3]) == (3, 3)


def test_masks_of_a_warped_frame():
    rng = np.random.default_rng(22)
    masks = rng.random((4, 5, 5))

    def warped(rotation):
        frames = affine(imaging.tile(masks, (2, 2)), rotation)
        return imaging.untile(frames, 4, (5, 5), (2, 2)).numpy()

    np.testing.assert_array_equal(warped(0.0), masks)
    # The last mask is the first one, upside down.
    np.testing.assert_array_equal(warped(180.0)[3], masks[0, ::-1, ::-1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"units": 0}, "`units` must be a whole number >= 1. Received: 0"),
        ({"units": -1}, "`units` must be .*Received: -1"),
        ({"units": 1.0}, "`units` must be .*Received: 1.0"),
        ({"units": True}, "`units` must be .*Received: True"),
        ({"tile": (0, 3)}, "`tile` must be .*Received: tile=\\(0, 3\\)"),
        ({"tile": (3, 2.5)}, "`tile` must be .*Received: tile="),
        ({"tile": (1, 2, 3)}, "`tile` must be .*Received: tile="),
        ({"tile": None}, "`tile` must be .*Received: tile=None"),
        ({"grid": (3, 0)}, "`grid` must be .* >= 1.*Received: grid="),
        ({"grid": 0.5}, "`grid` must be .*Received: grid=0.5"),
        ({"grid": "ab"}, "`grid` must be .*Received: grid='ab'"),
        ({"margin": -1}, "`margin` must be .* >= 0.*Received: margin=-1"),
        ({"margin": (1,)}, "`margin` must be .*Received: margin="),
        ({"pixel_repeat": 0}, "`pixel_repeat` must be .* >= 1.*Received"),
        ({"pixel_repeat": (1, True)}, "`pixel_repeat` must be .*Received"),
    ],
)
def test_bad_layout(arguments, message):
    layout = {"units": 3, "tile": (2, 2), **arguments}
    with pytest.raises(ValueError, match=message):
        imaging.frame_shape(**layout)
    with pytest.raises(ValueError, match=message):
        imaging.untile(np.ones((1, 18, 32)), **layout)
    if "units" not in arguments and arguments.get("tile", 0) is not None:
        with pytest.raises(ValueError, match=message):
            imaging.tile(np.ones((3, 2, 2)), **split(layout), tile=layout["tile"])


def test_wrong_shapes():
    for masks in (np.ones((2, 2)), np.ones((3, 2, 2, 1))):
        with pytest.raises(ValueError, match=r"`masks` must have.*Received: shape"):
            imaging.tile(masks)
    for tile in ((4, 5), 5):
        with pytest.raises(ValueError, match=r"`masks` must be of .*Received: shape"):
            imaging.tile(np.ones((3, 5, 4)), tile=tile)
    # One unit too many, and a frame of the wrong height.
    for units, frames in ((13, (1, 18, 32)), (12, (1, 19, 32))):
        with pytest.raises(ValueError, match=r"`frames` must have.*Received: shape"):
            imaging.untile(np.ones(frames), units, (2, 2))
