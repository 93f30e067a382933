"""Prepared data sets: the records, order and pixels of the raw folder; what is refused."""

import dataclasses
import json
import pathlib
import shutil

import fake_data
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from small import small_config

from cmap_jax.cli import command
from cmap_jax.cli.run import evaluate
from cmap_jax.processing.images import ImagePreprocessing
from input_pipeline import builders, create_datasets, prepared
from input_pipeline.builders.base import ImageConfig
from input_pipeline.readers import READERS, read_folder
from input_pipeline.records import DataError, Records

BUILDERS = {builder.name: builder for builder in map(builders.__dict__.get, builders.__all__)}


def _build(raw, out, name, encoding="png", **options) -> str:
    fields = {k: options.pop(k) for k in ("resize", "missing_images") if k in options}
    settings = {"resize": 40, "encoding": encoding, **fields}
    builder = BUILDERS[name](data_dir=out, config=ImageConfig(name="mine", **settings), **options)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=raw))
    return str(builder.data_path)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> pathlib.Path:
    return fake_data.fashion_iq(tmp_path_factory.mktemp("raw") / "fashion_iq")


@pytest.fixture(scope="module")
def ready(raw, tmp_path_factory) -> str:
    return _build(raw, tmp_path_factory.mktemp("png"), "fashion_iq")


@pytest.fixture
def copy(ready, tmp_path) -> str:
    """A prepared set to spoil."""
    return str(shutil.copytree(ready, tmp_path / "copy"))


@pytest.fixture
def config(ready):
    config = small_config()
    config.model.text.vocabulary_size = None
    config.data.directory = ready
    config.data.resize, config.data.crop = 40, 32
    config.train.batch_size = config.eval.batch_size = 8
    config.data.cache_gb = 0.0
    return config


def _plain(records: Records) -> dict:
    """All of the records that preparing must keep."""
    fields = ("name", "evaluations", "unlabelled", "vocabulary_captions", "extra_special")
    return {
        **{field: getattr(records, field) for field in fields},
        "items": list(records.train.items()),
        "draws": [records.train.draw(3, 1, i) for i in range(len(records.train))],
        "longest": sorted(records.train.longest_texts()),
        "images": list(records.images),
        "facts": {k: v for k, v in records.facts.items() if k != "prepared"},
        "conditions": [e.conditions() for es in records.evaluations.values() for e in es],
    }


@pytest.mark.parametrize("name", fake_data.DATA_SETS)
def test_the_records_are_those_of_the_reader(tmp_path, name):
    folder = fake_data.DATA_SETS[name](tmp_path / "raw")
    reader = name.split()[0]
    place = _build(folder, tmp_path / "out", reader)
    expected = READERS[reader].read(str(folder))
    records = read_folder(reader, place)
    assert _plain(records) == _plain(expected)
    assert records.layout == f"prepared as png from {expected.layout}"
    assert records.facts["prepared"] == {
        "version": prepared.VERSION,
        "encoding": "png",
        "resize": 40,
        "pad_value": 255,
    }
    about = json.loads(pathlib.Path(place, "metadata.json").read_text())
    assert about["words"] == len(about["vocabulary"])
    if "train" in about["evaluations"]:
        pytest.fail("the training items are no evaluation")


def _batches(config, start=0, stop=7):
    data = create_datasets(config)
    return [
        *data.train.batches(start, stop),
        *(batch for e in data.evaluations.values() for batch in e.image_batches()),
    ]


def _assert_equal(found, expected, but=()):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - set(but):
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_lossless_records_give_the_batches_of_the_raw_folder(config, raw, cache_gb):
    config.data.cache_gb = cache_gb
    found, later = _batches(config), _batches(config, start=4)
    config.data.directory = str(raw)
    _assert_equal(found, _batches(config))
    _assert_equal(later[:3], found[4:7])


