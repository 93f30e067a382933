"""FashionIQ and Fashion200k on disk -> records: layouts, counts, and what is refused."""

import collections
import json

import numpy as np
import pytest
from fake_data import fashion200k as write_fashion200k
from fake_data import fashion_iq as write_fashion_iq
from fake_data import shoes as write_shoes
from hypothesis import given
from hypothesis import strategies as st

from cmap_jax.processing.tokenizer import SPECIAL_TOKENS, Vocabulary
from input_pipeline import fashion200k, fashion_iq, shoes
from input_pipeline.records import DataError, Triplet


@pytest.mark.parametrize(
    "layout",
    [
        "images/{id}.jpg",
        "images/{id}.png",
        "{category}/{id}.jpg",
        "resized_image/{category}/{id}.jpg",
    ],
)
def test_fashion_iq_layouts(tmp_path, layout):
    records = fashion_iq.read(str(write_fashion_iq(tmp_path, layout=layout)))
    expected = tmp_path / layout.format(id="dtrain0", category="dress")
    assert records.images["dtrain0"].path == str(expected)
    assert all((tmp_path / image.path).exists() for image in records.images.values())


def test_fashion_iq_images_elsewhere(tmp_path):
    root = write_fashion_iq(tmp_path / "data")
    (root / "images").rename(tmp_path / "pictures")
    records = fashion_iq.read(str(root), str(tmp_path / "pictures"))
    assert records.images["dval1"].path == str(tmp_path / "pictures" / "dval1.jpg")


def test_fashion_iq_records(tmp_path):
    records = fashion_iq.read(str(write_fashion_iq(tmp_path, images=8, annotations=6)))
    assert len(records.train) == 2 * 2 * 6  # categories, caption orders, annotations
    first, second = records.train.draw(0, 0, 0), records.train.draw(0, 0, 1)
    assert (first.reference, first.target) == (second.reference, second.target)
    assert first.captions == ("is red", "is longer") == second.captions[::-1]
    # In each file all first captions, then all second ones.
    assert records.vocabulary_captions[:8] == (
        *("is red", "is longer", "has a v-neck", "is darker and shiny", "", "has no sleeves"),
        *("is longer", "has a v-neck"),
    )
    original, val, joined, averaged = records.evaluations["val"]
    assert [e.protocol.name.removeprefix("fashioniq/") for e in records.evaluations["val"]] == [
        *("original", "val", "original-joined", "original-averaged")
    ]
    assert len(original.galleries["dress"]) == 8
    assert len(val.galleries["dress"]) == 7
    assert len(original.queries) == 2 * 2 * 6
    assert original.queries[0].targets == ("dval1",)
    assert original.queries == averaged.queries
    assert [q.captions for q in joined.queries] == [q.captions for q in original.queries[::2]]
    assert joined.queries[1].id == joined.queries[1].annotation == original.queries[3].annotation
    assert records.facts == {"categories_missing": ["shirt"]}


def _break(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", r"cap\.dress\.train\.json: not JSON at line 1"),
        ({}, "must be a list"),
        ([3], "entry 0 is not an object"),
        ([{"target": "a", "captions": ["x", "y"]}], "entry 0 must have a text under 'candidate'"),
        ([{"target": 3, "candidate": "b", "captions": ["x", "y"]}], "under 'target'"),
        ([{"target": "a", "candidate": "b", "captions": ["x"]}], "must have two texts"),
        (
            [{"target": "a", "candidate": "b", "captions": ["x", None]}],
            "a caption is a text, not None",
        ),
    ],
)
def test_fashion_iq_refuses_broken_annotations(tmp_path, content, message):
    root = write_fashion_iq(tmp_path)
    _break(root / "captions" / "cap.dress.train.json", content)
    with pytest.raises(ValueError, match=message):
        fashion_iq.read(str(root))


