"""A report's pictures, and its files: FILE.html, FILE.md, and the folder FILE with the pictures."""

import os

from etils import epath
from PIL import Image

from cmap_jax.files import check_can_write, write_bytes
from cmap_jax.reporting.document import Document, Picture
from cmap_jax.reporting.html import to_html
from cmap_jax.reporting.markdown import file_of, to_markdown
from cmap_jax.visualization.curves import GRID, INK, LINES, draw_curves, panels
from cmap_jax.visualization.grids import encode
from cmap_jax.workdir.event_files import Curves

_SUFFIX = ".html"
_KINDS = {".jpg", ".png"}  # suffixes of pictures
# The page's variables for the colors of a drawing; see style.css.
_VARIABLES = {
    INK: "var(--ink)",
    GRID: "var(--line)",
    **{color: f"var(--line-{number})" for number, color in enumerate(LINES, 1)},
}


def check_report(path: str | os.PathLike) -> None:
    """Refuse a file that `write_report` could not write, before the work for it starts.

    Raises:
        ValueError: the suffix is not .html.
        OSError: it is a folder, its folder cannot be made or written into, or a file is in the
            pictures' way; names it.
    """
    path = epath.Path(path)
    if path.suffix != _SUFFIX:
        raise ValueError(f"{path}: a report's name must end in {_SUFFIX}")
    for file in (path, path.with_suffix(".md")):
        if file.is_dir():
            raise IsADirectoryError(f"{file}: is a folder, where the report belongs; move it away")
    folder = path.with_suffix("")
    if folder.is_dir() and (others := {file.suffix for file in folder.iterdir()} - _KINDS):
        kinds = " and ".join(sorted(others)) or "none"
        raise ValueError(
            f"{folder}: the report's pictures would go there, and it holds something else "
            f"(suffixes {kinds}): give the report another name"
        )
    check_can_write(path.parent)
    check_can_write(folder)


def write_report(document: Document, path: str | os.PathLike) -> None:
    """Write a report as HTML, and beside it as Markdown with its pictures.

    Args:
        document: the report.
        path: name of the HTML file, which ends in ``.html`` and comes last.
    """
    path = epath.Path(path)
    folder = path.with_suffix("")
    for picture in document.pictures():
        write_bytes(folder / file_of(picture), picture.content)
    texts = {".md": to_markdown(document, folder.name), _SUFFIX: to_html(document)}
    for suffix, text in texts.items():
        # A name whose bytes are no UTF-8 is shown by its escapes.
        write_bytes(path.with_suffix(suffix), text.encode("utf-8", "backslashreplace"))


def curves_picture(curves: Curves) -> Picture:
    """Return the picture of a run's curves.

    Raises:
        ValueError: no curve to draw.
    """
    drawing = draw_curves(curves, "svg").decode()
    drawing = drawing[drawing.index("<svg") :]  # without the declarations of a file of its own
    for color, variable in _VARIABLES.items():
        drawing = drawing.replace(color, variable)
    last = max(step for values in curves.values() for step in values)
    text = f"Curves over {last:,} steps: {', '.join(panels(curves))}"
    content = draw_curves(curves, "png")
    return Picture(name="curves", kind="png", content=content, text=text, drawing=drawing)


def grid_picture(name: str, grid: Image.Image, text: str) -> Picture:
    """Return a grid as a picture of a report."""
    return Picture(name=name, kind="jpg", content=encode(grid, "JPEG"), text=text)
