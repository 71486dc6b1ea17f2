"""Sharpness-aware training of any Keras model."""

import numbers

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.devices.variation import Variation
from keras_pnn.layers.physical import select_variables
from keras_pnn.training import ascent as ascents
from keras_pnn.training.gradients import (
    DeviceGradient,
    ModelGradient,
    dense,
    mixed,
    replaced,
    summed,
)
from keras_pnn.training.misalignment import MisalignmentAscent, check_rules
from keras_pnn.training.parameters import (
    by_autodiff,
    extra_passes,
    misaligned,
    parameters,
)


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

    With `misalignment` the second pass is at (Θ + ΔΘ, θ_adv) (eq. 6), where named
    imperfections θ have gone to where the loss is worse too (eq. 5); L(Θ + ΔΘ) is
    then the loss there. θ itself is never assigned. Each θ has a radius of its own:
    under one norm for all, the one with the largest unit would move alone. Slopes
    are taken at (Θ, θ0), with the statistics, masks and noise of the first pass;
    finite differences add `sat.extra_passes` forward passes to each step, all
    through the model, since a device on the bench cannot be turned.

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
        misalignment: name of an imperfection → `pnn.FiniteDifference` or
            `pnn.Autodiff`. `"rotation"` is one value for all layers that have it
            (with `Autodiff`, one for each where their shapes differ),
            `"slm/rotation"` that of one layer.
        noise_aware: a `Variation`. A fresh device is drawn each step, the same in
            both passes, a pure function of `seed` and the step.
        device: a device whose measurements replace the layers' outputs in both
            passes, while gradients go through the model.
        aligned: a in [0, 1]: the optimizer steps with (1 − a) times the gradient of
            the second pass plus a times that of the first. With a large radius of
            misalignment and a = 0, a network can forget the aligned case.
        seed: seed of the noise, and of sampled radii and steps.

    Raises:
        ValueError: `rho` is negative; both `rho` and an ascent object are given;
            `perturb="controls"` and the model has no physical layer; `aligned` is
            outside [0, 1]; or `misalignment` names what the model does not have,
            one variable twice, or one that `perturb` moves.

    Example:

    ```python
    sat = pnn.SATModel(model, rho=0.5, ascent="asam")
    sat.compile("adam", loss="sparse_categorical_crossentropy")
    sat.fit(x_train, y_train, epochs=20)

    sat = pnn.SATModel(model, rho=0.3, misalignment={
        "rotation": pnn.FiniteDifference(radius=1.0, step=0.1),
        "temperature": pnn.Autodiff(radius=0.5),
    })
    ```

    Reference:
        - Xu et al., arXiv:2411.12352, eqs. 3 to 6
    """

    def __init__(
        self,
        model: keras.Model,
        rho=None,
        ascent="sam",
        perturb="controls",
        misalignment: dict[str, MisalignmentAscent] | None = None,
        noise_aware: Variation | None = None,
        device=None,
        aligned: float = 0.0,
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
        self.perturb = perturb
        self.misalignment = check_rules(misalignment)
        if model.built:
            self._perturbed()
        if noise_aware is not None and not hasattr(noise_aware, "values"):
            raise ValueError(
                f"`noise_aware` must be a Variation. Received: {noise_aware!r}"
            )
        self.noise_aware = noise_aware
        self.gradient = ModelGradient() if device is None else DeviceGradient(device)
        real = isinstance(aligned, numbers.Real) and not isinstance(aligned, bool)
        if not (real and 0 <= aligned <= 1):
            raise ValueError(f"`aligned` must be in [0, 1]. Received: {aligned!r}")
        self._aligned = float(aligned)
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

    @property
    def aligned(self) -> float:
        """The share of the first pass's gradient; fixed, as steps are traced once."""
        return self._aligned

    @property
    def extra_passes(self) -> int:
        """Forward passes per step beside the two passes, for finite differences.

        Two for each component of a central difference, one for each of a forward
        one; with a device, forward differences need one pass more, at θ0.

        Raises:
            ValueError: the model inside is not built, and there is `misalignment`.
        """
        return extra_passes(self._perturbed()[1], self._on_device)

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
        step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), "int32")
        seed = tf.stack([self.seed, step])
        noise = []
        if self.noise_aware is not None:
            noise = self.noise_aware.values(self.model, seed)
        trainable = self.trainable_variables
        moved, thetas = self._perturbed()
        one_pass = not moved and not thetas
        wrt = [*moved, *by_autodiff(thetas)]
        if one_pass or self.aligned:
            wrt = list({id(v): v for v in [*wrt, *trainable]}.values())
        first = self.gradient(self, batch, noise, wrt)
        slopes = _by_id(zip(wrt, first.gradients, strict=True))
        clean = [slopes.get(id(v)) for v in trainable]
        if one_pass:
            second, gradients = first, clean
        else:
            worst = self._worst(moved, _by_id(noise), slopes)
            worst += self._misaligned(thetas, noise, slopes, first.loss, batch, seed)
            second = self.gradient(self, batch, replaced(noise, worst), trainable)
            gradients = mixed(second.gradients, clean, self.aligned)

        self._commit(first.scope, [*(v for v, _ in noise), *wrt])
        x, y, sample_weight = batch
        size = tf.shape(next(a for a in keras.tree.flatten(x) if a is not None))[0]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._loss_tracker.update_state(first.loss * replicas, sample_weight=size)
        self._sharpness.update_state(
            (second.loss - first.loss) * replicas, sample_weight=size
        )
        self.optimizer.apply_gradients(zip(gradients, trainable, strict=True))
        return self.compute_metrics(x, y, first.y_pred, sample_weight=sample_weight)

    def _build_inner(self, x) -> None:
        """Creates the variables that Keras leaves for the first call."""
        if not all(layer.built for layer in self.model._flatten_layers()):
            symbols = [
                None if t is None else keras.KerasTensor(t.shape, t.dtype)
                for t in keras.tree.flatten(x)
            ]
            self.model(keras.tree.pack_sequence_as(x, symbols))

    @property
    def _on_device(self) -> bool:
        return isinstance(self.gradient, DeviceGradient)

    def _perturbed(self) -> tuple[list, list]:
        """What the second pass moves: variables by the ascent, and imperfections."""
        moved = []
        if self.ascent is not None:
            moved = select_variables(self.model, self.perturb)
        return moved, parameters(self.model, self.misalignment, moved)

    def _worst(self, moved, noise, slopes) -> list:
        """(variable, Θ + ΔΘ), from the values that the first pass saw."""
        if not moved:
            return []
        values = [noise.get(id(v), tf.convert_to_tensor(v)) for v in moved]
        gradients = summed([dense(slopes[id(v)], v) for v in moved])
        steps = self.ascent(values, gradients, self.optimizer.iterations)
        worst = [v + s for v, s in zip(values, steps, strict=True)]
        return list(zip(moved, worst, strict=True))

    def _misaligned(self, thetas, noise, slopes, origin, batch, seed) -> list:
        """(variable, θ_adv), from the values that the first pass saw."""
        drawn = _by_id(noise)
        scale = self.optimizer.scale_loss(tf.constant(1.0))
        model = ModelGradient()
        return misaligned(
            thetas,
            present=lambda v: drawn.get(id(v), tf.convert_to_tensor(v)),
            loss=lambda pairs: model.loss(self, batch, replaced(noise, pairs)),
            # A difference between a device and its model is no slope of either.
            origin=None if self._on_device else origin,
            gradients={
                id(v): dense(slopes[id(v)], v) / tf.cast(scale, v.dtype)
                for v in by_autodiff(thetas)
            },
            seed=seed,
        )

    def _commit(self, scope, overridden) -> None:
        """Stores what the first pass updated: statistics, random states, metrics."""
        given = {id(v) for v in overridden}
        for variable in [*self.model.non_trainable_variables, *self.metrics_variables]:
            value = scope.get_current_value(variable)
            if value is not None and id(variable) not in given:
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
        if self._on_device:
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
            "misalignment": {n: serialize(r) for n, r in self.misalignment.items()},
            "noise_aware": serialize(self.noise_aware),
            "aligned": self.aligned,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        load = keras.saving.deserialize_keras_object
        parts = ("model", "ascent", "perturb", "misalignment", "noise_aware")
        loaded = {
            p: load(config[p], custom_objects=custom_objects)
            for p in parts
            if p in config
        }
        return cls(**{**config, **loaded})


def _by_id(pairs) -> dict:
    """{id of the variable: value}; Keras variables cannot be dictionary keys."""
    return {id(variable): value for variable, value in pairs}


def _arrays(x) -> bool:
    return x is not None and all(
        isinstance(a, np.ndarray) for a in keras.tree.flatten(x)
    )
