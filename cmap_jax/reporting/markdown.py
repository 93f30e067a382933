"""A report as Markdown, whose pictures are files in a folder beside it."""

import functools
import re
from urllib.parse import quote

from cmap_jax.reporting.document import (
    Block,
    Command,
    Document,
    Folded,
    Notes,
    Paragraph,
    Picture,
    Table,
)

# Characters that Markdown, or the HTML in it, could take for a mark.
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


def to_markdown(document: Document, folder: str) -> str:
    """Return the file's text.

    Args:
        document: the report.
        folder: name of the folder with the pictures, relative to the file.
    """
    parts = [f"# {_plain(document.title)}", _plain(document.subtitle)]
    for section in document.sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_block(block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def file_of(picture: Picture) -> str:
    """Return the name of a picture's file."""
    return f"{picture.name}.{picture.kind}"


def _plain(text: str) -> str:
    """Return a text in which no character is a mark, on one line."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


@functools.singledispatch
def _block(block: Block, folder: str) -> str:
    """Return a block's lines."""
    raise TypeError(f"no part of a report: {block!r:.80}")


@_block.register
def _(block: Paragraph, folder: str) -> str:
    return _plain(block.text)


@_block.register
def _(block: Notes, folder: str) -> str:
    return "\n".join(f"- {_plain(line)}" for line in block.lines)


@_block.register
def _(block: Command, folder: str) -> str:
    return _fenced(block.text)


@_block.register
def _(block: Folded, folder: str) -> str:
    title = _plain(block.title)
    return f"<details><summary>{title}</summary>\n\n{_fenced(block.text)}\n\n</details>"


def _fenced(text: str) -> str:
    """Return a text between fences that are longer than any row of backticks in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


@_block.register
def _(block: Table, folder: str) -> str:
    width = len(block.rows[0]) if block.rows else len(block.header)
    rule = ["---", *(["---:" if block.numeric else "---"] * (width - 1))]
    rows = [block.header or [""] * width, *block.rows]
    head, *body = ([_cell(cell) for cell in row] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
    caption = [_plain(block.caption), ""] if block.caption else []
    return "\n".join([*caption, *lines])


def _cell(text: str) -> str:
    # Two spaces mark a row that belongs to the one above; Markdown would drop them.
    return ("&nbsp;&nbsp;" if text.startswith("  ") else "") + _plain(text)


@_block.register
def _(block: Picture, folder: str) -> str:
    return f"![{_plain(block.text)}]({quote(folder)}/{quote(file_of(block))})"
