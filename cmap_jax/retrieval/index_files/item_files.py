"""The items of a shard on disk: a JSON line each, found by position or by id without reading all.

The file is one of safetensors: the lines, where each begins, and the ids' hashes in ascending order
with the row of each.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cmap_jax.retrieval.catalogue import Item

_LINES, _OFFSETS, _HASHES, _ROWS = "lines", "offsets", "hashes", "rows"


class Stamp(NamedTuple):
    """The state of a picture's file when it was embedded.

    Attributes:
        size: bytes.
        modified: time of the last change, nanoseconds since 1970, whole seconds in a bucket; None:
            it says nothing.
        digest: 32 hexadecimal digits, the first half of the content's SHA-256.
    """

    size: int
    modified: int | None
    digest: str


class Record(NamedTuple):
    """An item with the stamp of its picture; None where pictures were embedded by a program."""

    item: Item
    stamp: Stamp | None


def to_arrays(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Return the arrays that some items are stored as, by name."""
    lines = [_to_line(record) for record in records]
    hashes = np.array([hash_of(record.item.id) for record in records], np.uint64)
    order = np.argsort(hashes, kind="stable")
    return {
        _LINES: np.frombuffer(b"".join(lines), np.uint8),
        _OFFSETS: np.cumsum([0, *map(len, lines)], dtype=np.int64),
        _HASHES: hashes[order],
        _ROWS: order.astype(np.uint32),
    }


class ItemFile:
    """The items of a shard, decoded one by one."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """Take the arrays of `to_arrays`.

        Raises:
            ValueError: they do not belong together.
        """
        if arrays.keys() != {_LINES, _OFFSETS, _HASHES, _ROWS}:
            raise ValueError(f"it has {', '.join(arrays)}")
        self._lines, self._offsets = arrays[_LINES], arrays[_OFFSETS]
        self._hashes, self._rows = arrays[_HASHES], arrays[_ROWS]
        if self._offsets[-1] != len(self._lines) or not (
            len(self._hashes) == len(self._rows) == len(self)
        ):
            raise ValueError("its arrays do not belong together")

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._offsets) - 1

    def record(self, row: int) -> Record:
        """Return an item and its stamp."""
        begin, end = self._offsets[row : row + 2]
        return _from_line(json.loads(self._lines[begin:end].tobytes()))

    def records(self) -> Iterator[Record]:
        """Yield all items and their stamps, in order."""
        text = self._lines.tobytes()
        # One call of the parser is twice as fast as one a line.
        for fields in json.loads(b"[" + text.rstrip(b"\n").replace(b"\n", b",") + b"]"):
            yield _from_line(fields)

    def row_of(self, name: str) -> int | None:
        """Return the row of the item with an id, or None."""
        wanted = np.uint64(hash_of(name))
        position = int(np.searchsorted(self._hashes, wanted))
        while position < len(self) and self._hashes[position] == wanted:
            row = int(self._rows[position])
            if self.record(row).item.id == name:
                return row
            position += 1
        return None

    def same_as(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Tell whether the lines are those of other arrays of `to_arrays`."""
        return np.array_equal(self._lines, arrays[_LINES])


def hash_of(name: str) -> int:
    """Return 64 bits of an id's hash."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _to_line(record: Record) -> bytes:
    item, stamp = record
    fields: dict[str, Any] = {"id": item.id, "image": item.image}
    if stamp is not None:
        fields["stamp"] = list(stamp)
    if item.metadata:
        fields["metadata"] = dict(item.metadata)
    # JSON escapes line breaks in texts: a line is a line.
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _from_line(fields: Mapping[str, Any]) -> Record:
    stamp = fields.get("stamp")
    item = Item(fields["id"], fields["image"], fields.get("metadata", {}))
    return Record(item, None if stamp is None else Stamp(*stamp))
