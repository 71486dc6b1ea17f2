"""Log the curvature of the loss during training: eigenvalues, landscape."""

import io
import os
import pathlib
from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_pnn import plotting
from keras_pnn.callbacks.measuring import MeasuringCallback
from keras_pnn.curvature.eigenvalues import check_search
from keras_pnn.curvature.landscape import check_plan, find_landscape
from keras_pnn.curvature.operator import HessianOperator


class HessianEigenvalues(MeasuringCallback):
    """Logs the largest eigenvalues of the loss's Hessian at the end of epochs.

    It adds `hessian_eig_1`, …, `hessian_eig_k`, the largest first, to the epoch's
    logs after the first epoch, every `every`-th, and the last (or the one at which a
    callback before this one stops training). In other epochs the values are NaN, so
    that no callback mistakes an old value for a new one. List this callback before
    those that read its keys.

    With a device in the loop, the eigenvalues are those of the digital model. Training
    is bit-identical with and without the callback.

    Args:
        x, y: a probe set, as in `pnn.hessian_eigenvalues`. A few hundred samples are
            usually enough to see a trend.
        every: number of epochs from one measurement to the next.
        k, variables, batch_size, sample_weight, tolerance, max_iterations, seed,
            batch_norm, verbose: as in `pnn.hessian_eigenvalues`.
        smallest: number of smallest eigenvalues to find as well, logged as
            `hessian_smallest_1`, …, ascending.
        log_dir: a folder for TensorBoard logs of the measured epochs, which are written
            without the TensorBoard package. Default: none.

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
        k: int = 1,
        variables: str | Sequence[str] | Callable = "controls",
        every: int = 1,
        batch_size: int = 256,
        sample_weight=None,
        tolerance: float = 1e-2,
        max_iterations: int | None = None,
        seed: int = 0,
        batch_norm: str = "frozen",
        verbose: int = 0,
        smallest: int = 0,
        log_dir: str | os.PathLike | None = None,
    ):
        super().__init__(every, log_dir)
        check_search(k, smallest, tolerance, max_iterations, seed)
        self._data = x, y, variables, batch_size, sample_weight, batch_norm
        self._search = {"k": k, "smallest": smallest, "seed": seed}
        self._search |= {"tolerance": tolerance, "max_iterations": max_iterations}
        self._verbose = verbose

    def prepare(self):
        operator = HessianOperator(self.model, *self._data)
        check_search(**self._search, parameters=operator.size)

    def measure(self):
        operator = HessianOperator(self.model, *self._data)
        return operator.eigenvalues(**self._search, verbose=self._verbose)

    def values(self, result):
        ends = {"eig": result.eigenvalues, "smallest": result.smallest}
        return {
            f"hessian_{end}_{i}": value
            for end, found in ends.items()
            for i, value in enumerate(found.tolist(), start=1)
        }


class LossLandscape(MeasuringCallback):
    """Measures the loss around the weights at the end of epochs.

    It adds `landscape_rise` to the epoch's logs: the mean loss at the edge of the
    landscape minus the loss at its centre. All else is as in `HessianEigenvalues`.

    Args:
        x, y: a probe set, as in `pnn.loss_landscape`.
        every: number of epochs from one landscape to the next.
        directions, extent, points, variables, batch_size, sample_weight, seed,
            batch_norm, dimensions, tolerance, max_iterations, verbose: as in
            `pnn.loss_landscape`. Eigenvectors are found anew in each epoch; random
            directions are the same draw, rescaled to the weights.
        folder: where to write `landscape_0001.npz`, with the number of the epoch from
            1, and a picture of the same name if Matplotlib is installed. Default: no
            files.
        log_dir: a folder for TensorBoard logs of `landscape_rise`, and of the picture
            if Matplotlib is installed. Default: none.

    Attributes:
        epochs: the epochs that were measured in the last `fit`, from 0 as in Keras.
        results: their `Landscape`s.

    Raises:
        ValueError: If `every` is not a positive integer; or, as training begins, if
            an argument does not suit the model.

    Example:

    ```python
    landscape = pnn.callbacks.LossLandscape(x_probe, y_probe, every=10, folder="loss")
    history = model.fit(x, y, epochs=50, callbacks=[landscape])
    history.history["landscape_rise"]
    ```

    Reference:

    - [Li et al., 2018](https://arxiv.org/abs/1712.09913)
    """

    def __init__(
        self,
        x,
        y=None,
        every: int = 1,
        directions: str | list = "eigenvectors",
        extent: float | tuple[float, float] = 1.0,
        points: int | tuple[int, int] = 11,
        variables: str | Sequence[str] | Callable = "controls",
        batch_size: int = 256,
        sample_weight=None,
        seed: int = 0,
        batch_norm: str = "frozen",
        dimensions: int = 2,
        tolerance: float = 1e-2,
        max_iterations: int | None = None,
        verbose: int = 0,
        folder: str | os.PathLike | None = None,
        log_dir: str | os.PathLike | None = None,
    ):
        super().__init__(every, log_dir)
        self.folder = None if folder is None else pathlib.Path(folder)
        self._data = x, y, variables, batch_size, sample_weight, batch_norm
        self._plan = directions, extent, points, dimensions
        self._plan += tolerance, max_iterations, seed
        self._verbose = verbose

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def prepare(self):
        check_plan(HessianOperator(self.model, *self._data), *self._plan)

    def measure(self):
        operator = HessianOperator(self.model, *self._data)
        return find_landscape(operator, *self._plan, verbose=self._verbose)

    def values(self, result):
        return {"landscape_rise": result.rise}

    def write(self, epoch, result, summary):
        if self.folder is None and summary is None:
            return
        picture = _picture(result, epoch)
        if self.folder is not None:
            path = self.folder / f"landscape_{epoch + 1:04d}.npz"
            result.save(path)
            if picture is not None:
                path.with_suffix(".png").write_bytes(picture[-1])
        if summary is not None and picture is not None:
            summary(epoch, "landscape", tf.constant(picture), "images")


def _picture(result, epoch):
    """Returns a PNG's width, height and content in bytes; `None` without Matplotlib."""
    kind = "eigenvector" if result.directions == "eigenvectors" else "direction"
    first, second = f"along {kind} 1", f"along {kind} 2"
    try:
        ax = plotting.new_figure(5.0, 4.0).subplots()
    except ImportError:
        return None
    if result.betas is None:
        ax.plot(result.alphas, result.loss)
        ax.set(xlabel=first, ylabel="loss")
    else:
        axes, loss = (result.alphas, result.betas), result.loss.T
        plotting.heat_map(*axes, loss, first, second, "loss", ax=ax)
        ax.plot(0, 0, "w+")
    ax.set_title(f"epoch {epoch + 1}")
    content = io.BytesIO()
    plotting.save(ax, content)
    size = [str(n).encode() for n in ax.figure.canvas.get_width_height()]
    return [*size, content.getvalue()]
