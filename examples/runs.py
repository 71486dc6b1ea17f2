"""Training that can be interrupted, and results kept so that none is repeated."""

import json
import os
import pathlib

import keras_pnn as pnn


def kept(path: pathlib.Path, **setting) -> bool:
    """Whether a run is there already; a run with another setting stops the program."""
    if not path.exists():
        return False
    run = json.loads(path.read_text("utf-8"))
    other = {k: run.get(k) for k, v in setting.items() if run.get(k) != v}
    if other:
        raise SystemExit(
            f"{path} was made with {other}, not with "
            f"{ {k: setting[k] for k in other} }: move it, or choose another --out"
        )
    return True


def keep(path: pathlib.Path, run: dict) -> None:
    """Writes a run whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(run), "utf-8")
    os.replace(part, path)


def unfinished(folder: pathlib.Path, name: str, *setting) -> pathlib.Path:
    """Where a run is kept while it trains: only one of its setting may take it up."""
    return folder / "_".join(["unfinished", name, *map(str, setting)])


def fit(model, batches, epochs: int, first_epoch: int = 0, callbacks=()) -> None:
    model.fit(
        batches,
        initial_epoch=first_epoch,
        epochs=epochs,
        shuffle=False,
        verbose=2,
        callbacks=[pnn.callbacks.BatchOrder(batches), *callbacks],
    )
