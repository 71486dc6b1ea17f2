"""Log the loss landscape during training."""

import io
import os
import pathlib

from keras_pnn.callbacks.measuring import MeasuringCallback
from keras_pnn.curvature.eigenvalues import check_search
from keras_pnn.curvature.landscape import check_plan, find_landscape
from keras_pnn.curvature.operator import HessianOperator


class LossLandscape(MeasuringCallback):
    """Measures the loss around the weights at the end of epochs.

    It adds `landscape_rise` to the epoch's logs: by how much the loss at the edge of
    the landscape lies above its centre, on average. It is a number after the first
    epoch, every `every`-th, and the last (or the one at which a callback before this
    one stops training), and NaN between, as with `HessianEigenvalues`. List this
    callback before those that read the key.

    Training is the same, to the bit, with and without it. Graphs are kept with the
    model: they are traced once, see `pnn.curvature.HessianOperator`.

    Args:
        x, y: a probe set, as in `pnn.loss_landscape`.
        every: how many epochs from one landscape to the next.
        directions, extent, points, variables, batch_size, sample_weight, seed,
            batch_norm, dimensions, tolerance, max_iterations, verbose: as in
            `pnn.loss_landscape`. Eigenvectors are those of each epoch; random
            directions keep their draw, and their norms follow the weights.
        folder: where to write `landscape_0001.npz`, with the number of the epoch from
            1, and a picture of the same name where Matplotlib is installed. Default:
            no files.
        log_dir: a folder for TensorBoard, which gets `landscape_rise`, and the picture
            where Matplotlib is installed. Default: none.

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

    keys = ("landscape_rise",)

    def __init__(
        self,
        x,
        y=None,
        every=1,
        directions="eigenvectors",
        extent=1.0,
        points=11,
        variables="controls",
        batch_size=256,
        sample_weight=None,
        seed=0,
        batch_norm="frozen",
        dimensions=2,
        tolerance=1e-2,
        max_iterations=None,
        verbose=0,
        folder: str | os.PathLike | None = None,
        log_dir: str | os.PathLike | None = None,
    ):
        super().__init__(every, log_dir)
        self.folder = None if folder is None else pathlib.Path(folder)
        self._data = x, y, variables, batch_size, sample_weight, batch_norm
        self._plan = {
            "directions": directions,
            "extent": extent,
            "points": points,
            "dimensions": dimensions,
        }
        self._search = {
            "seed": seed,
            "tolerance": tolerance,
            "max_iterations": max_iterations,
        }
        self._verbose = verbose

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def prepare(self):
        check_search(**self._search)
        check_plan(self._operator(), **self._plan)

    def measure(self):
        return find_landscape(
            self._operator(), **self._plan, **self._search, verbose=self._verbose
        )

    def values(self, result):
        return [result.rise]

    def write(self, epoch, result, summaries):
        if self.folder is None and summaries is None:
            return
        picture = _picture(result, epoch)
        if self.folder is not None:
            path = self.folder / f"landscape_{epoch + 1:04d}.npz"
            result.save(path)
            if picture is not None:
                path.with_suffix(".png").write_bytes(picture[0])
        if summaries is not None and picture is not None:
            summaries.image(epoch, "landscape", *picture)

    def _operator(self):
        return HessianOperator(self.model, *self._data)


def _picture(result, epoch):
    """Returns a PNG file's content, its width and height; `None` without Matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(5.0, 4.0), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.subplots()
    kind = "eigenvector" if result.directions == "eigenvectors" else "direction"
    ax.set_xlabel(f"along {kind} 1")
    if result.betas is None:
        ax.plot(result.alphas, result.loss)
        ax.set_ylabel("loss")
    else:
        mesh = ax.pcolormesh(result.alphas, result.betas, result.loss.T)
        figure.colorbar(mesh, label="loss")
        ax.plot(0, 0, "w+")
        ax.set_ylabel(f"along {kind} 2")
    ax.set_title(f"epoch {epoch + 1}")
    content = io.BytesIO()
    canvas.print_png(content)
    return content.getvalue(), *canvas.get_width_height()
