"""Callbacks that move a device during `fit`."""

import math
import types

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.devices.process import Process
from keras_pnn.layers.lookup import find


class DriftInjection(keras.callbacks.Callback):
    """Lets an imperfection follow a drift process during training or validation.

    Each step runs with the imperfection moved from its nominal value, and the value
    from before is put back when the step ends, also when it ends in an exception.
    Between steps (other callbacks, checkpoints, validation of a model that drifts in
    training) the device is as it was.

    The process gives the deviation from the nominal value: 0.05 is a temperature of
    0.05 K, and a scale of 1.05. An imperfection with elements (`"shift"` in y and x,
    a resonance shift for each ring) moves in all of them alike.

    The deviation is `process.at(index, seed)`, where the index is

    - the batch since the beginning of epoch 0 (`every="batch"`), in training;
    - the batch within the evaluation, with the seed `(seed, epoch)`, in validation;
    - the epoch (`every="epoch"`); 0 in an `evaluate` outside `fit`.

    It depends on epoch and batch alone, so that a run resumed by
    `keras.callbacks.BackupAndRestore` drifts as an uninterrupted one would. With
    `steps_per_execution > 1` the value is constant within one execution, that of its
    first batch. Several injections work at once; give each its own seed, or processes
    of one kind move together.

    Logs at the end of an epoch: `drift_<imperfection>`, the last deviation that was
    used, with "/" written as "_"; NaN in an epoch without validation, where that is
    what drifts. With `during="validation"` the `val_` metrics are those of the drifting
    device.

    Args:
        imperfection: Name of an imperfection: `"temperature"` for all layers that
            have it, `"layer_name/temperature"` for one layer.
        process: A process of `keras_pnn.drift`, or any object with `at(step, seed)`,
            in the unit of the imperfection: deviations from nominal.
        during: `"training"` or `"validation"`. The second also acts in
            `model.evaluate(..., callbacks=[...])`.
        every: `"batch"` or `"epoch"`: how often the value moves.
        seed: Non-negative integer.
        verbose: 1 prints the last deviation of each epoch.

    Raises:
        ValueError: If an argument is not as above. When training begins: if the model
            has no such imperfection, or if the number of batches per epoch is unknown
            and the index depends on it. Before a step: if the process would take the
            imperfection to what does not exist (a scale of 0), or gives no finite
            number.

    Example:

    ```python
    model.fit(x, y, callbacks=[
        keras_pnn.callbacks.DriftInjection(
            "temperature", keras_pnn.drift.RandomWalk(std=0.1)
        ),
    ])
    ```
    """

    def __init__(
        self,
        imperfection,
        process,
        during="training",
        every="batch",
        seed=0,
        verbose=0,
    ):
        super().__init__()
        if not isinstance(imperfection, str) or not imperfection:
            raise ValueError(
                "Argument `imperfection` must be the name of an imperfection. "
                f"Received: imperfection={imperfection!r}"
            )
        a_class = isinstance(process, type) and issubclass(process, Process)
        if a_class or not callable(getattr(process, "at", None)):
            raise ValueError(
                "Argument `process` must have a method `at(step, seed)`, as the "
                f"processes of `keras_pnn.drift` do. Received: process={process!r}"
            )
        if during not in ("training", "validation"):
            raise ValueError(
                "Argument `during` must be 'training' or 'validation'. "
                f"Received: during={during!r}"
            )
        if every not in ("batch", "epoch"):
            raise ValueError(
                "Argument `every` must be 'batch' or 'epoch'. "
                f"Received: every={every!r}"
            )
        if (
            isinstance(seed, bool)
            or not isinstance(seed, (int, np.integer))
            or seed < 0
        ):
            raise ValueError(
                "Argument `seed` must be a non-negative integer. "
                f"Received: seed={seed!r}"
            )
        self.imperfection = imperfection
        self.process = process
        self.during = during
        self.every = every
        self.seed = int(seed)
        self.verbose = verbose
        self.log_name = "drift_" + imperfection.replace("/", "_")
        self._quantities = []
        self._epoch = 0
        self._last = None

    def set_params(self, params):
        # `fit` and a plain `evaluate` begin with this call, and validation within
        # `fit` does not: an epoch left over from an earlier `fit` ends here.
        super().set_params(params)
        self._epoch = 0

    def on_train_begin(self, logs=None):
        _remove_injections(self.model)
        self._find()
        if (
            self.during == "training"
            and self.every == "batch"
            and self.params.get("steps") is None
            and self.params.get("epochs") != 1
        ):
            raise ValueError(
                "DriftInjection(every='batch') needs the number of batches per epoch, "
                "which this data does not tell: pass `steps_per_epoch` to `fit`. "
                f"Received: params={self.params}"
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._last = None

    def on_train_batch_begin(self, batch, logs=None):
        if self.during == "training":
            steps = self.params.get("steps") or 0
            self._inject("train_function", self._epoch * steps + batch, self.seed)

    def on_test_begin(self, logs=None):
        if self.during == "validation":
            _remove_injections(self.model)
            self._find()

    def on_test_batch_begin(self, batch, logs=None):
        if self.during == "validation":
            self._inject("test_function", batch, (self.seed, self._epoch))

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            # Every epoch gets the key: CSVLogger fixes its columns at the first.
            logs[self.log_name] = math.nan if self._last is None else self._last
        if self.verbose and self._last is not None:
            print(f"\nEpoch {epoch + 1}: {self.imperfection} drifted by {self._last:g}")

    def _find(self):
        try:
            self._quantities = find(self.model, self.imperfection)
        except ValueError as error:
            if self.model.built:
                raise
            raise ValueError(
                f"{error} The model is not built yet: give it a `keras.Input`, or call "
                "it on a batch before `fit`."
            ) from error

    def _inject(self, attribute, step, seed):
        if self.every == "epoch":
            step, seed = self._epoch, self.seed
        injection = _Injection(self, attribute, self._deviation(step, seed))
        setattr(self.model, attribute, injection)
        if attribute == "test_function" and self.model.stop_evaluating is False:
            self.model.stop_evaluating = _ARMED

    def _deviation(self, step, seed) -> float:
        deviation = float(self.process.at(step, seed))
        if not math.isfinite(deviation):
            raise ValueError(
                "Argument `process` must give finite numbers. "
                f"Received: {deviation} at step {step} from {self.process!r}"
            )
        for q in self._quantities:
            q.check(deviation)
        return deviation


# In `model.stop_evaluating` while a step waits; as false as `False`, which Keras puts
# there when another evaluation begins.
_ARMED = 0


class _Injection:
    """Stands in for the model's train or test function for one call.

    Keras tells callbacks when a step begins and when it has ended well, but not when
    it has failed. It looks its step function up anew for each step, so a stand-in can
    wrap the step in `try/finally`. Where another callback, or another drift, has
    failed before the step began, the stand-in is left to a later run, and steps aside
    there.
    """

    def __init__(self, callback, attribute, deviation):
        self.callback = callback
        self.model = callback.model
        self.attribute = attribute
        self.deviation = deviation
        self.function = getattr(self.model, attribute)
        self.history = getattr(self.model, "history", None)

    def __call__(self, iterator):
        setattr(self.model, self.attribute, self.function)
        if self._is_of_another_run(iterator):
            return self.function(iterator)
        quantities = self.callback._quantities
        saved = [tf.convert_to_tensor(q.variable.value) for q in quantities]
        try:
            for q in quantities:
                value, variable = q.nominal + self.deviation, q.variable
                shape, dtype = variable.shape, variable.dtype
                variable.assign(tf.constant(value, dtype=dtype, shape=shape))
            outputs = self.function(iterator)
        finally:
            for q, value in zip(quantities, saved, strict=True):
                q.variable.assign(value)
        self.callback._last = self.deviation
        return outputs

    def _is_of_another_run(self, iterator) -> bool:
        if isinstance(iterator, types.GeneratorType):
            # `train_on_batch` or `test_on_batch`, which begin no step.
            return True
        if self.attribute == "test_function":
            return self.model.stop_evaluating is False
        return getattr(self.model, "history", None) is not self.history


def _remove_injections(model):
    for attribute in ("train_function", "test_function"):
        while isinstance(function := getattr(model, attribute, None), _Injection):
            setattr(model, attribute, function.function)
