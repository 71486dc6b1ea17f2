"""Define the methods that a training step calls on an ascent: the base class."""

import copy
import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn._signatures import Configured
from keras_pnn.layers.context import Overrides
from keras_pnn.training.gradients.base import Batch, Evaluation


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step, as an ascent sees it.

    Args:
        trainer: the model that trains.
        iteration: the optimizer's step count.
        seed: two integers, a tensor; draws are a pure function of it.
        ramp: factor of the ascent during `warmup` of `SATModel`.
        adversarial: whether eq. 5 moves imperfections in the second pass.
    """

    trainer: keras.Model
    iteration: tf.Tensor
    seed: tf.Tensor
    ramp: tf.Tensor | float = 1.0
    adversarial: bool = False


class Ascent(Configured):
    """Base of the ascents, and the ascent that does nothing.

    `SATModel.train_step` makes a copy for one step by `at(step)`, and calls

    1. `prepared` for the batch, perhaps with a term that is added to the loss;
    2. `__call__` for ΔΘ from the gradients of the first pass, if the ascent `moves`;
    3. `second` for the pass at Θ + ΔΘ;
    4. `combined` for the gradients of the step, if it `combines` those of both passes;
    5. `commit` to store the ascent's new states, after the optimizer's step.

    A subclass overrides what it needs. With a `memory`, it keeps one state for each of
    its `remembered` variables in `kept`, and each step puts the next values into
    `found`.
    """

    # Whether there is a ΔΘ.
    moves = False
    # Whether `combined` needs the first pass's gradients with respect to all trainable
    # variables.
    combines = False
    # Whether it can train on several replicas.
    replicated = True
    # Whether it has states, which `fit` creates before the first step.
    follows = False
    # Whether the second pass is in a `tf.cond`, where a gradient source cannot store
    # its state.
    branches = False
    # Whether it compares outputs, and so needs those for all labels in training.
    by_outputs = False
    # Name of the states that it keeps for its variables; empty if it keeps none.
    memory = ""
    kept: tuple | list = ()
    found: tuple | list = ()
    # Measurements of a step besides its two passes: settings times samples.
    asked: tf.Tensor | int = 0
    # Whether this step has measured the sharpness.
    measured: tf.Tensor | bool = True
    step: Step | None = None
    # Name of the model that it belongs to, if it `follows`.
    _owner = ""
    # The variables that a memory has states for.
    _known: tuple = ()
    # States that were read from a file, until `build` has made their variables.
    _read: dict[str, np.ndarray] | None = None

    @property
    def rho(self):
        """The radius; 0 if nothing is moved."""
        return 0.0

    @rho.setter
    def rho(self, value):
        raise ValueError(
            "`rho` needs an ascent that has a radius. Received: "
            f"rho={value!r} for {self!r}"
        )

    @property
    def suspect(self) -> str:
        """The argument that may be too large, as `name=value`; `""` if none is."""
        return ""

    # Before a step.

    def claim(self, trainer) -> None:
        """Binds the ascent to a model; raises ValueError if that is impossible."""
        if self._owner:
            raise ValueError(
                f"A {type(self).__name__} remembers the training of one model: give "
                "each its own as `ascent`. Received: that of model "
                f"'{self._owner}'"
            )
        if not self.moves and trainer.perturb != "controls":
            raise ValueError(
                "`perturb` names what an ascent moves, and this one, or none, moves "
                f"nothing. Received: perturb={_checks.short(trainer.perturb)}, "
                f"ascent={trainer.ascent!r}"
            )
        self._owner = trainer.name if self.follows else ""

    def states(self) -> dict[str, keras.Variable]:
        """Returns name → state that changes during training and is saved."""
        return {v.name: v for v in self.kept}

    def build(self, trainer, moved: list[keras.Variable], x=None) -> None:
        """Creates the states for a built model, `moved` variables and inputs `x`, once.

        They are created again after layers were frozen or unfrozen.
        """
        variables = self.remembered(trainer, moved) if self.memory else []
        if list(map(id, self._known)) != list(map(id, variables)):
            self._known = tuple(variables)
            self.kept = [
                state(f"{self.memory}_{i}", self.initial(v), v.dtype)
                for i, v in enumerate(variables)
            ]
            self.restore()

    def remembered(self, trainer, moved: list[keras.Variable]) -> list[keras.Variable]:
        """Returns the variables that a memory has states for."""
        return trainer.trainable_variables

    def initial(self, variable: keras.Variable) -> np.ndarray:
        """Returns the initial state of a variable."""
        return np.zeros(variable.shape)

    def read(self, saved: dict[str, np.ndarray]) -> None:
        """Restores saved states, now or as soon as their variables exist."""
        self._read = saved
        self.restore()

    def restore(self) -> None:
        """Assigns the states that were read to their variables."""
        states = self.states()
        for name in [n for n in self._read or () if n in states]:
            states[name].assign(self._read.pop(name))

    def callbacks(self, build: Callable, x) -> list[keras.callbacks.Callback]:
        """Returns the callbacks that `fit` on `x` needs; `build` creates the states.

        Raises ValueError if the ascent cannot train on this data.
        """
        # States must exist before a `Checkpoint` loads them.
        made = keras.callbacks.LambdaCallback(on_train_begin=lambda logs=None: build())
        return [made] if self.follows else []

    def at(self, step: Step) -> "Ascent":
        """Returns a copy for one step, which can hold intermediate results."""
        own = copy.copy(self)
        own.step = step
        return own

    # In a step.

    def prepared(self, batch: Batch, present: Overrides) -> Batch:
        """Returns the batch with a term to add to its loss at the `present` values."""
        return batch

    def __call__(self, values: list, gradients: list, iteration) -> list:
        """Returns ΔΘ for the variables that are moved."""
        raise NotImplementedError

    def second(
        self, evaluate: Callable, batch: Batch, worst: Callable, first: Evaluation
    ) -> Evaluation:
        """Takes the second pass by `evaluate(batch, overrides)`.

        `worst()` gives the overrides at (Θ + ΔΘ, θ_adv).
        """
        return evaluate(batch, worst())

    def combined(self, first: list, second: list) -> list:
        """Returns the gradients of the step, combined from those of both passes.

        All are with respect to all trainable variables, summed over replicas, and dense
        or `None`.
        """
        raise NotImplementedError

    def added(self, batch: Batch, y_pred) -> tf.Tensor | None:
        """Returns the term that was added to the loss, or `None`."""
        return None

    def commit(self, y_pred, skipped: tf.Tensor) -> None:
        """Stores the new states after the optimizer's step, unless it was `skipped`."""
        for variable, value in zip(self.kept, self.found, strict=True):
            old = tf.convert_to_tensor(variable)
            variable.assign(tf.where(skipped, old, tf.cast(value, old.dtype)))


