"""Reading an index: its embeddings memory-mapped, its items decoded one by one.

stored = StoredIndex("INDEX")                           # refuses what is unfinished or damaged
stored.items[3].metadata["color"], stored.position_of("dresses/12.jpg")
stored.parts                                            # arrays or `Quantized`, [L, n, D] each
"""

import bisect
import concurrent.futures
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32

from cmap_jax.files import check_regular_file, is_remote
from cmap_jax.progress import track
from cmap_jax.retrieval.catalogue import INTEGER, NUMBER, Item
from cmap_jax.retrieval.index_files import quantization
from cmap_jax.retrieval.index_files.form import (
    Description,
    FileFacts,
    Manifest,
    Shard,
    items_name,
    read_manifest,
    vectors_name,
)
from cmap_jax.retrieval.index_files.item_files import ItemFile, Record
from cmap_jax.retrieval.index_files.quantization import Part
from cmap_jax.retrieval.index_files.tensors import read_tensors

_WORKERS = 4  # files whose checksums are computed at once
_BLOCK = 1 << 22  # bytes that are read at once for a checksum
_TRIES = 3  # an index may be replaced while it is opened


class ShardFiles:
    """The files of a shard, mapped.

    Attributes:
        part: its embeddings as they are stored, [L, n, D].
        items: of its images, decoded one by one.
    """

    def __init__(self, generation: str, shard: Shard, description: Description):
        """Map the files of a shard, whose generation's folder is given.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged; names it.
        """
        vectors = _join(generation, vectors_name(shard.number))
        _check_size(vectors, shard.vectors)
        try:
            self.part = quantization.from_arrays(read_tensors(vectors), description.dtype)
        except ValueError as error:
            raise ValueError(f"{vectors}: {error}") from error
        self.items = read_items(generation, shard)
        expected = (description.levels, shard.count, description.width)
        if self.part.shape != expected or len(self.items) != shard.count:
            raise ValueError(
                f"{vectors} is damaged: embeddings {self.part.shape} of {len(self.items)} items, "
                f"not {expected}"
            )


