"""Text on a picture, wrapped to a width, in the font that PIL brings along."""

import functools
import itertools
import unicodedata
from collections.abc import Sequence

from PIL import ImageDraw, ImageFont

_LINE = 1.3  # height of a line as a multiple of the font size


def leading(size: int) -> int:
    """Return the height of a line in pixels at a font size in pixels."""
    return round(_LINE * size)


def write(
    pen: ImageDraw.ImageDraw,
    top: tuple[int, int],
    lines: Sequence[str],
    size: int,
    colour: tuple[int, int, int],
    anchor: str = "la",
) -> None:
    """Write lines of text.

    Args:
        pen: draws on the picture.
        top: x and y of the top of the first line, pixels.
        lines: texts that fit the width, such as `wrap` returns.
        size: height of the font, pixels.
        colour: red, green and blue, 0..255.
        anchor: "la": the lines begin at x; "ma": x is their middle.
    """
    x, y = top
    for number, line in enumerate(lines):
        at = (x, y + number * leading(size))
        pen.text(at, line, fill=colour, font=_font(size), anchor=anchor)


def wrap(text: str, size: int, width: int, most: int) -> list[str]:
    """Return a text as lines that fit a width; an ellipsis ends a text that is cut off.

    Args:
        text: any characters; all white space counts as a space.
        size: height of the font, pixels.
        width: greatest length of a line, pixels.
        most: greatest number of lines.
    """
    length = _font(size).getlength
    words, lines = _legible(text).split(), []
    while words and len(lines) < most:
        line = words.pop(0)
        while words and length(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        if length(line) > width:  # a single word, such as a path
            fits = next(n for n in itertools.count(1) if length(line[: n + 1]) > width)
            end = max(line.rfind(mark, 0, fits) for mark in "/_-") + 1 or fits
            words.insert(0, line[end:])
            line = line[:end]
        lines.append(line)
    if words:
        last = lines[-1]
        while last and length(f"{last}…") > width:
            last = last[:-1]
        lines[-1] = f"{last.rstrip()}…"
    return lines


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # PIL's own font makes pictures independent of the fonts of a machine.
    return ImageFont.load_default(size)


def _legible(text: str) -> str:
    """Return a text without accents and with hyphens for dashes, as the font can draw it.

    The font has little more than ASCII; characters of other scripts are drawn as boxes.
    """
    kept = []
    for character in unicodedata.normalize("NFKD", text):
        kind = unicodedata.category(character)
        if kind == "Pd":
            kept.append("-")
        elif character.isspace() or kind[0] not in "MC":  # marks, control characters and joiners
            kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))
