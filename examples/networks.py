"""The networks of the examples."""

import keras
from keras import layers

import keras_pnn as pnn


def lenet5(
    normalization: str = "batch", digital: bool = False, seed: int = 0, **bank
) -> keras.Model:
    """LeNet-5 with normalisation, its five weight tensors on microring banks.

    Args:
        normalization: "batch", as in the paper; or "sample": the mean over the
            channels is taken off (what warms all rings alike adds the same to each
            channel), and the sample's own spread is the scale.
        digital: Dense and Conv2D in place of the banks, weights within ±0.999.
        seed: seed of the initial weights.
        **bank: arguments of the banks.
    """
    keras.utils.set_random_seed(seed)
    if digital:
        limit = {"kernel_constraint": pnn.layers.ControlRange(-0.999, 0.999)}
        conv, dense = layers.Conv2D, layers.Dense
    else:
        limit, conv, dense = bank, pnn.layers.MRRConv2D, pnn.layers.MRRBank

    def normalized(x):
        if normalization == "batch":
            return layers.ReLU()(layers.BatchNormalization()(x))
        x = x - keras.ops.mean(x, axis=-1, keepdims=True)
        return layers.ReLU()(layers.GroupNormalization(groups=1)(x))

    inputs = keras.Input((28, 28, 1))
    x = normalized(conv(6, 5, padding="same", **limit)(inputs))
    x = layers.MaxPooling2D()(x)
    x = normalized(conv(16, 5, **limit)(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = normalized(dense(120, **limit)(x))
    x = normalized(dense(84, **limit)(x))
    return keras.Model(inputs, dense(10, **limit)(x), name="lenet5")
