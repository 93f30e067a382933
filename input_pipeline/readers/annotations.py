"""What all readers ask of an annotation file, in the same words.

Annotations come from anywhere, so nothing in them is trusted: a name that climbs out of the image
folder is refused here, and a link that leads out of it by `image_check.check_images`.
"""

import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cmap_jax.files import is_remote
from input_pipeline import storage
from input_pipeline.records import DataError

_LONGEST_NAME = 255  # bytes of one part of a path, on every common file system
_LONGEST_PATH = 1024  # bytes, in a bucket
# Control characters, halves of surrogate pairs, ends of lines and paragraphs.
_IN_NO_NAME = {"Cc", "Cs", "Zl", "Zp"}
_SAMPLE = 50  # images looked for to find the folder layout
_SHOWN = 80  # characters of a value in an error
_LONGEST_TEXT = 2_000  # characters; the longest caption of any data set here has a few hundred

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif"),
)


def check_folders(directory: str, image_directory: str | None) -> tuple[str, str]:
    """Return the folder of the annotations and that of the images, by default the same.

    Raises:
        FileNotFoundError: one is not there; names it and the field that sets it.
    """
    folders = (directory, image_directory or directory)
    for folder, field in zip(folders, ("directory", "image_directory"), strict=True):
        if not storage.is_folder(folder):
            raise FileNotFoundError(f"{folder}: no such folder; set --config.data.{field}")
    return folders


def read_entries(file: str, keys: Mapping[str, type | tuple[type, ...]] | None) -> list[Any]:
    """Return the entries of a JSON list, each an object with some keys; None: anything.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON list of such objects, or empty; names the file and the entry.
    """
    entries = storage.read_json(file)
    if not isinstance(entries, list) or not entries:
        what = "annotations" if keys else "image ids"
        raise DataError(f"{file}: must be a list of {what}, not {shown(entries)}")
    for number, entry in enumerate(entries):
        if keys is not None:
            check_keys(entry, keys, f"{file}: entry {number}")
    return entries


def check_keys(entry: Any, keys: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    """Refuse an entry that is no object or lacks a key of the right type."""
    if not isinstance(entry, dict):
        raise DataError(f"{where} is not an object but {shown(entry)}")
    for key, kind in keys.items():
        value = entry.get(key)
        # JSON's true is no number.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = " or ".join(_NAMES[k] for k in (kind if isinstance(kind, tuple) else (kind,)))
            found = f"it is {shown(value)}" if key in entry else "there is none"
            raise DataError(f"{where} must have {names} under {key!r}; {found}")


_NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def check_path(value: Any, where: str) -> str:
    """Return an image's id or relative path, which stays inside its folder.

    Raises:
        DataError: not a text, empty, absolute, climbing out with "..", the name of a folder, or no
            possible file name.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: an image is named by a text, not by {shown(value)}")
    parts = value.split("/")
    if value.startswith("/") or is_remote(value) or "\\" in value:
        raise DataError(f"{where}: {shown(value)} is no path relative to the image folder")
    if ".." in parts:
        raise DataError(f"{where}: {shown(value)} climbs out of the image folder")
    if parts[-1] in ("", "."):
        raise DataError(f"{where}: {shown(value)} names a folder, not an image")
    # Spaces of other scripts are not "printable", but names of real files hold them.
    if not value.isprintable() and _IN_NO_NAME & set(map(unicodedata.category, value)):
        raise DataError(f"{where}: {shown(value)} holds characters that no file name has")
    encoded = value.encode()
    if len(encoded) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        raise DataError(f"{where}: {shown(value)} is too long for a file name")
    return value


def check_caption(value: Any, where: str) -> str:
    """Return a caption; it may be empty.

    Raises:
        DataError: not a text, or of absurd length.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: a caption is a text, not {shown(value)}")
    if len(value) > _LONGEST_TEXT:
        raise DataError(f"{where}: a caption of {len(value)} characters")
    # Halves of surrogate pairs can be written in JSON, but in no file.
    return value.encode("utf-8", "replace").decode()


def check_unique(ids: Iterable[Any], file: str, what: str) -> None:
    """Refuse an id that two entries have: it would answer for both."""
    seen = set()
    for i in ids:
        if i in seen:
            raise DataError(f"{file}: two entries have the {what} {shown(i)}")
        seen.add(i)


def read_image_list(file: str) -> tuple[str, ...]:
    """Return a JSON list of image ids, each once."""
    ids = read_entries(file, None)
    return tuple(
        dict.fromkeys(check_path(i, f"{file}: entry {number}") for number, i in enumerate(ids))
    )


def find_images(
    ids: Iterable[str], folders: Sequence[str], suffixes: Sequence[str] = ("",)
) -> dict[str, str]:
    """Return the place of each id's file that is found: ``<folder>/<id><suffix>``.

    Folders are listed once each, which on a network is far cheaper than asking for every file.
    Earlier folders go first, then earlier suffixes.
    """
    listed: dict[str, set[str]] = {}
    found = {}
    for i in ids:
        for folder in folders:
            inside, _, name = i.rpartition("/")
            parent = storage.join(folder, inside) if inside else folder
            if parent not in listed:
                listed[parent] = set(storage.names(parent))
            suffix = next((s for s in suffixes if name + s in listed[parent]), None)
            if suffix is not None:
                found[i] = storage.join(folder, i + suffix)
                break
    return found


def find_base(bases: Sequence[str], paths: Iterable[str]) -> str:
    """Return the folder that paths start from: the one that has most of a sample of them."""
    sample = list(itertools.islice(paths, _SAMPLE))
    return max(bases, key=lambda base: sum(storage.exists(storage.join(base, p)) for p in sample))


def shown(value: Any) -> str:
    """Return a value as an error shows it: never longer than a line, never unprintable."""
    if isinstance(value, list | dict):  # of any size, and nested more deeply than Python can print
        return f"{_NAMES[type(value)]} of length {len(value)}"
    text = ascii(value[:_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
