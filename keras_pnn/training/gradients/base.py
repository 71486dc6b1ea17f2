"""Take a loss and its gradient from the model, or from a device and the model."""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _keras
from keras_pnn._signatures import Configured
from keras_pnn.layers.context import Overrides, measured_by, valued
from keras_pnn.layers.lookup import physical_layers


class Batch(tuple):
    """A batch (x, y, sample_weight), and a `term` of the outputs to add to its loss."""

    def __new__(cls, parts, term: Callable | None = None):
        batch = super().__new__(cls, parts)
        batch.term = term
        return batch

    @property
    def size(self) -> tf.Tensor:
        """The number of samples."""
        inputs = (a for a in keras.tree.flatten(self[0]) if a is not None)
        return tf.shape(next(inputs))[0]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of one pass over a batch.

    Args:
        loss: the loss as `compute_loss` returns it.
        wrt: the variables with respect to which it was differentiated.
        gradients: its gradients, times the optimizer's loss scale; `None` where the
            loss does not depend on a variable.
        y_pred: the model's outputs.
        scope: holds what the pass would have assigned.
        asked: the measurements of a device: settings times samples.
        commit: stores the source's own new states.
    """

    loss: tf.Tensor
    wrt: list
    gradients: list
    y_pred: object
    scope: keras.StatelessScope
    asked: tf.Tensor | int = 0
    commit: Callable[[], None] = lambda: None

    def gradient(self, variable: keras.Variable) -> tf.Tensor | None:
        """Returns the gradient with respect to one variable, `None` without one."""
        pairs = zip(self.wrt, self.gradients, strict=True)
        return next((g for v, g in pairs if v is variable), None)

    def dense(self, variable: keras.Variable) -> tf.Tensor:
        """Returns `gradient` as a dense tensor, zero without one."""
        gradient = self.gradient(variable)
        if gradient is None:
            return tf.zeros(variable.shape, variable.dtype)
        return tf.convert_to_tensor(gradient)


class GradientSource(Configured):
    """Base of the gradient sources, which evaluate a batch and assign nothing.

    Variables are read through a `StatelessScope`, so that two passes over one batch
    see the same state and the same random numbers.

    A subclass implements `__call__`.
    """

    device = None
    needs_device = False

    def on(self, device) -> "GradientSource":
        """Returns a copy of this source for a device, or for no device."""
        if device is None and self.needs_device:
            raise ValueError(
                f"{type(self).__name__} needs a device: pass `device`. "
                "Received: device=None"
            )
        if device is not None and not callable(getattr(device, "measure", None)):
            expected = "an object with a method measure(layer, inputs, controls)"
            raise _checks.error("device", expected, _checks.short(device))
        source = copy.copy(self)
        source.device = device
        return source

    def __call__(
        self, trainer, batch, overrides: Overrides, wrt: list, index: int = 0
    ) -> Evaluation:
        """Evaluates a batch.

        Args:
            trainer: a compiled model.
            batch: (x, y, sample_weight).
            overrides: values to use in place of the stored ones.
            wrt: variables to differentiate with respect to.
            index: which pass of the training step this is, from 0.
        """
        raise NotImplementedError

    def loss(self, trainer, batch, overrides: Overrides) -> tf.Tensor:
        """Evaluates a batch without derivatives."""
        return self.forward(trainer, batch, overrides, [])[0]

    def modelled(self) -> "GradientSource":
        """Returns a source of the same loss that uses the model alone."""
        return ModelGradient()

    def variables(self, trainer) -> list[keras.Variable]:
        """Returns the source's states, which are saved with the trainer's."""
        return []

    @contextlib.contextmanager
    def measuring(self, trainer, asked: list, join: Callable | None = None):
        """Lets the device, if there is one, measure the layers in the block.

        A layer is appended to `asked` each time it is measured; `join` is as in
        `measured_by`.
        """
        if self.device is None:
            yield
            return
        if not physical_layers(trainer.model):
            raise ValueError(
                "A device measures physical layers: train a model that has some, or "
                f"without a device. Received: model '{trainer.model.name}', which has "
                "none"
            )
        if hasattr(self.device, "attach"):
            self.device.attach(trainer.model)
        with measured_by(self.device, seen=asked, join=join):
            yield
        if not asked:
            raise ValueError(
                "The device must measure at least one physical layer of the model. "
                "Received: one that leaves all of them to the model"
            )

    def forward(
        self, trainer, batch, overrides: Overrides, asked: list, join=None
    ) -> tuple:
        """Returns loss, outputs, and the scope that holds the pass's assignments."""
        scope = overrides.scope(trainer)
        with scope, self.measuring(trainer, asked, join):
            y_pred = trainer(batch[0], training=True)
            return loss_of(trainer, batch, y_pred), y_pred, scope


