"""`cmap show`: any data set, its triplets paired as its reader pairs them."""

import dataclasses
import itertools
import json
import pathlib

import fake_data
import numpy as np
import pytest
from PIL import Image

from cmap_jax.cli import command, show
from cmap_jax.processing.images import ImageReadError, read_image
from input_pipeline.garments import folder
from input_pipeline.registry import DATA_SETS


def _garments(root):
    """Write the embedded data set's files, with a handful of garments."""
    ids = [f"dress-red-{i}" for i in range(8)]
    entries = [
        {"candidate": a, "target": b, "captions": ["is longer", "is red"]}
        for a, b in itertools.pairwise(ids)
    ]
    for split in ("train", "val", "test", "all"):
        for kind, name, content in (("captions", "cap", entries), ("image_splits", "split", ids)):
            path = root / kind / f"{name}.garments.{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    for number, image_id in enumerate(ids):
        fake_data.image(root / "images" / f"{image_id}.jpg", number)
    settings = {
        **{"seed": 3, "image_size": 40, "train_triplets": 7, "val_queries": 7},
        **{"test_queries": 7, "three_changes": 0.5},
    }
    stamp = {"format_version": folder.FORMAT_VERSION, "settings": settings, "oracles": {}}
    (root / folder.STAMP).write_text(json.dumps(stamp))
    return root


WRITERS = {name: getattr(fake_data, name, _garments) for name in DATA_SETS}


def _read(name, root):
    return DATA_SETS[name].read(str(root), None)


@pytest.fixture
def rows(monkeypatch):
    """The rows of the picture that is drawn last."""
    drawn = []
    original = show.triplet_grid

    def triplet_grid(rows, title):
        drawn[:] = rows
        return original(rows, title)

    monkeypatch.setattr(show, "triplet_grid", triplet_grid)
    return drawn


def _show(name, root, out, *options) -> int:
    return command.main(["show", name, str(root), "--out", str(out), *options])


