"""Whether a stored config has the fields of today, with values of their types.

A config that someone has edited, or cut, must be named before its values lead to errors elsewhere.
"""

import os
from collections.abc import Mapping
from typing import Any

from cmap_jax.config_fields import FIELDS, Field, Kind, flatten
from cmap_jax.workdir import renamed_fields
from configs import default


def check_form(stored: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Refuse a config that lacks a field, or has a value of another type.

    Fields that this library does not know, such as a plug-in's, may have any value.

    Args:
        stored: the content of a ``config.json``, before its old names are translated.
        path: the file, for messages.

    Raises:
        ValueError: names the file and the field.
    """
    # The earliest versions lacked fields on which a model does not depend.
    needed = Kind.TRAINED if renamed_fields.has_old_names(stored) else Kind.RUN
    values, defaults = flatten(renamed_fields.translate(stored)), flatten(default.get_config())
    for name, field in FIELDS.items():
        if name not in defaults:
            continue  # a plug-in's, which few configs have
        if name not in values:
            if field.kind >= needed:
                raise ValueError(f"{os.fspath(path)}: it has no config.{name}. {_REMEDY}")
        elif not _is_alike(values[name], defaults[name], field):
            raise ValueError(
                f"{os.fspath(path)}: config.{name} is {values[name]!r:.40}, and should be like "
                f"{defaults[name]!r}. {_REMEDY}"
            )


_REMEDY = "The file was edited or damaged: put it back as it was written"


def _is_alike(value: Any, usual: Any, field: Field) -> bool:
    """Tell whether a value read from JSON has the type of a field's default.

    Where the default is None, the field takes texts, numbers and lists.
    """
    if value is None:
        return field.optional or usual is None
    if usual is None:
        return isinstance(value, str | int | float | list | tuple)
    if isinstance(usual, tuple):
        return isinstance(value, list | tuple)  # a default that earlier versions lack is a tuple
    is_number = isinstance(usual, float) and type(value) is int
    return type(value) is type(usual) or is_number
