"""Evaluate a model on many devices at once."""

from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _keras, _warnings
from keras_pnn.devices.engine import Engine
from keras_pnn.devices.fit import misfit
from keras_pnn.devices.footprint import footprint
from keras_pnn.devices.normalization import check_mode, even_parts
from keras_pnn.devices.result import DeviceEvaluation
from keras_pnn.devices.simulated import DeviceSet, SimulatedDevice
from keras_pnn.layers.context import current
from keras_pnn.layers.fields import check_fields
from keras_pnn.layers.lookup import left_curves
from keras_pnn.layers.quantity import Quantity

# Bytes of the outputs of a chunk of devices on all samples, above which XLA saves more
# time than it takes to compile. It fuses the passes over activations: on LeNet-5 it
# saves a fifth, on a mesh nothing.
_WORTH_COMPILING = 32 * 2**30


class DeviceEvaluator:
    """Evaluates a model on devices, repeatedly on the same data.

    Devices run `chunk` at a time in one graph; layers before the first imperfection run
    once for all of them. If `chunk` is given, the same devices in the same order give
    bit-identical results. For different chunk sizes, results agree up to rounding,
    unless layers draw random numbers. To resume an evaluation, split the devices at
    multiples of `chunk`.

    Graphs are kept with the model, for all its evaluators. A new one is traced for

    - a model that was compiled again, or quantised,
    - another set of variables that devices deviate in,
    - batches of another size, shape or dtype, or another number of devices at once,
    - another `batch_norm`,
    - or so many more samples that compiling by XLA pays off.

    Devices, weights and data are read at each call, so that an evaluator can be used
    during `fit`. A changed Python attribute of a layer takes effect after `compile`, as
    in `evaluate`.

    Args:
        model: a compiled model.
        x: inputs, an array or a list or dictionary of arrays; or a `tf.data.Dataset`
            or `keras.utils.PyDataset`, whose batches hold targets and sample weights
            too. A data set is read once into memory, and batched by `batch_size`.
        y: targets, likewise, or `None` if the model's loss and metrics need none.
        batch_size: samples per batch; fewer if the same number of batches can then be
            of equal size: 360 samples run in batches of 90, not 100. It is not reduced
            for losses and metrics that may depend on it: custom functions, and losses
            whose `reduction` is not the mean.
        sample_weight: one weight for each sample, or `None`.
        chunk: devices per graph, even if there are fewer. Default: as many as
            `memory_limit` allows. With 1 they run one after the other.
        memory_limit: additional memory that an evaluation may use, in GiB, estimated
            from the layers' outputs and variables. At least one device runs at a time.
        batch_norm: the statistics with which `BatchNormalization` layers normalise.
            `"frozen"`: the model's. `"batch"`: those of each batch of `x`, so that
            figures depend on `batch_size`. `"reestimated"`: each device's own, from
            `calibration`. All else is as in inference; the model is not changed.
        calibration: inputs like `x` for `"reestimated"`, a few hundred samples of
            training data. They run in batches of about equal size, at most
            `batch_size`, in which the layers normalise with the batch's statistics; the
            device's statistics are the mean and variance over all batches.

    Raises:
        ValueError: If the model is not compiled, if a mesh's complex fields reach a
            layer or a loss of Keras, if data are empty, hold NaN or infinity or differ
            in length, if a number is out of range, if `batch_norm` is unknown, or if
            `calibration` does not fit it.

    Example:

    >>> evaluator = pnn.devices.DeviceEvaluator(model, x_test, y_test, chunk=50)
    >>> for start, rows in evaluator.chunks(devices):
    ...     print(start, [row["accuracy"] for row in rows])
    """

    def __init__(
        self,
        model: keras.Model,
        x,
        y=None,
        batch_size: int = 100,
        sample_weight=None,
        chunk: int | None = None,
        memory_limit: float = 1.0,
        batch_norm: str = "frozen",
        calibration=None,
    ):
        _checks.compiled("model", model)
        self._data = _checks.data(x, y, sample_weight)
        self.samples = _checks.sample_count(self._data[0])
        batch_size = _checks.integer("batch_size", batch_size, 1)
        self.batch_size = min(batch_size, self.samples)
        # Statistics of a batch, and sums over it, need the requested size.
        if batch_norm != "batch" and _averages(model):
            self.batch_size = _even(batch_size, self.samples)
        self.chunk = _checks.optional(_checks.integer, "chunk", chunk, 1)
        self.memory_limit = _checks.real("memory_limit", memory_limit, above=0)
        check_fields(model)
        self.model, self.batch_norm = model, batch_norm
        self._calibration = check_mode(batch_norm, calibration, self._data[0])
        self._parts = []
        if self._calibration is not None:
            count = _checks.sample_count(self._calibration)
            self._parts = even_parts(count, self.batch_size)

    def evaluate(
        self, devices: Sequence[SimulatedDevice], verbose: int | str = "auto"
    ) -> DeviceEvaluation:
        """Returns loss and metrics of the model on each device.

        Devices may deviate in different variables: a variable that a device does not
        set is nominal for it.

        Args:
            devices: simulated devices, such as those of `Variation.sample`.
            verbose: 0 is silent, 1 or `"auto"` shows a progress bar.

        Raises:
            ValueError: If `devices` is empty or holds anything but simulated devices,
                if they come from another architecture, or if another device has already
                set one of their variables.
        """
        engine, quantities, bound = self._bound(devices)
        chunks = self._run(engine, quantities, bound, verbose)
        rows = [row for _, some in chunks for row in some]
        # Keras' order of metrics differs between its versions.
        names = sorted(rows[0], key=lambda name: name != "loss")
        values = {n: np.array([r[n] for r in rows]) for n in names}
        return DeviceEvaluation(
            values,
            self.samples,
            self.batch_size,
            engine.vectorized,
            self.batch_norm,
            self.model.name,
            tuple(device.label for device in devices),
            getattr(devices, "axes", ()),
        )

    def chunks(
        self, devices: Sequence[SimulatedDevice], verbose: int | str = 0
    ) -> Iterator[tuple[int, list[dict]]]:
        """Yields the results of the devices, chunk by chunk.

        Raises what `evaluate` raises, before the first chunk.

        Yields:
            The index of the chunk's first device in `devices`, and for each device
            name → float, or array for a metric that is an array.
        """
        return self._run(*self._bound(devices), verbose)

    def devices_at_once(self, devices: Sequence[SimulatedDevice]) -> int:
        """Returns the size of the chunks in which devices run."""
        return self._bound(devices)[0].rows

    def _bound(self, devices):
        """Returns (engine, quantities, devices that all set these quantities)."""
        check_digital("Simulated devices must be evaluated")
        _check_devices(devices)
        # First, as its error names the model's layers.
        for device in {repr(d.architecture): d for d in devices}.values():
            device.bind(self.model)
        bound = DeviceSet(devices)
        # Of one device only: a look-up in the model takes longer than its run.
        quantities = [quantity for quantity, _ in bound[0].bind(self.model)]
        for device in bound:
            for quantity in quantities:
                quantity.check(device.deviations[quantity.name, quantity.index])
        variables = [quantity.variable for quantity in quantities]
        check_nominal(quantities)
        needs = footprint(self.model, variables)
        chunk = self.chunk
        if chunk is None:
            # Chunks of similar size, so that the last one has few rows to fill.
            fit = needs.devices(self.batch_size, self.memory_limit * 2**30)
            chunk = -(-len(bound) // -(-len(bound) // fit))
        calibration = {stop - start for start, stop in self._parts}
        last = self.samples % self.batch_size
        sizes = self.batch_size, last, *sorted(calibration)
        # With one sample, layers may multiply stacks (devices, 1, …) by one matrix. XLA
        # can; TensorFlow with oneDNN then writes out of bounds.
        worth = chunk * self.samples * needs.stacked > _WORTH_COMPILING or 1 in sizes
        shapes = keras.tree.map_structure(
            lambda a: None if a is None else (a.shape[1:], a.dtype.name), self._data
        )
        kept = _keras.kept(self.model)
        # An engine keeps its variables alive, so that their ids stay unique.
        ids = tuple(map(id, variables))
        key = "devices", ids, chunk, self.batch_norm, worth, sizes, repr(shapes)
        if key not in kept:
            self._build_metrics()
            kept[key] = Engine(
                self.model, variables, chunk, self.batch_norm, needs.differs, worth
            )
        return kept[key], quantities, bound

    def _build_metrics(self):
        """Creates the metrics' variables, as Keras does at the first batch."""
        try:
            # A whole batch, as a model may have a fixed batch size.
            first = rows_of(self._data, 0, self.batch_size)
            _keras.build_metrics(self.model, first)
        except Exception as error:
            if problem := misfit(self.model, *self._data[:2]):
                raise problem from None
            _, *asking = _keras.compile_state(self.model)
            if self._data[1] is not None or all(part is None for part in asking):
                raise
            # Any error: a custom loss or metric may have received `None`.
            raise ValueError(
                "Argument `y` must hold the targets that the model's loss and metrics "
                f"need. Received: y=None, without which they fail: {error}"
            ) from error

    def _run(self, engine, quantities, bound, verbose):
        firsts = range(0, self.samples, self.batch_size)
        bar = keras.utils.Progbar(
            -(-len(bound) // engine.rows) * len(firsts),
            verbose=0 if verbose in (0, "0") else 1,
            unit_name="step",
        )

        def batches():
            for first in firsts:
                yield rows_of(self._data, first, first + self.batch_size)
                bar.add(1)

        def calibration():
            return (rows_of(self._calibration, *part) for part in self._parts)

        failed = 0
        for start in range(0, len(bound), engine.rows):
            group = bound[start : start + engine.rows]
            values = stacked(quantities, group)
            try:
                rows, without_value = engine.run(
                    values, len(group), calibration, batches
                )
            except Exception:
                if problem := misfit(self.model, *self._data[:2]):
                    raise problem from None
                raise
            failed += without_value
            yield start, rows
        if failed:
            cause = left_curves(self.model) or "A layer gives no number there."
            if any(np.isnan(v).any() for v in self.model.trainable_variables):
                cause = "Weights of the model are NaN."
            _warnings.warn(
                f"{failed} of {len(bound)} devices give NaN for some samples, so that "
                f"their metrics are NaN. {cause}"
            )


def evaluate_devices(
    model: keras.Model,
    x,
    y=None,
    devices: Sequence[SimulatedDevice] | None = None,
    batch_size: int = 100,
    sample_weight=None,
    chunk: int | None = None,
    memory_limit: float = 1.0,
    verbose: int | str = "auto",
    batch_norm: str = "frozen",
    calibration=None,
) -> DeviceEvaluation:
    """Evaluates a model on many devices, in one graph.

    Loss and metrics are those of `model.evaluate`, weighting and regularisers
    included; the losses of single outputs are means over all samples, even if the
    last batch is shorter. The model is not changed. Layers with a `SeedGenerator` draw
    the same numbers for all devices, and new ones for each batch. Stateful layers start
    from the model's state, and each device continues its own. Devices that give NaN,
    such as beyond the end of a measured tuning curve, have NaN metrics, and a warning
    counts them. The graph is kept with the model and reused, see `DeviceEvaluator`.

    Args:
        model: a compiled model.
        x: inputs, an array or a list or dictionary of arrays; or a `tf.data.Dataset`
            or `keras.utils.PyDataset`, as in `DeviceEvaluator`.
        y: targets, likewise; `None` where a data set holds them.
        devices: the result of `Variation.sample`, `sweep` or `grid`, or a list of
            devices, which may deviate in different variables.
        batch_size, sample_weight, chunk, memory_limit, batch_norm, calibration: as in
            `DeviceEvaluator`.
        verbose: 0 is silent, 1 or `"auto"` shows a progress bar.

    Returns:
        A `DeviceEvaluation`, with the axes of a sweep or a grid.

    Raises:
        ValueError: As in `DeviceEvaluator` and its `evaluate`.

    Example:

    >>> devices = pnn.Variation(resonance_shift=0.08).sample(model, 32)
    >>> pnn.evaluate_devices(model, x_test, y_test, devices)["accuracy"].mean()
    """
    options = chunk, memory_limit, batch_norm, calibration
    evaluator = DeviceEvaluator(model, x, y, batch_size, sample_weight, *options)
    return evaluator.evaluate(devices, verbose)


def _check_devices(devices) -> None:
    received = None
    if not isinstance(devices, Sequence):
        received = _checks.short(devices)
    elif not devices:
        received = "none"
    elif others := [d for d in devices if not isinstance(d, SimulatedDevice)]:
        received = f"one of type {type(others[0]).__name__}"
    if received is not None:
        raise _checks.error(
            "devices",
            "a sequence of at least one simulated device, as `variation.sample(model, "
            "n)` and `sweep` return it; one device alone is `[device]`, and one on the "
            "bench needs `with device.installed(model): model.evaluate(...)`",
            received,
        )


def check_digital(task: str) -> None:
    """Raises ValueError if a device measures: a graph would keep its measurement."""
    if current().substitute is not None:
        raise ValueError(
            f"{task} on the digital model, outside `device.installed(model)`. "
            "Received: layers that a device measures"
        )


def off_nominal(quantity: Quantity) -> bool:
    """Tells whether an imperfection is off its nominal value; never for a weight."""
    if quantity.nominal is None:
        return False
    # In the variable's precision, which may not hold a nominal value of 0.1.
    value = tf.convert_to_tensor(quantity.variable)
    return bool(np.any(value != tf.cast(quantity.nominal, value.dtype)))


def check_nominal(quantities) -> None:
    """Raises ValueError if a quantity that devices set is off its nominal value."""
    for quantity in quantities:
        if off_nominal(quantity):
            raise ValueError(
                "Devices deviate from the design: use them outside "
                "`device.installed(model)`, or call `layer.reset_imperfections()`. "
                f"Received: a model whose '{quantity.path}' is off its nominal value"
            )


def stacked(quantities: Sequence[Quantity], devices: Sequence[SimulatedDevice]) -> list:
    """Returns the values of quantities that all devices set, stacked over devices."""
    keys = [(quantity.name, quantity.index) for quantity in quantities]
    columns = [np.stack([device.deviations[key] for device in devices]) for key in keys]
    return [q.value(column) for q, column in zip(quantities, columns, strict=True)]


def _averages(model: keras.Model) -> bool:
    """Tells whether loss and metrics are means over samples for any batch size."""
    asked, means = _keras.compile_arguments(model), ("mean", "sum_over_batch_size")
    parts = [asked.get(name) for name in ("loss", "metrics", "weighted_metrics")]
    return all(
        _keras.of_keras(part) and getattr(part, "reduction", "mean") in means
        for part in keras.tree.flatten(parts)
        if part is not None and not isinstance(part, str)
    )


def _even(batch_size: int, samples: int) -> int:
    """Returns a size for the same number of batches, equal ones if possible."""
    count = -(-samples // batch_size)
    return samples // count if samples % count == 0 else min(batch_size, samples)


def rows_of(data, start: int, stop: int):
    """Returns some samples of a structure of arrays, as tensors; `None`s stay."""
    return keras.tree.map_structure(
        lambda a: None if a is None else tf.convert_to_tensor(a[start:stop]), data
    )
