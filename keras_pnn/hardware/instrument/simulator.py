"""Simulate a microring weight bank behind an instrument that speaks SCPI over TCP.

Lets you try an `InstrumentDevice`, and its handling of faults, without a laboratory.
The server runs in a separate process; its rings, in NumPy, have resonance shifts that
the model does not have.

    *IDN?  *RST  *CLS  *OPC?  SYST:ERR?
    SOUR:CURR (@1:16),0.001,...     currents of the heaters in A; ring (input i,
                                    output o) is channel i * outputs + o + 1
    SOUR3:CURR 0.001                current of one heater
    SOUR:CURR? (@1:16)              their present settings
    SOUR:POW (@1:4),0.001,...       powers of the channels in W; SOUR2:POW, SOUR:POW?
    READ? (@1:4)                    photocurrents of the detectors in A; READ2?
    SIM:DRIFT 0.01                  shifts all resonances, in nm
    SIM:COUNT?                      settings, readings and connections so far

Run as a script, it prints its port first, and ends when its standard input closes.
"""

import argparse
import contextlib
import hashlib
import os
import re
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np

HALF_WIDTH, OFFSET = 0.077, -0.3  # nm
EFFICIENCY, RESISTANCE = 0.53, 375.0  # nm/mW, Ω
RESPONSIVITY = 0.8  # A/W
HIGHEST = 0.01  # A of a heater, W of a channel
SLOW = 2.0  # s before a late answer
FAULTS = ("refuse", "hang", "close", "garbage", "half", "slow", "twice", "empty")


@contextlib.contextmanager
def running(**options) -> Iterator[int]:
    """Runs a simulated instrument in another process until the block ends.

    Args:
        **options: `inputs` and `outputs` (of the bank, 4), `seed` (of shifts, noise and
            refusals, 0), `shift` (standard deviation of the resonance shifts, 0.03 nm),
            `noise` (of a reading, 0 A), `drift` (0 nm per reading), `latency` (0 s
            before an answer), `refuse` (share of refused commands, 0), `port` (0 for
            any free port); `refuse_at`, `hang_at`, `close_at`, `garbage_at`, `half_at`,
            `slow_at`, `twice_at`, `empty_at` (numbers of readings, from 0, at which the
            instrument refuses, falls silent, closes the connection, answers garbage,
            half, late, twice, or after an empty line), `dead_after` (number of readings
            after which it never answers again), and `acknowledge` (its answer to each
            command that is not a query; ERR if it refuses the command).

    Yields:
        The port on 127.0.0.1; `resource` returns its VISA resource.

    Example:

    >>> with simulator.running(shift=0.04, noise=1e-6) as port:
    ...     table["instruments"]["bench"]["resource"] = simulator.resource(port)
    ...     with pnn.InstrumentDevice(table) as device, device.installed(model):
    ...         model.evaluate(x_test, y_test)
    """
    # By its path, since importing the package would take seconds.
    command = [sys.executable, "-P", __file__]
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def resource(port: int) -> str:
    """Returns the VISA resource of a simulated instrument."""
    return f"TCPIP0::127.0.0.1::{port}::SOCKET"


def resonance_shifts(seed: int, inputs: int, outputs: int, std: float) -> np.ndarray:
    """Returns how far each ring is from its design, (inputs, outputs) in nm."""
    return std * np.random.default_rng(seed).normal(size=(inputs, outputs))


def photocurrents(
    currents: np.ndarray, powers: np.ndarray, shifts: np.ndarray
) -> np.ndarray:
    """Returns the currents of balanced detectors, through minus drop, (outputs,) in A.

    Args:
        currents, shifts: (inputs, outputs), in A and in nm.
        powers: (inputs,) in W.
    """
    heat = 1e3 * currents**2 * RESISTANCE  # mW
    detuning = OFFSET + EFFICIENCY * heat + shifts
    drop = HALF_WIDTH**2 / (HALF_WIDTH**2 + detuning**2)
    return RESPONSIVITY * (powers @ ((1 - drop) - drop))


class Refused(Exception):
    """A SCPI error: a number and a text."""


