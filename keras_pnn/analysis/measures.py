"""What a report measures besides devices: worst case, curvature, landscape."""

import dataclasses

import numpy as np

from keras_pnn.analysis.hessian_operator import HessianOperator
from keras_pnn.analysis.landscape import Landscape, loss_landscape
from keras_pnn.analysis.points import Plan
from keras_pnn.analysis.report_inputs import sample_count
from keras_pnn.analysis.results import Curvature, WorstCase
from keras_pnn.analysis.study import Study
from keras_pnn.analysis.worst_case import balls_of, worst_device
from keras_pnn.devices.simulated import matching
from keras_pnn.layers.physical import controls_of


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
    """

    k: int = 3
    smallest: int = 1
    tolerance: float = 0.01
    trace_samples: int = 20
    density_steps: int = 40
    density_vectors: int = 2
    variables: tuple[str, ...] = ("controls", "all")


def hessian_options(hessian) -> HessianOptions | None:
    if hessian is False or hessian is None:
        return None
    given = {} if hessian is True else hessian
    known = {field.name for field in dataclasses.fields(HessianOptions)}
    if not isinstance(given, dict) or not given.keys() <= known:
        raise ValueError(
            f"`hessian` must be True, False or a dictionary of {sorted(known)}. "
            f"Received: {hessian!r}"
        )
    return HessianOptions(**given)


def search_radius(plan: Plan, worst_case) -> dict[str, float]:
    """imperfection → radius of the search; empty for none."""
    if worst_case is False:
        return {}
    model = plan.fabrication.model
    if isinstance(worst_case, dict):
        radius = worst_case
    elif worst_case is True:
        radius = plan.fabrication.spread()
        for name, axis in plan.sweeps.items():
            if axis.axis.random or axis.axis.values.ndim > 1 or "/" in name:
                continue
            short = {t.name for t in matching(model, name)}
            reach = float(np.abs(axis.axis.values).max())
            # Its quantity is among the devices' already, perhaps under another name.
            if reach and not short & radius.keys():
                radius[name] = reach
    else:
        raise ValueError(
            "`worst_case` must be True, False or a dictionary imperfection → radius. "
            f"Received: {worst_case!r}"
        )
    balls_of(model, radius)
    return radius


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
    for which in options.variables:
        if which == "controls" and not controls_of(model):
            continue
        say(f"Hessian over {which}", verbose)
        x, y, sample_weight = few
        operator = HessianOperator(model, x, y, which, sample_weight=sample_weight)
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
    model, few, given: bool | dict, curvature: dict[str, Curvature], seed: int, verbose
) -> Landscape:
    """Returns the loss along the leading eigenvectors, found already or not."""
    say("loss landscape", verbose)
    variables = "controls" if controls_of(model) else "all"
    arguments = {"variables": variables, "seed": seed, "tolerance": 0.01}
    arguments |= {} if given is True else given
    arguments["verbose"] = 0 if verbose in (0, "0") else 1
    x, y, sample_weight = few
    leading = curvature.get(arguments["variables"])
    reuse = "directions" not in arguments and leading is not None
    if reuse:
        leading = leading.eigenvalues
        arguments["directions"] = leading.eigenvectors[:2]
    found = loss_landscape(model, x, y, sample_weight=sample_weight, **arguments)
    if not reuse:
        return found
    count = len(arguments["directions"])
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
