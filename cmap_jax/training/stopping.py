"""The wish to stop: SIGTERM (preemption) or Ctrl-C, agreed upon by all processes of a run."""

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
    """The work was asked to stop, and did so in order.

    Attributes:
        exit_status: of the program, `StopRequest.exit_status`.
    """

    def __init__(self, message: str, exit_status: int):
        """Take a line for people, and the exit status."""
        super().__init__(message)
        self.exit_status = exit_status


class StopRequest:
    """Called between pieces of work, tells whether the run was asked to stop.

        with StopRequest() as stop:
            for batch in batches:
                ...
                if stop():
                    break

    In one process, the first SIGTERM or Ctrl-C asks, a second one ends at once. In several, a
    signal to any of them reaches all, and all of them see it at the same call: they must call
    alike.
    """

    def __init__(self):
        """Prepare; signals are caught from `__enter__` on."""
        self._asked = False
        self._signal = signal.SIGTERM  # where another process was asked, and told this one
        self._calls = 0
        self._previous: dict[int, Any] = {}
        self._several = jax.process_count() > 1

    @property
    def exit_status(self) -> int:
        """The exit status of a program that this stops: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self._signal

    def __enter__(self) -> "StopRequest":
        """Catch the signals; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            # In several processes SIGTERM belongs to JAX's preemption service.
            numbers = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
            self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: Any) -> None:
        """Leave the signals to those who had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return whether to stop."""
        if self._several and not self._asked:
            self._asked = multihost_utils.reached_preemption_sync_point(self._calls)
            self._calls += 1
        return self._asked

    def _handle(self, number: int, _: Any) -> None:
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's service tells the others
            signal.signal(number, signal.default_int_handler)
        elif self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        elif self._asked:
            sys.exit(128 + number)
        self._asked = self._asked or not self._several
        self._signal = number
        _logger.warning("Stopping after what is under way; once more to stop at once")
