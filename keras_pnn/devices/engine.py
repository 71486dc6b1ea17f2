"""Trace a model's test step as a function of the device, for many devices at once."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.devices.mapped import Mapped, filled, graph
from keras_pnn.devices.normalization import batch_norm_layers, own_statistics, pooled
from keras_pnn.layers.context import Overrides, restoring


class _Assigned(Exception):
    """Raised if a layer assigns variables that batches do not pass on yet."""


class Engine:
    """Evaluates a model, whose metrics are built, for devices that set `variables`.

    All stacks have `rows` rows, one for each device. If there are fewer devices, the
    remaining rows copy the last. `differs` tells whether a layer's outputs differ
    between devices, `compiled` whether XLA compiles the passes over them.
    """

    def __init__(self, model, variables, rows, batch_norm, differs, compiled):
        self.model, self.variables, self.rows = model, variables, rows
        self._compile = compiled
        self._metrics = model.metrics_variables
        # Metrics of the train step, which no evaluation reports.
        self._not_tested = getattr(model, "train_metrics", ())
        compiled = [*_keras.compiled_metrics(model), *self._not_tested]
        self._compiled = [v for m in compiled for v in m.variables]
        norms = batch_norm_layers(model)
        # Assigned for one call, by `own_statistics`.
        self._moved = [v for la in norms for v in (la.moving_mean, la.moving_variance)]
        # States of layers, which each device passes from batch to batch.
        self._handed = _keras.recurrent_states(model)
        self._in_batch = norms if batch_norm == "batch" else []
        self._norms = norms if batch_norm == "reestimated" else []
        # In front of varied layers, all devices have the same statistics. Stacking them
        # there would stack all outputs that follow.
        self._own = {id(la) for la in self._norms if differs(la)}
        self._seeds = [*_keras.seed_states(model), _keras.global_seed_state()]
        self._zero = self._zero_states()
        self._trace()

    def _trace(self):
        self._state = [*self._metrics, *self._handed]
        # States that the model and its layers update in the forward pass.
        compiled = {id(v) for v in self._compiled}
        self._in_pass = [i for i, v in enumerate(self._state) if id(v) not in compiled]
        self._forward_all = Mapped(self._forward, self.rows, self._compile)
        self._moments_all = Mapped(self._moments, self.rows, self._compile)
        # Without relaxed shapes: the losses of single outputs are weighted with the
        # batch size where Keras knows it.
        self._metrics_all = graph(self._update_all)

    @property
    def vectorized(self) -> bool:
        """Whether the devices run in one graph, as far as is known."""
        return self.rows > 1 and self._forward_all.vectorized

    def run(
        self, values: list, devices: int, calibration: Callable, batches: Callable
    ) -> tuple[list[dict], int]:
        """Evaluates devices from the values of their variables, in stacks.

        Returns name → value of each device, and the number of devices that gave NaN.
        """
        try:
            return self._run(values, devices, calibration(), batches())
        except _Assigned:
            self._trace()
        return self.run(values, devices, calibration, batches)

    def _run(self, values, devices, calibration, batches):
        stacks = [filled(stack, self.rows) for stack in values]
        first_seeds = seeds = [tf.convert_to_tensor(v) for v in self._seeds]
        first = handed = [self._same(tf.convert_to_tensor(v)) for v in self._handed]
        parts = []
        for x in calibration if self._norms else ():
            moments, handed, seeds = self._moments_all(
                [*stacks, *handed], devices, seeds, x
            )
            seeds = [s[0] for s in seeds]
            parts.append(moments)
        own, shared = self._statistics(parts)
        states, seeds = [*self._zero, *first], first_seeds
        for batch in batches:
            # The first state tells which devices have failed.
            passed = [states[1 + i] for i in self._in_pass]
            *outputs, seeds = self._forward_all(
                [*stacks, *own, *passed], devices, shared, seeds, batch
            )
            states = self._metrics_all(states, batch, *outputs)
            seeds = [s[0] for s in seeds]
        return self._results(states, devices)

    def _same(self, value) -> tf.Tensor:
        """Returns a stack that repeats one value."""
        return tf.stack([value] * self.rows)

    def _zero_states(self) -> list[tf.Tensor]:
        """Returns each device's NaN flag and metrics before the first batch."""
        with restoring(self._metrics):
            self.model.reset_metrics()
            zero = [False, *(v.numpy() for v in self._metrics)]
        return [self._same(tf.convert_to_tensor(v)) for v in zero]

    def _statistics(self, parts: list) -> tuple[list, list]:
        """Pools the statistics that `_moments` found for each batch.

        Returns means and variances in the order of the layers: stacks of those that
        differ between devices, and single values of the others.
        """
        found = []
        for i, layer in enumerate(self._norms):
            calls = [call for part in parts for call in part[i]]
            if calls:
                found.append(pooled(*(np.stack(c) for c in zip(*calls, strict=True))))
            else:
                # The model has the layer but does not call it.
                moving = layer.moving_mean, layer.moving_variance
                found.append([np.stack([v.numpy()] * self.rows) for v in moving])
            alike = all((v == v[:1]).all() for v in found[-1])
            if id(layer) not in self._own and not alike:
                # The model does not follow its graph of nodes.
                self._own = {id(la) for la in self._norms}
                self._trace()
        own, shared = [], []
        for layer, values in zip(self._norms, found, strict=True):
            values = [tf.constant(v, layer.moving_mean.dtype) for v in values]
            if id(layer) in self._own:
                own += values
            else:
                shared += [v[0] for v in values]
        return own, shared

    def _moving(self, own: bool):
        """The re-estimated variables that differ between devices, or the others."""
        norms = [la for la in self._norms if (id(la) in self._own) is own]
        return [v for la in norms for v in (la.moving_mean, la.moving_variance)]

    def _moments(self, values, seeds, x):
        """Returns (statistics of each layer and call, states, seeds) of one device."""
        given = [*self.variables, *self._handed, *self._seeds]
        overrides = Overrides(zip(given, [*values, *seeds], strict=True))
        with overrides.scope(self.model) as scope, own_statistics(self._norms) as found:
            self.model(x, training=False)
        self._check(scope)
        handed = [_now(scope, v) for v in self._handed]
        return found, handed, [_now(scope, v) for v in self._seeds]

    def _check(self, scope) -> None:
        """Raises `_Assigned` if a pass assigned states that are not passed on yet."""
        scope.check_unassigned(self.variables, "each device")
        known = [*self._state, *self._seeds, *self._compiled, *self._moved]
        ids = set(map(id, known))
        others = [v for v, _ in scope.updates() if id(v) not in ids]
        if others:
            self._handed += others
            raise _Assigned

    def _forward(self, values, shared, seeds, batch):
        """Returns (outputs, attributes, loss, any NaN, states, seeds) of one device."""
        x, y, sample_weight = batch
        passed = [self._state[i] for i in self._in_pass]
        stacked = [*self.variables, *self._moving(True), *passed]
        alike = [*self._moving(False), *self._seeds]
        overrides = Overrides(
            zip([*stacked, *alike], [*values, *shared, *seeds], strict=True)
        )
        with overrides.scope(self.model) as scope:
            with own_statistics(self._in_batch):
                y_pred = self.model(x, training=False)
            loss = _keras.compute_loss(
                self.model, x, y, y_pred, sample_weight, training=False
            )
            loss = _keras.reported(loss)
        self._check(scope)
        # A map over devices would lose the attributes that Keras sets on tensors.
        outputs = keras.tree.flatten(y_pred)
        attributes = [_keras.tensor_attributes(t) for t in outputs]
        failed = tf.reduce_any([_any_nan(t) for t in [loss, *outputs]])
        now, seeds = ([_now(scope, v) for v in vs] for vs in (passed, self._seeds))
        return y_pred, attributes, loss, failed, now, seeds

    def _update_all(self, states, batch, *passed):
        # Metrics take little time, and some use operations that TensorFlow cannot
        # vectorise (Keras' argmax among them).
        return tf.map_fn(
            lambda one: self._update(one[0], batch, *one[1:]),
            (states, *passed),
            fn_output_signature=[s.dtype for s in states],
        )

    def _update(self, state, batch, y_pred, attributes, loss, failed, passed):
        """Returns the state of one device after a batch."""
        x, y, sample_weight = batch
        outputs = keras.tree.flatten(y_pred)
        for output, its_own in zip(outputs, attributes, strict=True):
            _keras.set_tensor_attributes(output, its_own)
        failed_before, *state = state
        for i, value in zip(self._in_pass, passed, strict=True):
            state[i] = value
        mapping = zip(self._state, state, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            size = tf.shape(keras.tree.flatten(x)[0])[0]
            _keras.loss_tracker(self.model).update_state(loss, sample_weight=size)
            _keras.count_losses(self.model, y, y_pred, sample_weight)
            self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
            now = [_now(scope, v) for v in self._state]
        return [tf.logical_or(failed_before, failed), *now]

    def _results(self, states, devices: int) -> tuple[list[dict], int]:
        """Returns the metrics of each device, and the number of devices with NaN."""
        results = []
        # As arrays, since slicing tensors would take most of the time.
        failed, *states = (state.numpy() for state in states)
        for i in range(devices):
            mapping = zip(self._state, [s[i] for s in states], strict=True)
            with keras.StatelessScope(state_mapping=mapping):
                metrics = self.model.get_metrics_result()
                row = {n: _plain(v) for n, v in metrics.items()}
            for metric in self._not_tested:
                row.pop(metric.name, None)
            if failed[i]:
                # Most metrics count NaN as an ordinary wrong answer, or as class 0.
                row = {n: v if n == "loss" else v * np.nan for n, v in row.items()}
            results.append(row)
        return results, int(np.count_nonzero(failed[:devices]))


def _any_nan(tensor) -> tf.Tensor:
    """Whether a tensor holds a NaN; false for dtypes without NaN."""
    tensor = tf.convert_to_tensor(tensor)
    if tensor.dtype.is_complex:
        tensor = tf.abs(tensor)
    if not tensor.dtype.is_floating:
        return tf.constant(False)
    return tf.reduce_any(tf.math.is_nan(tensor))


def _plain(value):
    if isinstance(value, keras.Variable):
        # NumPy would ignore the scope that holds its value.
        value = tf.convert_to_tensor(value)
    value = np.array(value, "float64")
    return value if value.ndim else float(value)


def _now(scope, variable):
    value = scope.get_current_value(variable)
    # XLA does not accept an input of a map as its output.
    return tf.identity(tf.convert_to_tensor(variable) if value is None else value)
