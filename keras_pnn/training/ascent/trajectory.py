"""Penalise deviation from past outputs, without a second gradient: SAF and MESA."""

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _keras
from keras_pnn._display import brief
from keras_pnn.datasets import Batches
from keras_pnn.layers.context import Overrides
from keras_pnn.training.ascent.base import Ascent, state
from keras_pnn.training.ascent.samples import check_loss
from keras_pnn.training.gradients.base import Batch, times_samples, wide


class Trajectory(Ascent):
    """Base of the ascents that add λ KL(softmax(past/τ) ‖ softmax(now/τ)) to the loss.

    The term is a mean over the samples. A subclass implements `past`.
    """

    follows = True
    by_outputs = True

    def __init__(self, lam: float, start: int, temperature: float):
        self.lam = _checks.real("lam", lam, low=0)
        self.start = _checks.integer("start", start, low=0)
        self.temperature = _checks.real("temperature", temperature, above=0)
        self._epoch = state("epoch", 0, "int32")
        # The term that a step adds to the loss, a function of the outputs.
        self._term = None

    @property
    def suspect(self):
        return f"lam={brief(self.lam)}" if self.lam else ""

    def callbacks(self, build, x):
        told = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs=None: self._epoch.assign(epoch)
        )
        return [*super().callbacks(build, x), told]

    def past(self, batch: Batch, present: Overrides) -> tuple:
        """Returns past outputs, and 1 for each sample whose outputs count, else 0."""
        raise NotImplementedError

    def prepared(self, batch, present):
        if not self.lam:
            return batch
        past, counts = self.past(batch, present)
        tau = tf.cast(self.temperature, past.dtype)
        before = tf.nn.log_softmax(tf.stop_gradient(past) / tau)
        strength = self.lam * tf.cast(self.step.ramp, past.dtype)
        strength /= tf.distribute.get_strategy().num_replicas_in_sync

        def term(y_pred):
            now = tf.nn.log_softmax(self._logits(y_pred) / tau)
            each = tf.reduce_sum(tf.exp(before) * (before - now), -1)
            each = tf.reduce_mean(each, list(range(1, len(each.shape))))
            return strength * tf.reduce_mean(counts * each)

        self._term = term
        return Batch(batch, term)

    def added(self, batch, y_pred):
        if self._term is None:
            return None
        check_loss(self.step.trainer, batch, y_pred, type(self).__name__)
        return self._term(y_pred)

    def _logits(self, y_pred) -> tf.Tensor:
        """The logits of the outputs, in at least single precision."""
        logits = _keras.tensor_attributes(y_pred).get(_keras.LOGITS)
        if logits is None:
            logits = y_pred
            if _keras.from_probabilities(self.step.trainer):
                logits = tf.math.log(tf.maximum(y_pred, keras.config.epsilon()))
        return wide(logits)


