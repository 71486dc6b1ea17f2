"""Validate on the device during `fit`, with the digital model beside it."""

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.layers.context import Overrides, substituting
from keras_pnn.training import bench
from keras_pnn.training.gradients.base import times_samples


@contextlib.contextmanager
def validating(trainer, callbacks: list) -> Iterator[None]:
    """Runs the validation of a `fit` on the device until the block ends.

    Afterwards the training metrics are restored. If the block raises, so are weights
    and optimizer, even if callbacks had replaced them.
    """
    metrics = _values(trainer.metrics_variables)
    handed = _keras.recurrent_states(trainer.model)
    state = _values([*trainer.variables, *trainer.optimizer.variables, *handed])
    trainer.reset_metrics()
    for own, kept in _digital(trainer):
        kept.assign(tf.convert_to_tensor(own))
    trainer.validating = True
    try:
        yield
    except BaseException:
        bench.take_averages_out(callbacks)
        _assign(state)
        raise
    finally:
        trainer.validating = False
        _assign(metrics)


def test_both(trainer, step: Callable[[], dict], batch) -> dict:
    """Tests one batch on the device and on the digital model, in a `validating` block.

    `step` tests a batch and returns its logs. The digital model's logs are returned
    with the device's, as `model_<metric>`.
    """
    pairs = _digital(trainer)
    scope = Overrides(pairs).scope(trainer)
    # The digital model first: it assigns nothing, so both see the same random states.
    with scope, substituting(None):
        digital = {f"model_{name}": value for name, value in step().items()}
    asked: list = []
    with trainer.gradient.measuring(trainer, asked):
        logs = step()
    trainer.count(times_samples(len(asked), batch))
    for own, kept in pairs:
        kept.assign(scope.get_current_value(own))
    if taken := sorted(logs.keys() & digital.keys()):
        raise ValueError(
            "In validation on a device, `model_<metric>` is a metric of the digital "
            "model: give outputs and metrics other names. Received: "
            f"{', '.join(taken)}"
        )
    return {**logs, **digital}


def _digital(trainer) -> list[tuple]:
    """Pairs the variables of metrics and RNN states with the digital model's."""
    handed = _keras.recurrent_states(trainer.model)
    variables, found = [*trainer.metrics_variables, *handed], _keras.kept(trainer)
    if len(found.get("digital", ())) != len(variables):
        with trainer.distribute_strategy.scope():
            found["digital"] = [_like(variable) for variable in variables]
    return list(zip(variables, found["digital"], strict=True))


def _like(variable: keras.Variable) -> keras.Variable:
    return keras.Variable(
        tf.zeros(variable.shape, variable.dtype),
        dtype=variable.dtype,
        trainable=False,
        aggregation=variable.aggregation,
        synchronization=variable.synchronization,
    )


def _values(variables: list) -> list[tuple]:
    return [(variable, tf.convert_to_tensor(variable)) for variable in variables]


def _assign(values: list[tuple]) -> None:
    for variable, value in values:
        variable.assign(value)
