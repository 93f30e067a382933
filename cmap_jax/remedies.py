"""Config flags in error messages, rewritten as the flags of the command that prints them.

A reader or a check does not know which command called it. It names the config field that mends a
fault, such as ``--config.data.directory=...``. A command with other flags keeps a table of how it
spells the fields, and `spelled` rewrites the message before it is printed:

    spelled("set --config.data.directory to the folder", {"data.directory": "--dir"})
"""

import re
from collections.abc import Mapping

OTHERS = "*"  # key of a spelling for every field that it does not list

# A value ends before the punctuation of its sentence; "..." is a value too.
_FIELD = re.compile(
    r"--config\.(?P<field>\w+(?:\.\w+)*)(?:=(?P<value>\.\.\.|[^\s,;()]*[^\s,;().:]))?"
)


def named_fields(message: str) -> tuple[str, ...]:
    """Return the fields that a message names with --config flags, each once."""
    return tuple(dict.fromkeys(match["field"] for match in _FIELD.finditer(message)))


def spelled(message: str, spelling: Mapping[str, str]) -> str:
    """Return a message with its --config flags as a command spells them.

    Args:
        message: text for the user, with any number of --config flags.
        spelling: the command's flag for each field ("data.directory") or each field and value
            ("data.missing_images=skip"). The value follows a field's flag, or replaces a ``{}`` in
            it. The entry of `OTHERS` is the command that takes all other fields.
    """

    def replace(match: re.Match) -> str:
        field, value = match["field"], match["value"]
        if value is not None and f"{field}={value}" in spelling:
            return spelling[f"{field}={value}"]
        if field not in spelling:
            return f"{match[0]} (to {spelling[OTHERS]})" if OTHERS in spelling else match[0]
        words = spelling[field]
        if "{}" in words:
            return words.replace("{}", value or "...")
        return f"{words} {value}" if value else words

    return _FIELD.sub(replace, message)
