"""Compute eigenvalues, trace and density of the Hessian of a model's loss."""

from collections.abc import Callable, Sequence

import keras

from keras_pnn.curvature.eigenvalues import HessianResult as HessianResult
from keras_pnn.curvature.operator import HessianOperator
from keras_pnn.curvature.spectrum import DensityResult, TraceResult


def hessian_eigenvalues(
    model: keras.Model,
    x,
    y=None,
    k: int = 1,
    variables: str | Sequence[str] | Callable = "controls",
    batch_size: int = 256,
    sample_weight=None,
    tolerance: float = 1e-3,
    max_iterations: int | None = None,
    seed: int = 0,
    batch_norm: str = "frozen",
    verbose: int = 0,
    smallest: int = 0,
) -> HessianResult:
    """Finds the extreme eigenvalues of the Hessian of a model's loss, its sharpness.

        H v = λ v,    H = ∂²L/∂Θ²,    λ₁ ≥ λ₂ ≥ … ≥ λₖ ≥ … ≥ λₙ

    L is the loss that `model.evaluate` reports, regularisers and `add_loss`
    included. "Largest" is meant algebraically: of −10, 3 and 1 the first is 3. H is
    never formed: a Lanczos iteration with thick restarts needs only products Hv. An
    eigenvalue of multiplicity m counts m times. The model and its random seeds are not
    changed; for a `PATModel`, H is that of the digital model. The graph is kept for
    further calls, see `pnn.curvature.HessianOperator`.

    Args:
        model: a compiled, built Keras model, wrapped (`SATModel`) or not.
        x: array, tuple, list or dict of arrays, or a finite `tf.data.Dataset` or
            `keras.utils.PyDataset` of batches that gives the same samples on each
            pass.
        y: targets, in the structure that `evaluate` takes; `None` with a data set.
        k: number of eigenvalues.
        variables: `"controls"`, the trainable controls of the physical layers;
            `"all"`, the model's trainable variables; names or patterns of trainable
            variables and imperfections (`"slm_*/mask"`); or a predicate on them. With
            several units among them (mA, rad), eigenvalues depend on the units.
        batch_size: samples per batch; it affects memory only, unless
            `batch_norm="batch"` or the loss is not a mean over samples. A data set has
            its own.
        sample_weight: as in `evaluate`; `None` with a data set.
        tolerance: required relative residual, ‖Hv − λv‖ ≤ `tolerance` × |λ|. λ itself
            is then far more accurate.
        max_iterations: approximate limit on products, each a pass over the
            data; by default 500, or 20 (`k` + `smallest`) if that is more. Eigenvalues
            that have not converged by then are returned with their residual,
            `converged` False.
        seed: integer, seed of the starting vector.
        batch_norm: `"frozen"` differentiates the loss of `evaluate`
            (`training=False`, moving statistics). `"batch"` differentiates the loss of
            training (`training=True`): each batch's own statistics, and the dropout and
            noise of the next step, held fixed; nothing is updated.
        verbose: 1 shows a line that counts products.
        smallest: number of smallest eigenvalues to find as well; −10 in the example.
            Their residuals must be within `tolerance` × max(|λ|, ‖H‖/100), since they
            may be 0. If they lie close together, they take many products.

    Returns:
        A `HessianResult`.

    Raises:
        ValueError: If the model is not compiled or built, an argument is not as
            described, the loss is not finite, a `HardwareDevice` is installed, whose
            measurements have no second derivative, or a layer has no exact one, see
            `pnn.curvature.HessianOperator`.

    Example:

    ```python
    result = pnn.hessian_eigenvalues(model, x_test, y_test, k=2)
    print(result)
    sharpest_direction = result.eigenvectors[0]
    ```

    Reference:

    - [Ghorbani et al., 2019](https://arxiv.org/abs/1901.10159)
    - [Pearlmutter, 1994](https://doi.org/10.1162/neco.1994.6.1.147)
    - Wu and Simon, 2000, SIAM J. Matrix Anal. Appl. 22, 602–616
    """
    operator = HessianOperator(
        model, x, y, variables, batch_size, sample_weight, batch_norm
    )
    return operator.eigenvalues(k, tolerance, max_iterations, seed, verbose, smallest)


