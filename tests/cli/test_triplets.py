"""`cmap triplets`: what it prints and writes, and refusals in one line."""

import itertools
import shlex

import pytest
from fake_data import image as write_picture

from cmap_jax.cli import command


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    lines = ["image,color,pattern,type,price"]
    grid = itertools.product(
        ("red", "blue", "green"), ("plain", "dotted"), ("dress", "hat"), "abcd"
    )
    for number, (color, pattern, kind, letter) in enumerate(grid):
        name = f"{kind}/{color}-{pattern}-{letter}.png"
        write_picture(root / "pictures" / name, number, (16, 16))
        lines.append(f"{name},{color},{pattern},{kind},{number}.5")
    (root / "catalogue.csv").write_text("\n".join(lines))
    return root


def _triplets(*arguments) -> int:
    return command.main(["triplets", *map(str, arguments)])


def test_from_a_catalogue_to_checked_triplets(shop, tmp_path, capsys):
    out = tmp_path / "my triplets"
    arguments = (shop / "catalogue.csv", "--images", shop / "pictures", "--out", out)
    assert _triplets(*arguments, "--keep", "type", "--val", "0.4", "--per-reference", "3") == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0] == "changing  color (3 values), pattern (2 values)"
    assert lines[1] == "keeping   type (2 values)"
    assert lines[2] == "not used  price (has numbers)"
    assert "color and pattern" in printed
    assert "ready for training" in printed
    assert "any image of the right color" in printed
    assert lines[-1].startswith("Next: cmap train --config=configs/folder.py:pretrained")
    assert f"--config.data.directory={out}" in shlex.split(lines[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--change", "colour"), "no column 'colour'; its columns are color, pattern, type, price"),
        (("--val", "1"), "val (--val) must be between 0 and 1"),
        (("--images", "."), "48 of 48 pictures are missing in ., such as 'dress/"),
    ],
)
def test_refusals(shop, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    catalogue = (shop / "catalogue.csv", "--images", shop / "pictures", "--out", "out")
    assert _triplets(*catalogue, *arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_refused_folders_and_files(shop, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    phrases = tmp_path / "phrases.json"
    phrases.write_text("[]")
    (tmp_path / "away.csv").write_text(f"image,color\n{shop}/pictures/a.png,red\n")
    cases = [
        ((shop / "catalogue.csv", "--out", tmp_path / "full"), "full exists; name a new folder"),
        ((shop / "catalogue.csv", "--out", "gs://b/o"), "name a folder of this machine"),
        ((tmp_path / "away.csv", "--out", tmp_path / "o"), "is not in"),
        (
            (
                shop / "catalogue.csv",
                "--out",
                tmp_path / "o",
                "--phrases",
                tmp_path / "phrases.json",
            ),
            "phrases.json: must hold an object",
        ),
    ]
    for arguments, message in cases:
        assert _triplets(*arguments) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
