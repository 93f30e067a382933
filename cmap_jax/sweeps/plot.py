"""A picture of a sweep's table: a dot for each seed, a mark for each mean, panel by panel."""

import io
from collections.abc import Sequence
from typing import Any

from cmap_jax.evaluation.results_rows import columns_of
from cmap_jax.sweeps.results import RowSummary
from cmap_jax.sweeps.tables import protocols_of

# Black, grey and the blue of Okabe and Ito's palette, which colour-blind people can tell apart.
_INK, _GREY, _MARK = "#202020", "#8c8c8c", "#0072b2"
_PANEL, _ROW, _EDGES = 2.6, 0.32, 1.1  # inches: width of a panel, height of a row, what is around
_LETTER = 0.075  # inches, the mean width of a letter of a row's name
_LONGEST = 40  # letters of a row's name
_LEGEND = "dots: seeds; diamonds: means"
_COMPARED = f"{_LEGEND}, filled where the 95% interval of the difference from {{first}} excludes 0"


def draw(rows: Sequence[RowSummary], title: str) -> bytes:
    """Return a PNG with a line of panels for each protocol and a panel for each of its numbers.

    Dots are seeds, marks are means: filled where the difference from the first row excludes zero. A
    dashed line stands at the first row's mean.

    Args:
        rows: one or more rows of a table.
        title: stands above the panels.
    """
    figure = _draw_panels(rows)
    legend = _LEGEND
    if any(row.differences for row in rows):
        legend = _COMPARED.format(first=_short(rows[0].runs.row.name))
    figure.suptitle(title, fontsize=11, color=_INK, parse_math=False)
    figure.supxlabel(legend, fontsize=8, color=_INK, parse_math=False)
    encoded = io.BytesIO()
    # Without the version of matplotlib the same rows give the same bytes.
    figure.savefig(encoded, format="png", dpi=150, metadata={"Software": None})
    return encoded.getvalue()


def _draw_panels(rows: Sequence[RowSummary]) -> Any:
    """Return a figure with all panels."""
    # pyplot would keep the figure and choose a window system.
    from matplotlib.figure import Figure

    protocols = protocols_of(rows)
    across = max(len(columns_of(protocol)) for protocol in protocols.values())
    names = [_short(row.runs.row.name) for row in rows]
    width = _EDGES + _LETTER * max(map(len, names)) + _PANEL * across
    height = _EDGES + len(protocols) * (_EDGES + _ROW * len(rows))
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(len(protocols), across, squeeze=False, sharey="row")
    for line, (name, protocol) in zip(panels, protocols.items(), strict=True):
        columns = columns_of(protocol)
        for axes, column in zip(line, columns, strict=False):
            _draw_panel(axes, rows, name, column)
        for axes in line[len(columns) :]:
            axes.set_axis_off()
        line[0].set_yticks(range(len(rows)), names, parse_math=False)
        line[0].set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
        line[0].set_title(name, loc="left", fontsize=10, color=_INK)
    return figure


def _draw_panel(axes: Any, rows: Sequence[RowSummary], protocol: str, column: str) -> None:
    """Draw one number of all rows."""
    for height, row in enumerate(rows):
        number = row.numbers.get(protocol, {}).get(column)
        if number is None:
            continue
        values = list(number.values.values())
        if height == 0 and len(rows) > 1:
            axes.axvline(number.mean, color=_GREY, linewidth=0.8, linestyle="--", zorder=0)
        axes.plot([min(values), max(values)], [height] * 2, color=_GREY, linewidth=1.2, zorder=1)
        axes.scatter(values, [height] * len(values), s=10, color=_INK, zorder=4)
        difference = row.differences.get(protocol, {}).get(column)
        filled = difference is not None and difference.is_significant()
        face = _MARK if filled else "white"
        axes.scatter(
            number.mean, height, s=46, marker="D", facecolor=face, edgecolor=_MARK, zorder=3
        )
    axes.set_xlabel(f"{column} (%)", fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