class Bank:
    """The instrument and its bank, shared by all connections."""

    def __init__(self, options):
        self.options, self.lock = options, threading.Lock()
        self.shape = (options.inputs, options.outputs)
        self.shifts = resonance_shifts(options.seed, *self.shape, options.shift)
        self.settings = self.readings = self.connections = self.commands = 0
        self.drift, self.errors = 0.0, []
        self.reset()

    def reset(self) -> None:
        self.currents = np.zeros(self.shape).ravel()
        self.powers = np.zeros(self.shape[0])

    def answer(self, line: str) -> str | None:
        """Returns the answer to one command, `None` if it has none."""
        head, _, rest = line.strip().partition(" ")
        # `SOUR3:CURR` → `SOUR:CURR` of channel 3.
        found = re.fullmatch(r"(SOUR|READ)(?:CE)?(\d*)(.*)", head.upper())
        head, channel = (found[1] + found[3], found[2]) if found else (head.upper(), "")
        sources = {"SOUR:CURR": self.currents, "SOUR:POW": self.powers}
        try:
            if head == "READ?":
                indices, _ = addressed(channel, rest, self.shape[1])
                self.refuse_some()
                return joined(self.photocurrents()[indices])
            if head.rstrip("?") not in sources:
                return self.common(head, rest)
            target = sources[head.rstrip("?")]
            indices, values = addressed(channel, rest, target.size)
            if head.endswith("?"):
                return joined(target[indices])
            return self.set(target, indices, values)
        except Refused as error:
            self.errors.append('{},"{}"'.format(*error.args))
            silent = self.options.acknowledge is None and not head.endswith("?")
            return None if silent else "ERR"

    def refuse_some(self) -> None:
        """Refuses a random share of commands, with its own count and random draws."""
        self.commands += 1
        draw = np.random.default_rng([self.options.seed, 1, self.commands]).random()
        if draw < self.options.refuse:
            raise Refused(-200, "Execution error; refused to order")

    def set(self, target: np.ndarray, indices, values) -> None:
        self.settings += 1
        self.refuse_some()
        if len(indices) != len(values):
            raise Refused(-220, f"Parameter error; {len(values)} values")
        if not all(0 <= v <= HIGHEST for v in values):
            raise Refused(-222, f"Data out of range; not in 0 to {HIGHEST}")
        target[indices] = values

    def photocurrents(self) -> np.ndarray:
        options = self.options
        shifts = self.shifts + self.drift + options.drift * self.readings
        values = photocurrents(self.currents.reshape(self.shape), self.powers, shifts)
        # Noise depends on the setting only: a repeated reading has the same noise.
        setting = np.concatenate([self.currents, self.powers]).astype("<f8").tobytes()
        key = hashlib.blake2b(setting, key=str(options.seed).encode(), digest_size=16)
        rng = np.random.default_rng(int.from_bytes(key.digest(), "little"))
        return values + options.noise * rng.normal(size=values.size)

    def common(self, head: str, rest: str) -> str | None:
        match head:
            case "*IDN?":
                return "Simulated,Weight bank,0,1.0"
            case "*OPC?":
                return "1"
            case "SYST:ERR?":
                return self.errors.pop(0) if self.errors else '0,"No error"'
            case "SIM:COUNT?":
                return f"{self.settings},{self.readings},{self.connections}"
            case "*RST":
                self.reset()
            case "*CLS":
                self.errors.clear()
            case "SIM:DRIFT":
                self.drift += float(rest)
            case _:
                raise Refused(-113, f"Undefined header; {head}")
        return None


def addressed(channel: str, rest: str, count: int) -> tuple[list, list]:
    """Returns the indices that a command addresses, and the values that it gives."""
    found = re.match(r"\s*(?:\(@([\d:,]+)\))?,?(.*)$", rest)
    channels = []
    for part in (found[1] or channel or f"1:{count}").split(","):
        first, _, last = part.partition(":")
        channels += range(int(first), int(last or first) + 1)
    if not all(1 <= c <= count for c in channels):
        raise Refused(-222, f"Data out of range; channels 1 to {count}")
    try:
        values = [float(v) for v in found[2].split(",") if v.strip()]
    except ValueError:
        raise Refused(-104, "Data type error") from None
    return [c - 1 for c in channels], values


def joined(values) -> str:
    return ",".join(repr(float(v)) for v in values)


class Connection(socketserver.StreamRequestHandler):
    """Answers each line of one client with at most one line, and simulates faults."""

    disable_nagle_algorithm = True

    def handle(self):
        bank, options = self.server.bank, self.server.bank.options
        with bank.lock:
            bank.connections += 1
        for line in self.rfile:
            text = line.decode("ascii", "replace")
            with bank.lock:
                number = bank.readings if text.upper().startswith("READ") else None
                bank.readings += number is not None
                dead, answer = bank.readings > options.dead_after, None
                if number in options.refuse_at:
                    bank.errors.append('-200,"Execution error; refused to order"')
                    answer = "ERR"
                elif not dead:
                    answer = bank.answer(text)
            if dead or number in options.hang_at:
                # Keeps listening, but never answers on this connection again.
                self.rfile.read()
                return
            if number in options.close_at:
                return
            if number in options.garbage_at:
                answer = "\x1b@#%!,,7.0.1"
            answer = options.acknowledge if answer is None else answer
            if answer is None:
                continue
            time.sleep(SLOW if number in options.slow_at else options.latency)
            if number in options.half_at:
                self.wfile.write(answer[: len(answer) // 2].encode("ascii"))
                continue
            if number in options.empty_at:
                answer = "\n" + answer
            if number in options.twice_at:
                answer += "\n" + answer
            self.wfile.write(answer.encode("ascii") + b"\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def handle_error(self, request, client_address):
        """Does nothing, since clients may disconnect."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of a simulated instrument from a command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("port", 0), ("inputs", 4), ("outputs", 4), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("noise", "drift", "latency", "refuse"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    parser.add_argument("--shift", type=float, default=0.03)
    parser.add_argument("--acknowledge")
    for fault in FAULTS:
        parser.add_argument(f"--{fault}-at", type=int, nargs="*", default=())
    parser.add_argument("--dead-after", type=int, default=sys.maxsize)
    return parser.parse_args(given)


if __name__ == "__main__":
    options = arguments()
    server = Server(("127.0.0.1", options.port), Connection)
    server.bank = Bank(options)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    os._exit(0)
