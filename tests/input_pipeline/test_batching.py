"""Batches: the contract, determinism, resuming at a position, process shares, bad images."""

import numpy as np
import pytest
from fake_data import circo as write_circo
from fake_data import fashion_iq as write_fashion_iq
from small import small_config

from cmap_jax.processing.images import ImagePreprocessing, preprocess_image
from input_pipeline import create_datasets
from input_pipeline.records import DataError


@pytest.fixture
def config(tmp_path):
    config = small_config()
    config.model.text.vocabulary_size = None
    config.data.directory = str(write_fashion_iq(tmp_path / "data"))
    config.data.resize, config.data.crop = 40, 32
    config.train.batch_size = 10
    config.eval.batch_size = 6
    return config


def _same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_training_contract(config):
    data = create_datasets(config)
    assert data.train.steps_per_epoch == 2  # 24 items: a partial batch is dropped
    (batch, *_) = data.train.batches(0, 1)
    for key, shape, dtype in (
        ("reference_image", (10, 32, 32, 3), np.uint8),
        ("target_image", (10, 32, 32, 3), np.uint8),
        ("text_tokens", (10, data.train.text_width), np.int32),
        ("text_lengths", (10,), np.int32),
        ("mask", (10,), bool),
    ):
        assert (batch[key].shape, batch[key].dtype) == (shape, dtype), key
    assert batch["mask"].all()
    valid = np.arange(data.train.text_width) < batch["text_lengths"][:, None]
    assert ((batch["text_tokens"] > 0) == valid).all()


def test_order_is_a_function_of_seed_and_epoch(config):
    train = create_datasets(config).train
    orders = [train.epoch_order(epoch) for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert (orders[0] != orders[1]).any()
    np.testing.assert_array_equal(train.epoch_order(0), orders[0])
    config.seed = 1
    assert (create_datasets(config).train.epoch_order(0) != orders[0]).any()


def test_starting_at_a_step_gives_what_follows_it(config):
    train = create_datasets(config).train
    whole = list(train.batches(0, 5))
    assert len(whole) == 5
    for step, batch in zip((3, 4), train.batches(3, 5), strict=True):
        _same(batch, whole[step])
    # An item is augmented anew each epoch, and its two images independently.
    assert any((a["target_image"] != b["target_image"]).any() for a, b in [(whole[0], whole[2])])


def test_processes_share_a_batch(config):
    whole = next(create_datasets(config).train.batches(1, 2))
    shares = [
        next(create_datasets(config, process_index=i, process_count=2).train.batches(1, 2))
        for i in range(2)
    ]
    _same({k: np.concatenate([share[k] for share in shares]) for k in whole}, whole)
    with pytest.raises(ValueError, match="not a multiple of the 3 processes"):
        create_datasets(config, process_count=3)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_images_of_an_evaluation(config, count):
    config.train.batch_size, config.eval.batch_size = 12, 6  # 16 images: the last batch has 4
    whole = create_datasets(config).evaluations["val"]
    expected = {i: b["image"][n] for b in whole.image_batches() for n, i in _valid(b)}
    assert len(expected) == len(whole.image_ids) == 16
    found = []
    for index in range(count):
        data = create_datasets(config, process_index=index, process_count=count)
        batches = list(data.evaluations["val"].image_batches())
        assert len(batches) == whole.image_batch_count()
        assert {b["image"].shape for b in batches} == {(6 // count, 32, 32, 3)}
        found += [(i, b["image"][n]) for b in batches for n, i in _valid(b)]
    assert sorted(i for i, _ in found) == sorted(expected)  # each once
    for i, pixels in found:
        np.testing.assert_array_equal(pixels, expected[i])


def _valid(batch):
    return [(n, int(batch["index"][n])) for n in np.flatnonzero(batch["mask"])]


def test_evaluation_images_come_once_and_as_serving_sees_them(config):
    data = create_datasets(config).evaluations["val"]
    batches = list(data.image_batches())
    assert len(batches) == data.image_batch_count()
    assert all(len(batch["image"]) == 6 for batch in batches)
    index = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(len(data.image_ids)))
    image = batches[0]["image"][2].astype(int)
    path = f"{config.data.directory}/images/{data.image_ids[2]}.jpg"
    served = preprocess_image(path, ImagePreprocessing(40, 32)).astype(int)
    assert np.abs(image - served).max() <= 1


def test_queries_are_padded_and_masked(config):
    data = create_datasets(config).evaluations["val"]
    queries = data.evaluations[0].queries
    batches = list(data.query_batches(queries))
    assert sum(batch["mask"].sum() for batch in batches) == len(queries)
    assert {batch["text_tokens"].shape for batch in batches} == {batches[0]["text_tokens"].shape}
    assert data.image_ids[batches[0]["reference"][0]] == queries[0].reference


def _damage(config, name, content):
    path = f"{config.data.directory}/images/{name}.jpg"
    with open(path, "rb") as file:
        whole = file.read()
    with open(path, "wb") as file:
        file.write(content(whole))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda _: b"", "zero bytes"),
        (lambda whole: whole[:200], "truncated|not an image"),
        (lambda _: b"hello" * 50, "not an image"),
    ],
)
def test_bad_images_fail_or_are_skipped_and_counted(config, content, reason):
    _damage(config, "dval1", content)
    with pytest.raises(DataError, match=rf"(?s)dval1\.jpg: .*({reason}).*missing_images=skip"):
        create_datasets(config)
    config.data.missing_images = "skip"
    data = create_datasets(config)
    assert data.facts.images_skipped == 1
    evaluation = data.evaluations["val"].evaluations[0]
    assert "dval1" not in evaluation.galleries["dress"]
    assert evaluation.skipped == 4  # its two annotations, as target and as reference, both orders
    assert len(evaluation.queries) == 24 - 4


