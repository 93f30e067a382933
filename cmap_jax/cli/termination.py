"""SIGTERM from a program's start: it ends as after Ctrl-C, and leaves nothing half done behind."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_STATUS = 128 + signal.SIGTERM  # the exit status that shells report for the signal


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM in the block end the program with the exit status 143.

    Without a handler the process would be gone at once: what is open would not be closed, and
    temporary files and child processes would stay. A second SIGTERM does end it at once. Training
    and evaluation have handlers of their own, see `StopRequest`.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    previous = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    sys.exit(_STATUS)
