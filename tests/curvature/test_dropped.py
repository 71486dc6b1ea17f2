"""Second derivatives that TensorFlow drops are right by another way, or refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_pnn as pnn
from keras_pnn.curvature.operator import HessianOperator


def _resize(interpolation):
    return layers.Resizing, {"height": 5, "width": 5, "interpolation": interpolation}


RIGHT = {
    "up sampling": (layers.UpSampling2D, {"size": 2, "interpolation": "bilinear"}),
    **{
        f"resizing {interpolation}": _resize(interpolation)
        for interpolation in ("bilinear", "nearest", "area", "bicubic", "lanczos3")
    },
    "pooling": (layers.MaxPooling2D, {"pool_size": 3, "strides": 1, "padding": "same"}),
    "pooling of one": (layers.MaxPooling2D, {"pool_size": 1}),
}


@pytest.mark.parametrize("kind, options", RIGHT.values(), ids=RIGHT)
def test_the_hessian_is_the_second_difference_of_the_loss(kind, options):
    convolution = layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((4, 4, 1)), convolution, kind(**options)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(1).uniform(size=(3, 4, 4, 1)).astype("float32")
    y = np.zeros((3, *model.output_shape[1:]), "float32")
    losses = []
    for weight in (0.5, 1.0, 1.5):
        convolution.kernel.assign([[[[weight]]]])
        losses.append(model.evaluate(x, y, verbose=0))
    convolution.kernel.assign([[[[1.0]]]])
    # The loss is quadratic in the weight, so that any step is exact.
    expected = np.diff(losses, 2) / 0.5**2
    found = pnn.hessian_eigenvalues(model, x, y, variables="all").eigenvalues
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def raw(operation):
    """Doubles an image by an operation whose gradient has no derivative."""

    def double(x):
        size = 2 * tf.shape(x)[1:3]
        return getattr(tf.raw_ops, operation)(images=x, size=size)

    return double


def crop(x):
    """Doubles an image by cropping nothing of it."""
    boxes = tf.tile([[0.0, 0.0, 1.0, 1.0]], (tf.shape(x)[0], 1))
    size = 2 * x.shape[1], 2 * x.shape[2]
    return tf.image.crop_and_resize(x, boxes, tf.range(tf.shape(x)[0]), size)


@tf.custom_gradient
def squared(x):
    """Squares, with a gradient that loses its derivative by x."""
    return x**2, lambda upstream: 2 * tf.stop_gradient(x) * upstream


def network(bad):
    """A network with a branch around a layer that is at fault."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 2))
    first = layers.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    pooled = layers.MaxPooling2D()(first)
    second = layers.Conv2D(3, 3, padding="same", activation="relu")(pooled)
    joined = layers.Concatenate()([first, bad(second)])
    outputs = layers.Dense(2)(layers.Flatten()(joined))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    return model


RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4, 4, 2)).astype("float32")
Y = RNG.normal(size=(16, 2)).astype("float32")


class Own(keras.Model):
    """A model whose `call` resizes by itself."""

    def __init__(self):
        super().__init__()
        self.first = layers.Conv2D(2, 2)
        self.last = layers.Dense(2)

    def call(self, inputs):
        resized = raw("ResizeBilinear")(self.first(inputs))
        return self.last(tf.reduce_mean(resized**2, (1, 2)))


@pytest.mark.parametrize(
    "function, policy, received",
    [
        (raw("ResizeBilinear"), "float32", "derivatives that are 0"),
        (raw("ResizeBilinear"), "mixed_bfloat16", "derivatives that are 0"),
        (raw("ResizeNearestNeighbor"), "float32", "no entry for"),
        (crop, "float32", "no entry for"),
        (squared, "float32", "differs from differences"),
    ],
)
def test_a_layer_that_loses_second_derivatives_is_named(function, policy, received):
    def bad(x):
        x = layers.Lambda(function, name="bad", dtype=policy)(x)
        return layers.UpSampling2D()(x) if function is squared else x

    model = network(bad)
    with pytest.raises(ValueError, match=rf"layer `bad`, which.*{received}"):
        HessianOperator(model, X, Y, "all").trace(1)
    # Behind the layer there is a way.
    last = model.layers[-1].kernel
    HessianOperator(model, X, Y, lambda v: v is last).trace(1)


def test_a_model_that_loses_them_itself_is_refused():
    model = Own()
    model.compile("sgd", "mse")
    model(X)
    with pytest.raises(ValueError, match="the model's own `call` or its loss"):
        HessianOperator(model, X, Y, "all").trace(1)


@tf.custom_gradient
def quantised(x):
    return tf.round(8 * x) / 8, lambda upstream: upstream


# Functions of a dtype policy.
NO_ALARM = {
    "relu": lambda p: [layers.Dense(64, "relu", dtype=p) for _ in range(2)],
    "noise": lambda p: [
        layers.Dropout(0.5, dtype=p),
        layers.GaussianNoise(1.0, dtype=p),
        layers.Dense(8, "relu", dtype=p),
    ],
    "own smooth": lambda p: [layers.Lambda(lambda x: tf.sin(3 * x), dtype=p)],
    "own relu": lambda p: [layers.Dense(64, lambda x: tf.maximum(x, 0.0), dtype=p)],
    "own kinks": lambda p: [
        layers.Lambda(lambda x: tf.clip_by_value(tf.abs(x), 0.2, 0.9))
    ],
    "own pooling": lambda p: [
        layers.Reshape((4, 4, 2)),
        layers.Lambda(lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID")),
    ],
    "quantised": lambda p: [layers.Dense(16, "tanh"), layers.Lambda(quantised)],
    "constant": lambda p: [layers.Lambda(lambda x: 0 * x)],
    "fields": lambda p: [
        layers.Dense(8),
        pnn.layers.MZIMesh(8),
        pnn.layers.Photodetector(),
    ],
}
IN_HALF = ("relu", "noise", "own smooth", "own relu")


@pytest.mark.parametrize(
    "stack, policy",
    [
        *((stack, "float32") for stack in NO_ALARM),
        *((s, f"mixed_{p}") for s in IN_HALF for p in ("float16", "bfloat16")),
    ],
)
def test_kinks_noise_and_rounding_raise_no_alarm(stack, policy):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Flatten(),
            layers.Dense(32, "relu"),
            *NO_ALARM[stack](policy),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    model.compile("sgd", "mse")
    # Noise is drawn with the second alone.
    for batch_norm in ("frozen", "batch") if stack == "noise" else ("frozen",):
        HessianOperator(model, X, Y, "all", batch_norm=batch_norm).trace(1)
