"""The file beside triplets that says how they were made, and what guesses reach on them.

It belongs to the validation files as they were written: once these are edited it no longer counts.
"""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from cmap_jax.files import write_json
from input_pipeline import storage
from input_pipeline.readers.annotations import check_keys
from input_pipeline.records import DataError

_logger = logging.getLogger(__name__)

FILE = "guesses.json"
_DESCRIBED = ("val.jsonl", "gallery.txt")

Guesses = Mapping[str, Mapping[str, Mapping[str, float]]]


def write_guesses(folder: str, guesses: Guesses, settings: Mapping[str, Any]) -> None:
    """Write the file; the validation files must be there.

    Args:
        folder: of the triplets.
        guesses: recalls in percent by protocol, guess and metric.
        settings: how the triplets were made.
    """
    content = {"settings": settings, "files": _digests(folder), "guesses": guesses}
    write_json(storage.join(folder, FILE), content)


def read_guesses(folder: str) -> Guesses | None:
    """Return the recalls of guesses; None where there is no file, or it is no longer true.

    Raises:
        DataError: a file of another form.
    """
    file = storage.join(folder, FILE)
    if not storage.exists(file):
        return None
    content = storage.read_json(file)
    check_keys(content, {"files": dict, "guesses": dict}, file)
    for name, recalls in content["guesses"].items():
        if not _are_recalls(recalls):
            raise DataError(f"{file}: the guesses under {name!r} are no recalls by name")
    if content["files"] != _digests(folder):
        _logger.warning(
            "%s: the guesses' recalls are left out: a file that they belong to has changed", file
        )
        return None
    return content["guesses"]


def _are_recalls(value: Any) -> bool:
    """Tell whether a value has the form of one protocol's guesses."""
    return isinstance(value, dict) and all(
        isinstance(numbers, dict) and all(isinstance(n, int | float) for n in numbers.values())
        for numbers in value.values()
    )


def _digests(folder: str) -> dict[str, str]:
    paths = {name: storage.join(folder, name) for name in _DESCRIBED}
    return {
        name: hashlib.sha256(storage.read_bytes(path)).hexdigest()
        for name, path in paths.items()
        if storage.exists(path)
    }
