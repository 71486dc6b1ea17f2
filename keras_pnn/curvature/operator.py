"""Apply the Hessian of a model's loss to vectors."""

import keras
import numpy as np
import tensorflow as tf
from scipy.sparse.linalg import LinearOperator

from keras_pnn import _checks, _keras
from keras_pnn.curvature.batches import batches, mean
from keras_pnn.curvature.dropped import check_second_derivatives, rounding
from keras_pnn.curvature.eigenvalues import find_eigenvalues
from keras_pnn.curvature.graphs import loss_graphs
from keras_pnn.curvature.spectrum import find_density, find_trace
from keras_pnn.devices.evaluation import check_digital
from keras_pnn.layers.lookup import select_variables


class HessianOperator(LinearOperator):
    """The Hessian H of a compiled model's loss, as a SciPy operator v ↦ Hv.

    The loss is that of `model.evaluate`: the compiled loss with its sample weights,
    regularisers and `add_loss`, averaged over batches by their sizes. A product is
    the derivative of vᵀ∇L (Pearlmutter, 1994), by two passes of reverse mode, and
    costs a few times a gradient. The model is only read: weights, statistics, seeds
    and metrics stay as they are.

    Graphs are kept with the model, follow its weights, and are shared by its operators.
    A new graph is traced if the model was compiled again or quantised, for other
    variables or another `batch_norm`, and for data of another structure, dtype or
    shape; once batch sizes have differed, one graph serves any. A changed Python
    attribute of a layer takes effect after `compile`, as in Keras' own steps.

    The first product of a new graph is compared with gradients, which takes two to four
    products with the first batch, since TensorFlow drops the second derivatives of some
    operations. Layers that are not Keras' own are compared in single precision only.

    Args:
        model: a compiled, built Keras model, wrapped or not.
        x, y, sample_weight, variables, batch_size, batch_norm: as in
            `hessian_eigenvalues`.

    Attributes:
        variables: the variables of H, in the order of a vector's entries.
        size: number of their elements; `shape` is (size, size).
        loss, samples: the loss and the number of samples of the last product.

    Raises:
        ValueError: If the model is not compiled or not built, or an argument is not
            as described. In a product: if the data is empty, the loss or the product
            is not finite, a second derivative is dropped, a device measures the layers,
            a layer reads the `tf.Variable` behind one of `variables` or assigns it, or
            there are several batches and a layer with a state.

    Example:

    ```python
    hessian = pnn.curvature.HessianOperator(model, x, y)
    direction = np.ones(hessian.size)
    curvature = direction @ (hessian @ direction) / hessian.size
    values, vectors = scipy.sparse.linalg.eigsh(hessian, k=3, which="LA")
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
        _checks.compiled("model", model)
        # A wrapper that was never called may hold a model that is built.
        if not (model.built or all(layer.built for layer in _keras.flat_layers(model))):
            raise _checks.error("model", "built: call it on a batch first", model)
        self.model = model
        self.batch_norm = _checks.choice("batch_norm", batch_norm, ("frozen", "batch"))
        self.variables = select_variables(model, variables)
        for variable in self.variables:
            if not tf.as_dtype(variable.dtype).is_floating:
                received = f"{variable.path} of dtype {variable.dtype}"
                raise _checks.error("variables", "real floating-point", received)
        self._sizes = [int(np.prod(v.shape)) for v in self.variables]
        self.size = sum(self._sizes)
        self._batches, self.batch_size = batches(x, y, sample_weight, batch_size)
        self.loss = None
        self.samples = None
        super().__init__("float64", (self.size, self.size))

    @property
    def epsilon(self) -> float:
        """The rounding of the coarsest dtype among the variables."""
        return max(map(rounding, self.variables))

    def made(self) -> dict:
        """Returns the fields of a `LossResult` without the seed, and the loss."""
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

    def loss_at(self, vector) -> float:
        """Returns the loss where the variables are moved by a vector.

        Nothing is assigned to the model. Sets `samples`.

        Args:
            vector: array of length `size`, in the order of `variables`.

        Returns:
            The loss, which may be infinite or NaN.

        Raises:
            ValueError: As in a product, except for a loss that is not finite.
        """
        (loss,), self.samples = self._mean("moved_loss", vector)
        return float(loss)

    eigenvalues = find_eigenvalues
    trace = find_trace
    density = find_density

    def _matvec(self, vector):
        means, samples = self._mean("product", vector, np.zeros(self.size))
        loss, product = float(means[0]), means[1]
        bad = np.count_nonzero(~np.isfinite(product))
        if bad or not np.isfinite(loss):
            raise ValueError(
                "The loss and its second derivatives must be finite on x and y. "
                f"Received: loss {loss} and {bad} of {self.size} entries of Hv not "
                "finite"
            )
        self.loss, self.samples = loss, samples
        return product

    def _adjoint(self):
        return self

    def _mean(self, name, vector, *more):
        """Returns a graph's results, averaged over batches, and the sample count."""
        # A measurement has no second derivative.
        check_digital("A Hessian, and the loss around it, must be computed")
        vector = np.ravel(_checks.array("vector", vector))
        if vector.size != self.size:
            raise _checks.error("vector", f"of length {self.size}", vector.size)
        graphs = loss_graphs(self.model, self.variables, self.batch_norm)
        graph = getattr(graphs, name)
        vectors = list(map(tf.convert_to_tensor, (vector, *more)))

        def step(*batch):
            if name == "product" and not graphs.checked:
                check_second_derivatives(graphs, batch)
                graphs.checked = True
            return graph(*vectors, *batch)[:2]

        return mean(self._batches, step, lambda: graphs.handing)


class CountedProducts:
    """The products of a `HessianOperator`, counted, and the norm of H seen so far."""

    def __init__(self, operator, verbose=0):
        self.count, self.scale = 0, 0.0
        self._matvec = operator.matvec
        shown = 1 if verbose else 0
        self._bar = keras.utils.Progbar(None, verbose=shown, unit_name="product")

    def __call__(self, vector):
        image = self._matvec(vector)
        self.count += 1
        self.scale = max(self.scale, np.linalg.norm(image) / np.linalg.norm(vector))
        self._bar.update(self.count)
        return image

    def finish(self):
        self._bar.update(self.count, finalize=True)
