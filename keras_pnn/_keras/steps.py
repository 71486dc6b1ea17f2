"""Wrap the compiled steps of a run, and choose which function they run."""

import functools
import types
import weakref
from collections.abc import Callable

import keras


class StepHandle:
    """Removes the wrapper of one `wrap_step`; does nothing the second time."""

    def __init__(self, steps: "Steps", wrapper: Callable):
        self.remove = functools.partial(steps.remove, wrapper)


def wrap_step(model: keras.Model, kind: str, wrapper: Callable) -> StepHandle:
    """Wraps a function around each step of a model's current run.

    Call it from `on_train_begin` or `on_test_begin`, and `remove` the handle when
    the run ends. Keras does not tell callbacks that a run has failed; a wrapper that a
    failed run leaves behind has no effect on later runs. `train_on_batch` and
    `test_on_batch` run without wrappers.

    Args:
        kind: `"train"` or `"test"`.
        wrapper: a function of (function, iterator) that returns the step's logs, where
            `function(iterator)` runs the step. The last wrapper is the outermost.
    """
    steps = getattr(model, f"{kind}_function")
    if not isinstance(steps, Steps):
        steps = Steps(model, kind)
    steps.add(wrapper)
    return StepHandle(steps, wrapper)


def make_test_functions(
    model: keras.Model, force: bool, second: Callable[[], bool]
) -> None:
    """Makes a model's test function from two that are traced separately.

    Args:
        force: whether to replace an existing test function.
        second: called before each step; returns whether to run the second function.
    """
    if model.test_function is not None and not force:
        return
    made = []
    for _ in range(2):
        keras.Model.make_test_function(model, force=True)
        made.append(model.test_function)
    model.test_function = lambda iterator: made[bool(second())](iterator)


def in_fit(options: dict) -> bool:
    """Tells from the arguments of `evaluate` whether `fit` calls it for validation."""
    return options.get("_use_cached_eval_dataset", False)


def retrace(model: keras.Model, kind: str) -> None:
    """Makes Keras trace a step anew, inside its wrappers."""
    getattr(model, f"make_{kind}_function")(force=True)


def start_at(model: keras.Model, epoch: int | None) -> None:
    """Sets the first epoch of the next `fit`, or of the one that is beginning.

    `None` stands for the `initial_epoch` that is passed to `fit`.
    """
    model._initial_epoch = epoch


class Steps:
    """Stands in for a model's compiled function, with wrappers around it.

    Keras calls `make_train_function` when a run begins, and `train_function` at each
    step; both are replaced on the instance while there is a wrapper. `train_on_batch`
    calls both, too, but passes a generator to the function.
    """

    def __init__(self, model: keras.Model, kind: str):
        self._model = weakref.ref(model)
        self._attribute, self._maker = f"{kind}_function", f"make_{kind}_function"
        self._wrappers: list[Callable] = []
        # Whether Keras has asked for the function since the last step.
        self._may_begin = False
        self._function = getattr(model, self._attribute)
        self.attach()

    def __call__(self, iterator):
        if isinstance(iterator, types.GeneratorType):
            self._may_begin = False
            return self._function(iterator)
        self._drop_those_of_another_run()
        function = self._function
        for wrapper in self._wrappers:
            function = functools.partial(wrapper, function)
        return function(iterator)

    def add(self, wrapper: Callable) -> None:
        self._drop_those_of_another_run()
        self._wrappers.append(wrapper)

    def remove(self, wrapper: Callable) -> None:
        self._wrappers = [w for w in self._wrappers if w is not wrapper]
        model = self._model()
        if self._wrappers or model is None:
            return
        if getattr(model, self._attribute) is self:
            setattr(model, self._attribute, self._function)
        if vars(model).get(self._maker) == self._make:
            self.detach()

    def attach(self) -> None:
        """Replaces the model's function and the method that makes it."""
        model = self._model()
        setattr(model, self._attribute, self)
        vars(model)[self._maker] = self._make

    def detach(self) -> None:
        """Restores the method that makes the model's function."""
        vars(self._model()).pop(self._maker, None)

    def _drop_those_of_another_run(self) -> None:
        if self._may_begin:
            self._wrappers = []
        self._may_begin = False

    def _make(self, force: bool = False) -> None:
        """Makes the function, which Keras requests when a run may begin."""
        model = self._model()
        if getattr(model, self._attribute) is self:
            setattr(model, self._attribute, self._function)
        getattr(type(model), self._maker)(model, force=force)
        self._function = getattr(model, self._attribute)
        setattr(model, self._attribute, self)
        self._may_begin = self._may_begin or not force
