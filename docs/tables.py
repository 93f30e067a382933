"""Tables of the site that the code determines; a document marks their places.

`<!-- table: config -->` becomes the fields of `configs/default.py` with their comments,
`<!-- table: protocols -->` the rules of each protocol, `<!-- table: data sets -->` the data sets.
"""

import ast
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cmap_jax.config_fields import FIELDS, Field, Kind
from cmap_jax.protocols import PROTOCOLS, Protocol
from configs import default

ROOT = pathlib.Path(__file__).parents[1]
_MARKER = re.compile(r"^<!-- table: (.+) -->$", re.MULTILINE)
_LARGEST = 1e30  # a limit beyond it is that of the number's type
_CHANGES = {
    Kind.ENVIRONMENT: "at any start",
    Kind.RUN: "not when a run continues",
    Kind.TRAINED: "not after the training",
    Kind.MODEL: "part of the model",
}


class Entry(NamedTuple):
    """A field of a config or a part with fields of its own.

    Attributes:
        path: such as "model.embed_dim", without "config.".
        value: its default; a ConfigDict for a part.
        comment: all that `configs/default.py` says of it; may be empty.
    """

    path: str
    value: Any
    comment: str


def insert(markdown: str) -> str:
    """Return a document with a table in each marker's place.

    Raises:
        KeyError: a marker names no table.
    """
    tables = {"config": config_table, "protocols": protocol_table, "data sets": data_set_table}
    return _MARKER.sub(lambda marker: tables[marker[1]](), markdown)


def config_entries(text: str) -> Iterator[Entry]:
    """Yield the fields and parts that get_config sets, in the order of the file.

    Args:
        text: the source of `configs/default.py`. A field's comment is the lines right above its
            assignment, or the one behind it.
    """
    lines, values = text.splitlines(), default.get_config()
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    (function,) = (
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == "get_config"
    )
    for statement in function.body:
        if not isinstance(statement, ast.Assign):
            continue
        path = ast.unparse(statement.targets[0]).partition(".")[2]
        if not path:  # config = ConfigDict()
            continue
        above = statement.lineno
        while lines[above - 2].strip().startswith("#"):
            above -= 1
        numbers = (*range(above, statement.lineno), statement.end_lineno)
        value = values
        for name in path.split("."):
            value = value[name]
        yield Entry(path, value, " ".join(comments[n] for n in numbers if n in comments))


def config_table() -> str:
    """Return a heading and a table for each part of a config that has fields."""
    entries = list(config_entries((ROOT / "configs" / "default.py").read_text()))
    comments = {entry.path: entry.comment for entry in entries}
    parts: dict[str, list[Entry]] = {}
    for entry in entries:
        if not isinstance(entry.value, ConfigDict):
            parts.setdefault(entry.path.rpartition(".")[0], []).append(entry)
    return "\n\n".join(
        _part(part, comments.get(part, ""), fields) for part, fields in parts.items()
    )


def _part(part: str, comment: str, fields: list[Entry]) -> str:
    name = f"config.{part}" if part else "config"
    rows = ["| field | default | meaning | values | may change |", "|---|---|---|---|---|"]
    for entry in fields:
        field = FIELDS[entry.path]
        cells = (_anchored(entry.path), _default(entry.value), _cell(entry.comment))
        rows.append(f"| {' | '.join(cells)} | {_limits(field)} | {_CHANGES[field.kind]} |")
    heading = f"### `{name}`"
    return "\n\n".join(filter(None, (heading, _sentence(comment), "\n".join(rows))))


def _anchored(path: str) -> str:
    return f"`{path.rpartition('.')[2]}`{{ #{path} }}"


def _default(value: Any) -> str:
    return "none" if value is None else f"`{value!r}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def _sentence(text: str) -> str:
    text = _cell(text)
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def _limits(field: Field) -> str:
    """Return the values that a field allows, in words; empty: any of its type."""
    low, high = map(_number, (field.least, field.most))
    if field.choices:
        words = ", ".join(f"`{choice}`" for choice in field.choices)
    elif field.least < -_LARGEST:
        words = ""
    else:
        words = f"{low} to {high}" if field.most < _LARGEST else f"{low} or more"
    return f"{words}, or none" if words and field.optional else words


def _number(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def protocol_table() -> str:
    """Return the rules of all protocols, a row each."""
    names = "protocol | gallery | captions | right | metrics | headline | averaged over | reference"
    rows = [f"| {names} |", "|---|---|---|---|---|---|---|---|"]
    return "\n".join([*rows, *(_protocol_row(protocol) for protocol in PROTOCOLS.values())])


def _protocol_row(protocol: Protocol) -> str:
    cells = (
        f"`{protocol.name}`",
        _cell(protocol.gallery),
        protocol.captions,
        _cell(protocol.correct),
        _cell(", ".join(protocol.metrics)),
        _cell(protocol.headline_name),
        {"categories": "categories", "pooled": "queries"}[protocol.averaging],
        protocol.reference,
    )
    return f"| {' | '.join(cells)} |"


def data_set_table() -> str:
    """Return all data sets of `input_pipeline/registry.py`, a row each."""
    from input_pipeline.registry import DATA_SETS

    rows = ["| `config.data.name` | content | known by | training |", "|---|---|---|---|"]
    for entry in DATA_SETS.values():
        homepage = f" ([page]({entry.homepage}))" if entry.homepage else ""
        mark = f"`{entry.mark.replace('|', chr(92) + '|')}`" if entry.mark else ""
        training = "no" if entry.evaluation_only else "yes"
        description = _cell(" ".join(entry.description.split()))
        rows.append(f"| `{entry.name}` | {description}{homepage} | {mark} | {training} |")
    return "\n".join(rows)
