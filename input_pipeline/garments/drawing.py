"""Pictures of garments as a catalog shows them, on a dress form before a plain backdrop.

Shapes are in the units of `canvas`. Every garment stays inside the central 64/72 of the picture, so
that a crop of that part cuts nothing off.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from input_pipeline.garments.attributes import Garment, garment
from input_pipeline.garments.canvas import Pen, photograph

_SHOULDER, _ARMPIT, _WAIST, _CROTCH = -30.0, -12.0, -3.0, 2.5  # heights

_FORM, _FORM_SHADE = (231, 214, 197), (178, 156, 138)  # the dress form: linen

# Half widths of the body: shoulder, armpit, waist.
_BODY = {
    "dress": (22.0, 19.0, 14.5),
    "shirt": (23.0, 20.5, 20.0),
    "coat": (26.0, 24.0, 25.0),
    "jumpsuit": (22.0, 19.0, 16.0),
}
# One step of length is more than the difference between two types of the same length, so that "is
# longer" is true in the picture even if the type changes as well.
_HEM = {
    "dress": {"short": 12.0, "medium": 26.0, "long": 40.0},
    "shirt": {"short": 8.0, "medium": 21.0, "long": 34.0},
    "coat": {"short": 10.0, "medium": 24.0, "long": 38.0},
    "jumpsuit": {"short": 16.0, "medium": 28.0, "long": 40.0},
}
_SLEEVE = {"short": 0.30, "elbow": 0.62, "long": 1.0}  # fraction of the arm


def render(item: Garment, seed: int = 0, *, view: int = 0, size: int = 72) -> Image.Image:
    """Draws one picture of a garment.

    This is a pure function: `seed`, the garment and `view` determine the backdrop, the light, the
    noise, the phase of the pattern and the garment's position, size and tilt.

    Args:
        item: the garment to draw.
        seed: seed of the whole data set, not negative.
        view: number of the picture among those of the same garment, not negative.
        size: pixels a side; details are lost below 64.

    Returns:
        An RGB picture, `size` x `size`.
    """
    rng = np.random.default_rng([seed, item.index, view])
    pen = Pen(item.color, rng, size)
    pen.lay_cloth(item.pattern, rng)
    _dress_form(pen)
    if item.type == "coat":
        _body(pen, item)
        _sleeves(pen, item)
    else:
        _sleeves(pen, item)
        _body(pen, item)
    _FASTENINGS[item.type](pen, item)
    _neckline(pen, item)
    return photograph(pen, rng, size)


def render_files(directory: pathlib.Path, indices: Sequence[int], seed: int, size: int) -> None:
    """Writes `ID.jpg` into `directory` for the garment at each of some positions in the grid."""
    for index in indices:
        item = garment(index)
        picture = render(item, seed, size=size)
        # No chroma subsampling: at 72 pixels it would wash out collars and buttons.
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=95, subsampling=0)
        # PIL itself takes no notice where a nearly full disk takes only a part of a file.
        (directory / f"{item.id}.jpg").write_bytes(stream.getvalue())


# --- pieces -------------------------------------------------------------------------------------


def _curve(start: Sequence[float], bend: Sequence[float], end: Sequence[float]) -> np.ndarray:
    """A quadratic Bezier curve as points [9, 2]."""
    t = np.linspace(0, 1, 9)[:, None]
    start, bend, end = np.asarray(start), np.asarray(bend), np.asarray(end)
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end


def _mirrored(right: np.ndarray) -> np.ndarray:
    """Closes the right half of an outline [N, 2], top to bottom, with its mirror image [2N, 2]."""
    return np.concatenate([right, np.asarray(right)[::-1] * (-1, 1)])


def _dress_form(pen: Pen) -> None:
    right = np.concatenate(
        [[(0, -41.5), (3.8, -41)], _curve((5.6, -40), (5.4, -32), (14, _SHOULDER)), [(13, -20)]]
    )
    pen.fill(_mirrored(right), _FORM)
    pen.stroke([(-5.4, -39.6), (5.4, -39.6)], _FORM_SHADE, 1.2)
    pen.stroke(right[2:11], _FORM_SHADE, 0.8)
    pen.stroke(right[2:11] * (-1, 1), _FORM_SHADE, 0.8)


def _sleeves(pen: Pen, item: Garment) -> None:
    shoulder, armpit, _ = _BODY[item.type]
    if item.sleeves == "sleeveless":
        return
    wide = 1.5 if item.type == "coat" else 0.0
    top, under = np.array((shoulder - 1, _SHOULDER + 3.2)), np.array((armpit - 1, _ARMPIT + 1))
    outer = np.array((41.0, 12.0))
    inner = np.array((31.0 - wide, 17.0))
    reach = _SLEEVE[item.sleeves]
    cuff_out, cuff_in = top + reach * (outer - top), under + reach * (inner - under)
    swell = (top + cuff_out) / 2 + (1.6, -1.6)
    right = np.concatenate([_curve(top, swell, cuff_out), [cuff_in, under]])
    band = np.stack([cuff_out + 0.07 * (top - cuff_out), cuff_in + 0.07 * (under - cuff_in)])
    for flip in ((1, 1), (-1, 1)):
        pen.cut(right * flip)
        pen.stroke(band * flip, pen.trim, 2.6 + wide)
        pen.fold(np.stack([under, cuff_in]) * flip + np.array((1.5, 0)) * flip, 46, 3.0)


def _side(item: Garment) -> np.ndarray:
    """The right side of the body from the neck to the waist, [N, 2]."""
    shoulder, armpit, waist = _BODY[item.type]
    if item.sleeves == "sleeveless":
        # The armhole bites into the shoulder, so that no short sleeve is imagined.
        tip = shoulder - 2.5
        arm = _curve((tip, _SHOULDER + 2.0), (tip - 3.5, _ARMPIT - 1), (armpit, _ARMPIT))
    else:
        arm = np.array([(shoulder, _SHOULDER + 2.8), (armpit, _ARMPIT)])
    bend = ((armpit + waist) / 2 - 0.8, (_ARMPIT + _WAIST) / 2)
    return np.concatenate(
        [[(7.0, _SHOULDER - 0.6)], arm, _curve((armpit, _ARMPIT), bend, (waist, _WAIST))]
    )


def _body(pen: Pen, item: Garment) -> None:
    side, hem = _side(item), _HEM[item.type][item.length]
    lower = {"dress": _skirt, "shirt": _tails, "coat": _skirts, "jumpsuit": _legs}[item.type]
    pen.cut(_mirrored(np.concatenate([side, lower(pen, hem)])))
    if item.sleeves == "sleeveless":
        for flip in ((1, 1), (-1, 1)):
            pen.stroke(side[1:10] * flip, pen.trim, 2.0)
    for flip in (1, -1):
        pen.fold(np.array([(flip * 16.5, _ARMPIT + 2), (flip * 13.5, _WAIST)]), 34, 2.4)


def _skirt(pen: Pen, hem: float) -> np.ndarray:
    flare = 21.0 + 0.33 * (hem - 2)
    for x in (-0.62, -0.2, 0.25, 0.66):
        pen.fold(np.array([(x * 13, _WAIST + 4), (x * flare, hem)]), 50, 2.2)
    return np.concatenate(
        [
            _curve((14.5, _WAIST), (20.0, _WAIST + 5), (flare, hem - 2)),
            [(flare * 0.5, hem - 0.4), (0, hem)],
        ]
    )


def _tails(pen: Pen, hem: float) -> np.ndarray:
    # Slit at the sides: the side seam ends well above the rounded front tail.
    pen.fold(np.array([(12.0, hem - 12), (14, hem - 3)]), 36)
    pen.fold(np.array([(-12.0, hem - 12), (-14, hem - 3)]), 36)
    wide = 21.0 + 0.05 * hem
    return np.concatenate(
        [[(wide, hem - 6.5)], _curve((wide, hem - 6.5), (19.0, hem + 0.6), (0, hem))]
    )


def _skirts(pen: Pen, hem: float) -> np.ndarray:
    for x in (-19.0, 19.0):
        pen.fold(np.array([(x, _WAIST + 4), (x * 1.15, hem)]), 40)
    wide = 26.0 + 0.1 * hem
    return np.array([(wide, hem - 1.0), (wide - 1.5, hem), (0, hem)])


def _legs(pen: Pen, hem: float) -> np.ndarray:
    for flip in (1, -1):
        pen.fold(np.array([(flip * 14, _CROTCH + 3), (flip * 16, hem)]), 40)
    outer = 21.5 + 0.06 * hem
    return np.concatenate(
        [
            _curve((16, _WAIST), (21, _WAIST + 4), (outer, hem)),
            [(7.5, hem), (5.2, _CROTCH + 5.0), (0, _CROTCH)],
        ]
    )


def _finish_dress(pen: Pen, item: Garment) -> None:
    hem = _HEM["dress"][item.length]
    flare = 21.0 + 0.33 * (hem - 2)
    pen.stroke([(-14.7, _WAIST), (14.7, _WAIST)], pen.trim, 2.8)
    edge = np.array([(flare, hem - 3.2), (flare * 0.5, hem - 1.6), (0, hem - 1.2)])
    pen.stroke(_mirrored(edge), pen.trim, 2.0)


def _finish_shirt(pen: Pen, item: Garment) -> None:
    hem = _HEM["shirt"][item.length]
    pen.fill([(-3, -24), (3, -24), (3, hem), (-3, hem)], pen.main, edge=True)
    for y in np.arange(-24, hem - 2, 6.0):
        pen.disc(0, y, 1.5, pen.trim)
    pen.fill([(7.5, -11), (16, -11), (16, -4), (11.75, -1.5), (7.5, -4)], pen.main, edge=True)


def _finish_coat(pen: Pen, item: Garment) -> None:
    hem = _HEM["coat"][item.length]
    top = -22.0
    # Open in front: the lining shows between the fronts, wider towards the hem.
    pen.fill([(0, top), (8, hem + 0.5), (-8, hem + 0.5)], pen.trim)
    for flip in (1, -1):
        pen.stroke([(flip * 0.8, top), (flip * 8, hem)], pen.line, 1.2)
        x = flip * 10.5
        for y in np.arange(-8, hem - 3, 7.5):
            pen.disc(x, y, 2.1, pen.line)
            pen.disc(x, y, 1.5, pen.trim)
        pocket = [(14.5, 2), (23, 2), (23, 6), (14.5, 6)]
        pen.fill(np.array(pocket) * (flip, 1), pen.trim)


def _finish_jumpsuit(pen: Pen, item: Garment) -> None:
    hem = _HEM["jumpsuit"][item.length]
    outer = 21.5 + 0.06 * hem
    pen.stroke([(-16.2, _WAIST), (16.2, _WAIST)], pen.trim, 2.8)
    pen.stroke([(0, _WAIST), (0, _CROTCH)], pen.line, 1.1)
    for flip in (1, -1):
        pen.stroke([(flip * 7.5, hem - 1.4), (flip * outer, hem - 1.4)], pen.trim, 2.6)


_FASTENINGS = {
    "dress": _finish_dress,
    "shirt": _finish_shirt,
    "coat": _finish_coat,
    "jumpsuit": _finish_jumpsuit,
}


def _neckline(pen: Pen, item: Garment) -> None:
    top = _SHOULDER - 0.4
    if item.neckline == "high":
        collar = [(-9, top + 4), (-7, -39), (7, -39), (9, top + 4), (0, top + 6.5)]
        pen.fill(collar, pen.main, edge=True)
        pen.stroke([(-7, -38.4), (7, -38.4)], pen.trim, 2.2)
        pen.stroke([(-9.2, top + 3.8), (0, top + 6.4), (9.2, top + 3.8)], pen.trim, 2.8)
        return
    if item.neckline == "round":
        angle = np.linspace(0, np.pi, 15)
        edge = np.stack([13.0 * np.cos(angle), top + 13.0 * np.sin(angle)], axis=1)
    elif item.neckline == "v":
        edge = np.array([(11.5, top), (0, top + 24.0), (-11.5, top)])
    else:
        edge = np.array([(13.5, top), (13.0, top + 14), (-13.0, top + 14), (-13.5, top)])
    pen.fill(np.concatenate([edge, [(0, top - 1.5)]]), _FORM)
    pen.stroke([(-7, top + 2.5), (0, top + 4.8), (7, top + 2.5)], _FORM_SHADE, 1.0)
    pen.stroke(edge, pen.trim, 3.0)
