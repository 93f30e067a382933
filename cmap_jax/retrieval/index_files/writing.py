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
    is_remote,
    read_json,
    scratch_folder,
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
    generation_number,
    generations,
    items_name,
    marker_name,
    next_generation,
    vectors_name,
)
from cmap_jax.retrieval.index_files.item_files import Record
from cmap_jax.retrieval.index_files.quantization import Part

_LEFT_OUT, _ENCODED = "left_out", "encoded"  # keys of a marker beside the shard's own


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
        encoded: int = 0,
    ) -> Shard:
        """Write a shard, whatever was there before.

        Args:
            number: position among the generation's shards.
            records: its N items.
            part: their embeddings as they are stored, [L, N, D].
            left_out: pictures of the shard that cannot be read.
            encoded: number of its pictures that were encoded now, for the record.

        Raises:
            ValueError: embeddings of another shape or dtype than described, or not finite.
        """
        self._check(part, records)
        vectors = tensors.to_bytes(quantization.to_arrays(part))
        facts = self._write(vectors_name(number), vectors)
        return self._finish(number, records, facts, left_out, encoded)

    def write_unchanged(
        self,
        number: int,
        records: Sequence[Record],
        generation: str,
        shard: Shard,
        left_out: Iterable[Unreadable] = (),
    ) -> Shard:
        """Write a shard whose embeddings are those of an earlier generation's shard, in its order.

        Where the file system has hard links, both generations then have one file.
        """
        old = self._folder.parent / generation / vectors_name(shard.number)
        new = self._folder / vectors_name(number)
        if not _link(old, new):
            write_bytes(new, old.read_bytes())
        return self._finish(number, records, shard.vectors, left_out)

    def shards(self) -> list[Shard]:
        """Return all complete shards, in order."""
        return read_shards(self._folder)

    def encoded(self) -> int:
        """Return how many pictures were encoded for the complete shards."""
        return sum(marker.encoded for marker in _markers(self._folder))

    def left_out(self) -> list[Unreadable]:
        """Return the pictures that the complete shards lack."""
        return [entry for marker in _markers(self._folder) for entry in marker.left_out]

    def remove(self) -> None:
        """Remove all that was written."""
        self._folder.rmtree(missing_ok=True)

    def _finish(
        self,
        number: int,
        records: Sequence[Record],
        vectors: FileFacts,
        left_out: Iterable[Unreadable],
        encoded: int = 0,
    ) -> Shard:
        """Write the items of a shard, and then the marker that makes it complete."""
        items = self._write(items_name(number), tensors.to_bytes(item_files.to_arrays(records)))
        left_out = [entry._asdict() for entry in left_out]
        shard = Shard(
            number=number,
            count=len(records),
            unreadable=len(left_out),
            vectors=vectors,
            items=items,
        )
        content = {**dataclasses.asdict(shard), _LEFT_OUT: left_out, _ENCODED: encoded}
        write_json(self._folder / marker_name(number), content)
        return shard

    def _write(self, name: str, content: bytes) -> FileFacts:
        write_bytes(self._folder / name, content)
        return FileFacts(bytes=len(content), crc32=zlib.crc32(content))

    def _check(self, part: Part, records: Sequence[Record]) -> None:
        about = self.description
        shape, expected = tuple(part.shape), (about.levels, len(records), about.width)
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
    return [marker.shard for marker in _markers(generation)]


def read_shard(generation: str | os.PathLike, number: int) -> Shard:
    """Return a complete shard of a generation's folder."""
    return _marker(epath.Path(generation) / marker_name(number)).shard


def read_generation(folder: str | os.PathLike, name: str) -> Description | None:
    """Return the description of a generation, complete or not; None for one that has none yet."""
    path = epath.Path(folder) / name / GENERATION
    return Description.from_dict(read_json(path)) if path.exists() else None


def publish(folder: str | os.PathLike, manifest: Manifest) -> None:
    """Make a complete generation the index, and remove all others but the one before.

    That one is left for servers that still read it; they should have changed over by the next
    update.
    """
    folder = epath.Path(folder)
    before = _published(folder)
    if report := _report(folder, manifest.generation):
        write_text(folder / manifest.generation / UNREADABLE, report)
    write_json(folder / MANIFEST, manifest.to_dict())
    for name in generations(folder):
        if name not in (manifest.generation, before):
            (folder / name).rmtree(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike, manifest: Manifest) -> None:
    """Remove all generations that are newer than the published one."""
    for name in generations(folder):
        if generation_number(name) > generation_number(manifest.generation):
            (epath.Path(folder) / name).rmtree(missing_ok=True)


def same_report(folder: str | os.PathLike, manifest: Manifest, writer: GenerationWriter) -> bool:
    """Tell whether an index's report on pictures that cannot be read is that of a new generation.

    Args:
        folder: of the index.
        manifest: of the index.
        writer: of the new generation, which is complete.
    """
    path = unreadable_report(folder, manifest)
    old = epath.Path(path).read_text() if path and epath.Path(path).exists() else ""
    return old == _report(folder, writer.name)


def unreadable_report(folder: str | os.PathLike, manifest: Manifest) -> str | None:
    """Return the path of the report on pictures that cannot be read; None if all can be."""
    path = epath.Path(folder) / manifest.generation / UNREADABLE
    return os.fspath(path) if manifest.unreadable else None


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

    The folder is not locked: nothing else may write there meanwhile.

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


def _report(folder: str | os.PathLike, generation: str) -> str:
    """Return the report on the pictures that a generation lacks; empty if it lacks none."""
    markers = _markers(epath.Path(folder) / generation)
    left_out = [entry._asdict() for marker in markers for entry in marker.left_out]
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in left_out)


class _Marker(NamedTuple):
    """The content of a complete shard's marker."""

    shard: Shard
    left_out: list[Unreadable]
    encoded: int


def _markers(generation: str | os.PathLike) -> list[_Marker]:
    """Return the markers of all complete shards, in order."""
    folder = epath.Path(generation)
    names = [path.name for path in folder.iterdir()]
    names = [name for name in names if name.startswith("shard-") and name.endswith(".json")]
    return sorted((_marker(folder / name) for name in names), key=lambda m: m.shard.number)


def _marker(path: epath.Path) -> _Marker:
    fields = read_json(path)
    left_out, encoded = [Unreadable(**e) for e in fields.pop(_LEFT_OUT)], fields.pop(_ENCODED)
    return _Marker(Shard.from_dict(fields), left_out, encoded)


def _link(old: epath.Path, new: epath.Path) -> bool:
    """Give a file a second name, which replaces another file; return whether that is possible."""
    if is_remote(old):
        return False
    try:
        with scratch_folder(new) as scratch:
            os.link(old, scratch / new.name)
            (scratch / new.name).replace(new)
    except OSError:  # a file system without hard links
        return False
    return True


def _published(folder: epath.Path) -> str | None:
    """Return the name of the generation that is the index, or None."""
    path = folder / MANIFEST
    return read_json(path).get("generation") if path.exists() else None
