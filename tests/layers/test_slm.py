"""`MaskedSLM` against the optics in NumPy and SciPy, pixel by pixel of the frame."""

import doctest
import json

import keras
import matplotlib.image
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_pnn as pnn
from keras_pnn.layers import MaskedSLM

LAYOUT = {"grid": (3, 4), "margin": (2, 1), "pixel_repeat": (1, 2)}
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def slm(rng, units=13, size=(4, 5), moved=False, dtype="float64", **options):
    """A layer with random masks on two frames, aligned or not."""
    layer = MaskedSLM(units, dtype=dtype, **options)
    layer.build((None, *size))
    layer.controls["mask"].assign(rng.uniform(-1, 1, (units, *size)))
    if moved:
        layer.imperfections["rotation"].assign(rng.uniform(-4, 4))
        layer.imperfections["shift"].assign(rng.uniform(-5, 5, 2))
        layer.imperfections["scale"].assign(rng.uniform(0.9, 1.1))
    return layer


def masks(layer):
    return np.asarray(layer.controls["mask"], "float64")


def matrix(layer):
    return masks(layer).reshape(layer.units, -1).T


def noiseless(layer):
    """The same layer with a camera without noise."""
    config = {**layer.get_config(), "photons": None, "read_noise": 0.0}
    again = MaskedSLM.from_config(config)
    again.build((None, *layer.controls["mask"].shape[1:]))
    for name, variable in {**layer.controls, **layer.imperfections}.items():
        {**again.controls, **again.imperfections}[name].assign(variable)
    return again


# --- The optics, written out.


