"""Evaluate the loss along one or two directions through a model's variables."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_pnn import _checks
from keras_pnn.curvature.eigenvalues import check_search
from keras_pnn.curvature.operator import HessianOperator
from keras_pnn.curvature.result import LossResult


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Landscape(LossResult):
    """The loss over a line or a plane through a model's variables Θ.

    Args:
        alphas: (n,) array, multiples of the first direction.
        betas: (m,) array, multiples of the second; `None` with one direction.
        loss: (n, m) array, or (n,) with one direction: L(Θ + α d₁ + β d₂).
        directions: `"eigenvectors"`, `"random"` or `"given"`.
        vectors: the directions, each a list of arrays in the variables' shapes.
        eigenvalues: those of the directions, largest first; `None` unless they are
            eigenvectors.
        residuals, converged: as in `HessianResult`; `None` unless the directions are
            eigenvectors.
        variables, parameters, samples, batch_size, batch_norm, seed: as in
            `LossResult`.

    Example:

    >>> found = pnn.loss_landscape(model, x_train, y_train, points=3)
    >>> found.save("landscape.npz")
    """

    alphas: np.ndarray
    betas: np.ndarray | None
    loss: np.ndarray
    directions: str
    vectors: list[list[np.ndarray]]
    eigenvalues: np.ndarray | None
    residuals: np.ndarray | None
    converged: np.ndarray | None

    _long = ("vectors",)

    @property
    def center(self) -> float:
        """The loss at the model's own variables."""
        return float(self.loss[tuple(length // 2 for length in self.loss.shape)])

    @property
    def rise(self) -> float:
        """The mean loss at the edge, minus `center`."""
        inner = np.zeros(self.loss.shape, bool)
        inner[(slice(1, -1),) * self.loss.ndim] = True
        return float(self.loss[~inner].mean()) - self.center

    def to_dict(self) -> dict:
        """Returns everything but the directions' vectors, ready for JSON."""
        return {**super().to_dict(), "rise": self.rise}

    def save(self, path: str | os.PathLike) -> None:
        """Writes the arrays to an `.npz` file, without pickled objects."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "vectors" and getattr(self, field.name) is not None
        }
        for index, vector in enumerate(self.vectors, start=1):
            values[f"direction_{index}"] = np.concatenate(list(map(np.ravel, vector)))
        np.savez(path, **values)

    def _parts(self):
        spans = [self.alphas, *([] if self.betas is None else [self.betas])]
        lines = [
            f"loss {self.center:.6g} at the centre, {self.loss.min():.6g} to "
            f"{self.loss.max():.6g} over "
            + " × ".join(f"[{a[0]:g}, {a[-1]:g}]" for a in spans)
            + f" ({' × '.join(str(len(a)) for a in spans)} points), "
            f"rise to the edge {self.rise:.6g}"
        ]
        if self.eigenvalues is not None:
            found = ", ".join(f"{value:.6g}" for value in self.eigenvalues)
            state = "converged" if self.converged.all() else "not converged"
            lines.append(f"eigenvalues {found} ({state})")
        lines.append(f"directions {self.directions}, {self._made()}")
        return ["\n".join(lines)]


def loss_landscape(
    model: keras.Model,
    x,
    y=None,
    directions: str | list = "eigenvectors",
    extent: float | tuple[float, float] = 1.0,
    points: int | tuple[int, int] = 21,
    variables: str | Sequence[str] | Callable = "controls",
    batch_size: int = 256,
    sample_weight=None,
    seed: int = 0,
    batch_norm: str = "frozen",
    dimensions: int = 2,
    tolerance: float = 1e-3,
    max_iterations: int | None = None,
    verbose: int = 0,
) -> Landscape:
    """Evaluates the loss along one or two directions through a model's variables Θ.

        L(Θ + α d₁ + β d₂),    |α| ≤ extent₁, |β| ≤ extent₂

    L is the loss that `model.evaluate` reports, regularisers and `add_loss` included.
    Along a unit eigenvector of the Hessian the curvature at the centre is its
    eigenvalue. Nothing is assigned to the model, which is left as it was.

    Args:
        model, x, y, variables, batch_size, sample_weight, batch_norm: as in
            `pnn.hessian_eigenvalues`.
        directions: `"eigenvectors"`, those of the largest eigenvalues, of length 1
            over all variables; `"random"`, normal random numbers, each output unit or
            filter (the last axis; each element of a vector is a unit) scaled to its
            norm in the variable, so that weights of 0 do not move; or a list or tuple
            of one or two lists of arrays in the variables' shapes, as in
            `HessianResult.eigenvectors`, used without scaling.
        extent: how far to go each way, in multiples of a direction; one number, or one
            for each direction. In the variables' units for a direction of length 1.
        points: number of values of α and β, an odd number of at least 3, so that the
            centre is among them; one number, or one for each direction.
        seed: integer, seed of the random directions or of the search.
        dimensions: number of directions, 1 or 2, if `directions` is a string.
        tolerance, max_iterations: of the search for eigenvectors.
        verbose: 1 shows a line that counts products, then points.

    Returns:
        A `Landscape`. Its loss is infinite or NaN where the model's is, such as beyond
        the range of a measured tuning curve.

    Raises:
        ValueError: If the model is not compiled or built, an argument is not as
            described, or the loss at the centre is not finite.

    Example:

    ```python
    landscape = pnn.loss_landscape(model, x_test, y_test, extent=2.0)
    print(landscape.rise, landscape.eigenvalues)
    ```

    Reference:

    - [Li et al., 2018](https://arxiv.org/abs/1712.09913), filter normalisation
    """
    operator = HessianOperator(
        model, x, y, variables, batch_size, sample_weight, batch_norm
    )
    plan = directions, extent, points, dimensions, tolerance, max_iterations, seed
    return find_landscape(operator, *plan, verbose=verbose)


def find_landscape(
    operator,
    directions,
    extent,
    points,
    dimensions,
    tolerance,
    max_iterations,
    seed,
    verbose=0,
    search=None,
) -> Landscape:
    """Evaluates the loss of a `HessianOperator`; the rest as in `loss_landscape`.

    `search` is a `HessianResult` whose eigenvectors are used, if it is given.
    """
    plan = directions, extent, points, dimensions, tolerance, max_iterations, seed
    axes = check_plan(operator, *plan)
    found = {"eigenvalues": None, "residuals": None, "converged": None}
    if not isinstance(directions, str):
        vectors = [[np.asarray(part) for part in parts] for parts in directions]
    elif directions == "random":
        vectors = _random_directions(operator.variables, dimensions, seed)
    else:
        if search is None:
            search = operator.eigenvalues(
                dimensions, tolerance, max_iterations, seed, verbose
            )
        vectors = search.eigenvectors[:dimensions]
        found = {name: getattr(search, name)[:dimensions] for name in found}
    loss = _losses(operator, vectors, axes, verbose)
    return Landscape(
        alphas=axes[0],
        betas=axes[1] if axes[1:] else None,
        directions=directions if isinstance(directions, str) else "given",
        vectors=vectors,
        seed=seed,
        **found,
        **{**operator.made(), "loss": loss},
    )


def check_plan(
    operator, directions, extent, points, dimensions, tolerance, max_iterations, seed
) -> list[np.ndarray]:
    """Checks arguments of `loss_landscape`; returns the steps along each direction."""
    check_search(tolerance=tolerance, max_iterations=max_iterations, seed=seed)
    count = _checks.integer("dimensions", dimensions, 1, 2)
    if isinstance(directions, str):
        _checks.choice("directions", directions, ("eigenvectors", "random"))
        _checks.integer("dimensions", count, 1, operator.size)
    else:
        count = _check_given(operator, directions)
    extents = [
        _checks.real("extent", v, above=0) for v in _each("extent", extent, count)
    ]
    numbers = _each("points", points, count)
    for number in numbers:
        if _checks.integer("points", number, 3) % 2 == 0:
            raise _checks.error("points", "odd, to include the centre", number)
    return [np.linspace(-e, e, n) for e, n in zip(extents, numbers, strict=True)]


def _check_given(operator, directions) -> int:
    """Returns the number of directions that are given as arrays."""
    shapes = [tuple(v.shape) for v in operator.variables]
    listed = isinstance(directions, (list, tuple)) and len(directions) in (1, 2)
    if not listed or not all(isinstance(d, (list, tuple)) for d in directions):
        expected = "'eigenvectors', 'random', or a list of one or two lists of arrays"
        raise _checks.error("directions", expected, _checks.short(directions))
    for parts in directions:
        given = [np.shape(part) for part in parts]
        if given != shapes:
            expected = f"lists of arrays in the variables' shapes, {shapes}"
            raise _checks.error("directions", expected, given)
        if not _checks.array("directions", operator.join(parts)).any():
            raise _checks.error("directions", "not all zero", "a direction of zeros")
    return len(directions)


def _random_directions(variables, count, seed):
    """Draws directions whose units or filters have the same norms as the variables'."""
    rng = np.random.default_rng(seed)

    def draw(value):
        # The last axis counts units; each element of a vector is one.
        axes = tuple(range(value.ndim - 1))
        direction = rng.standard_normal(value.shape)
        own, wanted = (
            np.sqrt(np.sum(array**2, axis=axes, keepdims=True))
            for array in (direction, value)
        )
        return direction * wanted / own

    values = [v.numpy().astype("float64") for v in variables]
    return [[draw(value) for value in values] for _ in range(count)]


def _losses(operator, vectors, axes, verbose):
    flat = np.stack([operator.join(parts) for parts in vectors], axis=1)
    shape = tuple(len(axis) for axis in axes)
    middle = tuple(length // 2 for length in shape)
    loss = np.empty(shape)
    # First the centre, so that a loss that is not finite there is found at once.
    loss[middle] = operator.loss_at(np.zeros(operator.size))
    if not np.isfinite(loss[middle]):
        raise ValueError(
            f"The loss at the centre must be finite. Received: {loss[middle]}"
        )
    shown = 1 if verbose else 0
    bar = keras.utils.Progbar(loss.size, verbose=shown, unit_name="point")
    for done, index in enumerate(np.ndindex(shape), start=1):
        if index != middle:
            steps = [axis[i] for axis, i in zip(axes, index, strict=True)]
            loss[index] = operator.loss_at(flat @ np.array(steps))
        bar.update(done)
    return loss


def _each(name, value, count) -> list:
    """Returns one value for each direction, from a sequence or one number for all."""
    if np.ndim(value) == 0:
        return [value] * count
    if np.shape(value) != (count,):
        expected = f"one number, or one for each of {count} directions"
        raise _checks.error(name, expected, _checks.short(value))
    return list(value)