@keras.saving.register_keras_serializable(package="keras_pnn")
class SAF(Trajectory):
    """Sharpness-aware training for free: keeps outputs near those of past epochs.

    L + λ/|B| Σ KL(softmax(past/τ) ‖ softmax(now/τ)) over the batch B, where past are
    the sample's own outputs Ẽ epochs ago. There is no second pass; the outputs of Ẽ
    epochs are kept, 4 Ẽ bytes for each output of each sample of the data. The formula
    is the paper's; the authors' code multiplies it by τ², so that its λ = 0.3 with
    τ = 5 is `lam=7.5` here.

    `fit` needs a `pnn.datasets.Batches`, whose order by (seed, epoch, step) tells which
    samples are in a batch, and the same data when it resumes. With `variation`, past
    outputs are those of the devices drawn then, not of the present device; with a
    device in the loop, they are measured. A sample without outputs of Ẽ epochs ago adds
    nothing, nor does any sample before the epoch `start`.

    The output must be one tensor of logits. Logits in front of a softmax are found;
    other outputs of a loss with `from_logits=False` count by their logarithms. `warmup`
    of `SATModel` ramps λ. `sharpness` is the term, λ included; the reported loss
    excludes it.

    Args:
        lam: λ ≥ 0, fixed; 0 is plain training.
        epochs: Ẽ ≥ 1, the age of the past outputs in epochs.
        start: the first epoch with the term, as `fit` counts them, from 0.
        temperature: τ > 0, in the unit of the logits.

    Raises:
        ValueError: If `lam` is negative, `epochs` not an integer ≥ 1, `start` not one
            ≥ 0, or `temperature` not above 0. When training begins: if the data is not
            a `Batches`, or the number of samples has changed; the output is not one
            tensor of at least two real logits of a known shape; the loss is not a mean
            over samples; or there are several replicas.

    Example:

    >>> sat = pnn.SATModel(model, ascent=pnn.SAF(lam=0.3, epochs=3, start=5))
    >>> batches = pnn.datasets.Batches(x, y, batch_size=8)

    Then `sat.fit(batches, …)`.

    Reference:
        - Du et al., NeurIPS 2022, arXiv:2205.14083
    """

    replicated = False

    def __init__(
        self,
        lam: float = 0.3,
        epochs: int = 3,
        start: int = 5,
        temperature: float = 5.0,
    ):
        super().__init__(lam, start, temperature)
        self.epochs = _checks.integer("epochs", epochs, low=1)
        # The samples in the order of the epoch, and where the next batch begins in it.
        self._order: keras.Variable | None = None
        self._place = state("place", 0, "int32")
        # At `slot * samples + sample`: the outputs, and 1 + their epoch.
        self._outputs: keras.Variable | None = None
        self._epochs: keras.Variable | None = None
        # In a step: the rows of the batch, and the values in them.
        self._rows = self._held = None

    def states(self):
        made = {"outputs": self._outputs, "output_epochs": self._epochs}
        return {name: v for name, v in made.items() if v is not None}

    def read(self, saved):
        if self._outputs is None and "outputs" in saved:
            rows, *shape = saved["outputs"].shape
            self._make(rows // self.epochs, shape, saved["outputs"].dtype.name)
        super().read(saved)

    def callbacks(self, build, x):
        if not isinstance(x, Batches):
            raise ValueError(
                "SAF finds the past outputs of a sample by its place in the data, so "
                "pass a `pnn.datasets.Batches` to `fit`. Received: data of "
                f"{type(x).__name__}"
            )
        self._count(len(x.order(0)))
        told = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs=None: self._order.assign(x.order(epoch)),
            on_train_batch_begin=lambda batch, logs=None: self._place.assign(
                batch * x.batch_size
            ),
        )
        return [*super().callbacks(build, x), told]

    def _count(self, samples: int) -> None:
        """Makes room for the order of the samples, or checks their number."""
        if self._order is None:
            self._order = state("order", np.zeros(samples), "int32")
        if samples != self._order.shape[0]:
            raise ValueError(
                "SAF keeps the outputs of each sample: go on with the same data, or "
                f"with a new SATModel. Received: {samples} samples in place of "
                f"{self._order.shape[0]}"
            )

    def build(self, trainer, moved, x=None):
        if self._outputs is None and x is not None and self.lam:
            spec = _outputs_for(type(self).__name__, trainer, x)
            shape = spec.shape[1:]
            if None in shape:
                expected = "one with outputs of a known shape for SAF"
                raise _checks.error("model", expected, f"outputs of shape {spec.shape}")
            dtype = keras.backend.result_type(spec.dtype, "float32")
            self._make(self._order.shape[0], shape, dtype)

    def _make(self, samples: int, shape, dtype: str) -> None:
        self._count(samples)
        rows = self.epochs * samples
        self._outputs = state("outputs", np.zeros((rows, *shape)), dtype)
        self._epochs = state("output_epochs", np.zeros(rows), "int32")

    def past(self, batch, present):
        places = tf.convert_to_tensor(self._place) + tf.range(batch.size)
        epoch = tf.convert_to_tensor(self._epoch)
        samples = tf.gather(tf.convert_to_tensor(self._order), places)
        self._rows = epoch % self.epochs * self._order.shape[0] + samples
        outputs, epochs = (
            # From `value`: a tensor of the whole variable would be a copy.
            tf.gather(v.value, self._rows)
            for v in (self._outputs, self._epochs)
        )
        self._held = outputs, epochs
        known = tf.equal(epochs, epoch - self.epochs + 1)
        counts = known & (epoch >= max(self.start, self.epochs))
        return outputs, tf.cast(counts, outputs.dtype)

    def commit(self, y_pred, skipped):
        if self._rows is None:
            return
        outputs, epochs = self._held
        now = tf.cast(self._logits(y_pred), outputs.dtype)
        at = self._rows[:, None]
        outputs = tf.where(skipped, outputs, now)
        epochs = tf.where(skipped, epochs, tf.convert_to_tensor(self._epoch) + 1)
        self._outputs.value.scatter_nd_update(at, outputs)
        self._epochs.value.scatter_nd_update(at, epochs)
        # An execution may have several steps; callbacks see only the first.
        self._place.assign_add(tf.size(self._rows))


