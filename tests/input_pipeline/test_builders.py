"""The TFDS builders: what they write for each data set, from where, and what they refuse."""

import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import fake_data
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from optional import require
from PIL import Image
from tensorflow_datasets.core import shuffle

from cmap_jax.processing.images import (
    ImagePreprocessing,
    ImageReadError,
    load_square,
    read_image,
)
from configs import garments
from input_pipeline import examples, prepared
from input_pipeline.builders import BUILDERS, base
from input_pipeline.builders.base import ImageConfig
from input_pipeline.images.check import check_images
from input_pipeline.prepared_images import IMAGES
from input_pipeline.readers.garments import read_settings
from input_pipeline.reading import read_folder, read_records
from input_pipeline.records import DataError
from input_pipeline.registry import DATA_SETS

GarmentsConfig = BUILDERS["garments"].builder_config_cls

ROOT = pathlib.Path(__file__).parents[2]


class _OfFakeData:
    """Helpers of the cases below: small data in a folder of their own, and a small config."""

    @classmethod
    def setUpClass(cls):
        root = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory())) / "data"
        root.mkdir()
        if cls.DATASET_CLASS is not BUILDERS["garments"]:  # they are rendered into it
            fake_data.DATA_SETS[cls.DATASET_CLASS.name](root)
        cls.EXAMPLE_DIR = str(root)
        super().setUpClass()

    def _make_builder(self, config=None):
        # The case reads with `as_dataset`, which knows no ArrayRecord.
        return self.DATASET_CLASS(data_dir=self.tmp_dir, config=config, file_format="tfrecord")

    def test_session(self, *args, **kwargs):
        return super().test_session(*args, **kwargs)

    test_session.__test__ = False  # a helper of TensorFlow's, in spite of its name

    def test_says_what_it_is(self):
        info = self.builder.info
        assert info.description
        assert set(info.features) == set(examples.FIELDS)
        assert all(feature.doc.desc for feature in info.features.values())
        assert info.citation or self.builder.name in ("folder", "garments")
        assert self.builder.MANUAL_DOWNLOAD_INSTRUCTIONS or self.builder.name == "garments"


def _case(builder, config=None, **splits):
    """Return TFDS's own test case of a builder, which must write so many examples a split."""
    fields = {
        "DATASET_CLASS": builder,
        "BUILDER_CONFIG_NAMES_TO_TEST": [config or _small()],
        "SPLITS": splits,  # no example is in two of them: ids and references differ
        "__module__": __name__,
    }
    bases = (_OfFakeData, tfds.testing.DatasetBuilderTestCase)
    return type(f"{builder.__name__}Test", bases, fields)


def _small(**fields):
    return ImageConfig(**{"name": "small", "resize": 40, "encoding": "png", **fields})


# Two categories of 6 annotations, in both orders; one protocol of val joins the captions only once.
FashionIqTest = _case(BUILDERS["fashion_iq"], images=30, train=2 * 6 * 2, val=2 * 6 * 3)
ShoesTest = _case(BUILDERS["shoes"], images=17, train=6, val=6)
Fashion200kTest = _case(BUILDERS["fashion200k"], images=30, train=18, val=6)  # an image, an example
CirrTest = _case(BUILDERS["cirr"], images=31, train=6, val=6, test1=6)
CircoTest = _case(BUILDERS["circo"], images=60, val=6, test=6)
FolderTest = _case(BUILDERS["folder"], images=23, train=6, val=6, test=6)
# Slow: it renders all garments.
GarmentsTest = pytest.mark.slow(
    _case(
        BUILDERS["garments"],
        GarmentsConfig(name="tiny", resize=32, image_size=16, train_triplets=64),
        **{"images": 7680, "train": 2 * 64, "val": 2 * 1000, "test": 2 * 2000},
    )
)


def _build(out, raw, builder=BUILDERS["fashion_iq"], config=None, **download):
    """Build into a folder and return the prepared data set's own."""
    made = builder(data_dir=str(out), config=config or _small())
    made.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(raw), **download)
    )
    return made.data_path


def _metadata(folder):
    return json.loads((folder / prepared.METADATA).read_text())


def _image_records(folder):
    source = tfds.builder_from_directory(folder).as_data_source(IMAGES)
    return [source[position] for position in range(len(source))]


def _content(records):
    """All that training and evaluation take from records, with the order of everything in it."""
    evaluations = [
        *records.evaluations.items(),
        *((s, (e,)) for s, e in records.unlabelled.items()),
    ]
    return {
        "images": list(records.images),
        "items": list(records.train.items()),
        "drawn": [records.train.draw(3, 1, item) for item in range(len(records.train))],
        "evaluations": evaluations,
        "galleries": [list(e.galleries.items()) for _, found in evaluations for e in found],
        "captions": records.vocabulary_captions,
    }


