"""What every model with a train step of its own shares: wrapping, saving, resuming."""

import contextlib
import inspect
from collections.abc import Iterator

import keras

from keras_pnn import _checks
from keras_pnn._keras import add_wrapper
from keras_pnn.devices.engine import metrics_of_compile
from keras_pnn.hardware.device import DeviceError, raising
from keras_pnn.layers.context import measuring_device, substituting
from keras_pnn.training.resume import Position, Skipping, save_state

# What a model may override, and nothing would call.
_OWN_STEPS = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_metrics",
    "get_metrics_result",
)
# What a model's `compute_loss` may use of what `compile` sets.
_LENT = ("_compile_loss", "loss", "optimizer", "compiled")

_COMPILE = inspect.signature(keras.Model.compile)
_FIT = inspect.signature(keras.Model.fit)


class Trainer(keras.Model):
    """A model around a model, which trains it in another way.

    `evaluate`, `predict` and saving behave as those of the model inside. Its
    `compute_loss` is used where it has one of its own, with the loss that this model
    is compiled with, and so are the metrics that it keeps itself. A subclass sets
    `gradient`, a `GradientSource`, and implements `train_step`.

    Args:
        model: any Keras model that leaves the steps of training, evaluation and
            prediction to Keras.

    Raises:
        ValueError: `model` is no Keras model, or overrides `train_step`,
            `test_step`, `predict_step`, `compute_metrics` or `get_metrics_result`.
    """

    def __init__(self, model: keras.Model, **kwargs):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a keras.Model. Received: {model!r}")
        own = [name for name in _OWN_STEPS if _overrides(model, name)]
        if own:
            raise ValueError(
                f"`model` must not override {', '.join(_OWN_STEPS)}: a "
                f"{type(self).__name__} would not call them. Override `compute_loss`, "
                "and update metrics of the model's own there or in `call`. Received: "
                f"model '{model.name}' of {type(model).__name__}, which overrides "
                f"{', '.join(own)}"
            )
        # The model inside casts its inputs; float64 ones would be rounded first.
        super().__init__(autocast=False, **kwargs)
        self.model = model
        add_wrapper(self, model)
        self.supports_masking = True
        self.built = model.built

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
        with _lent(self, self.model):
            # Not every model's own takes `training`.
            return self.model._compute_loss(x, y, y_pred, sample_weight, training)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """All metrics, with those that the model inside keeps itself."""
        known = super().metrics
        # Keras passes over those of a model in a model.
        seen = {id(m) for m in [*known, *metrics_of_compile(self.model)]}
        return [*known, *(m for m in self.model.metrics if id(m) not in seen)]

    @property
    def train_metrics(self) -> list[keras.metrics.Metric]:
        """Metrics of the train step alone, which `evaluate` does not report."""
        return []

    def test_step(self, data):
        logs = super().test_step(data)
        for metric in self.train_metrics:
            logs.pop(metric.name, None)
        return logs

    @property
    def device(self):
        """The device that measures the passes, or `None`."""
        return self.gradient.device

    @property
    def on_bench(self) -> bool:
        """Whether a device is Python that a compiled graph cannot hold.

        Also one that is installed around the model, `with device.installed(model)`.
        """
        return any(hasattr(d, "measure_in_graph") for d in self._devices())

    def _devices(self) -> list:
        """The devices that may fail in a step: its own, and one that is installed."""
        return [d for d in (self.device, measuring_device()) if d is not None]

    def compile(self, *args, **kwargs):
        """As `keras.Model.compile`.

        Raises:
            ValueError: the device is on the bench, and `jit_compile=True`,
                `steps_per_execution` above 1 or several replicas are asked for.
        """
        given = _COMPILE.bind(self, *args, **kwargs).arguments
        if self.on_bench:
            replicas = self.distribute_strategy.num_replicas_in_sync
            for name, asked in {
                "jit_compile=True": given.get("jit_compile") is True,
                "steps_per_execution > 1": given.get("steps_per_execution", 1) != 1,
                f"{replicas} replicas": replicas > 1,
            }.items():
                if asked:
                    raise ValueError(
                        "A device on the bench is Python, one measurement at a time: "
                        "compile without jit_compile=True, with steps_per_execution=1 "
                        f"and on one replica. Received: {name}"
                    )
            if given.get("jit_compile", "auto") == "auto":
                kwargs = {**given, "jit_compile": False}
                kwargs.pop("self")
                args = ()
        super().compile(*args, **kwargs)

    def compile_from_config(self, config):
        # Keras leaves this to classes that have a `compile` of their own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`.

        A device that fails for good ends it with a `DeviceError`; the state after the
        last whole step is saved then, in the folder of a `pnn.callbacks.Checkpoint`
        where there is one, else in `interrupted_<name of the model>`. With that folder
        a `Checkpoint` goes on at the next batch.

        Inputs are checked before anything changes, those of validation too. Batches of
        a `tf.data.Dataset` or a generator cannot be known ahead: NaN among them makes
        the controls NaN, which `keras.callbacks.TerminateOnNaN` shows.

        Raises:
            ValueError: an array or a tensor of inputs holds no sample, or NaN or
                infinity; there is a `Checkpoint`, and the order of the batches is not
                known; or a device on the bench is installed around the model, which
                was compiled with `steps_per_execution` above 1.
            DeviceError: the device failed for good.
        """
        if self.on_bench and self.steps_per_execution != 1:
            raise ValueError(
                "A device on the bench trains one batch at a time: compile with "
                "steps_per_execution=1. Received: "
                f"steps_per_execution={self.steps_per_execution}"
            )
        bound = _FIT.bind(self, x, y, *args, **kwargs)
        bound.apply_defaults()
        _checks.inputs("x", x)
        validation = bound.arguments["validation_data"]
        if isinstance(validation, tuple | list) and validation:
            _checks.inputs("validation_data", validation[0])
        given = bound.arguments["callbacks"]
        # First in line: a callback that fails finds the batch counted.
        position, *_ = own = self._own_callbacks()
        if isinstance(given, keras.callbacks.CallbackList):
            callbacks = given.callbacks
            # A new list: the given one has chosen its threads without ours.
            bound.arguments["callbacks"] = keras.callbacks.CallbackList(
                [*own, *callbacks], model=self, **(given.params or {})
            )
        else:
            callbacks = keras.tree.flatten(given) if given is not None else []
            bound.arguments["callbacks"] = [*own, *callbacks]
        keepers = [c for c in callbacks if hasattr(c, "save_state")]
        if keepers:
            _check_order(x, bound.arguments["shuffle"], callbacks)
        # What a run that was resumed and failed again may have left.
        self._initial_epoch = None
        if self.train_function is not None:
            self.skip(0)
        try:
            with contextlib.ExitStack() as stack:
                for device in self._devices():
                    stack.enter_context(raising(device))
                return super().fit(*bound.args[1:], **bound.kwargs)
        except DeviceError as error:
            epoch, batches = position.epoch, position.batches
            where = epoch, batches, position.metrics
            if keepers:
                folder = keepers[0].save_state(*where)
            else:
                folder = save_state(self, f"interrupted_{self.name}", *where)
            error.add_note(
                f"The model is saved as it was after {batches} batches of epoch "
                f"{epoch + 1}. To go on, pass "
                f"callbacks=[pnn.callbacks.Checkpoint({str(folder)!r})] and the same "
                "batches in the same order."
            )
            raise

    def _own_callbacks(self) -> list[keras.callbacks.Callback]:
        """What `fit` needs besides the callbacks that it is given."""
        return [Position()]

    def make_train_function(self, force=False):
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        self.train_function = Skipping(self, self.train_function)

    def skip(self, batches: int, metrics: list = ()) -> None:
        """Passes over the first batches of the next epoch, which are done already.

        Args:
            batches: how many.
            metrics: what they had given, as from `resume.metrics_of`.
        """
        skipping = self._skipping()
        skipping.left, skipping.metrics = batches, list(metrics)

    def retrace(self) -> None:
        """Traces the train step anew, within whatever callbacks have put around it."""
        outer, skipping = self.train_function, self._skipping()
        self.make_train_function(force=True)
        skipping.function = self.train_function.function
        self.train_function = outer

    def _skipping(self) -> Skipping:
        function = self.train_function
        while not isinstance(function, Skipping):
            function = function.function
        return function

    def save(self, filepath, overwrite=True, **kwargs):
        """As `keras.Model.save`; with a device, saves the digital model inside."""
        model = self if self.device is None else self.model
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

    def _build_inner(self, x) -> None:
        """Creates the variables that Keras leaves for the first call."""
        if not all(layer.built for layer in self.model._flatten_layers()):
            symbols = [
                None if t is None else keras.KerasTensor(t.shape, t.dtype)
                for t in keras.tree.flatten(x)
            ]
            self.model(keras.tree.pack_sequence_as(x, symbols))

    def _commit(self, scope, overridden) -> None:
        """Stores what a pass updated: statistics, random states, metrics."""
        given = {id(v) for v in overridden}
        for variable in [*self.model.non_trainable_variables, *self.metrics_variables]:
            value = scope.get_current_value(variable)
            if value is not None and id(variable) not in given:
                variable.assign(value)

    def _seed_states(self) -> list[keras.Variable]:
        return [
            generator.state
            for layer in self.model._flatten_layers()
            for generator in getattr(layer, "_seed_generators", [])
        ]

    def save_own_variables(self, store):
        # Keras does not save the state of random generators; an interrupted run
        # could then not go on with the same numbers.
        for index, state in enumerate(self._seed_states()):
            store[f"seed_{index}"] = state

    def load_own_variables(self, store):
        states = self._seed_states()
        saved = [key for key in list(store.keys()) if key.startswith("seed_")]
        if len(saved) not in (0, len(states)):
            raise ValueError(
                f"`{self.name}` expected the states of {len(states)} random "
                f"generators. Received: {len(saved)}"
            )
        for index in range(len(saved)):
            states[index].assign(store[f"seed_{index}"])


def _overrides(model: keras.Model, name: str) -> bool:
    return getattr(type(model), name) is not getattr(keras.Model, name)


@contextlib.contextmanager
def _lent(trainer: keras.Model, model: keras.Model) -> Iterator[None]:
    """Gives a model what another is compiled with, until the block ends.

    The model's own, if it is compiled, comes back: it stays what the user made it.
    """
    # Past Keras' tracking, or an optimizer would be saved twice.
    attributes = vars(model)
    before = {name: attributes[name] for name in _LENT if name in attributes}
    attributes.update({name: getattr(trainer, name) for name in _LENT})
    try:
        yield
    finally:
        for name in _LENT:
            del attributes[name]
        attributes.update(before)


def _check_order(x, shuffle, callbacks) -> None:
    """Raises ValueError if a resumed epoch would see other batches than before."""
    if isinstance(x, keras.utils.PyDataset):
        known = any(getattr(c, "batches", None) is x for c in callbacks)
        advice = "pass callbacks=[pnn.callbacks.BatchOrder(batches), ...]"
    else:
        known = not shuffle and not inspect.isgenerator(x)
        advice = (
            "pass a `pnn.datasets.Batches`, or arrays or a data set of fixed order "
            "with shuffle=False"
        )
    if not known:
        raise ValueError(
            "A `Checkpoint` goes on in the middle of an epoch, so the order of the "
            f"batches must be known: {advice}. Received: {type(x).__name__}, "
            f"shuffle={shuffle!r}"
        )
