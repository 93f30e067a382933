"""Grids of triplets and of search results, as in a paper's appendix.

    rows = [TripletRow("dress.jpg", ("is red", "is longer"), ["red.jpg"])]
    save(triplet_grid(rows, "my data, train"), "grid.png")

    rows = [ResultRow("dress.jpg", ("is red",), [("blue.jpg", False), ("red.jpg", True)], rank=1)]
    save(results_grid(rows, "shoes"), "results.png")

The same rows give the same bytes.
"""

import dataclasses
import io
import math
import os
from collections.abc import Sequence
from typing import Literal

from etils import epath
from PIL import Image, ImageDraw

from cmap_jax.files import check_can_write, write_bytes
from cmap_jax.processing.images import ImageReadError, ImageSource, read_image
from cmap_jax.processing.padded_resize import pad_to_square
from cmap_jax.visualization.lettering import leading, wrap, write

# Pixels. `SIDE` is an image's side; as many rows stand side by side as fit on the page.
SIDE = 160
_TEXT, _ARROW, _GAP, _PARAGRAPH, _BETWEEN, _MARGIN, _PAGE = 184, 48, 12, 6, 56, 28, 1400
_RESULTS_AT = SIDE + _GAP + _TEXT + _ARROW  # left edge of the images to the right of the text
_FRAME, _BADGE = 4, 24
_TITLE, _CAPTION, _HEADER, _SMALL = 22, 15, 13, 12  # font sizes
_NAME_LINES, _NOTE_LINES = 2, 2

_PAPER, _INK, _GREY, _HAIRLINE = (255, 255, 255), (32, 32, 32), (112, 112, 112), (216, 216, 216)
MISSING = (232, 232, 232)
# Bluish green of Okabe and Ito's palette, which colour-blind people can tell from the rest.
RIGHT = (0, 158, 115)

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_SAVING = {"PNG": {}, "JPEG": {"quality": 92, "subsampling": 0}}

# An image or, where the caller could not get it, the error, which is drawn as a grey tile.
Drawable = ImageSource | ImageReadError


@dataclasses.dataclass(frozen=True)
class TripletRow:
    """A reference image, the captions, and the target images.

    Attributes:
        reference: an image as `read_image` takes it, or the error drawn instead.
        captions: texts in their order; may be empty.
        targets: images in the same forms.
        names: ids written under the reference and each target; empty: nothing is written.
        note: small print below the captions, such as the category.
    """

    reference: Drawable
    captions: Sequence[str]
    targets: Sequence[Drawable]
    names: Sequence[str] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """A query and its best images.

    Attributes:
        reference: an image as `read_image` takes it, or the error drawn instead.
        captions: texts in their order; may be empty.
        results: images in the same forms, best first, each with whether it is a right one.
        rank: 0-based rank of the best right image, written where none is among the results or
            where wrong images tie with it; None: not known.
        names: ids written under the reference and each result; empty: nothing is written.
        note: small print below the captions, such as the category.
        tied: number of wrong images at exactly the score of the best right one. Where it is not 0,
            the rank is an average over the orders of equal images.
        right: a right image that is drawn in a column of its own, since none is among the results,
            and the line under it; None: nothing is drawn there.
    """

    reference: Drawable
    captions: Sequence[str]
    results: Sequence[tuple[Drawable, bool]]
    rank: float | None
    names: Sequence[str] = ()
    note: str = ""
    tied: int = 0
    right: tuple[Drawable, str] | None = None


def triplet_grid(rows: Sequence[TripletRow], title: str) -> Image.Image:
    """Draw triplets: reference, text, target; side by side where the page is wide enough.

    Args:
        rows: triplets in reading order. An image that cannot be read becomes a grey tile with the
            reason.
        title: the line on top, such as the data set's name and split.

    Returns:
        An image of mode "RGB".

    Raises:
        ValueError: no rows, or names that are not one an image.
        TypeError: an image is nothing that `read_image` takes.
    """
    drawn = [
        _row(row, [(target, False) for target in row.targets], [row.note] if row.note else [])
        for row in rows
    ]
    return _draw(drawn, ["target"] * max((len(row.targets) for row in rows), default=0), title)