def test_jpeg_records_differ_by_the_codec_alone(config, raw, tmp_path):
    expected = _batches(config)
    config.data.directory = _build(raw, tmp_path, "fashion_iq", encoding="jpeg")
    found = _batches(config)
    images = ("image", "reference_image", "target_image")
    _assert_equal(found, expected, but=images)
    errors = np.concatenate(
        [
            np.abs(a[key].astype(int) - b[key]).ravel()
            for a, b in zip(found, expected, strict=True)
            for key in images
            if key in a
        ]
    )
    # These pictures are coarse colours on white, hard on a codec that halves the colours.
    assert 0.1 < errors.mean() < 6
    assert np.percentile(errors, 90) < 15


def test_fashion200k_draws_the_same_pairs(config, tmp_path):
    config.data.name = "fashion200k"
    folder = fake_data.fashion200k(tmp_path / "raw")
    config.data.directory = str(folder)
    expected = _batches(config)
    config.data.directory = _build(folder, tmp_path / "out", "fashion200k")
    _assert_equal(_batches(config), expected)


def test_other_data_and_sizes_are_refused(config, ready):
    with pytest.raises(DataError, match="holds fashion_iq, prepared, and not shoes"):
        read_folder("shoes", ready)
    config.data.resize = 44
    with pytest.raises(DataError, match=r"with resize 40, but the model takes .* resize 44; build"):
        create_datasets(config)
    images = read_folder("fashion_iq", ready).prepared
    with pytest.raises(DataError, match=r"with pad_value 255, but the model .* pad_value 0"):
        images.check(ImagePreprocessing(resize=40, crop=32, pad_value=0))
    with pytest.raises(ValueError, match="prepared data keep their images with them"):
        read_folder("fashion_iq", ready, ready)


def test_another_version_is_refused(ready, monkeypatch):
    monkeypatch.setattr(prepared, "VERSION", "2.0.0")
    with pytest.raises(
        DataError, match=r"prepared in version 1\.0\.0, and this version .* reads version 2\.0\.0"
    ):
        prepared.read(ready, "fashion_iq")


def test_other_files_are_refused(raw, tmp_path):
    place = _build(raw, tmp_path, "fashion_iq", file_format="tfrecord")
    with pytest.raises(DataError, match=r"not in ArrayRecord files.*without --file_format"):
        prepared.read(place, "fashion_iq")


def test_a_folder_above_is_no_data_set(ready):
    above = str(pathlib.Path(ready).parents[1])
    with pytest.raises(DataError, match=r"holds prepared data sets; name one of them: .*1\.0\.0"):
        read_folder("fashion_iq", above)


def _edit(place, **fields):
    file = pathlib.Path(place, "metadata.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def _spoil(place, kind):
    file = pathlib.Path(place, "metadata.json")
    about = json.loads(file.read_text())
    (told, *others) = about["evaluations"]["val"]
    match kind:
        case "no metadata":
            file.unlink()
        case "no JSON":
            file.write_text("{")
        case "a field less":
            del about["captions"]
            file.write_text(json.dumps(about))
        case "a position that is none":
            galleries = {"dress": [99]}
            _edit(place, evaluations={"val": [{**told, "galleries": galleries}, *others]})
        case "a protocol unheard of":
            _edit(place, evaluations={"val": [{**told, "version": 7}, *others]})
        case "ids in another order":
            _edit(place, image_ids=about["image_ids"][::-1])
        case "an id less":
            _edit(place, image_ids=about["image_ids"][:-1])
        case "a training unheard of":
            _edit(place, training="dreams")
        case "a file cut":
            (images,) = pathlib.Path(place).glob("*-images.*")
            images.write_bytes(images.read_bytes()[:70_000])
        case "a file less":
            (images,) = pathlib.Path(place).glob("*-images.*")
            images.unlink()
        case "an info that is none":
            pathlib.Path(place, "dataset_info.json").write_text("{")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no metadata", r"prepared by something else: it has no metadata\.json"),
        ("no JSON", r"metadata\.json"),
        ("a field less", r"metadata\.json must have a list under 'captions'; there is none"),
        ("a position that is none", r"metadata\.json: broken, build it again"),
        ("a protocol unheard of", "prepared for fashioniq/original, version 7, which .* build it"),
        ("ids in another order", "image records are not those of the 30 ids"),
        ("an id less", "its 30 image records are not those of the 29 ids"),
        ("a training unheard of", r"metadata\.json: broken, build it again: KeyError\('dreams'\)"),
        ("a file cut", "copy: .* cannot be read, build it again"),
        ("a file less", "copy: .* cannot be read, build it again"),
        ("an info that is none", "no prepared data set"),
    ],
)
def test_broken_sets_are_refused(copy, kind, message):
    _spoil(copy, kind)
    with pytest.raises(ValueError, match=message):  # DataError, or of a JSON file
        prepared.read(copy, "fashion_iq")


