"""Log the Hessian's extreme eigenvalues during training."""

from keras_pnn.callbacks.measuring import MeasuringCallback
from keras_pnn.curvature.eigenvalues import check_search
from keras_pnn.curvature.operator import HessianOperator


class HessianEigenvalues(MeasuringCallback):
    """Logs the largest eigenvalues of the loss's Hessian at the end of epochs.

    It adds `hessian_eig_1`, …, `hessian_eig_k`, the largest first, to the epoch's
    logs after the first epoch, every `every`-th, and the last (or the one at which a
    callback before this one stops training). Between those the values are NaN:
    `History` then has one value per epoch, `CSVLogger`, which fixes its columns at
    the first epoch, has the columns, and no callback mistakes an old value for a new
    one. Since the first epoch is measured, callbacks that compare with the best so
    far start from a number. List this callback before those that read its keys.

    Training is the same, to the bit, with and without it. The graph of the
    Hessian-vector product is kept with the model: it is traced once, see
    `pnn.curvature.HessianOperator`.

    Args:
        x, y: a probe set, as in `pnn.hessian_eigenvalues`. A few hundred samples are
            usually enough to see a trend.
        k: how many eigenvalues.
        variables: `"controls"`, `"all"` or a predicate on variables.
        every: how many epochs from one measurement to the next.
        batch_size, sample_weight, tolerance, max_iterations, seed, batch_norm,
            verbose: as in `pnn.hessian_eigenvalues`.
        smallest: how many of the smallest eigenvalues to find as well, logged as
            `hessian_smallest_1`, …, ascending.
        log_dir: a folder for TensorBoard, which gets the epochs that were measured.
            TensorBoard itself is not needed to write. Default: none.

    Attributes:
        epochs: the epochs that were measured in the last `fit`, from 0 as in Keras.
        results: their `HessianResult`s, with residuals and eigenvectors.

    Raises:
        ValueError: If a number is not as described; or, as training begins, if an
            argument does not suit the model.

    Example:

    ```python
    hessian = pnn.callbacks.HessianEigenvalues(x_probe, y_probe, k=2, every=5)
    history = model.fit(x, y, epochs=50, callbacks=[hessian])
    history.history["hessian_eig_1"]
    ```

    Reference:

    - [Ghorbani et al., 2019](https://arxiv.org/abs/1901.10159)
    """

    def __init__(
        self,
        x,
        y=None,
        k=1,
        variables="controls",
        every=1,
        batch_size=256,
        sample_weight=None,
        tolerance=1e-2,
        max_iterations=None,
        seed=0,
        batch_norm="frozen",
        verbose=0,
        smallest=0,
        log_dir=None,
    ):
        super().__init__(every, log_dir)
        check_search(k, smallest, tolerance, max_iterations, seed)
        self.keys = (
            *(f"hessian_eig_{i + 1}" for i in range(k)),
            *(f"hessian_smallest_{i + 1}" for i in range(smallest)),
        )
        self._data = x, y, variables, batch_size, sample_weight, batch_norm
        self._search = {
            "k": k,
            "smallest": smallest,
            "tolerance": tolerance,
            "max_iterations": max_iterations,
            "seed": seed,
        }
        self._verbose = verbose

    def prepare(self):
        check_search(**self._search, parameters=self._operator().size)

    def measure(self):
        return self._operator().eigenvalues(**self._search, verbose=self._verbose)

    def values(self, result):
        return [*result.eigenvalues.tolist(), *result.smallest.tolist()]

    def _operator(self):
        return HessianOperator(self.model, *self._data)
