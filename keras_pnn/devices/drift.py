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
import numbers
from collections import OrderedDict

import keras
import numpy as np

_BLOCK = 1024
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
        return self._value(_count("step", step), _seed(seed))

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
        seed = _seed(seed)
        values = (self._value(i, seed) for i in range(_count("steps", steps)))
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


class _BlockProcess(Process):
    """A random process that is drawn block by block.

    A block is a function of (seed, block number, state at its start), and the state
    is carried from block to block in one fixed order, so that what happens to be
    cached cannot change a value.
    """

    def _value(self, step, seed):
        index, offset = divmod(step, _BLOCK)
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
                values, state = self._draw(_generator(self, seed, block), states[block])
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
        self._set(rate=_number("rate", self.rate), start=_number("start", self.start))

    def _value(self, step, seed):
        return self.start + self.rate * step


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True)
class Uniform(_BlockProcess):
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
        low, high = _number("low", self.low), _number("high", self.high)
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
        return generator.uniform(self.low, self.high, _BLOCK).tolist(), state


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True)
class RandomWalk(_BlockProcess):
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
            std=_number("std", self.std, minimum=0.0),
            start=_number("start", self.start),
        )

    def _initial(self, seed):
        return self.start

    def _draw(self, generator, state):
        return _autoregression(generator, state, 1.0, self.std)


@keras.saving.register_keras_serializable(package="keras_pnn")
@dataclasses.dataclass(frozen=True)
class OrnsteinUhlenbeck(_BlockProcess):
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
            std=_number("std", self.std, minimum=0.0),
            relaxation=_number("relaxation", self.relaxation, above=0.0),
            mean=_number("mean", self.mean),
        )

    def _value(self, step, seed):
        return self.mean + super()._value(step, seed)

    def _initial(self, seed):
        return self.std * float(_generator(self, seed, "initial").standard_normal())

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
            amplitude=_number("amplitude", self.amplitude),
            period=_number("period", self.period, above=0.0),
            phase=_number("phase", self.phase),
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
                f"finite numbers. Received: values={_short(self.values)}"
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
    draws = generator.standard_normal(_BLOCK).tolist()
    values = list(
        itertools.accumulate(draws, lambda x, z: decay * x + noise * z, initial=state)
    )
    return values[:-1], values[-1]


def _generator(process, seed, block):
    # NumPy pads a seed with zeros, so the length is part of it; the class name keeps
    # two kinds of process with one seed independent.
    kind = int.from_bytes(type(process).__name__.encode(), "little")
    position = 0 if block == "initial" else block + 1
    return np.random.default_rng([len(seed), *seed, kind, position])


def _parse(cell):
    try:
        return float(cell)
    except ValueError:
        return None


def _short(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _number(name, value, minimum=None, above=None):
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
            f"Received: {name}={_short(value)}"
        )
    return float(value)


def _count(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(
            f"Argument `{name}` must be a non-negative integer. "
            f"Received: {name}={_short(value)}"
        )
    return int(value)


def _seed(seed):
    parts = seed if isinstance(seed, (tuple, list)) and seed else (seed,)
    return tuple(_count("seed", part) for part in parts)
