"""A gallery for people: its pages, looking items up by words, and the fields to filter by."""

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.retriever import Retriever
from cmap_jax.serving.keeping import Keeper

_KEPT_BYTES = 16 * 2**20  # pages of one look-up follow one another: their positions are kept
_BLOCK = 4 * 2**20  # bytes of text that are compared at once


class Browser:
    """Lists the items of a retriever's index; safe to use from several threads."""

    def __init__(self, retriever: Retriever):
        """Prepare the fields, which the page asks for first."""
        self._retriever = retriever
        self._items = retriever.index.items
        self.fields: dict[str, Any] = retriever.fields.describe()
        self._lines = _Lines(self._items)
        self._matches = Keeper[np.ndarray](_KEPT_BYTES, lambda rows: rows.nbytes)

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
            words = words.replace("\n", " ").casefold()
            rows = self._matches.get(words, lambda: self._lines.rows_with(words))
            rows = rows if allowed is None else rows[allowed[rows]]
        chosen = rows[offset : offset + limit]
        return [self._items[int(row)] for row in chosen], len(rows)


class _Lines:
    """A line of text for each item, to look them up by words; made at the first look-up."""

    def __init__(self, items: Sequence[Item]):
        self._items = items
        self._lock = threading.Lock()

    def rows_with(self, words: str) -> np.ndarray:
        """Return the positions of the items whose line contains a text, [M] int32.

        NumPy compares bytes and lets other threads run meanwhile. In UTF-8 no character's bytes
        begin inside another's.
        """
        with self._lock:  # two look-ups at once make the lines once
            text, ends = self._lines
        wanted = np.frombuffer(_encoded(words), np.uint8)
        rows = [np.empty(0, np.int32)]
        for start in range(0, len(text) - len(wanted) + 1, _BLOCK):
            block = text[start : start + _BLOCK + len(wanted) - 1]
            begins = np.flatnonzero(block[: len(block) - len(wanted) + 1] == wanted[0])
            for offset in range(1, len(wanted)):
                begins = begins[block[begins + offset] == wanted[offset]]
            rows.append(np.searchsorted(ends, begins + start, side="right").astype(np.int32))
        return np.unique(np.concatenate(rows))

    @functools.cached_property
    def _lines(self) -> tuple[np.ndarray, np.ndarray]:
        """All lines, UTF-8 as [bytes] uint8, and where each ends, [N] int64."""
        lines = [_encoded(_line(item)) for item in self._items]
        ends = np.cumsum([len(line) for line in lines], dtype=np.int64)
        return np.frombuffer(b"".join(lines), np.uint8), ends


def _encoded(text: str) -> bytes:
    """Return a text in UTF-8; half of a surrogate pair is encoded too."""
    return text.encode(errors="surrogatepass")


def _line(item: Item) -> str:
    """Return an item's id and its texts in one line, for looking up."""
    values = [item.id]
    for value in item.metadata.values():
        values += value if isinstance(value, list | tuple) else [str(value)]
    return " · ".join(values).replace("\n", " ").casefold() + "\n"
