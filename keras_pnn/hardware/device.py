"""A device on the bench: the lab's code, and all that must go wrong around it."""

import contextlib
import weakref
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.devices.process import count, number, short
from keras_pnn.hardware.acquisition import Acquisition, DeviceError
from keras_pnn.hardware.arrays import output_spec, sendable
from keras_pnn.hardware.retracing import check_runs_python, models_around, set_aside
from keras_pnn.layers.context import measured_by, measuring_block
from keras_pnn.layers.lookup import physical_layers

__all__ = ["DeviceError", "HardwareDevice", "raising"]


class HardwareDevice:
    """Base of a device on the bench: NumPy in, NumPy out.

    The lab overrides `measure`, and where it helps `configure` and `recover`. This
    class checks what comes back, splits batches, averages readings, limits times,
    repeats failed calls, counts and logs. In training and evaluation the layers'
    outputs are the device's, their gradients those of the model.

    The three methods are called in one thread, which is not the one that made the
    object; after a time-out, in a new one, while the old call may still hang. They
    may change the arrays that they get. An interrupt from the keyboard passes
    through; within `fit` and `evaluate` it waits for the end of the step.

    Args:
        layers: names of the physical layers that are on the device, `None` for all.
            The model computes the others.
        max_batch: samples in one call of `measure`, `None` for whole batches.
        repeats: readings that are averaged, in double precision.
        settle: seconds to wait after `configure`.
        timeout: seconds for each call of the lab's methods, `None` for no limit.
        retries: how many times a failed call is repeated: an exception, no result
            in time, NaN or infinity. A wrong shape or type is an error at once.
        backoff: seconds before the first repeat; doubles each time, up to a minute.
        log: path of a file to which each measurement is appended, `None` for none.
            `pnn.RecordedDevice` replays it. A last record that was cut short by a
            crash is cut off when the file is opened again.

    Raises:
        ValueError: an argument is out of its range, or `log` is another file or
            damaged.

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

    # Also there where a subclass forgets `super().__init__`.
    calls = 0
    failures = 0
    failure: DeviceError | None = None
    _acquisition: Acquisition | None = None

    def __init__(
        self,
        layers=None,
        max_batch: int | None = None,
        repeats: int = 1,
        settle: float = 0.0,
        timeout: float | None = 60.0,
        retries: int = 3,
        backoff: float = 0.5,
        log=None,
    ):
        self.layers = _layer_names(layers)
        self.max_batch = (
            None if max_batch is None else _positive("max_batch", max_batch)
        )
        self.repeats = _positive("repeats", repeats)
        self.settle = number("settle", settle, minimum=0)
        self.timeout = None if timeout is None else number("timeout", timeout, above=0)
        self.retries = count("retries", retries)
        self.backoff = number("backoff", backoff, minimum=0)
        self.log = log
        self._acquisition = Acquisition(self, log)

    def measure(self, layer, inputs: np.ndarray, controls: dict) -> np.ndarray:
        """Measures one layer. To be overridden.

        Args:
            layer: the `PhysicalLayer`; `layer.name` says which one.
            inputs: up to `max_batch` samples, (batch, ...).
            controls: name → array, in the units of the layer's controls.

        Returns:
            An array of the layer's output shape; complex where the layer's outputs
            are, else of floating-point numbers of any precision.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must override `measure(layer, inputs, controls)`."
        )

    def configure(self, layer, controls: dict) -> None:
        """Sets the controls of one layer, where they differ from the last ones.

        May be overridden; `settle` seconds pass afterwards. It is called again after
        `recover`. Each layer needs channels of its own on the device: what was set for
        one must stay while another is set. Where layers share them, set the controls
        in `measure`, which gets them too.
        """
        return None

    def recover(self) -> None:
        """Called before a failed call is repeated. May be overridden.

        It is called too before the first call after one that was given up: after an
        interrupt, or a time-out that ended the last measurement.
        """
        return None

    def acquire(self, layer, inputs, controls: dict, shape=None, dtype=None):
        """Measures a batch: configures, splits, averages, checks, repeats, logs.

        Args:
            layer: a `PhysicalLayer`.
            inputs: its inputs, (batch, ...).
            controls: name to array, one for each of the layer's controls.
            shape, dtype: of the layer's outputs. Default: what the layer says.

        Returns:
            The outputs, an array of that shape and dtype.

        Raises:
            DeviceError: the device failed for good; it is in `failure` too.
            ValueError: the batch is empty, or what is to be sent is not finite.
            OSError: the log could not be written.
        """
        _check_initialised(self)
        self._acquisition.check_thread(layer)
        inputs = sendable("inputs", inputs, layer)
        if inputs.ndim == 0 or not len(inputs):
            raise ValueError(
                "Argument `inputs` must have at least one sample. "
                f"Received: shape {inputs.shape}"
            )
        controls = {
            n: sendable(f"controls[{n!r}]", v, layer) for n, v in controls.items()
        }
        if shape is None or dtype is None:
            spec = output_spec(layer, inputs)
            shape = spec.shape if shape is None else shape
            dtype = spec.dtype if dtype is None else dtype
        shape, dtype = tuple(int(n) for n in shape), tf.as_dtype(dtype).as_numpy_dtype
        return self._acquisition.run(layer, inputs, controls, shape, np.dtype(dtype))

    def measure_in_graph(self, layer, inputs, controls: dict, modelled):
        """Measures a batch within a `tf.function`.

        Args:
            layer: a `PhysicalLayer`.
            inputs: its inputs, a tensor.
            controls: name to tensor.
            modelled: the outputs of the model, for their shape and dtype.

        Returns:
            The outputs, a tensor; `None` where the layer is not on the device.
        """
        _check_initialised(self)
        if self.layers is not None and layer.name not in self.layers:
            return None
        names, dtype = list(controls), modelled.dtype
        # TensorFlow keeps the function until the process ends: it must not hold the
        # device, nor the layer with its model.
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
            return device._acquisition.in_graph(layer, inputs, arrays, shape, dtype)

        outputs = tf.numpy_function(
            measured,
            [inputs, tf.shape(modelled), *(controls[n] for n in names)],
            dtype,
        )
        outputs.set_shape(modelled.shape)
        return outputs

    def attach(self, model: keras.layers.Layer) -> "HardwareDevice":
        """Checks that the device's layers are physical layers of a model.

        Training does this by itself, and so do `installed` and `pnn.calibrate`.

        Raises:
            ValueError: one is not, or the model has no physical layers.
        """
        _check_initialised(self)
        _check_layers(self.layers, model)
        return self

    @contextlib.contextmanager
    def installed(self, model: keras.layers.Layer) -> Iterator["HardwareDevice"]:
        """Runs the physical layers of a model on the device until the block ends.

        Holds for calls, `evaluate`, `predict` and training of the model, of models
        inside it, and of a `SATModel`, `PATModel` or `DATModel` around one of them.
        What they had compiled is put aside and comes back. Any other function that
        was traced inside the block raises an error afterwards: it does not measure.
        Call `export` outside: what it writes of a model here is the measurement.

        Raises:
            ValueError: the model has no such layers, is compiled with
                `jit_compile=True`, or runs on several replicas.
            DeviceError: the device failed for good. It comes from the block; inside,
                compiled steps raise an error of TensorFlow's, and `failure` is set.
        """
        HardwareDevice.attach(self, model)
        for each in models_around(model):
            check_runs_python(each, each is model or each.compiled)
        block = _Block()
        with set_aside(model), raising(self), measured_by(self, block):
            try:
                yield self
            finally:
                block.ended = True


