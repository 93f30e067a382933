"""The scale of colours, overlays, and the sheet of heat maps."""

import numpy as np
import pytest
from PIL import Image

from cmap_jax.visualization.colors import scale
from cmap_jax.visualization.heatmaps import HeatMaps, ImageHeat
from cmap_jax.visualization.overlays import (
    SIDE,
    overlay,
    overlay_rows,
    overlay_sheet,
    sum_levels,
)


def _lightness(colors: np.ndarray) -> np.ndarray:
    """CIE lightness of sRGB colours, 0 to 100."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def test_the_scale_can_be_read_without_colors():
    colors = scale(np.linspace(0, 1, 65)) / 255
    steps = np.diff(_lightness(colors))
    assert (steps > 0.2).all()
    assert steps.sum() > 70
    # Red-green blindness leaves the axis from blue to yellow, on which the scale moves too.
    yellowness = colors[:, :2].mean(1) - colors[:, 2]
    assert yellowness[-1] > 0.6 > -0.1 > yellowness[0]
    assert (scale(np.array([-1.0, 2.0])) == scale(np.array([0.0, 1.0]))).all()


def test_an_overlay_is_brightest_at_the_strongest_point():
    pixels = np.full((64, 64, 3), 128, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 1e-3  # maps are drawn in units of their own maximum
    drawn = np.asarray(overlay(pixels, heat), float)
    assert drawn.shape == (SIDE, SIDE, 3)
    light = _lightness(drawn / 255)
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert (row * 4 // SIDE, column * 4 // SIDE) == (1, 2)
    np.testing.assert_array_equal(drawn, np.asarray(overlay(pixels, 7 * heat)))


def test_levels_are_added_by_what_their_whole_maps_add():
    coarse, fine = np.full((2, 2), 0.5, np.float32), np.full((4, 4), 0.25, np.float32)
    np.testing.assert_allclose(sum_levels([coarse, fine], 8), 0.5 * 4 + 0.25 * 16, rtol=1e-6)
    corner = np.zeros((4, 4), np.float32)
    corner[3, 0] = 1
    total = sum_levels([corner, 0 * coarse], 64)
    assert total.min() >= 0
    assert np.unravel_index(total.argmax(), total.shape)[0] >= 48
    assert total[:, 32:].max() < total.max() / 20
    assert not sum_levels([], 8).any()


def _heat(seed: int) -> ImageHeat:
    rng = np.random.default_rng(seed)
    heat = {level: rng.random((2, 3, 2, 4, 4)).astype(np.float32) for level in ("mid", "low")}
    heat["low"][1, 0] = 0
    return ImageHeat(
        heat=heat,
        scores=rng.normal(size=(2, 3, 2)),
        dimensions=rng.integers(0, 8, (2, 3, 2, 2)),
        contributions=rng.normal(size=(2, 3, 2, 2)),
        rollout=rng.random((2, 4, 4)),
    )


def test_the_sheet_has_a_row_a_part_and_a_tile_a_map():
    maps = HeatMaps(_heat(0), _heat(1), ("modified", "preserved"), ("high", "mid", "low"))
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8))
    rows = overlay_rows(maps, 1, pictures)
    assert [row.label.split("\n") for row in rows] == [
        [name, part]
        for name in ("reference", "target")
        for part in ("modified", "preserved", "attention roll-out")
    ]
    tiles = rows[4].groups["low, 4 x 4 points"]  # the target's preserved part
    dimension, part = maps.target.dimensions[1, 2, 0, 1], maps.target.contributions[1, 2, 0, 1]
    assert list(tiles[1].lines) == [f"dimension {dimension}", f"adds {part:+.3f}"]
    np.testing.assert_array_equal(tiles[1].heat, maps.target.heat["low"][1, 1, 1])
    sheet = overlay_sheet(rows, "a title")
    assert isinstance(sheet, Image.Image)
    assert sheet.width > 7 * SIDE
    assert sheet.height > 6 * SIDE
    assert sheet.tobytes() == overlay_sheet(rows, "a title").tobytes()
    with pytest.raises(ValueError, match="neither maps nor attention"):
        overlay_sheet([], "a title")
