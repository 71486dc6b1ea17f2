"""Search for the imperfections that explain a device's readings."""

import keras
import numpy as np

from keras_pnn.hardware.calibration.fitting import BEYOND, Problem

# The search stops at these relative reductions of the sum to measure its curvature
# anew, before it goes on to the tolerance that was asked for.
_STAGES = (1e-1, 1e-2, 1e-4)
# Readings that are farther from the model than so many times their noise are not
# explained; the search is then repeated with these noises, one after the other.
_UNEXPLAINED = 3.0
_NOISES = (0.3, 0.03)


def search(
    problem: Problem, iterations: int, tolerance: float, verbose
) -> tuple[np.ndarray, int, bool]:
    """Minimises the sum, with a progress bar.

    Where the readings are not explained, the search has ended in a local minimum. It
    then begins again from the start with readings that count little at first, so that
    the prior leads it past such minima, and the better of both ends is taken.

    Args:
        problem: the sum; its `noise` comes back as it was.
        iterations: the most that the search takes.
        tolerance: the search ends where a step reduces the sum by less than this
            share of it.
        verbose: 0 for no progress bar.

    Returns:
        (point, iterations, whether it converged).

    Raises:
        ValueError: If the model's outputs are not finite at the start.
    """
    if problem(problem.start)[0] == BEYOND:
        raise ValueError(
            "The model's outputs must be finite at all settings of the controls, with "
            "its present imperfections; `spread` keeps controls nearer. Received: NaN "
            f"or infinity in {', '.join(problem.layers)}"
        )
    bar = progress_bar(iterations, "iteration", verbose, ["residual"])
    noise = problem.noise
    z, done, ended = _descent(problem, problem.start, iterations, tolerance, bar)
    loss = problem(z)[0]
    coarser = [n for n in _NOISES if n > 3 * noise]
    if coarser and problem.residual > _UNEXPLAINED * noise:
        other = problem.start
        for coarse in (*coarser, noise):
            problem.noise = coarse
            end = tolerance if coarse == noise else max(tolerance, _STAGES[-1])
            if done < iterations:
                left = iterations - done
                other, steps, there = _descent(problem, other, left, end, bar)
                done += steps
        problem.noise = noise
        if problem(other)[0] < loss:
            z, ended = other, there
    if done < iterations:
        bar.update(done, finalize=True)
    return z, done, ended


def _descent(problem: Problem, z, iterations: int, tolerance: float, bar) -> tuple:
    """Minimises from a point by L-BFGS; returns as `search`.

    L-BFGS begins as if the sum were equally curved along all unknowns, while a ring on
    its flank may count a thousand times as much as one far away. So the unknowns are
    scaled by the sum's curvature, which is measured again on the way.
    """
    from scipy import optimize

    done = 0
    for end in (*(s for s in _STAGES if s > tolerance), tolerance):
        scale = 1 / np.sqrt(problem.curvature(z))

        def scaled(u, scale=scale):
            loss, gradient = problem(u * scale)
            return loss, gradient * scale

        result = optimize.minimize(
            scaled,
            z / scale,
            jac=True,
            method="L-BFGS-B",
            bounds=optimize.Bounds(*(problem.bounds / scale)),
            callback=lambda _: bar.add(1, [("residual", problem.residual)]),
            options={
                "maxiter": iterations - done,
                # A step takes one evaluation or two.
                "maxfun": 4 * iterations,
                "maxcor": 30,
                "ftol": end,
                "gtol": 0.0,
            },
        )
        z, done = result.x * scale, done + result.nit
        if done >= iterations:
            break
    return z, done, bool(result.success)


def progress_bar(total: int, unit: str, verbose, stateful=()) -> keras.utils.Progbar:
    """Returns a progress bar, silent where `verbose` is 0."""
    return keras.utils.Progbar(
        total,
        verbose=0 if verbose in (0, "0") else 1,
        stateful_metrics=stateful,
        unit_name=unit,
    )
