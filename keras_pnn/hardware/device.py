"""Run physical layers on a device in the laboratory."""

import contextlib
import functools
import os
import types
import weakref
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn._display import Brief
from keras_pnn._files import storable
from keras_pnn._keras import models_around, set_aside
from keras_pnn.hardware.acquisition import Acquisition, DeviceError
from keras_pnn.layers.context import measured_by, measuring_block, substituting
from keras_pnn.layers.lookup import physical_layers


class HardwareDevice(Brief):
    """Base of devices on the bench: NumPy in, NumPy out.

    A subclass overrides `measure`, and optionally `configure` and `recover`. This
    class splits batches, checks and averages readings, limits times, retries failed
    calls, counts and logs. In training and evaluation, the layers' outputs come from
    the device, and their gradients from the model.

    The three methods are called in one thread, which is not the one that made the
    object. After a time-out they are called in a new thread, while the old call may
    still hang. They may modify their arguments' arrays, which are copies. A keyboard
    interrupt passes through; in `fit` and `evaluate` it waits for the end of the step.

    Args:
        layers: names of the physical layers that are on the device, `None` for all.
            The model computes the others.
        max_batch: samples in one call of `measure`, `None` for whole batches.
        repeats: readings that are averaged, in double precision.
        settle: seconds to wait after `configure`.
        timeout: seconds for each call of these methods, `None` for no limit.
        retries: how many times a failed call (an exception, a time-out, NaN or
            infinity) is retried. A wrong shape or type raises an error at once.
        backoff: seconds before the first retry; doubles each time, up to a minute.
        log: path of an SQLite file to which each measurement is appended, `None` for
            none. `pnn.RecordedDevice` replays it. Each record is written to disk before
            `acquire` returns, which takes some 10 ms; a crash loses at most the record
            being written. Several processes may append to one log.

    Raises:
        ValueError: If an argument is out of range, or `log` is not a log or is damaged.

    Example:

    ```python
    class Bench(pnn.HardwareDevice):
        def __init__(self, chip, **kwargs):
            super().__init__(**kwargs)
            self.chip = chip

        def configure(self, layer, controls):
            self.chip.set_currents(layer.name, controls["control"])

        def measure(self, layer, inputs, controls):
            return self.chip.read(layer.name, inputs)

    bench = Bench(chip, max_batch=100, settle=0.01, log="bench.log")
    with bench.installed(model):
        model.evaluate(x_test, y_test)
    ```
    """

    # Lets a subclass without `super().__init__()` reach the error that explains it.
    layers: tuple[str, ...] | None = None

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        max_batch: int | None = None,
        repeats: int = 1,
        settle: float = 0.0,
        timeout: float | None = 60.0,
        retries: int = 3,
        backoff: float = 0.5,
        log: str | os.PathLike | None = None,
    ):
        self.layers = _layer_names(layers)
        self.max_batch = _checks.optional(
            _checks.integer, "max_batch", max_batch, low=1
        )
        self.repeats = _checks.integer("repeats", repeats, low=1)
        self.settle = _checks.real("settle", settle, low=0)
        self.timeout = _checks.optional(_checks.real, "timeout", timeout, above=0)
        self.retries = _checks.integer("retries", retries, low=0)
        self.backoff = _checks.real("backoff", backoff, low=0)
        self.log = log
        self.calls = self.failures = 0
        self.failure: DeviceError | None = None
        self._acquisition = Acquisition(self, log)

    @functools.cached_property
    def _acquisition(self) -> Acquisition:
        # Reached only if `__init__` has not set the attribute.
        raise RuntimeError(
            f"`{type(self).__name__}.__init__` must call `super().__init__()`. "
            "Received: a device without it"
        )

    def measure(self, layer, inputs: np.ndarray, controls: dict) -> np.ndarray:
        """Measures one layer; a subclass must override it.

        Args:
            layer: the `PhysicalLayer`, identified by `layer.name`.
            inputs: up to `max_batch` samples, (batch, ...).
            controls: name → array, in the units of the layer's controls.

        Returns:
            An array of the layer's output shape; complex if the layer's outputs are,
            else real floating-point numbers of any precision.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must override `measure(layer, inputs, controls)`."
        )

    def configure(self, layer, controls: dict) -> None:
        """Sets the controls of one layer; called when they differ from the last ones.

        A wait of `settle` seconds follows. It is called again after `recover`. Controls
        of one layer must stay while those of another are set: if layers share channels,
        set the controls in `measure`, which also receives them.
        """

    def recover(self) -> None:
        """Brings the device back to a known state; called before a call is retried.

        It is also called before the first call after an interrupt, and after a time-out
        that ended a measurement.
        """

    def acquire(self, layer, inputs, controls: dict, shape=None, dtype=None):
        """Measures a batch: splits, configures, checks, retries, averages, logs.

        Args:
            layer: a `PhysicalLayer`.
            inputs: its inputs, (batch, ...).
            controls: name → array, one for each of the layer's controls.
            shape, dtype: of the layer's outputs. Default: those of the model.

        Returns:
            The outputs, an array of that shape and dtype.

        Raises:
            DeviceError: If the measurement fails despite retries, or cannot be retried.
                `failure` holds the error, too.
            ValueError: If the batch is empty, or `inputs` or `controls` are not finite.
            OSError: If the log cannot be written.
        """
        acquisition = self._acquisition
        inputs = _sendable("inputs", inputs, layer)
        if inputs.ndim == 0 or not len(inputs):
            raise _checks.error(
                "inputs", "at least one sample", f"shape {inputs.shape}"
            )
        controls = {
            n: _sendable(f"controls[{n!r}]", v, layer) for n, v in controls.items()
        }
        if shape is None or dtype is None:
            with substituting(None):
                spec = layer.compute_output_spec(
                    keras.KerasTensor(inputs.shape, inputs.dtype.name)
                )
            shape = spec.shape if shape is None else shape
            dtype = spec.dtype if dtype is None else dtype
        shape, dtype = tuple(int(n) for n in shape), tf.as_dtype(dtype).as_numpy_dtype
        return acquisition.run(layer, inputs, controls, shape, np.dtype(dtype))

    def measure_in_graph(self, layer, inputs, controls: dict, modelled):
        """Measures a batch like `acquire`, within a `tf.function`.

        Returns a tensor of the shape and dtype of the model's outputs, `modelled`, or
        `None` if the layer is not on the device.
        """
        if self.layers is not None and layer.name not in self.layers:
            return None
        names, dtype = list(controls), modelled.dtype
        # TensorFlow keeps the function until the process ends, so it must not hold the
        # device, or the layer with its model.
        device_of, layer_of = weakref.ref(self), weakref.ref(layer)
        block = measuring_block()

        def measured(inputs, shape, *values):
            device, layer = device_of(), layer_of()
            if device is None or layer is None:
                raise ReferenceError(
                    "A graph that measures needs its device and its layer: keep them. "
                    "Received: one that is gone"
                )
            if block is not None and block.ended:
                raise RuntimeError(
                    "A function that was traced inside `device.installed(model)` "
                    "measures in this block alone: trace it anew outside. Received: "
                    f"a call for layer '{layer.name}' after the block"
                )
            arrays = dict(zip(names, values, strict=True))
            try:
                return device.acquire(layer, inputs, arrays, shape, dtype)
            except BaseException as error:
                device._acquisition.raised = error
                raise

        outputs = tf.numpy_function(
            measured, [inputs, tf.shape(modelled), *(controls[n] for n in names)], dtype
        )
        outputs.set_shape(modelled.shape)
        return outputs

    def attach(self, model: keras.layers.Layer) -> "HardwareDevice":
        """Checks that the device's layers are physical layers of a model.

        Training, `installed` and `pnn.calibrate` call it.

        Raises:
            ValueError: If one is not, or the model has no physical layers.
        """
        names = [layer.name for layer in physical_layers(model)]
        unknown = sorted(set(self.layers or ()) - set(names))
        if unknown or not names:
            raise ValueError(
                f"The device's layers must be physical layers of model '{model.name}': "
                f"{', '.join(names) or 'it has none'}. "
                f"Received: {', '.join(unknown) or 'every physical layer'}"
            )
        return self

    @contextlib.contextmanager
    def installed(self, model: keras.layers.Layer) -> Iterator["HardwareDevice"]:
        """Runs the physical layers of a model on the device until the block ends.

        Applies to calls, `evaluate`, `predict` and training of the model, of models
        inside it, and of a `SATModel`, `PATModel` or `DATModel` around one of them.
        Their compiled functions are restored when the block ends. Any other function
        traced inside the block raises an error afterwards, since it cannot measure.
        Call `export` outside: inside, it would export the measurement.

        Raises:
            ValueError: If the model has no such layers, is compiled with
                `jit_compile=True`, or runs on several replicas.
            DeviceError: If a measurement fails despite retries, or cannot be retried.
                The block raises it; inside, compiled steps raise an error of
                TensorFlow, and `failure` is set.
        """
        self.attach(model)
        for each in models_around(model):
            # An inner model that is not compiled runs no steps of its own.
            if (each is model or each.compiled) and each.jit_compile:
                raise ValueError(
                    "A device on the bench is Python, which XLA cannot compile: "
                    f"`compile` model '{each.name}' with jit_compile=False. "
                    "Received: jit_compile=True"
                )
            replicas = each.distribute_strategy.num_replicas_in_sync
            if replicas > 1:
                raise ValueError(
                    f"One device serves one replica of model '{each.name}'. "
                    f"Received: a strategy with {replicas} replicas"
                )
        block = types.SimpleNamespace(ended=False)
        with set_aside(model), raising(self), measured_by(self, block):
            try:
                yield self
            finally:
                block.ended = True


@contextlib.contextmanager
def raising(device) -> Iterator[None]:
    """Raises the original error of a device in place of the error of a graph.

    The `failure` of a `HardwareDevice` is cleared first; other devices have none.
    """
    if not isinstance(device, HardwareDevice):
        yield
        return
    acquisition = device._acquisition
    device.failure = acquisition.raised = None
    try:
        yield
    except Exception as error:
        for raised in (acquisition.raised, device.failure):
            if raised is not None and (error is raised or _tells_of(error, raised)):
                # Not from the graph's error, whose text is a traceback of TensorFlow.
                # Keras removes the cause of an error raised eagerly; restore it.
                raise raised from getattr(raised, "cause", None)
        raise


def _tells_of(error: BaseException | None, raised: BaseException) -> bool:
    """Tells whether an exception is, or was caused by, a graph's report of another."""
    while error is not None:
        # The graph knows only the name and the text of the error.
        if isinstance(error, tf.errors.OpError) and type(raised).__name__ in str(error):
            return True
        error = error.__cause__
    return False


def _layer_names(layers) -> tuple[str, ...] | None:
    if layers is None:
        return None
    names = tuple(layers) if isinstance(layers, (list, tuple, set, frozenset)) else ()
    texts = all(isinstance(name, str) and name for name in names)
    if not names or not texts or len(set(names)) < len(names):
        expected = "None or a list of names of layers, each once"
        raise _checks.error("layers", expected, _checks.short(layers))
    return names


def _sendable(name: str, array, layer) -> np.ndarray:
    """Returns a copy of an array; refuses NaN and infinity, which can harm a device."""
    array = np.array(storable(array), order="C")
    if array.dtype.kind not in "biufc":
        expected = f"an array of numbers, for layer '{layer.name}'"
        raise _checks.error(name, expected, f"dtype {array.dtype}")
    bad = np.count_nonzero(~np.isfinite(array))
    if bad:
        received = f"NaN or infinity in {bad} of {array.size}"
        raise _checks.error(name, f"finite, for layer '{layer.name}'", received)
    return array
