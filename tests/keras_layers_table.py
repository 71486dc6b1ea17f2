"""A table of small models, one for each Keras layer or combination of layers.

`make(name)` builds one, and the data for it, in the present dtype policy. Trainers,
the evaluation of devices and the Hessian must agree with plain Keras on each, or
refuse it.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import keras_pnn as pnn

SAMPLES, BATCH = 8, 4
DENSE, SERIES, IMAGE, VOLUME = (6,), (4, 3), (6, 6, 2), (4, 4, 4, 1)


class Decorated(layers.Dense):
    """Dense, in a graph of its own."""

    @tf.function
    def call(self, inputs):
        return tf.tanh(tf.matmul(inputs, self.kernel) + self.bias)


class Recomputed(layers.Dense):
    """Dense, whose outputs are computed again in the backward pass."""

    def call(self, inputs):
        def outputs(x):
            return tf.tanh(tf.matmul(x, self.kernel) + self.bias)

        return tf.recompute_grad(outputs)(inputs)


class Custom(layers.Dense):
    """Dense without bias, with its gradient written out."""

    def call(self, inputs):
        @tf.custom_gradient
        def product(x):
            def gradient(upstream, variables=()):
                own = [tf.matmul(x, upstream, transpose_a=True) for _ in variables]
                back = tf.matmul(upstream, self.kernel, transpose_b=True)
                return (back, own) if own else back

            return tf.matmul(x, self.kernel), gradient

        return product(inputs)


class Concrete(layers.Dense):
    """Dense, in a graph that was made once: nothing can stand for its kernel."""

    def build(self, input_shape):
        super().build(input_shape)
        spec = tf.TensorSpec((None, input_shape[-1]), self.compute_dtype)
        function = tf.function(lambda x: tf.matmul(x, self.kernel))
        self.function = function.get_concrete_function(spec)

    def call(self, inputs):
        return self.function(inputs)


class Ageing(layers.Layer):
    """Loses a part of its light at each call, in inference too."""

    def build(self, input_shape):
        self.age = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        self.age.assign_add(1.0)
        return inputs * ops.exp(-0.1 * self.age)


class Noisy(layers.Layer):
    """Adds noise from Keras' own generator, in inference too."""

    def call(self, inputs):
        shape, dtype = ops.shape(inputs), self.compute_dtype
        return inputs + keras.random.normal(shape, stddev=0.3, dtype=dtype)


class Reporting(layers.Layer):
    """Keeps a metric of its own, and adds a loss."""

    def __init__(self):
        super().__init__()
        self.mean = keras.metrics.Mean(name="level")

    def call(self, inputs):
        self.mean.update_state(inputs)
        self.add_loss(0.1 * ops.mean(inputs**2))
        return inputs


class Counting(layers.Layer):
    """Keeps a state that Keras does not know."""

    def build(self, input_shape):
        self.count = tf.Variable(0.0, trainable=False)

    def call(self, inputs):
        self.count.assign(self.count + 1.0)
        return inputs


