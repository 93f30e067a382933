"""Temporary files and folders that are renamed to a result, and the removal of those left behind.

    with scratch(folder, is_folder=False, is_local=True) as temporary:
        temporary.write_bytes(content)
        temporary.replace(folder / "config.json")

A process that is killed leaves its temporary behind. The next one that makes a temporary in the
same folder removes it. Whoever works on a temporary holds a lock of the operating system on it,
which ends with the process: a temporary whose lock can be had belongs to nobody. Such locks are
seen on one machine alone; those of other machines, and of this one before it was started again, are
left in peace for a day.
"""

import contextlib
import functools
import hashlib
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator

from etils import epath

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where all temporaries are left in peace for a day
    fcntl = None

_AGE = 24 * 3600  # seconds without a change after which nobody works on a temporary any more
_NAME = re.compile(r"\.cmap-(?P<machine>[0-9a-f]{8})-[0-9a-f]{8}\.tmp")
_BOOT = "/proc/sys/kernel/random/boot_id"


@contextlib.contextmanager
def scratch(parent: epath.Path, *, is_folder: bool, is_local: bool) -> Iterator[epath.Path]:
    """Give an empty temporary, to be renamed in the block; if it is not, it is removed.

    Args:
        parent: folder in which it is made; made if it is missing.
        is_folder: whether it is a folder, and not a file.
        is_local: whether ``parent`` is no bucket, in which nothing is locked and nothing removed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    if is_local:
        remove_abandoned(parent)
    path, lock = _make(parent, is_folder, is_local and fcntl is not None)
    try:
        yield path
    finally:
        _remove(path)
        if lock is not None:
            os.close(lock)


def is_within(path: str) -> bool:
    """Tell whether a path is that of a temporary, or of something in one."""
    return any(_NAME.fullmatch(part) for part in path.split(os.sep))


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Remove the temporaries in a local folder whose processes have ended.

    One that cannot be removed, for want of a permission, is left where it is.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if match := _NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(epath.Path(entry.path), match["machine"] == _machine())


def _make(parent: epath.Path, is_folder: bool, is_locked: bool) -> tuple[epath.Path, int | None]:
    """Make a temporary, and return it with the open file that holds its lock, if there is one."""
    while True:
        path = parent / f".cmap-{_machine()}-{uuid.uuid4().hex[:8]}.tmp"
        if is_folder:
            path.mkdir()
        else:
            path.write_bytes(b"")
        if not is_locked:
            return path, None
        try:
            lock = _lock(path)
        except OSError:  # a file system without locks
            return path, None
        # Another process may have taken the temporary for abandoned before it was locked.
        if lock is not None:
            return path, lock


def _lock(path: epath.Path) -> int | None:
    """Return an open file that holds a temporary's lock; None if another has it, or it is gone.

    Raises:
        OSError: the file system has no such locks.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(file)
        raise
    os.close(file)
    return None


def _remove_if_abandoned(path: epath.Path, is_of_this_machine: bool) -> None:
    lock, is_old = None, time.time() - _last_change(path) > _AGE
    if is_of_this_machine and fcntl is not None:
        try:
            if (lock := _lock(path)) is None:
                return
            is_old = True
        except OSError:  # a file system without locks, where age decides
            pass
    if is_old:
        _remove(path)
    if lock is not None:
        os.close(lock)


def _last_change(path: epath.Path) -> float:
    """Return when a file, or anything at any depth of a folder, was changed, as a Unix time."""
    below = (os.path.join(parent, n) for parent, d, f in os.walk(path) for n in (*d, *f))
    return max(os.lstat(each).st_mtime for each in (path, *below))


def _remove(path: epath.Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """Return eight digits that differ between machines, and after each start of this one."""
    try:
        with open(_BOOT, encoding="ascii") as file:
            name = file.read()
    except OSError:
        name = platform.node()
    return hashlib.sha256(name.encode()).hexdigest()[:8]
