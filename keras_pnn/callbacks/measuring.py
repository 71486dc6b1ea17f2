"""Measure a model at the end of some epochs, and log the results."""

import math

import keras
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.callbacks.tensorboard import summaries
from keras_pnn.layers.context import substituting


class MeasuringCallback(keras.callbacks.Callback):
    """Measures after the first epoch, every `every`-th, and the last.

    In the epochs between, the logged values are NaN. The digital model is measured,
    even in a `fit` on a device. A subclass defines `measure()`, which returns a result,
    and `values(result)`, name → number to log. It may define `prepare()`, which is
    called when training of a built model begins and raises if arguments do not suit the
    model; and `write(epoch, result, summary)`, which writes files, or images for
    TensorBoard by the function of `summaries` (`None` without `log_dir`).

    Args:
        every: number of epochs from one measurement to the next.
        log_dir: a folder for TensorBoard, or `None`.
    """

    def __init__(self, every, log_dir=None):
        super().__init__()
        self.every = _checks.integer("every", every, 1)
        self.log_dir = log_dir
        self.epochs, self.results, self._logged = [], [], {}

    def prepare(self) -> None:
        pass

    def write(self, epoch, result, summary) -> None:
        pass

    def on_train_begin(self, logs=None):
        self.epochs, self.results, self._logged = [], [], {}
        if self.model.built:
            with substituting(None):
                self.prepare()

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self.params.get("epochs") or self.model.stop_training
        if not self.epochs or (epoch + 1) % self.every == 0 or last:
            self._measure(epoch)
        else:
            self._logged = dict.fromkeys(self._logged, math.nan)
        if logs is not None:
            logs.update(self._logged)

    def _measure(self, epoch):
        with substituting(None):
            result = self.measure()
        self.epochs.append(epoch)
        self.results.append(result)
        self._logged = self.values(result)
        if self.log_dir is None:
            self.write(epoch, result, None)
            return
        with summaries(self.log_dir) as summary:
            for name, value in self._logged.items():
                if not math.isnan(value):
                    summary(epoch, name, tf.constant(value, tf.float32))
            self.write(epoch, result, summary)
