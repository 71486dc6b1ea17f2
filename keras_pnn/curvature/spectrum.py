"""The whole spectrum of a loss's Hessian: its trace and its density."""

import dataclasses

import numpy as np

from keras_pnn.curvature.eigenvalues import check_seed, plain, whole
from keras_pnn.curvature.lanczos import tridiagonal

# Of a density's grid.
MAX_POINTS = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class TraceResult:
    """The trace of a Hessian, with its standard error.

    Args:
        trace: the sum of all eigenvalues, estimated.
        standard_error: of `trace`, from the spread of `estimates`; NaN with one.
        estimates: (n,) array of vᵀHv, one for each random vector.
        variables: the paths of the variables.
        parameters: how many numbers they hold.
        loss: the loss at these variables.
        samples: the number of samples of the data.
        batch_size: samples per batch; `None` where a data set made the batches.
        batch_norm: `"frozen"` or `"batch"`.
        seed: of the random vectors.
    """

    trace: float
    standard_error: float
    estimates: np.ndarray
    variables: tuple[str, ...]
    parameters: int
    loss: float
    samples: int
    batch_size: int | None
    batch_norm: str
    seed: int

    def to_dict(self) -> dict:
        """Returns the fields, ready for JSON."""
        return plain(self)

    def __str__(self):
        return (
            f"trace {self.trace:.6g} ± {self.standard_error:.2g} (standard error, "
            f"{len(self.estimates)} random vectors)\n{_made(self)}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class DensityResult:
    """The density of a Hessian's eigenvalues.

    Args:
        grid: (g,) array of eigenvalues, ascending.
        density: (g,) array: the share of the eigenvalues per unit of λ. It integrates
            to 1; times `parameters` it counts eigenvalues.
        standard_error: (g,) array, that of `density`, from the spread over the random
            vectors; NaN with one vector.
        nodes: (q,) array of the quadrature's nodes, ascending for each vector.
        weights: (q,) array of their weights; they sum to 1.
        broadening: the standard deviation of the Gaussian in place of each node.
        vectors: the number of random vectors.
        steps: the number of Lanczos steps with each.
        variables, parameters, loss, samples, batch_size, batch_norm, seed: as in
            `TraceResult`.
    """

    grid: np.ndarray
    density: np.ndarray
    standard_error: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray
    broadening: float
    vectors: int
    steps: int
    variables: tuple[str, ...]
    parameters: int
    loss: float
    samples: int
    batch_size: int | None
    batch_norm: str
    seed: int

    @property
    def trace(self) -> float:
        """The sum of all eigenvalues, estimated: `parameters` × the first moment."""
        return self.parameters * self.moment(1)

    def moment(self, order: int) -> float:
        """Returns the mean of λ to a power over the eigenvalues, unbroadened.

        It is that of the random vectors, vᵀHᵏv/vᵀv, for powers below 2 `steps`.
        """
        return float(self.weights @ self.nodes**order)

    def share(self, low: float, high: float) -> float:
        """Returns the estimated share of the eigenvalues in [low, high)."""
        inside = (self.nodes >= low) & (self.nodes < high)
        return float(self.weights[inside].sum())

    def to_dict(self) -> dict:
        """Returns the fields, ready for JSON."""
        return plain(self)

    def __str__(self):
        return (
            f"eigenvalues from {self.nodes.min():.6g} to {self.nodes.max():.6g}, mean "
            f"{self.moment(1):.6g}, {100 * self.share(-np.inf, 0):.3g} % below 0, "
            f"broadening {self.broadening:.3g} ({self.vectors} random vectors, "
            f"{self.steps} steps)\n{_made(self)}"
        )


def find_trace(operator, vectors, seed, verbose) -> TraceResult:
    """Returns the trace of a `HessianOperator`; the rest as in `hessian_trace`."""
    check_positive("vectors", vectors)
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


def find_density(operator, steps, vectors, broadening, seed, verbose) -> DensityResult:
    """Returns the density of a `HessianOperator`, as in `hessian_density`."""
    check_positive("steps", steps)
    check_positive("vectors", vectors)
    if broadening is not None and not (np.isfinite(broadening) and broadening > 0):
        raise ValueError(
            f"broadening must be a positive number or None. Received: {broadening!r}"
        )
    product = operator.products(verbose)
    starts = _signs(vectors, operator.size, seed)
    pairs = [tridiagonal(product, start, steps) for start in starts]
    product.finish()

    nodes = np.concatenate([node for node, _ in pairs])
    if broadening is None:
        # A multiple of 1 has no range; it gets that of its own value.
        spread = np.ptp(nodes) if np.ptp(nodes) > 0 else np.abs(nodes).max()
        broadening = spread / 100 if spread > 0 else 1.0
    low, high = nodes.min() - 5 * broadening, nodes.max() + 5 * broadening
    # Four points per σ: sums over the grid are then integrals. Far fewer would do
    # where σ is very small; the limit bounds the memory.
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
    """Yields Rademacher vectors, the same first ones however many."""
    check_seed(seed)
    rng = np.random.default_rng(seed)
    for _ in range(vectors):
        yield rng.choice([-1.0, 1.0], size)


def _standard_error(values):
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


def _broadened(grid, nodes, weights, width):
    """Returns the Gaussian mixture's mean over the grid's cells, per unit of λ.

    Averages over cells, of the distribution function's differences, integrate to
    1 on the grid whatever the width.
    """
    from scipy.special import ndtr

    half = (grid[1] - grid[0]) / 2
    edges = np.append(grid - half, grid[-1] + half)
    total = sum(
        weight * ndtr((edges - node) / width)
        for node, weight in zip(nodes, weights, strict=True)
    )
    return np.diff(total) / (2 * half)


def check_positive(name, value) -> None:
    """Raises ValueError unless a count is a positive integer."""
    if not whole(value) or value < 1:
        raise ValueError(f"{name} must be a positive integer. Received: {value!r}")


def _made(result):
    return (
        f"loss {result.loss:.6g}, {result.parameters} parameters, {result.samples} "
        f"samples, batch norm {result.batch_norm}, seed {result.seed}"
    )
