"""The curves of a run as one picture: recalls, losses and the optimiser's numbers over the steps.

    curves = read_curves("runs/garments")         # cmap_jax.workdir.event_files
    write_bytes("curves.png", draw_curves(curves, "png"))

The same curves give the same bytes.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from cmap_jax.workdir.event_files import Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Numbers that are constant, that measure the machine, or that have another scale than recalls.
_LEFT_OUT = {
    *("queries", "skipped", "gallery_images", "tied_queries", "median_rank", "mean_rank"),
    *("uptime", "steps_per_sec", "skipped_steps"),
}
_BEST = "best/"  # one point each: the evaluation at the end
_LOSS = "loss"
_COLUMNS, _WIDTH, _HEIGHT = 2, 5.0, 2.7  # panels in a row; size of a panel, inches
_FEW = 60  # points of a line, up to which each is marked
_DPI = 110

# Okabe and Ito's palette without its yellow, which is lost on white; the styles tell the lines
# apart where colours do not.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_STYLES = ("-", "--", "-.", ":")
INK, GRID = "#202020", "#d8d8d8"
_STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.titlecolor"), INK),
    "axes.grid": True,
    "grid.color": GRID,
    "font.size": 9.0,
    "svg.fonttype": "none",  # letters remain text, which a reader can search and enlarge
    "svg.hashsalt": "cmap_jax",
    "legend.frameon": False,
}


def panels(curves: Curves) -> dict[str, dict[str, Mapping[int, float]]]:
    """Return the lines of each panel by title and name, evaluations first, then losses.

    A tag's last part is the line's name, and the part before it the panel's title; a tag of one
    part is a panel of its own.
    """
    grouped: dict[str, dict[str, Mapping[int, float]]] = {}
    for tag, values in curves.items():
        group, _, name = tag.rpartition("/")
        if name not in _LEFT_OUT and not tag.startswith(_BEST) and values:
            grouped.setdefault(group or name, {})[name] = values
    rank = {_LOSS: 1}
    return dict(
        sorted(grouped.items(), key=lambda item: rank.get(item[0], 2 * (item[0] in curves)))
    )


def draw_curves(curves: Curves, kind: Literal["png", "svg"]) -> bytes:
    """Draw all panels on one sheet.

    Args:
        curves: values by tag and step.
        kind: format of the result. An SVG has no background, and the colours `LINES`, `INK` and
            `GRID`, which a page may replace.

    Raises:
        ValueError: no curve to draw.
    """
    import matplotlib
    from matplotlib.figure import Figure

    drawn = panels(curves)
    if not drawn:
        raise ValueError("nothing to draw: no curves")
    rows = math.ceil(len(drawn) / _COLUMNS)
    last = max(step for lines in drawn.values() for values in lines.values() for step in values)
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_COLUMNS * _WIDTH, rows * _HEIGHT), layout="constrained")
        grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for axes, (title, lines) in zip(grid, drawn.items(), strict=False):
            _draw_panel(axes, title, lines, last)
        for axes in grid[len(drawn) :]:
            axes.set_axis_off()
        encoded = io.BytesIO()
        figure.savefig(encoded, format=kind, transparent=kind == "svg", **_saving(kind))
    return encoded.getvalue()


def _saving(kind: str) -> dict[str, Any]:
    """Return options without which a file would have the date and the library's name in it."""
    if kind == "png":
        return {"dpi": _DPI, "metadata": {"Software": None}}
    return {"metadata": dict.fromkeys(("Date", "Creator", "Format", "Type"))}


def _draw_panel(
    axes: "Axes", title: str, lines: Mapping[str, Mapping[int, float]], last: int
) -> None:
    """Draw lines over the steps up to ``last``, the same in all panels."""
    axes.set_title(title.replace("_", " "), loc="left")
    for (name, values), (color, style) in zip(lines.items(), _looks(len(lines)), strict=True):
        marker = "." if len(values) <= _FEW else ""
        label = name.replace("_", " ")
        axes.plot(*_points(values), color=color, ls=style, marker=marker, label=label, lw=1.4)
    axes.set_xlabel("step")
    axes.set_xlim(0, max(1, 1.02 * last))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)


def _points(values: Mapping[int, float]) -> tuple[Sequence[int], Sequence[float]]:
    return list(values), list(values.values())


def _looks(count: int) -> Iterator[tuple[str, str]]:
    """Yield a color and a style for each line of a panel; no two lines of 24 look alike."""
    for number in range(count):
        yield LINES[number % len(LINES)], _STYLES[number // len(LINES) % len(_STYLES)]
