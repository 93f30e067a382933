"""Heat maps on their pictures, on one sheet: a row a part of the score, a group a level.

    maps = explain(trained, [reference], [text], [target])
    rows = overlay_rows(maps, 0, [pixels_of_reference, pixels_of_target])
    save(overlay_sheet(rows, title), "explain.png")

The same rows give the same bytes.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from cmap_jax.visualization.colors import scale
from cmap_jax.visualization.heatmaps import HeatMaps, ImageHeat
from cmap_jax.visualization.lettering import leading, wrap, write

# Pixels. `SIDE` is a picture's side.
SIDE = 128
_GAP, _BETWEEN, _MARGIN, _LABEL = 8, 24, 28, 108
_TITLE, _HEADER, _SMALL = 20, 13, 12  # font sizes
_BAR = (180, 12)  # the legend's width and height
_PAPER, _INK, _GREY, _HAIRLINE = (255, 255, 255), (32, 32, 32), (112, 112, 112), (216, 216, 216)
_EMPTY = (232, 232, 232)
# Shares of the colour over the picture at the weakest and the strongest point.
_WEAKEST, _STRONGEST = 0.4, 0.7


@dataclasses.dataclass(frozen=True)
class Tile:
    """A heat map with the lines under it.

    Attributes:
        heat: [h, w], 0 or more, in units of its own maximum; None: the picture alone.
        lines: texts under it.
    """

    heat: Float[np.ndarray, "h w"] | None
    lines: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class OverlayRow:
    """A row of the sheet.

    Attributes:
        label: the text before it, such as "target, preserved".
        pixels: the picture as the model reads it.
        groups: tiles by the header over them; the same headers and numbers of tiles in every row
            that has any.
    """

    label: str
    pixels: UInt8[np.ndarray, "S S 3"]
    groups: dict[str, Sequence[Tile]]


def overlay(
    pixels: UInt8[np.ndarray, "S S 3"], heat: Float[np.ndarray, "h w"], side: int = SIDE
) -> Image.Image:
    """Lay a heat map over a grey copy of its picture.

    Args:
        pixels: the picture.
        heat: 0 or more; its maximum has the strongest colour.
        side: side of the result, pixels.

    Returns:
        An image of mode "RGB".
    """
    size = (side, side)
    grey = Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.LANCZOS)
    strongest = float(heat.max())
    share = np.asarray(heat / strongest if strongest > 0 else heat, np.float32)
    smooth = Image.fromarray(share).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(_blend(np.asarray(grey)[..., None], np.clip(np.asarray(smooth), 0, 1)))


def sum_levels(
    maps: Iterable[Float[np.ndarray, "h w"]], side: int = SIDE
) -> Float[np.ndarray, "side side"]:
    """Return a score's heat maps at all levels as one map.

    See docs/method.md, section 13. It is 0 everywhere where there are no maps.

    Args:
        maps: a map a level, 0 or more, of any sizes.
        side: side of the result, points.
    """
    total = np.zeros((side, side), np.float32)
    for heat in maps:
        density = Image.fromarray(np.asarray(heat, np.float32) * heat.size)
        total += np.maximum(density.resize((side, side), Image.Resampling.BICUBIC), 0)
    return total


def scale_bar(width: int, height: int) -> Image.Image:
    """Return the colours of an overlay over a medium grey, the weakest point on the left."""
    shares = np.broadcast_to(np.linspace(0, 1, width), (height, width))
    return Image.fromarray(_blend(np.full((*shares.shape, 1), 128), shares))


def _blend(grey: np.ndarray, share: np.ndarray) -> UInt8[np.ndarray, "*shape 3"]:
    """Return the colours of a scale over grey; stronger colours cover more of it."""
    opacity = (_WEAKEST + (_STRONGEST - _WEAKEST) * share)[..., None]
    return ((1 - opacity) * grey + opacity * scale(share)).round().astype(np.uint8)


def overlay_rows(
    maps: HeatMaps, number: int, pictures: Sequence[UInt8[np.ndarray, "S S 3"]]
) -> list[OverlayRow]:
    """Return the rows that show a query's heat maps.

    Args:
        maps: heat maps on the host.
        number: position of the query among them.
        pictures: the reference and, where there are targets, the target, as the model reads them.
    """
    heats = [("reference", maps.reference), ("target", maps.target)]
    heats = [(name, heat) for name, heat in heats if heat is not None]
    rows = []
    for (name, heat), pixels in zip(heats, pictures, strict=True):
        for k, branch in enumerate(maps.branches if heat.heat else ()):
            groups = {
                _header(level, heat.heat[level]): list(
                    _tiles(heat, k, maps.levels.index(level), level, number)
                )
                for level in maps.levels
                if level in heat.heat
            }
            rows.append(OverlayRow(f"{name}\n{branch}", pixels, groups))
        if heat.rollout is not None:
            tile = Tile(heat.rollout[number], ("all parts alike",))
            rows.append(OverlayRow(f"{name}\nattention roll-out", pixels, {"": [tile]}))
    return rows


def _header(level: str, maps: np.ndarray) -> str:
    """Return a level's name with the size of its maps, which are drawn larger and smooth."""
    return f"{level}, {maps.shape[-2]} x {maps.shape[-1]} points"


