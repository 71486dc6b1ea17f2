"""Warn when training has collapsed: the outputs do not depend on the inputs."""

import math

import keras

from keras_pnn import _keras, _warnings
from keras_pnn._display import brief
from keras_pnn.layers.lookup import left_curves

_ACCURACIES = (
    keras.metrics.Accuracy,
    keras.metrics.BinaryAccuracy,
    keras.metrics.CategoricalAccuracy,
    keras.metrics.SparseCategoricalAccuracy,
)
# Warn after this many epochs in a row and this many steps in all, with an accuracy of
# at most this multiple of chance.
_EPOCHS, _STEPS, _MARGIN = 3, 100, 1.1


class CollapseWarning(keras.callbacks.Callback):
    """Warns once in a `fit` whose loss is NaN, or whose accuracy stays at chance.

    Accuracy stays at chance if it is at most 1.1 / classes for three epochs and a
    hundred steps. This is reported only if an argument may be too large, exactly one
    metric is an accuracy, and there is one output.
    """

    def __init__(self, suspects: list[str]):
        super().__init__()
        self._suspects = suspects
        self._at_chance, self._since, self._told = 0, 0, False

    def on_train_begin(self, logs=None):
        self._since = self._steps()

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        if self._told:
            return
        if math.isnan(float(logs.get("loss", 0.0))):
            self._tell_of_nan(epoch)
            return
        metrics = _keras.named_metrics(self.model)
        names = [n for n, m in metrics.items() if isinstance(m, _ACCURACIES)]
        classes = self.model.classes
        if len(names) != 1 or names[0] not in logs or not classes:
            return
        chance, accuracy = 1 / classes, float(logs[names[0]])
        if accuracy > _MARGIN * chance:
            self._at_chance, self._since = 0, self._steps()
            return
        self._at_chance += 1
        few = self._at_chance < _EPOCHS or self._steps() - self._since < _STEPS
        if few or not self._suspects:
            return
        self._told = True
        _warnings.warn(
            f"Training seems to have collapsed: {names[0]} is {accuracy:.3g} after "
            f"{self._at_chance} epochs at chance ({classes} classes). Too large may be "
            f"{', '.join(self._suspects)}, {self._rate()}, or the inputs, if they are "
            "not of the order of 1. Try one epoch of plain training first, `warmup=` "
            "of at least the steps of an epoch, or smaller values. Train from new "
            "weights: those of now may give no gradient any more."
        )

    def _tell_of_nan(self, epoch):
        self._told = True
        cause = left_curves(self.model)
        cause = cause or f"Too large may be: {self._rate()}, or the inputs."
        _warnings.warn(
            f"The loss is NaN in epoch {epoch + 1}. {cause} Train from new weights: "
            "those of now may be NaN."
        )

    def _steps(self) -> int:
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _rate(self) -> str:
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        return f"learning_rate={brief(float(rate))}"
