"""The record of a run's attempts: whether the run is complete, and how long it took."""

import os
import pathlib
import time
from typing import Any

from cmap_jax.files import read_json, write_json


class RunRecord:
    """The file beside a run's workdir that says when it was started and how it ended.

    record = RunRecord(workdir)
    record.begin()
    record.end(status=0, seconds=180.0)
    record.is_complete(), record.seconds()

    An attempt without an end was cut off with the sweep: its seconds are not known.
    """

    def __init__(self, workdir: str | os.PathLike):
        """Read the record, if there is one.

        Args:
            workdir: folder of the run; the record lies beside it.

        Raises:
            ValueError: a broken file; names it.
        """
        workdir = pathlib.Path(workdir)
        self._path = workdir.with_name(f"{workdir.name}.json")
        self._attempts: list[dict[str, Any]] = []
        if self._path.exists():
            content = read_json(self._path)
            try:
                self._attempts = [
                    {key: attempt[key] for key in ("started", "seconds", "status")}
                    for attempt in content["attempts"]
                ]
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{self._path}: is no record of a run ({error}); remove it, and the run is "
                    "taken up again"
                ) from error

    def begin(self) -> None:
        """Note that an attempt begins."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._attempts.append({"started": now, "seconds": None, "status": None})
        self._write()

    def end(self, status: int, seconds: float) -> None:
        """Note how the latest attempt ended.

        Args:
            status: exit status; 0 for a run that is complete.
            seconds: duration of the attempt.
        """
        self._attempts[-1] |= {"seconds": round(seconds, 1), "status": status}
        self._write()

    def is_complete(self) -> bool:
        """Tell whether the run has ended well."""
        return any(attempt["status"] == 0 for attempt in self._attempts)

    def seconds(self) -> float | None:
        """Return the time of all attempts; None where that of one is not known."""
        times = [attempt["seconds"] for attempt in self._attempts]
        return None if None in times or not times else sum(times)

    def _write(self) -> None:
        write_json(self._path, {"attempts": self._attempts})
