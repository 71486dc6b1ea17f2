"""Measure the curvature of a model's loss and the landscape around its controls."""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator

import keras

from keras_pnn import _checks
from keras_pnn.curvature.eigenvalues import check_search
from keras_pnn.curvature.landscape import (
    Landscape,
    check_plan,
    find_landscape,
    loss_landscape,
)
from keras_pnn.curvature.operator import HessianOperator
from keras_pnn.layers.lookup import controls_of
from keras_pnn.robustness.results import Curvature

# Arguments of `loss_landscape` and their defaults, without data and progress.
_LANDSCAPE = {
    name: parameter.default
    for name, parameter in inspect.signature(loss_landscape).parameters.items()
    if name not in ("model", "x", "y", "sample_weight", "verbose")
}


@dataclasses.dataclass(frozen=True)
class HessianOptions:
    """How a report measures the curvature.

    Args:
        k: number of largest eigenvalues.
        smallest: number of smallest eigenvalues.
        tolerance: tolerance of the residuals, relative to the eigenvalue.
        trace_samples: number of random vectors for the trace.
        density_steps: number of Lanczos steps for the spectral density.
        density_vectors: number of random vectors for the spectral density.
        variables: `"controls"`, `"all"`, or both.
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
        listed = isinstance(chosen, tuple | list) and len(chosen) > 0
        if not listed or not all(one in ("controls", "all") for one in chosen):
            expected = "'controls', 'all', or a tuple of both"
            raise _checks.error("variables", expected, _checks.short(given))
        object.__setattr__(self, "variables", tuple(dict.fromkeys(chosen)))

    @classmethod
    def of(cls, given) -> "HessianOptions | None":
        """Returns the options given as `hessian`; `None` for no curvature."""
        names = [field.name for field in dataclasses.fields(cls)]
        options = _options("hessian", given, names)
        with _about("hessian"):
            return None if options is None else cls(**options)


def landscape_options(given) -> dict | None:
    """Returns the arguments of `loss_landscape` given as `landscape`, or `None`."""
    return _options("landscape", given, _LANDSCAPE)


def _options(argument: str, given, names) -> dict | None:
    if given is None or given is False:
        return None
    options = {} if given is True else given
    if not isinstance(options, dict) or not options.keys() <= set(names):
        expected = f"True, False or a dictionary of {sorted(names)}"
        raise _checks.error(argument, expected, _checks.short(given))
    return dict(options)


@contextlib.contextmanager
def _about(argument: str) -> Iterator[None]:
    """Adds the name of the argument to the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"In `{argument}`: {error}") from error


class CurvatureStudy:
    """Curvature and loss landscape of one model, which may be measured repeatedly.

    Operators are built, and options checked against the model, only once. `few` is
    `(x, y, sample_weight)`; `landscape` holds the arguments of `loss_landscape`. A part
    whose options are `None` is left out.
    """

    def __init__(
        self,
        model: keras.Model,
        few: tuple,
        hessian: HessianOptions | None,
        landscape: dict | None,
        seed: int,
    ):
        self._model, self._few, self._seed = model, few, seed
        self._hessian, self._landscape = hessian, None
        for name, options in (("hessian", hessian), ("landscape", landscape)):
            if options is not None and not model.trainable_variables:
                raise ValueError(
                    f"`{name}` is about trainable variables, and the model has none: "
                    f"give `{name}=False`. Received: model '{model.name}'"
                )
        controls = bool(controls_of(model))
        with _about("hessian"):
            self._operators = {
                which: self._operator(which)
                for which in (hessian.variables if hessian else ())
                if which == "all" or controls
            }
        if landscape is not None:
            with _about("landscape"):
                which = "controls" if controls else "all"
                self._landscape = self._planned({"variables": which, **landscape})

    def measure(self, verbose: int) -> dict:
        """Returns the fields `curvature` and `landscape` of a `ModelRobustness`."""
        curvature = {
            which: self._curvature(which, operator, verbose)
            for which, operator in self._operators.items()
        }
        known = [part.eigenvalues for part in curvature.values()]
        landscape = self._landscape and self._measured_landscape(known, verbose)
        return {"curvature": curvature, "landscape": landscape}

    def _curvature(
        self, which: str, operator: HessianOperator, verbose: int
    ) -> Curvature:
        if verbose:
            print(f"Hessian over {which}")
        options, seed, size = self._hessian, self._seed, operator.size
        k, smallest, steps = (
            min(wanted, size)
            for wanted in (options.k, options.smallest, options.density_steps)
        )
        return Curvature(
            operator.eigenvalues(
                k, options.tolerance, seed=seed, smallest=smallest, verbose=verbose
            ),
            operator.trace(options.trace_samples, seed=seed),
            operator.density(steps, options.density_vectors, seed=seed),
        )

    def _planned(self, given: dict) -> tuple[HessianOperator, dict]:
        """Returns the operator of a landscape, and arguments of `find_landscape`."""
        tolerance = (self._hessian or HessianOptions).tolerance
        asked = {**_LANDSCAPE, "seed": self._seed, "tolerance": tolerance, **given}
        names = ("variables", "batch_size", "batch_norm")
        operator = self._operator(**{name: asked.pop(name) for name in names})
        # A plane needs two parameters.
        asked["dimensions"] = given.get("dimensions", min(2, operator.size))
        check_plan(operator, **asked)
        return operator, asked

    def _measured_landscape(self, known: list, verbose: int) -> Landscape:
        """Returns the landscape, along eigenvectors already found, if there are any."""
        if verbose:
            print("loss landscape")
        operator, asked = self._landscape
        wanted = {**operator.made(), **asked}
        same = ("variables", "batch_norm", "seed", "tolerance")
        fitting = [
            found
            for found in known
            if asked["max_iterations"] is None
            and len(found.eigenvectors) >= asked["dimensions"]
            and all(getattr(found, name) == wanted[name] for name in same)
        ]
        leading = fitting[0] if fitting else None
        return find_landscape(operator, **asked, verbose=verbose, search=leading)

    def _operator(self, variables, **others) -> HessianOperator:
        x, y, sample_weight = self._few
        return HessianOperator(
            self._model, x, y, variables, sample_weight=sample_weight, **others
        )