def paste(tiles, layer, background):
    """Frames with tiles (units, height, width), in a loop over units and pixels."""
    (rows, columns), (top, left) = layer.grid, layer.margin
    down, across = layer.pixel_repeat
    units, height, width = tiles.shape
    tall, wide = (height + 2 * top) * down, (width + 2 * left) * across
    count = -(-units // (rows * columns))
    frames = np.full((count, rows * tall, columns * wide), float(background))
    for unit in range(units):
        frame, cell = divmod(unit, rows * columns)
        y = cell // columns * tall + top * down
        x = cell % columns * wide + left * across
        picture = np.kron(tiles[unit], np.ones((down, across)))
        frames[frame, y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return frames


def warped(frames, layer):
    """out(p) = in(c + R(−rotation)(p − c − shift)/scale), y pointing down."""
    angle = np.deg2rad(float(layer.imperfections["rotation"]))
    shift = np.asarray(layer.imperfections["shift"], "float64")
    center = (np.array(frames.shape[1:]) - 1) / 2
    offset = np.indices(frames.shape[1:]) - (center + shift)[:, None, None]
    turn = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    places = np.einsum("ij,jyx->iyx", turn, offset)
    places = places / float(layer.imperfections["scale"]) + center[:, None, None]
    return np.stack(
        [
            scipy.ndimage.map_coordinates(f, places, order=1, mode="grid-constant")
            for f in frames
        ]
    )


def camera(images, frames, layer):
    """Sums over the camera's regions of what the frames leave of the display."""
    (rows, columns), repeat = layer.grid, np.prod(layer.pixel_repeat)
    outputs = []
    for image in images:
        display = paste(np.stack([image] * layer.units), layer, background=0)
        light = display * frames
        count, height, width = light.shape
        regions = light.reshape(count, rows, height // rows, columns, width // columns)
        sums = regions.sum((2, 4)).ravel()[: layer.units]
        outputs.append(sums / repeat)
    return np.array(outputs)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "layout",
    [{}, {"grid": (5, 3), "margin": (0, 2), "pixel_repeat": (2, 3)}],
    ids=["paper", "other"],
)
def test_misaligned_frames_are_those_of_the_optics(rng, dtype, layout):
    for _ in range(3):
        layer = slm(rng, moved=True, dtype=dtype, **layout)
        x = rng.normal(size=(3, 4, 5))
        seen = warped(paste(masks(layer), layer, 0), layer)
        np.testing.assert_allclose(
            layer(x), camera(x, seen, layer), rtol=0, atol=10 * TOLERANCE[dtype]
        )


def test_the_frame_turns_to_the_left_and_moves_down_and_right(rng):
    layer = slm(rng, 1, (3, 3), grid=1, margin=0, pixel_repeat=1)
    mask = masks(layer)[0]
    layer.imperfections["rotation"].assign(90)
    layer.imperfections["shift"].assign([1, 0])
    expected = np.pad(np.rot90(mask), [(1, 0), (0, 0)])[:3]
    np.testing.assert_allclose(
        layer.effective_weights()[:, 0], expected.ravel(), atol=1e-15
    )
    layer.reset_imperfections()
    layer.imperfections["shift"].assign([0, 2])
    expected = np.pad(mask, [(0, 0), (2, 0)])[:, :3]
    np.testing.assert_allclose(
        layer.effective_weights()[:, 0], expected.ravel(), atol=1e-15
    )


def test_a_larger_scale_enlarges(rng):
    layer = slm(rng, 1, (3, 3), grid=1, margin=0, pixel_repeat=1)
    layer.imperfections["scale"].assign(2)
    weights = np.reshape(layer.effective_weights(), (3, 3))
    # Half a pixel of the mask from the middle: between two of its pixels.
    mask = masks(layer)[0]
    np.testing.assert_allclose(weights[1, 1], mask[1, 1])
    np.testing.assert_allclose(weights[1, 0], (mask[1, 0] + mask[1, 1]) / 2)


# --- Aligned: the signed matrix.


@settings(max_examples=25, deadline=None)
@given(
    units=st.integers(1, 7),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    margin=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    repeat=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    form=st.sampled_from(["images", "channel", "flat"]),
    dtype=st.sampled_from(sorted(TOLERANCE)),
)
def test_aligned_is_a_matrix_product(units, size, grid, margin, repeat, form, dtype):
    rng = np.random.default_rng(units)
    tail = {"images": size, "channel": (*size, 1), "flat": (size[0] * size[1],)}[form]
    x = rng.normal(size=(3, *tail))
    layer = MaskedSLM(units, size, grid, margin, repeat, dtype=dtype)
    y = layer(x)
    assert y.shape == layer.compute_output_shape(x.shape) == (3, units)
    np.testing.assert_allclose(
        y, x.reshape(3, -1) @ matrix(layer), rtol=0, atol=TOLERANCE[dtype]
    )


def test_bias_and_activation(rng):
    layer = MaskedSLM(3, activation="tanh", use_bias=True, bias_initializer="ones")
    x = rng.normal(size=(4, 9)).astype("float32")
    y = layer(x)
    np.testing.assert_allclose(y, np.tanh(x @ matrix(layer) + 1), atol=1e-6)


def test_flat_inputs_are_square_unless_told(rng):
    layer = MaskedSLM(2)
    layer(np.ones((1, 16), "float32"))
    assert layer.controls["mask"].shape == (2, 4, 4)
    layer = MaskedSLM(2, tile=(2, 8))
    layer(np.ones((1, 16), "float32"))
    assert layer.controls["mask"].shape == (2, 2, 8)
    # Built on one form, called on the others.
    x = rng.normal(size=(3, 2, 8)).astype("float32")
    np.testing.assert_array_equal(layer(x), layer(x.reshape(3, 16)))
    np.testing.assert_array_equal(layer(x), layer(x[..., None]))


def test_masks_start_as_the_kernel_of_dense():
    layer = MaskedSLM(5, mask_initializer=keras.initializers.GlorotUniform(3))
    layer.build((None, 6, 7))
    kernel = keras.initializers.GlorotUniform(3)((42, 5))
    np.testing.assert_allclose(layer.effective_weights(), kernel, atol=1e-7)
    wide = MaskedSLM(5, mask_initializer=keras.initializers.RandomNormal(stddev=3))
    wide.build((None, 6, 7))
    assert np.abs(masks(wide)).max() == 1


def test_program_gives_the_weights(rng):
    layer = slm(rng)
    weights = rng.uniform(-1, 1, (20, 13))
    weights[0, :2] = 1, -1
    layer.program(weights)
    np.testing.assert_allclose(layer.effective_weights(), weights, rtol=0, atol=1e-15)
    x = rng.normal(size=(2, 4, 5))
    np.testing.assert_allclose(layer(x), x.reshape(2, 20) @ weights, atol=1e-12)
    layer.program(3 * weights, clip=True)
    np.testing.assert_allclose(layer.effective_weights(), np.clip(3 * weights, -1, 1))


@pytest.mark.parametrize("bad", [1.01, -2, np.nan, np.inf])
def test_program_out_of_reach_leaves_the_masks(rng, bad):
    layer = slm(rng)
    before = masks(layer)
    weights = np.zeros((20, 13))
    weights[3, 4] = bad
    with pytest.raises(ValueError, match=r"`weights`.*Received"):
        layer.program(weights, clip=not np.isfinite(bad))
    with pytest.raises(ValueError, match=r"`weights`.*Received: shape \(13, 20\)"):
        layer.program(np.zeros((13, 20)))
    np.testing.assert_array_equal(masks(layer), before)


# --- The display and the transmission of the SLM.


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_intensities_give_the_signed_product(rng, dtype):
    layer = slm(rng, dtype=dtype, display_range=(-0.5, 2.5))
    x = rng.uniform(-0.5, 2.5, (4, 4, 5))
    expected = x.reshape(4, 20) @ matrix(layer)
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("contrast", [None, 20.0])
def test_misaligned_intensities_are_those_of_the_optics(rng, contrast):
    low, high = -0.5, 2.5
    layer = slm(rng, moved=True, display_range=(low, high), contrast=contrast)
    x = rng.uniform(-1, 3, (3, 4, 5))
    shown = (np.clip(x, low, high) - low) / (high - low)
    dark = 0 if contrast is None else 1 / contrast
    transmitted = dark + (1 - dark) * (1 + paste(masks(layer), layer, 0)) / 2
    white = np.ones_like(transmitted)
    light = camera(shown, warped(transmitted, layer), layer)
    reference = camera(shown, warped(white, layer), layer)
    signed = (high - low) * (2 * light - reference)
    # Of the contrast, which is known, the digital part of the sum knows too.
    aligned = dark + (1 - dark) * masks(layer)
    expected = signed + low * aligned.sum((1, 2))
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=1e-10)


def test_negative_inputs_are_exact_at_any_contrast(rng):
    layer = slm(rng, display_range=(-3, 3), contrast=10.0)
    x = rng.uniform(-3, 3, (4, 20))
    np.testing.assert_allclose(layer(x), x @ layer.effective_weights(), atol=1e-10)


def test_inputs_beyond_the_range_are_clipped(rng):
    layer = slm(rng, display_range=(-1, 2))
    x = rng.normal(0, 3, (4, 4, 5))
    np.testing.assert_allclose(layer(x), layer(np.clip(x, -1, 2)), atol=1e-12)
    assert np.ptp(x) > 6


def test_levels_of_the_display():
    layer = MaskedSLM(1, display_range=(0, 2), display_bits=2, mask_initializer="ones")
    # Levels 0, 2/3, 4/3 and 2.
    x = np.array([[0.3, 0.35, 1.1, 9.0]], "float32")
    np.testing.assert_allclose(layer(x), [[0 + 2 / 3 + 4 / 3 + 2]], rtol=1e-6)
    layer = MaskedSLM(1, display_range=(0, 255), display_bits=8)
    layer.build((None, 4))
    layer.program([[1], [1], [1], [1]])
    x = np.array([[0.4, 0.6, 99.7, 254.4]], "float32")
    np.testing.assert_allclose(layer(x), [[0 + 1 + 100 + 254]], rtol=1e-6)


def test_a_dark_pixel_still_transmits():
    layer = MaskedSLM(1, contrast=10, dtype="float64")
    layer.build((None, 4))
    layer.program([[-1], [0], [0.5], [1]])
    expected = [[-1 + 2 / 10], [0 + 1 / 10], [0.5 + 0.5 / 10], [1]]
    np.testing.assert_allclose(layer.effective_weights(), expected, rtol=1e-14)
    np.testing.assert_allclose(layer(np.eye(4)), expected, rtol=1e-14)


def test_masks_in_the_steps_of_a_converter(rng):
    layer = slm(rng, dac=pnn.layers.DAC(2, -1, 1))
    expected = np.round((matrix(layer) + 1) * 1.5) / 1.5 - 1
    np.testing.assert_allclose(layer.effective_weights(), expected, atol=1e-12)
    np.testing.assert_allclose(np.unique(layer.frames()), [0, 1 / 3, 0.5, 2 / 3, 1])


# --- Noise.

DRAWS = 20_000


@pytest.mark.parametrize(
    "camera_options",
    [{"photons": 40.0}, {"read_noise": 0.3}, {"photons": 40.0, "read_noise": 0.3}],
    ids=lambda o: "+".join(o),
)
def test_mean_and_covariance_of_the_noise(rng, camera_options):
    """2·light − reference, whose reference all frames share, cell by cell."""
    low, high = -1.0, 2.0
    layer = slm(
        rng, 5, grid=(1, 3), moved=True, dtype="float32", seed=1,
        display_range=(low, high), **camera_options,
    )  # fmt: skip
    # Far enough for some of the light to miss the frame, of the reference as well.
    layer.imperfections["shift"].assign([3, -6])
    x = rng.uniform(low, high, (1, 4, 5))
    drawn = np.asarray(layer(np.repeat(x, DRAWS, 0)), "float64")
    shown = (x - low) / (high - low)
    frames = (1 + paste(masks(layer), layer, 0)) / 2
    light = camera(shown, warped(frames, layer), layer)[0]
    reference = camera(shown, warped(np.ones_like(frames), layer), layer)[0]
    per_photon = 1 / camera_options.get("photons", np.inf)
    read = camera_options.get("read_noise", 0) ** 2
    own = 4 * (light * per_photon + read)
    shared = reference * per_photon + read
    same_cell = np.equal.outer(np.arange(5) % 3, np.arange(5) % 3)
    expected = (high - low) ** 2 * (np.diag(own) + same_cell * shared)
    mean = noiseless(layer)(x)[0]
    spread = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(
        (drawn.mean(0) - mean) / spread, 0, atol=5 / np.sqrt(DRAWS)
    )
    covariance = np.cov(drawn, rowvar=False) / np.outer(spread, spread)
    np.testing.assert_allclose(
        covariance, expected / np.outer(spread, spread), atol=5 * np.sqrt(2 / DRAWS)
    )


def test_noise_repeats_with_its_seed(rng):
    options = {"display_range": (0, 1), "photons": 20, "read_noise": 0.1}
    x = rng.uniform(size=(3, 4, 5)).astype("float32")
    one, same, other = (
        slm(np.random.default_rng(0), dtype="float32", seed=s, **options)
        for s in (1, 1, 2)
    )
    first = one(x)
    np.testing.assert_array_equal(first, same(x))
    second = one(x)
    assert np.abs(first - second).min() > 0 and np.abs(first - other(x)).min() > 0
    np.testing.assert_array_equal(second, same(x))


def test_slopes_are_those_without_noise(rng):
    options = {"display_range": (0, 1), "photons": 5, "read_noise": 0.1, "seed": 0}
    layer = slm(rng, **options)
    # Blacker than black, where an ascent may lead: the sum is dark, with a slope.
    layer.controls["mask"].assign(np.full((13, 4, 5), -1.1))
    x = tf.constant(rng.uniform(0.1, 0.9, (3, 4, 5)))

    def slopes(layer):
        watched = [layer.controls["mask"].value, layer.imperfections["shift"].value, x]
        with tf.GradientTape() as tape:
            tape.watch(watched)
            y = layer(x)
        return tape.gradient(y, watched)

    for a, b in zip(slopes(layer), slopes(noiseless(layer)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def data(rng):
    x = rng.uniform(size=(12, 4, 5)).astype("float32")
    return x, rng.integers(0, 3, 12)


def network(seed=0, **options):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((4, 5)),
            MaskedSLM(9, activation="sigmoid", name="first", **options),
            MaskedSLM(3, tile=(3, 3), name="second", **options),
        ]
    )


def single(**options):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4, 5)), MaskedSLM(3, **options)])


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NOISY = {"display_range": (0, 1), "photons": 50, "read_noise": 0.1, "seed": 3}


