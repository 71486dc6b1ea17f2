"""Error networks against complex convolutions written out in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from keras_pnn.training.dat import error_networks
from keras_pnn.training.dat.error_networks import ErrorNetwork, squarest


@pytest.fixture(autouse=True)
def widths(monkeypatch):
    """Two scales of few channels; other widths by `widths(1, 2, 3)`."""

    def given(*values):
        monkeypatch.setattr(error_networks, "WIDTHS", values)

    given(2, 3)
    return given


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
        result[:, row, column] = np.einsum("bijc,ijcf->bf", patch, kernel)
    return result


def transposed(images, kernel, strides):
    """The adjoint of `correlate` from the larger image, without its conjugations."""
    batch, height, width, channels = images.shape
    shape = (height * strides, width * strides, kernel.shape[3])
    units = np.eye(np.prod(shape)).reshape(-1, *shape)
    back = correlate(units, np.swapaxes(kernel, 2, 3), strides)
    matrix = back.reshape(np.prod(shape), height * width * channels)
    return (images.reshape(batch, -1) @ matrix.T).reshape(batch, *shape)


def network(modes=16, dtype="float64", networks=2):
    """Every weight has a value at random, where variances stay positive."""
    layer = ErrorNetwork(networks, dtype=dtype)
    layer.build((None, modes))
    rng = np.random.default_rng(0)
    for variable in layer.weights:
        low, high = (0.5, 2.0) if variable.name == "variance" else (-0.5, 0.5)
        variable.assign(rng.uniform(low, high, variable.shape))
    return layer


def stages(layer):
    blocks = [stage for block in layer._blocks for stage in block]
    return [*blocks, *layer._downs, *layer._ups, layer._last]


def unet(layer, inputs, training):
    """S of a network, one U-Net, one convolution at a time; and the statistics."""
    rows, columns = squarest(inputs.shape[-1])
    margins = [(-n) % 2 ** len(layer._downs) for n in (rows, columns)]
    images = inputs.reshape(-1, rows, columns, 1)
    images = np.pad(images, [(0, 0), (0, margins[0]), (0, margins[1]), (0, 0)])
    total, statistics = 0, {}
    for index in range(layer._last.networks):

        def through(stage, x, index=index):
            filters = stage.filters
            mine = slice(index * filters, (index + 1) * filters)
            kernel = stage.kernel.numpy()[..., mine]
            own = transposed if stage.transpose else correlate
            y = own(x, kernel[0] + 1j * kernel[1], stage.strides)
            y = np.concatenate([y.real, y.imag], -1)
            bias = stage.bias.numpy()[index]
            if stage is layer._last:
                y = y + bias
            else:
                mean = stage.mean.numpy()[index]
                variance = stage.variance.numpy()[index]
                if training:
                    mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
                    statistics[id(stage), index] = mean, variance
                y = (y - mean) / np.sqrt(variance + 1e-3) * stage.scale.numpy()[index]
                y = np.maximum(y + bias, 0)
            return y[..., :filters] + 1j * y[..., filters:]

        chain = [images]
        for stage in layer._downs:
            chain.append(through(stage, chain[-1]))
        features = []
        for block, x in zip(layer._blocks, chain, strict=True):
            for stage in block:
                x = through(stage, x)
            features.append(x)
        x = features[-1]
        for stage, skipped in zip(layer._ups, features[-2::-1], strict=True):
            x = np.concatenate([skipped, through(stage, x)], -1)
        total = total + through(layer._last, x)
    return total[:, :rows, :columns, 0].reshape(inputs.shape), statistics


@pytest.mark.parametrize(
    ("modes", "scales"),
    [
        (16, (2, 3)),
        (36, (1, 2, 3)),
        (7, (2, 3)),
        (1, (2, 3)),
        (6, (2,)),
        # Wider than what is written out as matrices.
        (11, (1, 1)),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_network_equals_one_written_out(rng, modes, scales, training, widths):
    widths(*scales)
    layer, inputs = network(modes), fields(rng, 3, modes)
    expected, _ = unet(layer, inputs, training)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(layer(inputs, training=training), expected, atol=1e-10)


def test_batch_normalization_moves_its_averages(rng):
    layer, inputs = network(), fields(rng, 5, 16)
    before = {id(s): (s.mean.numpy(), s.variance.numpy()) for s in stages(layer)[:-1]}
    _, statistics = unet(layer, inputs, training=True)
    layer(inputs, training=False)
    for stage in stages(layer)[:-1]:
        np.testing.assert_array_equal(stage.mean, before[id(stage)][0])
    layer(inputs, training=True)
    for stage in stages(layer)[:-1]:
        now = np.array([statistics[id(stage), i] for i in range(2)]).swapaxes(0, 1)
        mean, variance = 0.9 * np.array(before[id(stage)]) + 0.1 * now
        np.testing.assert_allclose(stage.mean, mean, atol=1e-12)
        np.testing.assert_allclose(stage.variance, variance, atol=1e-12)


def test_starts_at_zero_and_leaves_it(rng):
    layer = ErrorNetwork(2)
    inputs = fields(rng, 4, 16).astype("complex64")
    for training in (False, True):
        assert not np.any(layer(inputs, training=training))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.abs(layer(inputs, training=True) - inputs) ** 2)
    last = layer._last.kernel
    assert np.any(tape.gradient(loss, last.value))
    # The others are drawn, so that a ReLU keeps the power: He's initializer.
    drawn = [s.kernel.numpy() for s in stages(layer)[:-1]]
    assert all(kernel.std() > 0 for kernel in drawn) and not last.numpy().any()


@pytest.mark.parametrize("modes", [1, 7, 10])
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "bfloat16", "float64"])
def test_shapes_and_dtypes(rng, modes, dtype):
    layer = network(modes, dtype)
    bits = 64 if dtype == "float64" else 32
    for given, kind in (
        (fields(rng, 6, modes).astype("complex64"), f"complex{2 * bits}"),
        (rng.normal(size=(6, modes)).astype("float32"), f"float{bits}"),
    ):
        outputs = layer(given)
        assert outputs.shape == given.shape and outputs.dtype.name == kind
        if dtype != "float64":
            # Half precision does not round inputs.
            np.testing.assert_array_equal(outputs, network(modes, "float32")(given))
    assert {v.dtype for v in layer.weights} == {f"float{bits}"}


def test_real_inputs_are_fields_without_imaginary_part(rng):
    layer, inputs = network(), rng.normal(size=(3, 16))
    outputs = layer(inputs.astype(complex)).numpy()
    assert np.abs(outputs.imag).max() > 1e-3
    np.testing.assert_array_equal(layer(inputs), outputs.real)


def test_compiled_by_xla(rng, widths):
    widths(1)
    layer = network(4, "float32", networks=1)
    inputs = fields(rng, 3, 4).astype("complex64")

    def gradients(given):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.abs(layer(given, training=True)) ** 2)
        return tape.gradient(loss, [v.value for v in layer.trainable_variables])

    compiled = tf.function(gradients, jit_compile=True)(inputs)
    for one, other in zip(compiled, gradients(inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("modes", "factors"), [(1, (1, 1)), (7, (1, 7)), (10, (2, 5)), (64, (8, 8))]
)
def test_squarest(modes, factors):
    assert squarest(modes) == factors