def state(name: str, value, dtype) -> keras.Variable:
    """Returns a variable for a state of an ascent, the same on all replicas."""
    return keras.Variable(
        value,
        dtype=dtype,
        trainable=False,
        name=name,
        aggregation="only_first_replica",
    )


def inner(one: list, other: list) -> tf.Tensor:
    """Returns the scalar product over all tensors, in float64; `None` counts as 0.

    In float64 no square of a scaled gradient overflows.
    """
    products = [
        tf.reduce_sum(tf.cast(a, "float64") * tf.cast(b, "float64"))
        for a, b in zip(one, other, strict=True)
        if a is not None and b is not None
    ]
    return tf.add_n([tf.zeros((), "float64"), *products])


def plus(one: list, factor: tf.Tensor, other: list) -> list:
    """Returns one + factor · other; `None` in `one` stays, and in `other` is 0."""
    return [
        a if a is None or b is None else a + tf.cast(factor, a.dtype) * b
        for a, b in zip(one, other, strict=True)
    ]


def chosen(condition, yes: list, no: list) -> list:
    """Returns one of two lists of tensors, in which `None` is at the same places."""
    return [
        a if a is None else tf.where(condition, a, b)
        for a, b in zip(yes, no, strict=True)
    ]


def either(
    condition, taken: Callable, otherwise: Callable, first: Evaluation, wrt: list
) -> Evaluation:
    """Takes one of two passes, without computing the other one.

    All but loss, gradients (dense, with respect to `wrt`) and `asked` is from `first`.
    """
    present = [False] * len(wrt)

    def branch(evaluate):
        found = evaluate()
        for place, variable in enumerate(wrt):
            present[place] |= found.gradient(variable) is not None
        asked = tf.cast(found.asked, "int64")
        return found.loss, [found.dense(v) for v in wrt], asked

    loss, gradients, asked = tf.cond(
        condition, lambda: branch(taken), lambda: branch(otherwise)
    )
    gradients = [g if p else None for g, p in zip(gradients, present, strict=True)]
    return dataclasses.replace(
        first,
        loss=loss,
        wrt=list(wrt),
        gradients=gradients,
        asked=asked,
        # `first` is committed on its own.
        commit=lambda: None,
    )
