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


