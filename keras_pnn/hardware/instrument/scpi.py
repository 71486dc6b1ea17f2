"""Talk to one instrument in SCPI, through PyVISA."""

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_pnn.hardware.instrument.wiring import Instrument

# SCPI-99, 7.2.1: 9.9e37 stands for infinity (over range), 9.91e37 for not a number.
NOT_A_READING = 9.9e37
# More errors than an instrument keeps.
LONGEST_QUEUE = 100


class InstrumentError(RuntimeError):
    """An instrument refused a command, did not answer, or answered unparseably."""


class Session:
    """Opens an instrument when it is first needed, and again after a failure.

    Args:
        name: its name in the configuration.
        instrument: how it is spoken to.
        backend: the library behind PyVISA, `"@py"` for pyvisa-py.
    """

    def __init__(self, name: str, instrument: "Instrument", backend: str):
        self.name, self.instrument, self.backend = name, instrument, backend
        self.opened = 0
        self._resource = None
        self._retired = False

    def open(self) -> None:
        """Opens the session if it is not open: identity, then the setup commands.

        Raises:
            InstrumentError: If the resource cannot be opened, does not answer, or is
                another instrument.
        """
        if self._resource is not None:
            return
        self._check_not_retired()
        pyvisa = _pyvisa()
        instrument = self.instrument
        milliseconds = max(1, round(1000 * instrument.timeout))
        # PyVISA has one manager for all users of a backend, so it stays open.
        try:
            self._resource = pyvisa.ResourceManager(self.backend).open_resource(
                instrument.resource,
                open_timeout=milliseconds,
                read_termination=instrument.read_termination or None,
                write_termination=instrument.write_termination,
                timeout=milliseconds,
                **instrument.options,
            )
        # pyvisa-py raises what it meets, down to a plain Exception.
        except Exception as error:
            raise self._failure("cannot be opened", error) from error
        self._check_not_retired()
        if instrument.identity:
            (identity,) = self._ask(["*IDN?"])
            if instrument.identity not in identity:
                self.close()
                raise InstrumentError(
                    f"{self} must have {instrument.identity!r} in its answer to *IDN?. "
                    f"Received: {identity!r}"
                )
        self.opened += 1
        self._forget_errors()
        self.exchange(list(instrument.setup))

    def _forget_errors(self) -> None:
        """Empties the instrument's queue: old errors are not those of our commands."""
        clears = any("*CLS" in command.upper() for command in self.instrument.setup)
        if self.instrument.errors and not clears:
            for _ in range(LONGEST_QUEUE):
                found = self._error(self._ask([self.instrument.errors])[0])
                if not found:
                    return

    def close(self) -> None:
        """Closes the session; what the instrument still says is lost."""
        resource, self._resource = self._resource, None
        if resource is not None:
            try:
                resource.close()
            # A connection that is broken is as good as closed.
            except Exception:
                return

    def retire(self) -> None:
        """Closes the session for good.

        A thread that hangs in it, and wakes up late, can then no longer talk to an
        instrument that somebody else is using.
        """
        self._retired = True
        self.close()

    def _check_not_retired(self) -> None:
        if self._retired:
            self.close()
            raise InstrumentError(f"{self} was given up by this session")

    def exchange(self, commands: list[str]) -> list[str]:
        """Sends commands in order, and asks the instrument for errors at the end.

        Args:
            commands: each without its terminator; one with a `?` has an answer.

        Returns:
            The answers, in order.

        Raises:
            InstrumentError: If a command was refused, or an answer did not come. The
                session is closed then, as a late answer would be taken for the answer
                to the next query.
        """
        if not commands:
            return []
        self.open()
        errors = self.instrument.errors
        answers = self._ask([*commands, errors] if errors else commands)
        if errors:
            self._check(answers.pop(), commands)
        return answers

    def _check(self, answer: str, commands: list[str]) -> None:
        number = self._error(answer)
        if number == 0:
            return
        self.close()
        what = "refused"
        if number is None:
            what = "answered unparseably when asked for errors after"
        raise InstrumentError(
            f"{self} {what} {_brief(commands)}. Received: {answer[:200]!r}"
        )

    @staticmethod
    def _error(answer: str) -> int | None:
        """The number of the error in an answer; `None` if the answer has none."""
        found = re.match(r"\s*([+-]?\d+)\s*(,|$)", answer)
        return int(found[1]) if found else None

    def _ask(self, commands: list[str]) -> list[str]:
        try:
            if not self.instrument.pipeline:
                return [a for c in commands for a in self._send(c, "?" in c)]
            whole = self.instrument.write_termination.join(commands)
            return self._send(whole, sum("?" in c for c in commands))
        except Exception as error:
            self.close()
            raise self._failure(f"failed at {_brief(commands)}", error) from error

    def _send(self, message: str, answers: int) -> list[str]:
        self._resource.write(message)
        return [self._resource.read() for _ in range(answers)]

    def _failure(self, what: str, error: Exception) -> InstrumentError:
        return InstrumentError(f"{self} {what} ({type(error).__name__}: {error})")

    def __str__(self):
        return f"Instrument '{self.name}' ({self.instrument.resource})"


def parse_readings(answers: list[str]) -> list[float]:
    """Returns the numbers in some answers.

    Raises:
        InstrumentError: If one is not a finite number.
    """
    words = [w for a in answers for w in re.split(r"[,;\s]+", a.strip())]
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise InstrumentError(
            f"The readings must be numbers. Received: {_brief(answers)}"
        ) from None
    wrong = [v for v in values if not math.isfinite(v) or abs(v) >= NOT_A_READING]
    if wrong:
        raise InstrumentError(
            "The readings must be numbers; 9.9e37 means over range, and 9.91e37 no "
            f"number. Received: {wrong[0]!r}"
        )
    return values


def _brief(texts: list[str]) -> str:
    whole = "; ".join(texts)
    return repr(whole if len(whole) <= 120 else whole[:117] + "...")


def _pyvisa():
    try:
        import pyvisa
    except ImportError as error:
        raise ImportError(
            "`InstrumentDevice` needs PyVISA: pip install 'keras-pnn[instruments]'"
        ) from error
    return pyvisa