def test_both_passes_of_training_see_the_same_noise(rng):
    x, y = data(rng)
    plain, inner = single(**NOISY), single(**NOISY)
    sat = pnn.SATModel(inner, rho=0.0)
    for model in (plain, sat):
        model.compile(keras.optimizers.SGD(0.5), LOSS)
    options = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}
    expected = plain.fit(x, y, **options).history["loss"]
    history = sat.fit(x, y, **options).history
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-6)
    assert history["sharpness"] == [0, 0]
    for a, b in zip(plain.get_weights(), inner.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# --- Derivatives.


@pytest.mark.parametrize(
    "options",
    [{}, {"display_range": (-4, 4), "contrast": 8.0}],
    ids=["ideal", "intensities"],
)
def test_gradients_and_hessian_products_against_differences(rng, options):
    layer = slm(rng, 3, (3, 4), moved=True, grid=(1, 2), activation="tanh", **options)
    layer.imperfections["shift"].assign([0.3, -1.6])
    variables = [layer.controls["mask"], *layer.imperfections.values()]
    x = tf.constant(rng.normal(size=(2, 3, 4)))
    start = [tf.convert_to_tensor(v) for v in variables] + [x]
    bumps = [tf.constant(rng.normal(size=v.shape)) for v in start]
    weights = rng.normal(size=(2, 3))
    step = 1e-6

    def loss(point):
        with keras.StatelessScope(list(zip(variables, point[:-1], strict=True))):
            return tf.reduce_sum(weights * layer(point[-1]))

    @tf.function
    def gradient(point):
        with tf.GradientTape() as tape:
            tape.watch(point)
            value = loss(point)
        return tape.gradient(value, point)

    def along(parts, direction):
        return sum(tf.reduce_sum(p * d) for p, d in zip(parts, direction, strict=True))

    def moved(amounts):
        return [p + a * b for p, a, b in zip(start, amounts, bumps, strict=True)]

    for i, slope in enumerate(gradient(start)):
        above, below = (
            loss(moved([s * (j == i) for j in range(5)])) for s in (step, -step)
        )
        expected = float(above - below) / (2 * step)
        exact = float(tf.reduce_sum(slope * bumps[i]))
        assert abs(exact) > 1e-3 and exact == pytest.approx(expected, rel=1e-6)
    with tf.GradientTape() as tape:
        tape.watch(start)
        product = along(gradient(start), bumps)
    products = tape.gradient(product, start)
    above, below = (gradient(moved([s] * 5)) for s in (step, -step))
    for exact, a, b in zip(products, above, below, strict=True):
        np.testing.assert_allclose(exact, (a - b) / (2 * step), rtol=1e-5, atol=1e-6)


def test_hessian_equals_differences(rng):
    inputs = keras.Input((2, 2), dtype="float64")
    layer = MaskedSLM(3, activation="sigmoid", grid=(1, 2), dtype="float64")
    model = keras.Model(inputs, layer(inputs))
    layer.imperfections["rotation"].assign(5)
    model.compile("sgd", loss=keras.losses.MeanSquaredError(dtype="float64"))
    x, y = rng.normal(size=(6, 2, 2)), rng.uniform(size=(6, 3))
    result = pnn.hessian_eigenvalues(model, x, y, k=2, tolerance=1e-8)
    mask = layer.controls["mask"]

    def slope(flat):
        mask.assign(flat.reshape(mask.shape))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        return tape.gradient(loss, mask.value).numpy().ravel()

    flat = mask.numpy().ravel()
    rows = [(slope(flat + e) - slope(flat - e)) / 2e-5 for e in 1e-5 * np.eye(12)]
    dense = np.linalg.eigvalsh((np.array(rows) + np.transpose(rows)) / 2)
    np.testing.assert_allclose(result.eigenvalues, dense[:-3:-1], rtol=1e-6)


# --- What Keras asks of a layer.

FULL = {
    "tile": (4, 5),
    "grid": (2, 3),
    "margin": (1, 3),
    "pixel_repeat": (3, 1),
    "activation": "tanh",
    "use_bias": True,
    "display_range": (-0.5, 1.5),
    "display_bits": 7,
    "dac": pnn.layers.DAC(6, -1, 1),
    "contrast": 30.0,
    "photons": 100.0,
    "read_noise": 0.2,
    "seed": 5,
    "mask_initializer": keras.initializers.HeNormal(seed=3),
    "mask_regularizer": keras.regularizers.L1(0.2),
    "mask_constraint": pnn.layers.ControlRange(-0.5, 0.5),
    "bias_initializer": "ones",
    "bias_regularizer": keras.regularizers.L2(0.3),
    "activity_regularizer": keras.regularizers.L2(0.4),
    "trainable": False,
    "name": "every_argument",
}


def test_config_round_trip(rng):
    layer = MaskedSLM(5, **FULL)
    config = layer.get_config()
    again = MaskedSLM.from_config(json.loads(json.dumps(config)))
    assert json.dumps(again.get_config()) == json.dumps(config)
    x = rng.normal(size=(3, 4, 5)).astype("float32")
    for one in (layer, again):
        one.build(x.shape)
        one.controls["mask"].assign(np.full((5, 4, 5), 0.3))
    np.testing.assert_array_equal(layer(x), again(x))
    plain = MaskedSLM(3).get_config()
    same = {k for k in config if config[k] == plain.get(k)}
    assert same == {"dtype"} and set(FULL) <= set(config)
    free = MaskedSLM(3, mask_constraint=None)
    assert MaskedSLM.from_config(free.get_config()).mask_constraint is None


def test_a_saved_model_is_the_design(rng, tmp_path):
    x, _ = data(rng)
    model = network(use_bias=True, bias_initializer="random_normal")
    expected = model(x)
    for layer in model.layers:
        layer.imperfections["rotation"].assign(3)
        layer.imperfections["shift"].assign([1, 2])
        layer.imperfections["scale"].assign(1.1)
    assert np.abs(model(x) - expected).min() > 1e-4
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for layer in loaded.layers:
        for name, nominal in {"rotation": 0, "shift": 0, "scale": 1}.items():
            assert np.all(layer.imperfections[name] == nominal)
    np.testing.assert_array_equal(loaded(x), expected)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision(rng, policy):
    x, y = data(rng)
    options = {**NOISY, "contrast": 20.0, "use_bias": True}
    half, full = single(dtype=policy, **options), single(**options)
    (layer,) = half.layers
    layer.controls["mask"].assign(masks(full.layers[0]))
    if policy != "float16":
        variables = {**layer.controls, **layer.imperfections}.values()
        assert {v.dtype for v in variables} == {"float32"}
    outputs = half(x)
    assert outputs.dtype == policy.removeprefix("mixed_")
    np.testing.assert_allclose(tf.cast(outputs, "float32"), full(x), atol=0.1)
    half.compile("sgd", LOSS)
    assert np.isfinite(half.fit(x, y, verbose=0).history["loss"]).all()


def test_jit_compiled_fit_equals_the_plain_one(rng):
    x, y = data(rng)
    results = []
    for jit in (False, True):
        model = single(display_range=(0, 1), display_bits=8, contrast=20.0)
        model.layers[0].imperfections["rotation"].assign(2)
        model.compile(keras.optimizers.SGD(0.5), LOSS, jit_compile=jit)
        model.fit(x, y, batch_size=6, epochs=2, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for plain, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(plain, compiled, atol=1e-4)


def test_unknown_batch_size_and_functional_use(rng):
    x, _ = data(rng)
    inputs = keras.Input((4, 5, 1))
    layer = MaskedSLM(3)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, 3)
    for count in (1, 5, 0):
        rows = x[:count, ..., None]
        expected = rows.reshape(count, 20) @ matrix(layer)
        np.testing.assert_allclose(model(rows), expected, atol=1e-6)
    np.testing.assert_allclose(model.predict(x, verbose=0), layer(x), atol=1e-6)


def test_a_layer_may_be_built_inside_a_graph():
    layer = MaskedSLM(3)
    y = tf.function(lambda x: layer(x))(tf.ones((2, 9)))
    np.testing.assert_allclose(y, layer(np.ones((2, 9), "float32")), atol=1e-6)
    assert np.std(layer.effective_weights()) > 0.05


def test_inputs_may_be_integers():
    layer = MaskedSLM(2, mask_initializer="ones")
    np.testing.assert_allclose(layer(np.full((1, 9), 200, "uint8")), [[1800, 1800]])


@pytest.mark.parametrize("bound", [None, 0.25, 1.0])
def test_training_keeps_the_masks_within_the_constraint(rng, bound):
    x, y = data(rng)
    constraint = {
        None: {"mask_constraint": None},
        0.25: {"mask_constraint": pnn.layers.ControlRange(-0.25, 0.25)},
        1.0: {},
    }[bound]
    model = single(**constraint)
    model.compile(keras.optimizers.SGD(100.0), LOSS)
    model.fit(x, y, epochs=2, verbose=0)
    largest = np.abs(masks(model.layers[0])).max()
    assert largest > 1 if bound is None else largest == bound


def test_regularizers_see_the_masks():
    layer = MaskedSLM(
        2,
        use_bias=True,
        bias_initializer="ones",
        mask_regularizer=keras.regularizers.L1(2.0),
        bias_regularizer=keras.regularizers.L2(3.0),
    )
    layer.build((None, 9))
    expected = [2 * np.abs(masks(layer)).sum(), 3 * 2]
    np.testing.assert_allclose(sorted(layer.losses), sorted(expected), rtol=1e-6)


def test_many_devices_equal_one_after_the_other(rng):
    x, y = data(rng)
    model = network(display_range=(0, 1))
    for layer in model.layers:
        layer.controls["mask"].assign(rng.uniform(-1, 1, layer.controls["mask"].shape))
    model.compile("sgd", LOSS, metrics=["accuracy"])
    variation = pnn.Variation(rotation=3.0, shift=0.5, scale=0.05)
    for devices in (
        pnn.devices.sweep(model, "rotation", [-3, 0, 3]),
        variation.sample(model, 3, seed=1),
    ):
        together = pnn.evaluate_devices(model, x, y, devices, verbose=0)
        assert together.vectorized
        for i, device in enumerate(devices):
            with device.installed(model):
                loss, accuracy = model.evaluate(x, y, verbose=0)
            assert together["loss"][i] == pytest.approx(loss, rel=1e-5)
            assert together["accuracy"][i] == pytest.approx(accuracy)
        assert np.ptp(together["loss"]) > 1e-4
    for layer in model.layers:
        assert layer.imperfections["rotation"] == 0


def test_noisy_devices_run_in_one_graph(rng):
    x, y = data(rng)
    model = single(**NOISY)
    model.compile("sgd", LOSS)
    devices = pnn.devices.sweep(model, "rotation", [0, 0, 30])
    loss = pnn.evaluate_devices(model, x, y, devices, verbose=0)["loss"]
    # Devices that are alike see the same noise.
    assert loss[0] == pytest.approx(loss[1], rel=1e-5) != loss[2]


def test_a_name_moves_all_layers_or_one():
    model = network()
    both = pnn.devices.sweep(model, "rotation", [2])[0]
    one = pnn.devices.sweep(model, "second/rotation", [2])[0]
    for device, expected in ((both, [2, 2]), (one, [0, 2])):
        with device.installed(model):
            angles = [float(la.imperfections["rotation"]) for la in model.layers]
        assert angles == expected


# --- Frames and files.


def test_frames_by_hand():
    layer = MaskedSLM(2, grid=(1, 3), margin=(0, 1), pixel_repeat=(2, 1))
    layer.build((None, 1, 2))
    layer.program([[-1, 0], [1, 0.5]])
    row = [0.5, 0, 1, 0.5, 0.5, 0.5, 0.75, 0.5, 0.5, 0.5, 0.5, 0.5]
    np.testing.assert_array_equal(layer.frames(), [[row, row]])
    assert layer.frame_shape == (1, 2, 12)


def test_frames_of_the_paper(rng):
    layer = slm(rng, 13, (28, 28))
    assert layer.frame_shape == layer.frames().shape == (2, 96, 240)
    expected = (1 + paste(masks(layer), layer, 0)) / 2
    np.testing.assert_array_equal(layer.frames(), expected)


def test_place_of_a_pixel_on_its_frame(rng):
    layer = slm(rng)
    # Unit 6 is the third tile of the second row; tiles are 8 × 14 pixels.
    assert layer.position("mask", (6, 3, 4)) == (0, 8 + 2 + 3, 28 + 2 * (1 + 4))
    frames = layer.frames()
    for index, value in np.ndenumerate((1 + masks(layer)) / 2):
        frame, y, x = layer.position("mask", index)
        assert (frames[frame, y, x : x + 2] == value).all()


def test_files_round_trip(rng, tmp_path):
    layer, other = slm(rng), slm(rng)
    other.name = layer.name
    paths = layer.save_frames(tmp_path / "new" / "folder")
    assert [p.name for p in paths] == [f"{layer.name}_00{i}.png" for i in range(2)]
    assert sorted(p.name for p in paths[0].parent.iterdir()) == [p.name for p in paths]
    other.load_frames(str(paths[0].parent))
    assert np.abs(masks(other) - masks(layer)).max() <= 1 / 255 + 1e-12
    # What 8 bits hold comes back as it is.
    before = masks(other)
    other.save_frames(paths[0].parent)
    other.load_frames(paths[0].parent)
    np.testing.assert_array_equal(masks(other), before)


def test_files_are_greyscale_of_8_bits_the_right_way_up(rng, tmp_path):
    layer = slm(rng)
    for path, frame in zip(layer.save_frames(tmp_path), layer.frames(), strict=True):
        # Width, height, bits, colour type (0 is greyscale) of the header.
        header = path.read_bytes()[16:26]
        assert header == np.array(frame.shape[::-1], ">u4").tobytes() + b"\x08\x00"
        picture = matplotlib.image.imread(path)
        np.testing.assert_allclose(picture, frame, atol=0.5 / 255 + 1e-6)


def jpeg(path):
    levels = np.zeros((24, 56, 1), "uint8")
    path.write_bytes(tf.io.encode_jpeg(levels).numpy())


def png(shape):
    picture = tf.io.encode_png(np.zeros(shape, "uint8")).numpy()
    return lambda path: path.write_bytes(picture)


def edit(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


BAD_FILES = {
    "missing": lambda path: path.unlink(),
    "too small": png((24, 55, 1)),
    "turned": png((56, 24, 1)),
    "RGB": png((24, 56, 3)),
    "grey and alpha": png((24, 56, 2)),
    "jpeg": jpeg,
    "empty": edit(lambda data: b""),
    "text": edit(lambda data: b"rotation,0.5\n"),
    "cut in the header": edit(lambda data: data[:20]),
    "cut in the middle": edit(lambda data: data[: len(data) // 2]),
    "end missing": edit(lambda data: data[:-4]),
    "one bit": edit(lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:]),
}


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_changes_nothing(rng, tmp_path, kind, bad):
    layer = slm(rng)
    paths = layer.save_frames(tmp_path)
    layer.controls["mask"].assign(rng.uniform(-1, 1, (13, 4, 5)))
    before = masks(layer)
    BAD_FILES[kind](paths[bad])
    if kind == "missing":
        with pytest.raises(FileNotFoundError, match=paths[bad].name):
            layer.load_frames(tmp_path)
    else:
        with pytest.raises(ValueError, match=rf"{paths[bad].name} must be.*Received"):
            layer.load_frames(tmp_path)
    np.testing.assert_array_equal(masks(layer), before)


def test_a_picture_of_16_bits_is_refused(rng, tmp_path):
    layer = slm(rng)
    path = layer.save_frames(tmp_path)[1]
    levels = np.full((*layer.frame_shape[1:], 1), 0x8123, "uint16")
    path.write_bytes(tf.io.encode_png(levels).numpy())
    before = masks(layer)
    with pytest.raises(ValueError, match=r"8 bits\. Received: .* of 16 bits"):
        layer.load_frames(tmp_path)
    np.testing.assert_array_equal(masks(layer), before)


@pytest.mark.parametrize("value", [1.5, -1.01, np.nan])
def test_masks_that_cannot_be_shown(rng, tmp_path, value):
    layer = slm(rng)
    layer.save_frames(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    changed = masks(layer)
    changed[2, 1, 1] = value
    layer.controls["mask"].assign(changed)
    with pytest.raises(ValueError, match=r"±1.*Received"):
        layer.save_frames(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_controls_round_trip_as_a_table(rng, tmp_path):
    model, other = network(), network(seed=1)
    assert pnn.export_controls(model, tmp_path / "c.csv") == {}
    pnn.load_controls(other, tmp_path / "c.csv")
    for ours, theirs in zip(model.layers, other.layers, strict=True):
        np.testing.assert_array_equal(masks(ours), masks(theirs))
    line = (tmp_path / "c.csv").read_text().splitlines()[1 + 6 * 20 + 3 * 5 + 4]
    assert line.startswith("first,mask,6;3;4,0,13,38,")


def test_a_mask_beyond_its_limits_is_refused(rng, tmp_path):
    model = keras.Sequential([keras.Input((4, 5)), slm(rng)])
    path = tmp_path / "controls.csv"
    pnn.export_controls(model, path)
    before = masks(model.layers[0])
    lines = path.read_text("utf-8").splitlines()
    cells = lines[3].split(",")
    cells[6] = "1.5"
    lines[3] = ",".join(cells)
    path.write_text("\n".join(lines), "utf-8")
    with pytest.raises(ValueError, match=r"line 4: .* from -1.* to 1.*Received: 1.5"):
        pnn.load_controls(model, path)
    np.testing.assert_array_equal(masks(model.layers[0]), before)


# --- Arguments and values that cannot be.

SHOWN = {"display_range": (0, 1)}
BAD = [
    *[{"units": u} for u in (0, 1.5, None, True)],
    *[{"tile": t} for t in (0, (4,), (4, 2.5), "ab", (4, 5, 1))],
    *[{"grid": g} for g in (0, (3, 0), (1, 2, 3), 2.5)],
    *[{"margin": m} for m in (-1, (1, -1), 0.5)],
    *[{"pixel_repeat": p} for p in (0, (1, 0), None)],
    *[
        {"display_range": r}
        for r in ((1, 0), (1, 1), (0,), 5, "ab", (0, np.nan), (-np.inf, 0), (0, 1, 2))
    ],
    *[{"display_bits": b, **SHOWN} for b in (0, 2.5, 25, "8")],
    *[{"dac": pnn.layers.DAC(8, low, 1)} for low in (0, -2)],
    *[{"contrast": c} for c in (1, 0.5, -3, np.nan, np.inf, "high", True)],
    *[{"photons": p, **SHOWN} for p in (0, -1, np.nan, np.inf, "many")],
    *[{"read_noise": n, **SHOWN} for n in (-0.1, np.nan, np.inf, "low", None)],
    # These are of a display, of which nothing is known.
    {"display_bits": 8},
    {"photons": 10},
    {"read_noise": 0.1},
    {"dac": 8},
]


@pytest.mark.parametrize(
    "arguments", BAD, ids=lambda given: str(given).split(" object at")[0]
)
def test_bad_arguments(arguments):
    name = next(iter(arguments))
    with pytest.raises(ValueError, match=rf"(?s)`{name}`.*Received"):
        MaskedSLM(**{"units": 3, **arguments})


@pytest.mark.parametrize(
    "shape, tile",
    [
        ((None, 12), None),
        ((None, 4, 5, 2), None),
        ((None, 4, 5, 1, 1), None),
        ((None,), None),
        ((None, None), None),
        ((None, None, 5), None),
        ((None, 4, 5), (5, 4)),
        ((None, 4, 5, 1), (5, 4)),
        ((None, 20), (4, 4)),
        ((None, 1, 20), (4, 5)),
    ],
)
def test_inputs_that_do_not_fit_the_tile(shape, tile):
    with pytest.raises(ValueError, match=r"`tile`.*Received: input_shape"):
        MaskedSLM(3, tile=tile).build(shape)


@pytest.mark.parametrize("shape", [(2, 2, 5), (4, 10), (1, 5, 4), (2, 4, 5, 2), (20,)])
def test_inputs_of_another_size_than_built_for(rng, shape):
    # Some have as many pixels, all together or in each image.
    with pytest.raises(ValueError, match=r"Received: input_shape"):
        slm(rng)(np.ones(shape))


@pytest.mark.parametrize(
    "name, value",
    [("rotation", np.nan), ("shift", [0, np.nan]), ("scale", 0), ("scale", -1)],
)
def test_impossible_misalignment(rng, name, value):
    layer = slm(rng)
    layer.imperfections[name].assign(value)
    x = np.ones((1, 4, 5))
    with pytest.raises(ValueError, match=rf"`{name}`.*Received"):
        layer(x)
    assert np.isnan(tf.function(lambda x: layer(x))(x)).all()


def test_a_layer_that_is_not_built_says_so(tmp_path):
    layer = MaskedSLM(3)
    for call in (
        lambda: layer.frame_shape,
        layer.frames,
        layer.effective_weights,
        lambda: layer.program(np.zeros((4, 3))),
        lambda: layer.save_frames(tmp_path),
        lambda: layer.load_frames(tmp_path),
    ):
        with pytest.raises(ValueError, match=r"built.*Received"):
            call()


def test_docstring_examples_run():
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(MaskedSLM, "MaskedSLM", globs={"pnn": pnn, "np": np})
    assert doctest.DocTestRunner().run(example).failed == 0
