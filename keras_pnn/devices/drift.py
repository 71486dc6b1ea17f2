"""How one number of a device moves in time: temperature, wavelength, alignment.

A process is a pure function of (seed, step). A run that was interrupted and resumed
meets the same values as one that was not, and any part of a path can be computed
alone. Steps are whatever the caller counts (training batches, epochs, seconds);
values are in the unit of the quantity that the process drives.
"""

import csv
import dataclasses
import itertools
import math

import keras
import numpy as np

from keras_pnn.devices.process import (
    BLOCK,
    BlockProcess,
    Process,
    generator_of,
    number,
    short,
)


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
        self._set(rate=number("rate", self.rate), start=number("start", self.start))

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
        ValueError: If an argument is not a finite number, or `low > high`.
    """

    low: float
    high: float

    def __post_init__(self):
        low, high = number("low", self.low), number("high", self.high)
        if low > high:
            raise ValueError(
                "Argument `low` must not be greater than `high`. "
                f"Received: low={low}, high={high}"
            )
        if not math.isfinite(high - low):
            raise ValueError(
                "Arguments `low` and `high` must span a finite range. "
                f"Received: low={low}, high={high}"
            )
        self._set(low=low, high=high)

    def _draw(self, generator, state):
        return generator.uniform(self.low, self.high, BLOCK).tolist(), state


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
            std=number("std", self.std, minimum=0.0),
            start=number("start", self.start),
        )

    def _initial(self, seed):
        return self.start

    def _draw(self, generator, state):
        return _autoregression(generator, state, 1.0, self.std)


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True)
class OrnsteinUhlenbeck(BlockProcess):
    """A stationary drift that forgets: a temperature held by a controller.

    Gaussian, with mean `mean`, standard deviation `std` at every step (the first one
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
            std=number("std", self.std, minimum=0.0),
            relaxation=number("relaxation", self.relaxation, above=0.0),
            mean=number("mean", self.mean),
        )

    def _value(self, step, seed):
        return self.mean + super()._value(step, seed)

    def _initial(self, seed):
        return self.std * float(generator_of(self, seed, "initial").standard_normal())

    def _draw(self, generator, state):
        decay = math.exp(-1.0 / self.relaxation)
        noise = self.std * math.sqrt(-math.expm1(-2.0 / self.relaxation))
        return _autoregression(generator, state, decay, noise)


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
            amplitude=number("amplitude", self.amplitude),
            period=number("period", self.period, above=0.0),
            phase=number("phase", self.phase),
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
        past_end: What a step beyond the record gives: `"raise"` a ValueError,
            `"hold"` the last value, `"repeat"` the record from its beginning.

    Raises:
        ValueError: If `values` is empty, not one-dimensional or not finite, or
            `past_end` is none of the three.

    Example:

    ```python
    drift = Recorded.from_csv("chip_3.csv", column="temperature_K", past_end="hold")
    drift.path(100)
    ```
    """

    values: tuple
    past_end: str = "raise"

    def __post_init__(self):
        try:
            values = np.asarray(self.values, dtype="float64")
        except (TypeError, ValueError):
            values = None
        if (
            values is None
            or values.ndim != 1
            or not len(values)
            or not np.isfinite(values).all()
        ):
            raise ValueError(
                "Argument `values` must be a non-empty, one-dimensional sequence of "
                f"finite numbers. Received: values={short(self.values)}"
            )
        if self.past_end not in ("raise", "hold", "repeat"):
            raise ValueError(
                "Argument `past_end` must be 'raise', 'hold' or 'repeat'. "
                f"Received: past_end={self.past_end!r}"
            )
        self._set(values=tuple(values.tolist()))

    @classmethod
    def from_csv(cls, path, column=None, past_end="raise"):
        """Reads one column of a CSV file with a header line.

        Values are taken as they stand: a unit in the header, as in `temperature_K`,
        is for the reader and must be the unit of the imperfection.

        Args:
            path: Path of a comma-separated file, UTF-8. Blank lines are skipped.
            column: Header of the column. May be left out if there is one column.
            past_end: As in `Recorded`.

        Returns:
            A `Recorded`.

        Raises:
            ValueError: If the file is empty or has no header or no rows, if the
                column is missing, ambiguous or named twice, or if a cell is not a
                finite number. The message names the file, and the line of a cell.
            OSError: If the file cannot be read.
        """
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file)
                rows = [
                    (reader.line_num, row)
                    for row in reader
                    if any(cell.strip() for cell in row)
                ]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                "Argument `path` must be a CSV file in UTF-8. "
                f"Received: path={str(path)!r} ({error})"
            ) from error
        if not rows:
            raise ValueError(
                "Argument `path` must be a CSV file with a header line and at least "
                f"one row. Received: path={str(path)!r}, which is empty"
            )
        header = [cell.strip() for cell in rows[0][1]]
        if all(_parse(cell) is not None for cell in header):
            raise ValueError(
                "Argument `path` must be a CSV file whose first line names its "
                f"columns. Received: path={str(path)!r}, which begins with {header}"
            )
        if column is None and len(header) == 1:
            column = header[0]
        if header.count(column) != 1:
            raise ValueError(
                f"Argument `column` must name exactly one of the columns {header} of "
                f"{str(path)!r}. Received: column={column!r}"
            )
        if len(rows) == 1:
            raise ValueError(
                "Argument `path` must be a CSV file with at least one row below its "
                f"header. Received: path={str(path)!r}"
            )
        index = header.index(column)
        values = []
        for line, row in rows[1:]:
            cell = row[index] if index < len(row) else ""
            value = _parse(cell)
            if value is None or not math.isfinite(value):
                raise ValueError(
                    f"Column {column!r} of {str(path)!r} must hold finite numbers. "
                    f"Received: {cell!r} at line {line}"
                )
            values.append(value)
        return cls(values, past_end=past_end)

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


def _autoregression(generator, state, decay, noise):
    """A block of `x[k+1] = decay x[k] + noise z[k]`, and the state after it."""
    draws = generator.standard_normal(BLOCK).tolist()
    values = list(
        itertools.accumulate(draws, lambda x, z: decay * x + noise * z, initial=state)
    )
    return values[:-1], values[-1]


def _parse(cell):
    try:
        return float(cell)
    except ValueError:
        return None
