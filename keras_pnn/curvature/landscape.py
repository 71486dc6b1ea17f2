"""The loss around a model's variables, along one or two directions."""

import dataclasses

import keras
import numpy as np

from keras_pnn.curvature.eigenvalues import HessianResult, plain, whole
from keras_pnn.curvature.operator import HessianOperator


@dataclasses.dataclass(frozen=True, eq=False)
class Landscape:
    """The loss over a line or a plane through a model's variables Θ.

    Args:
        alphas: (n,) array, multiples of the first direction.
        betas: (m,) array, multiples of the second; `None` with one direction.
        loss: (n, m) array, or (n,) with one direction: L(Θ + α d₁ + β d₂).
        directions: `"eigenvectors"`, `"random"` or `"given"`.
        vectors: the directions, each a list of arrays in the variables' shapes.
        eigenvalues: those of the directions, largest first; `None` unless they are
            eigenvectors.
        residuals, converged: the eigenvalues'; `None` unless the directions are
            eigenvectors.
        variables: the paths of the variables.
        parameters: how many numbers they hold.
        samples: the number of samples.
        batch_size: samples per batch; `None` where a data set made the batches.
        batch_norm: `"frozen"` or `"batch"`.
        seed: of the directions.
    """

    alphas: np.ndarray
    betas: np.ndarray | None
    loss: np.ndarray
    directions: str
    vectors: list[list[np.ndarray]]
    eigenvalues: np.ndarray | None
    residuals: np.ndarray | None
    converged: np.ndarray | None
    variables: tuple[str, ...]
    parameters: int
    samples: int
    batch_size: int | None
    batch_norm: str
    seed: int

    @property
    def center(self) -> float:
        """The loss at the model's own variables."""
        return float(self.loss[tuple(length // 2 for length in self.loss.shape)])

    @property
    def rise(self) -> float:
        """By how much the loss at the edge lies above `center`, on average."""
        inner = np.zeros(self.loss.shape, bool)
        inner[(slice(1, -1),) * self.loss.ndim] = True
        return float(self.loss[~inner].mean()) - self.center

    def to_dict(self) -> dict:
        """Returns everything but the directions' vectors, ready for JSON."""
        return {**plain(self, leave_out=("vectors",)), "rise": self.rise}

    def save(self, path) -> None:
        """Writes the arrays to an `.npz` file, without pickled objects."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "vectors" and getattr(self, field.name) is not None
        }
        for index, vector in enumerate(self.vectors):
            flat = [np.ravel(part) for part in vector]
            values[f"direction_{index + 1}"] = np.concatenate(flat)
        np.savez(path, **values)

    def __str__(self):
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
        lines.append(
            f"directions {self.directions}, {self.parameters} parameters, "
            f"{self.samples} samples, batch norm {self.batch_norm}, seed {self.seed}"
        )
        return "\n".join(lines)


def loss_landscape(
    model,
    x,
    y=None,
    directions="eigenvectors",
    extent=1.0,
    points=21,
    variables="controls",
    batch_size=256,
    sample_weight=None,
    seed=0,
    batch_norm="frozen",
    dimensions=2,
    tolerance=1e-3,
    max_iterations=None,
    verbose=0,
) -> Landscape:
    """The loss along two directions, or one, through a model's variables Θ.

        L(Θ + α d₁ + β d₂),    |α| ≤ extent₁, |β| ≤ extent₂

    L is the loss that `model.evaluate` reports, regularisers and `add_loss` included.
    Along a unit eigenvector of the Hessian the curvature at the centre is its
    eigenvalue. Nothing is assigned to the model, which is left as it was.

    Args:
        model, x, y, variables, batch_size, sample_weight, batch_norm: as in
            `pnn.hessian_eigenvalues`.
        directions: `"eigenvectors"`, those of the largest eigenvalues, of length 1
            over all variables; `"random"`, normal random numbers, each output unit or
            filter (the last axis; a vector or a scalar is a unit of its own) scaled to
            the norm that the variable has there, so that weights that are 0 stay; or
            one or two lists of arrays in the variables' shapes, in a list or tuple, as
            `HessianResult.eigenvectors` has them, taken as they are.
        extent: how far to go each way, in multiples of a direction; one number, or one
            for each direction. In the variables' units for a direction of length 1.
        points: how many values of α and β, an odd number of at least 3, so that the
            centre is among them; one number, or one for each direction.
        seed: integer, seed of the random directions or of the search.
        dimensions: how many directions, 1 or 2, where they are named.
        tolerance, max_iterations: of the search for eigenvectors.
        verbose: 1 shows a line that counts points, and products before.

    Returns:
        A `Landscape`. Its loss is infinite or NaN where that of the model is, as
        beyond the range of a measured tuning curve.

    Raises:
        ValueError: the model is not compiled or built, an argument is not as
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
    return find_landscape(
        operator,
        directions=directions,
        extent=extent,
        points=points,
        seed=seed,
        dimensions=dimensions,
        tolerance=tolerance,
        max_iterations=max_iterations,
        verbose=verbose,
    )


def find_landscape(
    operator,
    directions="eigenvectors",
    extent=1.0,
    points=21,
    seed=0,
    dimensions=2,
    tolerance=1e-3,
    max_iterations=None,
    verbose=0,
) -> Landscape:
    """Returns the landscape of a `HessianOperator`'s loss; see `loss_landscape`."""
    check_plan(operator, directions, extent, points, dimensions)
    found = None
    if isinstance(directions, str):
        if directions == "eigenvectors":
            found = operator.eigenvalues(
                dimensions, tolerance, max_iterations, seed, verbose
            )
            vectors = found.eigenvectors
        else:
            vectors = _random_directions(operator.variables, dimensions, seed)
        name = directions
    else:
        vectors = [[np.asarray(part) for part in parts] for parts in directions]
        name = "given"
    count = len(vectors)
    axes = [
        np.linspace(-reach, reach, number)
        for reach, number in zip(
            _each(extent, count), _each(points, count), strict=True
        )
    ]
    return Landscape(
        alphas=axes[0],
        betas=axes[1] if count == 2 else None,
        loss=_losses(operator, vectors, axes, verbose),
        directions=name,
        vectors=vectors,
        seed=seed,
        **_search(found),
        **{key: value for key, value in operator.made().items() if key != "loss"},
    )


def check_plan(operator, directions, extent, points, dimensions) -> None:
    """Raises ValueError unless these arguments of `loss_landscape` fit its model."""
    count = check_axes(directions, extent, points, dimensions)
    if not isinstance(directions, str):
        _check_shapes(operator, directions)
    elif count > operator.size:
        raise ValueError(
            "dimensions must be at most the number of parameters, "
            f"{operator.size}. Received: {count}"
        )


def check_axes(directions, extent, points, dimensions) -> int:
    """Returns the number of directions.

    Raises:
        ValueError: the arguments of `loss_landscape` fit no model.
    """
    if not whole(dimensions) or dimensions not in (1, 2):
        raise ValueError(f"dimensions must be 1 or 2. Received: {dimensions!r}")
    if isinstance(directions, str):
        if directions not in ("eigenvectors", "random"):
            raise ValueError(
                "directions must be 'eigenvectors', 'random', or one or two lists of "
                f"arrays. Received: {directions!r}"
            )
        count = dimensions
    else:
        count = _check_listed(directions)
    for name, value in (("extent", extent), ("points", points)):
        if np.ndim(value) and np.shape(value) != (count,):
            raise ValueError(
                f"{name} must be one number, or one for each of {count} directions. "
                f"Received: {value!r}"
            )
    reaches = np.asarray(_each(extent, count))
    if reaches.dtype.kind not in "fiu" or not (
        np.isfinite(reaches).all() and (reaches > 0).all()
    ):
        raise ValueError(f"extent must be positive and finite. Received: {extent!r}")
    if not all(whole(n) and n >= 3 and n % 2 for n in _each(points, count)):
        raise ValueError(
            f"points must be an odd integer of at least 3. Received: {points!r}"
        )
    return count


def _check_listed(directions) -> int:
    """Returns the number of directions, one or two lists."""
    listed = isinstance(directions, (list, tuple))
    nested = listed and all(isinstance(parts, (list, tuple)) for parts in directions)
    if not nested or len(directions) not in (1, 2):
        received = f"{len(directions)} items" if listed else type(directions).__name__
        raise ValueError(
            "directions must be 'eigenvectors', 'random', or a list of one or two "
            f"lists of arrays. Received: {received}"
        )
    return len(directions)


def _check_shapes(operator, directions) -> None:
    """Raises ValueError unless directions hold arrays in the variables' shapes."""
    shapes = [tuple(v.shape) for v in operator.variables]
    for parts in directions:
        given = [np.shape(part) for part in parts]
        if given != shapes:
            raise ValueError(
                "directions must have the shapes of the variables, "
                f"{shapes}. Received: {given}"
            )
        flat = operator.join(parts)
        if not (np.isfinite(flat).all() and flat.any()):
            raise ValueError(
                "directions must be finite and not all zero. Received: a direction "
                f"with {np.count_nonzero(~np.isfinite(flat))} values that are not "
                f"finite and {np.count_nonzero(flat)} that are not zero"
            )


def _random_directions(variables, count, seed):
    rng = np.random.default_rng(seed)
    return [
        [_filter_normalised(rng.standard_normal(v.shape), v.numpy()) for v in variables]
        for _ in range(count)
    ]


def _filter_normalised(direction, value):
    """Returns a direction whose units or filters have the norms of a variable's.

    Args:
        direction, value: arrays of one shape. The last axis counts units; each element
            of a vector is one.
    """
    axes = tuple(range(direction.ndim - 1))
    value = np.asarray(value, "float64")
    own = np.sqrt(np.sum(direction**2, axis=axes, keepdims=True))
    return direction * np.sqrt(np.sum(value**2, axis=axes, keepdims=True)) / own


def _losses(operator, vectors, axes, verbose):
    flat = np.stack([operator.join(parts) for parts in vectors], axis=1)
    shape = tuple(len(axis) for axis in axes)
    middle = tuple(length // 2 for length in shape)
    loss = np.empty(shape)
    # A loss that is not finite at the centre is found before the long work.
    loss[middle] = operator.loss_at(np.zeros(operator.size))
    if not np.isfinite(loss[middle]):
        raise ValueError(
            f"The loss at the centre must be finite. Received: {loss[middle]}"
        )
    progress = keras.utils.Progbar(loss.size, unit_name="point") if verbose else None
    for done, index in enumerate(np.ndindex(shape), start=1):
        if index != middle:
            steps = [axis[i] for axis, i in zip(axes, index, strict=True)]
            loss[index] = operator.loss_at(flat @ np.array(steps))
        if progress is not None:
            progress.update(done)
    return loss


def _search(found: HessianResult | None) -> dict:
    names = ("eigenvalues", "residuals", "converged")
    return {name: None if found is None else getattr(found, name) for name in names}


def _each(value, count):
    return list(value) if np.ndim(value) else [value] * count
