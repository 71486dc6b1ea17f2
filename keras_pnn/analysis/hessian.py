"""The largest eigenvalues of a loss's Hessian with respect to a model's variables."""

import collections
import dataclasses
import inspect

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.analysis.batches import batch_length, batches
from keras_pnn.layers.physical import (
    active_substitute,
    flat_layers,
    overriding,
    select_variables,
)

# Up to here n products for the whole matrix cost no more than a search would.
DENSE_LIMIT = 32


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

    def to_dict(self) -> dict:
        """Returns everything but the eigenvectors, ready for JSON."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "eigenvectors"
        }
        for name in ("eigenvalues", "residuals", "converged"):
            values[name] = values[name].tolist()
        return {**values, "variables": list(self.variables)}

    def table(self) -> str:
        """Returns the eigenvalues as a table of text."""
        lines = [f"{'':>4} {'eigenvalue':>14} {'residual':>10}  converged"]
        rows = zip(self.eigenvalues, self.residuals, self.converged, strict=True)
        for index, (value, residual, converged) in enumerate(rows, start=1):
            answer = "yes" if converged else "no"
            lines.append(f"{index:>4} {value:>14.6g} {residual:>10.2g}  {answer}")
        lines.append(
            f"loss {self.loss:.6g}, {self.parameters} parameters, {self.samples} "
            f"samples, {self.iterations} products, batch norm {self.batch_norm}, "
            f"tolerance {self.tolerance:g}, seed {self.seed}"
        )
        return "\n".join(lines)

    def __str__(self):
        return self.table()


class HessianOperator:
    """H of a compiled model's loss, as the map v ↦ Hv.

    The loss is that of `model.evaluate`: the compiled loss with its sample weights,
    regularisers and `add_loss`, averaged over batches by their sizes. A product is
    the derivative of vᵀ∇L (Pearlmutter, 1994), by two passes of reverse mode, and
    costs a few times a gradient. The model is only read: weights, statistics, seeds
    and metrics stay as they are. The graph is built at the first product and follows
    the weights afterwards, so that one operator serves a whole training.

    Args:
        model: a compiled, built Keras model, wrapped or not.
        x, y, sample_weight, variables, batch_size, batch_norm: as in
            `hessian_eigenvalues`.

    Raises:
        ValueError: the model is not compiled or not built, or an argument is not
            as described.

    Example:

    ```python
    hessian = pnn.analysis.HessianOperator(model, x, y)
    direction = np.ones(hessian.size)
    curvature = direction @ hessian.matvec(direction) / hessian.size
    ```

    Reference:

    - [Pearlmutter, 1994](https://doi.org/10.1162/neco.1994.6.1.147)
    """

    def __init__(
        self,
        model,
        x,
        y=None,
        variables="controls",
        batch_size=256,
        sample_weight=None,
        batch_norm="frozen",
    ):
        if not getattr(model, "compiled", False):
            raise ValueError(
                "model must be compiled, since the Hessian is that of its loss: "
                f"call `model.compile(loss=...)` first. Received: {model}"
            )
        # A wrapper that was never called may hold a model that is built.
        if not (model.built or all(layer.built for layer in flat_layers(model))):
            raise ValueError(
                f"model must be built: call it on a batch first. Received: {model}"
            )
        if batch_norm not in ("frozen", "batch"):
            raise ValueError(
                f"batch_norm must be 'frozen' or 'batch'. Received: {batch_norm!r}"
            )
        self.model = model
        self.batch_norm = batch_norm
        self.variables = select_variables(model, variables)
        for variable in self.variables:
            if not tf.as_dtype(variable.dtype).is_floating:
                raise ValueError(
                    "variables must hold real floating-point numbers. Received: "
                    f"{variable.path} of dtype {variable.dtype}"
                )
        self._sizes = [int(np.prod(v.shape)) for v in self.variables]
        self.size = sum(self._sizes)
        self._batches, self.batch_size = batches(x, y, sample_weight, batch_size)
        self.loss = None
        self.samples = None
        self._product = tf.function(
            self._batch_product, autograph=False, reduce_retracing=True
        )

    def split(self, vector) -> list[np.ndarray]:
        """Cuts a vector of length `size` into arrays of the variables' shapes."""
        parts = np.split(np.asarray(vector), np.cumsum(self._sizes)[:-1])
        pairs = zip(parts, self.variables, strict=True)
        return [part.reshape(tuple(v.shape)) for part, v in pairs]

    def matvec(self, vector) -> np.ndarray:
        """Returns Hv, and sets `loss` and `samples` on the way.

        Args:
            vector: array of length `size`, in the order of `variables`.

        Returns:
            A float64 array of length `size`.

        Raises:
            ValueError: the vector's length is another, the data is empty, the
                loss or the product is not finite, or a device gives the outputs of
                the layers.
        """
        if active_substitute() is not None:
            raise ValueError(
                "A Hessian is that of a digital model, since a measurement has no "
                "second derivative: compute it outside `device.installed(model)`. "
                "Received: layers that a device measures"
            )
        vector = np.ravel(np.asarray(vector))
        if vector.size != self.size:
            raise ValueError(
                f"vector must have length {self.size}. Received: {vector.size}"
            )
        direction = [
            tf.convert_to_tensor(part.astype(tf.as_dtype(v.dtype).as_numpy_dtype))
            for part, v in zip(self.split(vector), self.variables, strict=True)
        ]
        product, loss, samples = np.zeros(self.size), 0.0, 0
        for x, y, sample_weight in self._batches():
            size = batch_length(x)
            value, parts = self._product(direction, x, y, sample_weight)
            flat = [np.ravel(part.numpy()).astype("float64") for part in parts]
            product += size * np.concatenate(flat)
            loss += size * float(value)
            samples += size
        if samples == 0:
            raise ValueError("x must hold at least one sample. Received: no samples")
        if not (np.isfinite(loss) and np.isfinite(product).all()):
            raise ValueError(
                "The loss and its second derivatives must be finite on x and y. "
                f"Received: loss {loss / samples} and "
                f"{np.count_nonzero(~np.isfinite(product))} of {self.size} entries "
                "of Hv not finite"
            )
        self.loss, self.samples = loss / samples, samples
        return product / samples

    def eigenvalues(
        self, k=1, tolerance=1e-3, max_iterations=None, seed=0, verbose=0
    ) -> HessianResult:
        """Returns the k largest eigenvalues; see `hessian_eigenvalues`."""
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k must be a positive integer. Received: {k!r}")
        if k > self.size:
            raise ValueError(
                f"k must be at most the number of parameters, {self.size}. "
                f"Received: {k}"
            )
        if not 0 < tolerance < 1:
            raise ValueError(
                f"tolerance must lie between 0 and 1. Received: {tolerance!r}"
            )
        if max_iterations is None:
            max_iterations = max(500, 20 * k)
        elif max_iterations < 1:
            raise ValueError(
                f"max_iterations must be positive. Received: {max_iterations!r}"
            )
        progress = keras.utils.Progbar(None, unit_name="product") if verbose else None
        count, scale = 0, 0.0

        def product(vector):
            nonlocal count, scale
            image = self.matvec(vector)
            count += 1
            scale = max(scale, np.linalg.norm(image) / np.linalg.norm(vector))
            if progress is not None:
                progress.update(count)
            return image

        epsilon = max(
            np.finfo(tf.as_dtype(v.dtype).as_numpy_dtype).eps for v in self.variables
        )
        if self.size <= max(DENSE_LIMIT, k + 1):
            matrix = np.stack([product(unit) for unit in np.eye(self.size)])
            vectors = np.linalg.eigh((matrix + matrix.T) / 2)[1][:, -k:]
        else:
            vectors = _lanczos(
                product, self.size, k, max(tolerance, epsilon), max_iterations, seed
            )
        images = np.stack([product(vector) for vector in vectors.T], axis=1)
        values = np.sum(vectors * images, axis=0)
        residuals = np.linalg.norm(images - values * vectors, axis=0)
        if progress is not None:
            progress.update(count, finalize=True)

        order = np.argsort(-values, kind="stable")
        values, residuals, vectors = values[order], residuals[order], vectors[:, order]
        # An eigenvector's sign is free: fixed, so that results can be compared.
        largest = np.abs(vectors).argmax(axis=0)
        vectors = vectors * np.where(vectors[largest, range(k)] < 0, -1.0, 1.0)
        allowed = np.maximum(tolerance * np.abs(values), 32 * epsilon * scale)
        return HessianResult(
            eigenvalues=values,
            eigenvectors=[self.split(vector) for vector in vectors.T],
            residuals=residuals,
            converged=residuals <= allowed,
            iterations=count,
            variables=tuple(v.path for v in self.variables),
            parameters=self.size,
            loss=self.loss,
            samples=self.samples,
            batch_size=self.batch_size,
            batch_norm=self.batch_norm,
            tolerance=float(tolerance),
            seed=seed,
        )

    def _batch_loss(self, values, x, y, sample_weight):
        model, training = self.model, self.batch_norm == "batch"
        with overriding(model, zip(self.variables, values, strict=True)):
            outputs = model(x, **_training_argument(model.call, training))
            loss = model.compute_loss(
                x=x,
                y=y,
                y_pred=outputs,
                sample_weight=sample_weight,
                **_training_argument(model.compute_loss, training),
            )
        # Keras divides a loss by the replicas of the strategy it is made under.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return loss * replicas if replicas > 1 else loss

    def _batch_product(self, direction, x, y, sample_weight):
        values = [tf.convert_to_tensor(v.value) for v in self.variables]
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(values)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(values)
                loss = self._batch_loss(values, x, y, sample_weight)
            gradients = inner.gradient(loss, values)
            pairs = [
                (tf.convert_to_tensor(gradient), part)
                for gradient, part in zip(gradients, direction, strict=True)
                if gradient is not None
            ]
        if not pairs:
            return loss, [tf.zeros_like(value) for value in values]
        gradients, parts = zip(*pairs, strict=True)
        products = outer.gradient(
            gradients,
            values,
            output_gradients=parts,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return loss, [tf.convert_to_tensor(product) for product in products]


def hessian_eigenvalues(
    model,
    x,
    y=None,
    k=1,
    variables="controls",
    batch_size=256,
    sample_weight=None,
    tolerance=1e-3,
    max_iterations=None,
    seed=0,
    batch_norm="frozen",
    verbose=0,
) -> HessianResult:
    """The largest eigenvalues of the Hessian of a model's loss: its sharpness.

        H v = λ v,    H = ∂²L/∂Θ²,    λ₁ ≥ λ₂ ≥ … ≥ λₖ

    L is the loss that `model.evaluate` reports, regularisers and `add_loss`
    included. The largest are meant algebraically: of −10, 3 and 1 the first is 3,
    where power iteration would find −10. H is never formed: ARPACK's implicitly
    restarted Lanczos iteration asks for products Hv only (up to 32 parameters, all
    columns of H are computed instead). The model is left as it was, down to its
    random seeds.

    Args:
        model: a compiled, built Keras model, wrapped (`SATModel`) or not.
        x: array, tuple, list or dict of arrays, or a finite `tf.data.Dataset` or
            `keras.utils.PyDataset` of batches that gives the same samples on each
            pass.
        y: targets, in the structure that `evaluate` takes; `None` with a data set.
        k: how many eigenvalues.
        variables: `"controls"`, the trainable controls of the physical layers;
            `"all"`, the model's trainable variables; or a predicate on variables,
            which is asked of trainable variables and of imperfections. With several
            units among them (mA, rad), eigenvalues depend on the units.
        batch_size: samples per batch, for memory only unless `batch_norm="batch"`.
            A data set has its own.
        sample_weight: as in `evaluate`; `None` with a data set.
        tolerance: relative accuracy asked of an eigenvalue's residual, ‖Hv − λv‖ ≤
            `tolerance` × |λ|. λ itself is then closer by far.
        max_iterations: about how many products to spend, each a pass over the
            data; by default 500, or 20 `k` if that is more. Whatever has not
            converged by then is returned with its residual, `converged` False.
        seed: integer, seed of the starting vector.
        batch_norm: `"frozen"` differentiates the loss of `evaluate`
            (`training=False`, moving statistics). `"batch"` that of training
            (`training=True`): each batch's own statistics, with dropout and noise
            drawn as the next step would, held fixed; nothing is updated.
        verbose: 1 shows a line that counts products.

    Returns:
        A `HessianResult`.

    Raises:
        ValueError: the model is not compiled or built, an argument is not as
            described, the loss is not finite, or a `HardwareDevice` is installed: a
            measurement has no second derivative.

    With a model that trains on a device (`PATModel`) the eigenvalues are those of its
    digital model.

    Example:

    ```python
    result = pnn.hessian_eigenvalues(model, x_test, y_test, k=2)
    print(result)
    sharpest_direction = result.eigenvectors[0]
    ```

    Reference:

    - [Ghorbani et al., 2019](https://arxiv.org/abs/1901.10159)
    - [Pearlmutter, 1994](https://doi.org/10.1162/neco.1994.6.1.147)
    - Lehoucq, Sorensen and Yang, 1998, ARPACK Users' Guide (SIAM)
    """
    operator = HessianOperator(
        model, x, y, variables, batch_size, sample_weight, batch_norm
    )
    return operator.eigenvalues(k, tolerance, max_iterations, seed, verbose)


def _lanczos(product, size, k, tolerance, max_iterations, seed):
    """Returns (size, k) orthonormal Ritz vectors of the largest eigenvalues."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    basis = min(size, max(2 * k + 1, 20), max(k + 2, max_iterations))
    recent = collections.deque(maxlen=basis + k)

    def recorded(vector):
        vector = np.array(vector).ravel()
        image = product(vector)
        recent.append((vector, image))
        return image

    rng = np.random.default_rng(seed)
    options = {"rng": rng} if "rng" in inspect.signature(eigsh).parameters else {}
    try:
        _, vectors = eigsh(
            LinearOperator((size, size), matvec=recorded, dtype=np.float64),
            k=k,
            which="LA",
            v0=rng.standard_normal(size),
            ncv=basis,
            maxiter=max(1, (max_iterations - k) // (basis - k)),
            tol=tolerance,
            **options,
        )
    except ArpackError as stopped:
        if not recent:
            raise
        # ARPACK gives back converged vectors only, perhaps none. The best in the
        # span of those and of its last products are an answer in any case.
        for vector in getattr(stopped, "eigenvectors", np.empty((size, 0))).T:
            recorded(vector)
        # Where H is zero, ARPACK stops at once.
        while len(recent) < k:
            recorded(rng.standard_normal(size))
        return _ritz_vectors(recent, k)
    return vectors


def _ritz_vectors(pairs, k):
    """Returns the top k Ritz vectors in the span of v, from pairs (v, Hv)."""
    vectors, images = (np.stack(part, axis=1) for part in zip(*pairs, strict=True))
    norms = np.linalg.norm(vectors, axis=0)
    vectors, images = vectors / norms, images / norms
    lengths, mix = np.linalg.eigh(vectors.T @ vectors)
    # Directions that are nearly dependent would amplify rounding.
    kept = max(k, np.count_nonzero(lengths > 1e-6 * lengths[-1]))
    mix = mix[:, -kept:] / np.sqrt(np.maximum(lengths[-kept:], 1e-12 * lengths[-1]))
    matrix = mix.T @ (vectors.T @ images) @ mix
    top = np.linalg.eigh((matrix + matrix.T) / 2)[1][:, -k:]
    return np.linalg.qr(vectors @ (mix @ top))[0]


def _training_argument(function, training):
    if "training" in inspect.signature(function).parameters:
        return {"training": training}
    return {}
