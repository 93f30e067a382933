"""`cmap explain`: the sheet, the numbers, and arguments that are refused."""

import json

import fake_data
import numpy as np
import pytest
from PIL import Image
from small import write_workdir

import cmap_jax
from cmap_jax.cli import command
from cmap_jax.evaluation.overlap import compare_heat
from cmap_jax.visualization.heatmaps import explain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    for number in range(2):
        fake_data.image(folder / f"{number}.png", number)
    return write_workdir(folder / "run", "folder", "folder/val")


def test_sheet_and_numbers(run, capsys):
    images = [str(run.parent / f"{number}.png") for number in range(2)]
    out = run.parent / "pictures" / "sheet.png"
    arguments = ["explain", str(run), "--image", images[0], "--text", "is red", "--out", str(out)]
    arguments += ["--target", images[1], "--dimensions", "2"]
    assert command.main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["picture"] == str(out)
    with Image.open(out) as sheet:
        assert sheet.width > 1000
    trained = cmap_jax.load(run)
    maps = explain(trained, images[:1], ["is red"], images[1:], 2)
    rows = {(row["picture"], row["level"]): row for row in printed["numbers"]}
    assert len(rows) == 6
    for number, level in enumerate(("high", "mid", "low")):
        row = rows["target", level]
        scores = [row["score/modified"], row["score/preserved"]]
        np.testing.assert_allclose(scores, maps.target.scores[:, number, 0], atol=1e-6)
        expected = compare_heat(maps.target, maps.branches)[level]["iou"][0]
        assert row["iou"] == (None if np.isnan(expected) else pytest.approx(expected))
    assert command.main(arguments) == 0
    assert "overlap of heat maps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dimensions", "9"], "--dimensions must be 0 to 8, not 9"),
        (["--text", "a", "--text", "b"], "--text is given 3 times"),
        (["--out", "sheet.gif"], "a picture's name must end in .png"),
        (["--target", "none.png"], "none.png: missing"),
    ],
)
def test_refused_before_the_model_is_read(run, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("cmap_jax.trained.load", None)
    image = str(run.parent / "0.png")
    given = ["explain", str(run), "--image", image, "--text", "is red", *arguments]
    assert command.main(given) == 1
    assert message in capsys.readouterr().err


def test_a_text_is_asked_for(run, capsys):
    assert command.main(["explain", str(run), "--image", str(run.parent / "0.png")]) == 1
    assert "a query without texts cannot be composed" in capsys.readouterr().err
