"""Folders of features: what is written is read, a writer goes on, and damage is named."""

import json
import os
import shutil

import numpy as np
import pytest
from fake_data import fashion_iq as write_fashion_iq
from small import small_config

from cmap_jax.processing.images import ImagePreprocessing
from input_pipeline import create_datasets
from input_pipeline.features import description as description_lib
from input_pipeline.features.description import DTYPES, IDS, MANIFEST, Description
from input_pipeline.features.reading import FeatureFiles
from input_pipeline.features.writing import FeatureWriter, check_destination
from input_pipeline.reading import read_folder
from input_pipeline.records import DataError

LEVELS = {"high": (2, 2, 3), "low": (5,)}


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Files of three images, so that a few images make several."""
    monkeypatch.setattr(description_lib, "_MOST_ROWS", 3)


def _describe(images, **fields) -> Description:
    fields = {
        "encoder": {"name": "patches", "settings": {"width": 4}, "weights": "1f"},
        "preprocessing": ImagePreprocessing(resize=40, crop=32),
        "levels": LEVELS,
        "dtype": "float32",
        "data_set": "fashion_iq",
        "prepared": None,
    } | fields
    return Description(images=tuple(images), **fields)


def _values(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {level: rng.normal(size=(count, *s)).astype(np.float32) for level, s in LEVELS.items()}


def _write(folder, description: Description, values, numbers=None, left_out=()) -> None:
    writer = FeatureWriter(str(folder), description)
    writer.begin()
    for number in writer.unfinished() if numbers is None else numbers:
        rows = description.rows(number)
        part = {level: array[rows.start : rows.stop] for level, array in values.items()}
        lost = [i for i in left_out if description.images.index(i) in rows]
        writer.write(number, part, lost)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read(tmp_path, dtype):
    images = [f"a/{i}.jpg" for i in range(8)]
    values = _values(8)
    _write(tmp_path, _describe(images, dtype=dtype), values)
    files = FeatureFiles(str(tmp_path))
    files.verify()
    assert files.description == _describe(images, dtype=dtype)
    rows = [files.rows[i] for i in ("a/7.jpg", "a/0.jpg", "a/3.jpg", "a/7.jpg")]
    read = files.read(rows)
    for level, array in values.items():
        assert read[level].dtype == DTYPES[dtype]
        np.testing.assert_array_equal(read[level], array[[7, 0, 3, 7]].astype(DTYPES[dtype]))
    # 17 numbers an image, in files of 3, 3 and 2 images.
    assert files.description.image_bytes == 17 * DTYPES[dtype].itemsize
    sizes = [(tmp_path / f"{n:05}.npy").stat().st_size - 128 for n in range(3)]
    assert sizes == [rows * files.description.image_bytes for rows in (3, 3, 2)]
    assert {p.name for p in tmp_path.iterdir()} == {
        *files.description.file_names,
        MANIFEST,
        IDS,
    }


def test_a_writer_goes_on_and_writes_damaged_files_anew(tmp_path):
    images, values = [f"{i}" for i in range(8)], _values(8)
    description = _describe(images)
    _write(tmp_path / "whole", description, values)
    _write(tmp_path / "parts", description, values, [1])
    with pytest.raises(DataError, match=r"parts is unfinished, with 1 of 3 files: run its cmap ex"):
        FeatureFiles(str(tmp_path / "parts"))
    assert FeatureWriter(str(tmp_path / "parts"), description).unfinished() == [0, 2]
    _write(tmp_path / "parts", description, values)
    file = tmp_path / "parts" / "00001.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    (tmp_path / "parts" / "00002.npy").unlink()
    (tmp_path / "parts" / IDS).write_text("[]")
    assert FeatureWriter(str(tmp_path / "parts"), description).unfinished() == [1, 2]
    _write(tmp_path / "parts", description, values)
    assert FeatureWriter(str(tmp_path / "parts"), description).unfinished() == []
    for name in (*description.file_names, IDS):
        parts = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "parts")]
        assert parts[0] == parts[1]
    whole, parts = (FeatureFiles(str(tmp_path / folder)) for folder in ("whole", "parts"))
    assert whole.rows == parts.rows


def test_a_writer_refuses_other_features_and_other_folders(tmp_path):
    description, values = _describe("abcd"), _values(4)
    _write(tmp_path / "f", description, values)
    for fields, message in (
        (
            {"encoder": {**description.encoder, "weights": "2e"}},
            "encoder.weights: 1f there, 2e now",
        ),
        ({"dtype": "float16"}, "dtype: float32 there, float16 now; name a new folder"),
        ({"preprocessing": ImagePreprocessing(resize=40, crop=40)}, "crop: 32 there, 40 now"),
        ({"levels": {"high": (2, 2, 3)}}, r"levels.low: \[5\] there, None now"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureWriter(str(tmp_path / "f"), _describe("abcd", **fields))
    with pytest.raises(ValueError, match=r"images_crc32"):
        FeatureWriter(str(tmp_path / "f"), _describe("abce"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"other holds other files; name a new folder"):
        check_destination(str(tmp_path / "other"))
    with pytest.raises(ValueError, match="name a local folder"):
        check_destination("gs://bucket/features")
    with pytest.raises(NotADirectoryError):
        check_destination(str(tmp_path / "other" / "note.txt"))


def test_numbers_that_the_dtype_cannot_hold_are_refused(tmp_path):
    description, values = _describe("abcd", dtype="float16"), _values(4)
    values["low"][2, 1] = 1e5
    with pytest.raises(ValueError, match="image c are not finite in float16; take --dtype"):
        _write(tmp_path, description, values)
    _write(tmp_path, description, values, left_out=["c"])
    assert FeatureFiles(str(tmp_path)).rows == {"a": 0, "b": 1, "d": 3}


def _put_pipe(folder):
    (folder / "00001.npy").unlink()
    os.mkfifo(folder / "00001.npy")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "00001.npy").unlink(), r"00001\.npy is damaged \(.*No such file"),
        (lambda f: (f / "00001.npy").write_bytes(b""), r"00001\.npy is damaged \(No data"),
        (
            lambda f: shutil.copy(f / "00000.npy", f / "00001.npy"),
            r"00001\.npy .* shape is \(3,",
        ),
        (lambda f: (f / IDS).write_text('["a"]'), r"manifest\.json .*images\.json is missing or"),
        (lambda f: (f / IDS).unlink(), r"images\.json is missing or holds other ids"),
        (lambda f: (f / MANIFEST).write_text('{"format": 1}'), r"manifest\.json is damaged"),
        (lambda f: (f / MANIFEST).write_text("[]"), "another form than this version"),
        (lambda f: (f / MANIFEST).write_text("{"), "not JSON at line 1"),
        (_put_pipe, r"00001\.npy: is a pipe, not a regular file"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    _write(tmp_path, _describe("abcd"), _values(4))
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        FeatureFiles(str(tmp_path))


def test_a_wrong_checksum_is_refused(tmp_path):
    _write(tmp_path, _describe("abcd"), _values(4))
    file = tmp_path / "00001.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    files = FeatureFiles(str(tmp_path))
    with pytest.raises(DataError, match=r"00001\.npy is damaged \(its checksum differs.*extract"):
        files.verify()
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no features: .*data.features=$"):
        FeatureFiles(str(tmp_path / "nowhere"))


def test_the_identity_differs_where_features_do(tmp_path):
    values = _values(4)
    _write(tmp_path / "a", _describe("abcd"), values)
    _write(tmp_path / "b", _describe("abcd"), values)
    values["low"][3, 4] += 1
    _write(tmp_path / "c", _describe("abcd"), values)
    a, b, c = (FeatureFiles(str(tmp_path / name)).identity for name in "abc")
    assert a == b != c
    (tmp_path / "b" / "00000.npy").unlink()  # written anew, it is listed last
    _write(tmp_path / "b", _describe("abcd"), _values(4))
    assert FeatureFiles(str(tmp_path / "b")).identity == a


@pytest.fixture
def config(tmp_path):
    config = small_config()
    config.model.text.vocabulary_size = None
    config.data.directory = str(write_fashion_iq(tmp_path / "data"))
    config.data.resize, config.data.crop = 40, 32
    config.data.augment = False
    config.train.batch_size, config.eval.batch_size = 6, 5
    return config


def _extract_pixels(config, folder, **fields):
    """Write as features of each image its mean colours, at two sizes, of the central crop."""
    datasets = create_datasets(config)
    records = read_folder("fashion_iq", config.data.directory)
    values = {}
    for data in datasets.evaluations.values():
        for batch in data.image_batches():
            for row in np.flatnonzero(batch["mask"]):
                values[data.image_ids[batch["index"][row]]] = batch["image"][row]
    for batch, triplets in zip(
        datasets.train.batches(0, 4), _triplets(datasets.train, 4), strict=True
    ):
        for row, triplet in enumerate(triplets):
            values[triplet.reference] = batch["reference_image"][row]
            values[triplet.target] = batch["target_image"][row]
    images = [i for i in records.with_needed_images().images if i in values]
    pixels = np.stack([values[i] for i in images]).astype(np.float32)
    levels = {"high": pixels.mean((1, 2)), "low": pixels.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4))}
    description = _describe(images, levels={k: v.shape[1:] for k, v in levels.items()}, **fields)
    _write(folder, description, levels)
    return levels, images


def _triplets(train, steps):
    for step in range(steps):
        order = train.epoch_order(step // train.steps_per_epoch)
        yield [triplet for _, triplet in train._items(step, order)]


def _means(pixels):
    pixels = pixels.astype(np.float32)
    return {"high": pixels.mean((1, 2)), "low": pixels.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4))}


def _assert_same(batch, pixels, names):
    assert batch.keys() == pixels.keys()
    for name, array in pixels.items():
        if name not in names:
            np.testing.assert_array_equal(batch[name], array, err_msg=name)
            continue
        for level, expected in _means(array).items():
            np.testing.assert_allclose(batch[name][level], expected, rtol=1e-6)


def test_batches_hold_features_in_place_of_pixels(config, tmp_path):
    """Order, texts, padding and masks are those of pixels, in training and evaluation."""
    _extract_pixels(config, tmp_path / "features")
    with_pixels = create_datasets(config)
    config.data.features = str(tmp_path / "features")
    datasets = create_datasets(config)
    assert datasets.facts.features == FeatureFiles(config.data.features).identity
    for start in (0, 3):
        for batch, pixels in zip(
            datasets.train.batches(start, 7), with_pixels.train.batches(start, 7), strict=True
        ):
            _assert_same(batch, pixels, ("reference_image", "target_image"))
    for process in range(2):
        share = {"process_index": process, "process_count": 2}
        ours, theirs = (
            create_datasets(c, **share).evaluations["val"].image_batches()
            for c in (config, _without_features(config))
        )
        for batch, pixels in zip(ours, theirs, strict=True):
            _assert_same(batch, pixels, ("image",))
    # No picture is opened for a batch, and one that is there can still be shown.
    shutil.rmtree(f"{config.data.directory}/images")
    (batch,) = create_datasets(config, process_count=2).train.batches(5, 6)
    assert batch["target_image"]["low"].shape == (3, 4, 4, 3)


def _without_features(config):
    config = config.copy_and_resolve_references()
    config.data.features = None
    return config


def test_other_images_are_refused(config, tmp_path):
    folder = str(tmp_path / "features")
    _extract_pixels(config, folder)
    config.data.features = folder
    for field, value, message in (
        ("augment", True, r"config\.data\.augment=True .* set --config\.data\.augment=false"),
        ("crop", 40, r"holds features for config\.data\.crop=32, not 40; set it back"),
        ("read_as", "upright", r"read_as=released, not upright"),
        ("scaling", "own_maximum", r"scaling=fixed, not own_maximum"),
    ):
        other = config.copy_and_resolve_references()
        other.data[field] = value
        with pytest.raises(ValueError, match=message):
            create_datasets(other)
    other.data.augment, other.data.scaling = True, "fixed"
    create_datasets(other, training=False)  # nothing is augmented in an evaluation

    manifest = json.loads((tmp_path / "features" / MANIFEST).read_text())
    for key, value, message in (
        ("data_set", "shoes", r"config\.data\.name=shoes, not fashion_iq"),
        (
            "preprocessing",
            manifest["preprocessing"] | {"scaling": "own_maximum"},
            r"scaling=own_maximum, not fixed",
        ),
        ("prepared", {"encoding": "png"}, r"other pictures: prepared as .*png.* as None now"),
    ):
        changed = json.dumps(manifest | {key: value})
        (tmp_path / "features" / MANIFEST).write_text(changed)
        with pytest.raises(DataError, match=message):
            create_datasets(config)


def test_images_without_features_are_missing_ones(config, tmp_path):
    _extract_pixels(config, tmp_path / "all")
    whole = FeatureFiles(str(tmp_path / "all"))
    kept = [i for i in whole.rows if i not in ("dtrain3", "tval0")]
    values = whole.read([whole.rows[i] for i in kept])
    levels = whole.description.levels
    _write(tmp_path / "some", _describe(kept, levels=levels), values)
    config.data.features = str(tmp_path / "some")
    message = r"no features of 2 of the \d+ images .*dtrain3, tval0; .*missing_images=skip"
    with pytest.raises(DataError, match=message):
        create_datasets(config)
    config.data.missing_images = "skip"
    datasets = create_datasets(config)
    assert datasets.facts.skipped_images == ("dtrain3", "tval0")
    assert "tval0" not in datasets.evaluations["val"].image_ids
