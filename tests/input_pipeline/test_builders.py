"""The TFDS builders: TFDS's own test case for each, damaged images, shards, and `tfds build`."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import fake_data
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from optional import require

from input_pipeline import prepared, storage
from input_pipeline.builders import (
    Circo,
    Cirr,
    Fashion200k,
    FashionIq,
    Folder,
    Garments,
    Shoes,
)
from input_pipeline.builders.base import ImageConfig
from input_pipeline.builders.garments import GarmentsConfig
from input_pipeline.image_check import check_images
from input_pipeline.readers import READERS
from input_pipeline.records import DataError

TINY = ImageConfig(name="tiny", description="Small.", encoding="png", resize=40)
# Rendered in a second or two.
TINY_GARMENTS = GarmentsConfig(
    name="tiny", description="Small.", resize=32, image_size=16, train_triplets=64
)


class _BuilderTest:
    """What `DatasetBuilderTestCase` needs to know of all of them."""

    WRITE = None
    BUILDER_CONFIG_NAMES_TO_TEST = (TINY,)

    @classmethod
    def setUpClass(cls):
        folder = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, folder)
        cls.EXAMPLE_DIR = os.path.join(folder, "data")
        os.makedirs(cls.EXAMPLE_DIR)
        if cls.WRITE is not None:
            cls.WRITE(pathlib.Path(cls.EXAMPLE_DIR))
        super().setUpClass()

    def _make_builder(self, config=None):
        # The test case reads with `as_dataset`, which cannot read ArrayRecord.
        config = self.BUILDER_CONFIG_NAMES_TO_TEST[0] if config is None else config
        return self.DATASET_CLASS(data_dir=self.tmp_dir, config=config, file_format="tfrecord")

    def test_says_what_it_is(self):
        info = self.builder.info
        assert info.description
        assert set(info.features) == set(prepared.FIELDS)
        assert all(feature.doc.desc for feature in info.features.values())
        assert info.citation or self.DATASET_CLASS in (Folder, Garments)
        assert self.builder.MANUAL_DOWNLOAD_INSTRUCTIONS or self.DATASET_CLASS is Garments


class FashionIqTest(_BuilderTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS, WRITE = FashionIq, fake_data.fashion_iq
    # Of two categories: 6 annotations in both orders each; val once more as "joined".
    SPLITS = {"images": 30, "train": 24, "val": 36}


class ShoesTest(_BuilderTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS, WRITE = Shoes, fake_data.shoes
    SPLITS = {"images": 17, "train": 6, "val": 6}


class Fashion200kTest(_BuilderTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS, WRITE = Fashion200k, fake_data.fashion200k
    SPLITS = {"images": 30, "train": 18, "val": 6}


class CirrTest(_BuilderTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS, WRITE = Cirr, fake_data.cirr
    SPLITS = {"images": 31, "train": 6, "val": 6, "test1": 6}


class CircoTest(_BuilderTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS, WRITE = Circo, fake_data.circo
    SPLITS = {"images": 60, "val": 6, "test": 6}


class FolderTest(_BuilderTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS, WRITE = Folder, fake_data.folder
    SPLITS = {"images": 23, "train": 6, "val": 6, "test": 6}


class GarmentsTest(_BuilderTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Garments
    BUILDER_CONFIG_NAMES_TO_TEST = (TINY_GARMENTS,)
    SPLITS = {"images": 7680, "train": 128, "val": 2000, "test": 4000}


def _build(builder, raw, **options):
    config = tfds.download.DownloadConfig(manual_dir=raw, **options)
    builder.download_and_prepare(download_config=config)
    return str(builder.data_path)


def _skipping(**fields):
    return dataclasses.replace(TINY, name="skipping", missing_images="skip", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "webp"}, "encoding must be jpeg or png, not 'webp'"),
        ({"missing_images": "ignore"}, "missing_images must be fail or skip, not 'ignore'"),
        ({"quality": 0}, "quality must be 1 to 100, not 0"),
        ({"resize": 31}, "resize must be 32 to .*, not 31"),
        ({"resize": "256"}, "resize must be 32 to .*, not '256'"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ImageConfig(name="mine", **fields)


def _damage(records, image, content):
    with open(records.images[image].path, "rb") as file:
        whole = bytearray(file.read())
    with open(records.images[image].path, "wb") as file:
        file.write(content(whole))


def _bogus_huffman_table(whole):
    counts = whole.index(b"\xff\xc4") + 5
    whole[counts : counts + 16] = b"\xff" * 16
    return whole


def test_unusable_images_fail_or_are_left_out_with_their_queries(tmp_path):
    raw = fake_data.fashion_iq(tmp_path / "raw")
    records = READERS["fashion_iq"].read(str(raw))
    _damage(records, "dval1", lambda _: b"")
    _damage(records, "ttrain2", _bogus_huffman_table)
    assert set(check_images(records)) == {"dval1"}  # the other shows only when it is decoded
    with pytest.raises(DataError, match=r"dval1\.jpg: zero bytes"):
        _build(FashionIq(data_dir=tmp_path / "out", config=TINY), raw)
    _damage(records, "dval1", lambda _: pathlib.Path(records.images["dval2"].path).read_bytes())
    with pytest.raises(Exception, match=r"image ttrain2 \(.*ttrain2\.jpg\)"):
        _build(FashionIq(data_dir=tmp_path / "out", config=TINY), raw)
    assert not prepared.find_below(str(tmp_path / "out"))
    _damage(records, "dval1", lambda _: b"")

    place = _build(FashionIq(data_dir=tmp_path / "out", config=_skipping()), raw)
    found = prepared.read(place, "fashion_iq")
    assert found.skipped_images == ("dval1", "ttrain2")
    expected = records.without({"dval1", "ttrain2"})
    assert list(found.images) == list(expected.images)
    assert list(found.train.items()) == list(expected.train.items())
    assert found.evaluations == expected.evaluations
    assert found.evaluations["val"][0].skipped > 0
    for image in found.images:
        size = tf.io.decode_png(found.prepared.read(image)).shape
        assert size == (40, 40, 3)


def test_many_shards_keep_the_order(tmp_path):
    raw = fake_data.circo(tmp_path / "raw")
    place = _build(Circo(data_dir=tmp_path / "out", config=TINY), raw, num_shards=4)
    files = [name for name in os.listdir(place) if "-images." in name]
    assert len(files) == 4
    source = tfds.builder_from_directory(place).as_data_source("images")
    ids = [example["id"].decode() for example in source]
    assert ids == list(READERS["circo"].read(str(raw)).images)
    assert ids == list(prepared.read(place, "circo").images)
    assert (source[0]["height"], source[0]["width"]) == (60, 40)


def _tfds(*arguments, cwd):
    for module in ("apache_beam", "mlcroissant"):  # the command imports both
        require(module)
    program = pathlib.Path(sys.executable).parent / "tfds"
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [program, "build", *arguments, "--imports=input_pipeline.builders", "--data_dir=out"],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_tfds_build(tmp_path):
    fake_data.folder(tmp_path / "raw")
    config = '{"name": "tiny", "resize": 32, "image_size": 16, "train_triplets": 64}'
    _tfds("garments", f"--config={config}", cwd=tmp_path)
    garments = prepared.read(str(tmp_path / "out/garments/tiny/1.0.0"), "garments")
    assert len(garments.images) == 7680
    assert set(garments.facts["oracles"]) == {"garments/test", "garments/all"}
    _tfds("folder/png", "--manual_dir=raw", cwd=tmp_path)
    place = str(tmp_path / "out/folder/png/1.0.0")
    assert len(prepared.read(place, "folder").images) == 23
    about = storage.read_json(f"{place}/metadata.json")
    assert about["words"] == len(about["vocabulary"])
    assert about["preprocessing"] == {"resize": 256, "pad_value": 255}


@pytest.mark.real_data
def test_tfds_build_of_photographs(tmp_path, real_data):
    _tfds("fashion200k/jpeg", f"--manual_dir={real_data}/garment_photos", cwd=tmp_path)
    records = prepared.read(str(tmp_path / "out/fashion200k/jpeg/1.0.0"), "fashion200k")
    expected = READERS["fashion200k"].read(str(real_data / "garment_photos"))
    assert len(records.images) == 3409
    assert records.evaluations == expected.evaluations
    assert records.vocabulary_captions == expected.vocabulary_captions
