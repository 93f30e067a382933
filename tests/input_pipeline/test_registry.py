"""All readers have in common: the same records from a bucket, links, names and captions."""

import os
import pathlib
import uuid

import fake_data
import numpy as np
import pytest
import tensorflow as tf
from small import small_config

from cmap_jax.processing.tokenizer import Vocabulary
from input_pipeline import create_datasets
from input_pipeline.images.check import check_images
from input_pipeline.readers import annotations, fashion_iq, folder
from input_pipeline.reading import read_folder
from input_pipeline.records import DataError, Records
from input_pipeline.registry import DATA_SETS

every_set = pytest.mark.parametrize("name", fake_data.DATA_SETS)


@pytest.fixture
def bucket():
    """A place in TensorFlow's in-memory file system, emptied at the end."""
    place = f"ram://test-{uuid.uuid4().hex}"
    tf.io.gfile.makedirs(place)
    yield place
    tf.io.gfile.rmtree(place)


def _upload(root: pathlib.Path, place: str) -> str:
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        target = f"{place}/data/{path.relative_to(root)}"
        tf.io.gfile.makedirs(target.rpartition("/")[0])
        with tf.io.gfile.GFile(target, "wb") as file:
            file.write(path.read_bytes())
    return f"{place}/data"


def _write(content: bytes, place: str):
    tf.io.gfile.remove(place)  # this file system would append
    with tf.io.gfile.GFile(place, "wb") as file:
        file.write(content)


def _plain(records: Records, root: str) -> dict:
    """Everything in the records, with places relative to the folder."""
    return {
        "name": records.name,
        "layout": records.layout.replace(root, ""),
        "image_directory": records.image_directory.replace(root, ""),
        "train": [records.train.draw(3, 1, i) for i in range(len(records.train))],
        "longest": sorted(records.train.longest_texts()),
        "evaluations": records.evaluations,
        "unlabelled": records.unlabelled,
        "captions": records.vocabulary_captions,
        "images": {i: image.path.replace(root, "") for i, image in records.images.items()},
        "special": records.extra_special,
        "facts": records.facts,
    }


def _read(name: str, directory: str, image_directory: str | None = None) -> Records:
    return DATA_SETS[name.split()[0]].read(directory, image_directory)


@every_set
def test_a_bucket_gives_the_same_records(tmp_path, bucket, name):
    local = str(fake_data.DATA_SETS[name](tmp_path / "data"))
    remote = _upload(tmp_path / "data", bucket)
    expected = _plain(_read(name, local), local)
    assert expected["images"]
    assert all(place.startswith("/") for place in expected["images"].values())
    assert _plain(_read(name, remote), remote) == expected
    # However the folder is written, and with the images in the bucket alone.
    assert _plain(_read(name, f"{remote}/"), remote)["images"] == expected["images"]
    assert _plain(_read(name, local, remote), remote)["images"] == expected["images"]


@every_set
def test_near_names_in_a_bucket(tmp_path, bucket, name):
    root = fake_data.DATA_SETS[name](tmp_path / "data")
    images = _read(name, str(root)).images
    for image in list(images.values())[:3]:
        path = pathlib.Path(image.path)
        path.rename(path.with_name(f"{path.stem}.JFIF"))
    remote = _upload(root, bucket)
    reasons = check_images(_read(name, remote))
    assert len(reasons) == 3
    assert all(reason.startswith("missing, but there is '") for reason in reasons.values())
    accepted = read_folder(name.split()[0], remote, None, "accept")
    assert accepted.near_names == tuple(list(images)[:3])
    assert check_images(accepted) == {}


