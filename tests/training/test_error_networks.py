"""Error networks against complex convolutions written out in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_pnn.training.dat import complex_convolution
from keras_pnn.training.dat.complex_convolution import ComplexConv2D
from keras_pnn.training.dat.error_networks import ErrorNetwork, squarest


def fields(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def correlate(images, kernel, strides):
    """The complex correlation with the padding "same" of Keras."""
    sides, taps = np.array(images.shape[1:3]), np.array(kernel.shape[:2])
    outputs = -(-sides // strides)
    total = np.maximum((outputs - 1) * strides + taps - sides, 0)
    margins = [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)]
    padded = np.pad(images, margins)
    result = np.zeros((len(images), *outputs, kernel.shape[3]), complex)
    for row, column in np.ndindex(*outputs):
        top, left = row * strides, column * strides
        patch = padded[:, top : top + taps[0], left : left + taps[1]]
        # Strides beyond the kernel may end at a window that is cut short.
        cut = kernel[: patch.shape[1], : patch.shape[2]]
        result[:, row, column] = np.einsum("bijc,ijcf->bf", patch, cut)
    return result


def transposed(images, kernel, strides):
    """The adjoint of `correlate` from the larger image, without its conjugations."""
    batch, height, width, channels = images.shape
    shape = (height * strides, width * strides, kernel.shape[3])
    units = np.eye(np.prod(shape)).reshape(-1, *shape)
    back = correlate(units, np.swapaxes(kernel, 2, 3), strides)
    matrix = back.reshape(np.prod(shape), height * width * channels)
    return (images.reshape(batch, -1) @ matrix.T).reshape(batch, *shape)


def convolved(layer, images):
    kernel = layer.kernel.numpy()
    reference = transposed if layer.transpose else correlate
    outputs = reference(images, kernel[0] + 1j * kernel[1], layer.strides)
    if layer.bias is not None:
        outputs = outputs + layer.bias.numpy()[0] + 1j * layer.bias.numpy()[1]
    return outputs


def randomize(layer, rng):
    """Gives every weight a value at random, where variances stay positive."""
    for variable in layer.weights:
        low, high = (0.5, 2.0) if variable.name == "variance" else (-0.5, 0.5)
        variable.assign(rng.uniform(low, high, variable.shape))


def network(modes=16, dtype="float64", seed=0, **kwargs):
    kwargs = {"networks": 2, "widths": (2, 3), "zero_start": False, **kwargs}
    layer = ErrorNetwork(dtype=dtype, **kwargs)
    layer.build((None, modes))
    randomize(layer, np.random.default_rng(seed))
    return layer


def test_reference_is_a_correlation(rng):
    from scipy.signal import correlate2d

    image, kernel = fields(rng, 6, 5), fields(rng, 3, 3)
    # SciPy conjugates the second argument.
    expected = correlate2d(image, kernel.conj(), mode="same")
    ours = correlate(image[None, ..., None], kernel[..., None, None], 1)
    np.testing.assert_allclose(ours[0, ..., 0], expected, atol=1e-13)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, (3, 4)])
def test_complex_convolution(rng, kernel_size, strides, transpose):
    layer = ComplexConv2D(3, kernel_size, strides, transpose, dtype="float64")
    images = fields(rng, 2, 5, 6, 2)
    layer.build(images.shape)
    randomize(layer, rng)
    outputs = layer(images)
    assert outputs.dtype == tf.complex128
    assert outputs.shape == layer.compute_output_shape(images.shape)
    np.testing.assert_allclose(outputs, convolved(layer, images), atol=1e-10)


def test_convolution_of_images_of_unknown_size(rng):
    layer = ComplexConv2D(2, strides=2, transpose=True, use_bias=False)
    images = keras.Input((None, None, 3), dtype="complex64")
    outputs = layer(images)
    assert outputs.shape == (None, None, None, 2)
    assert keras.backend.standardize_dtype(outputs.dtype) == "complex64"
    assert len(layer.weights) == 1
    given = fields(rng, 2, 3, 4, 3).astype("complex64")
    result = keras.Model(images, outputs).predict(given, verbose=0)
    np.testing.assert_allclose(result, convolved(layer, given), atol=1e-5)


def test_convolution_keeps_the_power_through_a_relu():
    keras.utils.set_random_seed(0)
    images = tf.complex(*tf.unstack(tf.random.normal((2, 4, 32, 32, 64))))
    outputs = ComplexConv2D(64)(images)
    outputs = tf.nn.relu(tf.stack([tf.math.real(outputs), tf.math.imag(outputs)]))
    inner = tf.reduce_sum(outputs**2, 0)[:, 1:-1, 1:-1]
    assert float(tf.reduce_mean(inner)) == pytest.approx(2.0, rel=0.1)


def test_convolution_gradients(rng):
    layer = ComplexConv2D(2, strides=2, transpose=True, dtype="float64")
    images = tf.constant(fields(rng, 2, 3, 3, 2))
    layer.build(images.shape)
    check_gradients(layer, lambda: layer(images), rng)


def check_gradients(layer, outputs, rng):
    """Compares gradients along a direction in all weights with central differences."""

    def loss():
        values = outputs()
        numbers = tf.range(tf.size(values), dtype=values.dtype.real_dtype)
        waves = tf.reshape(tf.cos(numbers), tf.shape(values))
        return tf.reduce_sum(waves * tf.math.real(values * tf.math.conj(values)))

    variables = layer.trainable_variables
    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, [v.value for v in variables])
    before = [v.numpy() for v in variables]
    # Of equal weight for each variable, however small its gradient is.
    directions = [
        rng.uniform(0.5, 1.0, g.shape) * np.sign(g) / np.abs(g).sum() for g in gradients
    ]
    step, ends = 1e-6, []
    for sign in (1, -1):
        for variable, start, direction in zip(
            variables, before, directions, strict=True
        ):
            variable.assign(start + sign * step * direction)
        ends.append(float(loss()))
    slopes = [np.sum(g * d) for g, d in zip(gradients, directions, strict=True)]
    assert min(slopes) > 0.5 - 1e-9
    assert sum(slopes) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def stages(layer):
    return [*layer._blocks, *layer._downs, *layer._ups, layer._last]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_network_gradients(rng, normalize, training):
    layer = network(normalize=normalize)
    inputs = tf.constant(fields(rng, 3, 16))
    check_gradients(layer, lambda: layer(inputs, training=training), rng)


def unet(layer, inputs, training):
    """S of a network, one U-Net, one convolution at a time; and the statistics."""
    rows, columns = layer.grid or squarest(inputs.shape[-1])
    halvings = len(layer.widths) - 1
    margins = [(-n) % 2**halvings for n in (rows, columns)]
    images = inputs.reshape(-1, rows, columns, 1)
    images = np.pad(images, [(0, 0), (0, margins[0]), (0, margins[1]), (0, 0)])
    total, statistics = 0, {}
    for index in range(layer.networks):

        def through(stage, x, index=index):
            filters = stage.filters
            mine = slice(index * filters, (index + 1) * filters)
            kernel = stage.kernel.numpy()[..., mine]
            own = transposed if stage.transpose else correlate
            y = own(x, kernel[0] + 1j * kernel[1], stage.strides)
            y = np.concatenate([y.real, y.imag], -1)
            if stage.momentum is not None:
                mean, variance = (
                    stage.mean.numpy()[index],
                    stage.variance.numpy()[index],
                )
                if training:
                    mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
                    statistics[id(stage), index] = mean, variance
                y = (y - mean) / np.sqrt(variance + 1e-3) * stage.scale.numpy()[index]
            y = y + stage.bias.numpy()[index]
            y = np.maximum(y, 0) if stage.relu else y
            return y[..., :filters] + 1j * y[..., filters:]

        def block(level, x, through=through):
            for stage in layer._blocks[3 * level : 3 * level + 3]:
                x = through(stage, x)
            return x

        chain = [images]
        for stage in layer._downs:
            chain.append(through(stage, chain[-1]))
        features = [block(level, x) for level, x in enumerate(chain)]
        x = features[-1]
        for stage, skipped in zip(layer._ups, features[-2::-1], strict=True):
            x = np.concatenate([skipped, through(stage, x)], -1)
        total = total + through(layer._last, x)
    return total[:, :rows, :columns, 0].reshape(inputs.shape), statistics


@pytest.mark.parametrize(
    ("modes", "arguments"),
    [
        (16, {}),
        (64, {"networks": 1, "widths": (1, 2, 3)}),
        (7, {"normalize": False}),
        (10, {"grid": (5, 2), "widths": (2, 1, 2)}),
        (1, {}),
        (6, {"widths": (2,), "normalize": False}),
        # Wider than what is written out as matrices.
        (40, {"networks": 1, "grid": (2, 20)}),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_network_equals_one_written_out(rng, modes, arguments, training):
    layer = network(modes, **arguments)
    inputs = fields(rng, 3, modes)
    expected, _ = unet(layer, inputs, training)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(layer(inputs, training=training), expected, atol=1e-10)


def test_rows_as_matrices_change_nothing(rng, monkeypatch):
    layer, inputs = network(64, widths=(2, 3, 4)), fields(rng, 3, 64)
    outputs = layer(inputs)
    monkeypatch.setattr(complex_convolution, "_DENSE_WIDTH", 0)
    np.testing.assert_allclose(layer(inputs), outputs, atol=1e-12)


def test_batch_normalization_moves_its_averages(rng):
    layer, inputs = network(momentum=0.75), fields(rng, 5, 16)
    before = {id(s): (s.mean.numpy(), s.variance.numpy()) for s in stages(layer)[:-1]}
    _, statistics = unet(layer, inputs, training=True)
    layer(inputs, training=False)
    for stage in stages(layer)[:-1]:
        np.testing.assert_array_equal(stage.mean, before[id(stage)][0])
    layer(inputs, training=True)
    for stage in stages(layer)[:-1]:
        now = np.array([statistics[id(stage), i] for i in range(2)]).swapaxes(0, 1)
        mean, variance = 0.75 * np.array(before[id(stage)]) + 0.25 * now
        np.testing.assert_allclose(stage.mean, mean, atol=1e-12)
        np.testing.assert_allclose(stage.variance, variance, atol=1e-12)


def test_a_frozen_network_keeps_its_averages(rng):
    layer, inputs = network(), fields(rng, 5, 16)
    infer = layer(inputs, training=False)
    layer.trainable = False
    values = [v.numpy() for v in layer.weights]
    np.testing.assert_array_equal(layer(inputs, training=True), infer)
    for before, variable in zip(values, layer.weights, strict=True):
        np.testing.assert_array_equal(variable, before)


@pytest.mark.parametrize("normalize", [False, True])
def test_starts_at_zero_and_leaves_it(rng, normalize):
    layer = ErrorNetwork(networks=2, widths=(2, 3), normalize=normalize)
    inputs = fields(rng, 4, 16).astype("complex64")
    for training in (False, True):
        assert not np.any(layer(inputs, training=training))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.abs(layer(inputs, training=True) - inputs) ** 2)
    gradients = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    assert np.any(gradients[-2])
    assert np.any(ErrorNetwork(networks=2, zero_start=False)(inputs))


@pytest.mark.parametrize("modes", [1, 7, 10, 64])
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "bfloat16", "float64"])
def test_shapes_and_dtypes(rng, modes, dtype):
    layer = ErrorNetwork(networks=1, widths=(1, 2, 2), zero_start=False, dtype=dtype)
    double = dtype == "float64"
    for given in (fields(rng, 2, 3, modes), rng.normal(size=(2, 3, modes))):
        is_complex = np.iscomplexobj(given)
        given = given.astype("complex64" if is_complex else "float32")
        kind = (
            ("complex128" if double else "complex64")
            if is_complex
            else ("float64" if double else "float32")
        )
        outputs = layer(given)
        symbol = layer(keras.Input((3, modes), dtype=given.dtype.name))
        assert outputs.shape == given.shape
        assert outputs.dtype.name == symbol.dtype == kind
        assert symbol.shape == (None, 3, modes)
    assert {v.dtype for v in layer.weights} == {"float64" if double else "float32"}


def test_half_precision_policies_do_not_round_inputs(rng):
    layer = network(dtype="mixed_float16")
    same = network(dtype="float32")
    inputs = rng.normal(size=(3, 16)).astype("float32")
    np.testing.assert_array_equal(layer(inputs), same(inputs))


def test_real_inputs_are_fields_without_imaginary_part(rng):
    layer, inputs = network(), rng.normal(size=(3, 16))
    outputs = layer(inputs.astype(complex)).numpy()
    assert np.abs(outputs.imag).max() > 1e-3
    np.testing.assert_array_equal(layer(inputs), outputs.real)


def test_networks_are_a_sum_of_different_ones(rng):
    layer = ErrorNetwork(networks=3, widths=(2, 3), zero_start=False, dtype="float64")
    inputs = fields(rng, 3, 16)
    total, alone = layer(inputs), []
    kernel = layer._last.kernel
    values = kernel.numpy()
    for index in range(3):
        only = np.zeros_like(values)
        only[..., index] = values[..., index]
        kernel.assign(only)
        alone.append(layer(inputs).numpy())
    np.testing.assert_allclose(total, sum(alone), atol=1e-12)
    assert np.abs(alone[0] - alone[1]).max() > 1e-2


def test_save_and_load(tmp_path, rng):
    images = keras.Input((8, 8, 1), dtype="complex64")
    inner = ComplexConv2D(2, (3, 2), 2, kernel_initializer="lecun_normal")(images)
    outer = ComplexConv2D(1, 3, 2, transpose=True)(inner)
    inputs = keras.Input((15,), dtype="complex64")
    layer = ErrorNetwork(
        2, (2, 3), grid=(5, 3), normalize=True, zero_start=False, momentum=0.5
    )
    model = keras.Model([images, inputs], [outer, layer(inputs)])
    given = [fields(rng, 2, *x.shape[1:]).astype("complex64") for x in model.inputs]
    model(given, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(model(given), loaded(given), strict=True):
        assert np.any(one)
        np.testing.assert_array_equal(one, other)
    for one, other in zip(model.layers, loaded.layers, strict=True):
        assert one.get_config() == other.get_config()


def test_learns_a_fixed_linear_error():
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    inputs = fields(rng, 128, 16).astype("complex64")
    targets = (inputs @ fields(rng, 16, 16) * 0.1).astype("complex64")
    layer = ErrorNetwork(networks=2, widths=(4, 8))
    layer.build(inputs.shape)
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(layer.trainable_variables)

    def misfit(training):
        return tf.reduce_mean(tf.abs(layer(inputs, training=training) - targets) ** 2)

    @tf.function
    def step():
        variables = layer.trainable_variables
        with tf.GradientTape() as tape:
            loss = misfit(training=True)
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizer.apply(gradients, variables)

    start = float(misfit(training=False))
    assert start == pytest.approx(np.mean(np.abs(targets) ** 2), rel=1e-5)
    for _ in range(60):
        step()
    # By the moving averages, which training must have brought near.
    assert misfit(training=False) < 0.5 * start


def test_compiled_by_xla(rng):
    layer = network(4, dtype="float32", networks=1, widths=(1, 1))
    inputs = fields(rng, 3, 4).astype("complex64")

    def gradients(given):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.abs(layer(given, training=True)) ** 2)
        return tape.gradient(loss, [v.value for v in layer.trainable_variables])

    expected = gradients(inputs)
    compiled = tf.function(gradients, jit_compile=True)(inputs)
    for one, other in zip(compiled, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("modes", "factors"), [(1, (1, 1)), (7, (1, 7)), (10, (2, 5)), (64, (8, 8))]
)
def test_squarest(modes, factors):
    assert squarest(modes) == factors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"networks": 0}, "networks"),
        ({"widths": ()}, "widths"),
        ({"widths": 4}, "widths"),
        ({"widths": (4, 0)}, "widths"),
        ({"grid": (8, 8, 1)}, "grid"),
        ({"grid": 8}, "grid"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"momentum": "high"}, "momentum"),
    ],
)
def test_bad_networks(arguments, message):
    with pytest.raises(ValueError, match=f"`{message}`.*Received"):
        ErrorNetwork(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": 0}, "filters"),
        ({"filters": 2, "kernel_size": (3, 3, 3)}, "kernel_size"),
        ({"filters": 2, "kernel_size": 1.5}, "kernel_size"),
        ({"filters": 2, "strides": 0}, "strides"),
    ],
)
def test_bad_convolutions(arguments, message):
    with pytest.raises(ValueError, match=f"`{message}`.*Received"):
        ComplexConv2D(**arguments)


def test_bad_inputs():
    with pytest.raises(ValueError, match=r"64.*Received: grid=\(4, 4\)"):
        ErrorNetwork(grid=(4, 4)).build((None, 64))
    for shape in ((None, None), (64,)):
        with pytest.raises(ValueError, match="modes"):
            ErrorNetwork().build(shape)
    for shape in ((None, 8, 8), (None, 8, 8, None)):
        with pytest.raises(ValueError, match="channels"):
            ComplexConv2D(2).build(shape)
