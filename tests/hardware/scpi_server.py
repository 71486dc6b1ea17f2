"""A microring weight bank on a bench that is not there: a SCPI server over TCP.

A process of its own, which knows nothing of keras_pnn: its rings are computed here, in
NumPy, with resonance shifts that nobody else sees. Faults come to order.

    python tests/hardware/scpi_server.py --port 0 --inputs 4 --outputs 4

The first line that it prints is its port. It ends when its standard input closes.

    *IDN?  *RST  *CLS  *OPC?  SYST:ERR?
    SOUR:CURR (@1:16),0.001,...     currents of the heaters in A; ring (input i,
                                    output o) is channel i * outputs + o + 1
    SOUR3:CURR 0.001                one of them
    SOUR:CURR? (@1:16)              what they are set to
    SOUR:POW (@1:4),0.001,...       powers of the channels in W; SOUR2:POW, SOUR:POW?
    READ? (@1:4)                    photocurrents of the detectors in A; READ2?
    SIM:DRIFT 0.01                  moves all resonances by so many nm
    SIM:COUNT?                      settings, readings, connections so far
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

HALF_WIDTH, EFFICIENCY, RESISTANCE, OFFSET = 0.077, 0.53, 375.0, -0.3
RESPONSIVITY = 0.8  # A/W
SLOW = 2.0  # s before an answer that comes late
HIGHEST_CURRENT, HIGHEST_POWER = 0.01, 0.01  # A, W


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--inputs", type=int, default=4)
    parser.add_argument("--outputs", type=int, default=4)
    parser.add_argument("--identity", default="Simulated,Weight bank,0,1.0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--shift", type=float, default=0.03, help="std of the rings, nm"
    )
    parser.add_argument("--noise", type=float, default=0.0, help="std of a reading, A")
    parser.add_argument("--drift", type=float, default=0.0, help="nm per reading")
    parser.add_argument("--latency", type=float, default=0.0, help="s before an answer")
    parser.add_argument("--refuse", type=float, default=0.0, help="share of commands")
    for fault in ("refuse", "hang", "close", "garbage", "half", "slow"):
        parser.add_argument(
            f"--{fault}-at", type=numbers, default=(), help="numbers of readings, 0,7"
        )
    parser.add_argument(
        "--dead-after", type=int, default=None, help="readings, then no answer at all"
    )
    return parser


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def resonance_shifts(seed: int, inputs: int, outputs: int, std: float) -> np.ndarray:
    """How far each ring is from its design, in nm."""
    return std * np.random.default_rng(seed).normal(size=(inputs, outputs))


def photocurrents(
    currents: np.ndarray, powers: np.ndarray, shifts: np.ndarray
) -> np.ndarray:
    """Balanced detectors: through minus drop, summed over the channels.

    Args:
        currents: (inputs, outputs) in A.
        powers: (inputs,) in W.
        shifts: (inputs, outputs) in nm.

    Returns:
        (outputs,) in A.
    """
    heat = 1e3 * currents**2 * RESISTANCE  # mW
    detuning = OFFSET + EFFICIENCY * heat + shifts
    drop = HALF_WIDTH**2 / (HALF_WIDTH**2 + detuning**2)
    return RESPONSIVITY * (powers @ ((1 - drop) - drop))


def noise_of(seed: int, currents, powers, size: int) -> np.ndarray:
    """Normal numbers that belong to a setting: a repeated reading repeats them."""
    asked = np.concatenate([np.ravel(currents), powers]).astype("<f8").tobytes()
    key = hashlib.blake2b(asked, key=str(seed).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key, "little")).normal(size=size)


class Refused(Exception):
    """A SCPI error: a number and a text."""


class Bank:
    """What is behind the socket; the same for every connection."""

    def __init__(self, options):
        self.options, self.lock = options, threading.Lock()
        shape = (options.inputs, options.outputs)
        self.shifts = resonance_shifts(options.seed, *shape, options.shift)
        self.settings = self.readings = self.connections = self.commands = 0
        self.drift, self.errors = 0.0, []
        self.reset()

    def reset(self) -> None:
        self.currents = np.zeros(self.options.inputs * self.options.outputs)
        self.powers = np.zeros(self.options.inputs)

    def refuse_some(self) -> None:
        """Draws by a counter of its own, so that nothing else depends on it."""
        self.commands += 1
        draw = np.random.default_rng([self.options.seed, 1, self.commands]).random()
        if draw < self.options.refuse:
            raise Refused(-200, "Execution error; refused to order")

    def set(self, target: np.ndarray, channels, values, highest: float) -> None:
        self.settings += 1
        self.refuse_some()
        if len(channels) != len(values):
            raise Refused(-220, f"Parameter error; {len(values)} values")
        if not all(0 <= v <= highest for v in values):
            raise Refused(-222, f"Data out of range; not in 0 to {highest}")
        target[[c - 1 for c in channels]] = values

    def read(self, channels) -> str:
        shape = self.shifts.shape
        shifts = self.shifts + self.drift + self.options.drift * self.readings
        values = photocurrents(self.currents.reshape(shape), self.powers, shifts)
        noise = noise_of(self.options.seed, self.currents, self.powers, shape[1])
        values = values + self.options.noise * noise
        return joined(values[[c - 1 for c in channels]])

    def answer(self, line: str) -> str | None:
        """Returns the answer to one command, `None` where there is none."""
        command, _, rest = line.strip().partition(" ")
        head, suffix = split_suffix(command.upper())
        counts = {
            "SOUR:CURR": self.currents.size,
            "SOUR:POW": self.powers.size,
            "READ?": self.options.outputs,
        }
        try:
            if head in ("SOUR:CURR", "SOUR:POW", "SOUR:CURR?", "SOUR:POW?"):
                name = head.rstrip("?")
                current = name == "SOUR:CURR"
                target = self.currents if current else self.powers
                channels, values = parse(suffix, rest, counts[name])
                if head.endswith("?"):
                    return joined(target[[c - 1 for c in channels]])
                highest = HIGHEST_CURRENT if current else HIGHEST_POWER
                return self.set(target, channels, values, highest)
            if head == "READ?":
                channels, _ = parse(suffix, rest, counts[head])
                self.refuse_some()
                return self.read(channels)
            return self.common(head, rest)
        except Refused as error:
            self.errors.append('{},"{}"'.format(*error.args))
            return "ERR" if head.endswith("?") else None

    def common(self, head: str, rest: str) -> str | None:
        if head == "*IDN?":
            return self.options.identity
        if head == "*OPC?":
            return "1"
        if head == "SYST:ERR?":
            return self.errors.pop(0) if self.errors else '0,"No error"'
        if head == "SIM:COUNT?":
            return f"{self.settings},{self.readings},{self.connections}"
        if head == "*RST":
            return self.reset()
        if head == "*CLS":
            return self.errors.clear()
        if head == "SIM:DRIFT":
            self.drift += float(rest)
            return None
        raise Refused(-113, f"Undefined header; {head}")


def split_suffix(command: str) -> tuple[str, int | None]:
    """`SOUR3:CURR` → (`SOUR:CURR`, 3)."""
    found = re.match(r"(SOUR|READ)(?:CE)?(\d*)(.*)$", command)
    if not found:
        return command, None
    return found[1] + found[3], int(found[2]) if found[2] else None


def parse(suffix: int | None, rest: str, count: int) -> tuple[list[int], list[float]]:
    """The channels that a command addresses, and the values that it gives them."""
    found = re.match(r"\s*(?:\(@([\d:,]*)\))?,?(.*)$", rest)
    channels = [suffix] if suffix is not None else list(range(1, count + 1))
    if found[1] is not None:
        channels = []
        for part in found[1].split(","):
            first, _, last = part.partition(":")
            channels += range(int(first), int(last or first) + 1)
    if not all(1 <= c <= count for c in channels):
        raise Refused(-222, f"Data out of range; channels 1 to {count}")
    try:
        return channels, [float(v) for v in found[2].split(",") if v.strip()]
    except ValueError:
        raise Refused(-104, "Data type error") from None


def joined(values) -> str:
    return ",".join(repr(float(v)) for v in values)


class Connection(socketserver.StreamRequestHandler):
    """One client: a line in, at most a line out."""

    disable_nagle_algorithm = True

    def handle(self):
        bank, options = self.server.bank, self.server.bank.options
        with bank.lock:
            bank.connections += 1
        for line in self.rfile:
            text = line.decode("ascii", "replace")
            reading = text.upper().startswith("READ")
            with bank.lock:
                number = bank.readings if reading else None
                bank.readings += reading
                dead = options.dead_after
                if dead is not None and bank.readings > dead:
                    number = "dead"
                if number in options.refuse_at:
                    bank.errors.append('-200,"Execution error; refused to order"')
                    answer = "ERR"
                else:
                    answer = bank.answer(text)
            if number == "dead" or number in options.hang_at:
                # Listens, and never says a word again on this connection.
                for _ in self.rfile:
                    pass
                return
            if number in options.close_at:
                return
            if number in options.garbage_at:
                answer = "\x1b@#%!,,7.0.1"
            if answer is None:
                continue
            time.sleep(SLOW if number in options.slow_at else options.latency)
            if number in options.half_at:
                self.wfile.write(answer[: len(answer) // 2].encode("ascii"))
                continue
            self.wfile.write(answer.encode("ascii") + b"\n")


@contextlib.contextmanager
def running(*arguments) -> Iterator[int]:
    """Yields the port of a server, in a process of its own that ends with the block."""
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def handle_error(self, request, client_address):
        # A client that goes away is no news.
        pass


def main() -> None:
    options = arguments().parse_args()
    server = Server(("127.0.0.1", options.port), Connection)
    server.bank = Bank(options)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
