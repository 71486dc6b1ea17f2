"""The warp against SciPy's, and its derivatives against differences."""

import functools

import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from transforms import gradients

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


def assert_close(got, expected, **tolerance):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


# Values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_scipy(dtype):
    rng = np.random.default_rng(0)
    for i in range(20):
        # A large one, too: coordinates are float64 for float32 images.
        size = tuple(rng.integers(1, 25, 2)) if i else (200, 200)
        image = rng.random(size).astype(dtype)
        parameters = draw(rng)
        center = tuple(rng.uniform(-3, 20, 2)) if i % 2 else None
        warped = affine(image, *parameters, center=center)
        assert warped.dtype == dtype
        expected = by_scipy(image, *parameters, center=center)
        assert_close([warped], [expected], rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    "dtype, size", [("float32", (8, 5)), ("float64", (1, 6)), ("float64", (1, 1))]
)
def test_equals_scipy_compiled(dtype, size):
    rng = np.random.default_rng(1)
    image, warp = rng.random(size).astype(dtype), compiled(affine)
    for parameters in [draw(rng) for _ in range(6)] + [ALIGNED]:
        warped = warp(image, *tensors(parameters))
        expected = by_scipy(image, *parameters)
        assert_close([warped], [expected], rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("which", "jit_compile"),
    [((0, 1, 2), True), ((0,), False), ((1,), False), ((2,), False)],
)
def test_parameters_for_each_image(which, jit_compile):
    """All of them for each image, or one of them."""
    rng = np.random.default_rng(2)
    images = rng.random((3, 6, 7, 2))
    each = draw_batch(rng, (6, 7), 3)
    each = tensors(v if i in which else v[[0, 0, 0]] for i, v in enumerate(each))
    given = [v if i in which else v[0] for i, v in enumerate(each)]
    warped = tf.function(affine, jit_compile=jit_compile)(images, *given)
    for i, channel in np.ndindex(3, 2):
        np.testing.assert_allclose(
            warped[i, ..., channel],
            affine(images[i, ..., channel], *[value[i] for value in each]),
            rtol=0,
            atol=1e-14,
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


@pytest.mark.parametrize(
    ("side", "dtype", "jit_compile"),
    [
        (6, "float32", True),
        (6, "float64", False),
        (7, "float32", False),
        (7, "float64", True),
    ],
)
def test_quarter_turns_and_whole_shifts_are_exact(jit_compile, dtype, side):
    image = np.random.default_rng(5).random((side, side)).astype(dtype)
    warp = tf.function(affine, jit_compile=jit_compile)
    for turns in range(-5, 6):
        np.testing.assert_array_equal(
            warp(image, tf.constant(90.0 * turns)), np.rot90(image, turns)
        )
    for shift in ((-6, -5), (-4, 0), (0, 3), (1, -1), (5, 3)):
        np.testing.assert_array_equal(
            affine(image, shift=shift), scipy.ndimage.shift(image, shift, order=0)
        )


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
        _, numeric = tf.test.compute_gradient(number, values, delta=1e-6)
        numeric = [n.reshape(v.shape) for n, v in zip(numeric, values, strict=True)]
        assert_close(exact(values), numeric, rtol=1e-6, atol=1e-7)


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


def test_an_invalid_map_is_nan_in_a_graph():
    """So are its gradients: 0 would silently stop a training."""

    @tf.function(jit_compile=True)
    def run(*values):
        return affine(*values), *gradients(affine, values)

    for parameters in [
        (np.nan, (0.0, 0.0), 1.0),
        (np.inf, (0.0, 0.0), 1.0),
        (10.0, (0.0, 0.0), 0.0),
        (10.0, (0.0, 0.0), -1.0),
        (10.0, (0.0, 0.0), np.nan),
        (10.0, (0.0, np.nan), 1.0),
    ]:
        for value in run(tf.ones((4, 5)), *tensors(parameters)):
            assert np.isnan(value).all()
    warped, *_ = run(tf.ones((2, 4, 5)), *tensors(([np.nan, 10.0], (0.0, 0.0), 1.0)))
    assert np.isnan(warped[0]).all() and np.isfinite(warped[1]).all()


@pytest.mark.parametrize("kind", [tf.Variable, keras.Variable])
def test_variables_get_gradients(kind):
    number = weighted(17)
    values = [10.0, np.array([0.3, -0.6]), 1.1]
    variables = [kind(value, dtype="float64") for value in values]
    with tf.GradientTape() as tape:
        loss = number(*variables)
    if kind is keras.Variable:
        variables = [v.value for v in variables]
    expected = gradients(number, tensors(values))
    assert_close(tape.gradient(loss, variables), expected, rtol=1e-12)


def test_shift_of_tensors():
    number = weighted(18)
    parts = tensors((0.3, -0.6))
    (expected,) = gradients(lambda s: number(10.0, s), [tf.stack(parts)])
    slopes = gradients(lambda y, x: number(10.0, (y, x)), parts)
    slopes += gradients(lambda y: number(10.0, (y, -0.6)), parts[:1])
    np.testing.assert_allclose(slopes, [*expected, expected[0]], rtol=1e-12)


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


# Errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scale": -1.0}, "`scale` must be finite and > 0. Received: -1"),
        ({"scale": [1.0, 1.0, 0.0]}, "`scale` must be finite and > 0.*Received"),
        ({"rotation": np.inf}, "`rotation` must be finite. Received: inf"),
        ({"shift": (np.nan, 0.0)}, "`shift` must be finite. Received: nan"),
        ({"image": np.ones(3)}, "`image` must have the shape.*Received: shape"),
        ({"image": np.ones((3, 3), "complex64")}, "`image` must be real.*Received"),
        ({"center": (1.0, float("nan"))}, "`center`.*Received"),
        ({"center": 1.0}, "`center`.*Received"),
        ({"rotation": np.zeros(2)}, r"`rotation` must be .*Received: shape \(2,\)"),
        ({"shift": (1.0,)}, r"`shift` must be \(y, x\).*Received: shape \(1,\)"),
        (
            {"image": np.ones((3, 3)), "shift": np.zeros((3, 2))},
            r"`shift` must be .*Received: shape \(3, 2\)",
        ),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        affine(**{"image": np.ones((3, 4, 4)), **arguments})