@keras.saving.register_keras_serializable(package="keras_pnn")
class ModelGradient(GradientSource):
    """Loss and gradient of the model itself, by automatic differentiation.

    Example:

    >>> sat = pnn.SATModel(model, rho=0.1, gradient=pnn.training.ModelGradient())
    """

    def __call__(self, trainer, batch, overrides, wrt, index=0) -> Evaluation:
        return self._differentiated(trainer, batch, overrides, wrt, [])

    def _differentiated(self, trainer, batch, overrides, wrt, asked: list):
        watched, overrides = overrides.watch(wrt)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            join = self._join(trainer, wrt, asked)
            loss, y_pred, scope = self.forward(trainer, batch, overrides, asked, join)
            scaled = trainer.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, watched)
        count = times_samples(len(asked), batch)
        return Evaluation(loss, wrt, gradients, y_pred, scope, count)

    def _join(self, trainer, wrt: list, asked: list) -> Callable | None:
        """Returns the `join` of `measured_by`; `None` for its default."""
        return None


@keras.saving.register_keras_serializable(package="keras_pnn")
class DeviceGradient(ModelGradient):
    """Takes outputs from a device, derivatives from its model: physics-aware training.

    Args:
        readout: `"layers"`: each layer's derivative is taken at its measured inputs; or
            `"output"`: only the outputs of the whole model are measured, and
            derivatives are taken at the model's own states. `"output"` takes one more
            forward pass; digital layers between physical ones see the device's states
            in one pass and the model's in the other. Layers with complex outputs need
            `"output"` where errors rotate the phases by much: the loss's slope at the
            measured field and the model's derivative then belong to different phases,
            and their product is not a gradient.

    Raises:
        ValueError: If `readout` is unknown.

    Example:

    >>> source = pnn.training.DeviceGradient("output")
    >>> online = pnn.SATModel(model, rho=0.1, device=bench, gradient=source)

    Reference:
        - Wright et al., Nature 601:549 (2022)
    """

    needs_device = True

    def __init__(self, readout: str = "layers"):
        self.readout = _checks.choice("readout", readout, ("layers", "output"))

    def forward(self, trainer, batch, overrides, asked, join=None):
        if self.readout == "layers":
            return super().forward(trainer, batch, overrides, asked, join)
        return read_out(self, trainer, batch, overrides, asked)


def read_out(
    source: GradientSource,
    trainer,
    batch,
    overrides: Overrides,
    asked: list,
    fused: Callable = lambda measured, modelled: measured,
    modelling: contextlib.AbstractContextManager | None = None,
) -> tuple:
    """Returns as `forward`, but measures only the outputs of the whole model.

    `fused` returns the outputs' values for measured and modelled ones; the model runs
    in the context `modelling`.
    """
    seen, scope = overrides.scope(trainer), overrides.scope(trainer)
    with seen, source.measuring(trainer, asked):
        measured = trainer(batch[0], training=True)
    with scope, modelling or contextlib.nullcontext():
        modelled = trainer(batch[0], training=True)
        y_pred = keras.tree.map_structure(
            lambda m, p: valued(fused(m, p), p), measured, modelled
        )
        before = {id(v): value for v, value in scope.updates()}
        loss = loss_of(trainer, batch, y_pred)
    # Statistics come from the measured pass, and losses of layers from the model's,
    # which has their derivatives. Losses may also update metrics.
    held = {id(v) for v, _ in seen.updates()}
    for variable, value in scope.updates():
        if id(variable) not in held or before.get(id(variable)) is not value:
            seen.add_update((variable, value))
    return loss, y_pred, seen


def wide(value: tf.Tensor) -> tf.Tensor:
    """Returns a tensor in at least float32 or complex64."""
    if value.dtype.is_complex or value.dtype.size >= 4:
        return value
    return tf.cast(value, "float32")


def one_by_one(function: Callable, places: np.ndarray, dtype) -> tf.Tensor:
    """Stacks the results of a function that is called for one place at a time."""
    return tf.map_fn(
        tf.autograph.experimental.do_not_convert(function),
        tf.constant(places, "int32"),
        fn_output_signature=dtype,
        parallel_iterations=1,
    )


def times_samples(settings: int, batch) -> tf.Tensor:
    """Returns a number of settings times the samples of a batch."""
    return settings * tf.cast(Batch(batch).size, "int64")


def sample_size(shape, what: str) -> int:
    """Returns the size of one sample; raises ValueError if it is unknown."""
    if None in tuple(shape)[1:]:
        raise ValueError(
            f"{what} needs layers with inputs and outputs of a known size: give the "
            f"inputs of the model a whole shape. Received: shape {tuple(shape)}"
        )
    return math.prod(shape[1:])


def loss_of(trainer, batch, y_pred) -> tf.Tensor:
    """Returns the loss as `fit` computes it, plus the batch's term, in a scope."""
    x, y, sample_weight = batch
    loss = _keras.compute_loss(trainer, x, y, y_pred, sample_weight, training=True)
    term = getattr(batch, "term", None)
    return loss if term is None else loss + tf.cast(term(y_pred), loss.dtype)


def summed(tensors: list) -> list:
    """Returns dense tensors, summed over replicas; `None` stays `None`."""
    dense = [tf.convert_to_tensor(t) for t in tensors if t is not None]
    context = tf.distribute.get_replica_context()
    if dense and context is not None and context.num_replicas_in_sync > 1:
        dense = context.all_reduce(tf.distribute.ReduceOp.SUM, dense)
    found = iter(dense)
    return [None if t is None else next(found) for t in tensors]
