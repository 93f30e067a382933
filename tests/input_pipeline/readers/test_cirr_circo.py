"""CIRR and CIRCO on disk -> records: layouts, counts, and what is refused."""

import collections
import json

import pytest
from fake_data import circo as write_circo
from fake_data import cirr as write_cirr

from cmap_jax.protocols import PROTOCOLS
from input_pipeline.readers import circo, cirr
from input_pipeline.reading import choose_captions
from input_pipeline.records import DataError


def _change(file, change):
    """Rewrite a JSON file after ``change(content)``."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("inside", ["", "cirr"])
@pytest.mark.parametrize("folder", ["", "images", "img_raw"])
def test_cirr_layouts(tmp_path, folder, inside):
    records = cirr.read(str(write_cirr(tmp_path, folder, inside)))
    place = tmp_path / folder / "dev" / "val-0-img0.png"
    assert records.images["val-0-img0"].path == str(place)
    assert all((tmp_path / image.path).is_file() for image in records.images.values())
    assert len(records.images) == 7 + 12 + 12  # training needs only those in triplets


def test_cirr_images_elsewhere(tmp_path):
    root = write_cirr(tmp_path / "data", folder="../pictures")
    records = cirr.read(str(root), str(tmp_path / "pictures"))
    assert records.images["train-3-img0"].path == str(
        tmp_path / "pictures" / "train" / "7" / "train-3-img0.png"
    )


@pytest.mark.parametrize("folder", ["images", "images/train"])
def test_cirr_images_without_their_numbered_folders(tmp_path, folder):
    root = write_cirr(tmp_path, folder="images")
    for image in (root / "images" / "train" / "7").iterdir():
        image.rename(root / folder / image.name)
    images = cirr.read(str(root)).images
    assert images["train-3-img0"].path == f"{root}/{folder}/train-3-img0.png"
    assert images["val-3-img0"].path == f"{root}/images/dev/val-3-img0.png"
    # One that is nowhere is expected where the authors have it.
    (root / folder / "train-3-img0.png").unlink()
    images = cirr.read(str(root)).images
    assert images["train-3-img0"].path == f"{root}/images/train/7/train-3-img0.png"


def test_cirr_records(tmp_path):
    records = cirr.read(str(write_cirr(tmp_path)))
    assert len(records.train) == 6
    triplet = records.train.draw(0, 0, 1)
    assert (triplet.reference, triplet.target) == ("train-1-img0", "train-2-img0")
    assert triplet.captions == ("is longer",)
    assert records.vocabulary_captions[:2] == ("is red", "is longer")
    (val,) = records.evaluations["val"]
    assert val.protocol.name == "cirr/val"
    assert val.galleries == {"all": tuple(f"val-{i}-img0" for i in range(12))}
    query = val.queries[2]
    assert (query.id, query.annotation, query.reference) == ("102", "102", "val-2-img0")
    assert query.targets == ("val-3-img0",)  # target_hard alone
    assert query.subset == tuple(f"val-{i}-img0" for i in range(2, 8))
    test = records.unlabelled["test1"]
    assert test.protocol.name == "cirr/test1"
    assert [query.targets for query in test.queries] == [()] * 6
    assert test.galleries == {"all": tuple(f"test1-{i}-img0" for i in range(12))}
    assert "test1-0-img0" not in records.image_ids()
    assert set(records.for_submission("test1").images) == set(test.galleries["all"])


def test_cirr_without_train_and_test(tmp_path):
    root = write_cirr(tmp_path)
    for split in ("train", "test1"):
        (root / "captions" / f"cap.rc2.{split}.json").unlink()
    records = cirr.read(str(root))
    assert len(records.train) == 0
    assert records.unlabelled == {}
    assert len(records.images) == 12
    (root / "captions" / "cap.rc2.val.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no captions/cap\.rc2\.val\.json; this is not"):
        cirr.read(str(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[1].update(pairid="101"), r"entry 1 must have a whole number under 'pairid'"),
        (lambda e: e[1].update(pairid=100), r"val\.json: two entries have the pairid 100"),
        (lambda e: e[2].pop("target_hard"), "entry 2 must have a text under 'target_hard'"),
        (lambda e: e[2].update(img_set=[]), "entry 2 must have an object under 'img_set'"),
        (lambda e: e[2]["img_set"].update(members=None), "img_set must have a list under 'mem"),
        (lambda e: e[3].update(reference="val-0-img0"), "entry 3: 'val-0-img0' is not among"),
        (lambda e: e[3]["img_set"].update(members=[4]), "img_set: an image is named by a text"),
        (
            lambda e: e[3]["img_set"]["members"].append("new"),
            r"entry 3 names 'new', which split\.rc2\.val\.json does not have",
        ),
    ],
)
def test_cirr_refuses_broken_captions(tmp_path, change, message):
    root = write_cirr(tmp_path)
    _change(root / "captions" / "cap.rc2.val.json", change)
    with pytest.raises(DataError, match=message):
        cirr.read(str(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.clear, "must be an object of image names and paths, not an object of length 0"),
        (lambda paths: paths.update(x=3), "entry 'x': an image is named by a text, not by 3"),
        (lambda paths: paths.update(x="./../y.png"), "entry 'x': .* climbs out"),
        (lambda paths: paths.update({"/x": "y.png"}), "entry '/x': .* is no path relative to"),
        (lambda paths: paths.pop("val-2-img0"), "entry 0 names 'val-2-img0', which split"),
    ],
)
def test_cirr_refuses_broken_splits(tmp_path, change, message):
    root = write_cirr(tmp_path)
    _change(root / "image_splits" / "split.rc2.val.json", change)
    with pytest.raises(DataError, match=message):
        cirr.read(str(root))


def test_cirr_members_count_once(tmp_path):
    root = write_cirr(tmp_path)
    _change(
        root / "captions" / "cap.rc2.val.json",
        lambda e: e[0]["img_set"]["members"].append("val-1-img0"),
    )
    (val,) = cirr.read(str(root)).evaluations["val"]
    assert val.queries[0].subset == tuple(f"val-{i}-img0" for i in range(6))


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("folder", ["COCO2017_unlabeled/unlabeled2017", "unlabeled2017", "."])
def test_circo_layouts(tmp_path, folder, listed):
    records = circo.read(str(write_circo(tmp_path, folder, listed)))
    (val,) = records.evaluations["val"]
    assert val.galleries == {"all": tuple(f"{i:012d}" for i in range(1, 61))}
    assert all((tmp_path / image.path).is_file() for image in records.images.values())
    assert len(records.images) == 60
    assert ("image_info" if listed else "the files in") in records.layout


def test_circo_records(tmp_path):
    records = circo.read(str(write_circo(tmp_path)))
    assert len(records.train) == len(records.vocabulary_captions) == 0
    (val,) = records.evaluations["val"]
    assert val.protocol.name == "circo/val"
    assert len(val.queries) == 6
    query = val.queries[2]
    assert (query.id, query.reference, query.captions) == ("2", "000000000003", ("has a v-neck",))
    assert query.targets == ("000000000004", "000000000005", "000000000006")
    assert query.concept == "a garment"
    test = records.unlabelled["test"]
    assert test.protocol.name == "circo/test"
    assert test.galleries == val.galleries
    assert [query.targets for query in test.queries] == [()] * 6


def test_circo_under_the_other_caption_policy(tmp_path):
    plain = circo.read(str(write_circo(tmp_path)))
    records = choose_captions(plain, "concept")
    (val,) = records.evaluations["val"]
    test = records.unlabelled["test"]
    for evaluation, name in ((val, "circo/val"), (test, "circo/test")):
        rules, before = evaluation.protocol.to_dict(), PROTOCOLS[name].to_dict()
        assert rules == {**before, "name": f"{name}-concept", "captions": "concept"}
        assert evaluation.queries[2].captions == ("find a garment but has a v-neck",)
    before = plain.evaluations["val"][0]
    assert (val.galleries, [q.targets for q in val.queries]) == (
        before.galleries,
        [q.targets for q in before.queries],
    )
    assert val.conditions()["queries"] != before.conditions()["queries"]
    assert choose_captions(plain, None) is choose_captions(plain, "one") is plain
    for content in (records.for_evaluation(), records.for_submission("test")):
        for (evaluation,) in content.evaluations.values():
            assert evaluation.protocol.captions == "concept"


def test_concepts_that_are_not_there(tmp_path):
    root = write_circo(tmp_path / "circo")
    _change(root / "annotations" / "test.json", lambda e: e[4].update(shared_concept=" "))
    records = circo.read(str(root))  # they are needed under one policy alone
    with pytest.raises(DataError, match=r"test-concept: query 4 has no .*mend .*captions=one"):
        choose_captions(records, "concept")
    cirr_records = cirr.read(str(write_cirr(tmp_path / "cirr")))
    for captions in ("one", "concept"):
        with pytest.raises(ValueError, match=rf"of cirr name no .*eval\.captions={captions}"):
            choose_captions(cirr_records, captions)


def test_circo_gallery_elsewhere_and_incomplete(tmp_path, caplog):
    root = write_circo(tmp_path / "data", folder="../coco/unlabeled2017", listed=False)
    gone = tmp_path / "coco" / "unlabeled2017" / "000000000002.jpg"
    gone.unlink()
    # Names that only look like numbers.
    (gone.parent / "٠٠٠٠٠٠٠٠٠٠٠٩.jpg").touch()
    (gone.parent / "000000000070.jpg.part").touch()
    records = circo.read(str(root), str(tmp_path / "coco"))
    assert "59 images of COCO's unlabeled2017, which has 123403" in caplog.text
    # An image that an annotation names is missing, not unheard of.
    gallery = records.evaluations["val"][0].galleries["all"]
    assert len(gallery) == 60
    assert records.images["000000000002"].path == str(gone)


def test_circo_without_test(tmp_path):
    root = write_circo(tmp_path)
    (root / "annotations" / "test.json").unlink()
    assert circo.read(str(root)).unlabelled == {}
    (root / "annotations" / "val.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no annotations/val\.json; this is not CIRCO's"):
        circo.read(str(root))


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("val", lambda e: e[1].update(id=0), r"val\.json: two entries have the id 0"),
        ("val", lambda e: e[1].update(id=True), "entry 1 must have a whole number under 'id'"),
        ("val", lambda e: e[1].pop("gt_img_ids"), "entry 1 must have a list under 'gt_img_ids'"),
        ("val", lambda e: e[1].update(gt_img_ids=[]), "entry 1: its target_img_id is not among"),
        ("val", lambda e: e[1].update(target_img_id=9), "entry 1: its target_img_id is not among"),
        (
            "val",
            lambda e: e[1]["gt_img_ids"].append("4"),
            "whole number of up to 12 digits, not '4'",
        ),
        (
            "test",
            lambda e: e[2].update(reference_img_id=-1),
            "entry 2: an image id is a whole number",
        ),
        ("test", lambda e: e[2].update(reference_img_id=10**12), "entry 2: an image id is a whole"),
        ("test", lambda e: e[2].update(relative_caption=["a"]), "text under 'relative_caption'"),
        ("val", lambda e: e[2].pop("shared_concept"), "entry 2 must have a text under 'shared_c"),
        ("val", lambda e: e[2].update(shared_concept="a" * 10**5), "a caption of 100000 char"),
    ],
)
def test_circo_refuses_broken_annotations(tmp_path, split, change, message):
    root = write_circo(tmp_path)
    _change(root / "annotations" / f"{split}.json", change)
    with pytest.raises(DataError, match=message):
        circo.read(str(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append({"id": -4}), "image 60: an image id is a whole number"),
        (lambda c: c["images"].append(4), "image 60 is not an object but 4"),
        (dict.clear, r"image_info_unlabeled2017\.json must have a list under 'images'"),
    ],
)
def test_circo_refuses_a_broken_list(tmp_path, change, message):
    root = write_circo(tmp_path)
    folder = root / "COCO2017_unlabeled" / "annotations"
    _change(folder / "image_info_unlabeled2017.json", change)
    with pytest.raises(DataError, match=message):
        circo.read(str(root))


def test_circo_test_answers_are_nobodys(tmp_path):
    root = write_circo(tmp_path)
    _change(root / "annotations" / "test.json", lambda e: e[0].update(gt_img_ids=7))
    assert circo.read(str(root)).unlabelled["test"].queries[0].targets == ()


@pytest.mark.real_data
def test_cirr_counts(real_data):
    records = cirr.read(str(real_data / "cirr"))
    (val,) = records.evaluations["val"]
    test = records.unlabelled["test1"]
    assert (len(val.queries), len(val.galleries["all"])) == (4181, 2297)
    assert (len(test.queries), len(test.galleries["all"])) == (4148, 2315)
    assert all(len(q.subset) == 6 and q.reference in q.subset for q in val.queries + test.queries)
    # Several images are right to some degree; the protocol counts target_hard alone.
    entries = json.loads((real_data / "cirr" / "captions" / "cap.rc2.val.json").read_text())
    assert sum(len(entry["target_soft"]) > 1 for entry in entries) == 645
    assert [q.targets for q in val.queries] == [(entry["target_hard"],) for entry in entries]


@pytest.mark.real_data
def test_circo_counts(real_data):
    records = circo.read(str(real_data / "circo"))
    (val,) = records.evaluations["val"]
    assert len(val.queries) == 220
    assert len(records.unlabelled["test"].queries) == 800
    sizes = collections.Counter(len(query.targets) for query in val.queries)
    assert sum(size * count for size, count in sizes.items()) == 916
    assert (sizes[3], sizes[2], sizes[1], max(sizes)) == (46, 45, 29, 14)
    records = choose_captions(records, "concept")
    (val,), test = records.evaluations["val"], records.unlabelled["test"]
    assert val.queries[0].captions == (
        "find a girl with a traditional Chinese umbrella but shows two people and has a more "
        "colorful background",
    )
    assert test.queries[1].captions[0].startswith("find a double bed but ")