def test_images_left_out_are_accepted_or_not(config, raw, tmp_path):
    folder = shutil.copytree(raw, tmp_path / "raw")
    (folder / "images" / "dval1.jpg").unlink()
    config.data.directory = _build(folder, tmp_path / "out", "fashion_iq", missing_images="skip")
    with pytest.raises(DataError, match=r"without 1 .* dval1\. Accept .*missing_images=skip"):
        create_datasets(config)
    config.data.missing_images = "skip"
    data = create_datasets(config)
    assert (data.facts["images_skipped"], data.facts["skipped_images"]) == (1, ["dval1"])
    config.data.directory = str(folder)
    from_raw = create_datasets(config)
    assert from_raw.evaluations["val"].evaluations == data.evaluations["val"].evaluations
    _assert_equal(list(data.train.batches(0, 4)), list(from_raw.train.batches(0, 4)))


def test_a_record_that_does_not_decode_is_named(config, copy, monkeypatch):
    config.data.directory = copy
    data = create_datasets(config)
    images = data.train._loader.source
    whole = images.keys

    def keys(ids):
        cut = [tf.train.Example.FromString(record) for record in whole(ids)]
        for image, example in zip(ids, cut, strict=True):
            if image == "dtrain3":
                values = example.features.feature["image"].bytes_list.value
                values[0] = values[0][:100]
        return [example.SerializeToString() for example in cut]

    monkeypatch.setattr(images, "keys", keys)
    with pytest.raises(DataError, match=r"image dtrain3 \(.*copy: images\[\d+\]\): "):
        list(data.train.batches(0, 3))


def test_commands_take_them(ready, tmp_path, capsys):
    picture = tmp_path / "grid.png"
    assert command.main(["show", "fashion_iq", ready, "--out", str(picture)]) == 0
    assert picture.stat().st_size > 1000
    assert command.main(["doctor", "fashion_iq", ready]) == 1
    assert "holds a prepared data set; the doctor looks at raw ones" in capsys.readouterr().err


def test_a_model_of_another_version_is_not_evaluated(config, tmp_path):
    from small import init

    from cmap_jax import workdir
    from cmap_jax.protocols import PROTOCOLS

    data = create_datasets(config, training=False)
    config.model.text.vocabulary_size = len(data.vocabulary)
    description = workdir.Description(
        config,
        data.vocabulary,
        data.preprocessing,
        (PROTOCOLS["fashioniq/original"],),
        {**data.facts, "prepared": {**data.facts["prepared"], "version": "1.1.0"}},
    )
    workdir.write_model(tmp_path / "run", description, *init(config))
    with pytest.raises(ValueError, match=r"in version 1\.1\.0, but .* in version 1\.0\.0"):
        evaluate(config, str(tmp_path / "run"))


def test_an_example_is_complete():
    fields = {field.name for field in dataclasses.fields(prepared.Query)}
    assert fields <= set(prepared.FIELDS)
    assert prepared.example(id="a")["captions"] == ()
