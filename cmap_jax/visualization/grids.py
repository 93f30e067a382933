"""Grids of triplets and of search results, as one puts them in a paper's appendix.

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
import uuid
from collections.abc import Sequence

from etils import epath
from PIL import Image, ImageDraw

from cmap_jax.processing.images import ImageReadError, ImageSource, pad_to_square, read_image
from cmap_jax.visualization.lettering import leading, wrap, write

# Pixels. `SIDE` is an image's; a page takes as many triplets side by side as fit on it.
SIDE = 160
_TEXT, _ARROW, _GAP, _BETWEEN, _MARGIN, _PAGE = 184, 40, 12, 56, 28, 1400
_FRAME, _BADGE = 4, 11  # width of a frame, radius of the mark on it
_TITLE, _CAPTION, _HEADER, _SMALL = 22, 15, 13, 12  # font sizes
_NAME_LINES, _NOTE_LINES = 2, 2

_PAPER, _INK, _GREY, _HAIRLINE = (255, 255, 255), (32, 32, 32), (112, 112, 112), (216, 216, 216)
_MISSING = (232, 232, 232)
# Okabe and Ito's bluish green, which colour-blind people tell from the others too.
RIGHT = (0, 158, 115)

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_SAVING = {"PNG": {}, "JPEG": {"quality": 92, "subsampling": 0}}

# An image that its caller could not get is drawn as the tile that says why.
Drawable = ImageSource | ImageReadError


@dataclasses.dataclass(frozen=True)
class TripletRow:
    """A reference image, the captions, and the image or images that they lead to.

    Attributes:
        reference: what `read_image` takes, or the error in its place.
        captions: in order; may be empty.
        targets: images, as `reference`.
        names: ids to write under the reference and each target; empty: none.
        note: small print below the captions, such as the category.
    """

    reference: Drawable
    captions: Sequence[str]
    targets: Sequence[Drawable]
    names: Sequence[str] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """A query and the best images that were found for it.

    Attributes:
        reference: what `read_image` takes, or the error in its place.
        captions: in order; may be empty.
        results: images, best first, each with whether it is a right one.
        rank: 0-based rank of the best right image, told where none is among the results; None:
            not known.
        names: ids to write under the reference and each result; empty: none.
        note: small print below the captions, such as the category.
    """

    reference: Drawable
    captions: Sequence[str]
    results: Sequence[tuple[Drawable, bool]]
    rank: int | None
    names: Sequence[str] = ()
    note: str = ""


def triplet_grid(rows: Sequence[TripletRow], title: str) -> Image.Image:
    """Draw triplets: reference, text, target; side by side where the page is wide enough.

    Args:
        rows: drawn in reading order. An image that cannot be read becomes a grey tile with the
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
        title: the line on top, such as the protocol's name.

    Returns:
        An image of mode "RGB".

    Raises:
        ValueError: no rows, or names that are not one an image.
        TypeError: an image is nothing that `read_image` takes.
    """
    drawn = []
    for row in rows:
        notes = [row.note] if row.note else []
        if row.rank is not None and not any(correct for _, correct in row.results):
            notes.append(f"right one at rank {row.rank + 1:,}")
        drawn.append(_row(row, row.results, notes))
    columns = max((len(row.results) for row in rows), default=0)
    return _draw(drawn, [str(place + 1) for place in range(columns)], title)


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
    if "://" in os.fspath(path):
        return  # only writing tells
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{path}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: no permission to write into {nearest}")


def save(image: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture beside its place and rename it there; parents are made.

    Raises:
        ValueError, OSError: as `check_destination`.
    """
    check_destination(path)
    path = epath.Path(path)
    kind = _FORMATS[path.suffix.lower()]
    encoded = io.BytesIO()
    image.save(encoded, kind, **_SAVING[kind])
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        scratch.write_bytes(encoded.getvalue())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _Cell:
    image: Drawable
    name: list[str]  # lines
    correct: bool


@dataclasses.dataclass(frozen=True)
class _Row:
    captions: Sequence[str]
    notes: Sequence[str]
    cells: Sequence[_Cell]  # the reference first


def _row(
    row: TripletRow | ResultRow, found: Sequence[tuple[Drawable, bool]], notes: list[str]
) -> _Row:
    images = [(row.reference, False), *found]
    names = row.names or [""] * len(images)
    if len(names) != len(images):
        raise ValueError(f"{len(names)} names for {len(images)} images; give one an image")
    cells = [
        _Cell(image, wrap(name, _SMALL, SIDE, _NAME_LINES), correct)
        for (image, correct), name in zip(images, names, strict=True)
    ]
    return _Row(row.captions, notes, cells)