class Subclass(keras.Model):
    """A model with a `call` of its own that uses a layer twice."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(6, "tanh")
        self.second = layers.Dense(2)

    def call(self, inputs):
        return self.second(self.first(self.first(inputs)) ** 2)


def _stack(*kinds):
    """Several layers, one after the other."""
    return lambda x: [x := layer(x) for layer in [kind() for kind in kinds]][-1]


def _attention(kind, **kwargs):
    def graph(x):
        layer = kind(**kwargs)
        listed = isinstance(layer, (layers.Attention, layers.AdditiveAttention))
        return layer([x, x]) if listed else layer(x, x)

    return graph


def _merged(kind, **kwargs):
    return lambda x: kind(**kwargs)([layers.Dense(6)(x), x])


def _shared(x):
    layer = layers.Dense(6, "tanh")
    return layer(layer(x))


def _nested(x):
    inputs = keras.Input(x.shape[1:])
    inner = keras.Model(inputs, layers.Dense(5, "tanh")(inputs))
    return keras.Sequential([inner, layers.Dense(4, "sigmoid")])(x)


def _normalized(x):
    return layers.Normalization(mean=0.3, variance=2.0)(x)


def _frozen(x):
    return layers.Dense(5, "tanh", trainable=False)(x)


def _stacked_cells(x):
    return layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])(x)


def _rematerialized(x):
    with keras.RematScope("full"):
        layer = layers.UnitNormalization()
    return layer(layers.Dense(4)(x))


def _mixed(x):
    return layers.Dense(5, "tanh", dtype="mixed_bfloat16")(x)


# Kinds of layers, by the shape of their inputs, with options.
_KEYED = {
    DENSE: {
        "dense": (layers.Dense, {"units": 5, "activation": "tanh"}),
        "dense relu": (layers.Dense, {"units": 5, "activation": "relu"}),
        "dense silu": (layers.Dense, {"units": 5, "activation": "silu"}),
        "dense gelu": (layers.Dense, {"units": 5, "activation": "gelu"}),
        "dense softmax": (layers.Dense, {"units": 5, "activation": "softmax"}),
        "dense regularized": (
            layers.Dense,
            {"units": 5, "kernel_regularizer": "l2", "bias_regularizer": "l2"},
        ),
        "dense constrained": (
            layers.Dense,
            {"units": 5, "kernel_constraint": "unit_norm"},
        ),
        "dense lora": (layers.Dense, {"units": 5, "lora_rank": 2}),
        "einsum dense": (
            layers.EinsumDense,
            {"equation": "ab,bc->ac", "output_shape": 5, "bias_axes": "c"},
        ),
        "prelu": (layers.PReLU, {"alpha_initializer": "ones"}),
        "leaky relu": (layers.LeakyReLU, {}),
        "elu": (layers.ELU, {}),
        "softmax": (layers.Softmax, {}),
        "dropout": (layers.Dropout, {"rate": 0.5}),
        "alpha dropout": (layers.AlphaDropout, {"rate": 0.5}),
        "gaussian dropout": (layers.GaussianDropout, {"rate": 0.5}),
        "gaussian noise": (layers.GaussianNoise, {"stddev": 0.5}),
        "activity": (layers.ActivityRegularization, {"l2": 0.1}),
        "batch normalization": (layers.BatchNormalization, {}),
        "layer normalization": (layers.LayerNormalization, {}),
        "rms normalization": (layers.RMSNormalization, {}),
        "group normalization": (layers.GroupNormalization, {"groups": 2}),
        "unit normalization": (layers.UnitNormalization, {}),
        "spectral normalization": (
            lambda: layers.SpectralNormalization(layers.Dense(5, name="assigned")),
            {},
        ),
        "rescaling": (layers.Rescaling, {"scale": 0.5}),
        "repeat vector": (layers.RepeatVector, {"n": 2}),
        "tf.function": (Decorated, {"units": 5}),
        "recompute_grad": (Recomputed, {"units": 5}),
        "custom_gradient": (Custom, {"units": 5, "use_bias": False}),
        "concrete function": (Concrete, {"units": 5, "use_bias": False}),
        "metric": (Reporting, {}),
        "global generator": (Noisy, {}),
        "tf.Variable": (Counting, {}),
        "MRRBank": (lambda: pnn.layers.MRRBank(3), {}),
        "Photodetector": (lambda: pnn.layers.Photodetector(), {}),
    },
    SERIES: {
        "simple rnn": (layers.SimpleRNN, {"units": 3}),
        "lstm": (layers.LSTM, {"units": 3}),
        "lstm dropout": (
            layers.LSTM,
            {"units": 3, "dropout": 0.3, "recurrent_dropout": 0.3},
        ),
        "gru": (layers.GRU, {"units": 3, "return_sequences": True}),
        "unrolled gru": (layers.GRU, {"units": 3, "unroll": True}),
        "bidirectional": (lambda: layers.Bidirectional(layers.SimpleRNN(2)), {}),
        "time distributed": (lambda: layers.TimeDistributed(layers.Dense(3)), {}),
        # To TensorFlow, other layers in one dimension are those in two.
        "causal conv1d": (
            layers.Conv1D,
            {"filters": 2, "kernel_size": 2, "padding": "causal"},
        ),
        "max pooling1d": (layers.MaxPooling1D, {"pool_size": 2}),
    },
    IMAGE: {
        "conv2d": (layers.Conv2D, {"filters": 2, "kernel_size": 3}),
        "conv2d dilated": (
            layers.Conv2D,
            {"filters": 2, "kernel_size": 2, "dilation_rate": 2},
        ),
        "conv2d groups": (layers.Conv2D, {"filters": 2, "kernel_size": 2, "groups": 2}),
        "separable conv2d": (layers.SeparableConv2D, {"filters": 2, "kernel_size": 3}),
        "depthwise conv2d": (layers.DepthwiseConv2D, {"kernel_size": 3}),
        "conv2d transpose": (
            layers.Conv2DTranspose,
            {"filters": 2, "kernel_size": 3, "strides": 2},
        ),
        "max pooling2d": (layers.MaxPooling2D, {"pool_size": 2}),
        "max pooling2d same": (
            layers.MaxPooling2D,
            {"pool_size": 3, "strides": 1, "padding": "same"},
        ),
        "average pooling2d": (layers.AveragePooling2D, {"pool_size": 2}),
        "global max pooling2d": (layers.GlobalMaxPooling2D, {}),
        "global average pooling2d": (layers.GlobalAveragePooling2D, {}),
        "up sampling2d": (layers.UpSampling2D, {"size": 2}),
        "up sampling2d bilinear": (
            layers.UpSampling2D,
            {"size": 2, "interpolation": "bilinear"},
        ),
        **{
            f"resizing {interpolation}": (
                layers.Resizing,
                {"height": 4, "width": 7, "interpolation": interpolation},
            )
            for interpolation in ("nearest", "bilinear", "bicubic", "lanczos3")
        },
        "batch normalization2d": (layers.BatchNormalization, {}),
        "zero padding2d": (layers.ZeroPadding2D, {}),
        "cropping2d": (layers.Cropping2D, {}),
        "spatial dropout2d": (layers.SpatialDropout2D, {"rate": 0.5}),
        "MRRConv2D": (lambda: pnn.layers.MRRConv2D(2, 2), {}),
    },
    VOLUME: {
        "conv3d": (layers.Conv3D, {"filters": 2, "kernel_size": 2}),
        "conv3d transpose": (layers.Conv3DTranspose, {"filters": 1, "kernel_size": 2}),
        "max pooling3d": (layers.MaxPooling3D, {"pool_size": 2}),
        "max pooling3d same": (
            layers.MaxPooling3D,
            {"pool_size": 3, "strides": 1, "padding": "same"},
        ),
        "average pooling3d": (layers.AveragePooling3D, {"pool_size": 2}),
        "up sampling3d": (layers.UpSampling3D, {"size": 2}),
    },
}

# Functions of a symbolic tensor.
_GRAPHS = {
    "nested": (DENSE, _nested),
    "shared": (DENSE, _shared),
    "normalization": (DENSE, _normalized),
    "frozen": (DENSE, _frozen),
    "rematerialized": (DENSE, _rematerialized),
    "mixed precision": (DENSE, _mixed),
    "subclass": (DENSE, lambda x: Subclass()(x)),
    "add": (DENSE, _merged(layers.Add)),
    "multiply": (DENSE, _merged(layers.Multiply)),
    "concatenate": (DENSE, _merged(layers.Concatenate)),
    "dot": (DENSE, _merged(layers.Dot, axes=1)),
    "maximum": (DENSE, _merged(layers.Maximum)),
    "mesh": (
        DENSE,
        _stack(lambda: pnn.layers.MZIMesh(6), lambda: pnn.layers.Photodetector()),
    ),
    "stacked cells": (SERIES, _stacked_cells),
    "masked lstm": (SERIES, _stack(layers.Masking, lambda: layers.LSTM(3))),
    "masked outputs": (SERIES, _stack(layers.Masking, lambda: layers.Dense(3))),
    "attention": (SERIES, _attention(layers.Attention, use_scale=True)),
    "additive attention": (SERIES, _attention(layers.AdditiveAttention)),
    "multi head attention": (
        SERIES,
        _attention(layers.MultiHeadAttention, num_heads=2, key_dim=2),
    ),
    "grouped query attention": (
        SERIES,
        _attention(
            layers.GroupQueryAttention,
            head_dim=2,
            num_query_heads=2,
            num_key_value_heads=1,
        ),
    ),
    "conv lstm2d": (
        SERIES,
        _stack(lambda: layers.Reshape((2, 2, 3, 1)), lambda: layers.ConvLSTM2D(1, 2)),
    ),
    "masked attention": (
        SERIES,
        _stack(
            layers.Masking,
            lambda: lambda x: layers.MultiHeadAttention(2, 2)(x, x),
        ),
    ),
}
for _shape, _kinds in _KEYED.items():
    for _name, (_kind, _options) in _kinds.items():
        _GRAPHS[_name] = _shape, (lambda k, o: lambda x: k(**o)(x))(_kind, _options)


def _twice(x):
    layer = layers.GRU(3, stateful=True, return_sequences=True)
    return layer(layer(x))


def _states(x):
    """States of all kinds, in a model with a physical layer."""
    return _stack(
        lambda: layers.LSTM(4, stateful=True, return_sequences=True, dropout=0.3),
        layers.BatchNormalization,
        lambda: layers.SimpleRNN(4, stateful=True),
        lambda: layers.SpectralNormalization(layers.Dense(4)),
        lambda: layers.Dropout(0.3),
        Ageing,
        Noisy,
        Reporting,
        lambda: pnn.layers.MRRBank(4),
    )(x)


# Layers that hand a state from batch to batch, in inference too.
STATEFUL = {
    "stateful simple rnn": lambda x: layers.SimpleRNN(3, stateful=True)(x),
    "stateful lstm": lambda x: layers.LSTM(3, stateful=True)(x),
    "stateful gru": lambda x: layers.GRU(3, stateful=True, unroll=True)(x),
    "stateful cells": lambda x: layers.RNN(
        [layers.LSTMCell(3), layers.GRUCell(2)], stateful=True
    )(x),
    "stateful bidirectional": lambda x: layers.Bidirectional(
        layers.LSTM(2, stateful=True)
    )(x),
    "stateful conv lstm1d": _stack(
        lambda: layers.Reshape((2, 6, 1)),
        lambda: layers.ConvLSTM1D(1, 2, stateful=True),
    ),
    "stateful twice": _twice,
    "ageing": lambda x: Ageing()(x),
    "all states": _states,
}
_GRAPHS |= {name: (SERIES, graph) for name, graph in STATEFUL.items()}

NAMES = tuple(_GRAPHS)

# Functions without weights, states or random numbers. To a trainer all are alike, other
# than to second derivatives and to many devices at once.
FUNCTIONS = {
    *("dense relu", "dense silu", "dense gelu", "leaky relu", "elu", "softmax"),
    *("unit normalization", "rescaling", "repeat vector", "maximum", "multiply"),
    *(name for name in NAMES if "pooling" in name or "resizing" in name),
    *(name for name in NAMES if "up sampling" in name),
    *("zero padding2d", "cropping2d"),
}

# Layers that Keras cannot run, or not differentiate, in float64.
SINGLE = (
    "multi head attention",
    "grouped query attention",
    "masked attention",
    "max pooling3d",
    "max pooling3d same",
    "average pooling3d",
    "resizing lanczos3",
    "mixed precision",
)

# Layers that draw in inference, from a generator that is no layer's.
RANDOM = ("global generator", "all states")

# Layers that no value can stand for, or that nothing holds back, and what is said.
REFUSED = {
    "concrete function": "Layer `concrete.*` must read its variable .* attribute",
    "tf.Variable": "Layer `counting.*` must keep what it assigns .* `self.add_weight",
}


def make(name: str) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """Returns a functional model that is not compiled, inputs and targets.

    The model is a layer with weights, what the name says, and a `Dense`, so that
    gradients go through what the name says; masks are in the inputs. Built twice, it
    has the same weights.
    """
    keras.utils.set_random_seed(1)
    shape, graph = _GRAPHS[name]
    batch = BATCH if name in STATEFUL else None
    inputs = keras.Input(batch_shape=(batch, *shape))
    first = layers.Dense(shape[-1], "tanh", use_bias=False, name="first")
    # A mask must reach what is masked.
    masked = name.startswith("masked")
    outputs = graph(inputs if masked else first(inputs))
    if len(outputs.shape) > 2 and not masked:
        outputs = layers.Flatten()(outputs)
    model = keras.Model(inputs, layers.Dense(2, name="last")(outputs))
    rng = np.random.default_rng(2)
    x = rng.normal(size=(SAMPLES, *shape)).astype(keras.config.floatx())
    if masked:
        x[::2, 2:] = 0.0
    y = rng.normal(size=(SAMPLES, *model.output_shape[1:]))
    return model, x, y.astype(keras.config.floatx())
