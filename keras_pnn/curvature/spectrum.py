"""Estimate the trace and the density of a Hessian's eigenvalues."""

import dataclasses

import numpy as np

from keras_pnn import _checks
from keras_pnn.curvature.lanczos import tridiagonal
from keras_pnn.curvature.result import LossResult

# Limit on the points of a density's grid.
MAX_POINTS = 100_000


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TraceResult(LossResult):
    """The trace of a Hessian, with its standard error.

    Args:
        trace: the sum of all eigenvalues, estimated.
        standard_error: standard error of `trace`, from the spread of `estimates`; NaN
            with one.
        estimates: (n,) array of vᵀHv, one for each random vector.
        loss: the loss at these variables.
        variables, parameters, samples, batch_size, batch_norm, seed: as in
            `LossResult`.

    Example:

    >>> found = pnn.hessian_trace(model, x_train, y_train, vectors=5)
    >>> print(f"{found.trace:.3g} ± {found.standard_error:.1g}")
    """

    trace: float
    standard_error: float
    estimates: np.ndarray
    loss: float

    def _parts(self):
        return [
            f"trace {self.trace:.6g} ± {self.standard_error:.2g} (standard error, "
            f"{len(self.estimates)} random vectors)\n"
            f"loss {self.loss:.6g}, {self._made()}"
        ]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DensityResult(LossResult):
    """The density of a Hessian's eigenvalues.

    Args:
        grid: (g,) array of eigenvalues, ascending.
        density: (g,) array: the share of the eigenvalues per unit of λ. It integrates
            to 1; times `parameters` it counts eigenvalues.
        standard_error: (g,) array, the standard error of `density`, from the spread
            over the random vectors; NaN with one vector.
        nodes: (q,) array of the quadrature's nodes, ascending for each vector.
        weights: (q,) array of their weights; they sum to 1.
        broadening: the standard deviation of the Gaussian in place of each node.
        vectors: the number of random vectors.
        steps: the number of Lanczos steps with each.
        loss: the loss at these variables.
        variables, parameters, samples, batch_size, batch_norm, seed: as in
            `LossResult`.

    Example:

    >>> found = pnn.hessian_density(model, x_train, y_train, steps=5)
    >>> mean_square = found.moment(2)
    """

    grid: np.ndarray
    density: np.ndarray
    standard_error: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray
    broadening: float
    vectors: int
    steps: int
    loss: float

    @property
    def trace(self) -> float:
        """The sum of all eigenvalues, estimated: `parameters` × the first moment."""
        return self.parameters * self.moment(1)

    def moment(self, order: int) -> float:
        """Returns the mean of λ to the power `order` over the eigenvalues, unbroadened.

        For orders k below 2 `steps` it is the mean of vᵀHᵏv/vᵀv over the random
        vectors.
        """
        return float(self.weights @ self.nodes**order)

    def share(self, low: float, high: float) -> float:
        """Returns the estimated share of the eigenvalues in [low, high)."""
        inside = (self.nodes >= low) & (self.nodes < high)
        return float(self.weights[inside].sum())

    def _parts(self):
        return [
            f"eigenvalues from {self.nodes.min():.6g} to {self.nodes.max():.6g}, mean "
            f"{self.moment(1):.6g}, {100 * self.share(-np.inf, 0):.3g} % below 0, "
            f"broadening {self.broadening:.3g} ({self.vectors} random vectors, "
            f"{self.steps} steps)\nloss {self.loss:.6g}, {self._made()}"
        ]


def find_trace(operator, vectors=100, seed=0, verbose=0) -> TraceResult:
    """Estimates the trace of a `HessianOperator`; the rest as in `hessian_trace`."""
    _checks.integer("vectors", vectors, 1)
    product = operator.products(verbose)
    estimates = np.array(
        [vector @ product(vector) for vector in _signs(vectors, operator.size, seed)]
    )
    product.finish()
    return TraceResult(
        trace=float(estimates.mean()),
        standard_error=float(_standard_error(estimates)),
        estimates=estimates,
        seed=seed,
        **operator.made(),
    )


def find_density(
    operator, steps=64, vectors=4, broadening=None, seed=0, verbose=0
) -> DensityResult:
    """Estimates the density of a `HessianOperator`, as in `hessian_density`."""
    _checks.integer("steps", steps, 1)
    _checks.integer("vectors", vectors, 1)
    _checks.optional(_checks.real, "broadening", broadening, above=0)
    product = operator.products(verbose)
    starts = _signs(vectors, operator.size, seed)
    pairs = [tridiagonal(product, start, steps) for start in starts]
    product.finish()

    nodes = np.concatenate([node for node, _ in pairs])
    if broadening is None:
        # The nodes of a multiple of the identity have no range: its value instead.
        broadening = (np.ptp(nodes) or np.abs(nodes).max()) / 100 or 1.0
    low, high = nodes.min() - 5 * broadening, nodes.max() + 5 * broadening
    # Four points per σ: sums over the grid are then integrals. The limit bounds the
    # memory where σ is very small.
    points = round(min(4 * (high - low) / broadening, MAX_POINTS)) + 1
    grid = np.linspace(low, high, points)
    curves = np.stack([_broadened(grid, *pair, broadening) for pair in pairs])
    return DensityResult(
        grid=grid,
        density=curves.mean(axis=0),
        standard_error=_standard_error(curves),
        nodes=nodes,
        weights=np.concatenate([weight for _, weight in pairs]) / vectors,
        broadening=float(broadening),
        vectors=int(vectors),
        steps=int(min(steps, operator.size)),
        seed=seed,
        **operator.made(),
    )


def _signs(vectors, size, seed):
    """Yields Rademacher vectors; the first ones do not depend on their number."""
    _checks.integer("seed", seed, 0)
    rng = np.random.default_rng(seed)
    for _ in range(vectors):
        yield rng.choice([-1.0, 1.0], size)


def _standard_error(values):
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


def _broadened(grid, nodes, weights, width):
    """Returns the Gaussian mixture's mean over the grid's cells, per unit of λ.

    Averages over cells are differences of the distribution function, and integrate to 1
    on the grid for any width.
    """
    from scipy.special import ndtr

    half = (grid[1] - grid[0]) / 2
    edges = np.append(grid - half, grid[-1] + half)
    total = sum(
        weight * ndtr((edges - node) / width)
        for node, weight in zip(nodes, weights, strict=True)
    )
    return np.diff(total) / (2 * half)
