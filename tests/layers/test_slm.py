"""`MaskedSLM` against the optics in NumPy and SciPy, pixel by pixel of the frame."""

import keras
import matplotlib.image
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from models import LOSS, assert_same

import keras_pnn as pnn
from keras_pnn.layers import MaskedSLM

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


# --- The display and the transmission of the SLM.


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


def test_levels_of_the_display():
    layer = MaskedSLM(1, display_range=(0, 2), display_bits=2, mask_initializer="ones")
    # Levels 0, 2/3, 4/3 and 2.
    x = np.array([[0.3, 0.35, 1.1, 9.0]], "float32")
    np.testing.assert_allclose(layer(x), [[0 + 2 / 3 + 4 / 3 + 2]], rtol=1e-6)
    layer = MaskedSLM(
        1, display_range=(0, 255), display_bits=8, mask_initializer="ones"
    )
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

    assert_same(slopes(layer), slopes(noiseless(layer)), atol=1e-10)


# --- What Keras asks of a layer.


def test_unknown_batch_size_and_functional_use(rng):
    inputs = keras.Input((4, 5, 1))
    layer = MaskedSLM(3)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, 3)
    for count in (1, 5, 0):
        rows = rng.uniform(size=(count, 4, 5, 1)).astype("float32")
        expected = rows.reshape(count, 20) @ matrix(layer)
        np.testing.assert_allclose(model(rows), expected, atol=1e-6)


def test_inputs_may_be_integers():
    layer = MaskedSLM(2, mask_initializer="ones")
    np.testing.assert_allclose(layer(np.full((1, 9), 200, "uint8")), [[1800, 1800]])


@pytest.mark.parametrize(
    "constraint, bound",
    [(None, None), (pnn.layers.ControlRange(-0.25, 0.25), 0.25), ("range", 1.0)],
)
def test_training_keeps_the_masks_within_the_constraint(rng, constraint, bound):
    layer = MaskedSLM(3, mask_constraint=constraint)
    model = keras.Sequential([keras.Input((4, 5)), layer])
    model.compile(keras.optimizers.SGD(100.0), LOSS)
    x, y = rng.uniform(size=(12, 4, 5)).astype("float32"), rng.integers(0, 3, 12)
    model.fit(x, y, epochs=2, verbose=0)
    largest = np.abs(masks(layer)).max()
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


# --- Frames and files.


def test_place_of_a_pixel_on_its_frame(rng):
    layer = slm(rng)
    # Unit 6 is the third tile of the second row; tiles are 8 × 14 pixels.
    assert layer.position("mask", (6, 3, 4)) == (0, 8 + 2 + 3, 28 + 2 * (1 + 4))
    frames = layer.frames()
    assert layer.frame_shape == frames.shape == (2, 3 * 8, 4 * 14)
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


def fine(mask):
    """Steps of 12 bits."""
    return keras.ops.round(mask * 2048) / 2048


@pytest.mark.parametrize(
    "bits, depth", [(6, 8), (8, 8), (9, 16), (10, 16), (16, 16), ("function", 16)]
)
def test_frames_keep_the_steps_of_the_converter(rng, tmp_path, bits, depth):
    dac = fine if bits == "function" else pnn.layers.DAC(bits, -1, 1)
    layer = MaskedSLM(2, dac=dac, name="slm")
    layer.build((None, 4, 4))
    layer.program(rng.uniform(-1, 1, (16, 2)))
    before = layer.effective_weights().numpy()
    (path,) = layer.save_frames(tmp_path)
    assert path.read_bytes()[24] == depth
    layer.load_frames(tmp_path)
    np.testing.assert_allclose(layer.effective_weights(), before, atol=1e-6)


def test_steps_that_no_picture_holds_are_refused(tmp_path):
    layer = MaskedSLM(2, dac=pnn.layers.DAC(17, -1, 1), name="slm")
    layer.build((None, 4, 4))
    with pytest.raises(ValueError, match=r"16 bits at most.*'slm'.*Received: 17 bits"):
        layer.save_frames(tmp_path)
    assert not list(tmp_path.iterdir())


def jpeg(path):
    levels = np.zeros((24, 56, 1), "uint8")
    path.write_bytes(tf.io.encode_jpeg(levels).numpy())


def png(shape, dtype="uint8"):
    picture = tf.io.encode_png(np.full(shape, 9, dtype)).numpy()
    return lambda path: path.write_bytes(picture)


def edit(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


BAD_FILES = {
    "missing": lambda path: path.unlink(),
    "too small": png((24, 55, 1)),
    "RGB": png((24, 56, 3)),
    "16 bits, RGB": png((24, 56, 3), "uint16"),
    "jpeg": jpeg,
    "text": edit(lambda data: b"rotation,0.5\n"),
    "cut in the middle": edit(lambda data: data[: len(data) // 2]),
    "one bit": edit(lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:]),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_changes_nothing(rng, tmp_path, kind):
    layer = slm(rng)
    _, path = layer.save_frames(tmp_path)
    layer.controls["mask"].assign(rng.uniform(-1, 1, (13, 4, 5)))
    before = masks(layer)
    BAD_FILES[kind](path)
    error = FileNotFoundError if kind == "missing" else ValueError
    with pytest.raises(error, match=path.name) as raised:
        layer.load_frames(tmp_path)
    assert kind == "missing" or "Received" in str(raised.value)
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


# --- Arguments and values that cannot be.


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