def test_nothing_to_train_on_is_said_before_images_are_looked_for(config, tmp_path):
    config.data.name, config.data.directory = "circo", str(write_circo(tmp_path / "circo"))
    next((tmp_path / "circo").rglob("*.jpg")).unlink()
    with pytest.raises(DataError, match=r"circo has nothing to train on there.*--mode=evaluate"):
        create_datasets(config)


def test_refusals_before_any_work(config):
    config.train.batch_size = 25
    with pytest.raises(DataError, match="25, but there are only 24 training items"):
        create_datasets(config)
    config.train.batch_size = 10
    config.data.crop = config.data.resize + 1
    with pytest.raises(ValueError, match="must not exceed resize"):
        create_datasets(config)
    config.data.crop = 32
    config.data.missing_images = "ignore"
    with pytest.raises(ValueError, match='"fail" or "skip"'):
        create_datasets(config)
    config.data.missing_images = "fail"
    config.data.name = "imagenet"
    with pytest.raises(
        ValueError, match=r"fashion_iq, shoes, fashion200k, cirr, .*, garments; got 'imagenet'"
    ):
        create_datasets(config)
    config.data.name = "fashion_iq"
    config.data.directory = None
    with pytest.raises(ValueError, match=r"config\.data\.directory is not set"):
        create_datasets(config)


def test_without_augmentation_training_sees_the_center(config):
    moved = create_datasets(config)
    config.data.augment = False
    still = create_datasets(config)
    for a, b in zip(still.train.batches(0, 2), moved.train.batches(0, 2), strict=True):
        np.testing.assert_array_equal(a["text_tokens"], b["text_tokens"])
        assert (a["target_image"] != b["target_image"]).any()
    (batch,) = still.train.batches(3, 4)
    items = still.train._items(3, still.train.epoch_order(1))
    for row, (_, triplet) in enumerate(items):
        for name in ("reference", "target"):
            path = f"{config.data.directory}/images/{getattr(triplet, name)}.jpg"
            expected = preprocess_image(path, still.preprocessing)
            np.testing.assert_array_equal(batch[f"{name}_image"][row], expected)
