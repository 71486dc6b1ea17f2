"""What a report measures besides devices: worst case, curvature, landscape."""

import dataclasses
import inspect

from keras_pnn import _checks
from keras_pnn.curvature.eigenvalues import HessianResult, check_search
from keras_pnn.curvature.landscape import (
    Landscape,
    check_plan,
    find_landscape,
    loss_landscape,
)
from keras_pnn.curvature.operator import HessianOperator
from keras_pnn.layers.lookup import controls_of
from keras_pnn.robustness.inputs import sample_count
from keras_pnn.robustness.results import Curvature, WorstCase
from keras_pnn.robustness.study import Study
from keras_pnn.robustness.worst_case import worst_device


@dataclasses.dataclass(frozen=True)
class HessianOptions:
    """How a report measures the curvature.

    Args:
        k: how many of the largest eigenvalues.
        smallest: how many of the smallest.
        tolerance: of the residuals, relative to the eigenvalue.
        trace_samples: random vectors of the trace's estimate.
        density_steps: Lanczos steps of the spectral density.
        density_vectors: its random vectors.
        variables: `"controls"`, `"all"`, or both.

    Raises:
        ValueError: an option is not as described.
    """

    k: int = 3
    smallest: int = 1
    tolerance: float = 0.01
    trace_samples: int = 20
    density_steps: int = 40
    density_vectors: int = 2
    variables: tuple[str, ...] = ("controls", "all")

    def __post_init__(self):
        check_search(self.k, self.smallest, self.tolerance)
        for name in ("trace_samples", "density_steps", "density_vectors"):
            _checks.integer(name, getattr(self, name), 1)
        given = self.variables
        chosen = (given,) if isinstance(given, str) else given
        listed = isinstance(chosen, (tuple, list)) and len(chosen) > 0
        if not listed or not all(one in ("controls", "all") for one in chosen):
            raise ValueError(
                "variables must be 'controls', 'all', or a tuple of both. "
                f"Received: {given!r}"
            )
        object.__setattr__(self, "variables", tuple(chosen))


def hessian_options(hessian) -> HessianOptions | None:
    """Returns the options of a report's `hessian`, `None` for none.

    Raises:
        ValueError: they fit no model.
    """
    if hessian is False or hessian is None:
        return None
    given = {} if hessian is True else hessian
    known = {field.name for field in dataclasses.fields(HessianOptions)}
    if not isinstance(given, dict) or not given.keys() <= known:
        raise ValueError(
            f"`hessian` must be True, False or a dictionary of {sorted(known)}. "
            f"Received: {hessian!r}"
        )
    try:
        return HessianOptions(**given)
    except ValueError as error:
        raise ValueError(f"In `hessian`, {error}") from None


def landscape_options(landscape) -> dict | None:
    """Returns the options of a report's `landscape`, `None` for none.

    Raises:
        ValueError: they fit no model.
    """
    if landscape is False or landscape is None:
        return None
    given = {} if landscape is True else landscape
    # The data and the progress are the report's.
    own = {"model", "x", "y", "sample_weight", "verbose"}
    known = inspect.signature(loss_landscape).parameters.keys() - own
    if not isinstance(given, dict) or not given.keys() <= known:
        raise ValueError(
            "`landscape` must be True, False or a dictionary of arguments of "
            f"`loss_landscape`: {sorted(known)}. Received: {landscape!r}"
        )
    try:
        check_search(
            tolerance=given.get("tolerance", HessianOptions.tolerance),
            max_iterations=given.get("max_iterations"),
            seed=given.get("seed", 0),
        )
    except ValueError as error:
        raise ValueError(f"In `landscape`, {error}") from None
    return dict(given)


def check_curvature(
    model, few, hessian: HessianOptions | None, landscape: dict | None
) -> None:
    """Raises ValueError unless the options fit a model and its data."""
    for argument, options in (("hessian", hessian), ("landscape", landscape)):
        if options is not None and not model.trainable_variables:
            raise ValueError(
                f"`{argument}` is about trainable variables, and the model has none: "
                f"give `{argument}=False`. Received: model '{model.name}'"
            )
    try:
        argument = "hessian"
        for which in _measured(model, hessian):
            _operator(model, few, which)
        argument = "landscape"
        if landscape is not None:
            operator, arguments = _landscape_plan(model, few, landscape)
            check_plan(operator, *_axes(arguments))
    except ValueError as error:
        raise ValueError(f"In `{argument}`, {error}") from error


