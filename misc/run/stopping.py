"""Ending when told to, by Ctrl-C (SIGINT) or by a cluster (SIGTERM): what is done is saved, workers end, too.

The first signal ends the run at the next safe place: at once in most steps, whose files are complete or absent; in a
training after the step under way, so that its state can be saved. A second signal ends it on the spot.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 0.5
"""A signal to a whole group of processes may reach a worker before it reaches its parent."""


class Told(KeyboardInterrupt):
    """The run was told to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that the signal has ended."""
        return 128 + self.number


class _Received:
    """The signal that this process has received, if any, and whether it waits for a safe place."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.number: int | None = None
        self.deferred = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:  # a worker, forked with its parent's handlers
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return  # Ctrl-C reaches the whole group; the parent ends its workers
        if self.number is not None:
            end_workers()
            os._exit(128 + number)
        self.number = number
        what = "after the step under way" if self.deferred else "now"
        _say(f"\n{signal.Signals(number).name}: the run ends {what}; a second signal ends it on the spot\n")
        self.raise_if_told()

    def raise_if_told(self) -> None:
        if self.number is not None and not self.deferred:
            raise Told(self.number)


_received = _Received()


def _say(text: str) -> None:
    """Write to the standard error as a signal handler may: without the locks of its buffer."""
    os.write(2, text.encode())


@contextmanager
def ending_when_told() -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM raise `Told` at the next safe place. For the main thread.

    Where Python swallows it, as in a destructor, nothing is printed: `raise_if_told` and `is_told` still know.
    """
    global _received
    _received = _Received()
    before = {number: signal.signal(number, _received) for number in SIGNALS}
    tell_unraisable = sys.unraisablehook
    sys.unraisablehook = lambda what: None if isinstance(what.exc_value, Told) else tell_unraisable(what)
    try:
        yield
    finally:
        sys.unraisablehook = tell_unraisable
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = _Received()


@contextmanager
def stop_deferred(deferred: bool = True) -> Iterator[None]:
    """Within the block a signal waits until `raise_if_told` is called after it; with `False` it no longer does."""
    received, before = _received, _received.deferred
    received.deferred = deferred
    try:
        received.raise_if_told()
        yield
    finally:
        received.deferred = before


def is_told(*, grace: float = 0) -> bool:
    """Whether the run was told to end, or is within `grace` seconds."""
    deadline = time.monotonic() + grace
    while _received.number is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return _received.number is not None


def wait_for_the_end(seconds: float) -> None:
    """Let another process say why all end: whoever started them ends the others as soon as one has.

    Returns after `seconds` if nobody has ended this one, which it does without a word.
    """
    end_workers()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    time.sleep(seconds)


def raise_if_told() -> None:
    """Raise `Told` if the run was told to end and nothing defers that: for places that may have swallowed it."""
    _received.raise_if_told()


def told() -> Told:
    """The exception to raise; of several processes one may have been told by another."""
    return Told(_received.number or signal.SIGTERM)


def end_workers() -> None:
    """Kill this process's workers, who hold nothing that is not complete on disk."""
    for worker in multiprocessing.active_children():
        worker.kill()