def _tiles(heat: ImageHeat, branch: int, row: int, level: str, number: int) -> Iterator[Tile]:
    """Yield the tiles of a branch at a level, the ``row``-th of all levels."""
    maps = heat.heat[level][branch, :, number]
    yield Tile(maps[0], ("whole", f"score {heat.scores[branch, row, number]:+.3f}"))
    dimensions = heat.dimensions[branch, row, :, number]
    parts = heat.contributions[branch, row, :, number]
    for dimension, part, tile in zip(dimensions, parts, maps[1:], strict=True):
        yield Tile(tile, (f"dimension {dimension}", f"adds {part:+.3f}"))


def overlay_sheet(rows: Sequence[OverlayRow], title: str) -> Image.Image:
    """Draw rows of heat maps with a legend.

    Args:
        rows: from top to bottom.
        title: the line on top, such as the model and the text.

    Returns:
        An image of mode "RGB".

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("nothing to draw: the encoder has neither maps nor attention")
    widths = [_row_width(row) for row in rows]
    width = 2 * _MARGIN + max(max(widths), _LABEL + 3 * (SIDE + _GAP))
    title_lines = wrap(title, _TITLE, width - 2 * _MARGIN, 2)
    top = _MARGIN + len(title_lines) * leading(_TITLE) + _GAP
    row_height = leading(_HEADER) + SIDE + 2 * leading(_SMALL) + 2 * _GAP
    legend_at = top + len(rows) * row_height + _GAP
    height = legend_at + leading(_SMALL) + _BAR[1] + _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    write(ImageDraw.Draw(sheet), (_MARGIN, _MARGIN), title_lines, size=_TITLE, colour=_INK)
    for number, row in enumerate(rows):
        _draw_row(sheet, top + number * row_height, row)
    _draw_legend(sheet, legend_at)
    return sheet


def _row_width(row: OverlayRow) -> int:
    groups = [len(tiles) * (SIDE + _GAP) - _GAP for tiles in row.groups.values()]
    return _LABEL + SIDE + sum(_BETWEEN + group for group in groups)


def _draw_row(sheet: Image.Image, y: int, row: OverlayRow) -> None:
    """Draw a row: label, picture, and the tiles of each level under the level's name."""
    pen = ImageDraw.Draw(sheet)
    pen.line((_MARGIN, y - _GAP // 2, sheet.width - _MARGIN, y - _GAP // 2), fill=_HAIRLINE)
    pictures_at = y + leading(_HEADER)
    lines = [line for part in row.label.split("\n") for line in wrap(part, _HEADER, _LABEL, 2)]
    write(pen, (_MARGIN, pictures_at), lines, size=_HEADER, colour=_INK)
    x = _MARGIN + _LABEL
    _paste(sheet, x, pictures_at, Image.fromarray(row.pixels).resize((SIDE, SIDE)))
    x += SIDE + _BETWEEN
    for header, tiles in row.groups.items():
        write(pen, (x, y), [header], size=_HEADER, colour=_GREY)
        for tile in tiles:
            _draw_tile(sheet, x, pictures_at, row.pixels, tile)
            x += SIDE + _GAP
        x += _BETWEEN - _GAP


def _draw_tile(sheet: Image.Image, x: int, y: int, pixels: np.ndarray, tile: Tile) -> None:
    """Draw a heat map over its picture, or say that there is none."""
    pen = ImageDraw.Draw(sheet)
    if tile.heat.max() > 0:
        _paste(sheet, x, y, overlay(pixels, tile.heat))
    else:
        _paste(sheet, x, y, Image.new("RGB", (SIDE, SIDE), _EMPTY))
        middle = (x + SIDE // 2, y + SIDE // 2 - leading(_SMALL))
        lines = ["no region", "raises it"]
        write(pen, middle, lines, size=_SMALL, colour=_GREY, anchor="ma")
    below = (x + SIDE // 2, y + SIDE + _GAP // 2)
    write(pen, below, list(tile.lines), size=_SMALL, colour=_GREY, anchor="ma")


def _paste(sheet: Image.Image, x: int, y: int, picture: Image.Image) -> None:
    """Paste a picture with a thin line around it."""
    sheet.paste(picture, (x, y))
    ImageDraw.Draw(sheet).rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline=_HAIRLINE)


def _draw_legend(sheet: Image.Image, y: int) -> None:
    """Draw the scale, as it looks over grey, with its ends named."""
    pen = ImageDraw.Draw(sheet)
    x = _MARGIN + _LABEL
    write(pen, (x, y), ["0"], size=_SMALL, colour=_GREY)
    words = ["the strongest point; every picture has a scale of its own"]
    write(pen, (x + _BAR[0] + 2 * _GAP + 8, y), words, size=_SMALL, colour=_GREY)
    sheet.paste(scale_bar(*_BAR), (x + _GAP + 8, y + 2))


__all__ = [
    "SIDE",
    "OverlayRow",
    "Tile",
    "overlay",
    "overlay_rows",
    "overlay_sheet",
    "scale_bar",
    "sum_levels",
]
