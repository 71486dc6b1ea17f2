"""Models whose compiled steps must call Python for a while."""

import contextlib
from collections.abc import Iterator

import keras

_TRACED = ("train_function", "test_function", "predict_function")


@contextlib.contextmanager
def set_aside(models: list[keras.Model]) -> Iterator[None]:
    """Makes models trace their functions anew inside, and takes the old ones back."""
    before = [
        (model, name, getattr(model, name), getattr(model, "_compile_config", None))
        for model in models
        for name in _TRACED
    ]
    for model, name, *_ in before:
        setattr(model, name, None)
    try:
        yield
    finally:
        for model, name, function, config in before:
            # Functions of a model that was compiled anew are out of date.
            same = getattr(model, "_compile_config", None) is config
            setattr(model, name, function if same else None)


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
