"""Train on a device in the laboratory, whose Python driver may fail."""

import contextlib
import inspect
from collections.abc import Iterable, Iterator

import keras
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.devices.evaluation import check_nominal
from keras_pnn.devices.simulated import SimulatedDevice
from keras_pnn.hardware.device import DeviceError, raising
from keras_pnn.layers.context import measuring_device
from keras_pnn.layers.quantity import Quantity

_COMPILE = inspect.signature(keras.Model.compile)


def devices_of(trainer) -> list:
    """Returns the devices that a step measures: the trainer's and an installed one."""
    return [d for d in (trainer.device, measuring_device()) if d is not None]


def on_bench(trainer) -> bool:
    """Tells whether a step calls a Python driver, which no compiled graph can hold."""
    return any(hasattr(device, "measure_in_graph") for device in devices_of(trainer))


def check_alone(trainer) -> None:
    """Checks that the model is nominal in all that its simulated device sets."""
    if _keras.is_built(trainer.model) and isinstance(trainer.device, SimulatedDevice):
        check_nominal(q for q, _ in trainer.device.bind(trainer.model))


def check_movable(device, quantities: Iterable[Quantity], what: str) -> None:
    """Raises ValueError if imperfections of a device on the bench would move.

    Weights may move, as they are sent to the bench.
    """
    if not hasattr(device, "measure_in_graph"):
        return
    layers = getattr(device, "layers", None)
    for quantity in quantities:
        on_it = layers is None or quantity.layer.name in layers
        if on_it and quantity.nominal is not None:
            raise ValueError(
                f"{what} cannot move a device on the bench: use a simulated device or "
                "the model, or name layers that are not on the bench, as in "
                f"'<layer>/{quantity.name}'. Received: '{quantity.path}', on "
                f"{type(device).__name__}"
            )


def compile_options(trainer, *args, **kwargs) -> dict:
    """Returns the arguments of `compile` for a device on the bench."""
    options = dict(_COMPILE.bind(trainer, *args, **kwargs).arguments)
    del options["self"]
    replicas = trainer.distribute_strategy.num_replicas_in_sync
    for name, asked in {
        "jit_compile=True": options.get("jit_compile") is True,
        "steps_per_execution > 1": options.get("steps_per_execution", 1) != 1,
        f"{replicas} replicas": replicas > 1,
    }.items():
        if asked:
            raise ValueError(
                "A device on the bench is Python, one measurement at a time: "
                "compile without jit_compile=True, with steps_per_execution=1 "
                f"and on one replica. Received: {name}"
            )
    return {**options, "jit_compile": False}


def measurements(trainer, *evaluations) -> list[tf.Tensor]:
    """Returns the measured tensors that a step waits for before it changes anything.

    Thus a device that fails in any pass leaves the state as it was. The list is empty
    without a device on the bench.
    """
    if not on_bench(trainer):
        return []
    # A gradient may need further measurements.
    gradients = [g for e in evaluations for g in e.gradients if g is not None]
    return [*(e.loss for e in evaluations), *gradients]


def take_averages_out(callbacks: list) -> None:
    """Restores the training weights that `SwapEMAWeights` replaced by averages."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.SwapEMAWeights):
            callback.on_test_end()


@contextlib.contextmanager
def reporting(trainer, callbacks: list) -> Iterator[None]:
    """Adds a note on how to resume to the error of a device on the bench.

    With a `pnn.callbacks.Checkpoint` among the callbacks, the state after the last
    complete step is first saved to its folder.
    """
    if on_bench(trainer) and trainer.steps_per_execution != 1:
        raise ValueError(
            "A device on the bench trains one batch at a time: compile with "
            "steps_per_execution=1. Received: "
            f"steps_per_execution={trainer.steps_per_execution}"
        )
    try:
        with contextlib.ExitStack() as stack:
            for device in devices_of(trainer):
                stack.enter_context(raising(device))
            yield
    except DeviceError as error:
        keeper = next((c for c in callbacks if hasattr(c, "save_state")), None)
        if keeper is not None:
            take_averages_out(callbacks)
            note = keeper.save_state()
        else:
            note = (
                "No state was kept. To make a run resumable, pass "
                "callbacks=[pnn.callbacks.Checkpoint(folder)] to `fit`, and batches in "
                "a known order, such as a `pnn.datasets.Batches`."
            )
        error.add_note(note)
        raise
