"""A run of a sweep as a process of its own, which trains and evaluates as `cmap train` does."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from cmap_jax.sweeps.plan import Run
from cmap_jax.sweeps.records import RunRecord
from cmap_jax.workdir.lock import LOCK, WorkdirInUse, WorkdirLock

_RETRY = 2.0  # seconds between two looks at a workdir in which another process is at work
_TAIL = 4096  # bytes at the end of a log in which its last line is looked for


def program() -> list[str]:
    """Return the command of `cmap train` without its flags, for the modules of this process."""
    # The path is handed on, since neither -m nor a script would find the same modules everywhere.
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        "from cmap_jax.cli import command; sys.exit(command.main())"
    )
    return [sys.executable, "-c", code, "train"]


class RunProcess:
    """Trains one run, or continues it, once nobody else is at work in its workdir.

    A sweep that was killed leaves the process of its run behind, which goes on; the next sweep
    waits for it. The process has a session of its own: Ctrl-C in a terminal reaches the sweep
    alone, which stops its runs in good order.
    """

    def __init__(self, run: Run, config: str, environment: Mapping[str, str]):
        """Start nothing yet; `poll` does.

        Args:
            run: names the workdir and the flags.
            config: a --config value.
            environment: variables in addition to those of this process, such as the device.
        """
        self.run = run
        self.log = run.workdir.with_name(f"{run.workdir.name}.log")
        self._flags = (f"--config={config}", f"--workdir={run.workdir}", *run.overrides)
        self._environment = {**os.environ, **environment}
        self._record = RunRecord(run.workdir)
        self._process: subprocess.Popen | None = None
        self._began = 0.0
        self._looked = -_RETRY
        self._owner: str | None = None  # who else is at work in the workdir

    def poll(self) -> int | None:
        """Start the process if that is possible now; return its exit status once it has ended."""
        if self._process is None:
            self._start_if_free()
            return None
        status = self._process.poll()
        if status is not None:
            self._record.end(status, time.monotonic() - self._began)
        return status

    def ask_to_stop(self) -> None:
        """Ask the process to save its state and to end; `finish` waits for that."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def finish(self) -> None:
        """Wait until the process has ended, and note how."""
        if self._process is not None:
            self._record.end(self._process.wait(), time.monotonic() - self._began)

    def kill(self) -> None:
        """End the process at once; it continues from its last checkpoint."""
        if self._process is not None:
            self._process.kill()

    def last_line(self) -> str:
        """Return the latest line of the output, or who else is at work in the workdir."""
        return f"waiting: {self._owner}" if self._owner else last_line(self.log)

    def _start_if_free(self) -> None:
        if time.monotonic() - self._looked < _RETRY:
            return
        self._looked, self._owner = time.monotonic(), _owner_of(self.run.workdir)
        if self._owner is not None:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._record.begin()
        self._began = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*program(), *self._flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )


def last_line(log: str | os.PathLike) -> str:
    """Return the last line of a log that is not empty; an empty text without any."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - _TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _owner_of(workdir: pathlib.Path) -> str | None:
    """Return who is at work in a workdir, as a sentence; None for nobody."""
    if not (workdir / LOCK).exists():
        return None
    try:
        with WorkdirLock(workdir):
            return None
    except WorkdirInUse as error:
        return str(error)
