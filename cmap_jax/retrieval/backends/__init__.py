"""The table of search backends, by name.

    entry = find_backend("exact")
    backend = entry.open(stored, settings_of("exact", {"device_gb": 8}), sharding.make_mesh())
    result = backend.search(query, 10, allowed=mask)

All of them return exact scores; an approximate backend shortens the list of images whose scores
are computed. A new one is a file here (see `cmap_jax.retrieval.backends.entry`) and a line in
`BACKENDS`.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from cmap_jax.retrieval.backends import exact
from cmap_jax.retrieval.backends.entry import Backend, BackendEntry

BACKENDS: dict[str, BackendEntry] = {
    "exact": exact.ENTRY,
}
DEFAULT = "exact"


def find_backend(name: str) -> BackendEntry:
    """Return the entry of a backend.

    Raises:
        ValueError: there is none of this name; names those that there are.
    """
    if name not in BACKENDS:
        raise ValueError(f"there is no backend {name!r}, but {', '.join(BACKENDS)}")
    return BACKENDS[name]


def settings_of(name: str, values: Mapping[str, Any]) -> Any:
    """Return a backend's settings with some of them given.

    Args:
        name: a key of `BACKENDS`.
        values: values by the setting's name, of the setting's type or, as a command line has them,
            strings; the others keep their defaults.

    Raises:
        ValueError: no such backend or setting, or a value that is impossible; names it.
    """
    kind = find_backend(name).settings
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    for unknown in values.keys() - fields.keys():
        near = difflib.get_close_matches(unknown, fields, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(fields) or "no settings"
        raise ValueError(f"the backend {name} has no setting {unknown!r}, but {known}{hint}")
    try:
        return kind(**{key: _typed(key, value, fields[key]) for key, value in values.items()})
    except ValueError as error:
        raise ValueError(f"backend {name}: {error}") from error


def _typed(name: str, value: Any, kind: type) -> Any:
    """Return a setting's value in its type: int for a float is fine, and strings are parsed."""
    if isinstance(value, str) and kind is bool and value.casefold() in ("true", "false"):
        return value.casefold() == "true"
    if isinstance(value, str) and kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass  # refused below
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r}")
    return value


__all__ = ["BACKENDS", "DEFAULT", "Backend", "BackendEntry", "find_backend", "settings_of"]