def read_items(generation: str, shard: Shard) -> ItemFile:
    """Return the items of a shard, whose generation's folder is given, without its embeddings.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged; names it.
    """
    path = _join(generation, items_name(shard.number))
    _check_size(path, shard.items)
    try:
        return ItemFile(read_tensors(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class Items(Sequence[Item]):
    """The items of an index, decoded when they are asked for."""

    def __init__(self, files: Sequence[ItemFile], starts: Sequence[int]):
        """Take the items of each shard, and the position of each shard's first item."""
        self._files = files
        self._starts = starts

    def __len__(self) -> int:
        """Return the number of items."""
        return self._starts[-1]

    def __getitem__(self, position: Any) -> Any:
        """Return the item at a position, or the list of those in a slice."""
        if isinstance(position, slice):
            return [self[p] for p in range(*position.indices(len(self)))]
        return self.record(position).item

    def __iter__(self) -> Iterator[Item]:
        """Yield all items; faster than one by one."""
        return (record.item for record in self.records())

    def record(self, position: int) -> Record:
        """Return an item with its picture's stamp."""
        wanted = int(position) + len(self) * (position < 0)
        if not 0 <= wanted < len(self):
            raise IndexError(f"position {position} in an index of {len(self)} images")
        shard = bisect.bisect_right(self._starts, wanted) - 1
        return self._files[shard].record(wanted - self._starts[shard])

    def records(self) -> Iterator[Record]:
        """Yield all items with their pictures' stamps."""
        return itertools.chain.from_iterable(file.records() for file in self._files)

    def position_of(self, name: str) -> int | None:
        """Return the position of the item with an id; None if there is none."""
        for file, start in zip(self._files, self._starts, strict=False):
            if (row := file.row_of(name)) is not None:
                return start + row
        return None


class StoredIndex:
    """A complete index. In a bucket, where nothing can be mapped, its files are read to memory.

    It stays usable when a newer generation is published.

    Attributes:
        folder: path of the index.
        manifest: its description.
        items: all items, decoded when they are asked for.
        parts: the embeddings, part by part: a read-only map of float32 or bfloat16 [L, n, D], or a
            `Quantized` of the same shape.
    """

    def __init__(self, folder: str | os.PathLike, manifest: Manifest | None = None):
        """Map the files; see `verify` for the checksums of their content.

        Args:
            folder: local or in a bucket.
            manifest: of a generation that is not published yet; None: the published one.

        Raises:
            FileNotFoundError: no index in the folder.
            ValueError: it is damaged; names the file and the remedy.
        """
        path = os.fspath(folder)
        self.folder = path if is_remote(path) else os.path.abspath(path)
        self.manifest, shards = _open(self.folder, manifest)
        starts = [0, *itertools.accumulate(len(shard.items) for shard in shards)]
        self.items = Items([shard.items for shard in shards], starts)
        self.parts: list[Part] = [shard.part for shard in shards if len(shard.items)]
        self._starts = [0, *itertools.accumulate(part.shape[1] for part in self.parts)]
        self._columns: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        """Return the number of images, N."""
        return self.manifest.count

    def __repr__(self) -> str:
        """Return folder, sizes, dtype and method."""
        about = self.manifest
        return (
            f"StoredIndex({self.folder!r}, images={len(self)}, levels={about.levels}, "
            f"width={about.width}, dtype={about.dtype!r}, variant={about.variant!r}, "
            f"backend={about.backend!r})"
        )

    @property
    def generation_folder(self) -> str:
        """Folder of the generation that is read."""
        return _join(self.folder, self.manifest.generation)

    @property
    def backend_folder(self) -> str:
        """Folder of the files that the search backend keeps; it need not exist."""
        return _join(self.generation_folder, self.manifest.backend)

    def item_at(self, position: int) -> Item:
        """Return the item at a position, 0 to N - 1."""
        return self.items[position]

    def position_of(self, name: str) -> int | None:
        """Return the position of the item with an id; None if there is none."""
        return self.items.position_of(name)

    def rows(self, positions: Sequence[int] | np.ndarray) -> Float32[np.ndarray, "L M D"]:
        """Return the embeddings of some images, in float32.

        Args:
            positions: [M] int, 0 to N - 1, in any order.

        Raises:
            IndexError: a position outside the index.
        """
        positions = np.asarray(positions, np.int64)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions {positions} in an index of {len(self)} images")
        shape = (self.manifest.levels, len(positions), self.manifest.width)
        rows = np.empty(shape, np.float32)
        owners = np.searchsorted(self._starts, positions, side="right") - 1
        for owner in np.unique(owners):
            here = np.flatnonzero(owners == owner)
            local = positions[here] - self._starts[owner]
            rows[:, here] = quantization.rows_of(self.parts[owner], local)
        return rows

    def column(self, field: str) -> np.ndarray:
        """Return a metadata field of all images, [N].

        Integers are int64 if all are known, and numbers are float64 with NaN for unknown ones; all
        else is an array of objects, with None for unknown ones. The first call reads the metadata
        of all items and keeps them.

        Raises:
            KeyError: there is no such field.
        """
        if self._columns is None:
            self._columns = self._read_columns()
        return self._columns[field]

    def check_model(self, fingerprint: str, name: str) -> None:
        """Refuse a model that did not embed these images.

        Args:
            fingerprint: `Trained.fingerprint` of the model.
            name: of the model, for the message, such as its workdir.

        Raises:
            ValueError: names both models and the remedy.
        """
        if fingerprint != self.manifest.fingerprint:
            raise ValueError(
                f"{self.folder} holds embeddings of another model: {self.manifest.model} with "
                f"fingerprint {self.manifest.fingerprint}, while {name} has {fingerprint}; name "
                "the index's model, or make an index of the other one in a new folder with cmap "
                "index"
            )

    def verify(self) -> None:
        """Compare the checksums of all files, with progress.

        Raises:
            ValueError: a file is damaged; names it and the remedy.
        """
        if bad := damaged_files(self.generation_folder, self.manifest.shards):
            raise ValueError(
                f"{bad[0]} is damaged: its checksum differs from the manifest's; make the index "
                "again in a new folder, or restore the file"
            )

    def _read_columns(self) -> dict[str, np.ndarray]:
        kinds = self.manifest.fields
        columns: dict[str, list[Any]] = {field: [] for field in kinds}
        for item in self.items if kinds else ():
            for field, values in columns.items():
                values.append(item.metadata.get(field))
        return {field: _to_array(values, kinds[field]) for field, values in columns.items()}


def damaged_files(generation: str, shards: Sequence[Shard]) -> list[str]:
    """Return the paths of a generation's files that are missing or have another checksum."""
    files = {_join(generation, n): f for shard in shards for n, f in shard.files.items()}
    with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
        sums = track(pool.map(_checksum, files), len(files), "checking", "files")
        return [
            path
            for (path, facts), crc in zip(files.items(), sums, strict=True)
            if crc != facts.crc32
        ]


def _open(folder: str, manifest: Manifest | None) -> tuple[Manifest, list[ShardFiles]]:
    """Return a manifest and its shards' files; a newer index is opened if one appears meanwhile."""
    for tries in range(1, _TRIES + 1):
        about = manifest or read_manifest(folder)
        generation = _join(folder, about.generation)
        try:
            return about, [ShardFiles(generation, shard, about) for shard in about.shards]
        except FileNotFoundError as error:
            replaced = manifest is None and read_manifest(folder).generation != about.generation
            if not replaced or tries == _TRIES:
                raise ValueError(
                    f"{folder} is damaged: {error.filename or error} is missing; make the index "
                    "again with cmap index --update"
                ) from error
    raise AssertionError("unreachable")


def _check_size(path: str, facts: FileFacts) -> None:
    size = epath.Path(path).stat().length if is_remote(path) else os.path.getsize(path)
    if size != facts.bytes:
        raise ValueError(f"{path} is damaged: it has {size} bytes, not {facts.bytes}")


def _to_array(values: list[Any], kind: str) -> np.ndarray:
    if kind == INTEGER and None not in values:
        return np.array(values, np.int64)
    if kind == NUMBER:
        return np.array([np.nan if v is None else v for v in values], np.float64)
    array = np.empty(len(values), object)  # `np.array` would make a matrix of equally long lists
    array[:] = values
    return array


def _checksum(path: str) -> int | None:
    """Return the CRC-32 of a file's bytes; None if there is no file."""
    check_regular_file(path)
    crc = 0
    try:
        with epath.Path(path).open("rb") as file:
            while block := file.read(_BLOCK):
                crc = zlib.crc32(block, crc)
    except FileNotFoundError:
        return None
    return crc


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
