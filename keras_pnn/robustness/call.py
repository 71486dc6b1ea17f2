"""One call that says how robust a trained model is, in numbers and in pictures."""

import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_pnn.devices.simulated import SimulatedDevice
from keras_pnn.devices.variation import Variation
from keras_pnn.robustness.report.report import Report
from keras_pnn.robustness.results import RobustnessResult


def robustness_report(
    model: keras.Model,
    x,
    y,
    devices: Sequence[SimulatedDevice] | None = None,
    variation: Variation | None = None,
    n: int = 32,
    sweeps: dict | None = None,
    grid: dict | None = None,
    spec: float = 0.95,
    metric: str | None = None,
    hessian: bool | dict = True,
    landscape: bool | dict = True,
    compare: dict[str, keras.Model] | None = None,
    *,
    mode: str = "auto",
    seed: int = 0,
    sensitivity: bool = True,
    worst_case: bool | dict = True,
    trained_on: dict[str, SimulatedDevice] | None = None,
    sweep_devices: int | None = None,
    probe: int = 1000,
    sample_weight=None,
    batch_size: int = 500,
    memory_limit: float = 1.0,
    batch_norm: str = "frozen",
    calibration=None,
    rows: str | os.PathLike | None = None,
    data: str = "",
    name: str | None = None,
    verbose: int | str = "auto",
) -> RobustnessResult:
    """Measures how robust a model is: against drift, fabrication and the worst case.

    Every figure is measured with simulated devices, with the imperfections that the
    devices and sweeps name starting from their nominal values, on all of `x` and `y`;
    curvature, landscape and the search for the worst case on the first `probe`
    samples. The model is left as it was.

    Args:
        model: a compiled, built model, wrapped (`SATModel`) or not.
        x, y, sample_weight: test data, arrays or structures of arrays.
        devices: simulated devices, as `Variation.sample` returns; or a `Variation`
            to draw from; or `None`.
        variation: draws `n` devices, when `devices` is `None`.
        n: how many devices to draw.
        sweeps: name → values. The name of an imperfection, of all layers
            (`"temperature"`) or of one (`"mrr_bank_1/temperature"`), is swept over
            deviations from its nominal value, added to each device's own. With
            `variation`, `"std:theta_error+phi_error"` gives these imperfections random
            deviations of the standard deviation that is swept. `"variation"` is a
            factor on all deviations of the devices.
        grid: two names → values, as in `sweeps`: all their combinations.
        spec: the specification: what `metric` must keep; from 0 to 1 for an accuracy.
        metric: the name of a compiled metric, or `"loss"`. Default: the first
            compiled metric.
        hessian: whether to measure the curvature; or a dictionary of `HessianOptions`.
        landscape: whether to draw the loss along the two leading eigenvectors of the
            Hessian over the controls; or a dictionary of arguments of
            `loss_landscape`.
        compare: name → further models, which get the same `devices`; drawn devices
            are the same for models of one architecture, for others only their seed.
        mode: `"max"`: the metric must be at least `spec`; `"min"`: at most; `"auto"`
            asks Keras' metric.
        seed: of the draws, and of the searches.
        sensitivity: whether each kind of imperfection of each layer is also measured
            alone: with up to eight of the devices, and at the ends of sweeps.
        worst_case: whether to search for the worst device: within the root mean
            square of the devices' deviations and, for what they do not deviate in,
            the largest value of a sweep's or the grid's axis; or a dictionary
            imperfection → radius, see `worst_device`.
        trained_on: name of a model → the device that it was trained on: every model
            is tested on all of these, see `Transfer`.
        sweep_devices: how many of the devices take part in sweeps and grid. Default:
            all.
        probe: samples for curvature, landscape and the worst case.
        batch_size, memory_limit: as in `evaluate_devices`.
        batch_norm: `"frozen"`, `"batch"` or `"reestimated"`, as in
            `evaluate_devices`, with `calibration`. Curvature and worst case are
            measured frozen.
        calibration: inputs that batch statistics are re-estimated from.
        rows: a folder: every block of points that is done is kept there, and not
            measured again, here or by `robustness_rows` on another machine.
        data: what the data are, for the report.
        name: what to call the model. Default: its own name.
        verbose: 0 is silent, 1 or `"auto"` shows progress.

    Returns:
        A `RobustnessResult`.

    Raises:
        ValueError: an argument is not as described, data and model do not fit, or a
            model's imperfections are not nominal; before anything takes long.

    Example:

    >>> report = pnn.robustness_report(
    ...     model, x_test, y_test,
    ...     variation=pnn.Variation(resonance_shift=0.08), n=32,
    ...     sweeps={"temperature": np.linspace(-2, 2, 21), "variation": [0, 0.5, 1, 2]},
    ... )
    >>> print(report)
    >>> report.save("report.html")
    """
    given = dict(locals())
    rows, verbose = given.pop("rows"), given.pop("verbose")
    return Report(**given).measure(rows, verbose)


def robustness_rows(
    model: keras.Model,
    x,
    y,
    devices: Sequence[SimulatedDevice] | None = None,
    variation: Variation | None = None,
    n: int = 32,
    sweeps: dict | None = None,
    grid: dict | None = None,
    *,
    rows: str | os.PathLike,
    part: tuple[int, int] = (0, 1),
    compare: dict[str, keras.Model] | None = None,
    seed: int = 0,
    sensitivity: bool = True,
    trained_on: dict[str, SimulatedDevice] | None = None,
    sweep_devices: int | None = None,
    sample_weight=None,
    batch_size: int = 500,
    memory_limit: float = 1.0,
    batch_norm: str = "frozen",
    calibration=None,
    name: str | None = None,
    verbose: int | str = "auto",
) -> list[dict]:
    """Measures one part of a report's points, for instance as one job of an array.

    A point depends on the model (its weights, the imperfections that the study does
    not set, its architecture, loss, loss weights and metrics with their settings), the
    data, the arguments and the package's version: files of others are left alone.
    Jobs on several machines load the same model file and call this with the same
    arguments and each with its own `part`; `robustness_report(..., rows=folder)` with
    the same arguments, on their files in one folder, then measures no point again.

    Args:
        rows: folder to write to. What is there already is not measured again.
        part: (i, n): the i-th of n parts, from 0.
        model, x, y, …: as in `robustness_report`.

    Returns:
        One dictionary for each point of the part: `model`, `section`, `name`, `index`
        on the axes, `device`, `metrics`.

    Raises:
        ValueError: as in `robustness_report`, or `part` is none.

    Example:

    >>> part = int(os.environ["SLURM_ARRAY_TASK_ID"]), 8
    >>> pnn.robustness_rows(model, x, y, variation=variation, rows="rows", part=part)
    """
    given = dict(locals())
    whole = (
        isinstance(part, tuple | list)
        and len(part) == 2
        and all(isinstance(p, int | np.integer) for p in part)
    )
    if not whole or not 0 <= part[0] < part[1]:
        raise ValueError(f"`part` must be (i, n) with 0 <= i < n. Received: {part!r}")
    given = {k: v for k, v in given.items() if k not in ("rows", "part", "verbose")}
    # All metrics are measured; which of them a report is about does not matter here.
    report = Report(
        **given, metric="loss", hessian=False, landscape=False, worst_case=False
    )
    part = tuple(int(p) for p in part)
    return [
        {"model": label, **row}
        for label, study in report.studies.items()
        for row in study.rows(rows, part, verbose, label)
    ]
