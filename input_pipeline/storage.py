"""Folders and files of a data set, on this machine or in a bucket.

A place is a string. What has a scheme (``gs://``, ``s3://``, ``ram://``) goes through
`tf.io.gfile`; the rest through the standard library, so that readers need no TensorFlow.
"""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from cmap_jax import files
from cmap_jax.files import is_remote
from cmap_jax.processing.image_files import check_image_stream, find_traits
from cmap_jax.processing.images import explain_os_error

# Bytes. The largest image as raw RGB; the longest published annotations are a tenth of it.
_LARGEST = 1 << 28
_NOT_A_FILE = "not a file"
_MESSAGE = 200  # characters of TensorFlow's messages, which may hold a server's whole answer


def join(folder: str, *parts: str) -> str:
    """Return a place below a folder."""
    return "/".join([folder.rstrip("/") or folder, *parts])


def is_folder(place: str) -> bool:
    """Tell whether there is a folder."""
    if not is_remote(place):
        return os.path.isdir(place)
    found = _remote_stat(place)
    return found is not None and found.is_directory


def exists(place: str) -> bool:
    """Tell whether there is a file or folder."""
    return _remote_stat(place) is not None if is_remote(place) else os.path.exists(place)


def names(folder: str) -> list[str]:
    """Return the names of what is in a folder, in their own order; none if there is no folder."""
    if not is_folder(folder):
        return []
    if not is_remote(folder):
        return sorted(os.listdir(folder))
    with _gfile(folder) as gfile:
        return sorted(name.rstrip("/") for name in gfile.listdir(folder))


def walk(folder: str) -> list[str]:
    """Return every file below a folder as a path relative to it, in a fixed order.

    Links to folders are not followed: they could lead out of the folder, or in circles.
    """
    if is_remote(folder):
        with _gfile(folder) as gfile:
            found = list(gfile.walk(folder))
    else:
        found = os.walk(folder)
    start = len(folder.rstrip("/"))
    return sorted(join(top, name)[start:].strip("/") for top, _, here in found for name in here)


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
        OSError: no regular file (reading a pipe would not end), absurdly large, or it cannot be
            opened; names it.
    """
    if is_remote(place):
        found = _remote_stat(place)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
        regular, size = not found.is_directory, found.length
    else:
        status = os.stat(place)
        regular, size = stat.S_ISREG(status.st_mode), status.st_size
    if not regular:
        raise OSError(errno.EINVAL, _NOT_A_FILE, place)
    if size > _LARGEST:
        raise OSError(errno.EFBIG, f"{size} bytes, the largest file read is {_LARGEST}", place)
    if not is_remote(place):
        return open(place, "rb")
    with _gfile(place) as gfile, gfile.GFile(place, "rb") as file:
        return io.BytesIO(file.read())  # a stream of the standard library's kind, as PIL expects


def check_image(place: str) -> str | None:
    """Return why an image file cannot be used, or None; see `check_image_stream`."""
    try:
        with open_file(place) as file:
            return check_image_stream(file)
    except FileNotFoundError:
        return "missing: a link to nothing" if os.path.islink(place) else "missing"
    except OSError as error:
        reason = explain_os_error(error)
        return reason if reason == _NOT_A_FILE else f"unreadable: {reason}"


def image_traits(place: str) -> frozenset[str]:
    """Return what is special about an image file; see `find_traits`."""
    try:
        with open_file(place) as file:
            return find_traits(file)
    except OSError:
        return frozenset()


@contextlib.contextmanager
def _gfile(place: str) -> Iterator[Any]:
    """Give `tf.io.gfile`; what it raises becomes an `OSError` of one line that names the place."""
    import tensorflow as tf  # only here: seconds to load, and a local folder does not need it

    try:
        yield tf.io.gfile
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place) from error
    except tf.errors.OpError as error:
        message = " ".join(error.message.split())[:_MESSAGE]
        raise OSError(errno.EIO, message or type(error).__name__, place) from error


def _remote_stat(place: str) -> Any:
    """Return size and kind of what is there, or None."""
    try:
        with _gfile(place) as gfile:
            return gfile.stat(place)
    except FileNotFoundError:
        return None
