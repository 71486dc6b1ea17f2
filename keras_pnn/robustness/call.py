"""Measure a robustness report in one call, or only a part of its points."""

import concurrent.futures
import os
from collections.abc import Sequence

import keras

from keras_pnn import _checks
from keras_pnn._signatures import check_keywords, passing_on
from keras_pnn.devices import SimulatedDevice, Variation
from keras_pnn.robustness import points
from keras_pnn.robustness.executor import check_executor
from keras_pnn.robustness.results import RobustnessResult
from keras_pnn.robustness.specification import Specification
from keras_pnn.robustness.study import Study


@passing_on(Specification)
def robustness_report(
    model: keras.Model,
    x,
    y=None,
    devices: Sequence[SimulatedDevice] | Variation | None = None,
    variation: Variation | None = None,
    *,
    sample_weight=None,
    compare: dict[str, keras.Model] | None = None,
    name: str | None = None,
    data: str = "",
    cache_dir: str | os.PathLike | None = None,
    executor: concurrent.futures.Executor | None = None,
    verbose: int | str = "auto",
    **specification,
) -> RobustnessResult:
    """Measures how robust a model is to drift, fabrication and the worst case.

    All figures are measured with simulated devices on all of `x` and `y`; only
    curvature, landscape and the search for the worst case use the first `probe`
    samples. Imperfections named in devices and sweeps start from their nominal values.
    The model is not changed.

    Args:
        model: a compiled, built model, wrapped (`SATModel`) or not.
        x, y, sample_weight: test data, arrays or structures of arrays; or `x` is a
            `tf.data.Dataset` or `keras.utils.PyDataset` that holds them all, and is
            read once.
        devices: simulated devices, as from `Variation.sample`; or a `Variation`
            to draw from; or `None`.
        variation: draws `n` devices, when `devices` is `None`.
        compare: name → further model; all get the same `devices`. Drawn devices are
            the same for models of one architecture; others share only the seed.
        name: name of the model in the report. Default: its own name.
        data: description of the data, for the report.
        cache_dir: a folder that keeps every finished block of points. Points in it are
            not measured again, here or by `robustness_rows`.
        executor: its workers measure all points (devices, sweeps, grid, sensitivity,
            transfer) in blocks: a `pnn.robustness.ProcessPool`, `client.get_executor()`
            of Dask, or another `concurrent.futures.Executor`. Workers load the study
            from `cache_dir`, which must have the same path on other machines; only
            this process writes points to it. A block whose worker died is measured
            again. Curvature, landscape and worst case are measured in this process.
        verbose: 0 is silent, 1 or `"auto"` shows progress.
        **specification: the other fields of a `Specification`, with its defaults:

            - `n`: how many devices to draw.
            - `sweeps`: name → values. An imperfection of all layers
              (`"temperature"`) or of one (`"mrr_bank_1/temperature"`) is swept over
              deviations from its nominal value, added to each device's own. With
              `variation`, `"std:theta_error+phi_error"` gives these imperfections
              random deviations with the swept standard deviation. `"variation"`
              is a factor on all deviations of the devices.
            - `grid`: two names → values, as in `sweeps`; all combinations are measured.
            - `sweep_devices`: how many of the devices take part in sweeps and grid.
              Default: all.
            - `spec`: the specification, a limit on `metric`; for an accuracy from 0 to
              1, by default 0.95; required for any other metric.
            - `metric`: the name of a compiled metric, or `"loss"`. Default: the first
              compiled metric.
            - `mode`: `"max"`: the metric must be at least `spec`; `"min"`: at most;
              `"auto"`: as the Keras metric says.
            - `fast`: whether to leave out the curvature and the landscape, which take
              the longest on larger models.
            - `hessian`: whether to measure the curvature; or a dictionary of
              `HessianOptions`.
            - `landscape`: whether to draw the loss along the two leading eigenvectors
              of the Hessian over the controls; or a dictionary of arguments of
              `loss_landscape`.
            - `worst_case`: whether to search for the worst device; or a dictionary
              imperfection → radius; see `worst_device`. Default radii: the root mean
              square of the devices' deviations; for other imperfections, the point
              nearest to the design on the axis of a sweep or the grid.
            - `sensitivity`: whether each kind of imperfection of each layer is also
              measured alone, with up to eight of the devices and at the ends of
              sweeps.
            - `trained_on`: name of a model → the device that it was trained on; every
              model is tested on all these devices, see `Transfer`.
            - `hardware`: `"silicon"` or the path of a library of devices; the report
              then shows power and energy beside the accuracy, see `hardware_cost`.
            - `probe`: number of samples for curvature, landscape and the worst case.
            - `seed`: seed of the draws and the searches.
            - `batch_size`, `memory_limit`: as in `evaluate_devices`.
            - `batch_norm`: `"frozen"`, `"batch"` or `"reestimated"`, as in
              `evaluate_devices`, with `calibration`. Curvature and worst case are
              measured frozen.
            - `calibration`: inputs from which batch statistics are re-estimated.

    Returns:
        A `RobustnessResult`.

    Raises:
        ValueError: Before any long computation, if an argument is not as described,
            data and model do not fit, or a model's imperfections are not nominal.
            Later, if workers cannot load the study or have another package version.
        RuntimeError: If workers die three times in a row without finishing a block, or
            the executor gives up its work.
        TypeError: If a keyword argument is unknown.

    Example:

    >>> report = pnn.robustness_report(
    ...     model, x_test, y_test,
    ...     variation=pnn.Variation(resonance_shift=0.08), n=32,
    ...     sweeps={"temperature": np.linspace(-2, 2, 21), "variation": [0, 0.5, 1, 2]},
    ... )
    >>> print(report.summary())
    >>> report.save("report.html")
    """
    check_keywords(robustness_report, specification)
    check_executor(executor)
    asked = Specification(devices=devices, variation=variation, **specification)
    study = Study(asked, model, x, y, sample_weight, compare, name, data)
    return study.measure(cache_dir, verbose, executor)


