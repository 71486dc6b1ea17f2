"""Many devices at once: loss and metrics of a model on each of them."""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.devices.simulated import SimulatedDevice
from keras_pnn.layers.mrr import MRRConv2D
from keras_pnn.layers.physical import (
    controls_of,
    flat_layers,
    kernels_per_device,
    overriding,
)


@dataclasses.dataclass(frozen=True)
class DeviceEvaluation:
    """Loss and metrics of one model on many devices.

    Args:
        values: name → array (devices,), the loss and the compiled metrics; with
            further axes for a metric that is an array itself.
        samples: number of samples that each device was given.
        batch_size: samples at once.
        vectorized: whether the devices ran in one graph.
        batch_norm: statistics of batch normalisation, `"frozen"`.
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
) -> DeviceEvaluation:
    """Evaluates a model on many devices, in one graph.

    Loss and metrics are those of `model.evaluate`, weighting and regularisers
    included, with batch normalisation frozen. The model is left as it was.

    Args:
        model: a compiled model.
        x: inputs, an array or a list or dictionary of arrays.
        y: targets, likewise.
        devices: what `Variation.sample` returns.
        batch_size: samples at once.
        sample_weight: one weight for each sample, or `None`.
        chunk: devices at once. Default: as many as `memory_limit` allows.
        memory_limit: GiB that the layers' outputs of one step may take, estimated.
        verbose: 0 is silent, 1 or `"auto"` shows a progress bar.

    Returns:
        A `DeviceEvaluation`.

    Raises:
        ValueError: the model is not compiled, the data are empty, hold NaN or
            differ in length, there is no device, or a device comes from another
            architecture.

    Example:

    >>> devices = pnn.Variation(resonance_shift=0.08).sample(model, 32)
    >>> pnn.evaluate_devices(model, x_test, y_test, devices)["accuracy"].mean()
    """
    data = _checked_data(model, x, y, sample_weight)
    samples = len(keras.tree.flatten(data[0])[0])
    if not len(devices):
        raise ValueError("`devices` must hold at least one device. Received: none")
    if batch_size < 1 or (chunk is not None and chunk < 1):
        raise ValueError(
            "`batch_size` and `chunk` must be at least 1. "
            f"Received: batch_size={batch_size}, chunk={chunk}"
        )
    pairs = [device.values(model) for device in devices]
    variables = [v for v, _ in pairs[0]]
    # By identity: variables compare by value.
    if any([id(v) for v, _ in p] != [id(v) for v in variables] for p in pairs):
        raise ValueError("`devices` must all deviate in the same variables.")
    batch_size = min(batch_size, samples)
    _build_metrics(model, data)
    if chunk is None:
        chunk = _chunk_size(model, data, batch_size, memory_limit, len(devices))
    chunk = min(chunk, len(devices))
    chunks = [pairs[i : i + chunk] for i in range(0, len(pairs), chunk)]
    steps = -(-samples // batch_size)
    bar = keras.utils.Progbar(
        len(chunks) * steps, verbose=0 if verbose in (0, "0") else 1, unit_name="step"
    )
    engine = _Engine(model, variables)
    results, vectorized = [], chunk > 1
    for group in chunks:
        stacks = [tf.stack([p[i][1] for p in group]) for i in range(len(variables))]
        states = engine.zero_state(len(group))
        for start in range(0, samples, batch_size):
            batch = _rows(data, start, start + batch_size)
            if vectorized:
                try:
                    states = engine.all_at_once(stacks, states, batch)
                except (ValueError, NotImplementedError) as error:
                    if "pfor" not in str(error) and "onverter" not in str(error):
                        raise
                    vectorized = False
                    warnings.warn(
                        "A layer cannot be vectorised over devices; they run one "
                        f"after the other ({_last_line(error)})",
                        stacklevel=2,
                    )
            if not vectorized:
                states = engine.one_by_one(stacks, states, batch)
            bar.add(1)
        results += engine.results(states, len(group))
    values = {n: np.array([r[n] for r in results]) for n in results[0]}
    return DeviceEvaluation(values, samples, batch_size, vectorized)


class _Engine:
    """A model's test step as a pure function of device and metric state."""

    def __init__(self, model, variables):
        self.model, self.variables = model, variables
        self.state = model.metrics_variables
        # XLA fuses the passes over activations, which is most of the time: LeNet-5
        # takes a third of the time that it takes without.
        self._forward_all = tf.function(self._stacked, jit_compile=True)
        # Without relaxed shapes: the losses of single outputs are weighted with the
        # batch size where Keras knows it.
        self._metrics = tf.function(self._update_all)
        self._single = tf.function(self._one)

    def zero_state(self, devices: int):
        before = [v.numpy() for v in self.state]
        self.model.reset_metrics()
        zero = [tf.stack([tf.convert_to_tensor(v)] * devices) for v in self.state]
        for variable, value in zip(self.state, before, strict=True):
            variable.assign(value)
        return zero

    def _forward(self, values, batch):
        """(outputs, their masks, loss) of one device."""
        x, y, sample_weight = batch
        with overriding(self.model, zip(self.variables, values, strict=True)):
            y_pred = self.model(x, training=False)
            loss = self.model._compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=False
            )
        # Keras keeps masks as attributes of tensors, which a map over devices drops.
        outputs = keras.tree.flatten(y_pred)
        masks = {i: getattr(t, "_keras_mask", None) for i, t in enumerate(outputs)}
        return y_pred, {i: m for i, m in masks.items() if m is not None}, loss

    def _update(self, state, batch, y_pred, masks, loss):
        """The state of the metrics of one device after a batch."""
        x, y, sample_weight = batch
        outputs = keras.tree.flatten(y_pred)
        for i, mask in masks.items():
            outputs[i]._keras_mask = mask
        mapping = zip(self.state, state, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            size = tf.shape(keras.tree.flatten(x)[0])[0]
            self.model._loss_tracker.update_state(loss, sample_weight=size)
            if self.model._compile_loss.metrics:
                # The losses of single outputs count themselves when called.
                self.model._compile_loss(y, y_pred, sample_weight)
            self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
            return [_now(scope, v) for v in self.state]

    def _stacked(self, stacks, batch):
        """(outputs, masks, loss) of all devices."""
        with kernels_per_device():
            return tf.vectorized_map(
                lambda values: self._forward(values, batch),
                stacks,
                fallback_to_while_loop=False,
            )

    def _update_all(self, states, batch, *passed):
        # Metrics take little time, and some use operations that TensorFlow cannot
        # vectorise (Keras' argmax among them).
        return tf.map_fn(
            lambda one: self._update(one[0], batch, *one[1:]),
            (states, *passed),
            fn_output_signature=[s.dtype for s in states],
        )

    def _one(self, values, state, batch):
        return self._update(state, batch, *self._forward(values, batch))

    def all_at_once(self, stacks, states, batch):
        try:
            passed = self._forward_all(stacks, batch)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            # XLA does not know an operation of the model; TensorFlow may.
            self._forward_all = tf.function(self._stacked, reduce_retracing=True)
            passed = self._forward_all(stacks, batch)
        return self._metrics(states, batch, *passed)

    def one_by_one(self, stacks, states, batch):
        rows = [
            self._single([s[i] for s in stacks], [s[i] for s in states], batch)
            for i in range(len(states[0]))
        ]
        return [tf.stack(column) for column in zip(*rows, strict=True)]

    def results(self, states, devices: int) -> list[dict[str, np.ndarray]]:
        results = []
        for i in range(devices):
            mapping = zip(self.state, [s[i] for s in states], strict=True)
            with keras.StatelessScope(state_mapping=mapping):
                metrics = self.model.get_metrics_result()
            metrics.pop("sharpness", None)
            results.append({n: np.array(v, "float64") for n, v in metrics.items()})
        return results


def _last_line(error) -> str:
    """The message itself, which TensorFlow puts after its traceback."""
    return str(error).strip().splitlines()[-1].strip()


def _now(scope, variable):
    value = scope.get_current_value(variable)
    return tf.convert_to_tensor(variable) if value is None else value


def _checked_data(model, x, y, sample_weight):
    if not getattr(model, "compiled", False):
        raise ValueError(
            "`model` must be compiled, as for `evaluate`. "
            f"Received: model '{model.name}', not compiled"
        )
    data = keras.tree.map_structure(
        lambda a: None if a is None else np.asarray(a), (x, y, sample_weight)
    )
    lengths = {len(a) for a in keras.tree.flatten(data) if a is not None}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "`x`, `y` and `sample_weight` must have one length, at least 1. "
            f"Received: lengths {sorted(lengths)}"
        )
    for part, name in zip(data, ("x", "y", "sample_weight"), strict=True):
        for array in keras.tree.flatten(part):
            floats = array is not None and array.dtype.kind == "f"
            if floats and not np.isfinite(array).all():
                raise ValueError(f"`{name}` must be finite. Received: NaN or infinity")
    return data


def _rows(data, start: int, stop: int):
    return keras.tree.map_structure(
        lambda a: None if a is None else tf.convert_to_tensor(a[start:stop]), data
    )


def _build_metrics(model, data) -> None:
    """Creates the metrics' variables, which Keras makes at the first batch."""
    model._symbolic_build(data_batch=_rows(data, 0, 1))


def _chunk_size(model, data, batch_size, memory_limit, devices) -> int:
    """Devices whose layer outputs, patches included, and weights fit the limit."""
    floats = 0
    for layer in flat_layers(model):
        for node in layer._inbound_nodes:
            for output in node.output_tensors:
                size = int(np.prod([n or 1 for n in output.shape[1:]]))
                if isinstance(layer, MRRConv2D) and layer.built:
                    size += size // layer.filters * layer._fan_in
                floats += size
    if not floats:
        inputs = keras.tree.flatten(data[0])
        floats = 64 * sum(int(np.prod(a.shape[1:])) for a in inputs)
    # A device's weights, on the way from controls to a matrix.
    weights = 4 * sum(math.prod(v.shape) for v in controls_of(model))
    per_device = 4 * (floats * batch_size + weights) / 2**30
    return int(max(1, min(devices, memory_limit / max(per_device, 1e-9))))
