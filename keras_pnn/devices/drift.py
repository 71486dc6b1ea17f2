"""Model how one quantity of a device drifts: temperature, wavelength, alignment.

A process is a pure function of (seed, step): a resumed run has the same values as an
uninterrupted one. The caller chooses what steps count (training batches, epochs,
seconds); values are in the unit of the quantity that the process drives.
"""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_pnn import _checks, _tables
from keras_pnn._signatures import Configured

_BLOCK = 1024


@dataclasses.dataclass(frozen=True, repr=False)
class Process(Configured):
    """Base of the drift processes: one or several numbers per step.

    A subclass is a frozen dataclass and implements `_value(step, seed)`, where `step`
    is an int and `seed` a tuple of ints. The metadata of its fields hold their bounds.

    Raises:
        ValueError: If a field is not a finite number, or is out of its range.

    Example:

    >>> from keras_pnn import drift
    >>> drift.Linear(0.5).at(3), drift.Linear(0.5).path(3).tolist()
    (1.5, [0.0, 0.5, 1.0])
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            number = _checks.real(field.name, value, **field.metadata)
            object.__setattr__(self, field.name, number)

    def at(self, step: int, seed: int | tuple[int, ...] = 0) -> float | np.ndarray:
        """Returns the value at one step: a float, or an array (series,).

        Args:
            step: Non-negative integer.
            seed: Non-negative integer, or a tuple of them.
        """
        return self._value(_checks.integer("step", step, 0), _seed(seed))

    def path(self, steps: int, seed: int | tuple[int, ...] = 0) -> np.ndarray:
        """Returns the values at steps 0 to `steps - 1`; `path(n)[i] == at(i)`.

        Returns:
            A float64 array of shape `(steps,)`, or `(steps, series)`.
        """
        steps, seed = _checks.integer("steps", steps, 0), _seed(seed)
        return np.array([self._value(i, seed) for i in range(steps)], "float64")


class BlockProcess(Process):
    """Base of the random processes, which are drawn block by block.

    A subclass implements `_draw(generator, start)`, which returns `_BLOCK` values,
    followed by the start of the next block if that depends on this one.

    Example:

    >>> walk = RandomWalk(std=0.1)
    >>> bool(walk.path(10, seed=1)[7] == walk.at(7, seed=1))
    True
    """

    def _value(self, step, seed):
        index, offset = divmod(step, _BLOCK)
        blocks = _blocks(self, seed)
        for i in range(len(blocks), index + 1):
            start = float(blocks[i - 1][-1]) if i else self._initial(seed)
            blocks[i] = np.array(self._draw(_generator(self, seed, i + 1), start))
        return float(blocks[index][offset])

    def _initial(self, seed):
        return 0.0


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True, repr=False)
class Linear(Process):
    """A steady drift: `start + rate * step`.

    Args:
        rate: Change per step, in the unit of the quantity.
        start: Value at step 0.

    Example:

    >>> Linear(0.5, start=1.0).path(3).tolist()
    [1.0, 1.5, 2.0]
    """

    rate: float
    start: float = 0.0

    def _value(self, step, seed):
        return self.start + self.rate * step


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True, repr=False)
class Uniform(BlockProcess):
    """An independent draw from `[low, high)` at each step.

    Args:
        low: Lower end, in the unit of the quantity.
        high: Upper end, not less than `low`, and a finite distance from it.

    Raises:
        ValueError: If `low` is above `high`, or one is not finite.

    Example:

    >>> path = Uniform(-0.5, 0.5).path(1000, seed=0)
    >>> bool(path.min() >= -0.5 and path.max() < 0.5)
    True
    """

    low: float
    high: float

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.high - self.low < math.inf:
            raise ValueError(
                "Arguments `low` and `high` must span a finite range, with low ≤ high. "
                f"Received: low={self.low}, high={self.high}"
            )

    def _draw(self, generator, start):
        return generator.uniform(self.low, self.high, _BLOCK).tolist()


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True, repr=False)
class RandomWalk(BlockProcess):
    """A Gaussian random walk: the variance after `n` steps is `n * std**2`.

    Args:
        std: Standard deviation of one step, in the unit of the quantity; 0 or more.
        start: Value at step 0.

    Example:

    ```python
    # 0.1 K per batch: after 1,000 batches the temperature is off by about 3.2 K.
    walk = RandomWalk(std=0.1)
    walk.path(1000, seed=0)
    ```
    """

    std: float = dataclasses.field(metadata={"low": 0.0})
    start: float = 0.0

    def _initial(self, seed):
        return self.start

    def _draw(self, generator, start):
        return _autoregression(generator, start, 1.0, self.std)


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True, repr=False)
class OrnsteinUhlenbeck(BlockProcess):
    """A stationary Gaussian drift, such as a controlled temperature.

    It has the mean `mean` and standard deviation `std` at every step, and the
    correlation `exp(-n / relaxation)` between values `n` steps apart.
    The discretisation is exact:
    `x[k+1] - mean = a (x[k] - mean) + std sqrt(1 - a**2) z[k]`,
    `a = exp(-1 / relaxation)`, `z` standard normal.

    Args:
        std: Stationary standard deviation, in the unit of the quantity; 0 or more.
        relaxation: Relaxation time, in steps; greater than 0.
        mean: Stationary mean, in the unit of the quantity.

    Example:

    >>> path = OrnsteinUhlenbeck(std=0.2, relaxation=50).path(5000, seed=0)
    >>> bool(abs(path.std() - 0.2) < 0.05)
    True

    Reference:

    - [Gillespie, 1996](https://doi.org/10.1103/PhysRevE.54.2084)
    """

    std: float = dataclasses.field(metadata={"low": 0.0})
    relaxation: float = dataclasses.field(metadata={"above": 0.0})
    mean: float = 0.0

    def _value(self, step, seed):
        return self.mean + super()._value(step, seed)

    def _initial(self, seed):
        return self.std * float(_generator(self, seed, 0).standard_normal())

    def _draw(self, generator, start):
        decay = math.exp(-1.0 / self.relaxation)
        noise = self.std * math.sqrt(-math.expm1(-2.0 / self.relaxation))
        return _autoregression(generator, start, decay, noise)


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True, repr=False)
class Sinusoid(Process):
    """A periodic drift: `amplitude * sin(2 pi step / period + phase)`.

    Args:
        amplitude: Half the peak-to-peak swing, in the unit of the quantity.
        period: Steps per cycle; greater than 0.
        phase: Phase at step 0, in rad.

    Example:

    >>> round(Sinusoid(amplitude=2.0, period=4).at(1), 6)
    2.0
    """

    amplitude: float
    period: float = dataclasses.field(metadata={"above": 0.0})
    phase: float = 0.0

    def _value(self, step, seed):
        cycles = math.fmod(step, self.period) / self.period
        return self.amplitude * math.sin(2.0 * math.pi * cycles + self.phase)


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True, repr=False)
class Recorded(Process):
    """A measured drift, one value per step, or one series for each ring.

    Args:
        values: Sequence of at least one finite number, in the unit of the quantity; or
            an array (steps, series). Several series are assigned to rings row by row of
            their bank, and to the elements of other layers in order.
        past_end: What happens at a step beyond the record: `"raise"` raises a
            ValueError, `"hold"` gives the last value, `"repeat"` starts the record
            again.

    Raises:
        ValueError: If `values` is not a sequence or array of at least one finite
            number, or `past_end` is unknown.

    Example:

    ```python
    drift = Recorded.from_csv("chip_3.csv", column="temperature_K", past_end="hold")
    drift.path(100)
    ```
    """

    values: tuple
    past_end: str = "raise"

    def __post_init__(self):
        values = _checks.array("values", self.values)
        if values.ndim not in (1, 2) or not values.size:
            expected = "at least one number, or an array (steps, series)"
            raise _checks.error("values", expected, _checks.short(self.values))
        _checks.choice("past_end", self.past_end, ("raise", "hold", "repeat"))
        rows = values.tolist()
        rows = map(tuple, rows) if values.ndim == 2 else rows
        object.__setattr__(self, "values", tuple(rows))

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike,
        column: str | Sequence[str] | None = None,
        past_end: str = "raise",
    ) -> "Recorded":
        """Reads one column of a CSV file with a header line, or several.

        Values must be in the unit of the imperfection, whatever the header says.

        Args:
            path: A file in UTF-8. Cells may be separated by commas, semicolons or tabs,
                with decimal commas in the latter two; blank lines and lines that begin
                with `#` are skipped.
            column: Header of the column. May be left out if there is one column. A
                list of headers gives one series for each.
            past_end: As in `Recorded`.

        Raises:
            ValueError: If the file has no header or no rows, if the column is missing,
                ambiguous or named twice, if a line has more cells than the header, or
                if a cell is not a finite number. The message names file and line.
            OSError: If the file cannot be read.
        """
        table = _tables.read(path)
        if column is None and len(table.headings) == 1:
            column = table.headings[0]
        several = isinstance(column, list | tuple) and len(column) > 0
        names = list(column) if several else [column]
        for name in names:
            if table.headings.count(name) != 1:
                expected = f"the name of exactly one of the columns {table.headings}"
                raise _checks.error("column", f"{expected} of {path}", repr(name))
        if not table.rows:
            expected = f"a CSV file with at least one row below {table.headings}"
            raise _checks.error("path", expected, repr(table.path))
        series = [table.numbers(table.headings.index(name)) for name in names]
        values = np.stack(series, axis=1) if several else series[0]
        return cls(values, past_end=past_end)

    def _value(self, step, seed):
        count = len(self.values)
        if step >= count and self.past_end == "raise":
            raise ValueError(
                f"The record has {count} values (steps 0 to {count - 1}); "
                "past_end='hold' or 'repeat' goes on beyond its end. "
                f"Received: step={step}"
            )
        step = step % count if self.past_end == "repeat" else min(step, count - 1)
        value = self.values[step]
        return np.array(value) if isinstance(value, tuple) else value


@functools.lru_cache(maxsize=8)
def _blocks(process, seed) -> dict[int, np.ndarray]:
    """The blocks of one path that have been drawn so far, by number."""
    return {}


def _generator(process, seed, position):
    """Returns the generator of one block, or of the initial value (position 0)."""
    # NumPy pads a seed with zeros, so the length is part of it; the class name keeps
    # two kinds of process with one seed independent.
    kind = int.from_bytes(type(process).__name__.encode(), "little")
    return np.random.default_rng([len(seed), *seed, kind, position])


def _seed(seed):
    parts = seed if isinstance(seed, (tuple, list)) and seed else (seed,)
    return tuple(_checks.integer("seed", part, 0) for part in parts)


def _autoregression(generator, start, decay, noise):
    """A block of `x[k+1] = decay x[k] + noise z[k]`, and the start of the next."""
    draws = generator.standard_normal(_BLOCK).tolist()
    return list(
        itertools.accumulate(draws, lambda x, z: decay * x + noise * z, initial=start)
    )
