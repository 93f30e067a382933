"""Making an index of a catalogue's pictures, and bringing one up to date.

report = build_index(trained, "photographs", "INDEX", dtype="int8")
report = build_index(trained, "photographs", "INDEX", update=True)

Embeddings of earlier times are used again where a picture's file has not changed: those of the
index that is brought up to date, and those of a run that was stopped.
"""

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from cmap_jax.files import check_can_write, is_remote
from cmap_jax.retrieval.backends import DEFAULT, BackendEntry, find_backend, settings_of
from cmap_jax.retrieval.catalogue import Item, field_kinds, is_unicode, items_of
from cmap_jax.retrieval.embedding import ShardTask, make_tasks, write_shards
from cmap_jax.retrieval.index_files.form import (
    MANIFEST,
    Description,
    Manifest,
    Shard,
    generation_number,
    generations,
    read_manifest,
)
from cmap_jax.retrieval.index_files.item_files import Record
from cmap_jax.retrieval.index_files.quantization import FLOAT32
from cmap_jax.retrieval.index_files.reading import StoredIndex, damaged_files, read_items
from cmap_jax.retrieval.index_files.writing import (
    GenerationWriter,
    make_manifest,
    publish,
    read_generation,
    read_shards,
    remove_unfinished,
    same_report,
    unreadable_report,
)
from cmap_jax.retrieval.pictures import Entry, PictureEncoder, Source, embedding_shape
from cmap_jax.retrieval.rounding_loss import Loss, measure
from cmap_jax.temporaries import remove_abandoned
from cmap_jax.trained import Trained
from cmap_jax.workdir.lock import LOCK, WorkdirLock

_logger = logging.getLogger(__name__)

_SHOWN = 3  # examples in a message

