"""What all drift processes share: access by (seed, step), blocks, checks."""

import dataclasses
import math
import numbers
from collections import OrderedDict

import numpy as np

BLOCK = 1024
_CACHED_SEEDS = 8


@dataclasses.dataclass(frozen=True)
class Process:
    """Base of the drift processes: a number for each step.

    A subclass is a frozen dataclass and implements `_value(step, seed)`, where `step`
    is a non-negative int and `seed` a tuple of ints, both already checked.
    """

    def at(self, step, seed=0):
        """The value at one step.

        Args:
            step: Non-negative integer.
            seed: Non-negative integer, or a tuple of them. Processes without
                randomness ignore it.

        Returns:
            A float, in the unit of the quantity that drifts.

        Raises:
            ValueError: If `step` or `seed` is not a non-negative integer.
        """
        return self._value(count("step", step), seeds(seed))

    def path(self, steps, seed=0):
        """The values at steps 0 to `steps - 1`; `path(n)[i] == at(i)`.

        Args:
            steps: Non-negative integer, the number of values.
            seed: As in `at`.

        Returns:
            A float64 array of shape `(steps,)`.

        Raises:
            ValueError: If `steps` or `seed` is not a non-negative integer.
        """
        seed = seeds(seed)
        values = (self._value(i, seed) for i in range(count("steps", steps)))
        return np.fromiter(values, dtype="float64")

    def _value(self, step, seed):
        raise NotImplementedError

    def get_config(self):
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def _set(self, **values):
        for name, value in values.items():
            object.__setattr__(self, name, value)


class BlockProcess(Process):
    """A random process that is drawn block by block.

    A block is a function of (seed, block number, state at its start), and the state
    is carried from block to block in one fixed order, so that what happens to be
    cached cannot change a value.
    """

    def _value(self, step, seed):
        index, offset = divmod(step, BLOCK)
        cache = self.__dict__.get("_cache")
        if cache is None:
            cache = OrderedDict()
            self._set(_cache=cache)
        entry = cache.get(seed)
        if entry is None:
            while len(cache) >= _CACHED_SEEDS:
                cache.popitem(last=False)
            entry = cache[seed] = {
                "states": [self._initial(seed)],
                "index": None,
                "values": None,
            }
        else:
            cache.move_to_end(seed)
        if entry["index"] != index:
            states = entry["states"]
            for block in range(min(index, len(states) - 1), index + 1):
                values, state = self._draw(
                    generator_of(self, seed, block), states[block]
                )
                if len(states) == block + 1:
                    states.append(state)
            entry["index"], entry["values"] = index, values
        return entry["values"][offset]

    def _initial(self, seed):
        return 0.0

    def _draw(self, generator, state):
        raise NotImplementedError

    def __getstate__(self):
        return self.get_config()

    def __setstate__(self, state):
        self._set(**state)


def generator_of(process, seed, block):
    # NumPy pads a seed with zeros, so the length is part of it; the class name keeps
    # two kinds of process with one seed independent.
    kind = int.from_bytes(type(process).__name__.encode(), "little")
    position = 0 if block == "initial" else block + 1
    return np.random.default_rng([len(seed), *seed, kind, position])


def short(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def number(name, value, minimum=None, above=None):
    limit = ""
    if minimum is not None:
        limit = f" not less than {minimum:g}"
    if above is not None:
        limit = f" greater than {above:g}"
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not math.isfinite(value)
        or (minimum is not None and value < minimum)
        or (above is not None and value <= above)
    ):
        raise ValueError(
            f"Argument `{name}` must be a finite number{limit}. "
            f"Received: {name}={short(value)}"
        )
    return float(value)


def count(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(
            f"Argument `{name}` must be a non-negative integer. "
            f"Received: {name}={short(value)}"
        )
    return int(value)


def seeds(seed):
    parts = seed if isinstance(seed, (tuple, list)) and seed else (seed,)
    return tuple(count("seed", part) for part in parts)
