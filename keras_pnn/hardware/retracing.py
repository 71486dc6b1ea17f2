"""Models whose compiled steps must call Python for a while."""

import keras

from keras_pnn._keras import models_around as models_around
from keras_pnn._keras import set_aside as set_aside


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
