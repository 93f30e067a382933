"""Folders and files of a data set, on this machine or in a bucket.

A place is a string. What has a scheme (``gs://``, ``s3://``, ``ram://``) goes through
`tf.io.gfile`; the rest through the standard library, so that readers need no TensorFlow.
"""

import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from cmap_jax.processing import files
from cmap_jax.processing.images import check_image_stream, explain_os_error


def is_remote(place: str) -> bool:
    """Tell whether a place is somewhere that only `tf.io.gfile` reaches."""
    return "://" in place


def _gfile() -> Any:
    import tensorflow as tf  # only here: seconds to load, and a local folder does not need it

    return tf.io.gfile


def join(folder: str, *parts: str) -> str:
    """Return a place below a folder."""
    return "/".join([folder.rstrip("/") or folder, *parts])


def is_folder(place: str) -> bool:
    """Tell whether there is a folder."""
    return _gfile().isdir(place) if is_remote(place) else os.path.isdir(place)


def exists(place: str) -> bool:
    """Tell whether there is a file or folder."""
    return _gfile().exists(place) if is_remote(place) else os.path.exists(place)


def names(folder: str) -> list[str]:
    """Return the names of what is in a folder, in their own order; none if there is no folder."""
    if not is_folder(folder):
        return []
    if is_remote(folder):
        return sorted(name.rstrip("/") for name in _gfile().listdir(folder))
    return sorted(os.listdir(folder))


def walk(folder: str) -> Iterator[str]:
    """Yield every file below a folder as a path relative to it, in a fixed order.

    Links to folders are not followed: they could lead out of the folder, or in circles.
    """
    if is_remote(folder):
        found = ((top, folders, files) for top, folders, files in _gfile().walk(folder))
    else:
        found = os.walk(folder)
    for top, folders, here in found:
        folders.sort()  # os.walk goes on in this order
        inside = top[len(folder.rstrip("/")) :].strip("/")
        yield from (f"{inside}/{name}" if inside else name for name in sorted(here))


def read_bytes(place: str) -> bytes:
    """Return a file's bytes.

    Raises:
        FileNotFoundError: no such file; names it.
        OSError: it cannot be read; names it.
    """
    with open_file(place) as file:
        return file.read()


def read_text(place: str) -> str:
    """Return a UTF-8 file's text.

    Raises:
        FileNotFoundError: no such file; names it.
        ValueError: not UTF-8; names the file and the byte.
    """
    return files.decode_text(read_bytes(place), place)


def read_json(place: str) -> Any:
    """Return a JSON file's content.

    Raises:
        FileNotFoundError: no such file; names it.
        ValueError: not JSON; names the file, line and column.
    """
    return files.parse_json(read_text(place), place)


def open_file(place: str) -> BinaryIO:
    """Open a file for reading bytes.

    Raises:
        FileNotFoundError: no such file; names it.
        OSError: it cannot be opened; names it.
    """
    if not is_remote(place):
        return open(place, "rb")
    if not _gfile().exists(place):
        raise FileNotFoundError(f"{place}: no such file")
    if _gfile().isdir(place):
        raise IsADirectoryError(f"{place}: is a folder")
    import tensorflow as tf

    try:
        # A stream of the standard library's kind, as PIL expects it.
        with tf.io.gfile.GFile(place, "rb") as file:
            return io.BytesIO(file.read())
    except tf.errors.OpError as error:
        raise OSError(f"{place}: {error.message}") from error


def check_image(place: str) -> str | None:
    """Return why an image file cannot be used, or None; see `check_image_stream`."""
    try:
        if not exists(place):
            return "missing: a link to nothing" if os.path.islink(place) else "missing"
        if not (is_remote(place) or os.path.isfile(place)):
            return "not a file"
        with open_file(place) as file:
            return check_image_stream(file)
    except OSError as error:
        return f"unreadable: {explain_os_error(error)}"
