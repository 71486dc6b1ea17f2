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

    def add(self, asked) -> None:
        """Adds settings times samples."""
        self.variable.assign_add(tf.cast(asked, "int64"))


class CountLog(keras.callbacks.Callback):
    """Adds `measurements` to the logs of each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["measurements"] = self.model.measurements
