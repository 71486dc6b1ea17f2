"""Sharpness-aware training of Keras models."""

import numbers

import keras
import tensorflow as tf

from keras_pnn.devices.variation import Variation
from keras_pnn.layers.lookup import select_variables
from keras_pnn.training import ascent as ascents
from keras_pnn.training.adversary import AdversaryRule, check_rules
from keras_pnn.training.adversary_parameters import (
    by_autodiff,
    extra_passes,
    misaligned,
    parameters,
)
from keras_pnn.training.gradients.base import (
    DeviceGradient,
    GradientSource,
    ModelGradient,
    dense,
    mixed,
    replaced,
    summed,
)
from keras_pnn.training.trainer import Trainer


@keras.saving.register_keras_serializable(package="keras_pnn")
class SATModel(Trainer):
    """Trains a model so that its loss stays flat around its controls.

    Each step takes two gradients. The first, at the controls Θ, gives the direction
    in which the loss rises most, ΔΘ = ρ g / ‖g‖ (eq. 3). The second, at Θ + ΔΘ, is
    what the optimizer steps with (eq. 4). Metrics, batch normalisation statistics
    and the reported loss are those of the first pass; both passes draw the same
    dropout masks and noise, so that ρ = 0 is plain training to the last bit
    (under XLA, which orders sums as it likes, to rounding).
    `sharpness`, the mean of L(Θ + ΔΘ) − L(Θ), is logged beside the loss.

    With `adversarial` the second pass is at (Θ + ΔΘ, θ_adv) (eq. 6), where named
    imperfections θ have gone to where the loss is worse too (eq. 5); L(Θ + ΔΘ) is
    then the loss there. θ itself is never assigned. Each θ has a radius of its own:
    under one norm for all, the one with the largest unit would move alone. Slopes
    are taken at (Θ, θ0), with the statistics, masks and noise of the first pass;
    finite differences add `sat.extra_passes` forward passes to each step, all
    through the model, since a device on the bench cannot be turned.

    `evaluate`, `predict` and saving behave as those of the model inside, which is
    `sat.model`. With a device, `save` gives that digital model, and eigenvalues of
    the Hessian are the digital model's: a measurement has no second derivative.

    A model's own `compute_loss` is used, and metrics that it keeps itself are
    reported, as in plain training.

    Args:
        model: any Keras model, but one with a `train_step`, `test_step`,
            `predict_step`, `compute_metrics` or `get_metrics_result` of its own.
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
            passes, while gradients go through the model: SAT online. The ascent is
            then by these proxy gradients too. An imperfection that a
            `SimulatedDevice` does not name follows `adversarial` and `variation`;
            a device on the bench does not.
        clean_fraction: a in [0, 1]: the optimizer steps with (1 − a) times the
            gradient of the second pass plus a times that of the first. With a large
            adversarial radius and a = 0, a network can forget the nominal case.
        seed: seed of the noise, of sampled radii and steps, and of what the gradient
            source draws.
        gradient: where gradients come from, such as `pnn.SPSA(...)`. Default: the
            model, or with a device `pnn.training.DeviceGradient()`; for an imperfect
            mesh `pnn.training.DeviceGradient("output")`, see there.

    Raises:
        ValueError: `model` overrides what would not be called; `rho` is negative;
            both `rho` and an ascent object are given; `perturb="controls"` and the
            model has no physical layer; `clean_fraction` is outside [0, 1]; `seed` is
            not a whole number; or `adversarial` names what the model does not have, one
            variable twice, or one that `perturb` moves.

    Example:

    ```python
    sat = pnn.SATModel(model, rho=0.5, ascent="asam")
    sat.compile("adam", loss="sparse_categorical_crossentropy")
    sat.fit(x_train, y_train, epochs=20)

    sat = pnn.SATModel(model, rho=0.3, adversarial={
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
        adversarial: dict[str, AdversaryRule] | None = None,
        variation: Variation | None = None,
        device=None,
        clean_fraction: float = 0.0,
        seed: int = 0,
        gradient: GradientSource | None = None,
        **kwargs,
    ):
        kwargs.setdefault("name", f"sat_{getattr(model, 'name', '')}")
        super().__init__(model, **kwargs)
        self.ascent = ascents.get(ascent, rho)
        if perturb not in ("controls", "all") and not callable(perturb):
            raise ValueError(
                "`perturb` must be 'controls', 'all' or a predicate on variables. "
                f"Received: {perturb!r}"
            )
        self.perturb = perturb
        self.adversarial = check_rules(adversarial)
        if model.built:
            self._perturbed()
        if variation is not None and not hasattr(variation, "values"):
            raise ValueError(
                f"`variation` must be a Variation. Received: {variation!r}"
            )
        self.variation = variation
        if gradient is None:
            gradient = ModelGradient() if device is None else DeviceGradient()
        elif not isinstance(gradient, GradientSource):
            raise ValueError(
                f"`gradient` must be a gradient source. Received: {gradient!r}"
            )
        self.gradient = gradient.on(device)
        real = isinstance(clean_fraction, numbers.Real) and not isinstance(
            clean_fraction, bool
        )
        if not (real and 0 <= clean_fraction <= 1):
            raise ValueError(
                f"`clean_fraction` must be in [0, 1]. Received: {clean_fraction!r}"
            )
        self._clean_fraction = float(clean_fraction)
        whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
        if not (whole and -(2**31) <= seed < 2**31):
            raise ValueError(
                f"`seed` must be a whole number of 32 bits. Received: {seed!r}"
            )
        self.seed = int(seed)
        self._sharpness = keras.metrics.Mean(name="sharpness")

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
    def clean_fraction(self) -> float:
        """The share of the first pass's gradient; fixed, as steps are traced once."""
        return self._clean_fraction

    @property
    def extra_passes(self) -> int:
        """Forward passes per step beside the two passes, for finite differences.

        Two for each component of a central difference, one for each of a forward
        one; with a device, forward differences need one pass more, at θ0.

        Raises:
            ValueError: the model inside is not built, and there is `adversarial`.
        """
        return extra_passes(self._perturbed()[1], self.device is not None)

    def train_step(self, data):
        batch = keras.utils.unpack_x_y_sample_weight(data)
        self._build_inner(batch[0])
        step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), "int32")
        seed = tf.stack([self.seed, step])
        noise = []
        if self.variation is not None:
            noise = self.variation.values(self.model, seed)
        trainable = self.trainable_variables
        moved, thetas = self._perturbed()
        one_pass = not moved and not thetas
        wrt = [*moved, *by_autodiff(thetas)]
        if one_pass or self.clean_fraction:
            wrt = list({id(v): v for v in [*wrt, *trainable]}.values())
        first = self.gradient(self, batch, noise, wrt)
        slopes = _by_id(zip(wrt, first.gradients, strict=True))
        clean = [slopes.get(id(v)) for v in trainable]
        if one_pass:
            second, gradients = first, clean
        else:
            worst = self._worst(moved, _by_id(noise), slopes)
            worst += self._misaligned(thetas, noise, slopes, first.loss, batch, seed)
            second = self.gradient(self, batch, replaced(noise, worst), trainable, 1)
            gradients = mixed(second.gradients, clean, self.clean_fraction)
        # A device that fails in either pass leaves the state from before the step.
        measured = []
        if self.on_bench:
            # A gradient may come from measurements of its own.
            taken = [g for g in (*first.gradients, *second.gradients) if g is not None]
            measured = [first.loss, second.loss, *taken]
        with tf.control_dependencies(measured):
            self._commit(first.scope, [*(v for v, _ in noise), *wrt])
            first.commit()
            return self._apply(batch, first, second, gradients, trainable)

    def _apply(self, batch, first, second, gradients, trainable) -> dict:
        """Steps the optimizer and the metrics; returns the logs."""
        x, y, sample_weight = batch
        size = tf.shape(next(a for a in keras.tree.flatten(x) if a is not None))[0]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._loss_tracker.update_state(first.loss * replicas, sample_weight=size)
        self._sharpness.update_state(
            (second.loss - first.loss) * replicas, sample_weight=size
        )
        self.optimizer.apply_gradients(zip(gradients, trainable, strict=True))
        return self.compute_metrics(x, y, first.y_pred, sample_weight=sample_weight)

    def _perturbed(self) -> tuple[list, list]:
        """What the second pass moves: variables by the ascent, and imperfections."""
        moved = []
        if self.ascent is not None:
            moved = select_variables(self.model, self.perturb)
        return moved, parameters(self.model, self.adversarial, moved)

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
            origin=None if self.device is not None else origin,
            gradients={
                id(v): dense(slopes[id(v)], v) / tf.cast(scale, v.dtype)
                for v in by_autodiff(thetas)
            },
            seed=seed,
        )

    @property
    def train_metrics(self):
        return [self._sharpness]

    def get_config(self):
        config = super().get_config()
        serialize = keras.saving.serialize_keras_object
        return {
            **config,
            "ascent": serialize(self.ascent),
            "perturb": serialize(self.perturb),
            "adversarial": {n: serialize(r) for n, r in self.adversarial.items()},
            "variation": serialize(self.variation),
            "clean_fraction": self.clean_fraction,
            "seed": self.seed,
            "gradient": serialize(self.gradient),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        load = keras.saving.deserialize_keras_object
        parts = (
            "model",
            "ascent",
            "perturb",
            "adversarial",
            "variation",
            "gradient",
        )
        loaded = {
            p: load(config[p], custom_objects=custom_objects)
            for p in parts
            if p in config
        }
        return cls(**{**config, **loaded})


def _by_id(pairs) -> dict:
    """{id of the variable: value}; Keras variables cannot be dictionary keys."""
    return {id(variable): value for variable, value in pairs}
