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


def _attention(make):
    def graph(x):
        layer = make()
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


def _rematerialized(x):
    with keras.RematScope("full"):
        layer = layers.UnitNormalization()
    return layer(layers.Dense(4)(x))


def _heads(**kwargs):
    return layers.MultiHeadAttention(num_heads=2, key_dim=2, **kwargs)


# Functions of a symbolic tensor.
_GRAPHS = {
    "nested": (DENSE, _nested),
    "shared": (DENSE, _shared),
    "rematerialized": (DENSE, _rematerialized),
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
    "masked lstm": (SERIES, _stack(layers.Masking, lambda: layers.LSTM(3))),
    "masked outputs": (SERIES, _stack(layers.Masking, lambda: layers.Dense(3))),
    "attention": (SERIES, _attention(lambda: layers.Attention(use_scale=True))),
    "additive attention": (SERIES, _attention(layers.AdditiveAttention)),
    "multi head attention": (SERIES, _attention(_heads)),
    "grouped query attention": (
        SERIES,
        _attention(lambda: layers.GroupQueryAttention(2, 2, 1)),
    ),
    "conv lstm2d": (
        SERIES,
        _stack(lambda: layers.Reshape((2, 2, 3, 1)), lambda: layers.ConvLSTM2D(1, 2)),
    ),
    "masked attention": (SERIES, _stack(layers.Masking, lambda: _attention(_heads))),
}

# Layers, by the shape of their inputs.
_LAYERS = {
    DENSE: {
        "dense": lambda: layers.Dense(5, "tanh"),
        "dense relu": lambda: layers.Dense(5, "relu"),
        "dense silu": lambda: layers.Dense(5, "silu"),
        "dense gelu": lambda: layers.Dense(5, "gelu"),
        "dense softmax": lambda: layers.Dense(5, "softmax"),
        "dense regularized": lambda: layers.Dense(
            5, kernel_regularizer="l2", bias_regularizer="l2"
        ),
        "dense constrained": lambda: layers.Dense(5, kernel_constraint="unit_norm"),
        "dense lora": lambda: layers.Dense(5, lora_rank=2),
        "einsum dense": lambda: layers.EinsumDense("ab,bc->ac", 5, bias_axes="c"),
        "normalization": lambda: layers.Normalization(mean=0.3, variance=2.0),
        "frozen": lambda: layers.Dense(5, "tanh", trainable=False),
        "mixed precision": lambda: layers.Dense(5, "tanh", dtype="mixed_bfloat16"),
        "prelu": lambda: layers.PReLU("ones"),
        "leaky relu": layers.LeakyReLU,
        "elu": layers.ELU,
        "softmax": layers.Softmax,
        "dropout": lambda: layers.Dropout(0.5),
        "alpha dropout": lambda: layers.AlphaDropout(0.5),
        "gaussian dropout": lambda: layers.GaussianDropout(0.5),
        "gaussian noise": lambda: layers.GaussianNoise(0.5),
        "activity": lambda: layers.ActivityRegularization(l2=0.1),
        "batch normalization": layers.BatchNormalization,
        "layer normalization": layers.LayerNormalization,
        "rms normalization": layers.RMSNormalization,
        "group normalization": lambda: layers.GroupNormalization(2),
        "unit normalization": layers.UnitNormalization,
        "spectral normalization": lambda: layers.SpectralNormalization(
            layers.Dense(5, name="assigned")
        ),
        "rescaling": lambda: layers.Rescaling(0.5),
        "repeat vector": lambda: layers.RepeatVector(2),
        "tf.function": lambda: Decorated(5),
        "recompute_grad": lambda: Recomputed(5),
        "custom_gradient": lambda: Custom(5, use_bias=False),
        "concrete function": lambda: Concrete(5, use_bias=False),
        "metric": Reporting,
        "global generator": Noisy,
        "tf.Variable": Counting,
        "MRRBank": lambda: pnn.layers.MRRBank(3),
        "Photodetector": lambda: pnn.layers.Photodetector(),
    },
    SERIES: {
        "stacked cells": lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]),
        "simple rnn": lambda: layers.SimpleRNN(3),
        "lstm": lambda: layers.LSTM(3),
        "lstm dropout": lambda: layers.LSTM(3, dropout=0.3, recurrent_dropout=0.3),
        "gru": lambda: layers.GRU(3, return_sequences=True),
        "unrolled gru": lambda: layers.GRU(3, unroll=True),
        "bidirectional": lambda: layers.Bidirectional(layers.SimpleRNN(2)),
        "time distributed": lambda: layers.TimeDistributed(layers.Dense(3)),
        # To TensorFlow, other layers in one dimension are those in two.
        "causal conv1d": lambda: layers.Conv1D(2, 2, padding="causal"),
        "max pooling1d": lambda: layers.MaxPooling1D(2),
    },
    IMAGE: {
        "conv2d": lambda: layers.Conv2D(2, 3),
        "conv2d dilated": lambda: layers.Conv2D(2, 2, dilation_rate=2),
        "conv2d groups": lambda: layers.Conv2D(2, 2, groups=2),
        "separable conv2d": lambda: layers.SeparableConv2D(2, 3),
        "depthwise conv2d": lambda: layers.DepthwiseConv2D(3),
        "conv2d transpose": lambda: layers.Conv2DTranspose(2, 3, strides=2),
        "max pooling2d": lambda: layers.MaxPooling2D(2),
        "max pooling2d same": lambda: layers.MaxPooling2D(3, 1, "same"),
        "average pooling2d": lambda: layers.AveragePooling2D(2),
        "global max pooling2d": layers.GlobalMaxPooling2D,
        "global average pooling2d": layers.GlobalAveragePooling2D,
        "up sampling2d": lambda: layers.UpSampling2D(2),
        "up sampling2d bilinear": lambda: layers.UpSampling2D(
            2, interpolation="bilinear"
        ),
        "resizing nearest": lambda: layers.Resizing(4, 7, "nearest"),
        "resizing bilinear": lambda: layers.Resizing(4, 7, "bilinear"),
        "resizing bicubic": lambda: layers.Resizing(4, 7, "bicubic"),
        "resizing lanczos3": lambda: layers.Resizing(4, 7, "lanczos3"),
        "batch normalization2d": layers.BatchNormalization,
        "zero padding2d": layers.ZeroPadding2D,
        "cropping2d": layers.Cropping2D,
        "spatial dropout2d": lambda: layers.SpatialDropout2D(0.5),
        "MRRConv2D": lambda: pnn.layers.MRRConv2D(2, 2),
    },
    VOLUME: {
        "conv3d": lambda: layers.Conv3D(2, 2),
        "conv3d transpose": lambda: layers.Conv3DTranspose(1, 2),
        "max pooling3d": lambda: layers.MaxPooling3D(2),
        "max pooling3d same": lambda: layers.MaxPooling3D(3, 1, "same"),
        "average pooling3d": lambda: layers.AveragePooling3D(2),
        "up sampling3d": lambda: layers.UpSampling3D(2),
    },
}
for _shape, _kinds in _LAYERS.items():
    for _name, _kind in _kinds.items():
        _GRAPHS[_name] = _shape, _stack(_kind)


