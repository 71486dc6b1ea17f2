"""Talk to one instrument in SCPI, through PyVISA."""

import contextlib
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_pnn.hardware.instrument.wiring import Instrument

# SCPI-99, 7.2.1: 9.9e37 stands for infinity (over range), 9.91e37 for not a number.
NOT_A_READING = 9.9e37
# More errors than an instrument's queue holds.
LONGEST_QUEUE = 100
# Seconds of silence that show that no answer is pending.
SILENCE, SHORT_SILENCE = 0.05, 0.001
# Bytes of an unexpected answer that an error shows.
SHOWN = 80


class InstrumentError(RuntimeError):
    """An instrument refused a command, did not answer, or answered unparseably.

    Example:

    >>> try:
    ...     raise pnn.hardware.InstrumentError("-113, undefined header")
    ... except pnn.hardware.InstrumentError as error:
    ...     print(error)
    -113, undefined header
    """


class Session:
    """A connection that opens when it is first needed, and again after a failure."""

    def __init__(self, name: str, instrument: "Instrument", backend: str):
        self.name, self.instrument, self.backend = name, instrument, backend
        # Whether the instrument was ever opened: it may drive the chip.
        self.used = False
        # Names of the layers whose controls have been set since it was opened.
        self.holds: set[str] = set()
        self._resource = None
        self._retired = False
        # The query that ends an exchange; "" if there is none.
        self._last_query = instrument.errors or ("*IDN?" if instrument.identity else "")
        # Whether a command has been followed by silence since the session was opened.
        self._in_step = False
        # The instrument's acknowledgement of a command, once one has been received.
        self._acknowledgement: str | None = None

    def open(self) -> None:
        """Opens the session, checks the identity and sends the setup commands.

        Does nothing if it is open. Unrequested lines are dropped: a greeting, or
        answers to an earlier session, which a serial line keeps.
        """
        if self._resource is not None:
            return
        self._check_not_retired()
        pyvisa = _pyvisa()
        instrument = self.instrument
        milliseconds = _milliseconds(instrument.timeout)
        with self._failing("cannot be opened"):
            # PyVISA has one manager for all users of a backend, so it stays open.
            self._resource = pyvisa.ResourceManager(self.backend).open_resource(
                instrument.resource,
                open_timeout=milliseconds,
                read_termination=instrument.read_termination or None,
                write_termination=instrument.write_termination,
                timeout=milliseconds,
                **instrument.options,
            )
        self._check_not_retired()
        self._in_step = False
        for _ in range(LONGEST_QUEUE):
            if not self._unasked("cannot be opened", SILENCE):
                break
        if instrument.identity:
            identity = self._query("*IDN?")
            if instrument.identity not in identity:
                self.close()
                raise InstrumentError(
                    f"{self} must have {instrument.identity!r} in its answer to *IDN?. "
                    f"Received: {identity!r}"
                )
        self.used = True
        clears = any("*CLS" in command.upper() for command in instrument.setup)
        if instrument.errors and not clears:
            # Drop errors of earlier sessions.
            for _ in range(LONGEST_QUEUE):
                if not self._error(self._query(instrument.errors)):
                    break
        self.exchange(instrument.setup)

    def close(self) -> None:
        """Closes the session; pending answers are lost."""
        self.holds.clear()
        resource, self._resource = self._resource, None
        # A broken connection may be unable to close.
        with contextlib.suppress(Exception):
            if resource is not None:
                resource.close()

    def retire(self) -> None:
        """Closes the session for good.

        A thread that hangs in it and wakes up late cannot disturb the next session.
        """
        self._retired = True
        self.close()

    def _check_not_retired(self) -> None:
        if self._retired:
            self.close()
            raise InstrumentError(
                f"{self} was given up: this session is closed for good"
            )

    def exchange(self, commands: Sequence[str]) -> list[str]:
        """Sends commands in order; returns the answers to those with a `?`.

        The query for errors, or else for the identity, ends the exchange: its answer
        must come last. On a socket or a serial line, where answers queue up, silence
        must follow.

        Raises InstrumentError if a command is refused, or an answer is missing, empty
        or superfluous. It then closes the session, since late answers would be taken
        for answers to the next queries.
        """
        if not commands:
            return []
        self.open()
        sent, last = _brief(commands), self._last_query
        started = time.monotonic()
        pairs = self._ask([*commands, last] if last else commands)
        seconds = time.monotonic() - started
        final = ""
        if last:
            final = pairs.pop()[1]
            self._check_last(final, sent)
        self._check_silence(final, seconds, sent)
        self._check_answers(pairs)
        answers = [answer for command, answer in pairs if "?" in command]
        self._in_step = self._in_step or len(answers) < len(commands)
        return answers

    def _check_last(self, answer: str, sent: str) -> None:
        number = self._error(answer)
        if not self.instrument.errors:
            if self.instrument.identity not in answer:
                self._fail(f"is out of step after {sent}: {self._way_out}", answer)
        elif number is None:
            what = "answered unparseably when asked for errors after"
            self._fail(f"{what} {sent}: {self._way_out}", answer)
        elif number:
            # A bare number may also be an acknowledgement.
            bare = _numbers([answer]) is not None
            doubt = f", or is out of step: {self._way_out}" if bare else ""
            self._fail(f"refused {sent}{doubt}", answer)

    def _check_silence(self, final: str, seconds: float, sent: str) -> None:
        """Raises InstrumentError if more follows answers that took `seconds`."""
        # A last answer that is text cannot be a late reading or acknowledgement.
        # Otherwise, the true last answer must have time to arrive.
        text = final and _numbers([final]) is None
        patience = SHORT_SILENCE if text and self._in_step else max(SILENCE, seconds)
        more = self._unasked(f"failed after {sent}", patience)
        # Line endings other than the configured one are not answers.
        if more.strip() or (self.instrument.read_termination or "\n") in more:
            self._fail(f"has more to say after {sent}: {self._way_out}", more)

    def _check_answers(self, pairs: list[tuple[str, str]]) -> None:
        """Raises InstrumentError for an empty answer or a deviating acknowledgement."""
        for command, answer in pairs:
            if "?" in command:
                if not answer.strip():
                    self._fail(f"gave an empty answer to {command!r}", answer)
                continue
            if self._acknowledgement is None:
                self._acknowledgement = re.escape(answer.strip())
            expected = self.instrument.acknowledgement or self._acknowledgement
            if not re.fullmatch(expected, answer.strip()):
                self._fail(
                    f"must acknowledge {_brief([command])} with what matches "
                    f"{expected!r}, see `acknowledgement` in `instruments.{self.name}`",
                    answer,
                )

    def _fail(self, problem: str, received: str) -> None:
        self.close()
        raise InstrumentError(f"{self} {problem}. Received: {received[:200]!r}")

    @property
    def _way_out(self) -> str:
        count = self.instrument.answers_per_command
        return (
            f"it must give one answer to each query and {count} to each command, see "
            f"`answers_per_command` in `instruments.{self.name}`"
        )

    @staticmethod
    def _error(answer: str) -> int | None:
        """Returns the error number in an answer; `None` if the answer has none."""
        found = re.match(r"\s*([+-]?\d+)\s*(,|$)", answer)
        return int(found[1]) if found else None

    def _query(self, query: str) -> str:
        return self._ask([query])[0][1]

    def _ask(self, commands: Sequence[str]) -> list[tuple[str, str]]:
        """Sends commands; returns each answer with its command."""
        acknowledged = self.instrument.answers_per_command
        counts = [1 if "?" in command else acknowledged for command in commands]
        sources = [c for c, n in zip(commands, counts, strict=True) for _ in range(n)]
        if self.instrument.pipeline:
            messages = [(self.instrument.write_termination.join(commands), sum(counts))]
        else:
            messages = list(zip(commands, counts, strict=True))
        hint = f", where {self._way_out}" if acknowledged else ""
        answers = []
        with self._failing(f"failed at {_brief(commands)}{hint}"):
            for message, count in messages:
                self._resource.write(message)
                answers += [self._resource.read() for _ in range(count)]
        return list(zip(sources, answers, strict=True))

    def _unasked(self, what: str, seconds: float) -> str:
        """Returns the text that arrives unrequested within some seconds.

        Interfaces other than sockets and serial lines transfer messages, and discard an
        unread answer (IEEE 488.2, 6.3.2.3); there, reading without one is an error.
        """
        pyvisa, resource, found = _pyvisa(), self._resource, b""
        streams = (pyvisa.resources.TCPIPSocket, pyvisa.resources.SerialInstrument)
        if not isinstance(resource, streams):
            return ""
        with self._failing(what):
            resource.timeout = _milliseconds(seconds)
            try:
                while len(found) < SHOWN:
                    found += resource.read_bytes(1)
            except pyvisa.VisaIOError as error:
                if error.error_code != pyvisa.constants.StatusCode.error_timeout:
                    raise
            finally:
                resource.timeout = _milliseconds(self.instrument.timeout)
        return found.decode("ascii", "replace")

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        # pyvisa-py raises errors of any kind, even a plain Exception.
        except Exception as error:
            self.close()
            problem = f"{self} {what} ({type(error).__name__}: {error})"
            raise InstrumentError(problem) from error

    def __str__(self):
        return f"Instrument '{self.name}' ({self.instrument.resource})"


def parse_readings(answers: list[str]) -> list[float]:
    """Returns the numbers in answers; raises InstrumentError for anything else."""
    values = _numbers(answers)
    if values is None:
        raise InstrumentError(
            f"The readings must be numbers. Received: {_brief(answers)}"
        )
    wrong = [v for v in values if not math.isfinite(v) or abs(v) >= NOT_A_READING]
    if wrong:
        raise InstrumentError(
            "The readings must be numbers; 9.9e37 means over range, and 9.91e37 no "
            f"number. Received: {wrong[0]!r}"
        )
    return values


def _numbers(answers: list[str]) -> list[float] | None:
    """Returns the numbers in answers; `None` if one holds anything else."""
    words = [w for a in answers for w in re.split(r"[,;\s]+", a.strip())]
    try:
        return [float(word) for word in words]
    except ValueError:
        return None


def _milliseconds(seconds: float) -> int:
    return max(1, round(1000 * seconds))


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
