"""The owner of a lock, as its file names it, and whether that process is still at work."""

import math
import os
import pathlib
import socket
import time
from typing import Any

from etils import epath

from cmap_jax.files import read_json

STALE = 60.0  # seconds since the last heartbeat after which a run elsewhere seems dead
_LATEST = 1e11  # the largest time that is believed, seconds: in the year 5138


def parse(path: epath.Path) -> dict[str, Any]:
    """Return a lock file's content; one without the form of a lock counts from its last change."""
    try:
        owner = read_json(path)
    except ValueError:
        owner = None
    return owner if _has_form(owner) else {"alive": path.stat().mtime}


def _has_form(owner: Any) -> bool:
    """Tell whether the content of a file is what `WorkdirLock` writes."""
    if not isinstance(owner, dict):
        return False
    process, start = owner.get("process"), owner.setdefault("process_started", None)
    return (
        all(_is_time(owner.get(name)) for name in ("started", "alive"))
        and type(process) is int
        and 0 < process < 2**31
        and isinstance(start, str | None)
        and all(isinstance(owner.setdefault(name, ""), str) for name in ("host", "system", "token"))
    )


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= _LATEST


def is_of_this_system(owner: dict[str, Any]) -> bool:
    """Tell whether the process that wrote a lock can be looked up here."""
    return "process" in owner and owner["system"] == system()


def is_alive(owner: dict[str, Any]) -> bool:
    """Tell whether the run that wrote a lock is at work, as far as a look at it can show."""
    if is_of_this_system(owner):
        start = start_of(owner["process"])
        # The start is compared too: the system may have given the number to another process.
        return start is not None and owner["process_started"] in (None, start)
    return abs(time.time() - owner["alive"]) < STALE


def system() -> str:
    """Return an identifier of the boot and container within which process numbers are unique."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def start_of(process: int) -> str | None:
    """Return when a process of this system started, in clock ticks; None if it does not exist."""
    try:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if os.path.isdir("/proc/self"):
            return None
        try:  # outside Linux, only the existence of a process can be asked
            os.kill(process, 0)
        except OSError:
            return None
        return "unknown"
    return None if fields[0] in "ZX" else fields[19]
