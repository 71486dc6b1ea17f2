"""Wrap a Keras model to train it by another step: losses, metrics, saving."""

import inspect
import types

import keras
import tensorflow as tf

from keras_pnn import _checks, _keras
from keras_pnn._display import brief
from keras_pnn._signatures import like
from keras_pnn.datasets import Batches
from keras_pnn.layers.context import substituting
from keras_pnn.layers.fields import check_fields
from keras_pnn.training import bench
from keras_pnn.training.batch_order import BatchOrder
from keras_pnn.training.resume import check_order
from keras_pnn.training.validation import test_both, validating

# Methods of the wrapped model that nothing would call.
_OWN_STEPS = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_metrics",
    "get_metrics_result",
)

_FIT = inspect.signature(keras.Model.fit)
_SUMMARY = inspect.signature(keras.Model.summary)


class Trainer(keras.Model):
    """Wraps a Keras model and trains it by another step.

    `evaluate` and `predict` run the wrapped model; validation in a `fit` with a device
    runs on the device. Values that layers assign in `call` (statistics, RNN states,
    random states, metrics) are stored once a step, as in plain training. The wrapped
    model's own `compute_loss` and metrics are used, with the loss compiled here. A
    subclass sets `gradient`, a `GradientSource`, and implements `train_step`.
    """

    def __init__(self, model: keras.Model, **kwargs):
        if not isinstance(model, keras.Model):
            raise _checks.error("model", "a keras.Model", _checks.short(model))
        own = [name for name in _OWN_STEPS if _overrides(model, name)]
        if own:
            raise ValueError(
                f"Argument `model` must not override {', '.join(_OWN_STEPS)}: a "
                f"{type(self).__name__} would not call them. Override `compute_loss`, "
                "and update metrics of the model's own there or in `call`. Received: "
                f"model '{model.name}' of {type(model).__name__}, which overrides "
                f"{', '.join(own)}"
            )
        # The wrapped model casts its inputs; casting here first would round float64.
        super().__init__(autocast=False, **kwargs)
        _check_strategy(self.distribute_strategy)
        self.model = model
        _keras.add_wrapper(self, model)
        self.supports_masking = True
        self.built = model.built
        # Whether the validation of a `fit` on a device is running.
        self.validating = False
        # In a plain object, so that Keras does not track it as a weight of the model.
        count = keras.Variable(
            0, dtype="int64", trainable=False, aggregation="sum", name="measurements"
        )
        self._counted = types.SimpleNamespace(samples=count)

    @like(keras.Model.summary)
    def summary(self, *args, **kwargs):
        """Prints a line on this model, then the summary of the wrapped model."""
        bound = _SUMMARY.bind(self, *args, **kwargs)
        (bound.arguments.get("print_fn") or print)(repr(self))
        self.model.summary(*args, **kwargs)

    def __repr__(self):
        # Keras also calls it before all attributes are set.
        names = ("model", "ascent", "adversarial", "variation", "device")
        found = {name: getattr(self, name, None) for name in names}
        parts = "".join(f", {n}={brief(v)}" for n, v in found.items() if v)
        return f"<{type(self).__name__} name={self.name}{parts}>"

    def build(self, input_shape=None):
        # The wrapped model builds itself when it is called.
        self.built = True

    def call(self, inputs, training=None):
        return self.model(inputs)

    def compute_mask(self, inputs, previous_mask):
        return None

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Computes the loss, by the model's own `compute_loss` if it has one."""
        if not _overrides(self.model, "compute_loss"):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        with _keras.lent_compile(self.model, self):
            return _keras.compute_loss(
                self.model, x, y, y_pred, sample_weight, training
            )

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """All metrics, including the wrapped model's own."""
        known = super().metrics
        # Keras leaves out the metrics of a nested model.
        seen = {id(m) for m in [*known, *_keras.compiled_metrics(self.model)]}
        return [*known, *(m for m in self.model.metrics if id(m) not in seen)]

    @property
    def train_metrics(self) -> list[keras.metrics.Metric]:
        """Metrics of the train step alone, which `evaluate` does not report."""
        return []

    def make_test_function(self, force=False):
        _keras.make_test_functions(self, force, lambda: self.validating)

    def test_step(self, data):
        if self.validating:
            batch = keras.utils.unpack_x_y_sample_weight(data)
            return test_both(self, lambda: self._tested(data), batch)
        return self._tested(data)

    def _tested(self, data) -> dict:
        logs = super().test_step(data)
        for metric in self.train_metrics:
            logs.pop(metric.name, None)
        return logs

    def evaluate(self, *args, **kwargs):
        """As `keras.Model.evaluate`; digital, unless a device is installed.

        Validation in a `fit` with a device runs on the device, see `fit`.
        """
        if not _keras.in_fit(kwargs) or not bench.devices_of(self):
            return super().evaluate(*args, **kwargs)
        with validating(self, kwargs["callbacks"].callbacks):
            return super().evaluate(*args, **kwargs)

    @property
    def device(self):
        """The device that measures the passes, or `None`."""
        return self.gradient.device

    @property
    def measurements(self) -> int:
        """Measurements of the device so far in training: settings times samples.

        Every measured layer counts, in all passes and in validation. `fit` logs the
        number after each epoch. It is part of the saved state.
        """
        return int(self._counted.samples.numpy())

    def count(self, asked) -> None:
        """Adds settings times samples to `measurements`, within a step."""
        if self.device is not None:
            self._counted.samples.assign_add(tf.cast(asked, "int64"))

    @like(keras.Model.compile)
    def compile(self, *args, **kwargs):
        """As `keras.Model.compile`.

        Raises:
            ValueError: If the device is on the bench, and `jit_compile=True`,
                `steps_per_execution` above 1 or several replicas are requested; or if a
                mesh's complex fields reach a layer or a loss of Keras.
        """
        if bench.on_bench(self):
            args, kwargs = (), bench.compile_options(self, *args, **kwargs)
        super().compile(*args, **kwargs)
        check_fields(self)

    def compile_from_config(self, config):
        # Keras leaves this to classes that have a `compile` of their own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    @like(keras.Model.fit)
    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`.

        The order of a `pnn.datasets.Batches` is tied to the epoch: `shuffle` does not
        matter, and a resumed run sees the same batches as an uninterrupted one.

        With a device, validation runs on it: `val_loss` and `val_accuracy` are the
        device's. The digital model's metrics are logged as `val_model_loss`,
        `val_model_accuracy`, …; both are tested on the same batches in one pass. Where
        measuring is slow, `validation_freq=5` validates after every fifth epoch. The
        device measures all its layers, as with `device.installed(model)`, even if
        training measures fewer. It is the device of this trainer, or one on the bench
        that is installed around it. An installed simulated device sets the model's own
        imperfections: `val_loss` includes it, and there is no `val_model_loss`.

        If a device on the bench fails for good, training and validation end with a
        `DeviceError`. With a `pnn.callbacks.Checkpoint`, its folder then holds the
        state after the last complete step, and a new `fit` with it resumes at the next
        batch. After a failed validation the training weights are restored, even if a
        callback such as `keras.callbacks.SwapEMAWeights` had replaced them.

        Inputs of training and validation are checked before anything changes. Batches
        of a `tf.data.Dataset` or a generator cannot be checked ahead: NaN in them makes
        the controls NaN, which `keras.callbacks.TerminateOnNaN` detects.

        Raises:
            ValueError: If an array or a tensor of inputs holds no sample, or NaN or
                infinity; `steps_per_epoch` is not the length of a `Batches`; there is a
                `Checkpoint`, and the order of the batches is unknown, `steps_per_epoch`
                is given, or it is listed after a `SwapEMAWeights(swap_on_epoch=True)`;
                a device on the bench is installed around the model, which was compiled
                with `steps_per_execution` above 1; the model deviates from nominal in
                what a simulated `device` sets; or a metric in validation on a device is
                named `model_<metric>` as one of the digital model.
            DeviceError: If the device failed for good.
        """
        bound = _FIT.bind(self, x, y, *args, **kwargs)
        bound.apply_defaults()
        options = bound.arguments
        _checks.inputs("x", x)
        validation = options["validation_data"]
        if isinstance(validation, tuple | list) and validation:
            _checks.inputs("validation_data", validation[0])
        own = self._own_callbacks(x)
        if isinstance(x, Batches):
            own, options["shuffle"] = [BatchOrder(x), *own], False
        given = options["callbacks"]
        if isinstance(given, keras.callbacks.CallbackList):
            callbacks = given.callbacks
            # A new list: the given one chose its threads without our callbacks.
            options["callbacks"] = keras.callbacks.CallbackList(
                [*own, *callbacks], model=self, **(given.params or {})
            )
        else:
            callbacks = keras.tree.flatten(given) if given is not None else []
            options["callbacks"] = [*own, *callbacks]
        check_order(x, options["shuffle"], options["steps_per_epoch"], callbacks)
        bench.check_alone(self)
        # A resumed run that failed may have left its start epoch.
        _keras.start_at(self, None)
        with bench.reporting(self, callbacks):
            return super().fit(*bound.args[1:], **bound.kwargs)

    def train_on_batch(self, x, *args, **kwargs):
        """As `keras.Model.train_on_batch`."""
        bench.check_alone(self)
        # The callbacks are for `fit`, but creating them checks the data.
        self._own_callbacks(x)
        return super().train_on_batch(x, *args, **kwargs)

    def _own_callbacks(self, x) -> list[keras.callbacks.Callback]:
        """The callbacks that `fit` on `x` adds to the given ones."""
        log = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: logs.update(measurements=self.measurements)
        )
        return [] if self.device is None else [log]

    @like(keras.Model.save)
    def save(self, filepath, overwrite=True, **kwargs):
        """As `keras.Model.save`; with a device, saves the digital model alone.

        Raises:
            ValueError: If an argument of this model or of `compile` cannot be loaded
                again, such as a lambda.
        """
        model = self if self.device is None else self.model
        # Raises before Keras opens the file, which would lose an older one.
        keras.saving.serialize_keras_object(model)
        return keras.Model.save(model, filepath, overwrite=overwrite, **kwargs)

    def export(self, filepath, *args, **kwargs):
        """As `keras.Model.export`, of the digital model."""
        with substituting(None):
            return self.model.export(filepath, *args, **kwargs)

    def get_config(self):
        if self.device is not None:
            raise ValueError(
                f"A {type(self).__name__} with a device has no config: its `save` "
                f"saves the digital model. Received: device={self.device!r}"
            )
        serialize = keras.saving.serialize_keras_object
        return {"name": self.name, "model": serialize(self.model)}

    def get_compile_config(self):
        if self.compiled:
            for name, value in _keras.compile_arguments(self).items():
                _checks.saved(self, name, value)
        return super().get_compile_config()

    def _build_inner(self, x) -> None:
        """Creates the variables that Keras leaves for the first call."""
        if not _keras.is_built(self.model):
            _keras.outputs_of(self.model, x)
            # The model's fields were unknown when it was compiled.
            check_fields(self)
        # A gradient source may not call this model.
        self.built = True

    def _own_states(self) -> dict[str, keras.Variable]:
        """The states that a resumed run needs and Keras does not save."""
        states = {
            "seed": _keras.seed_states(self.model),
            "recurrent": _keras.recurrent_states(self.model),
            "gradient": self.gradient.variables(self),
        }
        found = {"measurements": self._counted.samples}
        for kind, variables in states.items():
            found |= {f"{kind}_{index}": v for index, v in enumerate(variables)}
        return found

    def save_own_variables(self, store):
        for name, variable in self._own_states().items():
            store[name] = variable

    def load_own_variables(self, store):
        keys, seeds = set(store.keys()), _keras.seed_states(self.model)
        saved = [key for key in keys if key.startswith("seed_")]
        if len(saved) not in (0, len(seeds)):
            raise ValueError(
                f"`{self.name}` expected the states of {len(seeds)} random "
                f"generators. Received: {len(saved)}"
            )
        for key, state in self._own_states().items():
            # Weights may be those of a run with batches of another size, or with
            # another source of gradients.
            if key in keys and store[key].shape == state.shape:
                state.assign(store[key])


def _overrides(model: keras.Model, name: str) -> bool:
    return getattr(type(model), name) is not getattr(keras.Model, name)


def _check_strategy(strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError for a strategy under which Keras cannot `fit`."""
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if several and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "A model must be made outside `MultiWorkerMirroredStrategy`, under which "
            "Keras 3 cannot `fit` on TensorFlow (keras#20585). Use `MirroredStrategy` "
            "on one machine; on several, run one training on each, and measure with "
            "`robustness_report(executor=...)`. Received: a strategy with "
            f"{strategy.num_replicas_in_sync} replicas"
        )
