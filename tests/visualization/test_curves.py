"""The picture of a run's curves."""

import io

import numpy as np
import pytest
from PIL import Image

from cmap_jax.visualization.curves import LINES, draw_curves, panels

_CURVES = {
    "uptime": {5: 1.0},
    "learning_rate": {10: 0.1, 20: 0.2},
    "loss/total": {10: 3.0, 20: 2.0},
    "loss/matching": {10: 1.0, 20: 1.0},
    "shoes/R@10": {20: 50.0},
    "shoes/queries": {20: 9.0},
    "best/shoes/R@10": {20: 50.0},
}


def test_panels_have_what_is_worth_a_curve():
    drawn = panels(_CURVES)
    assert list(drawn) == ["shoes", "loss", "learning_rate"]
    assert list(drawn["loss"]) == ["total", "matching"]
    assert drawn["shoes"] == {"R@10": {20: 50.0}}


def test_curves_are_drawn_in_both_forms():
    with Image.open(io.BytesIO(draw_curves(_CURVES, "png"))) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    color = [int(LINES[0][i : i + 2], 16) for i in (1, 3, 5)]
    assert (pixels == color).all(-1).sum() > 100
    drawing = draw_curves(_CURVES, "svg").decode()
    for text in (">loss<", ">learning rate<", ">matching<", LINES[1]):
        assert text in drawing
    assert "uptime" not in drawing


def test_the_height_of_a_point_is_its_value():
    """The vertical positions of a line's points are an affine map of the values."""
    values = {0: 1.0, 1: 4.0, 2: 2.0}
    drawing = draw_curves({"x": values}, "svg").decode()
    path = next(p for p in drawing.split("<path ") if f"stroke: {LINES[0]}; stroke-width: 1.4" in p)
    points = path.split('d="')[1].split('"')[0].replace("M", "").split("L")
    heights = [float(point.split()[1]) for point in points]
    expected = np.interp([1.0, 4.0, 2.0], [1.0, 4.0], [heights[0], heights[1]])
    np.testing.assert_allclose(heights, expected, atol=1e-3)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no curves"):
        draw_curves({"uptime": {1: 2.0}}, "png")
