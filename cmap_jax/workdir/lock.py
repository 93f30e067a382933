"""One run at a time in a workdir: a lock with its owner and a sign of life."""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any

from etils import epath

from cmap_jax.workdir import description as workdir_lib

_logger = logging.getLogger(__name__)

LOCK = "run.lock"
_BEAT = 10.0  # seconds between two signs of life
_STALE = 60.0  # seconds without one after which a run elsewhere counts as dead


class WorkdirInUse(OSError):  # noqa: N818
    """Another run is at work in the workdir."""


class WorkdirLock:
    """Holds ``run.lock`` in a workdir while a run is at work there.

    The file names the host, the process and the last sign of life, which a thread renews. A lock
    whose process is gone (on this system), or that gave no sign of life for a minute (elsewhere),
    was left by a run that was killed, and is taken over. A run that was only silent, as one that
    was suspended, finds out by `check`.
    """

    def __init__(self, workdir: str | os.PathLike):
        """Prepare; nothing is written before the lock is entered."""
        self._path = workdir_lib.absolute(workdir) / LOCK
        self._token = uuid.uuid4().hex
        self._started = time.time()
        self._made_folder = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="workdir lock", daemon=True)

    def __enter__(self) -> "WorkdirLock":
        """Take the lock.

        Raises:
            WorkdirInUse: another run has it; says which.
        """
        self._made_folder = not self._path.parent.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create():
            owner = self._read()
            if owner is not None and _is_alive(owner):
                raise WorkdirInUse(self._refusal(owner))
            _logger.warning("%s was left by a run that was killed; it is taken over", self._path)
            gone = owner is None or self._remove(owner)
            if not (gone and self._create()):
                raise WorkdirInUse(self._refusal(self._read() or {}))
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Give the lock back; a folder that was made for it alone goes with it."""
        self._ended.set()
        self._thread.join()
        if self._is_ours():
            self._path.unlink(missing_ok=True)
        if self._made_folder and "://" not in os.fspath(self._path):  # a bucket has no folders
            with contextlib.suppress(OSError):  # the run has written there
                os.rmdir(self._path.parent)

    def check(self) -> None:
        """Refuse to go on where another run has taken the lock over.

        Raises:
            WorkdirInUse: says which.
        """
        if not self._is_ours():
            raise WorkdirInUse(
                "this run gave no sign of life for a minute, and its lock was taken over: "
                + self._refusal(self._read() or {})
            )

    def _is_ours(self) -> bool:
        return (self._read() or {}).get("token") == self._token

    def _create(self) -> bool:
        """Write the lock file unless there is one."""
        if "://" in os.fspath(self._path):
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

    def _remove(self, owner: dict[str, Any]) -> bool:
        """Remove the dead owner's lock; not one that yet another run has put there meanwhile."""
        aside = epath.Path(f"{self._path}.{self._token}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return True
        found = _parse(aside)
        if found.get("token") != owner.get("token"):
            aside.rename(self._path)
            return False
        aside.unlink(missing_ok=True)
        return True

    def _content(self) -> str:
        return json.dumps(
            {
                "host": socket.gethostname(),
                "system": _system(),
                "process": os.getpid(),
                "process_started": _start_of(os.getpid()),
                "started": self._started,
                "alive": time.time(),
                "token": self._token,
            }
        )

    def _read(self) -> dict[str, Any] | None:
        """Return the lock's content, or None if there is none."""
        try:
            return _parse(self._path)
        except FileNotFoundError:
            return None

    def _renew(self) -> None:
        scratch = epath.Path(f"{self._path}.{self._token}")
        while not self._ended.wait(_BEAT):
            try:
                if not self._is_ours():
                    return  # `check` says so
                scratch.write_text(self._content())
                scratch.replace(self._path)
            except OSError as error:  # a full disk: what matters is said elsewhere
                _logger.warning("%s could not be renewed: %s", self._path, error)
                with contextlib.suppress(OSError):
                    scratch.unlink(missing_ok=True)

    def _refusal(self, owner: dict[str, Any]) -> str:
        age = time.time() - owner.get("alive", time.time())
        started = time.localtime(owner.get("started", time.time()))
        since = time.strftime("%Y-%m-%d %H:%M:%S", started)
        return (
            f"{self._path.parent} is in use by process {owner.get('process', '?')} on "
            f"{owner.get('host', '?')}, since {since}, last sign of life {age:.0f} s ago. Stop it, "
            f"or choose another folder with --workdir=...; if it is dead, this lock is void "
            f"{_STALE:.0f} s after its last sign of life"
        )


def _parse(path: epath.Path) -> dict[str, Any]:
    """Return a lock's content; one that cannot be read is, or was left, half-written."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("alive"), int | float):
        return found
    return {"alive": path.stat().mtime}


def _is_alive(owner: dict[str, Any]) -> bool:
    if owner.get("system") == _system() and isinstance(owner.get("process"), int):
        # The start too: a number may have been given to another process since.
        return _start_of(owner["process"]) == owner.get("process_started")
    return time.time() - owner["alive"] < _STALE


def _system() -> str:
    """Return what tells apart where a process's number means something: boots and containers."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _start_of(process: int) -> str | None:
    """Return when a process of this system started, in its own unit; None if it is gone."""
    try:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if os.path.isdir("/proc/self"):
            return None
        try:  # not Linux: only whether it is there
            os.kill(process, 0)
        except OSError:
            return None
        return "unknown"
    return None if fields[0] in "ZX" else fields[19]