def worst_case_of(study: Study, few, radius, seed, batch_size, verbose) -> WorstCase:
    say("worst case", verbose)
    device, losses = worst_device(
        study.model,
        few[0],
        few[1],
        radius,
        sample_weight=few[2],
        batch_size=batch_size,
        seed=seed,
    )
    found = study.alone(device)
    return WorstCase(radius, found, losses, sample_count(few[0]), device)


def curvature_of(
    model, few, options: HessianOptions, seed: int, verbose
) -> dict[str, Curvature]:
    """Returns which variables → their curvature; controls only where there are some."""
    found = {}
    for which in _measured(model, options):
        say(f"Hessian over {which}", verbose)
        operator = _operator(model, few, which)
        found[which] = Curvature(
            operator.eigenvalues(
                min(options.k, operator.size),
                options.tolerance,
                seed=seed,
                smallest=min(options.smallest, operator.size),
                verbose=0 if verbose in (0, "0") else 1,
            ),
            operator.trace(options.trace_samples, seed=seed),
            operator.density(
                min(options.density_steps, operator.size),
                options.density_vectors,
                seed=seed,
            ),
        )
    return found


def landscape_of(
    model, few, options: dict, curvature: dict[str, Curvature], seed: int, verbose
) -> Landscape:
    """Returns the loss along the leading eigenvectors, found already or not.

    Args:
        model, few: the model and its data.
        options: arguments of `loss_landscape`. By default it is about the controls, if
            there are any, and as accurate as the curvature.
        curvature: what `curvature_of` found on the same data.
        seed: of the report.
        verbose: as in `robustness_report`.
    """
    say("loss landscape", verbose)
    operator, arguments = _landscape_plan(model, few, options)
    accuracy = [c.eigenvalues.tolerance for c in curvature.values()]
    accuracy.append(HessianOptions.tolerance)
    arguments = {"seed": seed, "tolerance": accuracy[0], **arguments}
    leading = _found_already(operator, arguments, curvature)
    if leading is not None:
        count = arguments["dimensions"]
        arguments["directions"] = leading.eigenvectors[:count]
    arguments["verbose"] = 0 if verbose in (0, "0") else 1
    found = find_landscape(operator, **arguments)
    if leading is None:
        return found
    return dataclasses.replace(
        found,
        directions="eigenvectors",
        eigenvalues=leading.eigenvalues[:count],
        residuals=leading.residuals[:count],
        converged=leading.converged[:count],
    )


def say(text: str, verbose) -> None:
    if verbose not in (0, "0"):
        print(text)


def _measured(model, options: HessianOptions | None) -> list[str]:
    """Which variables the curvature is about."""
    chosen = () if options is None else dict.fromkeys(options.variables)
    return [which for which in chosen if which == "all" or controls_of(model)]


def _operator(model, few, which, **others) -> HessianOperator:
    x, y, sample_weight = few
    return HessianOperator(model, x, y, which, sample_weight=sample_weight, **others)


def _landscape_plan(model, few, options: dict) -> tuple[HessianOperator, dict]:
    """Whose loss a landscape shows, and the arguments of `find_landscape`."""
    arguments = dict(options)
    which = arguments.pop("variables", "controls" if controls_of(model) else "all")
    names = {"batch_size", "batch_norm"} & options.keys()
    others = {name: arguments.pop(name) for name in names}
    operator = _operator(model, few, which, **others)
    # A plane needs two parameters.
    return operator, {"dimensions": min(2, operator.size), **arguments}


def _axes(options: dict) -> list:
    """What spans a landscape, by default as in `loss_landscape`."""
    parameters = inspect.signature(loss_landscape).parameters
    names = ("directions", "extent", "points", "dimensions")
    return [options.get(name, parameters[name].default) for name in names]


def _found_already(
    operator: HessianOperator, arguments: dict, curvature: dict[str, Curvature]
) -> HessianResult | None:
    """The eigenvectors that a landscape asks for, if the curvature has just these."""
    directions = arguments.get("directions", "eigenvectors")
    if not isinstance(directions, str) or directions != "eigenvectors":
        return None
    if arguments.get("max_iterations") is not None:
        return None
    asked = operator.made()
    for known in (c.eigenvalues for c in curvature.values()):
        same = (
            known.variables == asked["variables"]
            and known.batch_norm == asked["batch_norm"]
            and known.seed == arguments["seed"]
            and known.tolerance == arguments["tolerance"]
        )
        if same and len(known.eigenvectors) >= arguments["dimensions"]:
            return known
    return None
