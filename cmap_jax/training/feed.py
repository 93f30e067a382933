"""Batches on their way to the devices: placed ahead of the steps, waits measured."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cmap_jax import sharding

_AHEAD = 2  # batches on the devices that no step has taken yet
_POLL = 0.001  # seconds between two looks at whether the devices are still at work
_PATIENCE = 10.0  # seconds for the batch under way when the run ends


class DeviceFeed:
    """Iterates over placed batches; a thread makes and places the next ones meanwhile.

        with DeviceFeed(batches, mesh) as feed:
            for batch in feed:
                state, metrics = train_step(state, batch)
                feed.working_on(metrics["loss/total"])

    The devices wait for data while a batch is asked for, none is there, and what they work on is
    done: only then does a faster pipeline make for faster training.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh):
        """Start to make and place batches."""
        self._batches = batches
        self._mesh = mesh
        self._queue: queue.Queue = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._output: jax.Array | None = None
        self._waited = self._taken = 0.0
        self._since = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="device feed", daemon=True)

    def __enter__(self) -> "DeviceFeed":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Stop the thread after the batch that it makes; those that nobody took are dropped."""
        self._closed.set()
        self._thread.join(_PATIENCE)

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        """Yield the batches.

        Raises:
            Exception: whatever making or placing a batch raised.
        """
        while (batch := self._next()) is not None:
            yield batch

    def working_on(self, output: jax.Array) -> None:
        """Say what the devices compute last: when it is there, they have nothing left to do."""
        self._output = output

    @property
    def waited(self) -> float:
        """Seconds in which the devices have waited for data so far."""
        return self._waited

    def take_waiting_share(self) -> float:
        """Return the share of the time since the last call in which the devices waited, 0 to 1."""
        now = time.monotonic()
        share = (self._waited - self._taken) / max(now - self._since, 1e-9)
        self._taken, self._since = self._waited, now
        return share

    def _next(self) -> dict[str, jax.Array] | None:
        idle_since = None
        while True:
            try:
                batch = self._queue.get_nowait()
                break
            except queue.Empty:
                pass
            if idle_since is None and self._output is not None and self._output.is_ready():
                idle_since = time.monotonic()
            try:
                batch = self._queue.get(timeout=_POLL)
                break
            except queue.Empty:
                continue
        if idle_since is not None:
            self._waited += time.monotonic() - idle_since
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def _run(self) -> None:
        try:
            for batch in self._batches:
                if not self._put(sharding.place_batch(batch, self._mesh)):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
