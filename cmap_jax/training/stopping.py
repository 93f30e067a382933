"""The request to stop: SIGTERM (preemption) or Ctrl-C, seen by all processes of a run alike."""

import logging
import os
import signal
import sys
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

_logger = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818
    """A run or an evaluation was asked to stop, and ended in good order.

    Attributes:
        exit_status: the program's exit status, as in `StopRequest.exit_status`.
    """

    def __init__(self, message: str, exit_status: int):
        """Make the exception.

        Args:
            message: one line that says where the work stopped.
            exit_status: 130 after Ctrl-C, 143 after SIGTERM.
        """
        super().__init__(message)
        self.exit_status = exit_status


class StopRequest:
    """Says, when called between two pieces of work, whether the run was asked to stop.

        with StopRequest() as stop:
            for batch in batches:
                ...
                if stop():
                    break

    In a single process the first SIGTERM or Ctrl-C is the request, and a second one ends the
    process at once. With several processes a signal to any one of them reaches all, and they all
    see the request at the same call; therefore every process must make the same calls.
    """

    def __init__(self):
        """Prepare; signals are caught from `__enter__` on."""
        self._asked = False
        # The default holds where another process got the signal and JAX passed the request on.
        self._signal = signal.SIGTERM
        self._calls = 0
        self._previous: dict[int, Any] = {}
        self._several = jax.process_count() > 1

    @property
    def exit_status(self) -> int:
        """The exit status of a program that this stops: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self._signal

    def __enter__(self) -> "StopRequest":
        """Catch the signals; Python allows this in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            # With several processes, JAX's preemption service handles SIGTERM.
            numbers = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
            self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: Any) -> None:
        """Restore the signal handlers that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return whether to stop."""
        if self._several and not self._asked:
            self._asked = multihost_utils.reached_preemption_sync_point(self._calls)
            self._calls += 1
        return self._asked

    def check(self) -> None:
        """End the work here if the run was asked to stop.

        Raises:
            Stopped: the run was asked to stop.
        """
        if self():
            raise Stopped("stopped", self.exit_status)

    def _handle(self, number: int, _: Any) -> None:
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's service tells the other processes
            signal.signal(number, signal.default_int_handler)
        elif self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        elif self._asked:
            sys.exit(128 + number)
        self._asked = self._asked or not self._several
        self._signal = number
        _logger.warning("Stopping after the work in progress; signal again to stop at once")
