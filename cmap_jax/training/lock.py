"""One run at a time in a workdir: a lock with its owner and a sign of life."""

import json
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any

from absl import logging
from etils import epath

from cmap_jax import workdir as workdir_lib

LOCK = "run.lock"
_BEAT = 10.0  # seconds between two signs of life
_STALE = 60.0  # seconds without one after which another host's run counts as dead


class WorkdirInUse(OSError):  # noqa: N818
    """Another run is at work in the workdir."""


class WorkdirLock:
    """Holds ``run.lock`` in a workdir while a run is at work there.

    The file names the host, the process and the last sign of life, which a thread renews. A lock
    whose process is gone (on this host), or that gave no sign of life for a minute (from another),
    was left by a run that was killed, and is taken over.
    """

    def __init__(self, workdir: str | os.PathLike):
        """Prepare; nothing is written before the lock is entered."""
        self._path = workdir_lib.absolute(workdir) / LOCK
        self._token = uuid.uuid4().hex
        self._started = time.time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="workdir lock", daemon=True)

    def __enter__(self) -> "WorkdirLock":
        """Take the lock.

        Raises:
            WorkdirInUse: another run has it; says which.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create():
            owner = self._read()
            if owner is not None and _is_alive(owner):
                raise WorkdirInUse(self._refusal(owner))
            logging.warning("%s was left by a run that was killed; it is taken over", self._path)
            self._path.unlink(missing_ok=True)
            if not self._create():
                raise WorkdirInUse(self._refusal(self._read() or {}))
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Give the lock back."""
        self._ended.set()
        self._thread.join()
        if (self._read() or {}).get("token") == self._token:
            self._path.unlink(missing_ok=True)

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

    def _content(self) -> str:
        return json.dumps(
            {
                "host": socket.gethostname(),
                "process": os.getpid(),
                "process_started": _start_of(os.getpid()),
                "started": self._started,
                "alive": time.time(),
                "token": self._token,
            }
        )

    def _read(self) -> dict[str, Any] | None:
        """Return the lock's content; one that cannot be read is, or was left, half-written."""
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("alive"), int | float):
            return found
        return {"alive": self._path.stat().mtime}

    def _renew(self) -> None:
        while not self._ended.wait(_BEAT):
            try:
                scratch = epath.Path(f"{self._path}.{self._token}")
                scratch.write_text(self._content())
                scratch.replace(self._path)
            except OSError as error:  # a full disk: what matters is said elsewhere
                logging.warning("%s could not be renewed: %s", self._path, error)

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


def _is_alive(owner: dict[str, Any]) -> bool:
    here = owner.get("host") == socket.gethostname()
    if here and isinstance(owner.get("process"), int):
        # The start too: a number may have been given to another process since.
        return _start_of(owner["process"]) == owner.get("process_started")
    return time.time() - owner["alive"] < _STALE


def _start_of(process: int) -> str | None:
    """Return when a process of this host started, in the system's own unit; None if it is gone."""
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
