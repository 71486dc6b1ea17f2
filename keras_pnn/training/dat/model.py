"""Train a network and a model of the device's errors: dual adaptive training."""

import dataclasses

import keras
import tensorflow as tf

from keras_pnn import _checks, _keras
from keras_pnn._signatures import passing_on
from keras_pnn.layers.context import substituting, valued
from keras_pnn.layers.lookup import physical_layers
from keras_pnn.training.dat.error_networks import ErrorMatrix, ErrorNetwork
from keras_pnn.training.gradients.base import (
    Evaluation,
    GradientSource,
    read_out,
    sample_size,
    times_samples,
)
from keras_pnn.training.sat import SATModel


class ErrorModels:
    """Holds one error network per physical layer, and their optimizer.

    Keras does not track them, as the model's optimizer must not step them. `kind` is
    the number of U-Nets in each network, or `"linear"`; with `zero`, S starts at 0.
    """

    def __init__(self, kind: int | str, optimizer, zero: bool):
        self.kind = kind
        self.optimizer = optimizer
        self.zero = zero
        self._by_layer: dict[int, ErrorNetwork | ErrorMatrix] = {}

    @property
    def networks(self) -> list[ErrorNetwork | ErrorMatrix]:
        """The networks in the order of the layers, none before `build`."""
        return list(self._by_layer.values())

    def build(self, model: keras.Model) -> None:
        """Creates a network for each physical layer of a built model, once."""
        layers = physical_layers(model)
        if self.networks or not all(layer.built for layer in layers):
            return
        for index, layer in enumerate(layers):
            shape = layer.compute_output_shape(layer.get_build_config()["input_shape"])
            own = {"name": f"error_{index}", "dtype": layer.dtype_policy}
            if self.kind == "linear":
                network = ErrorMatrix(**own)
            else:
                network = ErrorNetwork(self.kind, self.zero, **own)
            network.build((None, sample_size(shape, "DATModel")))
            self._by_layer[id(layer)] = network
        self.optimizer.build(self.trainable)

    @property
    def trainable(self) -> list[keras.Variable]:
        """The variables that `optimizer` steps."""
        return [v for n in self.networks for v in n.trainable_variables]

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that a resumed run needs."""
        own = [v for n in self.networks for v in n.variables]
        return [*own, *self.optimizer.variables]

    def of(self, layer) -> ErrorNetwork | ErrorMatrix:
        """Returns the network of a physical layer."""
        return self._by_layer[id(layer)]

    def corrected(self, layer, modelled, training: bool) -> tf.Tensor:
        """Returns y + S(y), the layer's outputs with the errors that S predicts.

        The logits of a softmax or sigmoid remain those of y, as y + S(y) may have none.
        """
        size = sample_size(modelled.shape, "DATModel")
        flat = tf.reshape(modelled, [-1, size])
        errors = tf.reshape(self.of(layer)(flat, training=training), tf.shape(modelled))
        # The layers may compute in a lower precision than the networks.
        corrected = modelled + tf.cast(errors, modelled.dtype)
        attributes = _keras.tensor_attributes(modelled)
        _keras.set_tensor_attributes(corrected, attributes)
        return corrected


@dataclasses.dataclass(eq=False, repr=False)
class DualAdaptive(GradientSource):
    """Takes values from the device, and derivatives from the model corrected by S.

    `internal_states`, `fields` and `compare` are as in `DATModel`. Derivatives go
    through S while `correcting`, and S learns while `learning`.
    """

    errors: ErrorModels | None
    internal_states: bool
    fields: bool
    compare: str
    correcting: bool

    needs_device = True
    learning = True

    def __post_init__(self):
        self.error_loss = keras.metrics.Mean(name="error_loss")

    def __call__(self, trainer, batch, overrides, wrt, index=0) -> Evaluation:
        # A second pass uses S, but does not train it.
        learning = self.learning and index == 0
        theirs = self.errors.trainable if learning else []
        watched, overrides = overrides.watch([*wrt, *theirs])
        asked: list = []
        misfits: list = []
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(watched)
            loss, y_pred, scope = self._fusing(
                trainer, batch, overrides, asked, learning, misfits
            )
            scaled = trainer.optimizer.scale_loss(loss)
            if self.compare == "outputs" and index == 0:
                misfits = self._compared(
                    trainer, batch, overrides, learning, y_pred, scope, asked
                )
        gradients = tape.gradient(scaled, watched[: len(wrt)])
        steps = []
        for network in self.errors.networks if learning else ():
            # A layer that is called twice has two misfits.
            its = [m for n, m in misfits if n is network]
            if its:
                own = network.trainable_variables
                slopes = tape.gradient(tf.add_n(its), [overrides[v] for v in own])
                steps += zip(slopes, own, strict=True)

        def commit():
            if index:
                return
            if learning:
                self.errors.optimizer.apply_gradients(steps)
            mean = tf.add_n([m for _, m in misfits]) / len(misfits)
            self.error_loss.update_state(mean)

        count = times_samples(len(asked), batch)
        return Evaluation(loss, wrt, gradients, y_pred, scope, count, commit)

    def forward(self, trainer, batch, overrides, asked, join=None):
        return self._fusing(trainer, batch, overrides, asked, False, [])

    def _fusing(self, trainer, batch, overrides, asked, learning, misfits):
        """Runs a pass; fuses its states, or only its outputs, with measured ones."""
        if not self.internal_states:
            correcting = self._correcting(learning, asked) if self.correcting else None
            through = substituting(correcting)
            return read_out(
                self, trainer, batch, overrides, asked, self._fused, through
            )

        def join(layer, inputs, controls, measured, modelled):
            predicted = modelled
            if self.correcting or self.compare == "states":
                predicted = self.errors.corrected(layer, modelled, training=learning)
            if self.compare == "states":
                misfit = self._misfit(predicted, measured)
                misfits.append((self.errors.of(layer), misfit))
            if not self.correcting:
                predicted = modelled
            return valued(self._fused(measured, predicted), predicted)

        return super().forward(trainer, batch, overrides, asked, join)

    def _compared(self, trainer, batch, overrides, learning, measured, scope, asked):
        """Returns the misfit between the outputs with S and the measured outputs."""
        aside = overrides.scope(trainer)
        with aside, substituting(self._correcting(learning, asked)):
            predicted = trainer(batch[0], training=True)
        each = keras.tree.map_structure(self._misfit, predicted, measured)
        misfit = tf.add_n(keras.tree.flatten(each))
        # Only the error networks' statistics; the model's come from the other pass.
        own = {id(v) for network in self.errors.networks for v in network.variables}
        for variable, value in aside.updates():
            if id(variable) in own:
                scope.add_update((variable, value))
        layers = {id(layer): layer for layer in asked}.values()
        return [(self.errors.of(layer), misfit) for layer in layers]

    def _correcting(self, learning: bool, asked: list):
        """Returns a substitute by which each measured layer returns y + S(y)."""

        def substitute(layer, inputs, controls, modelled):
            if not any(layer is other for other in asked):
                return modelled
            return self.errors.corrected(layer, modelled, training=learning)

        return substitute

    def _misfit(self, predicted, measured) -> tf.Tensor:
        """Returns the mean square error that remains with S."""
        measured = tf.stop_gradient(measured)
        if predicted.dtype.is_complex and not self.fields:
            predicted, measured = tf.abs(predicted), tf.abs(measured)
        misfit = tf.abs(predicted - measured)
        if misfit.dtype.size < 4:
            # Squares of small errors are 0 in half precision.
            misfit = tf.cast(misfit, "float32")
        return tf.reduce_mean(tf.square(misfit))

    def _fused(self, measured, predicted) -> tf.Tensor:
        """Returns measured amplitudes with predicted phases, or measured fields."""
        if not measured.dtype.is_complex or self.fields:
            return measured
        length = tf.cast(tf.abs(predicted), predicted.dtype)
        phase = tf.math.divide_no_nan(predicted, length)
        phase = tf.where(tf.equal(length, 0), tf.ones_like(phase), phase)
        return tf.cast(tf.abs(measured), predicted.dtype) * phase


class DATModel(SATModel):
    """Trains on a device, and learns its systematic errors.

    An error network S learns to predict the device: it adds S(y) to the outputs y of
    each physical layer that the device measures. In each step

    1. the batch is measured;
    2. S takes a step that lowers the mean square error between model and device: of the
       network's outputs (`compare="outputs"`), or of the amplitudes of each layer,
       |y + S(y)| − |measured| (`"states"`);
    3. the measured amplitudes, with the phases of y + S(y), replace the states (state
       fusion);
    4. the network takes a step along the gradient through the model and S.

    By default S is used from the first step, where it is 0, and learns throughout, as
    in the first reference. In the epochs before `correct_from`, steps 3 and 4 leave S
    out; after `error_epochs` it is fixed. S fits the device only near the controls at
    which it learned: it can follow small steps while it learns, but not once it is
    fixed.

    If S is linear and fits all fields, digital layers in front of linear optics get the
    derivative of the device; U-Nets that predict the same outputs may give another. The
    phases of a mesh never get it exactly, since errors lie both in front of and behind
    each phase. Where training digital layers is enough, freeze the phases
    (`layer.trainable = False`).

    If a simulated device ends in a softmax or sigmoid, a cross-entropy uses its logits,
    as in Keras; their derivative is the model's, without the last S.

    Args:
        model: as in `SATModel`, with physical layers.
        device: as in `PATModel`.
        error_networks: number of small U-Nets whose sum is S, or `"linear"`: S(y) is
            then y times a learned matrix of n × n complex numbers for n outputs of a
            layer: use U-Nets for thousands of outputs.
        internal_states: whether the states between layers are measured. If not, only
            the network's outputs are compared and fused; the whole device then runs
            in a pass of its own.
        fields: whether the device measures complex fields. If not, only amplitudes
            are compared and fused, as from photodiodes or a camera.
        error_epochs: number of epochs, as `fit` counts them, in which S learns.
            Default: all.
        error_optimizer: Keras optimizer of the error networks, default Adam with a
            rate of 0.001.
        compare: `"outputs"` or `"states"`. With `"states"`, photodiodes do not see the
            phases behind an imperfect mesh, and S may predict the network's outputs
            wrongly.
        ascent: an ascent as in `SATModel`. Default: none.
        correct_from: number of epochs after which S is used, at most `error_epochs`.
            Default: `error_epochs`, or 0 without them.
        **kwargs: further arguments of `SATModel`.

    Logs: `error_loss`, the mean square error that remains with S, of the outputs or
    over the layers. In validation the device runs as a whole, without S and state
    fusion.

    Raises:
        ValueError: If `device` is `None` or cannot measure; `error_networks` is
            neither an integer ≥ 1 nor `"linear"`; `error_epochs` or `correct_from` is
            not an integer ≥ 0; `correct_from` exceeds `error_epochs`;
            `internal_states` or `fields` is not True or False; `compare` is unknown;
            or it is `"states"` without internal states.

    Example:

    ```python
    online = pnn.DATModel(model, device=chip, error_networks="linear")
    online.compile("adam", loss="sparse_categorical_crossentropy")
    online.fit(x_train, y_train, epochs=10)
    ```

    Reference:
        - Zheng et al., Nat. Mach. Intell. 5:1119 (2023)
        - Xu et al., Nat. Commun. 17:1766 (2026): S learns alone, from the outputs
    """

    @passing_on(SATModel, without=("gradient",))
    def __init__(
        self,
        model: keras.Model,
        device,
        error_networks: int | str = 6,
        internal_states: bool = True,
        fields: bool = False,
        error_epochs: int | None = None,
        error_optimizer: keras.optimizers.Optimizer | None = None,
        compare: str = "outputs",
        ascent=None,
        correct_from: int | None = None,
        **kwargs,
    ):
        kwargs.setdefault("name", f"dat_{getattr(model, 'name', '')}")
        if error_optimizer is None:
            error_optimizer = keras.optimizers.Adam(1e-3)
        error_epochs = _checks.optional(
            _checks.integer, "error_epochs", error_epochs, low=0
        )
        correct_from = _checks.optional(
            _checks.integer, "correct_from", correct_from, low=0
        )
        if correct_from is None:
            correct_from = error_epochs or 0
        elif error_epochs is not None and correct_from > error_epochs:
            expected = f"at most the {error_epochs} `error_epochs`"
            raise _checks.error("correct_from", expected, correct_from)
        if not isinstance(error_networks, str):
            _checks.integer("error_networks", error_networks, low=1)
        elif error_networks != "linear":
            expected = "an integer ≥ 1 or 'linear'"
            raise _checks.error("error_networks", expected, error_networks)
        errors = ErrorModels(
            error_networks,
            keras.optimizers.get(error_optimizer),
            zero=correct_from == 0,
        )
        source = DualAdaptive(
            errors,
            _checks.boolean("internal_states", internal_states),
            _checks.boolean("fields", fields),
            _checks.choice("compare", compare, ("outputs", "states")),
            correcting=correct_from == 0,
        )
        if compare == "states" and not internal_states:
            raise _checks.error("compare", "'outputs' without internal states", compare)
        super().__init__(model, ascent=ascent, device=device, gradient=source, **kwargs)
        self.error_epochs, self.correct_from = error_epochs, correct_from
        self._error_loss = source.error_loss
        self._build_errors()

    @property
    def error_models(self) -> list[ErrorNetwork | ErrorMatrix]:
        """The error networks, in the order of the model's physical layers."""
        return list(self.gradient.errors.networks)

    def _build_errors(self) -> None:
        if self.model.built:
            self.gradient.errors.build(self.model)

    def _build_inner(self, x):
        super()._build_inner(x)
        self._build_errors()

    def _own_callbacks(self, x):
        stages = keras.callbacks.LambdaCallback(on_epoch_begin=self._epoch_begins)
        return [*super()._own_callbacks(x), stages]

    def _epoch_begins(self, epoch, logs=None) -> None:
        """Starts to use the error networks, or stops training them, by epoch."""
        source, last = self.gradient, self.error_epochs
        stage = (last is None or epoch < last, epoch >= self.correct_from)
        if (source.learning, source.correcting) != stage:
            source.learning, source.correcting = stage
            _keras.retrace(self, "train")

    @property
    def train_metrics(self):
        return [*super().train_metrics, self._error_loss]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for index, variable in enumerate(self.gradient.errors.variables):
            store[f"error_{index}"] = variable

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self._build_errors()
        variables = self.gradient.errors.variables
        saved = [key for key in list(store.keys()) if key.startswith("error_")]
        if len(saved) != len(variables):
            raise ValueError(
                f"`{self.name}` expected {len(variables)} variables of error networks. "
                f"Received: {len(saved)}"
            )
        for index, variable in enumerate(variables):
            variable.assign(store[f"error_{index}"])
