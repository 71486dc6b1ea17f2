"""A layer whose outputs are random in inference too."""

import keras


class Noise(keras.layers.Layer):
    """Adds normal noise of standard deviation 1, from a seed of its own."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, inputs):
        drawn = keras.random.normal(keras.ops.shape(inputs), seed=self.seeds)
        return inputs + drawn
