"""A robustness report during training."""

import inspect
import os
import pathlib

import keras

from keras_pnn.callbacks.tensorboard import Summaries
from keras_pnn.robustness.call import robustness_report
from keras_pnn.robustness.inputs import chosen_devices, is_whole
from keras_pnn.robustness.report.report import Report
from keras_pnn.robustness.results import RobustnessResult

# Both tails: a low accuracy is bad, and so is a high loss.
STATISTICS = ("mean", "p05", "p95", "min", "max")
# Something to measure, besides the design itself.
_MEASURED = (
    "devices",
    "variation",
    "sweeps",
    "grid",
    "hessian",
    "landscape",
    "worst_case",
)


class RobustnessReport(keras.callbacks.Callback):
    """Measures devices and sweeps at the end of epochs, and logs what matters.

    It adds to the epoch's logs, with NaN in the epochs that are not due:

    - `val_<metric>_mean`, `_p05`, `_p95`, `_min` and `_max` over the devices, for the
      loss and every compiled metric. The bad devices of an accuracy are at `_p05` and
      `_min`, those of a loss at `_p95` and `_max`;
    - `val_yield`, the share of the devices that keep `spec`;
    - `val_<metric>_over_<sweep>`, the mean of the specification's metric over the
      range of each sweep, with "/", ":" and "+" written as "_".

    The first epoch is due, every `every`-th, and the last. The devices are the same in
    every epoch: what moves is the model. Training is the same, to the bit, with and
    without it, and devices are measured from the design also where `DriftInjection`
    moves the model during the steps.

    List it before the callbacks that read its keys, and tell them the direction:
    `EarlyStopping("val_accuracy_p05", mode="max")`. The `patience` of `EarlyStopping`
    and `ReduceLROnPlateau` counts epochs, and Keras takes the NaN of an epoch that is
    not due for no improvement: give them more than `every`, or they act before a
    second report. To wait for three reports without improvement, give `3 * every`.

    Args:
        x, y: data to measure on.
        every: how many epochs from one report to the next.
        folder: where to save each report, as `report_<epoch>.json` and, with
            Matplotlib, `.html`; `None` for nowhere.
        log_dir: where to write the logged values for TensorBoard, or `None`.
        **arguments: of `pnn.robustness_report`, among them devices, a variation or
            sweeps, from which the keys come. Curvature, landscape, sensitivity and
            the worst case are left out unless they are asked for.

    Attributes:
        epochs: the epochs that were measured in the last `fit`, from 0.
        results: their `RobustnessResult`s.

    Raises:
        TypeError: `pnn.robustness_report` has no such argument.
        ValueError: `every` is not a positive integer, there is nothing to measure, or
            an argument is of `pnn.robustness_report` alone; or, as training begins, an
            argument does not suit the model, or an imperfection of the model is off
            its nominal value.

    Example:

    ```python
    robustness = pnn.callbacks.RobustnessReport(
        x_val, y_val, variation=pnn.Variation(resonance_shift=0.08), n=8, every=5
    )
    best = keras.callbacks.ModelCheckpoint(
        "best.keras", monitor="val_accuracy_p05", mode="max", save_best_only=True
    )
    model.fit(x, y, epochs=50, callbacks=[robustness, best])
    ```
    """

    def __init__(
        self,
        x,
        y,
        every: int = 1,
        folder: str | os.PathLike | None = None,
        log_dir: str | os.PathLike | None = None,
        **arguments,
    ):
        super().__init__()
        if not is_whole(every, 1):
            raise ValueError(f"every must be a positive integer. Received: {every!r}")
        known = inspect.signature(robustness_report).parameters
        for name in arguments:
            if name not in known or name == "model":
                raise TypeError(
                    "RobustnessReport takes the arguments of `pnn.robustness_report`, "
                    f"without its model. Received: {name}={arguments[name]!r}"
                )
        for name in ("rows", "compare", "trained_on"):
            if name in arguments:
                raise ValueError(
                    f"{name} is of `pnn.robustness_report` alone: a training changes "
                    f"one model. Received: {name}={arguments[name]!r}"
                )
        if not any(_given(name, arguments.get(name)) for name in _MEASURED):
            raise ValueError(
                "RobustnessReport would log nothing: give it `devices`, `variation` or "
                f"`sweeps`. Received: {sorted(arguments) or 'none of its arguments'}"
            )
        # Of an iterator, the second `fit` would find nothing left.
        arguments["devices"], arguments["variation"] = chosen_devices(
            arguments.get("devices"), arguments.get("variation")
        )
        self.every, self.folder, self.log_dir = every, folder, log_dir
        self.verbose = arguments.pop("verbose", 0)
        left_out = dict.fromkeys(
            ("hessian", "landscape", "sensitivity", "worst_case"), False
        )
        self._arguments = {"x": x, "y": y, **left_out, **arguments}
        self.epochs: list[int] = []
        self.results: list[RobustnessResult] = []
        self._report = None
        self._keys: list[str] = []

    def on_train_begin(self, logs=None):
        self.epochs, self.results, self._keys = [], [], []
        self._report = None
        if self.model.built:
            self._report = Report(self.model, **self._arguments)

    def on_epoch_end(self, epoch, logs=None):
        values = dict.fromkeys(self._keys, float("nan"))
        if self._due(epoch):
            if self._report is None:
                self._report = Report(self.model, **self._arguments)
            result = self._report.measure(verbose=self.verbose)
            self.epochs.append(epoch)
            self.results.append(result)
            values = logged(result)
            self._keys = list(values)
            self._save(epoch, result)
            if self.log_dir is not None:
                with Summaries(self.log_dir) as summaries:
                    summaries.scalars(epoch, values)
        if logs is not None:
            logs.update(values)

    def _due(self, epoch):
        last = epoch + 1 == self.params.get("epochs") or self.model.stop_training
        return not self.epochs or (epoch + 1) % self.every == 0 or last

    def _save(self, epoch, result):
        if self.folder is None:
            return
        path = pathlib.Path(self.folder) / f"report_{epoch + 1:04d}"
        result.save(path.with_suffix(".json"))
        try:
            result.save(path.with_suffix(".html"))
        except ImportError:
            # Without Matplotlib the figures are in the JSON file.
            return


def _given(name: str, argument) -> bool:
    # Of options, an empty dictionary means the defaults.
    empty = name in ("sweeps", "grid") and isinstance(argument, dict) and not argument
    return not (argument is None or argument is False or empty)


def logged(result: RobustnessResult) -> dict[str, float]:
    """Returns what a report says of its first model, as keys of Keras' logs."""
    label, found = next(iter(result.models.items()))
    values = {}
    for metric in found.devices or ():
        summary = result.summary(label, metric)
        for statistic in STATISTICS:
            values[f"val_{metric}_{statistic}"] = float(summary[statistic])
    if found.devices is not None:
        values["val_yield"] = result.yield_of(label).value
    for name, scan in found.sweeps.items():
        key = name.replace("/", "_").replace(":", "_").replace("+", "_")
        values[f"val_{result.metric}_over_{key}"] = scan.area(result.metric)
    return values
