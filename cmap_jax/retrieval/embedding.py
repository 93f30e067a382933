"""The shards of an index's generation: planned, embedded and written, by one process or many.

A shard depends on its own entries alone: whoever writes it, and whenever, it has the same bytes.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from cmap_jax.files import is_remote
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.progress import track
from cmap_jax.retrieval.index_files import quantization
from cmap_jax.retrieval.index_files.form import (
    MANIFEST,
    Description,
    Manifest,
    Shard,
    read_manifest,
)
from cmap_jax.retrieval.index_files.item_files import Record
from cmap_jax.retrieval.index_files.quantization import Part
from cmap_jax.retrieval.index_files.reading import ShardFiles
from cmap_jax.retrieval.index_files.writing import GenerationWriter, Unreadable, read_shard
from cmap_jax.retrieval.pictures import Entry, Picture, PictureEncoder, Source, read_ahead

_OPEN_SHARDS = 8  # shards of earlier generations that are kept open


class ShardTask(NamedTuple):
    """The entries of a shard, one or more, and its number."""

    number: int
    entries: Sequence[Entry]


class EmbeddedShard(NamedTuple):
    """A shard whose pictures the devices encode.

    Attributes:
        number: of the shard.
        records: its n items.
        sources: of each item, where its embedding is known from; None for one that is encoded.
        batches: the others' embeddings, [L, B, D] each, and how many of its rows are in use.
        left_out: pictures that cannot be read.
    """

    number: int
    records: list[Record]
    sources: list[Source | None]
    batches: list[tuple[jax.Array, int]]
    left_out: list[Unreadable]


def make_tasks(entries: Sequence[Entry], description: Description) -> list[ShardTask]:
    """Cut a catalogue's entries into the shards of a generation."""
    size = description.rows_per_shard
    starts = range(0, len(entries), size)
    return [ShardTask(n, entries[start : start + size]) for n, start in enumerate(starts)]


def write_shards(
    folder: str | os.PathLike,
    writer: GenerationWriter,
    tasks: Sequence[ShardTask],
    encoder: PictureEncoder,
    *,
    shown: bool = True,
) -> None:
    """Embed and write shards; a thread writes one while the next is encoded.

    Args:
        folder: of the index, whose earlier generations have the known embeddings.
        writer: of the new generation.
        tasks: shards that are to be written.
        encoder: of the model.
        shown: whether progress is shown.

    Raises:
        OSError: the disk is full, or a bucket cannot be reached.
        ValueError: an embedding that is not finite.
    """
    folder = os.fspath(folder)
    published = read_manifest(folder) if (epath.Path(folder) / MANIFEST).exists() else None
    open_known = functools.lru_cache(_OPEN_SHARDS)(
        functools.partial(_open, folder, writer.description, published)
    )
    embedded = _embed(tasks, writer.description.preprocessing, encoder, shown)
    with (
        contextlib.closing(embedded) as shards,
        concurrent.futures.ThreadPoolExecutor(1, "shards") as thread,
    ):
        pending: concurrent.futures.Future[Shard] | None = None
        for shard in shards:
            if pending is not None:
                pending.result()
            pending = thread.submit(_write, writer, shard, open_known)
        if pending is not None:
            pending.result()


def _embed(
    tasks: Sequence[ShardTask],
    preprocessing: ImagePreprocessing,
    encoder: PictureEncoder,
    shown: bool,
) -> Iterator[EmbeddedShard]:
    """Yield shards; pictures of the next ones are decoded meanwhile."""
    entries = [entry for task in tasks for entry in task.entries]
    remote = any(is_remote(entry.item.image) for entry in entries)
    pictures = read_ahead(entries, preprocessing, remote)
    if shown:
        pictures = track(pictures, len(entries), "embedding", "pictures")
    for task in tasks:
        yield _encode(task.number, itertools.islice(pictures, len(task.entries)), encoder)
    next(pictures, None)  # ends the threads and the line of progress