def hessian_trace(
    model: keras.Model,
    x,
    y=None,
    vectors: int = 100,
    variables: str | Sequence[str] | Callable = "controls",
    batch_size: int = 256,
    sample_weight=None,
    seed: int = 0,
    batch_norm: str = "frozen",
    verbose: int = 0,
) -> TraceResult:
    """Estimates the trace of the Hessian of a model's loss, the sum of eigenvalues.

        tr H = E[vᵀHv],    v = ±1, each sign with probability ½

    Hutchinson's estimate with Rademacher vectors has the variance 2 Σ Hᵢⱼ² over
    i ≠ j: it is exact where H is diagonal, and its standard error falls as
    1/√`vectors`.

    Args:
        model, x, y, variables, batch_size, sample_weight, batch_norm, verbose: as in
            `pnn.hessian_eigenvalues`.
        vectors: number of random vectors, each one pass over the data.
        seed: integer, seed of the vectors.

    Returns:
        A `TraceResult`.

    Raises:
        ValueError: As in `pnn.hessian_eigenvalues`, or if `vectors` is not a positive
            integer.

    Example:

    ```python
    result = pnn.hessian_trace(model, x_test, y_test, vectors=200)
    print(result.trace, "±", result.standard_error)
    ```

    Reference:

    - Hutchinson, 1990, Commun. Stat. Simul. Comput. 19, 433–450
    - [Yao et al., 2020](https://arxiv.org/abs/1912.07145)
    """
    operator = HessianOperator(
        model, x, y, variables, batch_size, sample_weight, batch_norm
    )
    return operator.trace(vectors, seed, verbose)


def hessian_density(
    model: keras.Model,
    x,
    y=None,
    steps: int = 64,
    vectors: int = 4,
    broadening: float | None = None,
    variables: str | Sequence[str] | Callable = "controls",
    batch_size: int = 256,
    sample_weight=None,
    seed: int = 0,
    batch_norm: str = "frozen",
    verbose: int = 0,
) -> DensityResult:
    """Estimates the density of the eigenvalues of the Hessian of a model's loss.

        φ(λ) = 1/n Σᵢ δ(λ − λᵢ) ≈ 1/m Σᵥ Σⱼ wᵥⱼ N(λ; θᵥⱼ, σ²)

    Stochastic Lanczos quadrature: for each of m random vectors, a Lanczos iteration
    with full orthogonalisation gives nodes θ and weights w, and a Gaussian of standard
    deviation σ replaces each node. Isolated eigenvalues come out as single nodes; their
    weights are estimates, 1/n on average.

    Args:
        model, x, y, variables, batch_size, sample_weight, batch_norm, verbose: as in
            `pnn.hessian_eigenvalues`.
        steps: Lanczos steps for each vector, each one pass over the data, at most the
            number of parameters. The same number of vectors is kept in memory, in
            float64.
        vectors: number of random vectors. With the same seed the first ones are those
            of `hessian_trace`, so that traces from the same number of vectors agree.
        broadening: σ, in the units of the eigenvalues; by default 1/100 of the range
            of the nodes.
        seed: integer, seed of the vectors.

    Returns:
        A `DensityResult`. Its density integrates to 1.

    Raises:
        ValueError: As in `pnn.hessian_eigenvalues`, or if `steps` or `vectors` is not
            a positive integer, or `broadening` not a positive number.

    Example:

    ```python
    result = pnn.hessian_density(model, x_test, y_test)
    print(result.moment(1), result.share(-np.inf, 0))
    ```

    Reference:

    - [Ghorbani et al., 2019](https://arxiv.org/abs/1901.10159)
    - Golub and Welsch, 1969, Math. Comput. 23, 221–230
    """
    operator = HessianOperator(
        model, x, y, variables, batch_size, sample_weight, batch_norm
    )
    return operator.density(steps, vectors, broadening, seed, verbose)
