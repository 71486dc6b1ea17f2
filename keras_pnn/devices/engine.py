"""A model's test step as a function of the device, for many devices in one graph."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.devices.normalization import batch_norm_layers, own_statistics, pooled
from keras_pnn.layers.context import Overrides, kernels_per_device


class Mapped:
    """A function of one device, mapped over stacks of devices in one graph.

    Operations that do not depend on the device are computed once.

    Args:
        function: of (values of one device, *what all devices share).
    """

    def __init__(self, function):
        self._function = function
        # XLA fuses the passes over activations, which is most of the time: LeNet-5
        # takes a third of the time that it takes without.
        self._stacked = tf.function(self._map, jit_compile=True)
        self._single = tf.function(function)

    def _map(self, stacks, *shared):
        with kernels_per_device():
            return tf.vectorized_map(
                lambda values: self._function(values, *shared),
                stacks,
                fallback_to_while_loop=False,
            )

    def together(self, stacks, *shared):
        """Returns the stacked results of all devices."""
        try:
            return self._stacked(stacks, *shared)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            # XLA does not know an operation of the model; TensorFlow may.
            self._stacked = tf.function(self._map, reduce_retracing=True)
            return self._stacked(stacks, *shared)

    def repeated(self, devices: int, *shared):
        """Returns the same of devices that set nothing, from one call."""
        result = self._single([], *shared)
        return keras.tree.map_structure(lambda t: tf.stack([t] * devices), result)

    def one_by_one(self, stacks, *shared):
        """Returns the same, from one call for each device."""
        devices = range(len(stacks[0]))
        rows = [self._single([s[i] for s in stacks], *shared) for i in devices]
        return keras.tree.map_structure(lambda *row: tf.stack(row), *rows)


class Engine:
    """Evaluates a model for devices that set the same variables.

    Args:
        model: a compiled model whose metrics are built.
        variables: what the devices set.
        batch_norm: as in `DeviceEvaluator`.
        differs: whether a layer's outputs differ between devices.
    """

    def __init__(self, model, variables, batch_norm, differs):
        self.model, self.variables = model, list(variables)
        self.state = model.metrics_variables
        # What the model and its layers update themselves, in the forward pass.
        others = [*metrics_of_compile(model), *getattr(model, "train_metrics", ())]
        known = {id(v) for m in others for v in m.variables}
        self._forward_state = [
            i for i, v in enumerate(self.state) if id(v) not in known
        ]
        self.vectorized = True
        norms = batch_norm_layers(model)
        self._in_batch = norms if batch_norm == "batch" else []
        self._norms = norms if batch_norm == "reestimated" else []
        # Statistics are alike on all devices in front of what varies. They must not
        # be stacked there, or all that follows would be.
        self._own = {id(la) for la in self._norms if differs(la)}
        self._seeds = [
            generator.state
            for layer in _keras.flat_layers(model)
            for generator in getattr(layer, "_seed_generators", ())
        ]
        self._zero = self._zero_state()
        self._trace()

    def _trace(self):
        self._forward_all = Mapped(self._forward)
        self._moments_all = Mapped(self._moments)
        # Without relaxed shapes: the losses of single outputs are weighted with the
        # batch size where Keras knows it.
        self._metrics = tf.function(self._update_all)

    def _zero_state(self):
        before = [v.numpy() for v in self.state]
        self.model.reset_metrics()
        zero = [v.numpy() for v in self.state]
        for variable, value in zip(self.state, before, strict=True):
            variable.assign(value)
        return zero

    def zero_state(self, devices: int):
        """Returns each device's state before the first batch.

        That is the metrics' variables, and whether it has given NaN.
        """
        zero = [*self._zero, False]
        return [tf.stack([tf.convert_to_tensor(v)] * devices) for v in zero]

    def first_seeds(self) -> list[tf.Tensor]:
        """Returns the states of the model's random numbers before the first batch."""
        return [tf.convert_to_tensor(v) for v in self._seeds]

    def _mapped(self, function: Mapped, stacks, devices: int, *shared):
        """The first `devices` results; the rest of the stacks is only filling."""
        if not stacks:
            # Devices that set nothing are all the model as it is.
            return function.repeated(devices, *shared)
        if self.vectorized and len(stacks[0]) > 1:
            try:
                results = function.together(stacks, *shared)
                return keras.tree.map_structure(lambda t: t[:devices], results)
            except (ValueError, NotImplementedError) as error:
                if "pfor" not in str(error) and "onverter" not in str(error):
                    raise
                self.vectorized = False
                warnings.warn(
                    "A layer cannot be vectorised over devices; they run one "
                    f"after the other ({_last_line(error)})",
                    stacklevel=2,
                )
        return function.one_by_one([s[:devices] for s in stacks], *shared)

    def update(self, stacks, statistics, states, seeds, batch):
        """Returns the states of all devices after a batch, and those of the seeds.

        Args:
            stacks: values of the variables, (devices or more, ...) each.
            statistics: what `statistics` returned.
            states: the states before, (devices, ...) each.
            seeds: those of the random numbers, which all devices share.
            batch: (x, y, sample_weight).
        """
        own, shared = statistics
        devices = len(states[0])
        size = len(stacks[0]) if stacks else devices
        metrics = [filled(states[i], size) for i in self._forward_state]
        *passed, seeds = self._mapped(
            self._forward_all, [*stacks, *own, *metrics], devices, shared, seeds, batch
        )
        return self._metrics(states, batch, *passed), [s[0] for s in seeds]

    def statistics(self, stacks, devices: int, batches):
        """Estimates the statistics of batch normalisation for each device.

        Args:
            stacks: values of the variables, (devices or more, ...) each.
            devices: how many of them count.
            batches: an iterable of inputs.

        Returns:
            Those that differ between devices, as long as the stacks, and those
            that do not: means and variances of the layers in order.
        """
        if not self._norms:
            return [], []
        parts, seeds = [], self.first_seeds()
        for batch in batches:
            moments, seeds = self._mapped(
                self._moments_all, stacks, devices, seeds, batch
            )
            seeds = [s[0] for s in seeds]
            parts.append(moments)
        found = []
        for layer, *batches_of_layer in zip(self._norms, *parts, strict=True):
            calls = [call for batch in batches_of_layer for call in batch]
            if not calls:
                # The model has the layer and does not call it.
                moving = layer.moving_mean, layer.moving_variance
                found.append([np.stack([v.numpy()] * devices) for v in moving])
                continue
            found.append(pooled(*(np.stack(c) for c in zip(*calls, strict=True))))
        for layer, values in zip(self._norms, found, strict=True):
            alike = all((v == v[:1]).all() for v in values)
            if id(layer) not in self._own and not alike:
                # The model is not what its nodes say.
                self._own = {id(la) for la in self._norms}
                self._trace()
        own, shared = [], []
        for layer, values in zip(self._norms, found, strict=True):
            for value in values:
                value = tf.constant(value, layer.moving_mean.dtype)
                if id(layer) in self._own:
                    own.append(filled(value, len(stacks[0]) if stacks else devices))
                else:
                    shared.append(value[0])
        return own, shared

    def _moving(self, own: bool):
        """The re-estimated variables that differ between devices, or do not."""
        norms = [la for la in self._norms if (id(la) in self._own) is own]
        return [v for la in norms for v in (la.moving_mean, la.moving_variance)]

    def _moments(self, values, seeds, x):
        """What `normalization.moments` returns for each layer and call, and seeds."""
        mapping = [
            *zip(self.variables, values, strict=True),
            *zip(self._seeds, seeds, strict=True),
        ]
        with (
            Overrides(mapping).scope(self.model) as scope,
            own_statistics(self._norms) as found,
        ):
            self.model(x, training=False)
        return found, [_now(scope, v) for v in self._seeds]

    def _forward(self, values, shared, seeds, batch):
        """(outputs, masks, loss, metrics' state, any NaN, seeds) of one device."""
        x, y, sample_weight = batch
        metrics = [self.state[i] for i in self._forward_state]
        mapping = [
            *zip([*self.variables, *self._moving(True), *metrics], values, strict=True),
            *zip(self._moving(False), shared, strict=True),
            *zip(self._seeds, seeds, strict=True),
        ]
        with Overrides(mapping).scope(self.model) as scope:
            with own_statistics(self._in_batch):
                y_pred = self.model(x, training=False)
            loss = self.model._compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=False
            )
        # Keras keeps masks as attributes of tensors, which a map over devices drops.
        outputs = keras.tree.flatten(y_pred)
        masks = {i: getattr(t, "_keras_mask", None) for i, t in enumerate(outputs)}
        masks = {i: m for i, m in masks.items() if m is not None}
        failed = tf.reduce_any([_any_nan(t) for t in [loss, *outputs]])
        now, seeds = ([_now(scope, v) for v in vs] for vs in (metrics, self._seeds))
        return y_pred, masks, loss, now, failed, seeds

    def _update(self, state, batch, y_pred, masks, loss, passed, failed):
        """The state of one device after a batch."""
        x, y, sample_weight = batch
        outputs = keras.tree.flatten(y_pred)
        for i, mask in masks.items():
            outputs[i]._keras_mask = mask
        *state, failed_before = state
        for i, value in zip(self._forward_state, passed, strict=True):
            state[i] = value
        mapping = zip(self.state, state, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            size = tf.shape(keras.tree.flatten(x)[0])[0]
            self.model._loss_tracker.update_state(loss, sample_weight=size)
            if getattr(self.model._compile_loss, "metrics", None):
                # The losses of single outputs count themselves when called.
                self.model._compile_loss(y, y_pred, sample_weight)
            self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
            now = [_now(scope, v) for v in self.state]
        return [*now, tf.logical_or(failed_before, failed)]

    def _update_all(self, states, batch, *passed):
        # Metrics take little time, and some use operations that TensorFlow cannot
        # vectorise (Keras' argmax among them).
        return tf.map_fn(
            lambda one: self._update(one[0], batch, *one[1:]),
            (states, *passed),
            fn_output_signature=[s.dtype for s in states],
        )

    def results(self, states) -> list[dict]:
        """Returns the loss and the metrics of each device, name to value.

        Metrics of a device that gave NaN are NaN: to most, NaN is an ordinary wrong
        answer, or class 0.
        """
        results = []
        *states, failed = states
        for i in range(len(states[0])):
            mapping = zip(self.state, [s[i] for s in states], strict=True)
            with keras.StatelessScope(state_mapping=mapping):
                metrics = self.model.get_metrics_result()
                row = {n: _plain(v) for n, v in metrics.items()}
            for metric in getattr(self.model, "train_metrics", ()):
                row.pop(metric.name, None)
            if failed[i]:
                row = {n: v if n == "loss" else v * np.nan for n, v in row.items()}
            results.append(row)
        return results


def metrics_of_compile(model: keras.Model) -> list[keras.metrics.Metric]:
    """Returns what `compile` made: the trackers of losses, and the metrics."""
    found = [model._loss_tracker, model._compile_metrics]
    found += getattr(model._compile_loss, "metrics", [])
    return [m for m in found if m is not None]


def filled(stack: tf.Tensor, size: int) -> tf.Tensor:
    """Repeats the last row of a stack until it has `size` rows."""
    missing = size - len(stack)
    if missing <= 0:
        return stack
    return tf.concat([stack, tf.repeat(stack[-1:], missing, axis=0)], axis=0)


def _any_nan(tensor) -> tf.Tensor:
    """Whether a tensor holds a NaN; never, where its dtype has none."""
    tensor = tf.convert_to_tensor(tensor)
    if tensor.dtype.is_complex:
        tensor = tf.abs(tensor)
    if not tensor.dtype.is_floating:
        return tf.constant(False)
    return tf.reduce_any(tf.math.is_nan(tensor))


def _plain(value):
    if isinstance(value, keras.Variable):
        # NumPy would read past the scope that it is in.
        value = tf.convert_to_tensor(value)
    value = np.array(value, "float64")
    return value if value.ndim else float(value)


def _last_line(error) -> str:
    """The message itself, which TensorFlow puts after its traceback."""
    return str(error).strip().splitlines()[-1].strip()


def _now(scope, variable):
    value = scope.get_current_value(variable)
    return tf.convert_to_tensor(variable) if value is None else value
