"""Prefetch of batches to the devices, with a measure of how long the devices waited for them."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cmap_jax import sharding

_AHEAD = 2  # prefetched batches on the devices
_POLL = 0.001  # seconds between two tests of whether the devices are still at work
_PATIENCE = 10.0  # seconds that the end of a run waits for the batch that is being made


class DeviceFeed:
    """Iterates over batches on the devices; a thread makes and transfers the next ones meanwhile.

        with DeviceFeed(batches, mesh) as feed:
            for batch in feed:
                state, metrics = train_step(state, batch)
                feed.working_on(metrics["loss/total"])

    The devices count as waiting for data while a batch is requested, none is ready, and they have
    finished all dispatched work: only then would a faster pipeline make training faster.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh):
        """Prepare; the first batch is made after `__enter__`.

        Args:
            batches: batches on the host; their rows are this process's part of the global batch.
            mesh: the devices over which the rows are sharded.
        """
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
        """Stop the thread after its current batch, and drop the prefetched ones."""
        self._closed.set()
        self._thread.join(_PATIENCE)

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        """Yield the batches in order.

        Raises:
            Exception: the error, of any class, that was raised where a batch was made.
        """
        while (batch := self._next()) is not None:
            yield batch

    def working_on(self, output: jax.Array) -> None:
        """Note the output that the devices compute last; once it is ready, they are idle.

        Args:
            output: any output of the latest step that was dispatched.
        """
        self._output = output

    @property
    def waited(self) -> float:
        """Seconds that the devices have waited for data since the start."""
        return self._waited

    def take_waited_fraction(self) -> float:
        """Return the fraction of the time since the last call that the devices waited, 0 to 1."""
        now = time.monotonic()
        fraction = (self._waited - self._taken) / max(now - self._since, 1e-9)
        self._taken, self._since = self._waited, now
        return fraction

    def _next(self) -> dict[str, jax.Array] | None:
        """Return the next batch, or None after the last one; measure the wait."""
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
        """Make and transfer all batches; an error goes into the queue in a batch's place."""
        try:
            for batch in self._batches:
                if not self._put(sharding.place_batch(batch, self._mesh)):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> bool:
        """Put an item into the queue; return False if the feed was closed before."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