# Writes the shards of a generation, given the index's folder, their writer and the shards.
WriteShards = Callable[[str, GenerationWriter, Sequence[ShardTask]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexReport:
    """The outcome of making an index or of bringing one up to date.

    Attributes:
        manifest: of the index.
        encoded: pictures that were encoded; the others' embeddings were known.
        removed: images of the index before that are no longer in it: deleted, or unreadable now.
        unreadable: path of the report on pictures that cannot be read; None if all can be.
        loss: the effect of rounding; None for float32, and where it could not be measured.
    """

    manifest: Manifest
    encoded: int
    removed: int
    unreadable: str | None
    loss: Loss | None


def describe(trained: Trained, dtype: str = FLOAT32) -> Description:
    """Return the description of an index of a model.

    Raises:
        ValueError: there is no such dtype, or the name of the model's workdir is not UTF-8.
    """
    if trained.workdir is not None and not is_unicode(trained.workdir):
        raise ValueError(f"{trained.workdir!a}: the name of this workdir is not UTF-8: rename it")
    levels, width = embedding_shape(trained)
    return Description(
        model=trained.workdir,
        fingerprint=trained.fingerprint,
        variant=trained.config.model.variant,
        levels=levels,
        width=width,
        dtype=dtype,
        preprocessing=trained.preprocessing,
    )


def check_destination(folder: str | os.PathLike, update: bool) -> Manifest | None:
    """Refuse a folder that an index cannot be written to, before a model is loaded.

    Returns:
        The manifest of the index that is to be brought up to date; None if there is none.

    Raises:
        OSError: it cannot be written.
        ValueError: it holds an index, without ``update``; or something else, or a damaged index.
    """
    check_can_write(folder)
    path = epath.Path(folder)
    if (path / MANIFEST).exists():
        manifest = read_manifest(folder)
        if not update:
            raise ValueError(
                f"{os.fspath(folder)} holds an index of {manifest.count:,} images already: bring "
                "it up to date (update, or --update), or name a new folder"
            )
        return manifest
    remove_abandoned(path)
    names = {p.name for p in path.iterdir()} if path.is_dir() else set()
    if any(not name.startswith(LOCK) for name in names) and not generations(folder):
        raise ValueError(f"{os.fspath(folder)} holds other files; name a new folder")
    return None


def build_index(
    trained: Trained,
    images: str | os.PathLike | Sequence[Item],
    folder: str | os.PathLike,
    *,
    dtype: str | None = None,
    update: bool = False,
    backend: str | None = None,
    settings: Mapping[str, Any] | None = None,
    write: WriteShards | None = None,
) -> IndexReport:
    """Embed a catalogue's pictures into an index, with progress.

    A run that was stopped goes on where it stopped. The index appears, or replaces the one before,
    when it is complete. Pictures that cannot be read are left out and listed in a report.

    Args:
        trained: the model.
        images: a folder of pictures, a list file, or items; see `catalogue.items_of`.
        folder: a new folder, or one of an index that is to be brought up to date.
        dtype: float32, bfloat16 or int8; None: that of the index before, or else float32.
        update: whether an index in the folder is brought up to date: new and changed pictures are
            embedded, deleted ones dropped, and damaged or missing files made again.
        backend: a key of `BACKENDS`, for which the index is prepared; None: that of the index
            before, or else the default.
        settings: values of the backend's settings, by name; the others are those of the index
            before, if it has the same backend, or else the defaults.
        write: embeds and writes the shards; None: this process does.

    Raises:
        FileNotFoundError: no pictures.
        OSError: the folder cannot be written, is in use, or its disk is too small.
        ValueError: `check_destination` refuses the folder, the index before has another model or
            dtype, or no picture can be read; says what, and the remedy.
    """
    folder = _absolute(folder)
    before = check_destination(folder, update)
    _choose_backend(folder, before, backend, settings)
    items = items_of(images)
    fields = field_kinds(items)
    with WorkdirLock(folder, flag="") as lock:
        # Another run may have ended since the folder was looked at.
        before = check_destination(folder, update)
        chosen = _choose_backend(folder, before, backend, settings)
        description = describe(trained, dtype or (before.dtype if before else FLOAT32))
        _check_fits(folder, description, before)
        known = _known_embeddings(folder, description, before)
        entries = [_entry(item, known.embeddings) for item in items]
        _check_room(folder, description, sum(entry.source is None for entry in entries))
        writer = GenerationWriter(folder, description)
        tasks = make_tasks(entries, description)
        (write or _write_here(trained))(folder, writer, tasks)
        manifest = make_manifest(
            writer,
            _complete_shards(writer, tasks),
            fields=fields,
            backend=chosen.name,
            settings=dataclasses.asdict(chosen.settings),
        )
        encoded = writer.encoded()
        left_out = {entry.id for entry in writer.left_out()}
        same = _same_content(before, manifest) and same_report(folder, before, writer)
        if same and not known.damaged and _intact(folder, before, chosen):
            remove_unfinished(folder, before)
            manifest = before
        else:
            manifest = _prepare(folder, manifest, trained, chosen)
            lock.check()
            publish(folder, manifest)
    return IndexReport(
        manifest=manifest,
        encoded=encoded,
        removed=len(known.published - {item.id for item in items if item.id not in left_out}),
        unreadable=unreadable_report(folder, manifest),
        loss=None if manifest.loss is None else Loss(**manifest.loss),
    )


class _Chosen(NamedTuple):
    """The search backend that an index is prepared for, with its settings."""

    name: str
    entry: BackendEntry
    settings: Any


def _choose_backend(
    folder: str, before: Manifest | None, name: str | None, values: Mapping[str, Any] | None
) -> _Chosen:
    """Return a backend, or that of the index before; refuse one that cannot serve the index."""
    if before is not None and name in (None, before.backend):
        name, values = before.backend, {**before.settings, **(values or {})}
    name = name or DEFAULT
    chosen = _Chosen(name, find_backend(name), settings_of(name, values or {}))
    chosen.entry.check(chosen.settings, folder)
    return chosen


def _prepare(folder: str, manifest: Manifest, trained: Trained, chosen: _Chosen) -> Manifest:
    """Measure a generation's loss, and let the backend write its files; return its manifest."""
    stored = StoredIndex(folder, manifest)
    loss = None if manifest.dtype == FLOAT32 else measure(trained, stored)
    chosen.entry.build(stored, chosen.settings, stored.backend_folder)
    return dataclasses.replace(manifest, loss=loss and dataclasses.asdict(loss))


class _Known(NamedTuple):
    """The embeddings of earlier times.

    Attributes:
        embeddings: where one is, and the record of its picture, by the item's id.
        published: ids of the index before.
        damaged: whether some of its files cannot be used.
    """

    embeddings: dict[str, tuple[Source, Record]]
    published: set[str]
    damaged: bool


def _known_embeddings(folder: str, description: Description, before: Manifest | None) -> _Known:
    """Return the embeddings of the index before and of newer generations that are unfinished."""
    known = _Known({}, set(), False)
    for name in generations(folder):
        if before is not None and generation_number(name) < generation_number(before.generation):
            continue  # it is there for servers alone
        is_published = before is not None and name == before.generation
        if not is_published and not _is_of(folder, name, description):
            continue
        path = f"{folder.rstrip('/')}/{name}"
        shards = before.shards if is_published else read_shards(path)
        bad = set(damaged_files(path, shards))
        whole = [s for s in shards if not any(f"{path}/{file}" in bad for file in s.files)]
        if bad:
            _logger.warning("%s is damaged; its pictures are embedded again", ", ".join(bad))
            known = known._replace(damaged=known.damaged or is_published)
        for shard in whole:
            for row, record in enumerate(read_items(path, shard).records()):
                if record.stamp is not None:
                    source = Source(name, shard.number, row)
                    known.embeddings[record.item.id] = (source, record)
                if is_published:
                    known.published.add(record.item.id)
    return known


def _is_of(folder: str, generation: str, description: Description) -> bool:
    """Tell whether an unfinished generation has the embeddings that a description asks for."""
    other = read_generation(folder, generation)
    return other is not None and other.same_numbers(description)


def _entry(item: Item, known: Mapping[str, tuple[Source, Record]]) -> Entry:
    """Return the entry of an item; a picture under another path is compared by its content."""
    if item.id not in known:
        return Entry(item)
    source, record = known[item.id]
    stamp = record.stamp
    if record.item.image != item.image:
        stamp = stamp._replace(modified=None)
    return Entry(item, source, stamp)


def _write_here(trained: Trained) -> WriteShards:
    """Return the function that embeds in this process, on all of its devices."""

    def write(folder: str, writer: GenerationWriter, tasks: Sequence[ShardTask]) -> None:
        write_shards(folder, writer, tasks, PictureEncoder(trained))

    return write


def _complete_shards(writer: GenerationWriter, tasks: Sequence[ShardTask]) -> list[Shard]:
    """Return the shards of a generation, all of which must have been written.

    Raises:
        OSError: some were not.
        ValueError: none has a picture.
    """
    shards = writer.shards()
    if missing := {task.number for task in tasks} - {shard.number for shard in shards}:
        raise OSError(f"{len(missing)} of {len(tasks)} shards were not written; run it again")
    if not any(shard.count for shard in shards):
        reason = "; ".join(f"{entry.image}: {entry.reason}" for entry in writer.left_out()[:_SHOWN])
        writer.remove()
        raise ValueError(f"none of the pictures can be read, such as {reason}")
    return shards


def _same_content(before: Manifest | None, manifest: Manifest) -> bool:
    """Tell whether an index that was brought up to date is the one before."""
    if before is None:
        return False
    own = ("generation", "created", "loss")
    return dataclasses.replace(manifest, **{n: getattr(before, n) for n in own}) == before


def _intact(folder: str, before: Manifest, chosen: _Chosen) -> bool:
    """Tell whether the backend's files of an index can still be opened."""
    if chosen.entry.intact(StoredIndex(folder, before), chosen.settings):
        return True
    _logger.warning("the files of the backend %s are damaged; they are made again", chosen.name)
    return False


def _check_fits(folder: str, description: Description, before: Manifest | None) -> None:
    """Refuse to mix embeddings of two models, or of two dtypes, in one folder."""
    others = [] if before else [read_generation(folder, name) for name in generations(folder)]
    for other in [before, *others]:
        if other is None or other.same_numbers(description):
            continue
        state = "holds an index" if before else "holds an unfinished index"
        if other.fingerprint != description.fingerprint:
            raise ValueError(
                f"{folder} {state} of another model ({other.model}, fingerprint "
                f"{other.fingerprint}, not {description.fingerprint}); name that model, or a new "
                "folder"
            )
        raise ValueError(
            f"{folder} {state} of dtype {other.dtype}, not {description.dtype}; keep that dtype, "
            "or name a new folder"
        )


def _check_room(folder: str, description: Description, count: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    if is_remote(folder):
        return
    nearest = epath.Path(folder)
    while not nearest.exists():
        nearest = nearest.parent
    free, needed = shutil.disk_usage(nearest).free, count * description.image_bytes
    if needed > free:
        raise OSError(
            f"{folder}: {needed / 1e9:,.1f} GB are still to be written, and {free / 1e9:,.1f} GB "
            "are free; name a folder on another disk, or a smaller dtype"
        )


def _absolute(folder: str | os.PathLike) -> str:
    path = os.fspath(folder)
    return path.rstrip("/") if is_remote(path) else os.path.abspath(path)
