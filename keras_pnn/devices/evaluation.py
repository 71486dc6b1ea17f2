"""Many devices at once: loss and metrics of a model on each of them."""

import dataclasses
import numbers
import warnings
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.devices.engine import Engine, filled
from keras_pnn.devices.footprint import Footprint, footprint
from keras_pnn.devices.normalization import (
    check_mode,
    checked_calibration,
    even_parts,
)
from keras_pnn.devices.simulated import SimulatedDevice
from keras_pnn.layers.context import current


@dataclasses.dataclass(frozen=True)
class DeviceEvaluation:
    """Loss and metrics of one model on many devices.

    Args:
        values: name → array (devices,), the loss and the metrics; with further axes
            for a metric that is an array itself. All metrics are NaN for a device
            that gives NaN for some sample.
        samples: number of samples that each device was given.
        batch_size: samples at once.
        vectorized: whether the devices ran in one graph.
        batch_norm: statistics of batch normalisation, as in `DeviceEvaluator`.
    """

    values: dict[str, np.ndarray]
    samples: int
    batch_size: int
    vectorized: bool
    batch_norm: str = "frozen"

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def __len__(self):
        return len(self.values["loss"])

    def summary(self, name: str) -> dict[str, float]:
        """Returns mean, std, 5th percentile, median, minimum and maximum."""
        v = self.values[name]
        return {
            "mean": float(np.mean(v)),
            "std": float(np.std(v)),
            "p05": float(np.percentile(v, 5)),
            "median": float(np.median(v)),
            "min": float(np.min(v)),
            "max": float(np.max(v)),
        }

    def to_dict(self) -> dict:
        """Returns everything in JSON's types."""
        return {
            **dataclasses.asdict(self),
            "values": {n: v.tolist() for n, v in self.values.items()},
        }

    def table(self) -> str:
        """Returns one line for each metric."""
        rows = [f"{'':>16}  {'mean':>9} {'std':>9} {'p05':>9} {'min':>9} {'max':>9}"]
        for name in self.values:
            s = self.summary(name)
            columns = ("mean", "std", "p05", "min", "max")
            cells = " ".join(f"{s[k]:9.4f}" for k in columns)
            rows.append(f"{name:>16}  {cells}")
        return "\n".join(rows)