def test_fashion_iq_refuses_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder; set --config\.data\.directory"):
        fashion_iq.read(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="not FashionIQ's layout"):
        fashion_iq.read(str(tmp_path))
    root = write_fashion_iq(tmp_path)
    (root / "image_splits" / "split.toptee.val.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"split\.toptee\.val\.json"):
        fashion_iq.read(str(root))
    write_fashion_iq(tmp_path)
    (root / "captions" / "cap.dress.train.json").write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match=r"cap\.dress\.train\.json: not UTF-8 at byte 2"):
        fashion_iq.read(str(root))


@pytest.mark.parametrize("folder", ["women/", ""])
@pytest.mark.parametrize("in_labels", ["women/", ""])
@pytest.mark.parametrize("in_queries", ["women/", ""])
def test_fashion200k_layouts(tmp_path, folder, in_labels, in_queries):
    records = fashion200k.read(str(write_fashion200k(tmp_path, folder, in_labels, in_queries)))
    assert len(records.train) == 18
    (evaluation,) = records.evaluations["val"]
    assert len(evaluation.galleries["all"]) == 12
    assert len(evaluation.queries) == 6
    for image in records.images.values():
        assert (tmp_path / image.path).is_file()
    # dress comes before top, whatever the folder's order.
    assert next(iter(records.images)).startswith("dress/train/0")


def test_fashion200k_queries_and_targets(tmp_path):
    records = fashion200k.read(str(write_fashion200k(tmp_path)))
    (evaluation,) = records.evaluations["val"]
    query = evaluation.queries[0]
    # 0: "red v-neck no. 1 dress", 2: "green v-neck no. 1 dress"
    assert query.captions == ("replace red with green",)
    assert query.targets == ("dress/test/2/2_0.jpeg",)
    assert records.extra_special == ("replace", "with")
    assert "red v-neck no. 1 dress" in records.vocabulary_captions  # raw: no dotmark


def test_fashion200k_queries_in_the_image_folder(tmp_path):
    root = write_fashion200k(tmp_path / "labels_here", queries_in="../pictures")
    (root / "women").rename(tmp_path / "pictures" / "women")
    records = fashion200k.read(str(root), str(tmp_path / "pictures"))
    assert len(records.evaluations["val"][0].queries) == 6
    (tmp_path / "pictures" / "test_queries.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no test_queries\.txt in"):
        fashion200k.read(str(root), str(tmp_path / "pictures"))


def test_fashion200k_refuses_broken_lines(tmp_path):
    root = write_fashion200k(tmp_path)
    (root / "test_queries.txt").write_text("women/a b c\n")
    with pytest.raises(DataError, match=r"test_queries\.txt, line 1: expected a source"):
        fashion200k.read(str(root))
    (root / "test_queries.txt").write_text("women/a women/b\n")
    with pytest.raises(DataError, match="line 1: a is in no test label file"):
        fashion200k.read(str(root))
    (root / "labels" / "top_train_detect_all.txt").write_text("a\t0.1\tred top\nb only\n")
    with pytest.raises(DataError, match=r"top_train_detect_all\.txt, line 2"):
        fashion200k.read(str(root))


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        ("red lace dress", "blue lace dress", "replace red with blue"),
        ("red dress", "red lace dress", "replace dress with lace"),  # none absent: the last word
        ("a b", "a b", "replace b with b"),
    ],
)
def test_fashion200k_texts(source, target, text):
    assert fashion200k.modification(source, target) == text


def test_fashion200k_parents():
    assert fashion200k.parents("red lace dress") == ["lace dress", "red dress", "red lace"]
    # A word's letters go wherever they occur.
    assert fashion200k.parents("red coloured top") == ["colou top", "red top", "red coloured"]
    assert fashion200k.replace_marks("no. 1 & co?*") == "nodotmark 1 andmark coquestionmarkstarmark"


@given(st.integers(0, 3), st.integers(0, 50))
def test_fashion200k_sampling(seed, epoch):
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


