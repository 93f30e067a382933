"""A gallery for people: its pages, looking items up by words, and the fields to filter by."""

import bisect
import functools
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.retriever import Retriever

_KEPT = 32  # pages of one look-up follow one another: their positions are kept


class Browser:
    """Lists the items of a retriever's index; safe to use from several threads."""

    def __init__(self, retriever: Retriever):
        """Prepare the fields, which the page asks for first."""
        self._retriever = retriever
        self._items = retriever.index.items
        self.fields: dict[str, Any] = retriever.fields.describe()
        self._lock = threading.Lock()
        # One entry for each look-up, without a reference to it from outside.
        self._matches = functools.lru_cache(_KEPT)(self._match)

    def item(self, name: str) -> Item | None:
        """Return the item with an id, or None."""
        position = self._retriever.index.position_of(name)
        return None if position is None else self._items[position]

    def page(
        self, offset: int, limit: int, words: str, where: Mapping[str, Any] | None
    ) -> tuple[list[Item], int]:
        """Return some of the items that match, in the gallery's order, and the number of all.

        Args:
            offset: position of the first one among those that match.
            limit: most items.
            words: text that an item's id or one of its values contains, in any case; "" for any.
            where: filter, as the retriever takes it.

        Raises:
            ValueError: a filter that does not fit the metadata.
        """
        allowed = self._retriever.fields.mask(where)
        if not words and allowed is None:
            rows: Any = range(len(self._items))
        elif not words:
            rows = np.flatnonzero(allowed)
        else:
            rows = self._matches(words.casefold())
            rows = rows if allowed is None else rows[allowed[rows]]
        chosen = rows[offset : offset + limit]
        return [self._items[int(row)] for row in chosen], len(rows)

    def _match(self, words: str) -> np.ndarray:
        """Return the positions of the items whose line contains a text."""
        lines, starts = self._lines
        rows, at = [], lines.find(words)
        while at >= 0:
            row = bisect.bisect_right(starts, at) - 1
            rows.append(row)
            at = lines.find(words, starts[row + 1])
        return np.array(rows, np.int64)

    @property
    def _lines(self) -> tuple[str, np.ndarray]:
        """One text with a line for each item, and where each begins; made at the first look-up."""
        with self._lock:  # two look-ups make it once
            return self._all_lines

    @functools.cached_property
    def _all_lines(self) -> tuple[str, np.ndarray]:
        lines = [_line(item) for item in self._items]
        starts = np.cumsum([0, *(len(line) for line in lines)])
        return "".join(lines), starts


def _line(item: Item) -> str:
    """Return an item's id and its texts in one line, for looking up."""
    values = [item.id]
    for value in item.metadata.values():
        values += value if isinstance(value, list | tuple) else [str(value)]
    return " · ".join(values).replace("\n", " ").casefold() + "\n"
