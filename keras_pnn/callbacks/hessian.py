"""The Hessian's largest eigenvalues during training."""

import keras

from keras_pnn.callbacks.tensorboard import Summaries
from keras_pnn.curvature.eigenvalues import (
    check_counts,
    check_effort,
    check_seed,
    check_wanted,
    whole,
)
from keras_pnn.curvature.hessian import HessianOperator


class HessianEigenvalues(keras.callbacks.Callback):
    """Logs the largest eigenvalues of the loss's Hessian at the end of epochs.

    It adds `hessian_eig_1`, …, `hessian_eig_k`, the largest first, to the epoch's
    logs after the first epoch, every `every`-th, and the last (or the one at which a
    callback before this one stops training). Between those the values are NaN:
    `History` then has one value per epoch, `CSVLogger`, which fixes its columns at
    the first epoch, has the columns, and no callback mistakes an old value for a new
    one. Since the first epoch is measured, callbacks that compare with the best so
    far start from a number. List this callback before those that read its keys.

    Training is the same, to the bit, with and without it. The graph of the
    Hessian-vector product is built once per `fit`.

    Args:
        x, y: a probe set, as in `pnn.hessian_eigenvalues`. A few hundred samples are
            usually enough to see a trend.
        k: how many eigenvalues.
        variables: `"controls"`, `"all"` or a predicate on variables.
        every: how many epochs from one measurement to the next.
        batch_size, sample_weight, tolerance, max_iterations, seed, batch_norm,
            verbose: as in `pnn.hessian_eigenvalues`.
        smallest: how many of the smallest eigenvalues besides, logged as
            `hessian_smallest_1`, …, ascending.
        log_dir: a folder for TensorBoard, which gets the epochs that were measured.
            TensorBoard itself is not needed to write. Default: none.

    Attributes:
        epochs: the epochs that were measured in the last `fit`, from 0 as in Keras.
        results: their `HessianResult`s, with residuals and eigenvectors.

    Raises:
        ValueError: a number is not as described; or, as training begins, an
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
        super().__init__()
        if not whole(every) or every < 1:
            raise ValueError(f"every must be a positive integer. Received: {every!r}")
        check_wanted(k, smallest)
        check_effort(tolerance, max_iterations)
        check_seed(seed)
        self.k = k
        self.smallest = smallest
        self.log_dir = log_dir
        self.every = every
        self.epochs = []
        self.results = []
        self._operator = None
        self._data = {
            "x": x,
            "y": y,
            "variables": variables,
            "batch_size": batch_size,
            "sample_weight": sample_weight,
            "batch_norm": batch_norm,
        }
        self._search = {
            "k": k,
            "tolerance": tolerance,
            "max_iterations": max_iterations,
            "seed": seed,
            "verbose": verbose,
            "smallest": smallest,
        }

    def on_train_begin(self, logs=None):
        self.epochs, self.results = [], []
        self._operator = None
        if self.model.built:
            self._build()

    def on_epoch_end(self, epoch, logs=None):
        values = [float("nan")] * (self.k + self.smallest)
        if self._due(epoch):
            if self._operator is None:
                self._build()
            result = self._operator.eigenvalues(**self._search)
            self.epochs.append(epoch)
            self.results.append(result)
            values = [*result.eigenvalues.tolist(), *result.smallest.tolist()]
        named = dict(zip(self._keys(), values, strict=True))
        if logs is not None:
            logs.update(named)
        if self.log_dir is not None and self.epochs[-1] == epoch:
            with Summaries(self.log_dir) as summaries:
                summaries.scalars(epoch, named)

    def _keys(self):
        return [f"hessian_eig_{i + 1}" for i in range(self.k)] + [
            f"hessian_smallest_{i + 1}" for i in range(self.smallest)
        ]

    def _due(self, epoch):
        last = epoch + 1 == self.params.get("epochs") or self.model.stop_training
        return not self.epochs or (epoch + 1) % self.every == 0 or last

    def _build(self):
        self._operator = HessianOperator(self.model, **self._data)
        check_counts(self._operator, self.k, self.smallest)
