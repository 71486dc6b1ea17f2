"""Train Keras models so that their loss stays flat: sharpness-aware training."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _keras, _warnings
from keras_pnn.devices.draws import folded
from keras_pnn.devices.variation import Variation
from keras_pnn.layers.context import Overrides
from keras_pnn.layers.lookup import check_selection, select_variables
from keras_pnn.training import ascent as ascents
from keras_pnn.training import bench
from keras_pnn.training.adversary import Adversary
from keras_pnn.training.adversary_rules import AdversaryRule, check_rules
from keras_pnn.training.collapse import CollapseWarning
from keras_pnn.training.gradients.base import (
    Batch,
    DeviceGradient,
    Evaluation,
    GradientSource,
    ModelGradient,
    summed,
)
from keras_pnn.training.trainer import Trainer


@keras.saving.register_keras_serializable(package="keras_pnn")
class SATModel(Trainer):
    """Trains a model for a loss that stays flat around its controls.

    With controls Θ, imperfections θ (present values θ0) and a loss L, each step takes

        ΔΘ = ρ g / ‖g‖₂, g = ∂L/∂Θ at (Θ, θ0)                          (eq. 3)
        θ_adv = θ0 + r ⊙ (r ⊙ h) / ‖r ⊙ h‖₂, h = dL/dθ at (Θ, θ0)       (eq. 5)
        Θ ← optimizer step with ∂L/∂Θ at (Θ + ΔΘ, θ_adv)            (eqs. 4, 6)

    Eq. 5 applies to the imperfections that `adversarial` names; θ itself is never
    assigned. Each θ has its own radius r and norm; under a common norm, the units would
    decide which θ moves. Finite differences add `sat.extra_passes` forward passes to
    each step, all through the model.

    Metrics, batch-normalisation statistics, RNN states and the reported loss come from
    the first pass. All passes begin with the same states and draw the same dropout
    masks and noise, so that ρ = 0 is plain training bit for bit (under XLA, up to
    rounding). With a device, `measurements` is logged too. `sharpness`, the mean of
    L(Θ + ΔΘ, θ_adv) − L(Θ, θ0), is logged with the loss; some ascents document
    another definition. Steps that the optimizer skips because gradients overflow under
    `mixed_float16` are left out of it. They count in the loss and the metrics, as in
    plain Keras, since their first pass is valid.

    The saved state includes ρ and the ascent's states: resuming a run and
    `sat.load_weights` restore the saved ρ, not the argument `rho`. To change it, set
    `sat.rho` afterwards, or load the weights alone with `sat.model.load_weights`.

    `evaluate` and `predict` run the wrapped model, `sat.model`. With a device,
    validation in `fit` runs on the device and also logs the digital model's metrics
    (`val_model_loss` and so on); `evaluate` is digital unless a device is installed,
    `save` saves the digital model alone, and Hessian eigenvalues are those of the
    digital model, since a measurement has no second derivative.

    `fit` warns once if the loss is NaN or an accuracy metric stays at chance. The
    model's own `compute_loss` and metrics are used, as in plain training.

    Args:
        model: any Keras model that does not override `train_step`, `test_step`,
            `predict_step`, `compute_metrics` or `get_metrics_result`.
        rho: radius ρ of the ascent, in the unit of what it moves: a number ≥ 0 or a
            Keras learning-rate schedule. Default 0.05. A number can be set during
            training, `sat.rho = 0.1`.
        ascent: `"sam"`, `"asam"`, or an object such as `pnn.ASAM(0.5, eta=0.01)`,
            which has its own rho. `SAF`, `MESA`, `LookSAM` and `ESAM` save all or part
            of the cost of the second gradient; `FriendlySAM` and `GSAM` are further
            ascents; the key of each is its name in lower case. `None`: no ascent;
            without `adversarial`, one pass per step, as in plain training.
        perturb: what the ascent moves: `"controls"`; `"all"` trainable variables; a
            name or a pattern of trainable variables and imperfections, of all layers
            (`"resonance_shift"`) or of some (`"mrr_bank_*/control"`); several of
            these; or a predicate on variables. To save the model, the predicate must
            be a function registered with Keras; with a lambda `save` raises.
        adversarial: name of an imperfection → `pnn.FiniteDifference` or
            `pnn.Autodiff`. `"rotation"` is one value for all layers that have it
            (with `Autodiff`, one for each where their shapes differ),
            `"slm/rotation"` is that of one layer.
        variation: a `Variation`. Each step draws a new device for all its passes, as a
            pure function of `seed` and the step, with and without XLA. It never equals
            a device of `Variation.sample`. Its deviations add to an installed device
            and to drift.
        device: a device whose measurements replace the layers' outputs in both
            passes, while gradients go through the model: SAT online. The ascent
            uses these gradients too. `adversarial`, `variation` and drift add to the
            deviations of a `SimulatedDevice`; with a device on the bench they raise an
            error.
        warmup: number of optimizer steps over which the ascent's ΔΘ or loss term, and
            the deviations of `variation`, grow linearly from 0 to full size; 0 for no
            warm-up. An untrained network may not learn on devices that differ much.
            Stuck controls are stuck from the first step.
        clean_fraction: a in [0, 1]: the optimizer steps with (1 − a) times the
            gradient of the second pass plus a times that of the first. With a large
            adversarial radius and a = 0, a network can forget the nominal case.
        seed: seed of the noise, the sampled radii and steps, and the draws of the
            gradient source; a 32-bit integer.
        gradient: gradient source, such as `pnn.ParameterShift()`. Default: the model,
            or with a device `pnn.training.DeviceGradient()`; for an imperfect mesh,
            pass `pnn.training.DeviceGradient("output")`.

    Raises:
        ValueError: If `model` overrides a step that would not be called, or is wrapped
            in the scope of a `MultiWorkerMirroredStrategy`; `rho` is negative, or is
            given with an ascent object or the name of an ascent without a radius; an
            ascent with a memory (such as `SAF`) already belongs to a model; `perturb`
            is given with an ascent that moves nothing, or selects nothing, such as
            `"controls"` in a model without physical layers; `clean_fraction` is outside
            [0, 1], or above 0 without a second pass; `warmup` is not an integer ≥ 0, or
            there is nothing to ramp; `seed` is not a 32-bit integer; or `adversarial`
            names what the model does not have, one variable twice, or one that
            `perturb` moves.

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
        rho: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
        ascent: str | ascents.Ascent | None = "sam",
        perturb: str | Sequence[str] | Callable = "controls",
        adversarial: dict[str, AdversaryRule] | None = None,
        variation: Variation | None = None,
        device=None,
        warmup: int = 0,
        clean_fraction: float = 0.0,
        seed: int = 0,
        gradient: GradientSource | None = None,
        **kwargs,
    ):
        kwargs.setdefault("name", f"sat_{getattr(model, 'name', '')}")
        super().__init__(model, **kwargs)
        self.ascent = ascents.get(ascent, rho)
        self.perturb = check_selection("perturb", perturb)
        self._ascent.claim(self)
        self.adversarial = check_rules(adversarial)
        if model.built:
            self._perturbed()
        if variation is not None and not hasattr(variation, "values"):
            raise _checks.error("variation", "a Variation", _checks.short(variation))
        self.variation = variation
        self._warmup = _checks.integer("warmup", warmup, low=0)
        if warmup and self.ascent is None and variation is None:
            expected = "0 without what it ramps, an ascent or a variation"
            raise _checks.error("warmup", expected, warmup)
        if gradient is None:
            gradient = ModelGradient() if device is None else DeviceGradient()
        elif not isinstance(gradient, GradientSource):
            expected = "a gradient source such as pnn.SPSA"
            raise _checks.error("gradient", expected, _checks.short(gradient))
        self.gradient = gradient.on(device)
        self._clean_fraction = _checks.real(
            "clean_fraction", clean_fraction, low=0, high=1
        )
        if clean_fraction and not (self._ascent.moves or self.adversarial):
            expected = "0 without a second pass, by `ascent` or `adversarial`"
            raise _checks.error("clean_fraction", expected, clean_fraction)
        self.seed = _checks.integer("seed", seed, -(2**31), 2**31 - 1)
        self._sharpness = keras.metrics.Mean(name="sharpness")
        # Number of classes of the outputs, known from the first step on.
        self.classes: int | None = None

    @property
    def rho(self):
        """Radius of the ascent; 0 without one."""
        return self._ascent.rho

    @rho.setter
    def rho(self, value):
        self._ascent.rho = value

    @property
    def _ascent(self) -> ascents.Ascent:
        """The ascent, or one that does nothing."""
        return ascents.Ascent() if self.ascent is None else self.ascent

    @property
    def warmup(self) -> int:
        """Steps over which ascent and noise grow; fixed, as steps are traced once."""
        return self._warmup

    @property
    def clean_fraction(self) -> float:
        """The share of the first pass's gradient; fixed, as steps are traced once."""
        return self._clean_fraction

    @property
    def extra_passes(self) -> int:
        """Extra forward passes per step for finite differences.

        Two per component for central differences, one for forward differences; with a
        device, forward differences need one more pass, at θ0.

        Raises:
            ValueError: If `adversarial` is given and the wrapped model is not built.
        """
        _, adversary = self._perturbed()
        at_origin = self.device is not None and adversary.needs_origin
        return adversary.passes + int(at_origin)

    def train_step(self, data) -> dict:
        batch = Batch(keras.utils.unpack_x_y_sample_weight(data))
        self._build_inner(batch[0])
        iteration = tf.convert_to_tensor(self.optimizer.iterations)
        seed = tf.stack([self.seed, tf.cast(iteration, "int32")])
        trainable = self.trainable_variables
        controls, adversary = self._perturbed()
        one_pass = not controls and not adversary
        self._check_movable(adversary)

        # The first pass, at (Θ, θ0), and the gradients that eqs. 3 and 5 need.
        ramp, drawn = 1.0, Overrides()
        if self.warmup:
            ramp = tf.minimum(tf.cast(iteration, "float32") / self.warmup, 1.0)
        if self.variation is not None:
            # Folded, so as never to train on a test device of `Variation.sample`.
            drawn = self._drawn(folded(seed, "training"), ramp)
        present = drawn.reading(self.model.variables)
        step = ascents.Step(self, iteration, seed, ramp, bool(adversary))
        ascent = self._ascent.at(step)
        batch = ascent.prepared(batch, present)
        wrt = [*controls, *adversary.differentiated]
        if one_pass or self.clean_fraction or ascent.combines:
            wrt = list(Overrides((v, None) for v in [*wrt, *trainable]))
        first = self.gradient(self, batch, present, wrt)
        gradients = [first.gradient(v) for v in trainable]
        second = first
        if not one_pass:

            def worst():
                moved = self._ascended(ascent, controls, present, first)
                away = self._adversarial(adversary, present, first, batch, seed)
                return present.merged(moved).merged(away)

            # Eqs. 4 and 6: the gradient at (Θ + ΔΘ, θ_adv).
            second = ascent.second(
                lambda part, at: self.gradient(self, part, at, trainable, index=1),
                batch,
                worst,
                first,
            )
            gradients = self._combined(ascent, gradients, second.gradients)
        with tf.control_dependencies(bench.measurements(self, first, second)):
            # Statistics, states of all kinds and metrics are those of the first pass.
            first.scope.check_unassigned(drawn, "`variation`")
            for variable, value in first.scope.updates():
                variable.assign(value)
            first.commit()
            self.count(first.asked + ascent.asked)
            if second is not first:
                second.commit()
                self.count(second.asked)
            return self._apply(batch, first, second, gradients, ascent)

    def _build_inner(self, x):
        super()._build_inner(x)
        # On several replicas, `fit` has already built the ascent.
        if self.distribute_strategy.num_replicas_in_sync == 1:
            with tf.init_scope():
                self._build_ascent(x)

    def _build_ascent(self, x=None) -> None:
        """Makes the states of the ascent, if the model is built."""
        if _keras.is_built(self.model):
            with self.distribute_strategy.scope():
                self._ascent.build(self, self._perturbed()[0], x)

    def _perturbed(self) -> tuple[list[keras.Variable], Adversary]:
        """The controls that the ascent moves, and the adversary of eq. 5."""
        controls = []
        if self._ascent.moves:
            controls = select_variables(self.model, self.perturb, "perturb")
        return controls, Adversary(self.model, self.adversarial, controls)

    def _drawn(self, seed, ramp) -> Overrides:
        """The values of the device of this step: variables plus drawn deviations."""
        if self.jit_compile and self.variation.without_quantile:
            raise ValueError(
                "TFP draws other devices under XLA than without: compile with "
                "jit_compile=False, or give distributions with a quantile function in "
                "`variation`. Received: jit_compile=True, and distributions without of "
                f"{', '.join(self.variation.without_quantile)}"
            )
        if not self.warmup:
            return Overrides(self.variation.values(self.model, seed))
        drawn = self.variation.deviations(self.model, seed)
        return Overrides((q.variable, q.added(q.scaled(d, ramp))) for q, d in drawn)

    def _check_movable(self, adversary: Adversary) -> None:
        """Raises ValueError if a device on the bench would have to move."""
        parameters = adversary.parameters
        moved = {"`adversarial`": [q for p in parameters for q in p.quantities]}
        if self.variation is not None:
            moved["`variation`"] = self.variation.quantities(self.model)
        for device in bench.devices_of(self):
            for what, quantities in moved.items():
                bench.check_movable(device, quantities, what)

    def _ascended(self, ascent, controls: list, present: Overrides, first: Evaluation):
        """Θ + ΔΘ, eq. 3."""
        if not controls:
            return Overrides()
        values = [present.value(v) for v in controls]
        gradients = summed([first.dense(v) for v in controls])
        steps = ascent(values, gradients, ascent.step.iteration)
        if self.warmup:
            steps = [tf.cast(ascent.step.ramp, s.dtype) * s for s in steps]
        return Overrides(
            (variable, value + step)
            for variable, value, step in zip(controls, values, steps, strict=True)
        )

    def _adversarial(self, adversary, present, first: Evaluation, batch, seed):
        """θ_adv, eq. 5."""
        scale = self.optimizer.scale_loss(tf.constant(1.0))
        model = self.gradient.modelled()
        return adversary.moved(
            present,
            loss=lambda moved: model.loss(self, batch, present.merged(moved)),
            # A device's loss minus a model's loss gives no slope.
            origin=None if self.device is not None else first.loss,
            gradient=lambda v: first.dense(v) / tf.cast(scale, v.dtype),
            seed=seed,
        )

    def _combined(self, ascent, first: list, second: list) -> list:
        """The gradients of a step, combined from both passes."""
        gradients, share = second, self.clean_fraction
        if ascent.combines:
            # Summed first, as norms do not add over replicas; Keras sums again.
            combined = ascent.combined(summed(first), summed(second))
            replicas = self.distribute_strategy.num_replicas_in_sync
            gradients = [None if g is None else g / replicas for g in combined]
        if not share:
            return gradients
        return [
            None
            if g is None
            else (1 - share) * tf.convert_to_tensor(g) + share * tf.convert_to_tensor(o)
            for g, o in zip(gradients, first, strict=True)
        ]

    def _apply(self, batch, first: Evaluation, second: Evaluation, gradients, ascent):
        """Steps the optimizer, the metrics and the ascent; returns the logs."""
        x, y, sample_weight = batch
        if keras.ops.is_tensor(first.y_pred) and (first.y_pred.shape.rank or 0) > 1:
            # One output that is a probability has two classes.
            units = first.y_pred.shape[-1]
            self.classes = units and max(units, 2)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        # The optimizer skips a step that overflowed, and its second pass means nothing.
        skipped = tf.constant(False)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            dense = [tf.convert_to_tensor(g) for g in gradients if g is not None]
            finite = [tf.reduce_all(tf.math.is_finite(tf.abs(g))) for g in dense]
            skipped = tf.logical_not(tf.reduce_all(finite))
        added = ascent.added(batch, first.y_pred)
        loss = first.loss
        if added is not None:
            loss -= tf.cast(added, loss.dtype)
        rise = second.loss - loss
        left_out = skipped | tf.logical_not(ascent.measured)
        tracker, size = _keras.loss_tracker(self), batch.size
        tracker.update_state(loss * replicas, sample_weight=size)
        self._sharpness.update_state(
            tf.where(left_out, tf.zeros_like(rise), rise) * replicas,
            sample_weight=tf.where(left_out, 0, size),
        )
        if pairs := list(zip(gradients, self.trainable_variables, strict=True)):
            self.optimizer.apply_gradients(pairs)
        else:
            _warnings.warn("The model does not have any trainable weights.")
        ascent.commit(first.y_pred, skipped)
        return self.compute_metrics(x, y, first.y_pred, sample_weight=sample_weight)

    @property
    def train_metrics(self):
        return [self._sharpness]

    def _own_callbacks(self, x):
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1 and not self._ascent.replicated:
            raise ValueError(
                f"{type(self.ascent).__name__} trains on one replica. Received: "
                f"{replicas} replicas, ascent={self.ascent!r}"
            )
        suspects = [self._ascent.suspect] if self._ascent.suspect else []
        if self.variation is not None:
            suspects.append(f"variation={self.variation!r}")
        if self.adversarial:
            suspects.append(f"adversarial={self.adversarial!r}")
        needed = self._ascent.callbacks(self._build_ascent, x)
        return [*super()._own_callbacks(x), *needed, CollapseWarning(suspects)]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for name, variable in self._ascent.states().items():
            store[f"ascent_{name}"] = variable

    def load_own_variables(self, store):
        super().load_own_variables(store)
        # Weights may be those of a run with another ascent.
        self._build_ascent()
        names = [key for key in list(store.keys()) if key.startswith("ascent_")]
        self._ascent.read(
            {name.removeprefix("ascent_"): np.asarray(store[name]) for name in names}
        )

    def get_config(self):
        instead = "give names or patterns such as 'mrr_bank_*/control', or "
        return {
            **super().get_config(),
            "perturb": _checks.saved(self, "perturb", self.perturb, instead),
            **{
                name: _checks.saved(self, name, getattr(self, name))
                for name in ("ascent", "adversarial", "variation", "gradient")
            },
            "warmup": self.warmup,
            "clean_fraction": self.clean_fraction,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        load = keras.saving.deserialize_keras_object
        given = {k: load(v, custom_objects=custom_objects) for k, v in config.items()}
        return cls(**given)
