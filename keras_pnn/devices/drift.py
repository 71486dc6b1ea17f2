"""Model how one quantity of a device drifts: temperature, wavelength, alignment.

A process is a pure function of (seed, step). A run that was interrupted and resumed
has the same values as one that was not, and any part of a path can be computed
alone. Steps are whatever the caller counts (training batches, epochs, seconds);
values are in the unit of the quantity that the process drives.
"""

import dataclasses
import itertools
import math

import keras

from keras_pnn import _checks, _tables
from keras_pnn.devices.process import BLOCK, BlockProcess, Process, generator_of


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True)
class Linear(Process):
    """A steady drift: `start + rate * step`.

    Args:
        rate: Change per step, in the unit of the quantity.
        start: Value at step 0.

    Raises:
        ValueError: If an argument is not a finite number.

    Example:

    >>> Linear(0.5, start=1.0).path(3).tolist()
    [1.0, 1.5, 2.0]
    """

    rate: float
    start: float = 0.0

    def __post_init__(self):
        self._set(
            rate=_checks.real("rate", self.rate),
            start=_checks.real("start", self.start),
        )

    def _value(self, step, seed):
        return self.start + self.rate * step


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True)
class Uniform(BlockProcess):
    """An independent draw from `[low, high)` at each step.

    Args:
        low: Lower end, in the unit of the quantity.
        high: Upper end, not less than `low`.

    Raises:
        ValueError: If an argument or the range is not finite, or `low > high`.
    """

    low: float
    high: float

    def __post_init__(self):
        low, high = _checks.real("low", self.low), _checks.real("high", self.high)
        if not 0 <= high - low < math.inf:
            raise ValueError(
                "Arguments `low` and `high` must span a finite range, with low ≤ high. "
                f"Received: low={low}, high={high}"
            )
        self._set(low=low, high=high)

    def _draw(self, generator, start):
        return generator.uniform(self.low, self.high, BLOCK).tolist()


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True)
class RandomWalk(BlockProcess):
    """A Gaussian random walk: the variance after `n` steps is `n * std**2`.

    Args:
        std: Standard deviation of one step, in the unit of the quantity.
        start: Value at step 0.

    Raises:
        ValueError: If an argument is not a finite number, or `std` is negative.

    Example:

    ```python
    # 0.1 K per batch: after 1,000 batches the temperature is off by about 3.2 K.
    walk = RandomWalk(std=0.1)
    walk.path(1000, seed=0)
    ```
    """

    std: float
    start: float = 0.0

    def __post_init__(self):
        self._set(
            std=_checks.real("std", self.std, low=0.0),
            start=_checks.real("start", self.start),
        )

    def _initial(self, seed):
        return self.start

    def _draw(self, generator, start):
        return _autoregression(generator, start, 1.0, self.std)


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True)
class OrnsteinUhlenbeck(BlockProcess):
    """A stationary Gaussian drift: a temperature held by a controller.

    It has the mean `mean`, standard deviation `std` at every step (the first one
    included) and correlation `exp(-n / relaxation)` between values `n` steps apart.
    The discretisation is exact:
    `x[k+1] - mean = a (x[k] - mean) + std sqrt(1 - a**2) z[k]`,
    `a = exp(-1 / relaxation)`, `z` standard normal.

    Args:
        std: Stationary standard deviation, in the unit of the quantity.
        relaxation: Relaxation time, in steps; greater than 0.
        mean: Stationary mean, in the unit of the quantity.

    Raises:
        ValueError: If an argument is not a finite number, `std` is negative or
            `relaxation` is not greater than 0.

    Reference:

    - [Gillespie, 1996](https://doi.org/10.1103/PhysRevE.54.2084)
    """

    std: float
    relaxation: float
    mean: float = 0.0

    def __post_init__(self):
        self._set(
            std=_checks.real("std", self.std, low=0.0),
            relaxation=_checks.real("relaxation", self.relaxation, above=0.0),
            mean=_checks.real("mean", self.mean),
        )

    def _value(self, step, seed):
        return self.mean + super()._value(step, seed)

    def _initial(self, seed):
        return self.std * float(generator_of(self, seed, 0).standard_normal())

    def _draw(self, generator, start):
        decay = math.exp(-1.0 / self.relaxation)
        noise = self.std * math.sqrt(-math.expm1(-2.0 / self.relaxation))
        return _autoregression(generator, start, decay, noise)


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True)
class Sinusoid(Process):
    """A periodic drift: `amplitude * sin(2 pi step / period + phase)`.

    Args:
        amplitude: Half the peak-to-peak swing, in the unit of the quantity.
        period: Steps per cycle; greater than 0.
        phase: Phase at step 0, in rad.

    Raises:
        ValueError: If an argument is not a finite number, or `period` is not greater
            than 0.
    """

    amplitude: float
    period: float
    phase: float = 0.0

    def __post_init__(self):
        self._set(
            amplitude=_checks.real("amplitude", self.amplitude),
            period=_checks.real("period", self.period, above=0.0),
            phase=_checks.real("phase", self.phase),
        )

    def _value(self, step, seed):
        cycles = math.fmod(step, self.period) / self.period
        return self.amplitude * math.sin(2.0 * math.pi * cycles + self.phase)


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True)
class Recorded(Process):
    """A measured drift, one value per step.

    Args:
        values: Sequence of finite numbers, in the unit of the quantity.
        past_end: What a step beyond the record gives: `"raise"` raises a ValueError,
            `"hold"` gives the last value, `"repeat"` starts the record again.

    Raises:
        ValueError: If `values` is empty, not one-dimensional or not finite, or
            `past_end` is not one of the three.

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
        if values.ndim != 1 or not len(values):
            expected = "a one-dimensional sequence of at least one number"
            raise _checks.error("values", expected, _checks.short(self.values))
        _checks.choice("past_end", self.past_end, ("raise", "hold", "repeat"))
        self._set(values=tuple(values.tolist()))

    @classmethod
    def from_csv(cls, path, column=None, past_end="raise"):
        """Reads one column of a CSV file with a header line.

        Values are taken as they stand: a unit in the header, as in `temperature_K`,
        is for the reader and must be the unit of the imperfection.

        Args:
            path: Path of a file in UTF-8. Cells may be separated by commas, semicolons
                or tabs, with decimal commas in the latter two; blank lines and lines
                that begin with `#` are skipped.
            column: Header of the column. May be left out if there is one column.
            past_end: As in `Recorded`.

        Returns:
            A `Recorded`.

        Raises:
            ValueError: If the file is empty or has no header or no rows, if the
                column is missing, ambiguous or named twice, if a line has more cells
                than the header, or if a cell is not a finite number. The message
                names the file, and the line of a cell.
            OSError: If the file cannot be read.
        """
        table = _tables.read(path)
        if column is None and len(table.headings) == 1:
            column = table.headings[0]
        if table.headings.count(column) != 1:
            expected = f"the name of exactly one of the columns {table.headings}"
            raise _checks.error("column", f"{expected} of {path}", repr(column))
        if not table.rows:
            expected = f"a CSV file with at least one row below {table.headings}"
            raise _checks.error("path", expected, repr(table.path))
        return cls(table.numbers(table.headings.index(column)), past_end=past_end)

    def _value(self, step, seed):
        if step >= len(self.values):
            if self.past_end == "hold":
                return self.values[-1]
            if self.past_end == "repeat":
                return self.values[step % len(self.values)]
            raise ValueError(
                f"The record has {len(self.values)} values (steps 0 to "
                f"{len(self.values) - 1}); past_end='hold' or 'repeat' goes on beyond "
                f"its end. Received: step={step}"
            )
        return self.values[step]

    def get_config(self):
        return {"values": list(self.values), "past_end": self.past_end}


def _autoregression(generator, start, decay, noise):
    """A block of `x[k+1] = decay x[k] + noise z[k]`, and the start of the next."""
    draws = generator.standard_normal(BLOCK).tolist()
    return list(
        itertools.accumulate(draws, lambda x, z: decay * x + noise * z, initial=start)
    )