@every_set
def test_images_in_a_bucket_are_checked(tmp_path, bucket, name):
    fake_data.DATA_SETS[name](tmp_path / "data")
    remote = _upload(tmp_path / "data", bucket)
    records = _read(name, remote)
    assert check_images(records) == {}
    missing, cut, empty, html, taken = list(records.images.values())[:5]
    tf.io.gfile.remove(missing.path)
    with tf.io.gfile.GFile(cut.path, "rb") as file:
        content = file.read()
    _write(content[: len(content) * 9 // 10], cut.path)
    _write(b"", empty.path)
    _write(b"<html></html>", html.path)
    tf.io.gfile.remove(taken.path)
    tf.io.gfile.makedirs(taken.path)
    reasons = check_images(records)
    assert set(reasons) == {missing.id, cut.id, empty.id, html.id, taken.id}
    assert reasons[missing.id] == "missing"
    assert reasons[cut.id].startswith("truncated: ")
    assert reasons[empty.id] == "zero bytes"
    assert reasons[html.id].startswith("not an image: ")
    assert reasons[taken.id] == "not a file"


def _config(name: str, directory: str):
    config = small_config()
    config.data.name = name.split()[0]
    config.data.directory = directory
    config.data.resize, config.data.crop = 40, 32
    config.train.batch_size = config.eval.batch_size = 5
    return config


@every_set
def test_batches_from_a_bucket(tmp_path, bucket, name):
    local = str(fake_data.DATA_SETS[name](tmp_path / "data"))
    remote = _upload(tmp_path / "data", bucket)
    training = not name.startswith("circo")  # nothing to train on there
    vocabulary = None if training else Vocabulary.build(["is red"])
    batches = []
    for directory in (local, remote):
        data = create_datasets(_config(name, directory), vocabulary, training=training)
        assert data.facts.images_skipped == 0
        found = [next(iter(data.evaluations["val"].image_batches()))]
        if training:
            found += data.train.batches(0, 1)
        batches.append(found)
    for here, there in zip(*batches, strict=True):
        assert here.keys() == there.keys()
        for key in here:
            np.testing.assert_array_equal(here[key], there[key], err_msg=key)


@every_set
def test_annotations_missing_in_a_bucket(bucket, name):
    with pytest.raises(FileNotFoundError, match=r"/none: no such folder; set --config\.data\.dir"):
        _read(name, f"{bucket}/none")
    with pytest.raises(FileNotFoundError, match=rf"{bucket}.*(no |neither )"):
        _read(name, bucket)


def test_a_file_system_that_tensorflow_does_not_know():
    with pytest.raises(OSError, match=r"'nowhere' not implemented.*'nowhere://bucket'") as raised:
        fashion_iq.read("nowhere://bucket")
    assert "\n" not in str(raised.value)


@every_set
def test_a_link_may_lead_to_the_folder_but_not_out_of_it(tmp_path, name):
    fake_data.DATA_SETS[name](tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    root = str(tmp_path / "link")
    records = _read(name, root)
    images = list(records.images.values())
    assert check_images(records) == {}
    inside, out, loop, dangling = (pathlib.Path(image.path) for image in images[:4])
    outside = tmp_path / f"outside{out.suffix}"
    out.rename(outside)
    out.symlink_to(os.path.relpath(outside, out.resolve().parent))
    healthy = pathlib.Path(images[4].path).resolve()
    for path, target in ((inside, healthy), (loop, loop), (dangling, "nowhere")):
        path.unlink()
        path.symlink_to(target)
    reasons = check_images(_read(name, root))
    assert set(reasons) == {image.id for image in images[1:4]}
    assert reasons[images[1].id] == f"a link that leads out of {root}"
    assert reasons[images[3].id] == "missing: a link to nothing"


def test_a_folder_of_images_that_is_a_link_out(tmp_path):
    root = fake_data.fashion_iq(tmp_path / "data")
    (root / "images").rename(tmp_path / "pictures")
    (root / "images").symlink_to(tmp_path / "pictures")
    records = fashion_iq.read(str(root))
    assert set(check_images(records)) == set(records.images)
    # The remedy of the error: name that folder.
    assert check_images(fashion_iq.read(str(root), str(tmp_path / "pictures"))) == {}


@pytest.mark.parametrize(
    "name", ["a.jpg", "a b.jpg", "ä/é.png", "./a", "a\u3000\u202fb", "..a", "a.."]
)
def test_good_paths(name):
    assert annotations.check_path(name, "file: entry 3") == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "an image is named by a text, not by None"),
        (["a"] * 9, "an image is named by a text, not by a list of length 9"),
        ("  ", "an image is named by a text, not by '  '"),
        ("/a", "'/a' is no path relative to the image folder"),
        ("gs://a", "is no path relative to the image folder"),
        ("a\\b", "is no path relative to the image folder"),
        ("a/../b", "'a/../b' climbs out of the image folder"),
        ("..", "climbs out of the image folder"),
        ("a/", "'a/' names a folder, not an image"),
        ("a/.", "names a folder, not an image"),
        ("a\nb", r"'a\\nb' holds characters that no file name has"),
        ("a\0", "holds characters that no file name has"),
        ("\ud800", r"'\\ud800' holds characters that no file name has"),
        ("a\u2028b", "holds characters that no file name has"),
        ("é" * 128, "is too long for a file name"),
        ("a/" * 600 + "b", r"'(a/)+a?\.\.\. is too long for a file name"),
    ],
)
def test_bad_paths(name, message):
    with pytest.raises(DataError, match=f"^file: entry 3: .*{message}") as raised:
        annotations.check_path(name, "file: entry 3")
    assert len(str(raised.value)) < 200


def test_captions():
    assert annotations.check_caption("", "here") == ""
    assert annotations.check_caption("é\u2028\ud800", "here") == "é\u2028?"
    with pytest.raises(DataError, match="here: a caption of 100000 characters"):
        annotations.check_caption("a" * 100_000, "here")


def test_values_are_shown_on_a_line():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    for value in (nested, {"a": nested}, "a\n" * 10**6, 10**4000, "\ud800", None, float("nan")):
        shown = annotations.shown(value)
        assert shown.isprintable()
        assert shown.isascii()
        assert len(shown) <= 80


def test_images_are_found_in_the_order_of_folders_and_suffixes(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "b/2.png", "b/2.jpg", "b/c/3.jpg"):
        fake_data.image(tmp_path / name, 0)
    found = annotations.find_images(
        ["1", "2", "c/3", "4", "2.png"], [f"{tmp_path}/a", f"{tmp_path}/b"], [".png", ".jpg"]
    )
    assert {i: os.path.relpath(p, tmp_path) for i, p in found.items()} == {
        "1": "a/1.jpg",
        "2": "b/2.png",
        "c/3": "b/c/3.jpg",
    }


def test_bare_names_in_a_bucket(tmp_path, bucket):
    root = fake_data.folder(tmp_path / "data", gallery=False)
    for split in ("train", "val", "test"):
        (root / f"{split}.csv").unlink()
    (root / "val.csv").write_text("reference,text,target\n0,is red,1.jpg\n")
    remote = _upload(root, bucket)
    with pytest.raises(DataError, match=r"'0' may be 'test/0\.jpg' or 'train/0\.jpg' or 'val/0"):
        folder.read(remote)
    images = folder.read(remote, f"{remote}/val").images
    assert images["1.jpg"].path == f"{remote}/val/1.jpg"
    tf.io.gfile.rmtree(f"{remote}/train")
    tf.io.gfile.rmtree(f"{remote}/test")
    assert folder.read(remote).images["0"].path == f"{remote}/val/0.jpg"
