"""Fashion200k on disk -> records, its sampling of pairs, and what is refused."""

import collections

import numpy as np
import pytest
from fake_data import fashion200k as write
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.readers import fashion200k
from input_pipeline.records import DataError


@pytest.mark.parametrize("folder", ["women/", ""])
@pytest.mark.parametrize("in_labels", ["women/", ""])
@pytest.mark.parametrize("in_queries", ["women/", ""])
def test_layouts(tmp_path, folder, in_labels, in_queries):
    records = fashion200k.read(str(write(tmp_path, folder, in_labels, in_queries)))
    assert len(records.train) == 18
    (evaluation,) = records.evaluations["val"]
    assert len(evaluation.galleries["all"]) == 12
    assert len(evaluation.queries) == 6
    for image in records.images.values():
        assert (tmp_path / image.path).is_file()
    # dress comes before top, whatever the folder's order.
    assert next(iter(records.images)).startswith("dress/train/0")


def test_queries_and_targets(tmp_path):
    records = fashion200k.read(str(write(tmp_path)))
    (evaluation,) = records.evaluations["val"]
    query = evaluation.queries[0]
    # 0: "red v-neck no. 1 dress", 2: "green v-neck no. 1 dress"
    assert query.captions == ("replace red with green",)
    assert query.targets == ("dress/test/2/2_0.jpeg",)
    assert records.extra_special == ("replace", "with")
    assert "red v-neck no. 1 dress" in records.vocabulary_captions  # raw: no dotmark


def test_queries_in_the_image_folder(tmp_path):
    root = write(tmp_path / "labels_here", queries_in="../pictures")
    (root / "women").rename(tmp_path / "pictures" / "women")
    records = fashion200k.read(str(root), str(tmp_path / "pictures"))
    assert len(records.evaluations["val"][0].queries) == 6
    (tmp_path / "pictures" / "test_queries.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no test_queries\.txt in"):
        fashion200k.read(str(root), str(tmp_path / "pictures"))


def test_refuses_broken_lines(tmp_path):
    root = write(tmp_path)
    (root / "test_queries.txt").write_text("women/a b c\n")
    with pytest.raises(DataError, match=r"test_queries\.txt, line 1: expected a source"):
        fashion200k.read(str(root))
    (root / "test_queries.txt").write_text("women/a women/b\n")
    with pytest.raises(DataError, match="line 1: 'a' is in no test label file"):
        fashion200k.read(str(root))
    (root / "labels" / "top_train_detect_all.txt").write_text("a\t0.1\tred top\nb only\n")
    with pytest.raises(DataError, match=r"top_train_detect_all\.txt, line 2"):
        fashion200k.read(str(root))


def test_the_error_of_the_sampling_names_the_labels(tmp_path):
    root = write(tmp_path)
    for category, caption in (("top", "a top"), ("dress", "an odd thing")):
        file = root / "labels" / f"{category}_train_detect_all.txt"
        file.write_text(f"{category}.jpeg\t0.9\t{caption}\n")
    with pytest.raises(DataError, match=r"/labels: no two training captions differ in one word"):
        fashion200k.read(str(root))


def test_a_file_name_that_would_spoil_a_message(tmp_path):
    root = write(tmp_path)
    (root / "labels" / "a\nb_test_detect_all.txt").write_text("")
    with pytest.raises(DataError, match=r"labels: 'a\\nb_test_detect_all.txt' holds characters"):
        fashion200k.read(str(root))


def test_queries_with_one_caption_share_their_targets(tmp_path):
    root = write(tmp_path)
    count = 20_000
    (root / "labels" / "top_test_detect_all.txt").write_text(
        "".join(f"top/{i}.jpeg\t0.9\tred top\n" for i in range(count))
    )
    (root / "test_queries.txt").write_text(
        "".join(f"top/{i}.jpeg top/{i + 1}.jpeg\n" for i in range(count - 1))
    )
    (evaluation,) = fashion200k.read(str(root)).evaluations["val"]
    # Each its own copy would be gigabytes.
    assert len({id(query.targets) for query in evaluation.queries}) == 1
    assert len(evaluation.queries[0].targets) == count


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        ("red lace dress", "blue lace dress", "replace red with blue"),
        ("red dress", "red lace dress", "replace dress with lace"),  # none absent: the last word
        ("a b", "a b", "replace b with b"),
    ],
)
def test_texts(source, target, text):
    assert fashion200k.modification(source, target) == text


def test_parents():
    assert fashion200k.parents("red lace dress") == ["lace dress", "red dress", "red lace"]
    # A word's letters go wherever they occur.
    assert fashion200k.parents("red coloured top") == ["colou top", "red top", "red coloured"]
    assert fashion200k.replace_marks("no. 1 & co?*") == "nodotmark 1 andmark coquestionmarkstarmark"


@given(st.integers(0, 3), st.integers(0, 50))
def test_sampling(seed, epoch):
    captions = {"a": "red top", "b": "blue top", "c": "blue top", "d": "odd thing", "e": "red hat"}
    source = fashion200k.SampledPairs(captions)
    for item in range(len(source)):
        triplet = source.draw(seed, epoch, item)
        assert triplet == source.draw(seed, epoch, item)
        if item != 3:  # "odd thing" differs from all others in more than a word
            assert triplet.reference == "abcde"[item]
        here, there = captions[triplet.reference], captions[triplet.target]
        assert here != there
        assert set(fashion200k.parents(here)) & set(fashion200k.parents(there))
        assert triplet.captions == (fashion200k.modification(here, there),)


def test_sampling_is_even():
    captions = {"a": "red top", "b": "blue top", "c": "blue top", "d": "odd thing", "e": "red hat"}
    source = fashion200k.SampledPairs(captions)
    drawn = collections.Counter(source.draw(0, epoch, 0).target for epoch in range(2000))
    # One of two parents, then one caption, then one of its images.
    for image, share in (("e", 0.5), ("b", 0.25), ("c", 0.25)):
        assert abs(drawn[image] / 2000 - share) < 0.05
    references = {source.draw(0, epoch, 3).reference for epoch in range(50)}
    assert references == {"a", "b", "c", "e"}
    with pytest.raises(DataError, match="no pair can be sampled"):
        fashion200k.SampledPairs({"a": "red top", "b": "odd thing"})


@pytest.mark.real_data
def test_garment_photos_counts(real_data):
    records = fashion200k.read(str(real_data / "garment_photos"))
    assert len(records.train) == 3068
    (evaluation,) = records.evaluations["val"]
    assert len(evaluation.galleries["all"]) == 341
    assert len(evaluation.queries) == 1200
    triplets = [records.train.draw(0, 0, int(i)) for i in np.arange(0, 3068, 97)]
    assert all(t.captions[0].startswith("replace ") for t in triplets)
