"""Show signatures of forwarded arguments, and save objects by their arguments."""

import difflib
import inspect
from collections.abc import Callable

import keras

from keras_pnn._display import Brief


def like(other: Callable) -> Callable:
    """Shows a function with the signature of the function that it forwards to."""

    def shown(function: Callable) -> Callable:
        function.__signature__ = inspect.signature(other)
        return function

    return shown


def check_keywords(function: Callable, given: dict) -> None:
    """Raises TypeError for a keyword that is not in a function's signature."""
    known = list(inspect.signature(function).parameters)
    for name in given:
        if name not in known:
            similar = difflib.get_close_matches(name, known, 1)
            meant = f". Did you mean `{similar[0]}`?" if similar else ""
            raise TypeError(f"{function.__name__}() has no argument `{name}`{meant}")


def passing_on(*receivers: Callable, without: tuple[str, ...] = ()) -> Callable:
    """Shows the keywords of the receivers in place of `**kwargs`.

    Help and completion then list them. The function itself is not changed.

    Args:
        receivers: the functions or classes that `**kwargs` go to. If the last one
            takes any keyword itself, the function is shown with `**kwargs` too.
        without: names that are not passed on.
    """

    def shown(function: Callable) -> Callable:
        signature = inspect.signature(function)
        *own, rest = signature.parameters.values()
        names = {p.name for p in own} | {"self", *without}
        for receiver in receivers:
            last = None
            for parameter in inspect.signature(receiver).parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    last = rest
                elif parameter.name not in names:
                    names.add(parameter.name)
                    own.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
        if last is not None:
            own.append(rest)
        function.__signature__ = signature.replace(parameters=own)
        return function

    return shown


class Configured(Brief):
    """Base of objects saved by the arguments of `__init__`, which are attributes."""

    def get_config(self) -> dict:
        """Returns the serialised arguments of `__init__`."""
        serialize = keras.saving.serialize_keras_object
        names = inspect.signature(type(self)).parameters
        if unknown := [name for name in names if not hasattr(self, name)]:
            raise NotImplementedError(
                f"{type(self).__name__} must have a `get_config` to be saved, or its "
                f"arguments as attributes. Received: none for {', '.join(unknown)}"
            )
        return {name: serialize(getattr(self, name)) for name in names}

    @classmethod
    def from_config(cls, config: dict):
        """Builds an object from the result of `get_config`."""
        load = keras.saving.deserialize_keras_object
        return cls(**{name: load(value) for name, value in config.items()})
