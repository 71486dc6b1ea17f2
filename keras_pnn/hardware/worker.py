"""Run the lab's code in a thread, under a time limit."""

import concurrent.futures
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable

# Seconds that an interrupt from the keyboard may wait.
_LONGEST_DEAF = 0.2


class Worker:
    """Runs functions one by one in one thread, which can be given up.

    The thread ends when the worker is given up or dropped: at once, or, where a
    function hangs, when that returns. What it returns then goes nowhere.
    """

    def __init__(self):
        self._jobs = queue.SimpleQueue()
        self.thread = threading.Thread(
            target=_serve, args=(self._jobs,), name="keras_pnn device", daemon=True
        )
        self.thread.start()
        weakref.finalize(self, self._jobs.put, None)

    def run(self, function: Callable, timeout: float | None):
        """Returns what a function returns, or raises what it raises.

        Args:
            function: called without arguments.
            timeout: seconds, `None` for no limit.

        Raises:
            StillRunning: If the function does not return in time; the worker is of no
                use until it has.
        """
        future = concurrent.futures.Future()
        self._jobs.put((future, function))
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not future.done():
            left = deadline - time.monotonic()
            if left <= 0:
                raise StillRunning
            # A signal that comes just before a wait does not end it.
            concurrent.futures.wait([future], min(left, _LONGEST_DEAF))
        return future.result()

    def give_up(self) -> None:
        """Lets the thread end when it can."""
        self._jobs.put(None)


class StillRunning(Exception):
    """A function has not returned in time."""


def _serve(jobs: queue.SimpleQueue) -> None:
    while (job := jobs.get()) is not None:
        future, function = job
        try:
            future.set_result(function())
        # Whoever waits gets it, an interrupt too.
        except BaseException as error:
            future.set_exception(error)
        # What the job holds must not live until the next one.
        del job, future, function
