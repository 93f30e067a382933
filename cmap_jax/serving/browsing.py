"""A gallery for people: its pages, looking items up by words, and the fields to filter by."""

import bisect
import functools
import threading
from collections.abc import Mapping, Sequence
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
        self._matches = functools.lru_cache(_KEPT)(_Lines(self._items).rows_with)

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
            rows = self._matches(words.replace("\n", " ").casefold())
            rows = rows if allowed is None else rows[allowed[rows]]
        chosen = rows[offset : offset + limit]
        return [self._items[int(row)] for row in chosen], len(rows)


class _Lines:
    """A line of text for each item, to look them up by words; made at the first look-up."""

    def __init__(self, items: Sequence[Item]):
        self._items = items
        self._lock = threading.Lock()

    def rows_with(self, words: str) -> np.ndarray:
        """Return the positions of the items whose line contains a text, [M] int64."""
        with self._lock:  # two look-ups at once make the lines once
            lines, starts = self._lines
        rows, at = [], lines.find(words)
        while at >= 0:
            row = bisect.bisect_right(starts, at) - 1
            rows.append(row)
            at = lines.find(words, starts[row + 1])
        return np.array(rows, np.int64)

    @functools.cached_property
    def _lines(self) -> tuple[str, np.ndarray]:
        """All lines in one text, and where each begins."""
        lines = [_line(item) for item in self._items]
        return "".join(lines), np.cumsum([0, *map(len, lines)])


def _line(item: Item) -> str:
    """Return an item's id and its texts in one line, for looking up."""
    values = [item.id]
    for value in item.metadata.values():
        values += value if isinstance(value, list | tuple) else [str(value)]
    return " · ".join(values).replace("\n", " ").casefold() + "\n"
