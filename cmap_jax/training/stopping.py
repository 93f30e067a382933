"""The wish to stop: SIGTERM (preemption) or Ctrl-C, agreed upon by all processes of a run."""

import os
import signal
import threading
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils


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
        self._calls = 0
        self._previous: dict[int, Any] = {}
        self._several = jax.process_count() > 1

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
        elif self._asked:
            raise KeyboardInterrupt
        self._asked = self._asked or not self._several
        logging.warning("Stopping after what is under way; once more to stop at once")
