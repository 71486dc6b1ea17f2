"""Find the extreme eigenvalues of a Hessian from products with it."""

import dataclasses

import numpy as np

from keras_pnn import _checks
from keras_pnn._display import Table
from keras_pnn.curvature.lanczos import extreme_vectors
from keras_pnn.curvature.result import LossResult

# Up to this size, n products for the whole matrix cost no more than a search.
DENSE_LIMIT = 32

# Residuals of the smallest eigenvalues are relative to at least this share of ‖H‖.
SMALLEST_SCALE = 0.01


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HessianResult(LossResult):
    """The result of `hessian_eigenvalues`.

    Args:
        eigenvalues: (k,) array, the largest first.
        eigenvectors: one list per eigenvalue of arrays in the variables' shapes;
            as vectors, the lists have length 1 and are orthogonal.
        residuals: (k,) array of ‖Hv − λv‖, from one more product per vector.
        converged: (k,) array of bools: the residual is within `tolerance` × |λ|,
            or at the rounding of the model's dtype.
        smallest: (m,) array of the smallest eigenvalues, ascending; empty if none was
            requested.
        smallest_eigenvectors, smallest_residuals, smallest_converged: as above, for
            these.
        iterations: the number of Hessian-vector products, each one pass over the
            data.
        tolerance: the tolerance that was given.
        loss: the loss at these variables.
        variables, parameters, samples, batch_size, batch_norm, seed: as in
            `LossResult`.

    Example:

    >>> found = pnn.hessian_eigenvalues(model, x_train, y_train, k=1)
    >>> print(found.table())
    >>> found.eigenvalues[0], found.residuals[0], found.converged
    """

    eigenvalues: np.ndarray
    eigenvectors: list[list[np.ndarray]]
    residuals: np.ndarray
    converged: np.ndarray
    smallest: np.ndarray
    smallest_eigenvectors: list[list[np.ndarray]]
    smallest_residuals: np.ndarray
    smallest_converged: np.ndarray
    iterations: int
    tolerance: float
    loss: float

    _long = ("eigenvectors", "smallest_eigenvectors")

    def _parts(self):
        names = [str(index + 1) for index in range(len(self.eigenvalues))]
        names += [f"n-{i}" if i else "n" for i in range(len(self.smallest))]
        found = zip(
            names,
            (*self.eigenvalues, *self.smallest),
            (*self.residuals, *self.smallest_residuals),
            (*self.converged, *self.smallest_converged),
            strict=True,
        )
        rows = [
            (name, f"{value:.6g}", f"{residual:.2g}", "yes" if converged else "no")
            for name, value, residual, converged in found
        ]
        return [
            Table("", ("", "eigenvalue", "residual", "converged"), rows),
            f"loss {self.loss:.6g}, {self.iterations} products, tolerance "
            f"{self.tolerance:g}, {self._made()}",
        ]


def find_eigenvalues(
    operator, k=1, tolerance=1e-3, max_iterations=None, seed=0, verbose=0, smallest=0
) -> HessianResult:
    """Finds extreme eigenvalues of a `HessianOperator`, as `hessian_eigenvalues`."""
    check_search(k, smallest, tolerance, max_iterations, seed, operator.size)
    if max_iterations is None:
        max_iterations = max(500, 20 * (k + smallest))
    product = operator.products(verbose)
    size, count, epsilon = operator.size, k + smallest, operator.epsilon
    # The smallest eigenvalues come after the largest.
    low = np.arange(count) >= k

    def allowed(values):
        scale = product.scale
        # The smallest may be 0, to which no residual can be relative.
        least = np.where(low, SMALLEST_SCALE * scale, 0.0)
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

    order = np.lexsort((np.where(low, values, -values), low))
    values, residuals, vectors = values[order], residuals[order], vectors[:, order]
    # An eigenvector's sign is arbitrary; it is fixed to make results comparable.
    peaks = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.where(vectors[peaks, range(count)] < 0, -1.0, 1.0)
    parts = [operator.split(vector) for vector in vectors.T]
    converged = residuals <= allowed(values)
    return HessianResult(
        eigenvalues=values[:k],
        eigenvectors=parts[:k],
        residuals=residuals[:k],
        converged=converged[:k],
        smallest=values[k:],
        smallest_eigenvectors=parts[k:],
        smallest_residuals=residuals[k:],
        smallest_converged=converged[k:],
        iterations=product.count,
        tolerance=float(tolerance),
        seed=seed,
        **operator.made(),
    )


def check_search(
    k=1, smallest=0, tolerance=1e-3, max_iterations=None, seed=0, parameters=None
) -> None:
    """Checks the arguments of a search, which are those of `hessian_eigenvalues`.

    `parameters` is the number of the model's parameters, which `k` and `smallest` may
    not exceed; `None` if it is not known yet.
    """
    _checks.integer("k", k, 1, parameters)
    _checks.integer("smallest", smallest, 0, parameters)
    _checks.real("tolerance", tolerance, above=0, below=1)
    _checks.optional(_checks.real, "max_iterations", max_iterations, low=1)
    _checks.integer("seed", seed, 0)