def _same_images(folder, expected):
    """The records at each position are those of the ids, and hold the ids' pixels."""
    preprocessing = _small().preprocessing(expected)
    found = _image_records(folder)
    assert [record["id"].decode() for record in found] == list(expected.images)
    for record, image in zip(found, expected.images.values(), strict=True):
        square = np.asarray(load_square(image.path, preprocessing))
        np.testing.assert_array_equal(tf.io.decode_png(record["image"]), square, image.id)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_configs_that_have_a_name(name):
    side = 72 if name == "garments" else 256
    found = {c.name: (c.encoding, c.quality, c.resize) for c in BUILDERS[name].BUILDER_CONFIGS}
    assert found == {"jpeg": ("jpeg", 95, side), "png": ("png", 95, side)}


def test_a_config_of_ones_own(tmp_path):
    raw = fake_data.fashion_iq(tmp_path / "raw")
    (raw / "images").rename(tmp_path / "pictures")
    fields = {
        "name": "mine",
        "resize": 48,
        "quality": 30,
        "image_directory": f"{tmp_path}/pictures",
    }
    config = BUILDERS["fashion_iq"].builder_config_cls(**json.loads(json.dumps(fields)))
    folder = _build(tmp_path / "out", raw, config=config)
    assert folder == tmp_path / "out" / "fashion_iq" / "mine" / "2.0.0"
    about = _metadata(folder)
    assert about["encoding"] == "jpeg 30"
    assert about["preprocessing"] == {"resize": 48, "pad_value": 255, "read_as": "released"}
    for record in _image_records(folder):
        original = (tmp_path / "pictures" / f"{record['id'].decode()}.jpg").read_bytes()
        square = np.asarray(load_square(original, ImagePreprocessing(48, 32)))
        assert record["image"] == tf.io.encode_jpeg(square, quality=30)
        with Image.open(io.BytesIO(record["image"])) as image:
            assert (image.format, image.size) == ("JPEG", (48, 48))
        assert (record["height"], record["width"]) == (60, 40)  # as it was found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "webp"}, r"^encoding must be jpeg or png, not 'webp'"),
        ({"encoding": None}, r"^encoding must be jpeg or png, not None"),
        ({"quality": 0}, r"^quality must be 1 to 100, not 0"),
        ({"quality": 101}, r"^quality must be 1 to 100, not 101"),
        ({"quality": 95.5}, r"^quality must be 1 to 100, not 95\.5"),
        ({"quality": "95"}, r"^quality must be 1 to 100, not '95'"),
        ({"read_as": "sideways"}, r"^read_as must be released or upright or None, not 'sideways'"),
        ({"missing_images": "ignore"}, r"^missing_images must be fail or skip, not 'ignore'"),
        ({"near_names": "skip"}, r"^near_names must be fail or accept, not 'skip'"),
        ({"resize": 31}, r"^resize .*31"),
        ({"resize": 0}, r"^resize .*0"),
        ({"resize": -64}, r"^resize .*-64"),
        ({"resize": 256.0}, r"^resize .*256\.0"),
        ({"resize": "256"}, r"^resize .*'256'"),
        ({"resize": 10**6}, r"^resize .*1000000"),
    ],
)
@pytest.mark.parametrize("kind", [ImageConfig, GarmentsConfig])
def test_settings_that_cannot_be(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(name="mine", **fields)


def test_settings_that_nobody_knows():
    with pytest.raises(TypeError, match="'size'"):
        ImageConfig(name="mine", size=224)


def test_garments_keep_their_images_with_them():
    with pytest.raises(ValueError, match="image_directory"):
        GarmentsConfig(name="mine", image_directory="pictures")


@pytest.mark.parametrize("count", [3, 6])  # the smallest splits have 6 examples
def test_several_shards_keep_the_order(tmp_path, count):
    raw = fake_data.circo(tmp_path / "raw")
    folder = _build(tmp_path / "out", raw, BUILDERS["circo"], num_shards=count)
    files = [file.name for file in folder.glob(f"*-{IMAGES}.*")]
    assert len(files) == count, files
    expected = DATA_SETS["circo"].read(str(raw))
    _same_images(folder, expected)
    assert _content(prepared.read(str(folder), "circo")) == _content(expected)


def _damage(path):
    """Damage a file inside, which only decoding finds: header and end are as they should be."""
    content = path.read_bytes()
    if path.suffix == ".png":
        damaged = content[: len(content) // 2] + content[-12:]
    else:
        scan = content.index(b"\xff\xda") + 12
        middle = (scan + len(content)) // 2
        damaged = content[:middle] + b"\xff\xc0" + content[middle + 2 :]  # a second frame starts
    path.write_bytes(damaged)
    with pytest.raises(ImageReadError):
        read_image(damaged)


@pytest.mark.parametrize("most", [1 << 30, 20_000])
def test_a_large_split_is_not_sorted_in_one_piece(tmp_path, monkeypatch, most):
    raw = fake_data.circo(tmp_path / "raw")
    sizes = []
    read = shuffle._Bucket.read_values

    def spy(bucket):
        sizes.append(len(bucket))
        return read(bucket)

    monkeypatch.setattr(shuffle._Bucket, "read_values", spy)
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", most)  # bytes; above, TFDS sorts on disk
    folder = _build(tmp_path / "out", raw, BUILDERS["circo"])
    assert sum(sizes) == (60 if most == 20_000 else 0)
    assert max(sizes, default=0) <= 1  # examples in memory at once
    _same_images(folder, DATA_SETS["circo"].read(str(raw)))


DAMAGES = {"missing": pathlib.Path.unlink, "empty": lambda p: p.write_bytes(b""), "inside": _damage}


@pytest.fixture
def in_many_batches(monkeypatch):
    """Make an image that fails have others before it, beside it and after it."""
    monkeypatch.setattr(base, "_AT_ONCE", 4)


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_unusable_image_stops_the_build(tmp_path, in_many_batches, kind):
    raw = fake_data.fashion_iq(tmp_path / "raw")
    file = raw / "images" / "dval1.jpg"
    healthy = file.read_bytes()
    DAMAGES[kind](file)
    with pytest.raises(
        DataError, match=r'(?s)images/dval1\.jpg.*"missing_images": "skip"'
    ) as raised:
        _build(tmp_path / "out", raw)
    if kind == "inside":
        assert f"image dval1 ({file}): " in str(raised.value)
    # Nothing is left that would be taken for a data set, and mending the file is enough.
    assert prepared.find_below(str(tmp_path / "out")) == []
    assert not list((tmp_path / "out").rglob("*.array_record*"))
    file.write_bytes(healthy)
    _same_images(_build(tmp_path / "out", raw), DATA_SETS["fashion_iq"].read(str(raw)))


@pytest.mark.parametrize("name", ["fashion_iq", "fashion200k", "cirr"])
def test_unusable_images_are_left_out(tmp_path, in_many_batches, name):
    raw = fake_data.DATA_SETS[name](tmp_path / "raw")
    whole = DATA_SETS[name].read(str(raw))
    lost = dict(zip(list(whole.images)[1:19:3], [*DAMAGES.values()] * 2, strict=True))
    for image, damage in lost.items():
        damage(pathlib.Path(whole.images[image].path))
    inside = [image for image, damage in lost.items() if damage is _damage]
    assert len(inside) == 2
    assert set(check_images(whole)) == set(lost) - set(inside)
    config = _small(missing_images="skip")
    folder = _build(tmp_path / "out", raw, tfds.builder_cls(name), config)
    assert _metadata(folder)["skipped_images"] == sorted(lost)
    expected = whole.without(lost.keys())
    assert 0 < len(expected.train) < len(whole.train)
    assert len(expected.images) == len(whole.images) - len(lost)
    found = prepared.read(str(folder), name)
    assert found.skipped_images == tuple(sorted(lost))
    assert _content(found) == _content(expected)
    _same_images(folder, expected)


def test_near_names_are_taken(tmp_path):
    raw = fake_data.circo(tmp_path / "raw")
    whole = DATA_SETS["circo"].read(str(raw))
    for image in whole.images.values():
        path = pathlib.Path(image.path)
        path.rename(path.with_name(path.stem.lstrip("0") + ".JPG"))
    with pytest.raises(DataError, match=r"missing, but there is '1\.JPG', which differs in letter"):
        _build(tmp_path / "out", raw, BUILDERS["circo"])
    folder = _build(tmp_path / "out", raw, BUILDERS["circo"], _small(near_names="accept"))
    found = prepared.read(str(folder), "circo")
    assert _content(found) == _content(whole)


def test_a_query_whose_targets_are_lost_in_different_ways(tmp_path):
    raw = fake_data.circo(tmp_path / "raw")
    whole = DATA_SETS["circo"].read(str(raw))
    (evaluation,) = whole.evaluations["val"]
    lost = evaluation.queries[0].targets
    for image, damage in zip(lost, DAMAGES.values(), strict=True):
        damage(pathlib.Path(whole.images[image].path))
    folder = _build(tmp_path / "out", raw, BUILDERS["circo"], _small(missing_images="skip"))
    found = prepared.read(str(folder), "circo")
    assert _content(found) == _content(whole.without(set(lost)))


def test_no_query_left_of_a_split(tmp_path):
    raw = fake_data.folder(tmp_path / "raw")
    (raw / "test.csv").write_text("reference,text,target\ntest/0.jpg,is red,test/1.jpg\n")
    config = _small(missing_images="skip")
    (raw / "test" / "1.jpg").rename(tmp_path / "1.jpg")
    # An image that is not there from the start takes the split away, ...
    folder = _build(tmp_path / "a", raw, BUILDERS["folder"], config)
    (evaluation, _) = prepared.read(str(folder), "folder").evaluations["test"]
    assert (evaluation.queries, evaluation.skipped) == ((), 1)
    # ... but TFDS, which has been told of the split, refuses to write it without an example.
    (tmp_path / "1.jpg").rename(raw / "test" / "1.jpg")
    _damage(raw / "test" / "1.jpg")
    with pytest.raises(DataError, match=r"'test'.*test/1\.jpg"):
        _build(tmp_path / "b", raw, BUILDERS["folder"], config)


def _tfds_build(folder, *arguments):
    """Run `tfds build` as from a shell, in a folder that is not the repository's."""
    for module in ("apache_beam", "mlcroissant"):  # the command imports them in any case
        require(module)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    script = pathlib.Path(sys.executable).parent / "tfds"
    command = [str(script), "build", *arguments]
    command += ["--imports=input_pipeline.builders", "--data_dir=prepared"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_tfds_build_renders_garments(tmp_path):
    fields = {"name": "tiny", "resize": 32, "image_size": 16, "train_triplets": 64, "seed": 3}
    _tfds_build(tmp_path, "garments", f"--config={json.dumps(fields)}")
    (folder,) = prepared.find_below(str(tmp_path / "prepared"))
    assert folder == f"{tmp_path}/prepared/garments/tiny/2.0.0"
    (raw,) = (tmp_path / "prepared" / "downloads").glob("garments*")
    settings = read_settings(str(raw))
    assert {k: settings[k] for k in ("seed", "image_size", "train_triplets")} == {
        k: fields[k] for k in ("seed", "image_size", "train_triplets")
    }
    found, expected = prepared.read(folder, "garments"), read_folder("garments", str(raw))
    assert _content(found) == _content(expected)
    assert found.facts["oracles"] == expected.facts["oracles"]


@pytest.mark.slow
def test_tfds_build_of_manual_data(tmp_path):
    fake_data.folder(tmp_path / "raw")
    _tfds_build(tmp_path, "folder/png", "--manual_dir=raw")
    folder = str(tmp_path / "prepared" / "folder" / "png" / "2.0.0")
    found = prepared.read(folder, "folder")
    assert _content(found) == _content(DATA_SETS["folder"].read(str(tmp_path / "raw")))
    assert found.facts["prepared"]["resize"] == 256
    # The folder above is a likely mistake.
    for name in DATA_SETS:
        with pytest.raises(DataError, match=rf"holds prepared data sets; .*: {folder}$"):
            read_folder(name, str(tmp_path / "prepared"))
    config = garments.get_config()
    config.data.directory = str(tmp_path / "prepared")
    with pytest.raises(DataError, match=rf"holds prepared data sets; .*: {folder}$"):
        read_records(config)


@pytest.mark.real_data
def test_tfds_build_of_photographs(tmp_path, real_data):
    raw = real_data / "garment_photos"
    _tfds_build(tmp_path, "fashion200k/jpeg", f"--manual_dir={raw}")
    folder = tmp_path / "prepared" / "fashion200k" / "jpeg" / "2.0.0"
    found = prepared.read(str(folder), "fashion200k")
    assert len(found.images) == 3409
    assert _content(found) == _content(DATA_SETS["fashion200k"].read(str(raw)))


def test_remedies_are_those_of_tfds(tmp_path):
    """They name what `tfds build` takes; main.py's flags it would refuse."""
    raw = fake_data.folder(tmp_path / "raw")
    _damage(raw / "val" / "0.jpg")
    with pytest.raises(DataError) as late:  # found where it is decoded
        _build(tmp_path / "a", raw, BUILDERS["folder"])
    (raw / "val" / "0.jpg").unlink()
    with pytest.raises(DataError) as early:
        _build(tmp_path / "b", raw, BUILDERS["folder"])
    for error in (late, early):
        assert """--config='{"name": "own", "missing_images": "skip"}'""" in str(error.value)
        assert "--config.data" not in str(error.value)
    assert """--config='{"name": "own", "image_directory": "..."}'""" in str(early.value)
    for table in raw.glob("*.csv"):
        table.unlink()
    with pytest.raises(FileNotFoundError, match="Set --manual_dir to the folder"):
        _build(tmp_path / "c", raw, BUILDERS["folder"])


def test_what_is_prepared_is_not_prepared_again(tmp_path):
    raw = fake_data.folder(tmp_path / "raw")
    once = _build(tmp_path / "once", raw, BUILDERS["folder"])
    with pytest.raises(DataError, match="is prepared already; name the raw folder"):
        _build(tmp_path / "twice", once, BUILDERS["folder"])
