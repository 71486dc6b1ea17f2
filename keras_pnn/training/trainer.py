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

# What a model may override, and nothing would call.
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
    """A model around a model, which trains it in another way.

    `evaluate`, `predict` and saving behave as those of the model inside, but for the
    validation of a `fit` on a device, which is on the device. What layers assign in
    `call` (statistics, states of RNNs, random states, metrics) is stored once a step,
    as in plain training. A `compute_loss` of the model's own is used, with the loss
    that this model is compiled with, and so are the metrics that it keeps itself. A
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
        # The model inside casts its inputs; float64 ones would be rounded first.
        super().__init__(autocast=False, **kwargs)
        _check_strategy(self.distribute_strategy)
        self.model = model
        _keras.add_wrapper(self, model)
        self.supports_masking = True
        self.built = model.built
        # Whether the validation of a `fit` on a device is running.
        self.validating = False
        # Inside an object of its own, so that the number is no weight of the model.
        count = keras.Variable(
            0, dtype="int64", trainable=False, aggregation="sum", name="measurements"
        )
        self._counted = types.SimpleNamespace(samples=count)

    @like(keras.Model.summary)
    def summary(self, *args, **kwargs):
        """As `keras.Model.summary`, of the model inside, below a line on this one."""
        bound = _SUMMARY.bind(self, *args, **kwargs)
        (bound.arguments.get("print_fn") or print)(repr(self))
        self.model.summary(*args, **kwargs)

    def __repr__(self):
        # Keras also asks for it before everything is set.
        names = ("model", "ascent", "adversarial", "variation", "device")
        found = {name: getattr(self, name, None) for name in names}
        parts = "".join(f", {n}={brief(v)}" for n, v in found.items() if v)
        return f"<{type(self).__name__} name={self.name}{parts}>"

    def build(self, input_shape=None):
        # The model inside builds itself when it is called.
        self.built = True

    def call(self, inputs, training=None):
        return self.model(inputs)

    def compute_mask(self, inputs, previous_mask):
        return None

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """As `keras.Model.compute_loss`; that of the model inside if it has one."""
        if not _overrides(self.model, "compute_loss"):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        with _keras.lent_compile(self.model, self):
            return _keras.compute_loss(
                self.model, x, y, y_pred, sample_weight, training
            )

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """All metrics, with those that the model inside keeps itself."""
        known = super().metrics
        # Keras passes over those of a model in a model.
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

        The validation of a `fit` on a device is on the device, see `fit`.
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
        """Settings times samples that training has asked of its device so far.

        Each layer that is measured counts, in all passes, in validation too. `fit` logs
        the number after each epoch. It is part of the saved state.
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
                `steps_per_execution` above 1 or several replicas are asked for; or if
                a mesh's complex fields reach a layer or a loss of Keras.
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
        matter, and a resumed run goes on with the batches of an uninterrupted one.

        Validation is on the device: callbacks that choose by `val_loss` or
        `val_accuracy` choose by it. The digital model's figures stand beside them as
        `val_model_loss`, `val_model_accuracy`, …; both test the same batches in one
        pass. Where measuring is slow, `validation_freq=5` measures after every fifth
        epoch. The device gives the outputs of all its layers, as with
        `device.installed(model)`, whichever passes it takes part in during training. It
        is the device of this trainer, or one on the bench
        that is installed around it. A simulated device that is installed is in the
        model's own imperfections, so that `val_loss` is on it too, and the only one.

        A device on the bench that fails for good, in training or validation, ends it
        with a `DeviceError`. With a `pnn.callbacks.Checkpoint`, the state after the
        last whole step is in its folder then, and a new `fit` with it goes on at the
        next batch. After a failed validation, weights are those of training, also where
        a callback such as `keras.callbacks.SwapEMAWeights` had others in their place.

        Inputs are checked before anything changes, those of validation too. Batches of
        a `tf.data.Dataset` or a generator cannot be known ahead: NaN among them makes
        the controls NaN, which `keras.callbacks.TerminateOnNaN` shows.

        Raises:
            ValueError: If an array or a tensor of inputs holds no sample, or NaN or
                infinity; `steps_per_epoch` is not the length of a `Batches`; there is
                a `Checkpoint`, and the order of the batches is not known, there are
                `steps_per_epoch`, or it is listed behind a
                `SwapEMAWeights(swap_on_epoch=True)`; a device on the bench is installed
                around the model, which was compiled with `steps_per_execution` above 1;
                the model has deviations of its own in what a simulated `device` sets;
                or a metric in validation on a device is named `model_<metric>` as one
                of the digital model.
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
            # A new list: the given one has chosen its threads without ours.
            options["callbacks"] = keras.callbacks.CallbackList(
                [*own, *callbacks], model=self, **(given.params or {})
            )
        else:
            callbacks = keras.tree.flatten(given) if given is not None else []
            options["callbacks"] = [*own, *callbacks]
        check_order(x, options["shuffle"], options["steps_per_epoch"], callbacks)
        bench.check_alone(self)
        # A run that was resumed and failed may have left one.
        _keras.start_at(self, None)
        with bench.reporting(self, callbacks):
            return super().fit(*bound.args[1:], **bound.kwargs)

    def train_on_batch(self, x, *args, **kwargs):
        """As `keras.Model.train_on_batch`."""
        bench.check_alone(self)
        # They are for `fit`, but tell what cannot be trained on.
        self._own_callbacks(x)
        return super().train_on_batch(x, *args, **kwargs)

    def _own_callbacks(self, x) -> list[keras.callbacks.Callback]:
        """What `fit` on `x` needs besides the callbacks that it is given."""
        log = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: logs.update(measurements=self.measurements)
        )
        return [] if self.device is None else [log]

    @like(keras.Model.save)
    def save(self, filepath, overwrite=True, **kwargs):
        """As `keras.Model.save`; with a device, saves the digital model inside.

        Raises:
            ValueError: If an argument of this model or of `compile` cannot be loaded
                again, such as a lambda.
        """
        model = self if self.device is None else self.model
        # Keras would have opened the file, and lost an older one, when this raises.
        keras.saving.serialize_keras_object(model)
        return keras.Model.save(model, filepath, overwrite=overwrite, **kwargs)

    def export(self, filepath, *args, **kwargs):
        """As `keras.Model.export`, of the digital model inside."""
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
            # Not known when it was compiled.
            check_fields(self)
        # A source need not call it.
        self.built = True

    def _own_states(self) -> dict[str, keras.Variable]:
        """What an interrupted run needs to go on, and Keras does not save."""
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
