"""The Hessian of a model's loss, as an operator on vectors."""

import inspect

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.curvature.batches import batch_length, batches
from keras_pnn.curvature.eigenvalues import HessianResult, find_eigenvalues
from keras_pnn.curvature.moments import twice_differentiable
from keras_pnn.curvature.spectrum import (
    DensityResult,
    TraceResult,
    find_density,
    find_trace,
)
from keras_pnn.layers.context import Overrides, current
from keras_pnn.layers.lookup import select_variables


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
    hessian = pnn.curvature.HessianOperator(model, x, y)
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
        if not (model.built or all(layer.built for layer in _keras.flat_layers(model))):
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
        self._moved_loss = tf.function(
            self._batch_moved_loss, autograph=False, reduce_retracing=True
        )

    @property
    def epsilon(self) -> float:
        """The rounding of the coarsest dtype among the variables."""
        types = [tf.as_dtype(v.dtype).as_numpy_dtype for v in self.variables]
        return float(max(np.finfo(dtype).eps for dtype in types))

    def made(self) -> dict:
        """Returns what a result says of the loss that it is about."""
        return {
            "variables": tuple(v.path for v in self.variables),
            "parameters": self.size,
            "loss": self.loss,
            "samples": self.samples,
            "batch_size": self.batch_size,
            "batch_norm": self.batch_norm,
        }

    def split(self, vector) -> list[np.ndarray]:
        """Cuts a vector of length `size` into arrays of the variables' shapes."""
        parts = np.split(np.asarray(vector), np.cumsum(self._sizes)[:-1])
        pairs = zip(parts, self.variables, strict=True)
        return [part.reshape(tuple(v.shape)) for part, v in pairs]

    def join(self, parts) -> np.ndarray:
        """Returns arrays of the variables' shapes as one float64 vector."""
        return np.concatenate([np.ravel(part).astype("float64") for part in parts])

    def products(self, verbose=0) -> "CountedProducts":
        """Returns `matvec` with a count, and a line of progress with `verbose` 1."""
        return CountedProducts(self, verbose)

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
        loss, product, samples = self._mean(self._product, vector)
        if not (np.isfinite(loss) and np.isfinite(product).all()):
            raise ValueError(
                "The loss and its second derivatives must be finite on x and y. "
                f"Received: loss {loss} and "
                f"{np.count_nonzero(~np.isfinite(product))} of {self.size} entries "
                "of Hv not finite"
            )
        self.loss, self.samples = loss, samples
        return product

    def loss_at(self, vector) -> float:
        """Returns the loss where the variables are moved by a vector.

        Nothing is assigned. Sets `samples` on the way.

        Args:
            vector: array of length `size`, in the order of `variables`.

        Returns:
            The loss, which may be infinite or NaN.

        Raises:
            ValueError: the vector's length is another, the data is empty, or a
                device gives the outputs of the layers.
        """
        loss, _, self.samples = self._mean(self._moved_loss, vector)
        return loss

    def eigenvalues(
        self,
        k=1,
        tolerance=1e-3,
        max_iterations=None,
        seed=0,
        verbose=0,
        smallest=0,
    ) -> HessianResult:
        """Returns the extreme eigenvalues; see `hessian_eigenvalues`."""
        return find_eigenvalues(
            self, k, tolerance, max_iterations, seed, verbose, smallest
        )

    def trace(self, vectors=100, seed=0, verbose=0) -> TraceResult:
        """Returns the trace with its standard error; see `hessian_trace`."""
        return find_trace(self, vectors, seed, verbose)

    def density(
        self, steps=64, vectors=4, broadening=None, seed=0, verbose=0
    ) -> DensityResult:
        """Returns the density of the eigenvalues; see `hessian_density`."""
        return find_density(self, steps, vectors, broadening, seed, verbose)

    def _mean(self, function, vector):
        """Returns loss, array and samples: a function's mean over the batches."""
        # The graph would keep a device that is installed when it is built.
        if current().substitute is not None:
            raise ValueError(
                "A Hessian is that of a digital model, since a measurement has no "
                "second derivative: compute it, and the loss around it, outside "
                "`device.installed(model)`. Received: layers that a device measures"
            )
        vector = np.ravel(np.asarray(vector, "float64"))
        if vector.size != self.size:
            raise ValueError(
                f"vector must have length {self.size}. Received: {vector.size}"
            )
        direction = tf.convert_to_tensor(vector)
        loss, total, samples = 0.0, 0.0, 0
        for x, y, sample_weight in self._batches():
            size = batch_length(x)
            value, array = function(direction, x, y, sample_weight)
            loss += size * float(value)
            total += size * array.numpy()
            samples += size
        if samples == 0:
            raise ValueError("x must hold at least one sample. Received: no samples")
        return loss / samples, total / samples, samples

    def _parts(self, vector):
        pairs = zip(tf.split(vector, self._sizes), self.variables, strict=True)
        return [tf.cast(tf.reshape(part, v.shape), v.dtype) for part, v in pairs]

    def _batch_moved_loss(self, vector, x, y, sample_weight):
        pairs = zip(self.variables, self._parts(vector), strict=True)
        values = [tf.convert_to_tensor(v.value) + part for v, part in pairs]
        return self._batch_loss(values, x, y, sample_weight), tf.zeros(())

    def _batch_loss(self, values, x, y, sample_weight):
        model, training = self.model, self.batch_norm == "batch"
        values = zip(self.variables, values, strict=True)
        with Overrides(values).scope(model), twice_differentiable():
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

    def _batch_product(self, vector, x, y, sample_weight):
        direction = self._parts(vector)
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
            return loss, tf.zeros_like(vector)
        gradients, parts = zip(*pairs, strict=True)
        products = outer.gradient(
            gradients,
            values,
            output_gradients=parts,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        flat = [tf.reshape(product, [-1]) for product in products]
        return loss, tf.concat([tf.cast(part, vector.dtype) for part in flat], 0)


class CountedProducts:
    """`HessianOperator.matvec` with a count and the norm of H seen so far.

    Args:
        operator: a `HessianOperator`.
        verbose: 1 shows a line that counts products.
    """

    def __init__(self, operator, verbose=0):
        self.count = 0
        self.scale = 0.0
        self._matvec = operator.matvec
        self._progress = (
            keras.utils.Progbar(None, unit_name="product") if verbose else None
        )

    def __call__(self, vector):
        image = self._matvec(vector)
        self.count += 1
        self.scale = max(self.scale, np.linalg.norm(image) / np.linalg.norm(vector))
        if self._progress is not None:
            self._progress.update(self.count)
        return image

    def finish(self):
        if self._progress is not None:
            self._progress.update(self.count, finalize=True)


def _training_argument(function, training):
    if "training" in inspect.signature(function).parameters:
        return {"training": training}
    return {}
