"""The tools of `drawing`: a pen on an oversampled canvas, printed cloth, and the photograph.

Shapes are points [N, 2] in units of 1/100 of the picture, with the origin at its center and y
downwards; colors are red, green, blue, 0 to 255.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from PIL.ImageDraw import ImageDraw as Draw

_OVERSAMPLING = 4
Color = tuple[int, int, int]

# A garment's color -> RGB of cloth, print, blossom, trim and lining, line. Prints have the opposite
# lightness and cover less than the cloth, so that the cloth's color dominates. The trim is far from
# the dress form's linen, which shows beside it in the opening of a neckline.
_PALETTE = {
    "red": ((208, 30, 42), (255, 238, 222), (255, 238, 222), (112, 6, 18), (84, 4, 12)),
    "pink": ((250, 150, 192), (160, 28, 98), (255, 250, 252), (168, 34, 104), (112, 20, 70)),
    "yellow": ((252, 210, 38), (164, 76, 4), (186, 60, 14), (136, 88, 6), (96, 60, 4)),
    "green": ((26, 142, 70), (234, 250, 224), (234, 250, 224), (4, 72, 32), (2, 52, 22)),
    "blue": ((38, 98, 218), (232, 241, 255), (232, 241, 255), (8, 34, 108), (6, 26, 84)),
    "purple": ((124, 58, 172), (242, 228, 255), (242, 228, 255), (60, 16, 92), (44, 10, 70)),
    "white": ((248, 248, 250), (70, 82, 108), (204, 62, 104), (58, 70, 98), (74, 80, 98)),
    "black": ((34, 34, 40), (226, 226, 232), (226, 226, 232), (190, 156, 96), (104, 98, 94)),
}
_HEART, _LEAF = (255, 150, 30), (96, 168, 84)


class Pen:
    """Draws on an oversampled canvas, with the garment's own scale, tilt and position.

    `canvas` holds the colors, `alpha` the opacity, `cloth` the (patterned) cloth to cut from,
    `shade` the folds (darker is deeper).
    """

    def __init__(self, color: str, rng: np.random.Generator, size: int) -> None:
        self.side = size * _OVERSAMPLING
        self.main, self.accent, self.blossom, self.trim, self.line = _PALETTE[color]
        angle = np.deg2rad(rng.uniform(-4, 4))
        scale = rng.uniform(0.94, 1.0)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        self._matrix = turn * scale * self.side / 100
        self._origin = (50 + rng.uniform(-1.5, 1.5, 2)) * self.side / 100
        self.unit = scale * self.side / 100
        # The canvas is dark where it is empty: the edge is averaged with the outline's color.
        self.canvas = Image.new("RGB", (self.side, self.side), self.line)
        self.alpha = Image.new("L", (self.side, self.side), 0)
        self.shade = Image.new("L", (self.side, self.side), 255)
        self._on_canvas = ImageDraw.Draw(self.canvas)
        self._on_alpha = ImageDraw.Draw(self.alpha)
        self._on_shade = ImageDraw.Draw(self.shade)

    def to_pixels(self, points: np.ndarray) -> list[float]:
        """Points [N, 2] in canvas pixels, as PIL takes them: x, y, x, y, ..."""
        return (np.asarray(points) @ self._matrix + self._origin).ravel().tolist()

    def _width(self, width: float) -> int:
        return max(1, round(width * self.unit))

    def cut(self, points: np.ndarray) -> None:
        """Cuts a piece [N, 2] from the cloth and outlines it."""
        flat = self.to_pixels(points)
        left, top = max(0, int(min(flat[::2]))), max(0, int(min(flat[1::2])))
        right, bottom = (min(self.side, int(max(flat[k::2])) + 2) for k in (0, 1))
        mask = Image.new("L", (right - left, bottom - top), 0)
        inside = [value - (top if k % 2 else left) for k, value in enumerate(flat)]
        ImageDraw.Draw(mask).polygon(inside, fill=255)
        self.canvas.paste(self.cloth.crop((left, top, right, bottom)), (left, top), mask)
        self._on_alpha.polygon(flat, fill=255)
        width = self._width(1.1)
        self._on_canvas.line(flat + flat[:4], fill=self.line, width=width, joint="curve")
        self._on_alpha.line(flat + flat[:4], fill=255, width=width, joint="curve")

    def fill(self, points: np.ndarray, color: Color, *, edge: bool = False) -> None:
        """Paints a polygon [N, 2]; with `edge`, outlined."""
        flat = self.to_pixels(points)
        self._on_canvas.polygon(flat, fill=color)
        self._on_alpha.polygon(flat, fill=255)
        if edge:
            self._on_canvas.line(flat + flat[:4], fill=self.line, width=self._width(0.8))

    def stroke(self, points: np.ndarray, color: Color, width: float) -> None:
        """Paints a line through points [N, 2]; `width` in units."""
        flat, width = self.to_pixels(points), self._width(width)
        self._on_canvas.line(flat, fill=color, width=width, joint="curve")
        self._on_alpha.line(flat, fill=255, width=width, joint="curve")

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        """Paints a disc, such as a button."""
        _discs(self._on_canvas, self.to_pixels([(x, y)]), radius * self.unit, color)

    def fold(self, points: np.ndarray, depth: int, width: float = 2.0) -> None:
        """Darkens along a line [N, 2] by `depth` of 255, softly."""
        self._on_shade.line(self.to_pixels(points), fill=255 - depth, width=self._width(width))

    def lay_cloth(self, pattern: str, rng: np.random.Generator) -> None:
        """Prints the whole canvas with the pattern, for `cut`."""
        self.cloth = Image.new("RGB", (self.side, self.side), self.main)
        _PRINTS[pattern](self, ImageDraw.Draw(self.cloth), rng)


# --- prints -------------------------------------------------------------------------------------


def _solid(pen: Pen, draw: Draw, rng: np.random.Generator) -> None:
    del pen, draw, rng


def _mix(start: Color, end: Color, part: float) -> Color:
    return tuple(round(a + (b - a) * part) for a, b in zip(start, end, strict=True))


def _striped(pen: Pen, draw: Draw, rng: np.random.Generator) -> None:
    for y in np.arange(-60 + rng.uniform(0, 9.5), 60, 9.5):
        band = [(-60, y), (60, y), (60, y + 3.4), (-60, y + 3.4)]
        draw.polygon(pen.to_pixels(band), fill=pen.accent)


def _checked(pen: Pen, draw: Draw, rng: np.random.Generator) -> None:
    # Gingham: the bands are part of the way to the accent, and further where they cross.
    half, full = (_mix(pen.main, pen.accent, part) for part in (0.42, 0.85))
    xs = np.arange(-60 + rng.uniform(0, 10), 60, 10.0)
    ys = np.arange(-60 + rng.uniform(0, 10), 60, 10.0)
    w = 4.4
    for x in xs:
        draw.polygon(pen.to_pixels([(x, -60), (x + w, -60), (x + w, 60), (x, 60)]), fill=half)
    for y in ys:
        draw.polygon(pen.to_pixels([(-60, y), (60, y), (60, y + w), (-60, y + w)]), fill=half)
    for x in xs[(xs > -42) & (xs < 40)]:
        for y in ys[(ys > -42) & (ys < 42)]:
            square = [(x, y), (x + w, y), (x + w, y + w), (x, y + w)]
            draw.polygon(pen.to_pixels(square), fill=full)


def _lattice(across: float, down: float, rng: np.random.Generator) -> np.ndarray:
    """Points [N, 2] all over the canvas, every other row set off by half a step."""
    x0, y0 = rng.uniform(0, across), rng.uniform(0, down)
    return np.array(
        [
            (x, y)
            for row, y in enumerate(np.arange(-60 + y0, 50, down))
            for x in np.arange(-60 + x0 + across / 2 * (row % 2), 50, across)
        ]
    )


def _dotted(pen: Pen, draw: Draw, rng: np.random.Generator) -> None:
    _discs(draw, pen.to_pixels(_lattice(8.0, 5.6, rng)), 1.75 * pen.unit, pen.accent)


def _floral(pen: Pen, draw: Draw, rng: np.random.Generator) -> None:
    # Large blossoms on a jittered lattice: they never merge, and leave no bare patch.
    centers = _lattice(16.0, 12.5, rng)
    centers += rng.uniform(-1.6, 1.6, centers.shape)
    turns = rng.uniform(0, 2 * np.pi, (len(centers), 1))

    def around(radius: float, angles: np.ndarray) -> list[float]:
        angles = turns + angles
        ring = np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # [blossoms, angles, 2]
        return pen.to_pixels((centers[:, None] + radius * ring).reshape(-1, 2))

    _discs(draw, around(6.2, np.array([0.55, 3.6])), 1.5 * pen.unit, _LEAF)
    _discs(draw, around(3.0, np.arange(5) * 2 * np.pi / 5), 2.35 * pen.unit, pen.blossom)
    _discs(draw, pen.to_pixels(centers), 1.9 * pen.unit, _HEART)


def _discs(draw: Draw, flat: list[float], radius: float, color: Color) -> None:
    """Draws discs around x, y, x, y, ...; centers and radius are in canvas pixels."""
    for x, y in zip(flat[::2], flat[1::2], strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


_PRINTS = {
    "solid": _solid,
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
    "floral": _floral,
}


# --- photograph ---------------------------------------------------------------------------------


def photograph(pen: Pen, rng: np.random.Generator, size: int) -> Image.Image:
    """Puts the garment before a backdrop, with shadow, folds, light and noise."""
    rgb = np.asarray(pen.canvas.reduce(_OVERSAMPLING), np.float32)
    mask = pen.alpha.reduce(_OVERSAMPLING)
    alpha = np.asarray(mask, np.float32)[..., None] / 255
    shade = pen.shade.reduce(_OVERSAMPLING).filter(ImageFilter.GaussianBlur(size * 0.012))
    rgb = rgb * (np.asarray(shade, np.float32)[..., None] / 255)

    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    corners = rng.uniform(168, 226) + rng.uniform(-20, 20, (2, 3))  # two muted tones
    angle = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None])[..., None] / 2.83 + 0.5
    backdrop = corners[0] + (corners[1] - corners[0]) * slope
    shadow = mask.filter(ImageFilter.GaussianBlur(size * 0.028))
    shadow = np.roll(
        np.asarray(shadow, np.float32), (round(size * 0.028), round(size * 0.02)), (0, 1)
    )
    backdrop = backdrop * (1 - 0.38 * shadow[..., None] / 255)

    picture = backdrop + (rgb - backdrop) * alpha
    picture *= rng.uniform(0.93, 1.05) + rng.uniform(-0.06, 0.06) * ramp[:, None, None]
    grain = rng.standard_normal((size, size, 3), dtype=np.float32)
    picture += rng.uniform(1, 3.5) * grain
    return Image.fromarray(np.clip(picture + 0.5, 0, 255).astype(np.uint8))
