"""Remedies in the words of the command at hand.

A reader or a check does not know who called, so it names the config field that mends a fault, such
as ``--config.data.directory=...``. A command that takes other flags says how it spells the fields,
and `spelled` rewrites what it prints:

    spelled("set --config.data.directory to the folder", {"data.directory": "--dir"})
"""

import re
from collections.abc import Mapping

OTHERS = "*"  # every field that a spelling does not list

# A value ends before the punctuation of the sentence around it; "..." is one too.
_FIELD = re.compile(
    r"--config\.(?P<field>\w+(?:\.\w+)*)(?:=(?P<value>\.\.\.|[^\s,;()]*[^\s,;().:]))?"
)


def spelled(message: str, spelling: Mapping[str, str]) -> str:
    """Return a message with its --config flags as a command spells them.

    Args:
        message: any text.
        spelling: the command's words, by field ("data.directory") or by field and value
            ("data.missing_images=skip"). A field's words are followed by the value, or hold it
            where they have a ``{}``. Under `OTHERS` stands the command that takes all others.
    """

    def replace(found: re.Match) -> str:
        field, value = found["field"], found["value"]
        if value is not None and f"{field}={value}" in spelling:
            return spelling[f"{field}={value}"]
        if field not in spelling:
            return f"{found[0]} (to {spelling[OTHERS]})" if OTHERS in spelling else found[0]
        words = spelling[field]
        if "{}" in words:
            return words.replace("{}", value or "...")
        return f"{words} {value}" if value else words

    return _FIELD.sub(replace, message)
