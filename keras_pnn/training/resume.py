"""The state of an interrupted training run: written whole, and taken up mid-epoch."""

import json
import os
import pathlib
import warnings

import keras
import numpy as np

from keras_pnn.layers.physical import physical_layers

_POINTER = "latest.json"
_PART = "part.weights.h5"


class Position(keras.callbacks.Callback):
    """How far `fit` has come: the epoch, and how many of its batches are done."""

    def __init__(self):
        super().__init__()
        self.epoch = 0
        self.batches = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.batches = epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches = batch + 1


def save_state(model: keras.Model, folder, epoch: int, batches: int) -> pathlib.Path:
    """Writes weights, optimizer and position to a folder.

    A run that is killed while it writes leaves the state from before.

    Args:
        model: a compiled model.
        folder: where to; it is made if it is not there.
        epoch: the epoch in which training goes on.
        batches: how many of that epoch's batches are done.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _build_optimizer(model)
    name = f"state_{epoch}_{batches}.weights.h5"
    part = folder / _PART
    model.save_weights(part, overwrite=True)
    os.replace(part, folder / name)
    pointer = folder / f"{_POINTER}.part"
    content = {"weights": name, "epoch": int(epoch), "batches": int(batches)}
    pointer.write_text(json.dumps(content), "utf-8")
    os.replace(pointer, folder / _POINTER)
    for old in folder.glob("state_*.weights.h5"):
        if old.name != name:
            old.unlink()
    return folder


def load_state(model: keras.Model, folder) -> tuple[int, int] | None:
    """Gives a model the state in a folder.

    Imperfections that are installed stay as they are: a state is that of training.

    Args:
        model: a model, compiled as the one that was saved.
        folder: as in `save_state`.

    Returns:
        (epoch, batches of it that are done), or `None` where there is no state.

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
    except Exception as error:
        raise ValueError(
            f"`folder` must hold the state of a run of model '{model.name}'. Received: "
            f"{folder} ({type(error).__name__}: {error})"
        ) from error
    finally:
        for variable, value in installed:
            variable.assign(value)
    return position


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
        return self.model.get_metrics_result()


def _has_metrics(model: keras.Model) -> bool:
    """Whether the metrics of `compile` have their variables, so that they have values.

    Those of a model that trains on several replicas have: `fit` makes them first.
    """
    parts = model._compile_loss, model._compile_metrics
    return all(part is None or part.built for part in parts)
