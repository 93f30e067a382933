"""Structured logs: one JSON object a line, on standard error.

{"time": "2026-03-01T12:00:00.123Z", "level": "info", "logger": "cmap_jax.serving.edge",
 "message": "request", "request": "4f0c...", "route": "/search", "status": 200, "ms": 31.5}

Neither queries nor pictures nor the ids of items are logged.
"""

import datetime
import json
import logging
import sys
from typing import Any, TextIO

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record, and what ``extra=`` added to it, as a JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def log_as_json(stream: TextIO | None = None) -> None:
    """Have this process log in JSON: this package and uvicorn from INFO on, others warnings.

    Args:
        stream: where the lines go; None for standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("cmap_jax").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.INFO)
    logging.captureWarnings(True)
