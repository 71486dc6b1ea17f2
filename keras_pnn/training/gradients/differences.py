"""Differentiate by differences of measured losses: the base of several sources."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.devices.draws import folded, whole_numbers
from keras_pnn.layers.context import Overrides
from keras_pnn.layers.lookup import physical_layers, quantities
from keras_pnn.training.gradients.base import (
    Evaluation,
    ModelGradient,
)


class LossGradient(ModelGradient):
    """Base of sources that differentiate the controls by differences of losses.

    The controls are those of the layers that the device measures, or of all physical
    layers without a device. All other variables are differentiated digitally, at the
    measured states; those in front of a measured layer, through its model.

    A subclass implements `slopes`.
    """

    # Whether other variables than these controls are differentiated digitally.
    digital = True

    def slopes(self, losses: "Losses", wrt: list, index: int) -> tuple:
        """Returns derivatives of the loss, and a function that stores new states."""
        raise NotImplementedError

    def __call__(self, trainer, batch, overrides, wrt, index=0) -> Evaluation:
        asked: list = []
        digital = wrt if self.digital else []
        found = self._differentiated(trainer, batch, overrides, digital, asked)
        moved = list(wrt)
        if self.digital:
            layers = asked or physical_layers(trainer.model)
            if not layers:
                raise ValueError(
                    f"{type(self).__name__} differentiates controls: train a model "
                    f"with physical layers. Received: model '{trainer.model.name}', "
                    "which has none"
                )
            own = Overrides((v, None) for la in layers for v in la.controls.values())
            moved = [v for v in wrt if v in own]
        if not moved:
            return found
        losses = Losses(self, trainer, batch, overrides, found.loss)
        slopes, commit = self.slopes(losses, moved, index)
        by_loss = Overrides(zip(moved, slopes, strict=True))
        return dataclasses.replace(
            found,
            wrt=wrt,
            gradients=[
                trainer.optimizer.scale_loss(by_loss[v])
                if v in by_loss
                else found.gradient(v)
                for v in wrt
            ],
            asked=found.asked * (1 + losses.count),
            commit=commit,
        )


class Losses:
    """Measures losses of one batch in a fixed order.

    The first is measured after `last`. `value` returns the present value of a variable,
    `seed` holds the trainer's seed and the step, and `count` counts the measured
    losses.
    """

    def __init__(self, source, trainer, batch, overrides: Overrides, last: tf.Tensor):
        self._loss = lambda moved: source.loss(trainer, batch, overrides.merged(moved))
        self._model, self._last = trainer.model, last
        self.iteration = tf.convert_to_tensor(trainer.optimizer.iterations)
        self.seed = [trainer.seed, tf.cast(self.iteration, "int32")]
        self.value, self.dtype, self.count = overrides.value, last.dtype, 0

    def exists(self, variable: keras.Variable) -> np.ndarray:
        """Returns which elements of a variable the hardware has; all of a weight."""
        found = [q.exists for q in quantities(self._model) if q.variable is variable]
        return found[0] if found else np.array(True)

    def slope(self, wrt: list, directions: list, step) -> tf.Tensor:
        """Returns the central difference of the loss along one direction.

        `directions` has a part for each variable; the loss is measured at ± `step`
        times these parts.
        """
        ends = [self._last]
        for side in (1.0, -1.0):
            moved = [
                (v, self.value(v) + tf.cast(side * step, d.dtype) * d)
                for v, d in zip(wrt, directions, strict=True)
            ]
            with tf.control_dependencies(ends[-1:]):
                ends.append(self._loss(moved))
        return (ends[1] - ends[2]) / tf.cast(2 * step, self.dtype)

    def measured(self, slope: tf.Tensor, count: int = 2) -> None:
        """Records a measured slope, and the number of losses that it took."""
        self._last, self.count = slope, self.count + count


class RandomDirections(LossGradient):
    """Base of sources that measure slopes along random directions.

    g = mean over directions of (L(v + c Δ) − L(v − c Δ)) / (2 c) · Δ, with Δ = 0 for
    controls that the hardware does not have.

    A subclass implements `direction`.
    """

    def __init__(
        self,
        step: float | keras.optimizers.schedules.LearningRateSchedule = 0.01,
        directions: int = 1,
    ):
        if not isinstance(step, keras.optimizers.schedules.LearningRateSchedule):
            step = _checks.real("step", step, above=0)
        self.step = step
        self.directions = _checks.integer("directions", directions, low=1)

    def direction(self, like: tf.Tensor, seed: list, purpose: tuple) -> tf.Tensor:
        """Returns the part of Δ for one variable, a pure function of its arguments."""
        raise NotImplementedError

    def slopes(self, losses, wrt, index):
        step = self.step
        if callable(step):
            step = step(losses.iteration)
        values = [losses.value(v) for v in wrt]
        gradients = [tf.zeros_like(v) for v in values]
        existing = [
            tf.cast(losses.exists(v), value.dtype)
            for v, value in zip(wrt, values, strict=True)
        ]
        for number in range(self.directions):
            directions = [
                self.direction(v, losses.seed, (index, number, place)) * e
                for place, (v, e) in enumerate(zip(values, existing, strict=True))
            ]
            slope = losses.slope(wrt, directions, step)
            losses.measured(slope)
            gradients = [
                g + tf.cast(slope / self.directions, g.dtype) * d
                for g, d in zip(gradients, directions, strict=True)
            ]
        return gradients, lambda: None


def random_signs(like: tf.Tensor, seed: list, purpose: tuple) -> tf.Tensor:
    """Returns ±1 for each element, a pure function of seed and purpose."""
    bits = whole_numbers(tf.shape(like), seed_for(seed, purpose))
    return 1 - 2 * tf.cast(tf.bitwise.right_shift(bits, 31), like.dtype)


def seed_for(seed: list, purpose: tuple) -> tf.Tensor:
    """Returns the seed of one draw, from two integers and its purpose."""
    # The text is part of the seed: another text gives other numbers.
    return folded(tf.stack(seed), repr(("spsa", *purpose)))