def test_fashion200k_sampling_is_even():
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


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("folder", ["", "womens/"])
def test_shoes_layouts(tmp_path, prepared, folder):
    records = shoes.read(str(write_shoes(tmp_path, prepared, folder)))
    assert len(records.train) == 6
    assert records.train.draw(0, 0, 0) == Triplet(
        "img_womens_clogs_0.jpg", "img_womens_clogs_1.jpg", ("is red",)
    )
    (evaluation,) = records.evaluations["val"]
    assert evaluation.protocol.name == "shoes"
    assert len(evaluation.galleries["all"]) == 10
    assert len(evaluation.queries) == 6
    assert evaluation.queries[4].captions == ("",)
    assert evaluation.queries[0].targets == ("img_womens_clogs_51.jpg",)
    assert records.vocabulary_captions[:2] == ("is red", "is longer")
    image = records.images["img_womens_clogs_1.jpg"]
    assert image.path == str(tmp_path / f"{folder}womens_clogs/1/img_womens_clogs_1.jpg")
    assert all((tmp_path / image.path).exists() for image in records.images.values())


def test_shoes_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither relative_captions_shoes\.json nor"):
        shoes.read(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no such folder; set --config\.data\.directory"):
        shoes.read(str(tmp_path / "nowhere"))
    root = write_shoes(tmp_path / "raw")
    _break(root / "relative_captions_shoes.json", [{"ImageName": "a"}])
    with pytest.raises(DataError, match="entry 0 must have a text under 'ReferenceImageName'"):
        shoes.read(str(root))
    _break(root / "train_im_names.txt", "\n")
    with pytest.raises(DataError, match=r"train_im_names\.txt: must list image names"):
        shoes.read(str(root))
    root = write_shoes(tmp_path / "prepared", prepared=True)
    _break(root / "split.val.json", {"a": 1})
    with pytest.raises(DataError, match=r"split\.val\.json: must be a list"):
        shoes.read(str(root))


@pytest.mark.real_data
def test_shoes_counts(real_data):
    records = shoes.read(str(real_data / "shoes"))
    (evaluation,) = records.evaluations["val"]
    assert len(records.train) == 8990
    assert len(evaluation.queries) == 1761
    assert len(evaluation.galleries["all"]) == 4658
    train = [records.train.draw(0, 0, i) for i in range(8990)]
    same = sum(t.reference == t.target for t in train)
    same_eval = sum((q.reference,) == q.targets for q in evaluation.queries)
    assert (same + same_eval, same_eval) == (27, 1)
    vocabulary = Vocabulary.build(records.vocabulary_captions)
    assert len(vocabulary) - len(SPECIAL_TOKENS) == 1330


@pytest.mark.real_data
def test_fashion_iq_counts(real_data):
    records = fashion_iq.read(str(real_data / "fashioniq"))
    assert len(records.train) == 2 * (5985 + 5988 + 6027)
    sizes = {
        e.protocol.name: {c: len(g) for c, g in e.galleries.items()}
        for e in records.evaluations["val"]
    }
    assert sizes["fashioniq/original"] == {"dress": 3817, "shirt": 6346, "toptee": 5373}
    assert sizes["fashioniq/val"] == {"dress": 2628, "shirt": 3089, "toptee": 2902}
    queries = collections.Counter(q.category for q in records.evaluations["val"][0].queries)
    assert queries == {"dress": 2 * 2017, "shirt": 2 * 2038, "toptee": 2 * 1961}


@pytest.mark.real_data
def test_garment_photos_counts(real_data):
    records = fashion200k.read(str(real_data / "garment_photos"))
    assert len(records.train) == 3068
    (evaluation,) = records.evaluations["val"]
    assert len(evaluation.galleries["all"]) == 341
    assert len(evaluation.queries) == 1200
    triplets = [records.train.draw(0, 0, int(i)) for i in np.arange(0, 3068, 97)]
    assert all(t.captions[0].startswith("replace ") for t in triplets)