@keras.saving.register_keras_serializable(package="keras_pnn")
class MESA(Trajectory):
    """Memory-efficient sharpness-aware training: outputs stay near an average model's.

    L + λ/|B| Σ KL(softmax(past/τ) ‖ softmax(now/τ)) over the batch B, where past are
    the outputs of the network with v ← δ v + (1 − δ) Θ in place of its trainable
    variables Θ. From the epoch `start` on, a step takes one more forward pass. The
    average begins with training, and again after layers were frozen or unfrozen; with
    gradient accumulation it moves only when the weights do. The formula is the paper's;
    the authors' code multiplies it by τ², so that its λ = 0.8 with τ = 5 is `lam=20`
    here.

    Both networks use the same device, drawn or in the loop, with the same
    imperfections: with `adversarial`, θ0. They share dropout masks, but each has its
    own batch statistics; in the authors' code the averaged network is in inference
    mode. Outputs, `warmup`, `sharpness` and the reported loss are as in `SAF`.

    Args:
        lam: λ ≥ 0, fixed; 0 is plain training.
        decay: δ in [0, 1), per step of the optimizer.
        start: the first epoch with the term, as `fit` counts them, from 0.
        temperature: τ > 0, in the unit of the logits.

    Raises:
        ValueError: If `lam` is negative, `decay` not in [0, 1), `start` not an
            integer ≥ 0, or `temperature` not above 0. When training begins: if the
            output is not one tensor of at least two real logits, or the loss is not a
            mean over samples.

    Example:

    >>> sat = pnn.SATModel(model, ascent=pnn.MESA(lam=0.8, decay=0.99, start=1))

    Reference:
        - Du et al., NeurIPS 2022, arXiv:2205.14083
    """

    memory = "average"

    def __init__(
        self,
        lam: float = 0.8,
        decay: float = 0.9998,
        start: int = 5,
        temperature: float = 5.0,
    ):
        super().__init__(lam, start, temperature)
        self.decay = _checks.real("decay", decay, low=0, below=1)
        # Whether weights were loaded without an average.
        self._stale = False

    def read(self, saved):
        self._stale = not any(name.startswith("average") for name in saved)
        super().read(saved)

    def remembered(self, trainer, moved):
        return trainer.trainable_variables if self.lam else []

    def initial(self, variable):
        return variable.numpy()

    def build(self, trainer, moved, x=None):
        before = self.kept
        super().build(trainer, moved, x)
        if self._stale and self.kept is before:
            for variable, average in self._pairs():
                average.assign(variable)
        self._stale = False

    def past(self, batch, present):
        trainer = self.step.trainer
        averaged = []
        for variable, average in self._pairs():
            average = tf.convert_to_tensor(average)
            if variable in present:
                # A drawn device deviates from the average as from the weights.
                average += present[variable] - tf.convert_to_tensor(variable)
            averaged.append((variable, average))
        overrides = present.merged(averaged)

        def outputs():
            layers: list = []
            _, y_pred, _ = trainer.gradient.forward(trainer, batch, overrides, layers)
            return self._logits(y_pred), times_samples(len(layers), batch)

        active = tf.convert_to_tensor(self._epoch) >= self.start
        spec = _outputs_for(type(self).__name__, trainer, batch[0])
        if not self.start or None in spec.shape[1:]:
            past, self.asked = outputs()
        else:
            shape = batch.size, *spec.shape[1:]
            dtype = keras.backend.result_type(spec.dtype, "float32")
            past, self.asked = tf.cond(
                active,
                outputs,
                lambda: (tf.zeros(shape, dtype), tf.zeros((), "int64")),
            )
        return past, tf.cast(active, past.dtype)

    def _pairs(self):
        return zip(self._known, self.kept, strict=True)

    def commit(self, y_pred, skipped):
        now = tf.convert_to_tensor(self.step.trainer.optimizer.iterations)
        self.found = [
            self.decay * tf.convert_to_tensor(average)
            + (1 - self.decay) * tf.convert_to_tensor(variable)
            for variable, average in self._pairs()
        ]
        # Neither a step that overflowed nor one that accumulates has moved weights.
        super().commit(y_pred, tf.equal(now, self.step.iteration))


def _outputs_for(what: str, trainer, x) -> keras.KerasTensor:
    """Returns the outputs' shape and dtype; raises ValueError unless logits."""
    found = _keras.outputs_of(trainer.model, x)
    single = isinstance(found, keras.KerasTensor)
    real = single and keras.backend.is_float_dtype(found.dtype)
    if not real or len(found.shape) < 2 or (found.shape[-1] or 0) < 2:
        shapes = keras.tree.map_structure(lambda t: (t.shape, t.dtype), found)
        expected = f"one with one output of two or more real logits for {what}"
        raise _checks.error("model", expected, f"outputs {shapes}")
    return found