class DeviceEvaluator:
    """Evaluates a model on devices, call after call, and compiles once.

    Data are checked once. What is compiled is kept, for each set of variables that
    devices deviate in. Weights are read at each call, so that it can be used during
    `fit`; after `model.compile` it compiles anew.

    Devices run `chunk` at a time in one graph. Layers in front of what varies run
    once for all of them. The last chunk is filled up with copies of its last device,
    so that nothing is compiled for it. With `chunk` given, a chunk of the same
    devices in the same order gives the same figures to the last bit, in whichever
    call and however many devices there are; between chunks of other sizes figures
    agree to rounding, save where layers draw random numbers. Cut what is to be resumed
    at multiples of `chunk`.

    Args:
        model: a compiled model.
        x: inputs, an array or a list or dictionary of arrays.
        y: targets, likewise, or `None` where the model's loss and metrics need none.
        batch_size: samples at once.
        sample_weight: one weight for each sample, or `None`.
        chunk: devices at once, also where there are fewer. Default: as many as
            `memory_limit` allows, at most those that there are. With 1 they run one
            after the other, in a graph that is not vectorised.
        memory_limit: GiB that an evaluation may take beside what the process has,
            compiling included, estimated from the layers' outputs and variables. One
            device runs also where it is estimated to need more.
        batch_norm: the statistics with which `BatchNormalization` layers normalise.
            `"frozen"`: the model's. `"batch"`: those of each batch of `x`, so that
            figures depend on `batch_size`. `"reestimated"`: each device's own, of
            `calibration`. All else is as in inference; the model's statistics stay.
        calibration: inputs like `x` for `"reestimated"`, a few hundred samples of
            training data. They run in batches of at most `batch_size`, of even
            sizes, in which the layers normalise with the batch's statistics; mean
            and variance of all batches together are the device's.

    Raises:
        ValueError: the model is not compiled, the data are empty, hold NaN or
            differ in length, a number is out of range, the mode is unknown, or
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
        y,
        batch_size: int = 100,
        sample_weight=None,
        chunk: int | None = None,
        memory_limit: float = 1.0,
        batch_norm: str = "frozen",
        calibration=None,
    ):
        if not getattr(model, "compiled", False):
            raise ValueError(
                "`model` must be compiled, as for `evaluate`. "
                f"Received: model '{getattr(model, 'name', model)}', not compiled"
            )
        self._data = checked_data(x, y, sample_weight)
        sizes = (batch_size,) if chunk is None else (batch_size, chunk)
        if not all(_positive(n, numbers.Integral) for n in sizes):
            raise ValueError(
                "`batch_size` and `chunk` must be whole numbers of at least 1. "
                f"Received: batch_size={batch_size!r}, chunk={chunk!r}"
            )
        if not _positive(memory_limit, numbers.Real):
            raise ValueError(
                f"`memory_limit` must be above 0, in GiB. Received: {memory_limit!r}"
            )
        check_mode(batch_norm, calibration)
        if calibration is not None:
            calibration = checked_calibration(calibration, self._data[0])
        self.model, self.batch_norm = model, batch_norm
        self.samples = _length(self._data[0])
        self.batch_size = min(int(batch_size), self.samples)
        self.chunk, self.memory_limit = chunk, memory_limit
        self._calibration = calibration
        self._compiled = None
        # By the variables' ids; an engine holds its variables, so that ids stay.
        self._engines: dict[tuple[int, ...], tuple[Engine, Footprint]] = {}

    def evaluate(
        self, devices: Sequence[SimulatedDevice], verbose: int | str = "auto"
    ) -> DeviceEvaluation:
        """Returns loss and metrics of the model on each device.

        Args:
            devices: what `Variation.sample` returns.
            verbose: 0 is silent, 1 or `"auto"` shows a progress bar.

        Raises:
            ValueError: there is no device, one is no simulated device, they deviate
                in different variables, or come from another architecture.
        """
        engine, chunk, bound = self._bound(devices)
        rows = [
            row for _, some in self._run(engine, chunk, bound, verbose) for row in some
        ]
        # Keras' order of metrics differs between its versions.
        names = sorted(rows[0], key=lambda name: name != "loss")
        values = {n: np.array([r[n] for r in rows]) for n in names}
        vectorized = chunk > 1 and engine.vectorized
        return DeviceEvaluation(
            values, self.samples, self.batch_size, vectorized, self.batch_norm
        )

    def chunks(
        self, devices: Sequence[SimulatedDevice], verbose: int | str = 0
    ) -> Iterator[tuple[int, list[dict]]]:
        """Yields the results of one chunk of devices after the other.

        Args:
            devices: what `Variation.sample` returns.
            verbose: as in `evaluate`.

        Yields:
            The place of the chunk's first device in `devices`, and for each device
            name → float, or array for a metric that is an array.

        Raises:
            ValueError: as in `evaluate`, before the first chunk.
        """
        return self._run(*self._bound(devices), verbose)

    def devices_at_once(self, devices: Sequence[SimulatedDevice]) -> int:
        """Returns the size of the chunks in which devices run."""
        return self._bound(devices)[1]

    def _bound(self, devices):
        """(engine, devices at once, each device's targets and deviations)."""
        # The graph would keep the measurement, and it is one device's alone.
        if current().substitute is not None:
            raise ValueError(
                "Simulated devices are evaluated by the digital model: do it outside "
                "`device.installed(model)`. Received: layers that a device measures"
            )
        _check_devices(devices)
        self._prepare()
        bound = [device.bind(self.model) for device in devices]
        variables = [target.variable for target, _ in bound[0]]
        # By identity: variables compare by value.
        key = tuple(map(id, variables))
        for device, pairs in zip(devices, bound, strict=True):
            if tuple(id(t.variable) for t, _ in pairs) != key:
                raise ValueError(
                    "`devices` must all deviate in the same variables, "
                    f"{_names(bound[0])}. Received: device {device.label!r} with "
                    f"{_names(pairs)}"
                )
        if key not in self._engines:
            needs = footprint(self.model, variables)
            engine = Engine(self.model, variables, self.batch_norm, needs.differs)
            self._engines[key] = engine, needs
        engine, needs = self._engines[key]
        chunk = self.chunk
        if chunk is None:
            # Chunks alike, so that the last one has little to fill up.
            fit = needs.devices(self.batch_size, self.memory_limit * 2**30)
            chunk = -(-len(bound) // -(-len(bound) // fit))
        return engine, chunk, bound

    def _prepare(self):
        """Builds metrics, and forgets what was traced with those of before."""
        model = self.model
        now = model._loss_tracker, model._compile_loss, model._compile_metrics
        same = self._compiled is not None and all(
            a is b for a, b in zip(now, self._compiled, strict=True)
        )
        if not same:
            # Keras makes the metrics' variables at the first batch.
            try:
                model._symbolic_build(data_batch=_rows(self._data, 0, 1))
            except Exception as error:
                asks = any(part is not None for part in now[1:])
                if self._data[1] is not None or not asks:
                    raise
                # Of any kind: a loss or metric of the user's own may have met `None`.
                raise ValueError(
                    "`y` must hold the targets that the model's loss and metrics ask "
                    f"for. Received: y=None, without which they fail: {error}"
                ) from error
            self._compiled, self._engines = now, {}

    def _run(self, engine, chunk, bound, verbose):
        batches = range(0, self.samples, self.batch_size)
        parts = []
        if self.batch_norm == "reestimated":
            parts = even_parts(_length(self._calibration), self.batch_size)
        bar = keras.utils.Progbar(
            -(-len(bound) // chunk) * len(batches),
            verbose=0 if verbose in (0, "0") else 1,
            unit_name="step",
        )
        failed = 0
        for start in range(0, len(bound), chunk):
            group = bound[start : start + chunk]
            values = [[t.value(a) for t, a in pairs] for pairs in group]
            stacks = [
                filled(tf.stack(column), chunk) for column in zip(*values, strict=True)
            ]
            calibration = (_rows(self._calibration, *part) for part in parts)
            statistics = engine.statistics(stacks, len(group), calibration)
            states, seeds = engine.zero_state(len(group)), engine.first_seeds()
            for first in batches:
                batch = _rows(self._data, first, first + self.batch_size)
                states, seeds = engine.update(stacks, statistics, states, seeds, batch)
                bar.add(1)
            failed += int(np.count_nonzero(states[-1]))
            yield start, engine.results(states)
        if failed:
            warnings.warn(
                f"{failed} of {len(bound)} devices give NaN for some samples, so that "
                "their metrics are NaN: a control or a resonance may have left a "
                "measured tuning curve, or the model's weights may be NaN.",
                stacklevel=3,
            )


def evaluate_devices(
    model: keras.Model,
    x,
    y,
    devices: Sequence[SimulatedDevice],
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
    included; the losses of single outputs are means over all samples, also where the
    last batch is shorter. The model is left as it was. Layers with a `SeedGenerator`
    draw the same for all devices, anew for each batch. Devices that give NaN,
    as where a measured tuning curve is left, have metrics of NaN, and a warning says
    how many. To evaluate again and again keep a `DeviceEvaluator`, which compiles
    once: of each call of this function TensorFlow keeps a few MiB.

    Args:
        model: a compiled model.
        x: inputs, an array or a list or dictionary of arrays.
        y: targets, likewise.
        devices: what `Variation.sample` returns.
        batch_size: samples at once.
        sample_weight: one weight for each sample, or `None`.
        chunk: devices at once, also where there are fewer. Default: as many as
            `memory_limit` allows, at most those that there are.
        memory_limit: GiB that it may take, as in `DeviceEvaluator`.
        verbose: 0 is silent, 1 or `"auto"` shows a progress bar.
        batch_norm: `"frozen"`, `"batch"` or `"reestimated"`, see `DeviceEvaluator`.
        calibration: inputs for `"reestimated"`.

    Returns:
        A `DeviceEvaluation`.

    Raises:
        ValueError: the model is not compiled, the data are empty, hold NaN or
            differ in length, there is no device, one is no simulated device or comes
            from another architecture, or `calibration` does not fit `batch_norm`.

    Example:

    >>> devices = pnn.Variation(resonance_shift=0.08).sample(model, 32)
    >>> pnn.evaluate_devices(model, x_test, y_test, devices)["accuracy"].mean()
    """
    evaluator = DeviceEvaluator(
        model,
        x,
        y,
        batch_size,
        sample_weight,
        chunk,
        memory_limit,
        batch_norm,
        calibration,
    )
    return evaluator.evaluate(devices, verbose)


def _names(pairs) -> str:
    return ", ".join(f"{t.name}[{t.index}]" for t, _ in pairs) or "none"


def _check_devices(devices) -> None:
    """Raises ValueError unless this is a sequence of devices, at least one."""
    expected = "`devices` must be a sequence of simulated devices, as"
    if hasattr(devices, "sample"):
        raise ValueError(
            f"{expected} `variation.sample(model, n)` draws it. Received: {devices!r}"
        )
    if not isinstance(devices, Sequence):
        raise ValueError(
            f"{expected} `Variation.sample` and `sweep` return it; one alone is "
            f"`[device]`. Received: an object of type {type(devices).__name__}"
        )
    if not devices:
        raise ValueError("`devices` must hold at least one device. Received: none")
    for device in devices:
        if not hasattr(device, "bind"):
            raise ValueError(
                f"{expected} `Variation.sample` returns it; with one on the bench, use "
                "`with device.installed(model): model.evaluate(...)`. Received: one of "
                f"type {type(device).__name__}"
            )


def checked_data(x, y, sample_weight) -> tuple:
    """Returns data as structures of NumPy arrays of one length.

    Args:
        x: inputs, an array or a list or dictionary of arrays.
        y: targets, likewise, or `None`.
        sample_weight: likewise, or `None`.

    Raises:
        ValueError: one is no array (a list of numbers, a data set), there is no
            input, lengths differ or are 0, or NaN or infinity is among them.
    """
    data = tuple(
        keras.tree.map_structure(lambda a, name=name: _array(name, a), part)
        for name, part in (("x", x), ("y", y), ("sample_weight", sample_weight))
    )
    if all(a is None for a in keras.tree.flatten(data[0])):
        raise ValueError(f"`x` must hold at least one array. Received: {x!r}")
    lengths = {len(a) for a in keras.tree.flatten(data) if a is not None}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "`x`, `y` and `sample_weight` must have one length, at least 1. "
            f"Received: lengths {sorted(lengths)}"
        )
    for part, name in zip(data, ("x", "y", "sample_weight"), strict=True):
        for array in keras.tree.flatten(part):
            floats = array is not None and array.dtype.kind in "fc"
            if floats and not np.isfinite(array).all():
                raise ValueError(f"`{name}` must be finite. Received: NaN or infinity")
    return data


def _array(name: str, given):
    """One array of the data; `None` stays."""
    if given is None:
        return None
    # A list of numbers comes here number by number; a data set has no shape.
    if not len(getattr(given, "shape", ())):
        raise ValueError(
            f"`{name}` must be an array, or a list or dictionary of arrays, with the "
            "samples along the first axis: `np.asarray` makes one of a list of "
            f"numbers. Received: {name} with {given!r}"
        )
    return np.asarray(given)


def _positive(value, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and value > 0


def _rows(data, start: int, stop: int):
    return keras.tree.map_structure(
        lambda a: None if a is None else tf.convert_to_tensor(a[start:stop]), data
    )


def _length(arrays) -> int:
    return len(keras.tree.flatten(arrays)[0])
