"""Back-pressure: how many searches, and how many bytes of uploads, are taken on at once.

with admission.enter("10.0.0.7"), admission.hold(1_000_000):
    ...

All of it runs in the event loop's thread.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator

from cmap_jax.serving.refusals import busy, unread
from cmap_jax.serving.settings import Settings

_WHOLE_BODIES = 16  # uploads of the greatest size that are held in memory at once


class Admission:
    """Counts what is in flight, and refuses what would be too much."""

    def __init__(self, settings: Settings, retry_after: Callable[[], int], what: str = "searches"):
        """Begin with nothing in flight.

        Args:
            settings: limits of searches and uploads.
            retry_after: returns the seconds after which a place should be free.
            what: word for all that is counted, for the refusals.
        """
        self._settings, self._what = settings, what
        self._retry_after = retry_after
        self._clients: collections.Counter[str] = collections.Counter()
        self._bytes = 0

    @property
    def searches(self) -> int:
        """Searches in flight."""
        return self._clients.total()

    @contextlib.contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Count a search of a client within the block.

        Raises:
            Refused: 429 where this client has too many in flight, 503 where all have.
        """
        if self.searches >= self._settings.queue:
            sentence = f"too many {self._what} are in flight; try again soon"
            raise unread(busy(sentence, self._retry_after()))
        if self._clients[client] >= self._settings.per_client:
            most = f"{self._settings.per_client} {self._what}"
            sentence = f"a client may have {most} in flight at once"
            raise unread(busy(sentence, self._retry_after(), status=429))
        self._clients[client] += 1
        try:
            yield
        finally:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    @contextlib.contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Reserve memory for an upload of ``count`` bytes within the block.

        Raises:
            Refused: 503 where the uploads in flight would need too much.
        """
        if self._bytes + count > _WHOLE_BODIES * self._settings.upload_bytes:
            sentence = "too many uploads are in flight; try again soon"
            raise unread(busy(sentence, self._retry_after()))
        self._bytes += count
        try:
            yield
        finally:
            self._bytes -= count
