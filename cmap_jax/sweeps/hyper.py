"""The settings of a sweep's rows: from ``--vary``, or from a config's ``get_hyper``.

def get_hyper(hyper):
    methods = hyper.sweep("config.model.variant", ("cmap", "artemis"))
    weights = hyper.sweep("config.loss.preservation_weights", ((1.0, 1.0, 0.5), (0.0, 0.0, 0.0)))
    return hyper.chainit([hyper.product([methods[:1], weights]), methods[1:]])

Settings are a list with a dict for each row: values by field, ``config.`` included. A row may have
a name of its own under the key "name"; else it is named after its fields.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

Settings = list[dict[str, Any]]

NAME = "name"  # key of a row's own name


class Hyper:
    """Builds settings; the argument of ``get_hyper``."""

    def fixed(self, name: str, value: Any) -> Settings:
        """Return one row with a field at a value."""
        return [{name: value}]

    def sweep(self, name: str, values: Iterable[Any]) -> Settings:
        """Return a row for each value of a field."""
        return [{name: value} for value in values]

    def product(self, parts: Sequence[Settings]) -> Settings:
        """Return a row for each combination of the parts' rows; the last part varies fastest.

        Raises:
            ValueError: two parts set the same field; names it.
        """
        return [_merged(rows) for rows in itertools.product(*parts)]

    def zipit(self, parts: Sequence[Settings]) -> Settings:
        """Return the parts' rows merged one by one: first with first, second with second.

        Raises:
            ValueError: the parts have different lengths, or set the same field.
        """
        if len({len(part) for part in parts}) > 1:
            lengths = ", ".join(str(len(part)) for part in parts)
            raise ValueError(f"zipit: the parts have {lengths} rows; give them equal lengths")
        return [_merged(rows) for rows in zip(*parts, strict=True)]

    def chainit(self, parts: Sequence[Settings]) -> Settings:
        """Return the rows of all parts, one part after another."""
        return [row for part in parts for row in part]


def read_vary(assignments: Sequence[str]) -> Settings:
    """Return the settings of ``--vary`` flags, a row for each combination of their values.

    Args:
        assignments: such as "config.model.variant=cmap,artemis". Commas inside brackets and quotes
            belong to a value.

    Raises:
        ValueError: one without a field or a value, or one field twice; names it.
    """
    parts = []
    for text in assignments:
        name, _, values = text.partition("=")
        name, values = name.removeprefix("--"), split_values(values)
        if not name.startswith("config.") or not all(values):
            raise ValueError(
                f"--vary {text}: give a field and its values, such as "
                "config.model.variant=cmap,artemis"
            )
        parts.append(Hyper().sweep(name, values))
    return Hyper().product(parts)


def split_values(text: str) -> list[str]:
    """Return the parts of a text between commas that are in no brackets and no quotes.

    Quotes around a whole part are taken away.

    Raises:
        ValueError: a quote or a bracket is not closed.
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        parts[-1] += character
    if quote or depth:
        raise ValueError(f"{text}: {quote or 'a bracket'} is not closed")
    return [_unquoted(part.strip()) for part in parts]


def _unquoted(part: str) -> str:
    """Return a part without the quotes around it."""
    is_quoted = len(part) > 1 and part[0] in "'\"" and part.count(part[0]) == 2
    return part[1:-1] if is_quoted and part[-1] == part[0] else part


def _merged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one row with the fields of all; their own names are joined by commas."""
    merged: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            if name == NAME and NAME in merged:
                value = f"{merged[NAME]}, {value}"
            elif name in merged:
                raise ValueError(f"{name} is set twice in one row; set it in one part alone")
            merged[name] = value
    return merged
