"""Writing a generation of an index, shard by shard, and publishing it.

writer = GenerationWriter("INDEX", description)
writer.write(0, records, embeddings)
publish("INDEX", manifest)

A shard's marker is written after its files, and the manifest after all shards: a kill at any moment
leaves the index that was there before, and the complete shards of the new one.
"""

import dataclasses
import datetime
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from cmap_jax.files import (
    check_can_write,
    read_json,
    write_bytes,
    write_json,
    write_text,
)
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.retrieval.catalogue import Item, field_kinds
from cmap_jax.retrieval.index_files import item_files, quantization, tensors
from cmap_jax.retrieval.index_files.form import (
    GENERATION,
    MANIFEST,
    UNREADABLE,
    Description,
    FileFacts,
    Manifest,
    Shard,
    generations,
    items_name,
    marker_name,
    next_generation,
    vectors_name,
)
from cmap_jax.retrieval.index_files.item_files import Record
from cmap_jax.retrieval.index_files.quantization import Part

_LEFT_OUT = "left_out"  # key of a marker


class Unreadable(NamedTuple):
    """A picture of the catalogue that cannot be read."""

    id: str
    image: str
    reason: str


class GenerationWriter:
    """Writes the shards of a generation; several processes may write one, each its own shards."""

    def __init__(
        self, folder: str | os.PathLike, description: Description, name: str | None = None
    ):
        """Begin a generation, or go on in one.

        Args:
            folder: of the index.
            description: of the generation.
            name: a generation that another writer has begun; None: a new one.

        Raises:
            OSError: the folder cannot be written.
        """
        check_can_write(folder)
        self.name = name or next_generation(folder)
        self.description = description
        self._folder = epath.Path(folder) / self.name
        if name is None:
            write_json(self._folder / GENERATION, description.to_dict())

    def write(
        self,
        number: int,
        records: Sequence[Record],
        part: Part,
        left_out: Iterable[Unreadable] = (),
    ) -> Shard:
        """Write a shard, whatever was there before.

        Args:
            number: position among the generation's shards.
            records: its N items.
            part: their embeddings as they are stored, [L, N, D].
            left_out: pictures of the shard that cannot be read.

        Raises:
            ValueError: embeddings of another shape or dtype than described, or not finite.
        """
        self._check(part, len(records), records)
        content = {
            vectors_name(number): tensors.to_bytes(quantization.to_arrays(part)),
            items_name(number): tensors.to_bytes(item_files.to_arrays(records)),
        }
        for name, data in content.items():
            write_bytes(self._folder / name, data)
        vectors, items = (FileFacts(bytes=len(d), crc32=zlib.crc32(d)) for d in content.values())
        return self._mark(number, len(records), list(left_out), vectors=vectors, items=items)

    def shards(self) -> list[Shard]:
        """Return all complete shards, in order."""
        return read_shards(self._folder)

    def _mark(
        self, number: int, count: int, left_out: list[Unreadable], **files: FileFacts
    ) -> Shard:
        shard = Shard(number=number, count=count, unreadable=len(left_out), **files)
        content = {**dataclasses.asdict(shard), _LEFT_OUT: [u._asdict() for u in left_out]}
        write_json(self._folder / marker_name(number), content)
        return shard

    def _check(self, part: Part, count: int, records: Sequence[Record]) -> None:
        about = self.description
        shape, expected = tuple(part.shape), (about.levels, count, about.width)
        if shape != expected or part.dtype.name != about.dtype:
            raise ValueError(
                f"embeddings of {part.dtype.name} {shape}, not of {about.dtype} {expected}"
            )
        numbers = part.scales if isinstance(part, quantization.Quantized) else part
        finite = np.isfinite(numbers.astype(np.float32, copy=False))
        finite = finite.all(axis=(0, *range(2, finite.ndim)))
        if not finite.all():
            bad = records[int(np.argmin(finite))].item
            raise ValueError(f"the embedding of {bad.image} is not finite: the model is broken")


