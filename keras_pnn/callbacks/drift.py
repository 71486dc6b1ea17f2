"""Let an imperfection drift during `fit` and `evaluate`.

`_keras.wrap_step` puts `_step` around the compiled train or test function. Before each
batch `_move` asks the process for the deviation; `_step` assigns the drifted values,
runs the step, and restores the previous values. In the step each layer reads them in
`PhysicalLayer.current_values` and passes them to `forward`. A simulated device in the
loop ignores the model's values: for it, `_step` stores the drift in `Quantity.drift`,
and the device adds it to its own deviations (`Quantity.passing`).
"""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _keras
from keras_pnn.layers.context import measuring_device, restoring
from keras_pnn.layers.lookup import find_gradual
from keras_pnn.training import bench


class DriftInjection(keras.callbacks.Callback):
    """Lets an imperfection follow a drift process during training or validation.

    The imperfection is moved for each step, and restored when the step ends, also after
    an exception: other callbacks, checkpoints, and validation of a model that drifts in
    training see the unchanged device.

    The process gives one deviation for all elements of the imperfection, or one for
    each (`drift.Recorded` with several series). It adds to the deviations of an
    installed device, a device in the loop, other injections and random draws. On a
    nominal device, 0.05 is a temperature of 0.05 K, or a scale of 1.05. A power
    imbalance (`"splitter_imbalance"`) is limited to ±1 and adds to the splitters'
    angles.

    The deviation is `process.at(index, seed)`, where the index is

    - the batch since the beginning of epoch 0 (`every="batch"`), in training;
    - the batch within the evaluation, with the seed `(seed, epoch)`, in validation;
    - the epoch (`every="epoch"`); 0 in an `evaluate` outside `fit`.

    A resumed run thus drifts as an uninterrupted one. With `steps_per_execution > 1`
    the value is that of an execution's first batch. Several injections can act at once;
    give each its own seed, else processes of one kind move together.

    It logs `drift_<imperfection>`, with "/" written as "_": the deviation from nominal
    in the epoch's last step, averaged over elements, in the unit of the variable (rad
    for an imbalance). It includes the device and all injections, but not the noise of a
    `Variation`; it is NaN if no step drifted. With `during="validation"` the `val_`
    metrics are those of the drifting device; in a `fit` on a device, the digital model
    of the `val_model_` metrics drifts alike.

    Args:
        imperfection: Name of an imperfection: `"temperature"` for all layers that
            have it, `"layer_name/temperature"` for one layer.
        process: A process of `keras_pnn.drift`, or any object with `at(step, seed)`,
            which returns deviations in the unit of the imperfection.
        during: `"training"` or `"validation"`. The second also acts in
            `model.evaluate(..., callbacks=[...])`, which is digital.
        every: `"batch"` or `"epoch"`: how often the value changes.
        seed: Non-negative integer.
        verbose: 1 prints the logged value.

    Raises:
        ValueError: If an argument is invalid. When a run begins: if the model has no
            such imperfection; if a device on the bench measures a layer that has it,
            which software cannot move; or if the number of batches per epoch is unknown
            and the index depends on it. Before a step: if the sum of all deviations
            would take the imperfection beyond its bound (a scale of 0), or the process
            does not give a finite number.

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
        imperfection: str,
        process,
        during: str = "training",
        every: str = "batch",
        seed: int = 0,
        verbose: int = 0,
    ):
        super().__init__()
        if not isinstance(imperfection, str) or not imperfection:
            expected = "the name of an imperfection"
            raise _checks.error("imperfection", expected, repr(imperfection))
        if isinstance(process, type) or not callable(getattr(process, "at", None)):
            raise _checks.error(
                "process",
                "an object with a method `at(step, seed)`, as in `keras_pnn.drift`",
                repr(process),
            )
        self.imperfection = imperfection
        self.process = process
        self.during = _checks.choice("during", during, ("training", "validation"))
        self.every = _checks.choice("every", every, ("batch", "epoch"))
        self.seed = _checks.integer("seed", seed, 0)
        self.verbose = verbose
        self.log_name = "drift_" + imperfection.replace("/", "_")
        self._epoch, self._last = 0, math.nan
        self._in_fit = False

    def set_params(self, params):
        # `fit` and a plain `evaluate` begin with this call, and validation within
        # `fit` does not: an epoch left over from an earlier `fit` ends here.
        super().set_params(params)
        self._epoch, self._in_fit = 0, False

    def on_train_begin(self, logs=None):
        self._in_fit = True
        self._find()
        if self.during != "training":
            return
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if self.every == "batch" and steps is None and epochs != 1:
            raise ValueError(
                "DriftInjection(every='batch') needs the number of batches per epoch: "
                "pass `steps_per_epoch` to `fit`. Received: data of unknown length and "
                f"epochs={epochs}"
            )
        self._handle = _keras.wrap_step(self.model, "train", self._step)

    def on_train_end(self, logs=None):
        if self.during == "training":
            self._handle.remove()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._last = epoch, math.nan

    def on_train_batch_begin(self, batch, logs=None):
        if self.during == "training":
            steps = self.params.get("steps") or 0
            self._move(self._epoch * steps + batch, self.seed)

    def on_test_begin(self, logs=None):
        if self.during == "validation":
            self._find()
            self._handle = _keras.wrap_step(self.model, "test", self._step)

    def on_test_end(self, logs=None):
        if self.during == "validation":
            self._handle.remove()

    def on_test_batch_begin(self, batch, logs=None):
        if self.during == "validation":
            self._move(batch, (self.seed, self._epoch))

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            # Every epoch gets the key: CSVLogger fixes its columns at the first.
            logs[self.log_name] = self._last
        if self.verbose and not math.isnan(self._last):
            print(f"\nEpoch {epoch + 1}: {self.imperfection} is off by {self._last:g}")

    def _find(self):
        try:
            self._quantities = find_gradual(self.model, self.imperfection)
        except ValueError as error:
            if self.model.built:
                raise
            raise ValueError(
                f"{error} The model is not built yet: give it a `keras.Input`, or call "
                "it on a batch before `fit`."
            ) from error
        for device in (self._device(), measuring_device()):
            bench.check_movable(device, self._quantities, "Drift")

    def _device(self):
        """The device that measures in the drifting steps, or `None`."""
        return getattr(self.model, "device", None) if self._in_fit else None

    def _move(self, step, seed):
        """Computes the deviations of the step that is about to run."""
        if self.every == "epoch":
            step, seed = self._epoch, self.seed
        amount = np.asarray(self.process.at(step, seed), "float64")
        if amount.ndim > 1 or not np.isfinite(amount).all():
            raise ValueError(
                "Argument `process` must give finite numbers, one or a series. "
                f"Received: {amount} at step {step} from {self.process!r}"
            )
        self._deviations = [self._filled(q, amount) for q in self._quantities]

    def _filled(self, quantity, amount: np.ndarray) -> tf.Tensor:
        """Converts one number, or one per element, to a deviation of a variable."""
        places = quantity.layer.places(quantity.name)
        if amount.ndim and len(amount) > places.max(initial=0) + 1:
            expected = f"at most as many series as '{quantity.path}' has elements"
            received = f"{len(amount)} series for {places.max(initial=0) + 1}"
            raise _checks.error("process", expected, received)
        values = amount[places % len(amount)] if amount.ndim else amount
        values = np.broadcast_to(values, places.shape)
        return quantity.deviation(tf.constant(values, quantity.variable.dtype))

    def _step(self, function, iterator):
        """Runs one step on the drifted device."""
        pairs = list(zip(self._quantities, self._deviations, strict=True))
        _drifting.append(self)
        try:
            with restoring(v for q, _ in pairs for v in (q.variable, q.drift)):
                for quantity, deviation in pairs:
                    quantity.variable.assign(quantity.added(deviation))
                    quantity.drift.assign_add(deviation)
                # Several injections may move one variable: each reports the sum.
                for injection in _drifting:
                    injection._met = injection._sum()
                logs = function(iterator)
        finally:
            _drifting.remove(self)
        self._last = self._met
        return logs

    def _sum(self) -> float:
        """Returns the deviation from nominal, the mean over all elements."""
        own = getattr(self._device(), "deviations", {})
        elements = []
        for quantity in self._quantities:
            deviation = quantity.present
            if (quantity.name, quantity.index) in own:
                # The device's own, in place of the model's.
                deviation = own[quantity.name, quantity.index] + quantity.drift.numpy()
            quantity.check(deviation)
            elements.append(deviation[quantity.exists])
        return float(np.mean(np.concatenate(elements)))


# Injections whose step is running, the outermost first.
_drifting: list[DriftInjection] = []
