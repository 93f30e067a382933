"""Folders and files of a data set, on this machine or in a bucket.

A path is a string. Paths with a scheme (``gs://``, ``s3://``, ``ram://``) go through `tf.io.gfile`,
all others through the standard library, so that readers need no TensorFlow.
"""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from cmap_jax import files
from cmap_jax.files import is_remote
from cmap_jax.processing.image_files import check_image_stream, find_traits
from cmap_jax.processing.images import explain_os_error
from input_pipeline import digests

_LARGEST = 1 << 28  # bytes: the largest image as raw RGB; published annotations are far smaller
_NOT_A_FILE = "not a file"
_MESSAGE = 200  # characters of TensorFlow's messages, which may hold a server's whole answer


def join(folder: str, *parts: str) -> str:
    """Return a path below a folder."""
    return "/".join([folder.rstrip("/") or folder, *parts])


def is_folder(path: str) -> bool:
    """Tell whether there is a folder."""
    if not is_remote(path):
        return os.path.isdir(path)
    status = _remote_stat(path)
    return status is not None and status.is_directory


def exists(path: str) -> bool:
    """Tell whether there is a file or folder."""
    return _remote_stat(path) is not None if is_remote(path) else os.path.exists(path)


def names(folder: str) -> list[str]:
    """Return the sorted names of a folder's files and folders; none if there is no folder."""
    if not is_folder(folder):
        return []
    if not is_remote(folder):
        return sorted(os.listdir(folder))
    with _gfile(folder) as gfile:
        return sorted(name.rstrip("/") for name in gfile.listdir(folder))


def walk(folder: str) -> list[str]:
    """Return every file below a folder as a path relative to it, sorted.

    Links to folders are not followed: they could lead out of the folder, or in circles.
    """
    if is_remote(folder):
        with _gfile(folder) as gfile:
            levels = list(gfile.walk(folder))
    else:
        levels = os.walk(folder)
    start = len(folder.rstrip("/"))
    return sorted(
        join(top, name)[start:].strip("/") for top, _, files_ in levels for name in files_
    )


def read_bytes(path: str) -> bytes:
    """Return a file's bytes.

    Raises:
        FileNotFoundError: no such file; names it.
        OSError: it cannot be read; names it.
    """
    with open_file(path) as file:
        return file.read()


def read_text(path: str) -> str:
    """Return a UTF-8 file's text.

    Raises:
        FileNotFoundError: no such file; names it.
        ValueError: not UTF-8; names the file and the byte.
    """
    return files.decode_text(read_bytes(path), path)


def read_json(path: str) -> Any:
    """Return a JSON file's content.

    Raises:
        FileNotFoundError: no such file; names it.
        ValueError: not JSON; names the file, line and column.
    """
    return files.parse_json(read_text(path), path)


def open_file(path: str) -> BinaryIO:
    """Open a file for reading bytes.

    Raises:
        FileNotFoundError: no such file; names it.
        OSError: no regular file (reading a pipe would not end), absurdly large, or it cannot be
            opened; names it.
    """
    if is_remote(path):
        remote = _remote_stat(path)
        if remote is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        regular, size = not remote.is_directory, remote.length
    else:
        local = os.stat(path)
        regular, size = stat.S_ISREG(local.st_mode), local.st_size
    if not regular:
        raise OSError(errno.EINVAL, _NOT_A_FILE, path)
    if size > _LARGEST:
        raise OSError(errno.EFBIG, f"{size} bytes, the largest file read is {_LARGEST}", path)
    if not is_remote(path):
        return open(path, "rb")
    with _gfile(path) as gfile, gfile.GFile(path, "rb") as file:
        return io.BytesIO(file.read())  # a stream of the standard library's kind, as PIL expects


def check_image(path: str) -> str | None:
    """Return why an image file cannot be used, or None; see `check_image_stream`."""
    return _check_image(path, check_image_stream)


def check_and_digest(path: str) -> tuple[str | None, bytes]:
    """Return what `check_image` does, and the digest of the file, which is read once for both."""
    digest = b""

    def check(file: BinaryIO) -> str | None:
        nonlocal digest
        digest = digests.of_file(file)
        return check_image_stream(file)

    return _check_image(path, check), digest


def image_traits(path: str) -> frozenset[str]:
    """Return the unusual properties of an image file, see `find_traits`; none if unreadable."""
    try:
        with open_file(path) as file:
            return find_traits(file)
    except OSError:
        return frozenset()


def _check_image(path: str, check: Callable[[BinaryIO], str | None]) -> str | None:
    """Return what a function says of an open image file, or why it cannot be opened."""
    try:
        with open_file(path) as file:
            return check(file)
    except FileNotFoundError:
        return "missing: a link to nothing" if os.path.islink(path) else "missing"
    except OSError as error:
        reason = explain_os_error(error)
        return reason if reason == _NOT_A_FILE else f"unreadable: {reason}"


@contextlib.contextmanager
def _gfile(path: str) -> Iterator[Any]:
    """Give `tf.io.gfile`; its errors become an `OSError` of one line that names the path."""
    import tensorflow as tf  # only here: seconds to load, and a local folder does not need it

    try:
        yield tf.io.gfile
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    except tf.errors.OpError as error:
        message = " ".join(error.message.split())[:_MESSAGE]
        raise OSError(errno.EIO, message or type(error).__name__, path) from error


def _remote_stat(path: str) -> Any:
    """Return the size and kind of a file or folder in a bucket, or None."""
    try:
        with _gfile(path) as gfile:
            return gfile.stat(path)
    except FileNotFoundError:
        return None
