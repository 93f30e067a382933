"""Checks of annotation files and searches for images that all readers share.

Annotations come from anywhere, so nothing in them is trusted: a name that climbs out of the image
folder is refused here, and a link that leads out of it by `images.check.check_images`.
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
_SAMPLE = 50  # images whose files are looked for to recognize the folder layout
_SHOWN = 80  # characters of a value in an error
_LONGEST_TEXT = 2_000  # characters; the longest caption of any data set here has a few hundred

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif"),
)


def check_folders(directory: str, image_directory: str | None) -> tuple[str, str]:
    """Return the folder of the annotations and the folder of the images, by default the same.

    Raises:
        FileNotFoundError: one does not exist; names it and the field that sets it.
    """
    folders = (directory, image_directory or directory)
    for folder, field in zip(folders, ("directory", "image_directory"), strict=True):
        if not storage.is_folder(folder):
            raise FileNotFoundError(f"{folder}: no such folder; set --config.data.{field}")
    return folders


def read_entries(file: str, keys: Mapping[str, type | tuple[type, ...]] | None) -> list[Any]:
    """Return the entries of a JSON list.

    Args:
        file: path of the file.
        keys: keys that each entry, an object, must have, with the types of their values; None:
            entries may be anything.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON list of such objects, or empty; names the file and the entry.
    """
    entries = storage.read_json(file)
    if not isinstance(entries, list) or not entries:
        content = "annotations" if keys else "image ids"
        raise DataError(f"{file}: must be a list of {content}, not {shown(entries)}")
    for number, entry in enumerate(entries):
        if keys is not None:
            check_keys(entry, keys, f"{file}: entry {number}")
    return entries


def check_keys(entry: Any, keys: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    """Refuse an entry that is no object or lacks a key of the right type.

    Args:
        entry: any content of a JSON file.
        keys: keys that it must have, with the types of their values.
        where: file and entry, which begin the message.

    Raises:
        DataError: says what is missing or wrong.
    """
    if not isinstance(entry, dict):
        raise DataError(f"{where} is not an object but {shown(entry)}")
    for key, kind in keys.items():
        value = entry.get(key)
        # JSON's true is no number.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = " or ".join(_NAMES[k] for k in (kind if isinstance(kind, tuple) else (kind,)))
            problem = f"it is {shown(value)}" if key in entry else "there is none"
            raise DataError(f"{where} must have {names} under {key!r}; {problem}")


_NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def check_path(value: Any, where: str) -> str:
    """Return an image's id or relative path after checking that it stays inside its folder.

    Args:
        value: any content of an annotation file.
        where: file and entry, which begin the message.

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
    """Return a caption, which may be empty, as text that can be written to a file.

    Args:
        value: any content of an annotation file.
        where: file and entry, which begin the message.

    Raises:
        DataError: not a text, or of absurd length.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: a caption is a text, not {shown(value)}")
    if len(value) > _LONGEST_TEXT:
        raise DataError(f"{where}: a caption of {len(value)} characters")
    # Halves of surrogate pairs can be written in JSON, but in no file.
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def check_unique(ids: Iterable[Any], file: str, key: str) -> None:
    """Refuse an id that two entries share, as a result could not be assigned to either.

    Args:
        ids: one id an entry.
        file: path of the file.
        key: key of the id in an entry, for the message.

    Raises:
        DataError: names the id.
    """
    seen = set()
    for i in ids:
        if i in seen:
            raise DataError(f"{file}: two entries have the {key} {shown(i)}")
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
    """Return the path of each id's file that exists: ``<folder>/<id><suffix>``.

    Folders are listed once each, which on a network is far cheaper than asking for every file.

    Args:
        ids: image ids, which may be relative paths.
        folders: folders to search; earlier ones take precedence.
        suffixes: suffixes to try in a folder; earlier ones take precedence.
    """
    listed: dict[str, set[str]] = {}
    paths = {}
    for i in ids:
        for folder in folders:
            inside, _, name = i.rpartition("/")
            parent = storage.join(folder, inside) if inside else folder
            if parent not in listed:
                listed[parent] = set(storage.names(parent))
            suffix = next((s for s in suffixes if name + s in listed[parent]), None)
            if suffix is not None:
                paths[i] = storage.join(folder, i + suffix)
                break
    return paths


def find_base(bases: Sequence[str], paths: Iterable[str]) -> str:
    """Return the one of some folders that has most of a sample of relative paths."""
    sample = list(itertools.islice(paths, _SAMPLE))
    return max(bases, key=lambda base: sum(storage.exists(storage.join(base, p)) for p in sample))


def shown(value: Any) -> str:
    """Return a value as an error shows it: never longer than a line, never unprintable."""
    if isinstance(value, list | dict):  # such a value may be nested too deeply to be printed
        return f"{_NAMES[type(value)]} of length {len(value)}"
    text = ascii(value[:_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
