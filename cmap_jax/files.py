"""Reading and writing whole files, local or in a bucket; each write is atomic."""

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

from etils import epath

from cmap_jax import temporaries

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


def expand(path: str) -> str:
    """Return a path with ``~``, ``~user``, ``$NAME`` and ``${NAME}`` replaced, as a shell does it.

    A shell does not expand them in ``--flag=~/x``, and nothing expands them in a config file. A
    path that exists under its literal name, and whose mark cannot be expanded, is returned
    unchanged.

    Raises:
        ValueError: no such user or variable; names it.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    unset = [
        name for groups in _VARIABLE.findall(path) if (name := "".join(groups)) not in os.environ
    ]
    if (unset or expanded.startswith("~")) and os.path.exists(path):
        return path
    if unset:
        raise ValueError(f"{path}: the variable {unset[0]} is not set")
    if expanded.startswith("~"):
        raise ValueError(f"{path}: there is no user {expanded.partition('/')[0]}")
    return expanded


def is_remote(path: str | os.PathLike) -> bool:
    """Tell whether a path names something in a bucket: it has a scheme, as ``gs://bucket/a``."""
    return "://" in os.fspath(path)


def check_regular_file(path: str | os.PathLike) -> None:
    """Refuse a pipe, a device or a socket, whose reading could wait for ever or have no end.

    A path with nothing there and a folder are accepted: opening them fails at once. A link is
    followed, and a file in a bucket is always regular.

    Raises:
        ValueError: it is no regular file; names it.
        OSError: it cannot be looked at, for want of a permission.
    """
    if is_remote(path):
        return
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = next((name for is_kind, name in _NOT_REGULAR if is_kind(mode)), "a device")
        raise ValueError(
            f"{os.fspath(path)}: is {kind}, not a regular file; put a copy of its content there"
        )


# Functions of a file's mode, and the name of the kind of file for which they are true.
_NOT_REGULAR = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def check_regular_files(folder: str | os.PathLike) -> None:
    """Check a local folder's files at any depth, as `check_regular_file` does.

    For folders that another library reads, such as a checkpoint.

    Raises:
        ValueError: one of them is no regular file; names it.
    """
    if is_remote(folder):
        return
    for parent, _, names in os.walk(folder):
        for name in names:
            check_regular_file(os.path.join(parent, name))


def read_bytes(path: str | os.PathLike) -> bytes:
    """Return a regular file's content.

    Raises:
        FileNotFoundError: no such file; names it.
        ValueError: no regular file; see `check_regular_file`.
    """
    check_regular_file(path)
    return epath.Path(path).read_bytes()


def read_text(path: str | os.PathLike) -> str:
    """Return a UTF-8 file's text.

    Raises:
        FileNotFoundError: no such file; names it.
        ValueError: not UTF-8, or no regular file; names the file.
    """
    return decode_text(read_bytes(path), path)


def read_json(path: str | os.PathLike) -> Any:
    """Return a JSON file's content.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or no regular file; names the file.
    """
    return parse_json(read_text(path), path)


def decode_text(content: bytes, path: str | os.PathLike) -> str:
    """Return the text of a UTF-8 file's bytes; raises as `read_text` does."""
    try:
        # Programs on Windows begin files with a byte-order mark, which is not part of the text.
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)}: not UTF-8 at byte {error.start}") from error


def parse_json(text: str, path: str | os.PathLike) -> Any:
    """Return the content of a JSON file's text; raises as `read_json` does."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{os.fspath(path)}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{os.fspath(path)}: JSON nested too deeply") from error
    except ValueError as error:  # Python refuses numbers of thousands of digits
        raise ValueError(f"{os.fspath(path)}: not JSON: {error}") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file atomically, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """Write a file under a temporary name, then rename it; missing parent folders are made.

    The content is flushed to the disk before the rename: after a power cut there is either the old
    file or the new one, complete.
    """
    path = epath.Path(path)
    with _naming(path), scratch_file(path) as scratch:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            if not is_remote(path):
                os.fsync(file.fileno())
        scratch.replace(path)


@contextlib.contextmanager
def _naming(path: str | os.PathLike) -> Iterator[None]:
    """Name the result in an error of the system about its temporary, or about no path at all."""
    try:
        yield
    except OSError as error:
        named = os.fspath(error.filename or "") if not isinstance(error.filename, int) else ""
        if error.errno is not None and (not named or temporaries.is_within(named)):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def scratch_file(path: str | os.PathLike) -> contextlib.AbstractContextManager[epath.Path]:
    """Give an empty temporary file beside ``path``; see `temporaries.scratch`."""
    parent = epath.Path(path).parent
    return temporaries.scratch(parent, is_folder=False, is_local=not is_remote(path))


def scratch_folder(path: str | os.PathLike) -> contextlib.AbstractContextManager[epath.Path]:
    """Give an empty temporary folder beside ``path``; see `temporaries.scratch`."""
    parent = epath.Path(path).parent
    return temporaries.scratch(parent, is_folder=True, is_local=not is_remote(path))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a JSON file in the form of `format_json`."""
    # A path whose bytes are no UTF-8 has characters that UTF-8 lacks; JSON's escapes keep them.
    write_bytes(path, (format_json(value) + "\n").encode("utf-8", "backslashreplace"))


def format_json(value: Any) -> str:
    """Return JSON, indented, with keys in their order; a list of scalars takes one line."""
    return _PLAIN_LIST.sub(_join_lines, json.dumps(value, indent=2, ensure_ascii=False))


# JSON escapes line breaks inside strings: a bracket before a line break always opens a list.
_PLAIN_LIST = re.compile(r"\[\n\s*([^\[\]{}]*?)\n\s*\]")


def _join_lines(match: re.Match) -> str:
    return "[" + re.sub(r",\n\s*", ", ", match[1]) + "]"


def check_can_write(folder: str | os.PathLike) -> None:
    """Refuse a folder that cannot be made or written into, before its content is computed.

    Raises:
        OSError: a file or a missing permission is in the way; names it.
    """
    if is_remote(folder):
        return  # only a write shows whether a bucket can be written
    folder = epath.Path(folder).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{folder}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{folder}: no permission to write into {nearest}; ask its owner for it, or name "
            "another folder"
        )
    try:  # permissions do not tell of a full disk, a quota or a file that may not be changed
        with scratch_file(nearest / "check"):
            pass
    except OSError as error:
        raise type(error)(error.errno, error.strerror, os.fspath(folder)) from error


@contextlib.contextmanager
def complete_folder(path: str | os.PathLike) -> Iterator[epath.Path]:
    """Give a temporary folder beside ``path``; it is renamed to ``path`` at the end of the block.

    After an error in the block the temporary folder is removed and ``path`` is not made.

    Raises:
        OSError: ``path`` is a file, or a folder that is not empty.
    """
    with _naming(path), scratch_folder(path) as scratch:
        yield scratch
        scratch.rename(path)
