"""FashionIQ on disk -> records: layouts, counts, and what is refused."""

import collections
import itertools
import json

import pytest
from fake_data import fashion_iq as write

from cmap_jax.processing.tokenizer import SPECIAL_TOKENS, Vocabulary
from input_pipeline.readers import fashion_iq
from input_pipeline.records import DataError


@pytest.mark.parametrize(
    "layout",
    [
        "images/{id}.jpg",
        "images/{id}.png",
        "{category}/{id}.jpg",
        "resized_image/{category}/{id}.jpg",
    ],
)
def test_layouts(tmp_path, layout):
    records = fashion_iq.read(str(write(tmp_path, layout=layout)))
    expected = tmp_path / layout.format(id="dtrain0", category="dress")
    assert records.images["dtrain0"].path == str(expected)
    assert all((tmp_path / image.path).exists() for image in records.images.values())


def test_images_elsewhere(tmp_path):
    root = write(tmp_path / "data")
    (root / "images").rename(tmp_path / "pictures")
    records = fashion_iq.read(str(root), str(tmp_path / "pictures"))
    assert records.images["dval1"].path == str(tmp_path / "pictures" / "dval1.jpg")


def test_records(tmp_path):
    records = fashion_iq.read(str(write(tmp_path, images=8, annotations=6)))
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
        ({}, "must be a list of annotations, not an object of length 0"),
        ([], "must be a list of annotations, not a list of length 0"),
        ([3], "entry 0 is not an object"),
        ([{"target": "a", "captions": ["x", "y"]}], "entry 0 must have a text under 'candidate'"),
        ([{"target": 3, "candidate": "b", "captions": ["x", "y"]}], "under 'target'"),
        ([{"target": "a", "candidate": "b", "captions": ["x"]}], "must have two texts"),
        (
            [{"target": "a", "candidate": "b", "captions": ["x", None]}],
            "a caption is a text, not None",
        ),
        ([{"target": "a", "candidate": "b", "captions": ["x", "y" * 3000]}], "a caption of 3000"),
        ([{"target": "../a", "candidate": "b", "captions": ["x", "y"]}], "entry 0: '../a' climbs"),
    ],
)
def test_refuses_broken_annotations(tmp_path, content, message):
    root = write(tmp_path)
    _break(root / "captions" / "cap.dress.train.json", content)
    with pytest.raises(ValueError, match=message):
        fashion_iq.read(str(root))


def test_refuses_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder; set --config\.data\.directory"):
        fashion_iq.read(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="not FashionIQ's layout"):
        fashion_iq.read(str(tmp_path))
    root = write(tmp_path)
    (root / "image_splits" / "split.toptee.val.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"split\.toptee\.val\.json"):
        fashion_iq.read(str(root))
    write(tmp_path)
    (root / "captions" / "cap.dress.train.json").write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match=r"cap\.dress\.train\.json: not UTF-8 at byte 2"):
        fashion_iq.read(str(root))


def test_a_file_name_that_would_spoil_a_message(tmp_path):
    root = write(tmp_path)
    (root / "captions" / "cap.a\nb.train.json").write_text("[]")
    with pytest.raises(DataError, match=r"captions: 'a\\nb' holds characters"):
        fashion_iq.read(str(root))


@pytest.mark.real_data
def test_counts(real_data):
    records = fashion_iq.read(str(real_data / "fashioniq"))
    evaluations = {e.protocol.name: e for e in records.evaluations["val"]}
    original, val = evaluations["fashioniq/original"], evaluations["fashioniq/val"]
    layout = fashion_iq.Layout(str(real_data / "fashioniq"))
    train = collections.Counter(records.train.draw(0, 0, i).category for i in range(2 * 18_000))
    queries = collections.Counter(query.category for query in original.queries)
    # Triplets and images of train, triplets of val, gallery "original", gallery "val".
    counted = {
        "dress": (5985, 11452, 2017, 3817, 2628),
        "shirt": (5988, 19036, 2038, 6346, 3089),
        "toptee": (6027, 16121, 1961, 5373, 2902),
    }
    assert len(records.train) == 2 * 18_000
    assert layout.categories == tuple(counted)
    for category, counts in counted.items():
        found = (
            train[category] // 2,  # each caption order is an item, and a query
            len(layout.split(category, "train")),
            queries[category] // 2,
            len(original.galleries[category]),
            len(val.galleries[category]),
        )
        assert found == counts, category


@pytest.mark.real_data
def test_entries_of_the_splits(real_data):
    layout = fashion_iq.Layout(str(real_data / "fashioniq"))
    ids = {c: [] for c in layout.categories}
    for category, split in itertools.product(layout.categories, ("train", "val", "test")):
        ids[category] += layout.split(category, split)
    assert sum(map(len, ids.values())) == 77_683
    assert len(set().union(*ids.values())) == 74_381
    assert len(set(ids["shirt"]) & set(ids["toptee"])) == 77_683 - 74_381


@pytest.mark.real_data
def test_words(real_data):
    captions = fashion_iq.read(str(real_data / "fashioniq")).vocabulary_captions
    assert len(Vocabulary.build(captions)) - len(SPECIAL_TOKENS) == 3775
