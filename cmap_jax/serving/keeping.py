"""Results that are kept while there is memory; safe to use from several threads."""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Kept = TypeVar("Kept")


class Keeper(Generic[Kept]):
    """Keeps results by a key; the ones that were not used for longest go first."""

    def __init__(self, most_bytes: int, size_of: Callable[[Kept], int]):
        """Keep none yet.

        Args:
            most_bytes: memory for all results together.
            size_of: returns the bytes of one.
        """
        self._most_bytes = most_bytes
        self._size_of = size_of
        self._kept: collections.OrderedDict[Hashable, Kept] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """Return the result that is kept under a key, or make it; raises as ``make``."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += self._size_of(made)
            while self._bytes > self._most_bytes:
                self._bytes -= self._size_of(self._kept.popitem(last=False)[1])
        return made
