"""Sharpness-aware training of any Keras model."""

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.devices.variation import Variation
from keras_pnn.layers.physical import select_variables
from keras_pnn.training import ascent as ascents
from keras_pnn.training.gradients import DeviceGradient, ModelGradient


@keras.saving.register_keras_serializable(package="keras_pnn")
class SATModel(keras.Model):
    """Trains a model so that its loss stays flat around its controls.

    Each step takes two gradients. The first, at the controls Θ, gives the direction
    in which the loss rises most, ΔΘ = ρ g / ‖g‖ (eq. 3). The second, at Θ + ΔΘ, is
    what the optimizer steps with (eq. 4). Metrics, batch normalisation statistics
    and the reported loss are those of the first pass; both passes draw the same
    dropout masks and noise, so that ρ = 0 is plain training to the last bit
    (under XLA, which orders sums as it likes, to rounding).
    `sharpness`, the mean of L(Θ + ΔΘ) − L(Θ), is logged beside the loss.

    `evaluate`, `predict` and saving behave as those of the model inside, which is
    `sat.model`.

    Args:
        model: any Keras model.
        rho: radius of the ascent, a number ≥ 0 or a Keras learning-rate schedule.
            Default 0.05. A number can be set during training, `sat.rho = 0.1`.
        ascent: `"sam"`, `"asam"`, or an object such as `pnn.ASAM(0.5, eta=0.01)`,
            which has its own rho. `None` leaves the ascent out: one pass, plain
            training with the noise or the device that is given.
        perturb: what the ascent moves: `"controls"`, `"all"` trainable variables,
            or a predicate on variables, which is also asked of imperfections.
        noise_aware: a `Variation`. A fresh device is drawn each step, the same in
            both passes, a pure function of `seed` and the step.
        device: a device whose measurements replace the layers' outputs in both
            passes, while gradients go through the model.
        seed: seed of the noise.

    Raises:
        ValueError: `rho` is negative; both `rho` and an ascent object are given; or
            `perturb="controls"` and the model has no physical layer.

    Example:

    ```python
    sat = pnn.SATModel(model, rho=0.5, ascent="asam")
    sat.compile("adam", loss="sparse_categorical_crossentropy")
    sat.fit(x_train, y_train, epochs=20)
    ```

    Reference:
        - Xu et al., arXiv:2411.12352, eqs. 3 and 4
    """

    def __init__(
        self,
        model: keras.Model,
        rho=None,
        ascent="sam",
        perturb="controls",
        noise_aware: Variation | None = None,
        device=None,
        seed: int = 0,
        **kwargs,
    ):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a keras.Model. Received: {model!r}")
        kwargs.setdefault("name", f"sat_{model.name}")
        super().__init__(**kwargs)
        self.model = model
        self.ascent = ascents.get(ascent, rho)
        if perturb not in ("controls", "all") and not callable(perturb):
            raise ValueError(
                "`perturb` must be 'controls', 'all' or a predicate on variables. "
                f"Received: {perturb!r}"
            )
        if self.ascent is not None and model.built:
            select_variables(model, perturb)
        self.perturb = perturb
        if noise_aware is not None and not hasattr(noise_aware, "values"):
            raise ValueError(
                f"`noise_aware` must be a Variation. Received: {noise_aware!r}"
            )
        self.noise_aware = noise_aware
        self.gradient = ModelGradient() if device is None else DeviceGradient(device)
        self.seed = int(seed)
        self.supports_masking = True
        self._sharpness = keras.metrics.Mean(name="sharpness")
        self.built = model.built

    @property
    def rho(self):
        """Radius of the ascent; 0 without one."""
        return 0.0 if self.ascent is None else self.ascent.rho

    @rho.setter
    def rho(self, value):
        if self.ascent is None:
            raise ValueError(
                f"`rho` needs an ascent, and ascent=None. Received: rho={value!r}"
            )
        self.ascent.rho = value

    def build(self, input_shape=None):
        # The model inside builds itself when it is called.
        self.built = True

    def call(self, inputs, training=None):
        return self.model(inputs)

    def compute_mask(self, inputs, previous_mask):
        return None

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`; arrays with NaN or infinite inputs are refused."""
        for array in keras.tree.flatten(x) if _arrays(x) else ():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError("`x` must be finite. Received: NaN or infinity")
        return super().fit(x, y, *args, **kwargs)

    def train_step(self, data):
        batch = keras.utils.unpack_x_y_sample_weight(data)
        self._build_inner(batch[0])
        iteration = self.optimizer.iterations
        noise = []
        if self.noise_aware is not None:
            step = tf.cast(tf.convert_to_tensor(iteration), "int32")
            noise = self.noise_aware.values(self.model, tf.stack([self.seed, step]))
        trainable = self.trainable_variables
        if self.ascent is None:
            first = second = self.gradient(self, batch, noise, trainable)
        else:
            moved = select_variables(self.model, self.perturb)
            first = self.gradient(self, batch, noise, moved)
            worst = self._worst(moved, _by_id(noise), first.gradients)
            fixed = [p for p in noise if id(p[0]) not in {id(v) for v in moved}]
            overrides = [*fixed, *zip(moved, worst, strict=True)]
            second = self.gradient(self, batch, overrides, trainable)

        self._commit(first.scope, _by_id(noise))
        x, y, sample_weight = batch
        size = tf.shape(next(a for a in keras.tree.flatten(x) if a is not None))[0]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._loss_tracker.update_state(first.loss * replicas, sample_weight=size)
        self._sharpness.update_state(
            (second.loss - first.loss) * replicas, sample_weight=size
        )
        self.optimizer.apply_gradients(zip(second.gradients, trainable, strict=True))
        return self.compute_metrics(x, y, first.y_pred, sample_weight=sample_weight)

    def _build_inner(self, x) -> None:
        """Creates the variables that Keras leaves for the first call."""
        if not all(layer.built for layer in self.model._flatten_layers()):
            symbols = [
                None if t is None else keras.KerasTensor(t.shape, t.dtype)
                for t in keras.tree.flatten(x)
            ]
            self.model(keras.tree.pack_sequence_as(x, symbols))

    def _worst(self, moved, noise, gradients) -> list:
        """Θ + ΔΘ, from the values that the first pass saw."""
        values = [noise.get(id(v), tf.convert_to_tensor(v)) for v in moved]
        dense = _summed(gradients, moved)
        steps = self.ascent(values, dense, self.optimizer.iterations)
        return [v + s for v, s in zip(values, steps, strict=True)]

    def _commit(self, scope, overridden) -> None:
        """Stores what the first pass updated: statistics, random states, metrics."""
        updated = [*self.model.non_trainable_variables, *self.metrics_variables]
        for variable in updated:
            value = scope.get_current_value(variable)
            if value is not None and id(variable) not in overridden:
                variable.assign(value)

    def test_step(self, data):
        logs = super().test_step(data)
        logs.pop("sharpness", None)
        return logs

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
        saved = list(store.keys())
        if len(saved) not in (0, len(states)):
            raise ValueError(
                f"`{self.name}` expected the states of {len(states)} random "
                f"generators. Received: {len(saved)}"
            )
        for index in range(len(saved)):
            states[index].assign(store[f"seed_{index}"])

    def get_config(self):
        if isinstance(self.gradient, DeviceGradient):
            raise ValueError(
                "A SATModel with a device is not saved: save `sat.model`, the digital "
                f"model. Received: device={self.gradient.device!r}"
            )
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "model": serialize(self.model),
            "ascent": serialize(self.ascent),
            "perturb": serialize(self.perturb),
            "noise_aware": serialize(self.noise_aware),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        load = keras.saving.deserialize_keras_object
        parts = ("model", "ascent", "perturb", "noise_aware")
        loaded = {p: load(config[p], custom_objects=custom_objects) for p in parts}
        return cls(**{**config, **loaded})


def _by_id(pairs) -> dict:
    """{id of the variable: value}; Keras variables cannot be dictionary keys."""
    return {id(variable): value for variable, value in pairs}


def _summed(gradients: list, variables: list) -> list:
    """Gradients as dense tensors, added over replicas for one common ascent."""
    dense = [
        tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
        for g, v in zip(gradients, variables, strict=True)
    ]
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return dense
    return context.all_reduce(tf.distribute.ReduceOp.SUM, dense)


def _arrays(x) -> bool:
    return x is not None and all(
        isinstance(a, np.ndarray) for a in keras.tree.flatten(x)
    )
