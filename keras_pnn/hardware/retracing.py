"""Models whose compiled steps must call Python for a while."""

import contextlib
import weakref
from collections.abc import Iterator

import keras

_TRACED = ("train_function", "test_function", "predict_function")

# Model → the models around it.
_wrappers: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def add_wrapper(wrapper: keras.Model, model: keras.Model) -> None:
    """Says that a model traces the layers of another one in functions of its own."""
    _wrappers.setdefault(model, weakref.WeakSet()).add(wrapper)


def models_around(model: keras.layers.Layer) -> list[keras.Model]:
    """Returns the models inside a model, itself if it is one, and all their wrappers.

    Args:
        model: a model, or a layer that may contain models.
    """
    inside = [m for m in model._flatten_layers() if isinstance(m, keras.Model)]
    around = [w for m in inside for w in _wrappers.get(m, ()) if not _among(w, inside)]
    return inside + around


def _among(model, models) -> bool:
    return any(model is each for each in models)


@contextlib.contextmanager
def set_aside(model: keras.layers.Layer) -> Iterator[None]:
    """Makes models trace their functions anew inside, and takes the old ones back.

    Args:
        model: a model; those inside it and its wrappers are meant too.
    """
    known = models_around(model)
    before = [
        (each, name, getattr(each, name), getattr(each, "_compile_config", None))
        for each in known
        for name in _TRACED
    ]
    for each, name, *_ in before:
        setattr(each, name, None)
    try:
        yield
    finally:
        for each, name, function, config in before:
            # Functions of a model that was compiled anew are out of date.
            same = getattr(each, "_compile_config", None) is config
            setattr(each, name, function if same else None)
        for new in models_around(model):
            # A wrapper that was made in between has nothing from before.
            if not _among(new, known):
                for name in _TRACED:
                    setattr(new, name, None)


def check_runs_python(model: keras.Model, compiles: bool) -> None:
    """Raises ValueError if a model cannot call Python in its step.

    Args:
        model: any model.
        compiles: whether it may run a step of its own, so that XLA matters.
    """
    if compiles and model.jit_compile:
        raise ValueError(
            "A device on the bench is Python, which XLA cannot compile: "
            f"`compile` model '{model.name}' with jit_compile=False. "
            "Received: jit_compile=True"
        )
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas > 1:
        raise ValueError(
            f"One device serves one replica of model '{model.name}'. "
            f"Received: a strategy with {replicas} replicas"
        )
