"""Report in one call how robust a trained model is, or measure part of its points."""

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

    Every figure is measured with simulated devices on all of `x` and `y`; curvature,
    landscape and the search for the worst case use the first `probe` samples. The
    imperfections that devices and sweeps name start from their nominal values. The
    model is not changed.

    Args:
        model: a compiled, built model, wrapped (`SATModel`) or not.
        x, y, sample_weight: test data, arrays or structures of arrays; or `x` is a
            `tf.data.Dataset` or `keras.utils.PyDataset`, which is read once and holds
            the others.
        devices: simulated devices, as from `Variation.sample`; or a `Variation`
            to draw from; or `None`.
        variation: draws `n` devices, when `devices` is `None`.
        compare: name → further models, which get the same `devices`. Drawn devices
            are the same for models of one architecture; others share only the seed.
        name: name of the model in the report. Default: its own name.
        data: description of the data, for the report.
        cache_dir: a folder that keeps every finished block of points. Points in it are
            not measured again, here or by `robustness_rows`.
        executor: whose workers measure all points (devices, sweeps, grid, sensitivity,
            transfer) in blocks: a `pnn.robustness.ProcessPool`, `client.get_executor()`
            of Dask, or another `concurrent.futures.Executor`. Workers load the study
            from `cache_dir`, which those on other machines must see under the same
            path; this process alone writes points to it. A block whose worker died is
            measured again. Curvature, landscape and worst case are measured here.
        verbose: 0 is silent, 1 or `"auto"` shows progress.
        **specification: the other fields of a `Specification`, which has their
            defaults:

            - `n`: how many devices to draw.
            - `sweeps`: name → values. An imperfection of all layers
              (`"temperature"`) or of one (`"mrr_bank_1/temperature"`) is swept over
              deviations from its nominal value, added to each device's own. With
              `variation`, `"std:theta_error+phi_error"` gives these imperfections
              random deviations with the swept standard deviation. `"variation"`
              is a factor on all deviations of the devices.
            - `grid`: two names → values, as in `sweeps`: all their combinations.
            - `sweep_devices`: how many of the devices take part in sweeps and grid.
              Default: all.
            - `spec`: the specification, a limit on `metric`; from 0 to 1 for an
              accuracy, by default 0.95. It must be given for any other metric.
            - `metric`: the name of a compiled metric, or `"loss"`. Default: the first
              compiled metric.
            - `mode`: `"max"`: the metric must be at least `spec`; `"min"`: at most;
              `"auto"` asks Keras' metric.
            - `fast`: whether to leave out the curvature and the landscape, which take
              longest on larger models.
            - `hessian`: whether to measure the curvature; or a dictionary of
              `HessianOptions`.
            - `landscape`: whether to draw the loss along the two leading eigenvectors
              of the Hessian over the controls; or a dictionary of arguments of
              `loss_landscape`.
            - `worst_case`: whether to search for the worst device; or a dictionary
              imperfection → radius, see `worst_device`. Default radii: the root mean
              square of the devices' deviations; for other imperfections, the point
              nearest to the design on the axis of a sweep or the grid.
            - `sensitivity`: whether each kind of imperfection of each layer is also
              measured alone: with up to eight of the devices, and at the ends of
              sweeps.
            - `trained_on`: name of a model → the device that it was trained on: every
              model is tested on all of these, see `Transfer`.
            - `hardware`: `"silicon"` or the path of a library of devices: the report
              then shows power and energy beside the accuracy, see `hardware_cost`.
            - `probe`: samples for curvature, landscape and the worst case.
            - `seed`: of the draws, and of the searches.
            - `batch_size`, `memory_limit`: as in `evaluate_devices`.
            - `batch_norm`: `"frozen"`, `"batch"` or `"reestimated"`, as in
              `evaluate_devices`, with `calibration`. Curvature and worst case are
              measured frozen.
            - `calibration`: inputs that batch statistics are re-estimated from.

    Returns:
        A `RobustnessResult`.

    Raises:
        ValueError: If an argument is not as described, data and model do not fit, or
            a model's imperfections are not nominal; before anything takes long. If
            workers cannot load the study, or have another version of the package.
        RuntimeError: If workers die, three times before one has finished a block, or
            the executor gives up its work.
        TypeError: If there is no such argument.

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
    """Measures one part of a report's points, for instance as one job of an array.

    A point depends on the model (its weights, the imperfections that the study does
    not set, its configuration, loss, loss weights and metrics), the data, the
    arguments and the package's version; points of other studies are left alone. Jobs
    on several machines load the same model file and call this with the same arguments
    and each with its own `part`; `robustness_report` with the same arguments, on their
    files in one `cache_dir`, then measures no point again.

    Args:
        cache_dir: folder to write to. What is there already is not measured again.
        part: (i, n): the i-th of n parts, from 0.
        model, x, y, …: as in `robustness_report`, whose further arguments it takes.
            `metric`, `spec`, `hessian`, `landscape` and `worst_case`, which points do
            not depend on, are ignored.

    Returns:
        One dictionary for each point of the part: `model`, `section`, `name` of the
        sweep, of the layer's imperfection or of the other model, `index` on the axes,
        `device` (`None` for the design), `metrics`.

    Raises:
        ValueError: As in `robustness_report`, or if `part` is not such a pair.

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
    # All metrics are measured; which of them a report is about does not matter here.
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
    """Returns a measured point in the types of JSON."""
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