def results_grid(rows: Sequence[ResultRow], title: str) -> Image.Image:
    """Draw queries, each with its best images; the right ones framed and marked with a tick.

    Args:
        rows: a query each, from top to bottom. An image that cannot be read becomes a grey tile
            with the reason.
        title: the line on top, such as the model and its recall.

    Returns:
        An image of mode "RGB".

    Raises:
        ValueError: no rows, or names that are not one an image.
        TypeError: an image is nothing that `read_image` takes.
    """
    drawn = []
    for row in rows:
        notes = [row.note] if row.note else []
        if row.rank is not None and (row.tied or not any(right for _, right in row.results)):
            notes.append(_rank_note(row.rank, row.tied))
        drawn.append(_row(row, row.results, notes))
    columns = max((len(row.results) for row in rows), default=0)
    headers = [str(rank + 1) for rank in range(columns)]
    if any(row.right for row in rows):
        drawn = [_with_right(cells, row, columns) for cells, row in zip(drawn, rows, strict=True)]
        headers.append("right one")
    # Two lines of title: the recall is at the end and must not be cut off.
    return _draw(drawn, headers, title, most_title_lines=2)


def _rank_note(rank: float, tied: int) -> str:
    """Return the note on the rank of a row's best right image, counted from 1."""
    if not tied:
        return f"right one at rank {rank + 1:,.0f}"
    return f"right one tied with {tied:,}, rank {rank + 1:,.1f} on average"


def check_destination(path: str | os.PathLike) -> None:
    """Refuse a file that `save` could not write, before the work for it starts.

    Raises:
        ValueError: the suffix is none of .png, .jpg and .jpeg.
        OSError: it is a folder, or its folder cannot be made or written into.
    """
    path = epath.Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"{path}: a picture's name must end in {', '.join(_FORMATS)}")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file in it")
    check_can_write(path.parent)