def _encode(number: int, pictures: Iterator[Picture], encoder: PictureEncoder) -> EmbeddedShard:
    """Begin to encode a shard's pictures, a batch at a time; none has pictures of two shards."""
    shard = EmbeddedShard(number, records=[], sources=[], batches=[], left_out=[])
    pixels: list[np.ndarray] = []
    for picture in pictures:
        if picture.reason is not None:
            shard.left_out.append(_unreadable(picture))
            continue
        known = picture.pixels is None
        shard.records.append(Record(picture.entry.item, picture.stamp))
        shard.sources.append(picture.entry.source if known else None)
        if not known:
            pixels.append(picture.pixels)
        if len(pixels) == encoder.batch:
            shard.batches.append((encoder(pixels), len(pixels)))
            pixels = []
    if pixels:
        shard.batches.append((encoder(pixels), len(pixels)))
    return shard


class _Known(NamedTuple):
    """A shard of an earlier generation."""

    facts: Shard
    part: Part


_OpenKnown = Callable[[str, int], _Known]  # by the names of generations and the numbers of shards


def _open(
    folder: str,
    description: Description,
    published: Manifest | None,
    generation: str,
    number: int,
) -> _Known:
    """Map a shard of an earlier generation: of the published one, or of an unfinished one."""
    path = f"{folder.rstrip('/')}/{generation}"
    is_published = published is not None and published.generation == generation
    facts = published.shards[number] if is_published else read_shard(path, number)
    return _Known(facts, ShardFiles(path, facts, description).part)


def _write(writer: GenerationWriter, shard: EmbeddedShard, open_known: _OpenKnown) -> Shard:
    """Write a shard when its pictures are encoded."""
    if (whole := _whole_shard(shard, open_known)) is not None:
        generation = shard.sources[0].generation
        return writer.write_unchanged(
            shard.number, shard.records, generation, whole, shard.left_out
        )
    part = _assemble(shard, writer.description, open_known)
    encoded = sum(count for _, count in shard.batches)
    return writer.write(shard.number, shard.records, part, shard.left_out, encoded)


def _assemble(shard: EmbeddedShard, description: Description, open_known: _OpenKnown) -> Part:
    """Return a shard's embeddings, as they are stored, in the order of its items."""
    levels, width = description.levels, description.width
    encoded = [np.asarray(rows)[:, :count] for rows, count in shard.batches]
    encoded = np.concatenate([np.zeros((levels, 0, width), np.float32), *encoded], axis=1)
    parts = [quantization.to_part(encoded, description.dtype)]
    order = [[p for p, source in enumerate(shard.sources) if source is None]]
    owners: dict[tuple[str, int], list[int]] = {}
    for position, source in enumerate(shard.sources):
        if source is not None:
            owners.setdefault(source[:2], []).append(position)
    for owner, positions in owners.items():
        rows = np.array([shard.sources[p].row for p in positions])
        parts.append(quantization.take(open_known(*owner).part, rows))
        order.append(positions)
    back = np.argsort(np.concatenate(order).astype(np.int64), kind="stable")
    return quantization.take(quantization.join(parts), back)


def _whole_shard(shard: EmbeddedShard, open_known: _OpenKnown) -> Shard | None:
    """Return the one earlier shard that has exactly a shard's embeddings in its order, or None."""
    if None in shard.sources or len({source[:2] for source in shard.sources}) != 1:
        return None
    facts = open_known(*shard.sources[0][:2]).facts
    in_order = [source.row for source in shard.sources] == list(range(facts.count))
    return facts if in_order else None


def _unreadable(picture: Picture) -> Unreadable:
    """Return an entry of the report; letters that are none are shown as escapes."""
    texts = (picture.entry.item.id, picture.entry.item.image, picture.reason)
    return Unreadable(*(text.encode("utf-8", "backslashreplace").decode() for text in texts))
