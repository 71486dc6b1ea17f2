"""Define a drift process: the value at a step, a function of seed and step."""

import dataclasses
import functools

import numpy as np

from keras_pnn import _checks

BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Process:
    """Base of the drift processes: a number for each step.

    A subclass is a frozen dataclass and implements `_value(step, seed)`, where `step`
    is a non-negative int and `seed` a tuple of ints, both already checked. Its fields
    are finite numbers, within the bounds of `_checks.real` that their metadata give.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            number = _checks.real(field.name, value, **field.metadata)
            object.__setattr__(self, field.name, number)

    def at(self, step, seed=0):
        """Returns the value at one step, a float in the unit of what drifts.

        Args:
            step: Non-negative integer.
            seed: Non-negative integer, or a tuple of them. Processes without
                randomness ignore it.

        Raises:
            ValueError: If `step` or `seed` is not a non-negative integer.
        """
        return self._value(_checks.integer("step", step, 0), _seed(seed))

    def path(self, steps, seed=0):
        """Returns the values at steps 0 to `steps - 1`; `path(n)[i] == at(i)`.

        Args:
            steps: Non-negative integer, the number of values.
            seed: As in `at`.

        Returns:
            A float64 array of shape `(steps,)`.

        Raises:
            ValueError: If `steps` or `seed` is not a non-negative integer.
        """
        steps, seed = _checks.integer("steps", steps, 0), _seed(seed)
        return np.fromiter((self._value(i, seed) for i in range(steps)), "float64")

    def get_config(self):
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class BlockProcess(Process):
    """Base of the random processes, which are drawn block by block.

    A block is a function of the seed, its number, and the value at which the block
    before it ends. A subclass implements `_draw(generator, start)`, which returns
    `BLOCK` values, and after them the start of the next block if that depends on it.
    """

    def _value(self, step, seed):
        index, offset = divmod(step, BLOCK)
        blocks = _blocks(self, seed)
        for i in range(len(blocks), index + 1):
            start = float(blocks[i - 1][-1]) if i else self._initial(seed)
            blocks[i] = np.array(self._draw(generator_of(self, seed, i + 1), start))
        return float(blocks[index][offset])

    def _initial(self, seed):
        return 0.0


@functools.lru_cache(maxsize=8)
def _blocks(process, seed) -> dict[int, np.ndarray]:
    """The blocks of one path that have been drawn so far, by number."""
    return {}


def generator_of(process, seed, position):
    """Returns the generator of one block, or of the initial value (position 0)."""
    # NumPy pads a seed with zeros, so the length is part of it; the class name keeps
    # two kinds of process with one seed independent.
    kind = int.from_bytes(type(process).__name__.encode(), "little")
    return np.random.default_rng([len(seed), *seed, kind, position])


def _seed(seed):
    parts = seed if isinstance(seed, (tuple, list)) and seed else (seed,)
    return tuple(_checks.integer("seed", part, 0) for part in parts)
