"""Decoding as needed and keeping in memory give the same; images that fail on the way."""

import logging

import numpy as np
import pytest
import tensorflow as tf
from fake_data import fashion200k as write_fashion200k
from fake_data import fashion_iq as write_fashion_iq
from small import small_config

from input_pipeline import create_datasets
from input_pipeline.records import DataError


@pytest.fixture
def config(tmp_path):
    config = small_config()
    config.model.text.vocabulary_size = None
    config.data.directory = str(write_fashion_iq(tmp_path / "data"))
    config.data.resize, config.data.crop = 40, 32
    config.train.batch_size, config.eval.batch_size = 6, 5
    config.data.cache_gb = 0.0
    return config


def _file(config, image):
    return f"{config.data.directory}/images/{image}.jpg"


def _damage(config, image):
    """Damage a Huffman table, which only decoding reads: header and end are as they should be."""
    with open(_file(config, image), "rb") as file:
        content = bytearray(file.read())
    counts = content.index(b"\xff\xc4") + 5  # behind marker, length and class
    content[counts : counts + 16] = b"\xff" * 16
    with open(_file(config, image), "wb") as file:
        file.write(content)


def _equal(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) > 0
    for a, b in zip(batches, others, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("name", ["fashion_iq", "fashion200k"])
def test_memory_gives_the_same_batches(config, tmp_path, name):
    if name == "fashion200k":
        config.data.name = name
        config.data.directory = str(write_fashion200k(tmp_path / "fashion200k"))
    decoded = create_datasets(config)
    config.data.cache_gb = 1.0
    kept = create_datasets(config)
    for start in (0, 3):
        _equal(decoded.train.batches(start, 9), kept.train.batches(start, 9))
    for split, data in decoded.evaluations.items():
        _equal(data.image_batches(), kept.evaluations[split].image_batches())


def test_what_does_not_fit_is_decoded_as_needed(config, caplog):
    data = create_datasets(config)
    count = len({*data.evaluations["val"].image_ids, *data.train._source.image_ids()})
    config.data.cache_gb = (count * 40 * 40 * 3 - 1) / 1e9
    with caplog.at_level(logging.INFO):
        create_datasets(config)
    assert "decoded images take 0.0 GB, more than --config.data.cache_gb=" in caplog.text
    caplog.clear()
    config.data.cache_gb = (count * 40 * 40 * 3) / 1e9
    with caplog.at_level(logging.INFO):
        data = create_datasets(config)
    assert "decoded images take" not in caplog.text
    expected = list(data.train.batches(0, 2))
    for i in range(8):  # nothing is read again
        with open(_file(config, f"dtrain{i}"), "wb"):
            pass
    _equal(data.train.batches(0, 2), expected)


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_an_image_that_fails_on_the_way_is_named(config, cache_gb):
    _damage(config, "dtrain3")
    config.data.cache_gb = cache_gb
    data = create_datasets(config)  # the look at all files does not find it
    with pytest.raises(
        DataError, match=r"(?s)^image dtrain3 \(.*images/dtrain3\.jpg\): .*missing_images=skip"
    ):
        list(data.train.batches(0, 4))
    _damage(config, "dval2")
    with pytest.raises(DataError, match=r"image dval2 \(.*images/dval2\.jpg\)"):
        list(create_datasets(config).evaluations["val"].image_batches())


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_a_failed_image_gives_its_place_to_a_later_item(config, cache_gb, caplog):
    whole = create_datasets(config)
    before = list(whole.train.batches(0, 8))
    _damage(config, "dtrain3")
    _damage(config, "ttrain0")
    config.data.missing_images, config.data.cache_gb = "skip", cache_gb
    data = create_datasets(config)
    assert data.facts.images_skipped == 0
    after = list(data.train.batches(0, 8))
    assert data.facts.skipped_images == ("dtrain3", "ttrain0")
    assert data.facts.images_skipped == 2
    for image in ("dtrain3", "ttrain0"):
        assert f"image {image} ({_file(config, image)})" in caplog.text
    # Other places of the batches are as they were; in these stand items of later batches.
    changed = 0
    for step, (a, b) in enumerate(zip(before, after, strict=True)):
        epoch = step // 4
        order = whole.train.epoch_order(epoch)
        for place in range(6):
            item = int(order[step % 4 * 6 + place])
            triplet = whole.train._source.draw(0, epoch, item)
            lost = {triplet.reference, triplet.target} & {"dtrain3", "ttrain0"}
            same = all((a[key][place] == b[key][place]).all() for key in a)
            assert same != bool(lost)
            if lost:
                changed += 1
                later = [(step % 4 + hop) % 4 for hop in range(1, 4)]
                rows = [before[epoch * 4 + s]["target_image"][place] for s in later]
                assert any((row == b["target_image"][place]).all() for row in rows)
        # And no image pair stands twice in a batch.
        assert len({image.tobytes() for image in b["target_image"]}) == 6
    assert changed > 2
    # An image that fails again after a resume gives the same.
    _equal(create_datasets(config).train.batches(5, 8), after[5:])


def test_failed_images_leave_the_evaluation(config):
    expected = {
        i: pixels
        for b in create_datasets(config).evaluations["val"].image_batches()
        for i, pixels in zip(b["index"][b["mask"]], b["image"][b["mask"]], strict=True)
    }
    for image in ("dval0", "dval1", "tval7"):
        _damage(config, image)
    config.data.missing_images = "skip"
    datasets = create_datasets(config)
    data = datasets.evaluations["val"]
    assert data.is_usable().all()
    assert all(e.skipped == 0 for e in data.evaluations)
    batches = list(data.image_batches())
    assert len(batches) == data.image_batch_count()
    seen = np.concatenate([b["index"][b["mask"]] for b in batches])
    lost = {data.positions[i] for i in ("dval0", "dval1", "tval7")}
    assert sorted(seen) == sorted(set(expected) - lost)
    np.testing.assert_array_equal(np.flatnonzero(~data.is_usable()), sorted(lost))
    for b in batches:
        for index, pixels in zip(b["index"][b["mask"]], b["image"][b["mask"]], strict=True):
            np.testing.assert_array_equal(pixels, expected[index])
    for evaluation in data.evaluations:
        assert evaluation.skipped > 0
        assert not {"dval0", "dval1"} & set(evaluation.galleries["dress"])
        assert all(not {"dval0", "dval1"} & {q.reference, *q.targets} for q in evaluation.queries)
    assert datasets.facts.skipped_images == ("dval0", "dval1", "tval7")
    assert len(list(data.image_batches())) == data.image_batch_count()  # again


def test_nothing_left_is_an_error(config):
    config.data.missing_images = "skip"
    data = create_datasets(config)
    for category in "dt":
        for i in range(8):
            _damage(config, f"{category}train{i}")
            _damage(config, f"{category}val{i}")
    with pytest.raises(DataError, match="no usable image is left for row 0"):
        list(data.train.batches(0, 1))
    data = create_datasets(config)
    with pytest.raises(DataError, match="none of 16 images can be decoded"):
        list(data.evaluations["val"].image_batches())


def test_a_file_that_vanishes_is_named(config):
    train = create_datasets(config).train
    for category in "dt":
        for i in range(8):
            tf.io.gfile.remove(_file(config, f"{category}train{i}"))
    with pytest.raises(
        DataError, match=r"image [dt]train\d \(.*\.jpg\): unreadable: .*No such file"
    ):
        list(train.batches(0, 1))


def test_another_failure_is_no_image(config, monkeypatch):
    train = create_datasets(config).train

    def keys(images):
        raise RuntimeError("the cable is out")

    monkeypatch.setattr(train._loader, "keys", keys)
    with pytest.raises(DataError, match=r"(?s)the input pipeline failed: .*the cable is out"):
        list(train.batches(0, 1))
