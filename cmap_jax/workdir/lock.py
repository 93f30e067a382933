"""The lock on a workdir: one run at a time, with the owner's name and heartbeat.

`filelock` is no substitute. Its leases know no buckets; a contender must itself watch a stale lease
for a whole minute before it may take it over; a loss shows at the second heartbeat after it, and
not at the next check; and its file does not say since when, or with which last heartbeat, a run
is at work.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from cmap_jax.files import is_remote
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.lock_owner import (
    STALE,
    is_alive,
    is_of_this_system,
    parse,
    start_of,
    system,
)

_logger = logging.getLogger(__name__)

LOCK = "run.lock"
_INTERVAL = 10.0  # seconds between two heartbeats
# Seconds for which a lock that seems stale is watched: the clocks of two hosts may differ, and a
# living run changes its lock within an interval.
_WATCH = 1.5 * _INTERVAL


class WorkdirInUse(OSError):  # noqa: N818
    """Another run is at work in the workdir."""


@contextlib.contextmanager
def lock_workdir(workdir: str | os.PathLike) -> Iterator["WorkdirLock | None"]:
    """Hold a workdir's lock for all processes of a run; where it is refused, all of them end.

    Args:
        workdir: folder to lock, local or in a bucket; made if it does not exist.

    Yields:
        The lock in process 0, None in the others.

    Raises:
        WorkdirInUse: another run holds the lock; names it, in process 0.
        OSError: the folder cannot be written, or process 0 could not take the lock.
    """
    with contextlib.ExitStack() as stack:
        lock, refused = None, None
        if jax.process_index() == 0:
            try:
                lock = stack.enter_context(WorkdirLock(workdir))
            except OSError as error:
                refused = error
        if jax.process_count() > 1:
            is_refused = multihost_utils.broadcast_one_to_all(np.asarray(refused is not None))
            if is_refused and refused is None:
                refused = OSError(f"process 0 could not lock {os.fspath(workdir)}, and says why")
        if refused is not None:
            raise refused
        yield lock


class WorkdirLock:
    """Holds the file ``run.lock`` in a workdir while a run is at work there.

    The file names the host, the process and the time of the last heartbeat, which a thread renews.
    A lock is stale, and is taken over, if its process no longer exists on this system or, on any
    other system, if its last heartbeat is a minute from now by this system's clock and no other
    comes while the lock is watched. A run that was merely suspended for so long learns from `check`
    that it has lost the lock.
    """

    def __init__(self, workdir: str | os.PathLike, flag: str = "--workdir=..."):
        """Prepare; nothing is written before `__enter__`.

        Args:
            workdir: folder to lock, local or in a bucket; made if it does not exist.
            flag: chooses another folder, for the message of a refusal; empty: there is none.
        """
        self._path = workdir_lib.absolute(workdir) / LOCK
        self._other_folder = f"another folder with {flag}" if flag else "another folder"
        self._token = uuid.uuid4().hex
        self._started = time.time()
        self._made_folder = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="workdir lock", daemon=True)

    def __enter__(self) -> "WorkdirLock":
        """Take the lock.

        Raises:
            WorkdirInUse: another run holds it; names host, process, start and last heartbeat.
            OSError: the folder cannot be written.
        """
        self._made_folder = not self._path.parent.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create():
            owner = self._read()
            if owner is not None and is_alive(owner):
                raise WorkdirInUse(self._refusal(owner))
            if owner is not None and not is_of_this_system(owner):
                self._watch(owner)
            _logger.warning("%s was left by a run that was killed; it is taken over", self._path)
            is_removed = owner is None or self._remove(owner)
            if not (is_removed and self._create()):
                raise WorkdirInUse(self._refusal(self._read() or {}))
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Release the lock, and remove a folder that was made for it and is still empty."""
        self._ended.set()
        self._thread.join()
        if self._is_ours():
            self._path.unlink(missing_ok=True)
        if self._made_folder and not is_remote(self._path):  # a bucket has no folders
            with contextlib.suppress(OSError):  # the run has written there
                os.rmdir(self._path.parent)

    def check(self) -> None:
        """Refuse to continue if another run has taken over the lock.

        Raises:
            WorkdirInUse: names the other run.
        """
        if not self._is_ours():
            raise WorkdirInUse(
                "this run had no heartbeat for a minute, and its lock was taken over: "
                + self._refusal(self._read() or {})
            )

    def _is_ours(self) -> bool:
        return (self._read() or {}).get("token") == self._token

    def _create(self) -> bool:
        """Write the lock file unless there is one."""
        if is_remote(self._path):
            # A bucket has no exclusive creation: of two runs in the same second, the last wins.
            if self._path.exists():
                return False
            self._path.write_text(self._content())
            return True
        try:
            with open(self._path, "x") as file:
                file.write(self._content())
        except FileExistsError:
            return False
        return True

    def _watch(self, owner: dict[str, Any]) -> None:
        """Refuse a lock whose heartbeat seems stale, and is renewed within some seconds.

        Args:
            owner: content of the lock.

        Raises:
            WorkdirInUse: the lock has changed.
        """
        _logger.warning(
            "%s seems to be left by a run that was killed elsewhere; it is watched for %.0f s, "
            "since the clocks may differ",
            self._path,
            _WATCH,
        )
        end = time.monotonic() + _WATCH
        while time.monotonic() < end:
            time.sleep(_WATCH / 15)
            now = self._read()
            if now is not None and now != owner:
                raise WorkdirInUse(self._refusal(now))

    def _remove(self, owner: dict[str, Any]) -> bool:
        """Remove a stale lock, and return whether it is gone.

        A lock that yet another run has put in its place is left there.

        Args:
            owner: content of the stale lock.
        """
        aside = epath.Path(f"{self._path}.{self._token}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return True
        if parse(aside).get("token") != owner.get("token"):
            aside.rename(self._path)
            return False
        aside.unlink(missing_ok=True)
        return True

    def _content(self) -> str:
        return json.dumps(
            {
                "host": socket.gethostname(),
                "system": system(),
                "process": os.getpid(),
                "process_started": start_of(os.getpid()),
                "started": self._started,
                "alive": time.time(),
                "token": self._token,
            }
        )

    def _read(self) -> dict[str, Any] | None:
        """Return the content of the lock file, or None if there is no file."""
        try:
            return parse(self._path)
        except FileNotFoundError:
            return None

    def _renew(self) -> None:
        """Write a heartbeat every few seconds, until the lock is released or lost."""
        scratch = epath.Path(f"{self._path}.{self._token}")
        while not self._ended.wait(_INTERVAL):
            try:
                if not self._is_ours():
                    return  # the loop's thread learns of the loss from `check`
                scratch.write_text(self._content())
                scratch.replace(self._path)
            except OSError as error:  # a full disk, which ends the run at its next checkpoint
                _logger.warning("%s could not be renewed: %s", self._path, error)
                with contextlib.suppress(OSError):
                    scratch.unlink(missing_ok=True)

    def _refusal(self, owner: dict[str, Any]) -> str:
        """Return a message that names the owner and says what to do."""
        if "process" not in owner:
            subject = f"{self._path} does not say by which run it was written"
        else:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["started"]))
            subject = (
                f"{self._path.parent} is in use by process {owner['process']} on {owner['host']}, "
                f"since {since}"
            )
        age = time.time() - owner.get("alive", time.time())
        when = f"{age:.0f} s ago" if age >= 0 else f"{-age:.0f} s ahead of this system's clock"
        return (
            f"{subject}, last heartbeat {when}. Stop it, or choose {self._other_folder}; "
            f"{self._end(owner)}"
        )

    def _end(self, owner: dict[str, Any]) -> str:
        """Return when a lock becomes void, or how to end one that does not."""
        if "alive" not in owner:
            return f"if there is no such run, remove {self._path}"
        if not is_of_this_system(owner):
            return (
                "if it is dead, its lock is taken over at a start more than "
                f"{STALE:.0f} s after the last heartbeat"
            )
        if owner["process_started"] is None:
            return (
                "its lock does not say when that process started: if it is another program today, "
                f"remove {self._path}"
            )
        return "if it ends or is killed, its lock is void at once"