@passing_on(Specification)
def robustness_rows(
    model: keras.Model,
    x,
    y=None,
    *,
    cache_dir: str | os.PathLike,
    part: tuple[int, int] = (0, 1),
    sample_weight=None,
    compare: dict[str, keras.Model] | None = None,
    name: str | None = None,
    verbose: int | str = "auto",
    **specification,
) -> list[dict]:
    """Measures one part of a report's points, for example in one job of a job array.

    A point depends on the model (its weights, the imperfections that the study does
    not set, its configuration, loss, loss weights and metrics), the data, the
    arguments and the package's version; points of other studies are not touched. Jobs
    on several machines load the same model file and call this with the same arguments,
    each with its own `part`. `robustness_report` with the same arguments, and their
    files in one `cache_dir`, then measures no point again.

    Args:
        cache_dir: folder to write to. Points found there are not measured again.
        part: (i, n), the i-th of n parts, from 0.
        model, x, y, …: as in `robustness_report`, whose further arguments it takes.
            `metric`, `mode`, `spec`, `hessian`, `landscape` and `worst_case` are
            ignored, since points do not depend on them.

    Returns:
        One dictionary for each point of the part: `model`, `section`, `name` of the
        sweep, the layer's imperfection or the other model, `index` on the axes,
        `device` (`None` for the design), `metrics`.

    Raises:
        ValueError: As in `robustness_report`, or if `part` is not as described.

    Example:

    >>> part = int(os.environ["SLURM_ARRAY_TASK_ID"]), 8
    >>> pnn.robustness_rows(
    ...     model, x, y, variation=variation, cache_dir="points", part=part
    ... )
    """
    check_keywords(robustness_rows, specification)
    index, parts = _checks.pair("part", part)
    if not 0 <= index < parts:
        raise _checks.error("part", "(i, n) with 0 ≤ i < n", part)
    # All metrics are measured, so the choice of a report's metric does not matter.
    ignored = {"metric": "loss", "mode": "auto", "spec": 0.0}
    ignored |= dict.fromkeys(("hessian", "landscape", "worst_case"), False)
    asked = Specification(**{**specification, **ignored})
    study = Study(asked, model, x, y, sample_weight, compare, name)
    return [
        _row(label, study, point, metrics)
        for label, found in study.points(cache_dir, (index, parts), verbose)
        for point, metrics in found.items()
    ]


def _row(label: str, study: Study, point: points.Point, metrics: dict) -> dict:
    """Returns a measured point in JSON's types."""
    section, name, place, device = "nominal", "", (), None
    match point:
        case points.OnDevice(device):
            section = "device"
        case points.OnScan(name, place, device):
            section = "grid" if name is points.GRID else "sweep"
        case points.Alone(layer, kind, device):
            section = "sensitivity"
            names = points.layer_names(study.studies[label].model)
            name = f"{names[layer]}/{kind}"
        case points.OnTrained(name):
            section = "transfer"
    return {
        "model": label,
        "section": section,
        "name": name or "",
        "index": list(place),
        "device": device,
        "metrics": metrics,
    }
