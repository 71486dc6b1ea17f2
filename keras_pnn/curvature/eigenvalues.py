"""Extreme eigenvalues of a Hessian, from products with it."""

import dataclasses

import numpy as np

from keras_pnn.curvature.lanczos import extreme_vectors

# Up to here n products for the whole matrix cost no more than a search would.
DENSE_LIMIT = 32

# Of the norm of H: below, a smallest eigenvalue's residual is relative to this.
SMALLEST_SCALE = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class HessianResult:
    """What `hessian_eigenvalues` found, and how.

    Args:
        eigenvalues: (k,) array, the largest first.
        eigenvectors: one list per eigenvalue of arrays in the variables' shapes;
            each list has length 1 as a vector, and all are orthogonal.
        residuals: (k,) array of ‖Hv − λv‖, from one more product per vector.
        converged: (k,) array of bools: the residual is within `tolerance` × |λ|,
            or at the rounding of the model's dtype.
        iterations: the number of Hessian-vector products, each one pass over the
            data.
        variables: the paths of the variables.
        parameters: how many numbers they hold.
        loss: the loss at these variables.
        samples: the number of samples.
        batch_size: samples per batch; `None` where a data set made the batches.
        batch_norm: `"frozen"` or `"batch"`.
        tolerance: as given.
        seed: as given.
        smallest: (m,) array of the smallest eigenvalues, ascending; empty where none
            was asked for.
        smallest_eigenvectors, smallest_residuals, smallest_converged: theirs.
    """

    eigenvalues: np.ndarray
    eigenvectors: list[list[np.ndarray]]
    residuals: np.ndarray
    converged: np.ndarray
    iterations: int
    variables: tuple[str, ...]
    parameters: int
    loss: float
    samples: int
    batch_size: int | None
    batch_norm: str
    tolerance: float
    seed: int
    smallest: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    smallest_eigenvectors: list[list[np.ndarray]] = dataclasses.field(
        default_factory=list
    )
    smallest_residuals: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty(0)
    )
    smallest_converged: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty(0, bool)
    )

    def to_dict(self) -> dict:
        """Returns everything but the eigenvectors, ready for JSON."""
        return plain(self, leave_out=("eigenvectors", "smallest_eigenvectors"))

    def table(self) -> str:
        """Returns the eigenvalues as a table of text."""
        lines = [f"{'':>5} {'eigenvalue':>14} {'residual':>10}  converged"]
        count = len(self.smallest)
        names = [str(index + 1) for index in range(len(self.eigenvalues))]
        names += [f"n-{index}" if index else "n" for index in range(count)]
        rows = zip(
            names,
            (*self.eigenvalues, *self.smallest),
            (*self.residuals, *self.smallest_residuals),
            (*self.converged, *self.smallest_converged),
            strict=True,
        )
        for name, value, residual, converged in rows:
            answer = "yes" if converged else "no"
            lines.append(f"{name:>5} {value:>14.6g} {residual:>10.2g}  {answer}")
        lines.append(
            f"loss {self.loss:.6g}, {self.parameters} parameters, {self.samples} "
            f"samples, {self.iterations} products, batch norm {self.batch_norm}, "
            f"tolerance {self.tolerance:g}, seed {self.seed}"
        )
        return "\n".join(lines)

    def __str__(self):
        return self.table()


def plain(result, leave_out=()) -> dict:
    """Returns a result's fields, arrays and tuples as lists, ready for JSON."""
    values = {}
    for field in dataclasses.fields(result):
        if field.name not in leave_out:
            value = getattr(result, field.name)
            value = value.tolist() if isinstance(value, np.ndarray) else value
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def find_eigenvalues(
    operator, k, tolerance, max_iterations, seed, verbose, smallest
) -> HessianResult:
    """Returns the extreme eigenvalues of a `HessianOperator`.

    Args:
        operator: the operator; the rest as in `hessian_eigenvalues`.
    """
    check_counts(operator, k, smallest)
    check_effort(tolerance, max_iterations)
    check_seed(seed)
    if max_iterations is None:
        max_iterations = max(500, 20 * (k + smallest))
    product = operator.products(verbose)
    size, count, epsilon = operator.size, k + smallest, operator.epsilon

    def allowed(values):
        scale = product.scale
        # The smallest may be 0, to which nothing is relative.
        least = np.where(np.arange(count) < k, 0.0, SMALLEST_SCALE * scale)
        asked = tolerance * np.maximum(np.abs(values), least)
        return np.maximum(asked, max(32 * epsilon * scale, np.finfo(float).tiny))

    if size <= max(DENSE_LIMIT, count + 1):
        matrix = np.stack([product(unit) for unit in np.eye(size)])
        basis = np.linalg.eigh((matrix + matrix.T) / 2)[1]
        vectors = np.hstack([basis[:, ::-1][:, :k], basis[:, :smallest]])
    else:
        budget = max_iterations - count
        vectors = extreme_vectors(product, size, k, smallest, allowed, budget, seed)
    images = np.stack([product(vector) for vector in vectors.T], axis=1)
    product.finish()
    values = np.sum(vectors * images, axis=0)
    residuals = np.linalg.norm(images - values * vectors, axis=0)

    order = np.concatenate(
        [
            np.argsort(-values[:k], kind="stable"),
            k + np.argsort(values[k:], kind="stable"),
        ]
    )
    values, residuals, vectors = values[order], residuals[order], vectors[:, order]
    # An eigenvector's sign is free: fixed, so that results can be compared.
    peaks = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.where(vectors[peaks, range(count)] < 0, -1.0, 1.0)
    parts = [operator.split(vector) for vector in vectors.T]
    converged = residuals <= allowed(values)
    return HessianResult(
        eigenvalues=values[:k],
        eigenvectors=parts[:k],
        residuals=residuals[:k],
        converged=converged[:k],
        iterations=product.count,
        tolerance=float(tolerance),
        seed=seed,
        smallest=values[k:],
        smallest_eigenvectors=parts[k:],
        smallest_residuals=residuals[k:],
        smallest_converged=converged[k:],
        **operator.made(),
    )


def check_counts(operator, k, smallest=0) -> None:
    """Raises ValueError unless so many eigenvalues can be asked for."""
    check_wanted(k, smallest)
    for name, number in (("k", k), ("smallest", smallest)):
        if number > operator.size:
            raise ValueError(
                f"{name} must be at most the number of parameters, {operator.size}. "
                f"Received: {number}"
            )


def check_wanted(k, smallest=0) -> None:
    """Raises ValueError unless these are numbers of eigenvalues, of any model."""
    if not whole(k) or k < 1:
        raise ValueError(f"k must be a positive integer. Received: {k!r}")
    if not whole(smallest) or smallest < 0:
        raise ValueError(
            f"smallest must be an integer of at least 0. Received: {smallest!r}"
        )


def check_seed(seed) -> None:
    """Raises ValueError unless random vectors can be drawn with it."""
    if not whole(seed) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0. Received: {seed!r}")


def check_effort(tolerance, max_iterations=None) -> None:
    """Raises ValueError unless a search for eigenvalues can end by these."""
    number = isinstance(tolerance, (int, float, np.number))
    if not number or not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1. Received: {tolerance!r}")
    if max_iterations is None:
        return
    number = isinstance(max_iterations, (int, float, np.number))
    if not number or not max_iterations >= 1:
        raise ValueError(
            f"max_iterations must be positive. Received: {max_iterations!r}"
        )


def whole(number) -> bool:
    """Whether a number is an integer, Python's or NumPy's, and no bool."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)
