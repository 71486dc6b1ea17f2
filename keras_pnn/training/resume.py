"""Save the state of a training run to one file, and resume it in mid-epoch."""

import dataclasses
import inspect
import pathlib
import warnings
from collections.abc import Iterator

import h5py
import keras
import numpy as np

from keras_pnn import _files, _keras
from keras_pnn.datasets import Batches
from keras_pnn.layers.context import keeping
from keras_pnn.layers.lookup import imperfections_of

_FILE = "state.weights.h5"
# Beside the weights, in the same file.
_POSITION = "keras_pnn_position"


@dataclasses.dataclass(frozen=True)
class Position:
    """Position of a training run: its epoch, from 0, and the batches done in it.

    `metrics` holds the values of the metrics' variables after these batches.
    """

    epoch: int = 0
    batches: int = 0
    metrics: tuple[np.ndarray, ...] = ()


def metrics_of(model: keras.Model) -> tuple[np.ndarray, ...]:
    """Returns the values of the metrics' variables."""
    return tuple(np.array(v) for v in model.metrics_variables)


def save_state(model: keras.Model, folder, position: Position) -> None:
    """Saves weights, optimizer, position and metrics to a folder; creates it if needed.

    If the process is killed while writing, the previous state remains.
    """
    _build_optimizer(model)
    with _files.atomic(pathlib.Path(folder) / _FILE) as part:
        model.save_weights(part, overwrite=True)
        with h5py.File(part, "a") as file:
            group = file.create_group(_POSITION)
            group.attrs.update(epoch=position.epoch, batches=position.batches)
            for index, value in enumerate(position.metrics):
                group[str(index)] = value


def load_state(model: keras.Model, folder) -> Position | None:
    """Loads the state in a folder into a model; returns the position of the run.

    Returns `None` if there is no state. Installed imperfections stay as they are,
    whatever the file holds.
    """
    path = pathlib.Path(folder) / _FILE
    if not path.exists():
        return None
    _build_optimizer(model)
    try:
        with h5py.File(path) as file:
            group = file[_POSITION]
            metrics = tuple(group[str(index)][()] for index in range(len(group)))
            epoch, batches = (int(group.attrs[n]) for n in ("epoch", "batches"))
        with warnings.catch_warnings(), keeping(imperfections_of(model)):
            # Keras skips what does not fit, such as another optimizer's state.
            warnings.filterwarnings("error", message="Skipping")
            model.load_weights(path)
    except Exception as error:
        raise ValueError(
            f"Argument `folder` must hold the state of a run of model '{model.name}'. "
            f"Received: {folder} ({type(error).__name__}: {error})"
        ) from error
    return Position(epoch, batches, metrics)


def remove_state(folder) -> None:
    """Removes the files of `save_state`, and the folder if it is then empty."""
    folder = pathlib.Path(folder)
    # By name, as the folder may hold other files; a killed run leaves a partial file.
    parts = folder.glob(f".state.*.part{_FILE.removeprefix('state')}")
    for path in [folder / _FILE, *parts]:
        path.unlink(missing_ok=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def pass_over(model: keras.Model, iterator: Iterator, batches: int, metrics) -> dict:
    """Skips the batches of an epoch that are already done.

    The iterator may end sooner. The `metrics` of a `Position` are restored and returned
    as logs.
    """
    for _ in range(batches):
        batch = next(iterator, None)
        if batch is not None and not _keras.has_metrics(model):
            # Callbacks need the metrics, which the first step would create.
            _keras.build_metrics(model, batch)
    variables = model.metrics_variables
    # Other metrics may have been compiled since.
    if [v.shape for v in variables] == [value.shape for value in metrics]:
        for variable, value in zip(variables, metrics, strict=True):
            variable.assign(value)
    return model.get_metrics_result()


def check_order(x, shuffle, steps_per_epoch, callbacks: list) -> None:
    """Raises ValueError if a resumed run could not continue exactly."""
    keepers = [i for i, c in enumerate(callbacks) if hasattr(c, "save_state")]
    before = callbacks[: max(keepers, default=0)]
    if any(getattr(callback, "swap_on_epoch", False) for callback in before):
        raise ValueError(
            "A `Checkpoint` keeps the weights of training, and not the averages that "
            "SwapEMAWeights(swap_on_epoch=True) leaves in the model at the end of an "
            "epoch: list the `Checkpoint` first. Received: callbacks="
            f"{[type(c).__name__ for c in callbacks]}"
        )
    if keepers and (shuffle or inspect.isgenerator(x)):
        raise ValueError(
            "A `Checkpoint` goes on in the middle of an epoch, so the order of the "
            "batches must be known: pass a `pnn.datasets.Batches`, or arrays or a data "
            f"set of fixed order with shuffle=False. Received: {type(x).__name__}, "
            f"shuffle={shuffle!r}"
        )
    # `BatchOrder` checks it for a `Batches`.
    if keepers and steps_per_epoch is not None and not isinstance(x, Batches):
        raise ValueError(
            "A `Checkpoint` needs epochs that all begin at the first batch, and with "
            "`steps_per_epoch` one goes on where the last ended: leave it out, and "
            "pass what one epoch has, such as `data.take(n)` of a data set without "
            f"`repeat`. Received: steps_per_epoch={steps_per_epoch}"
        )


def _build_optimizer(model: keras.Model) -> None:
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
