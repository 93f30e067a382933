"""The record of a backend that keeps files beside the embeddings.

GENERATION/faiss/faiss.json is written when everything that it names is complete. It names the
embeddings that the rest was made from, by the checksums of their files.
"""

import os
import shlex
from collections.abc import Mapping
from typing import Any

from cmap_jax.files import check_can_write, is_remote, read_json, write_json
from cmap_jax.retrieval.index_files.reading import StoredIndex

_FORMAT = 1


def backend_folder(stored: StoredIndex, name: str) -> str:
    """Return the folder of a backend's files in the generation that is read."""
    return os.path.join(stored.generation_folder, name)


def record_path(folder: str, name: str) -> str:
    """Return the path of the record in a backend's folder."""
    return os.path.join(folder, f"{name}.json")


def check_folder(folder: str, name: str) -> None:
    """Refuse a folder that a backend's files cannot be written to, before the long work.

    Raises:
        OSError: it cannot be written.
        ValueError: it is in a bucket.
    """
    if is_remote(folder):
        raise ValueError(f"{folder}: the backend {name} keeps its files on a disk: name a folder")
    check_can_write(folder)


def write_record(folder: str, name: str, stored: StoredIndex, fields: Mapping[str, Any]) -> None:
    """Write a backend's record atomically.

    Args:
        folder: of the backend.
        name: of the backend.
        stored: the embeddings that it was made from.
        fields: further JSON values.
    """
    record = {"format": _FORMAT, "vectors": _vectors(stored), **fields}
    write_json(record_path(folder, name), record)


def read_record(stored: StoredIndex, name: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """Read the record of a backend.

    Args:
        stored: the embeddings that it must belong to.
        name: of the backend.
        fields: type of each further value.

    Raises:
        FileNotFoundError: the index was made without this backend.
        ValueError: the record is broken, or belongs to other embeddings.
    """
    file = record_path(backend_folder(stored, name), name)
    remedy = again(stored, name)
    if not os.path.exists(file):
        raise FileNotFoundError(
            f"{file}: no such file: the index was made without the backend {name}; {remedy}"
        )
    try:
        record = read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error
    types = {"format": int, "vectors": list, **fields}
    if not isinstance(record, dict) or any(type(record.get(f)) is not t for f, t in types.items()):
        raise ValueError(f"{file} is damaged: it is no record of {name}; {remedy}")
    if record["format"] != _FORMAT:
        raise ValueError(f"{file} has form {record['format']}, not {_FORMAT}; {remedy}")
    if record["vectors"] != _vectors(stored):
        raise ValueError(f"{file} belongs to other embeddings than the index has; {remedy}")
    return record


def again(stored: StoredIndex, name: str, setting: str = "") -> str:
    """Return the remedy for a backend's files that are missing, damaged or foreign.

    Args:
        stored: the embeddings, which stay as they are.
        name: of the backend.
        setting: one that the files do not have, as NAME=VALUE.
    """
    changed = f" --set {setting}" if setting else ""
    return (
        f"make them again with cmap index --update --backend {name}{changed} --out "
        f"{shlex.quote(stored.folder)}, and --images or --list as before"
    )


def _vectors(stored: StoredIndex) -> list[int]:
    """Return the checksums of the files of embeddings."""
    return [shard.vectors.crc32 for shard in stored.manifest.shards]