def _draw(rows: Sequence[_Row], headers: Sequence[str], title: str) -> Image.Image:
    """Return the sheet with a title, the headers over every column, and the rows."""
    if not rows:
        raise ValueError("nothing to draw: no rows")
    found_at = SIDE + _GAP + _TEXT + _ARROW
    row_width = found_at + len(headers) * (SIDE + _GAP) - _GAP
    names = max(len(cell.name) for row in rows for cell in row.cells)
    row_height = SIDE + names * leading(_SMALL) + 2 * _GAP
    across = min(len(rows), max(1, (_PAGE - 2 * _MARGIN + _BETWEEN) // (row_width + _BETWEEN)))
    width = 2 * _MARGIN + across * (row_width + _BETWEEN) - _BETWEEN
    top = _MARGIN + leading(_TITLE) + _GAP + leading(_HEADER) + 2 * _GAP
    height = top + math.ceil(len(rows) / across) * row_height - 2 * _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)

    write(pen, _MARGIN, _MARGIN, wrap(title, _TITLE, width - 2 * _MARGIN, 1), _TITLE, _INK)
    y = _MARGIN + leading(_TITLE) + _GAP
    for column in range(across):
        x = _MARGIN + column * (row_width + _BETWEEN)
        write(pen, x + SIDE // 2, y, ["reference"], _HEADER, _GREY, anchor="ma")
        write(pen, x + SIDE + _GAP, y, ["text"], _HEADER, _GREY)
        for place, header in enumerate(headers):
            middle = x + found_at + place * (SIDE + _GAP) + SIDE // 2
            write(pen, middle, y, [header], _HEADER, _GREY, anchor="ma")
        rule = y + leading(_HEADER) + _GAP // 2
        pen.line((x, rule, x + row_width, rule), fill=_HAIRLINE)
    for number, row in enumerate(rows):
        line, column = divmod(number, across)
        x, y = _MARGIN + column * (row_width + _BETWEEN), top + line * row_height
        _draw_text(pen, x + SIDE + _GAP, y, row)
        _draw_arrow(pen, x + found_at - _ARROW, y + SIDE // 2)
        places = [x, *range(x + found_at, width, SIDE + _GAP)]
        for cell, place in zip(row.cells, places, strict=False):
            _draw_cell(sheet, place, y, cell)
    return sheet


def _draw_cell(sheet: Image.Image, x: int, y: int, cell: _Cell) -> None:
    """Draw an image, its frame and its name."""
    pen = ImageDraw.Draw(sheet)
    sheet.paste(_tile(cell.image), (x, y))
    # Without the line a photograph on white would have no edge.
    pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline=_HAIRLINE)
    if cell.correct:
        out = _FRAME + 1
        frame = (x - out, y - out, x + SIDE - 1 + out, y + SIDE - 1 + out)
        pen.rectangle(frame, outline=RIGHT, width=_FRAME)
        centre = (x + SIDE - _BADGE, y + _BADGE)
        pen.circle(centre, _BADGE + 2, fill=_PAPER)
        pen.circle(centre, _BADGE, fill=RIGHT)
        tick = [(centre[0] + dx, centre[1] + dy) for dx, dy in ((-5, 0), (-1, 4), (5, -4))]
        pen.line(tick, fill=_PAPER, width=3, joint="curve")
    write(pen, x + SIDE // 2, y + SIDE + _GAP // 2, cell.name, _SMALL, _GREY, anchor="ma")


def _tile(image: Drawable) -> Image.Image:
    """Return an image as a square of `SIDE`, or a grey one with the reason why there is none."""
    if isinstance(image, ImageReadError):
        return _missing(str(image))
    try:
        picture = read_image(image)
    except ImageReadError as error:
        message = str(error)
        # It begins with the path, which is long, or with the kind of thing that was given.
        path = isinstance(image, str | os.PathLike)
        name = os.fspath(image) if path else message.partition(":")[0]
        return _missing(message.removeprefix(f"{name}: "))
    # Padded last, so that the edge to the padding is sharp, and a huge image stays affordable.
    scale = SIDE / max(picture.size)
    size = tuple(max(1, round(pixels * scale)) for pixels in picture.size)
    return pad_to_square(picture.resize(size, Image.Resampling.LANCZOS))


def _missing(reason: str) -> Image.Image:
    tile = Image.new("RGB", (SIDE, SIDE), _MISSING)
    room = SIDE - 2 * _GAP
    lines = wrap(reason, _HEADER, room, room // leading(_HEADER))
    y = (SIDE - len(lines) * leading(_HEADER)) // 2
    write(ImageDraw.Draw(tile), SIDE // 2, y, lines, _HEADER, _INK, anchor="ma")
    return tile


def _draw_text(pen: ImageDraw.ImageDraw, x: int, y: int, row: _Row) -> None:
    """Write captions and notes in the middle of the row's height."""
    parts = []  # lines, size, colour
    notes = [line for note in row.notes for line in wrap(note, _SMALL, _TEXT, _NOTE_LINES)]
    captions = list(row.captions) or [""]
    room = SIDE - len(notes) * leading(_SMALL) - len(captions) * _GAP // 2
    most = max(1, room // leading(_CAPTION) // len(captions))
    for caption in captions:
        if caption.strip():
            parts.append((wrap(f"“{caption.strip()}”", _CAPTION, _TEXT, most), _CAPTION, _INK))
        else:
            parts.append((["(empty)"], _CAPTION, _GREY))
    if notes:
        parts.append((notes, _SMALL, _GREY))
    gaps = (len(parts) - 1) * _GAP // 2
    height = gaps + sum(len(lines) * leading(size) for lines, size, _ in parts)
    y += (SIDE - height) // 2
    for lines, size, colour in parts:
        write(pen, x, y, lines, size, colour)
        y += len(lines) * leading(size) + _GAP // 2


def _draw_arrow(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    tip = x + _ARROW - _GAP
    pen.line((x + _GAP // 2, y, tip - 6, y), fill=_GREY, width=2)
    pen.polygon([(tip - 8, y - 5), (tip, y), (tip - 8, y + 5)], fill=_GREY)


__all__ = [
    "RIGHT",
    "SIDE",
    "ResultRow",
    "TripletRow",
    "check_destination",
    "results_grid",
    "save",
    "triplet_grid",
]