def read_shards(generation: str | os.PathLike) -> list[Shard]:
    """Return the complete shards of a generation's folder, in order."""
    return [Shard.from_dict(fields) for fields, _ in _markers(generation)]


def publish(folder: str | os.PathLike, manifest: Manifest) -> str | None:
    """Make a complete generation the index, and remove all others but the one before.

    That one is left for servers that still read it; they should have changed over by the next
    update.

    Returns:
        Path of the report on pictures that cannot be read; None if all can be.
    """
    folder = epath.Path(folder)
    before = _published(folder)
    report = folder / manifest.generation / UNREADABLE
    lines = [json.dumps(entry) for _, left in _markers(report.parent) for entry in left]
    if lines:
        write_text(report, "\n".join(lines) + "\n")
    write_json(folder / MANIFEST, manifest.to_dict())
    for name in generations(folder):
        if name not in (manifest.generation, before):
            (folder / name).rmtree(missing_ok=True)
    return os.fspath(report) if lines else None


def make_manifest(
    writer: GenerationWriter,
    shards: Sequence[Shard],
    *,
    fields: Mapping[str, str],
    backend: str,
    settings: Mapping[str, Any],
    loss: Mapping[str, Any] | None = None,
) -> Manifest:
    """Return the manifest of a generation; arguments are `Manifest`'s fields."""
    about = writer.description
    return Manifest(
        **{field.name: getattr(about, field.name) for field in dataclasses.fields(Description)},
        generation=writer.name,
        count=sum(shard.count for shard in shards),
        shards=tuple(shards),
        fields=dict(fields),
        backend=backend,
        settings=dict(settings),
        loss=loss,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def write_index(
    folder: str | os.PathLike,
    items: Sequence[Item],
    embeddings: Float[np.ndarray, "L N D"],
    *,
    fingerprint: str,
    variant: str,
    model: str | None = None,
    dtype: str = quantization.FLOAT32,
    preprocessing: ImagePreprocessing | None = None,
    backend: str = "exact",
) -> Manifest:
    """Write an index of embeddings that are in memory; it replaces the one in the folder.

    Args:
        folder: a new folder, or that of an index.
        items: N items.
        embeddings: their embeddings, float32.
        fingerprint: as `Description` has it, as have the arguments below.
        variant: of the model.
        model: path of the model's workdir.
        dtype: in which the embeddings are stored.
        preprocessing: how the pictures were read; None: the defaults.
        backend: name of the search backend, which must keep no files.
    """
    levels, count, width = embeddings.shape
    if count != len(items):
        raise ValueError(f"{len(items)} items, but embeddings {embeddings.shape}")
    description = Description(
        model=model,
        fingerprint=fingerprint,
        variant=variant,
        levels=levels,
        width=width,
        dtype=dtype,
        preprocessing=preprocessing or ImagePreprocessing(),
    )
    writer = GenerationWriter(folder, description)
    size = description.rows_per_shard
    for number, start in enumerate(range(0, count, size)):
        rows = slice(start, start + size)
        part = quantization.to_part(embeddings[:, rows], dtype)
        writer.write(number, [Record(item, None) for item in items[rows]], part)
    fields = field_kinds(items)
    manifest = make_manifest(writer, writer.shards(), fields=fields, backend=backend, settings={})
    publish(folder, manifest)
    return manifest


def _markers(generation: str | os.PathLike) -> list[tuple[dict[str, Any], list[dict]]]:
    """Return the fields of each complete shard, in order, and the pictures that it lacks."""
    folder = epath.Path(generation)
    names = (path.name for path in folder.iterdir())
    markers = []
    for name in sorted(n for n in names if n.startswith("shard-") and n.endswith(".json")):
        fields = read_json(folder / name)
        markers.append((fields, fields.pop(_LEFT_OUT)))
    return sorted(markers, key=lambda marker: marker[0]["number"])


def _published(folder: epath.Path) -> str | None:
    """Return the name of the generation that is the index, or None."""
    path = folder / MANIFEST
    return read_json(path).get("generation") if path.exists() else None