def save(image: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture as a whole, or not at all; missing parent folders are made.

    Raises:
        ValueError, OSError: as `check_destination`.
    """
    check_destination(path)
    path = epath.Path(path)
    write_bytes(path, encode(image, _FORMATS[path.suffix.lower()]))


def encode(image: Image.Image, kind: Literal["PNG", "JPEG"]) -> bytes:
    """Return the bytes of a picture's file."""
    encoded = io.BytesIO()
    image.save(encoded, kind, **_SAVING[kind])
    return encoded.getvalue()


@dataclasses.dataclass(frozen=True)
class _Cell:
    """An image of a row with the lines under it."""

    image: Drawable
    name: list[str]  # lines
    correct: bool


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row as it is drawn."""

    captions: Sequence[str]
    notes: Sequence[str]
    cells: Sequence[_Cell | None]  # the reference first; None is drawn as nothing


def _row(
    row: TripletRow | ResultRow, results: Sequence[tuple[Drawable, bool]], notes: list[str]
) -> _Row:
    """Lay out a row; ``results`` are the images after the reference, with whether each is right."""
    images = [(row.reference, False), *results]
    names = row.names or [""] * len(images)
    if len(names) != len(images):
        raise ValueError(f"{len(names)} names for {len(images)} images; give one an image")
    cells = [
        _Cell(image, wrap(name, _SMALL, SIDE, _NAME_LINES), correct)
        for (image, correct), name in zip(images, names, strict=True)
    ]
    return _Row(row.captions, notes, cells)


def _with_right(drawn: _Row, row: ResultRow, columns: int) -> _Row:
    """Return a row with its right image in the column after ``columns`` results."""
    if row.right is None:
        return drawn
    image, line = row.right
    blank = [None] * (columns - len(row.results))
    cell = _Cell(image, wrap(line, _SMALL, SIDE, _NAME_LINES), correct=True)
    return dataclasses.replace(drawn, cells=[*drawn.cells, *blank, cell])


def _draw(
    rows: Sequence[_Row], headers: Sequence[str], title: str, most_title_lines: int = 1
) -> Image.Image:
    """Draw the sheet: the title, the headers over every column of rows, and the rows."""
    if not rows:
        raise ValueError("nothing to draw: no rows")
    row_width = _RESULTS_AT + len(headers) * (SIDE + _GAP) - _GAP
    names = max(len(cell.name) for row in rows for cell in row.cells if cell)
    row_height = SIDE + names * leading(_SMALL) + 2 * _GAP
    across = min(len(rows), max(1, (_PAGE - 2 * _MARGIN + _BETWEEN) // (row_width + _BETWEEN)))
    width = 2 * _MARGIN + across * (row_width + _BETWEEN) - _BETWEEN
    title_lines = wrap(title, _TITLE, width - 2 * _MARGIN, most_title_lines)
    headers_at = _MARGIN + max(1, len(title_lines)) * leading(_TITLE) + _GAP
    rows_at = headers_at + leading(_HEADER) + 2 * _GAP
    height = rows_at + math.ceil(len(rows) / across) * row_height - 2 * _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    write(pen, (_MARGIN, _MARGIN), title_lines, size=_TITLE, colour=_INK)
    for column in range(across):
        x = _MARGIN + column * (row_width + _BETWEEN)
        _draw_headers(pen, x, headers_at, headers)
        rule = headers_at + leading(_HEADER) + _GAP // 2
        pen.line((x, rule, x + row_width - 1, rule), fill=_HAIRLINE)
    for number, row in enumerate(rows):
        line, column = divmod(number, across)
        _draw_row(
            sheet, _MARGIN + column * (row_width + _BETWEEN), rows_at + line * row_height, row
        )
    return sheet


def _draw_headers(pen: ImageDraw.ImageDraw, x: int, y: int, headers: Sequence[str]) -> None:
    """Write the headers of one column of rows, its upper left corner at (x, y)."""
    write(pen, (x + SIDE + _GAP, y), ["text"], size=_HEADER, colour=_GREY)
    for left, header in zip(_lefts(x, len(headers)), ["reference", *headers], strict=True):
        write(pen, (left + SIDE // 2, y), [header], size=_HEADER, colour=_GREY, anchor="ma")


def _draw_row(sheet: Image.Image, x: int, y: int, row: _Row) -> None:
    """Draw a row, its upper left corner at (x, y)."""
    pen = ImageDraw.Draw(sheet)
    _draw_text(pen, x + SIDE + _GAP, y, row)
    if len(row.cells) > 1:
        tip, middle = x + _RESULTS_AT - _GAP, y + SIDE // 2
        pen.line((tip - 24, middle, tip - 6, middle), fill=_GREY, width=2)
        pen.polygon([(tip - 8, middle - 5), (tip, middle), (tip - 8, middle + 5)], fill=_GREY)
    for left, cell in zip(_lefts(x, len(row.cells) - 1), row.cells, strict=True):
        if cell is None:
            continue
        sheet.paste(_tile(cell.image), (left, y))
        # Without the line a photograph on a white ground would have no edge.
        pen.rectangle((left, y, left + SIDE - 1, y + SIDE - 1), outline=_HAIRLINE)
        if cell.correct:
            _draw_frame(sheet, left, y)
        name_at = (left + SIDE // 2, y + SIDE + _GAP // 2)
        write(pen, name_at, cell.name, size=_SMALL, colour=_GREY, anchor="ma")


def _lefts(x: int, count: int) -> list[int]:
    """Return the left edges of a row's images: the reference at x, then ``count`` results."""
    return [x, *(x + _RESULTS_AT + number * (SIDE + _GAP) for number in range(count))]


def _draw_frame(sheet: Image.Image, x: int, y: int) -> None:
    """Frame the image at (x, y) as a right one, with a tick in its upper right corner."""
    out = _FRAME + 1  # leaves a white line between image and frame
    frame = (x - out, y - out, x + SIDE - 1 + out, y + SIDE - 1 + out)
    ImageDraw.Draw(sheet).rectangle(frame, outline=RIGHT, width=_FRAME)
    scale = 4  # PIL draws without antialiasing
    badge = Image.new("RGB", (_BADGE * scale, _BADGE * scale), RIGHT)
    tick = [(0.25, 0.52), (0.43, 0.7), (0.76, 0.32)]
    points = [(across * badge.width, down * badge.height) for across, down in tick]
    ImageDraw.Draw(badge).line(points, fill=_PAPER, width=3 * scale, joint="curve")
    badge = badge.resize((_BADGE, _BADGE), Image.Resampling.LANCZOS)
    sheet.paste(badge, (x + SIDE - _BADGE, y))


def _tile(image: Drawable) -> Image.Image:
    """Return an image as a square of `SIDE`, or a grey square with the reason that it has none."""
    if isinstance(image, ImageReadError):
        return _missing(str(image))
    try:
        picture = read_image(image)
    except ImageReadError as error:
        message = str(error)
        # The message begins with the path, which is long, or with the type of the argument.
        path = isinstance(image, str | os.PathLike)
        name = os.fspath(image) if path else message.partition(":")[0]
        return _missing(message.removeprefix(f"{name}: "))
    # Padding after resizing keeps the edge sharp and a huge image affordable.
    scale = SIDE / max(picture.size)
    size = tuple(max(1, round(pixels * scale)) for pixels in picture.size)
    return pad_to_square(picture.resize(size, Image.Resampling.LANCZOS))


def _missing(reason: str) -> Image.Image:
    """Return a grey tile with a reason on it."""
    tile = Image.new("RGB", (SIDE, SIDE), MISSING)
    room = SIDE - 2 * _GAP
    lines = wrap(reason, _HEADER, room, room // leading(_HEADER))
    top = (SIDE // 2, (SIDE - len(lines) * leading(_HEADER)) // 2)
    write(ImageDraw.Draw(tile), top, lines, size=_HEADER, colour=_GREY, anchor="ma")
    return tile


def _draw_text(pen: ImageDraw.ImageDraw, x: int, y: int, row: _Row) -> None:
    """Write captions and notes in the middle of the row's height."""
    notes = [line for note in row.notes for line in wrap(note, _SMALL, _TEXT, _NOTE_LINES)]
    captions = [caption.strip() for caption in row.captions] or [""]
    room = SIDE - len(notes) * leading(_SMALL) - len(captions) * _PARAGRAPH
    most = room // leading(_CAPTION)
    wanted = [len(wrap(f"“{caption}”", _CAPTION, _TEXT, most)) for caption in captions]
    parts = []  # lines, size, colour
    for caption, lines in zip(captions, wanted, strict=True):
        if caption:
            # An equal part of the lines, or all lines that the other captions leave.
            limit = max(1, most // len(captions), most - (sum(wanted) - lines))
            parts.append((wrap(f"“{caption}”", _CAPTION, _TEXT, limit), _CAPTION, _INK))
        else:
            parts.append((["(empty)"], _CAPTION, _GREY))
    if notes:
        parts.append((notes, _SMALL, _GREY))
    height = sum(len(lines) * leading(size) + _PARAGRAPH for lines, size, _ in parts) - _PARAGRAPH
    y += (SIDE - height) // 2
    for lines, size, colour in parts:
        write(pen, (x, y), lines, size=size, colour=colour)
        y += len(lines) * leading(size) + _PARAGRAPH


__all__ = [
    "RIGHT",
    "SIDE",
    "Drawable",
    "ResultRow",
    "TripletRow",
    "check_destination",
    "encode",
    "results_grid",
    "save",
    "triplet_grid",
]
