"""A report as one HTML file that needs no other file, no script and no network."""

import base64
import functools
import importlib.resources
import re
from collections.abc import Sequence
from html import escape

from cmap_jax.reporting.document import (
    Block,
    Command,
    Document,
    Folded,
    Notes,
    Paragraph,
    Picture,
    Section,
    Table,
)

_TYPES = {"png": "image/png", "jpg": "image/jpeg"}
# Nothing may be fetched, even if a text that slipped through the escapes asked for it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def to_html(document: Document) -> str:
    """Return the whole file's text."""
    links = "".join(
        f'<li><a href="#{_anchor(section.title)}">{escape(section.title)}</a></li>'
        for section in document.sections
    )
    style = importlib.resources.files("cmap_jax.reporting").joinpath("style.css").read_text()
    title = escape(document.title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{title}</h1><p>{escape(document.subtitle)}</p></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{"".join(map(_section, document.sections))}</main>
</body>
</html>
"""


def _section(section: Section) -> str:
    name = _anchor(section.title)
    blocks = "\n".join(map(_block, section.blocks))
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{escape(section.title)}</h2>\n{blocks}\n</section>\n'
    )


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


@functools.singledispatch
def _block(block: Block) -> str:
    """Return a block's element."""
    raise TypeError(f"no part of a report: {block!r:.80}")


@_block.register
def _(block: Paragraph) -> str:
    return f"<p>{escape(block.text)}</p>"


@_block.register
def _(block: Notes) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in block.lines)
    return f'<ul class="notes">{lines}</ul>'


@_block.register
def _(block: Command) -> str:
    return f"<pre><code>{escape(block.text)}</code></pre>"


@_block.register
def _(block: Folded) -> str:
    text = f"<pre><code>{escape(block.text)}</code></pre>"
    return f"<details><summary>{escape(block.title)}</summary>{text}</details>"


@_block.register
def _(block: Table) -> str:
    caption = f"<caption>{escape(block.caption)}</caption>" if block.caption else ""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in block.header)
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    rows = "".join(map(_row, block.rows))
    kind = "numbers" if block.numeric else "words"
    label = escape(block.caption or "table")
    # A table that is wider than the page is scrolled by itself, with the keyboard too.
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{label}">'
        f'<table class="{kind}">{caption}{head}<tbody>{rows}</tbody></table></div>'
    )


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    # Two spaces mark a row that belongs to the one above.
    inner = ' class="inner"' if first.startswith("  ") else ""
    values = "".join(f"<td>{escape(cell)}</td>" for cell in others)
    return f'<tr{inner}><th scope="row">{escape(first.strip())}</th>{values}</tr>'


@_block.register
def _(block: Picture) -> str:
    text = escape(block.text)
    if block.drawing is not None:
        inside = block.drawing.replace("<svg ", f'<svg role="img" aria-label="{text}" ', 1)
    else:
        content = base64.b64encode(block.content).decode()
        inside = f'<img src="data:{_TYPES[block.kind]};base64,{content}" alt="{text}">'
    return (
        f'<figure><div class="wide" role="region" tabindex="0" aria-label="{text}">{inside}</div>'
        f"<figcaption>{text}</figcaption></figure>"
    )
