"""Count what training asks of a device: settings times samples."""

import keras
import tensorflow as tf


class Counter:
    """A number that grows within compiled steps, and is saved with their state."""

    def __init__(self):
        # Inside an object of its own, so that it is no weight of the model.
        self.variable = keras.Variable(
            0, dtype="int64", trainable=False, aggregation="sum", name="measurements"
        )

    def add(self, settings: int, inputs) -> None:
        """Adds settings, each of which all samples of a batch were measured at."""
        if settings:
            array = next(a for a in keras.tree.flatten(inputs) if a is not None)
            samples = tf.cast(tf.shape(array)[0], "int64")
            self.variable.assign_add(settings * samples)


class CountLog(keras.callbacks.Callback):
    """Adds `measurements` to the logs of each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["measurements"] = self.model.measurements