def _refused(capsys, *arguments) -> str:
    assert _show(*arguments) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("split", [None, "train", "val"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_data_set_is_paired_as_its_reader_pairs_it(tmp_path, rows, name, split, capsys):
    root = WRITERS[name](tmp_path / "data")
    out = tmp_path / "new" / "grid.png"
    options = ["--count", "4", *(["--split", split] if split else [])]
    if name == "circo" and split == "train":
        assert "nothing in a split 'train'; give --split val or test" in _refused(
            capsys, name, root, out, *options
        )
        assert not out.parent.exists()
        return
    assert _show(name, root, out, *options) == 0
    said = capsys.readouterr().out
    falls_back = name == "circo" and split is None
    assert ("has nothing to train on there" in said) == falls_back
    assert f"{out} shows {name}, {'val' if falls_back else split or 'train'}: 4 of" in said
    with Image.open(out) as picture:
        assert picture.width > 400

    records = _read(name, root)
    if falls_back or split == "val":
        queries = records.evaluations["val"][0].queries
        known = {(q.captions, (q.reference, *q.targets[:3])) for q in queries}
    else:
        items = [records.train.draw(0, 0, item) for item in range(len(records.train))]
        known = {(t.captions, (t.reference, t.target)) for t in items}
    assert len(rows) == 4
    for row in rows:
        assert (tuple(row.captions), tuple(row.names)) in known
        files = [pathlib.Path(records.images[i].path) for i in row.names]
        for image, file in zip([row.reference, *row.targets], files, strict=True):
            np.testing.assert_array_equal(image, read_image(file))
    categories = {row.note for row in rows}
    assert categories <= ({"dress", "toptee"} if name == "fashion_iq" else {""})


def test_the_name_of_the_config_file_will_do(tmp_path, capsys):
    root = fake_data.fashion_iq(tmp_path / "data")
    assert _show("fashioniq", root, tmp_path / "grid.png") == 0
    assert "shows fashion_iq, train: 8 of 24 at random" in capsys.readouterr().out


def test_the_seed_chooses(tmp_path, rows):
    root = fake_data.fashion200k(tmp_path / "data")
    pictures, chosen = [], []
    for number, seed in enumerate(("3", "3", "4")):
        out = tmp_path / f"{number}.png"
        assert _show("fashion200k", root, out, "--seed", seed) == 0
        pictures.append(out.read_bytes())
        chosen.append([row.names for row in rows])
    assert pictures[0] == pictures[1]
    assert chosen[0] == chosen[1] != chosen[2]
    records = _read("fashion200k", root)
    drawn = np.random.default_rng(3).choice(len(records.train), 8, replace=False)
    triplets = [records.train.draw(3, 0, int(item)) for item in drawn]
    assert chosen[0] == [(t.reference, t.target) for t in triplets]


def test_more_than_there_are(tmp_path, rows, capsys):
    root = fake_data.shoes(tmp_path / "data")
    assert _show("shoes", root, tmp_path / "grid.png", "--count", "50") == 0
    assert "6 of 6 at random" in capsys.readouterr().out
    assert len({tuple(row.names) for row in rows}) == len(rows) == 6


def test_test_splits(tmp_path, rows, capsys):
    out = tmp_path / "grid.png"
    assert _show("folder", fake_data.folder(tmp_path / "f"), out, "--split", "test") == 0
    assert all(name.startswith("test/") for row in rows for name in row.names)
    # Where only a server knows the answers, there is no target to draw.
    for name, split in (("cirr", "test1"), ("circo", "test")):
        root = WRITERS[name](tmp_path / name)
        assert _show(name, root, out, "--split", split, "--count", "3") == 0
        assert [(row.note, len(row.targets)) for row in rows] == [
            ("the answer is not public", 0)
        ] * 3
    capsys.readouterr()
    root = fake_data.fashion_iq(tmp_path / "fiq")
    message = _refused(capsys, "fashion_iq", root, out, "--split", "test")
    assert "fashion_iq has nothing in a split 'test'; give --split train or val" in message


def test_the_queries_of_a_protocol(tmp_path, rows, capsys):
    root, out = fake_data.fashion_iq(tmp_path / "data"), tmp_path / "grid.png"
    records = _read("fashion_iq", root)
    evaluations = {e.protocol.name: e for e in records.evaluations["val"]}
    for name in ("fashioniq/original", "fashioniq/original-joined"):
        assert _show("fashion_iq", root, out, "--protocol", name, "--count", "3") == 0
        queries = evaluations[name].queries
        known = {(q.captions, q.reference) for q in queries}
        assert {(tuple(row.captions), row.names[0]) for row in rows} <= known
        said = capsys.readouterr().out
        assert f"shows fashion_iq, {name}: 3 of {len(queries)} at random" in said
    message = _refused(capsys, "fashion_iq", root, out, "--protocol", "shoes")
    assert "no queries of a protocol 'shoes' there; give --protocol fashioniq/orig" in message
    message = _refused(capsys, "fashion_iq", root, out, "--protocol", name, "--split", "val")
    assert "leave out --split" in message


def test_at_most_three_targets(tmp_path, rows):
    root = fake_data.folder(tmp_path / "data", suffix="jsonl")
    row = {"reference": "val/0.jpg", "text": "a", "target": [f"val/{i}.jpg" for i in range(1, 6)]}
    (root / "val.jsonl").write_text(json.dumps(row))
    assert _show("folder", root, tmp_path / "grid.png", "--split", "val") == 0
    assert rows[0].names == ("val/0.jpg", "val/1.jpg", "val/2.jpg", "val/3.jpg")
    assert rows[0].note == "3 of 5 right images"


def test_only_what_is_drawn_is_read(tmp_path, rows, capsys):
    root = fake_data.fashion_iq(tmp_path / "data")
    arguments = ("fashion_iq", root, tmp_path / "grid.png", "--count", "2")
    assert _show(*arguments) == 0
    first = (tmp_path / "grid.png").read_bytes()
    needed = {name for row in rows for name in row.names}
    for path in (root / "images").iterdir():
        if path.stem not in needed:
            path.unlink()
    assert _show(*arguments) == 0
    assert (tmp_path / "grid.png").read_bytes() == first
    assert "cannot be used" not in capsys.readouterr().out


def test_images_elsewhere(tmp_path, rows):
    root = fake_data.cirr(tmp_path / "data")
    (tmp_path / "photos").mkdir()
    for name in ("train", "dev", "test1"):
        (root / name).rename(tmp_path / "photos" / name)
    images = ("--images", str(tmp_path / "photos"))
    assert _show("cirr", root, tmp_path / "grid.png", *images) == 0
    assert all(isinstance(row.reference, Image.Image) for row in rows)


def test_own_pictures_are_shown_upright(tmp_path, rows):
    root = fake_data.folder(tmp_path / "data")
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in (root / "train").iterdir():
        Image.new("RGB", (60, 40)).save(file, exif=exif)
    assert _show("folder", root, tmp_path / "grid.png", "--split", "train") == 0
    assert all(row.reference.size == (40, 60) for row in rows)


def test_near_names(tmp_path, rows, capsys):
    root = fake_data.folder(tmp_path / "data")
    for image in (root / "train").iterdir():
        image.rename(image.with_suffix(".JPEG"))
    assert _show("folder", root, tmp_path / "grid.png") == 0
    assert "missing, but there is '" in capsys.readouterr().out
    rows.clear()
    assert _show("folder", root, tmp_path / "grid.png", "--near-names") == 0
    assert "cannot be used" not in capsys.readouterr().out
    assert not any(isinstance(row.reference, ImageReadError) for row in rows)


def test_images_that_cannot_be_used_are_told(tmp_path, rows, capsys):
    root = fake_data.shoes(tmp_path / "data")
    train = sorted(p for p in root.rglob("*.jpg") if int(p.stem.split("_")[-1]) < 50)
    train[0].write_bytes(train[0].read_bytes()[:50])
    train[1].unlink()
    train[2].unlink()
    (tmp_path / "secret.jpg").write_bytes(train[3].read_bytes())
    train[2].symlink_to(tmp_path / "secret.jpg")
    assert _show("shoes", root, tmp_path / "grid.png", "--split", "train") == 0
    said = capsys.readouterr().out
    assert "of its 7 images cannot be used and are grey, such as " in said
    assert f"cmap doctor shoes {root}" in said
    drawn = {
        name: image
        for row in rows
        for name, image in zip(row.names, [row.reference, *row.targets], strict=True)
    }
    reasons = {n: str(image) for n, image in drawn.items() if isinstance(image, ImageReadError)}
    assert set(reasons) == {path.name for path in train[:3]} & set(drawn)
    assert "leads out of" in reasons[train[2].name]


def test_a_target_outside_every_gallery(tmp_path, rows, capsys):
    root = fake_data.shoes(tmp_path / "data", prepared=True)
    names = json.loads((root / "split.val.json").read_text())
    (root / "split.val.json").write_text(json.dumps(names[:3]))
    assert _show("shoes", root, tmp_path / "grid.png", "--split", "val") == 0
    assert "in no gallery" in capsys.readouterr().out
    assert any(isinstance(target, ImageReadError) for row in rows for target in row.targets)


def test_refused_before_anything_is_read(tmp_path, monkeypatch, capsys):
    root = fake_data.shoes(tmp_path / "data")
    shoes = dataclasses.replace(DATA_SETS["shoes"], read=lambda *_: pytest.fail("was read"))
    monkeypatch.setitem(DATA_SETS, "shoes", shoes)
    out = tmp_path / "new" / "grid.png"
    (tmp_path / "file").write_text("")
    known = ", ".join(DATA_SETS)
    for message, *arguments in (
        (f"no data set 'shoe'; there are {known}", "shoe", root, out),
        ("must end in .png, .jpg, .jpeg", "shoes", root, tmp_path / "new" / "grid.pdf"),
        ("is a file, not a folder", "shoes", root, tmp_path / "file" / "grid.png"),
        ("--count must be 1 to 100, not 0", "shoes", root, out, "--count", "0"),
        ("--count must be 1 to 100, not 101", "shoes", root, out, "--count", "101"),
        ("--seed must not be negative, not -1", "shoes", root, out, "--seed", "-1"),
        ("nowhere: no such folder", "shoes", tmp_path / "nowhere", out),
        ("gone: no such folder", "shoes", root, out, "--images", str(tmp_path / "gone")),
    ):
        assert message in _refused(capsys, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file"]


def test_garments_are_not_rendered(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folder, "_write", lambda *_: pytest.fail("was rendered"))
    (tmp_path / "empty").mkdir()
    out = tmp_path / "grid.png"
    message = _refused(capsys, "garments", tmp_path / "empty", out)
    assert "garments.json: no such file, so no garments are rendered there" in message
    assert "configs/garments.py renders them" in message
    assert not list((tmp_path / "empty").iterdir())
    root = _garments(tmp_path / "garments")
    message = _refused(capsys, "garments", root, out, "--images", str(root))
    assert "garments keep their images with them" in message
    stamp = root / folder.STAMP
    content = json.loads(stamp.read_text())
    content["settings"]["sleeves"] = 4  # as a later version may have it
    stamp.write_text(json.dumps(content))
    assert "sleeves is 4 there and None here" in _refused(capsys, "garments", root, out)
    stamp.write_text("{}")
    assert "must have an object under 'settings'" in _refused(capsys, "garments", root, out)


@pytest.mark.real_data
def test_photographs(real_data, tmp_path, rows, capsys):
    root = real_data / "garment_photos"
    assert _show("fashion200k", root, tmp_path / "grid.png") == 0
    assert "8 of 3,068 at random" in capsys.readouterr().out
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10_000
    for row in rows:
        assert isinstance(row.reference, Image.Image)
        source, target = (name.split("/")[0] for name in row.names)
        # The captions name the kind of garment, and so do the folders.
        words = row.captions[0].split()
        assert (source != target) == (words[1].replace("-", "") in source)