class _Block:
    """A block of code in which a device is installed."""

    ended = False


@contextlib.contextmanager
def raising(device) -> Iterator[None]:
    """Raises what failed on the bench where a graph inside raises its own error.

    Args:
        device: any device; of a `HardwareDevice`, `failure` is cleared.

    Raises:
        DeviceError: the device failed for good inside a graph.
    """
    if not isinstance(device, HardwareDevice):
        yield
        return
    _check_initialised(device)
    acquisition = device._acquisition
    device.failure = acquisition.raised = None
    try:
        yield
    except Exception as error:
        for raised in (acquisition.raised, device.failure):
            if raised is not None and (error is raised or _tells_of(error, raised)):
                # Not from the graph's error, whose text is a traceback of TensorFlow;
                # and Keras has removed the cause of one that was raised eagerly.
                raise raised from getattr(raised, "cause", None)
        raise


def _tells_of(error: BaseException | None, raised: BaseException) -> bool:
    """Whether an exception is, or was caused by, a graph's about another one."""
    while error is not None:
        # The graph knows the name and the text. One that was overcome, by whoever
        # called the graph, has nothing to do with what fails later.
        if isinstance(error, tf.errors.OpError) and type(raised).__name__ in str(error):
            return True
        error = error.__cause__
    return False


def _check_initialised(device: HardwareDevice) -> None:
    if device._acquisition is None:
        raise RuntimeError(
            f"`{type(device).__name__}.__init__` must call `super().__init__()`. "
            "Received: a device without it"
        )


def _check_layers(layers: tuple[str, ...] | None, model: keras.layers.Layer) -> None:
    names = [layer.name for layer in physical_layers(model)]
    unknown = sorted(set(layers or ()) - set(names))
    if unknown or not names:
        raise ValueError(
            f"The device's layers must be physical layers of model '{model.name}': "
            f"{', '.join(names) or 'it has none'}. "
            f"Received: {', '.join(unknown) or 'every physical layer'}"
        )


def _layer_names(layers) -> tuple[str, ...] | None:
    if layers is None:
        return None
    names = tuple(layers) if isinstance(layers, (list, tuple, set, frozenset)) else ()
    if (
        not names
        or not all(isinstance(name, str) and name for name in names)
        or len(set(names)) < len(names)
    ):
        raise ValueError(
            "Argument `layers` must be None or a list of names of layers, each once. "
            f"Received: layers={short(layers)}"
        )
    return names


def _positive(name: str, value) -> int:
    if count(name, value) == 0:
        raise ValueError(
            f"Argument `{name}` must be 1 or more. Received: {name}={short(value)}"
        )
    return int(value)
