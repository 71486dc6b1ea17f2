"""The state of an interrupted training run: written whole, and taken up mid-epoch."""

import json
import os
import pathlib
import warnings

import keras
import numpy as np

from keras_pnn.layers.lookup import physical_layers

_POINTER = "latest.json"
_PART = "part.weights.h5"


class Position(keras.callbacks.Callback):
    """How far `fit` has come: the epoch, and how many of its batches are done."""

    def __init__(self):
        super().__init__()
        self.epoch = 0
        self.batches = 0
        # Those of training, while validation uses the metrics; else `None`.
        self.metrics: list | None = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.batches = epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches, self.metrics = batches_done(self, batch), None

    def on_test_begin(self, logs=None):
        self.metrics = metrics_of(self.model)


def batches_done(callback: keras.callbacks.Callback, batch: int) -> int:
    """How many batches of an epoch are done when `batch` has ended.

    Keras counts an execution of several steps in full, also where the epoch's last
    one has fewer.
    """
    steps = (callback.params or {}).get("steps")
    return batch + 1 if steps is None else min(batch + 1, steps)


def metrics_of(model: keras.Model) -> list:
    """The values of the metrics' variables."""
    return [np.array(v) for v in model.metrics_variables]


def save_state(
    model: keras.Model, folder, epoch: int, batches: int, metrics: list | None = None
) -> pathlib.Path:
    """Writes weights, optimizer, position and metrics to a folder.

    A run that is killed while it writes leaves the state from before.

    Args:
        model: a compiled model.
        folder: where to; it is made if it is not there.
        epoch: the epoch in which training goes on.
        batches: how many of that epoch's batches are done.
        metrics: what `metrics_of` gave after them. Default: the present ones.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _build_optimizer(model)
    name = f"state_{epoch}_{batches}.weights.h5"
    part = folder / _PART
    model.save_weights(part, overwrite=True)
    os.replace(part, folder / name)
    pointer = folder / f"{_POINTER}.part"
    content = {
        "weights": name,
        "epoch": int(epoch),
        "batches": int(batches),
        "metrics": [],
    }
    for value in metrics_of(model) if metrics is None else metrics:
        # JSON has no complex numbers: real and imaginary parts side by side.
        parts = np.stack([np.real(value), np.imag(value)], axis=-1)
        content["metrics"].append(parts.astype("float64").tolist())
    pointer.write_text(json.dumps(content), "utf-8")
    os.replace(pointer, folder / _POINTER)
    for old in folder.glob("state_*.weights.h5"):
        if old.name != name:
            old.unlink()
    return folder


def load_state(model: keras.Model, folder) -> tuple[int, int, list] | None:
    """Gives a model the state in a folder.

    Imperfections that are installed stay as they are: a state is that of training.

    Args:
        model: a model, compiled as the one that was saved.
        folder: as in `save_state`.

    Returns:
        (epoch, batches of it that are done, metrics after them), or `None` where
        there is no state.

    Raises:
        ValueError: the state is not one, is cut short, or is of another model.
    """
    folder = pathlib.Path(folder)
    if not (folder / _POINTER).exists():
        return None
    _build_optimizer(model)
    installed = [
        (v, np.array(v)) for la in physical_layers(model) for v in _imperfect(la)
    ]
    try:
        content = json.loads((folder / _POINTER).read_text("utf-8"))
        with warnings.catch_warnings():
            # Keras passes over what does not fit, such as another optimizer's state.
            warnings.filterwarnings("error", message="Skipping")
            model.load_weights(folder / content["weights"])
        position = int(content["epoch"]), int(content["batches"])
        metrics = [_joined(parts) for parts in content.get("metrics", [])]
    except Exception as error:
        raise ValueError(
            f"`folder` must hold the state of a run of model '{model.name}'. Received: "
            f"{folder} ({type(error).__name__}: {error})"
        ) from error
    finally:
        for variable, value in installed:
            variable.assign(value)
    return *position, metrics


def _joined(parts: list) -> np.ndarray:
    real, imaginary = np.moveaxis(np.asarray(parts, "float64"), -1, 0)
    return real + 1j * imaginary


def remove_state(folder) -> None:
    """Removes what `save_state` wrote, and the folder if it is empty then."""
    folder = pathlib.Path(folder)
    # By name: the folder may hold files of the user's.
    names = (_POINTER, f"{_POINTER}.part", _PART)
    for path in [*folder.glob("state_*.weights.h5"), *(folder / n for n in names)]:
        path.unlink(missing_ok=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def _build_optimizer(model: keras.Model) -> None:
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)


def _imperfect(layer) -> list[keras.Variable]:
    return list(layer.imperfections.values())


class Skipping:
    """A train function that passes over batches that are done already.

    Args:
        model: the model that trains.
        function: what Keras calls with an iterator over the batches.
    """

    def __init__(self, model: keras.Model, function):
        self.model = model
        self.function = function
        self.left = 0
        # What the batches that are passed over had given.
        self.metrics: list = []

    def __call__(self, iterator):
        if self.left <= 0:
            return self.function(iterator)
        self.left -= self.model.steps_per_execution
        for _ in range(self.model.steps_per_execution):
            # The last execution of an epoch may have fewer batches.
            batch = next(iterator, None)
            if batch is not None and not _has_metrics(self.model):
                # Callbacks are told the metrics, which the first step would make.
                self.model._symbolic_build(data_batch=batch)
        self._take_up_metrics()
        return self.model.get_metrics_result()

    def _take_up_metrics(self) -> None:
        variables = self.model.metrics_variables
        values, self.metrics = self.metrics, []
        # Other metrics may have been compiled since.
        if [v.shape for v in values] == [tuple(v.shape) for v in variables]:
            for variable, value in zip(variables, values, strict=True):
                if not variable.dtype.startswith("complex"):
                    value = value.real
                variable.assign(value.astype(variable.dtype))


def _has_metrics(model: keras.Model) -> bool:
    """Whether the metrics of `compile` have their variables, so that they have values.

    Those of a model that trains on several replicas have: `fit` makes them first.
    """
    parts = model._compile_loss, model._compile_metrics
    return all(part is None or part.built for part in parts)