def _twice(x):
    layer = layers.GRU(3, stateful=True, return_sequences=True)
    return layer(layer(x))


# Layers that hand a state from batch to batch, in inference too.
STATEFUL = {
    "stateful simple rnn": _stack(lambda: layers.SimpleRNN(3, stateful=True)),
    "stateful lstm": _stack(lambda: layers.LSTM(3, stateful=True)),
    "stateful gru": _stack(lambda: layers.GRU(3, stateful=True, unroll=True)),
    "stateful cells": _stack(
        lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], stateful=True)
    ),
    "stateful bidirectional": _stack(
        lambda: layers.Bidirectional(layers.LSTM(2, stateful=True))
    ),
    "stateful conv lstm1d": _stack(
        lambda: layers.Reshape((2, 6, 1)),
        lambda: layers.ConvLSTM1D(1, 2, stateful=True),
    ),
    "stateful twice": _twice,
    "ageing": _stack(Ageing),
    # In a model with a physical layer.
    "all states": _stack(
        lambda: layers.LSTM(4, stateful=True, return_sequences=True, dropout=0.3),
        layers.BatchNormalization,
        lambda: layers.SimpleRNN(4, stateful=True),
        lambda: layers.SpectralNormalization(layers.Dense(4)),
        lambda: layers.Dropout(0.3),
        Ageing,
        Noisy,
        Reporting,
        lambda: pnn.layers.MRRBank(4),
    ),
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
