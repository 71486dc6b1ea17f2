"""Measure a model's robustness during training."""

import contextlib
import os
import pathlib
import re

from keras_pnn._signatures import check_keywords, passing_on
from keras_pnn.callbacks.measuring import MeasuringCallback
from keras_pnn.robustness.specification import Specification
from keras_pnn.robustness.study import Study

# Both tails: a low accuracy is bad, and so is a high loss.
_STATISTICS = ("mean", "p05", "p95", "min", "max")
# Parts that are measured only on request.
_LEFT_OUT = ("hessian", "landscape", "sensitivity", "worst_case")
# One of these, or a landscape, is required.
_PARTS = ("devices", "variation", "sweeps", "grid", "hessian", "worst_case")


class RobustnessReport(MeasuringCallback):
    """Measures devices and sweeps at the end of epochs, and logs the main figures.

    It adds to the epoch's logs, with NaN in the epochs that are not due:

    - `val_<metric>_mean`, `_p05`, `_p95`, `_min` and `_max` over the devices, for the
      loss and every compiled metric. Bad devices show in `_p05` and `_min` of an
      accuracy, and in `_p95` and `_max` of a loss;
    - `val_yield`, the share of the devices that meet `spec`;
    - `val_<metric>_over_<sweep>`, the mean of the specification's metric over the
      range of each sweep, with "/", ":" and "+" written as "_".

    Reports are due after the first epoch, every `every`-th, and the last. The devices
    are the same in every epoch, and simulated even with a device in the loop:
    `val_accuracy` is then that of the device in the loop, `val_model_accuracy` that of
    the nominal model. Deviations are from nominal, even if `DriftInjection` moves the
    model during the steps. Training is bit-identical with and without the callback.

    List it before the callbacks that read its keys, and tell them the direction:
    `EarlyStopping("val_accuracy_p05", mode="max")`. Keras counts NaN as no improvement,
    so that `patience` includes epochs that are not due: to wait for three reports
    without improvement, set it to `3 * every`.

    Args:
        x, y, sample_weight: data to measure on.
        every: number of epochs from one report to the next.
        folder: where to save each report, as `report_<epoch>.json` and, with
            Matplotlib, `.html`; `None` for nowhere.
        log_dir: where to write the logged values for TensorBoard, or `None`.
        data, name: as in `pnn.robustness_report`.
        verbose: 1 shows progress.
        **specification: further arguments of `pnn.robustness_report`, except `compare`,
            `cache_dir` and `executor`: devices, a variation or sweeps, from which the
            keys come. Curvature, landscape, sensitivity and the worst case are off by
            default.

    Attributes:
        epochs: the epochs that were measured in the last `fit`, from 0.
        results: their `RobustnessResult`s.

    Raises:
        TypeError: If an argument is not one of `pnn.robustness_report` for one model.
        ValueError: If an argument is not as described, or there is nothing to
            measure; or, as training begins, if an argument does not fit the model, or
            an imperfection of the model is off its nominal value.

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

    @passing_on(Specification)
    def __init__(
        self,
        x,
        y=None,
        every: int = 1,
        folder: str | os.PathLike | None = None,
        log_dir: str | os.PathLike | None = None,
        *,
        sample_weight=None,
        data: str = "",
        name: str | None = None,
        verbose: int | str = 0,
        **specification,
    ):
        super().__init__(every, log_dir)
        check_keywords(RobustnessReport, specification)
        left_out = dict.fromkeys(_LEFT_OUT, False)
        asked = Specification(**{**left_out, **specification})
        parts = any(getattr(asked, part) for part in _PARTS)
        if not parts and asked.landscape is None:
            raise ValueError(
                "RobustnessReport would log nothing: give it `devices`, `variation` or "
                f"`sweeps`. Received: {sorted(specification) or 'no arguments'}"
            )
        self.folder, self.verbose = folder, verbose
        self.specification = asked
        self._data = {"x": x, "y": y, "sample_weight": sample_weight}
        self._data |= {"data": data, "name": name}
        self._study: Study | None = None

    def on_train_begin(self, logs=None):
        self._study = None
        super().on_train_begin(logs)

    def prepare(self):
        # Once per training, as its compiled graphs serve every epoch.
        self._study = Study(self.specification, self.model, **self._data)

    def measure(self):
        if self._study is None:
            self.prepare()
        return self._study.measure(verbose=self.verbose)

    def values(self, result):
        ((label, found),) = result.models.items()
        values = {}
        for metric in found.devices or ():
            summary = found.summary(metric)
            for statistic in _STATISTICS:
                values[f"val_{metric}_{statistic}"] = float(summary[statistic])
        if found.devices is not None:
            values["val_yield"] = result.yield_of(label).value
        for name, scan in found.sweeps.items():
            key = re.sub("[/:+]", "_", name)
            values[f"val_{result.metric}_over_{key}"] = scan.area(result.metric)
        return values

    def write(self, epoch, result, summary):
        if self.folder is not None:
            path = pathlib.Path(self.folder) / f"report_{epoch + 1:04d}"
            result.save(path.with_suffix(".json"))
            # Without Matplotlib the figures are in the JSON file.
            with contextlib.suppress(ImportError):
                result.save(path.with_suffix(".html"))
