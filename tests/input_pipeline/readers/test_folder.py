"""A folder of images with tables -> records: both forms, names of images, what is refused."""

import dataclasses
import json

import pytest
from fake_data import folder as write
from fake_data import image as write_image
from fake_data import judged_folder

from input_pipeline.doctor import examine as doctor
from input_pipeline.readers import folder
from input_pipeline.records import DataError, Triplet, digest_of


@pytest.fixture
def pictures(tmp_path):
    """A folder with some images, for tables of one's own."""
    for number, name in enumerate(("a/1.jpg", "a/2.JPG", "b/1.png", "b/3.jpg", "4.webp")):
        write_image(tmp_path / name, number)
    return tmp_path


def _val(root, *rows):
    (root / "val.jsonl").write_text(
        "".join(
            json.dumps({"reference": reference, "text": text, "target": target}) + "\n"
            for reference, text, target in rows
        )
    )
    return folder.read(str(root))


def test_records(tmp_path):
    records = folder.read(str(write(tmp_path)))
    assert len(records.train) == 6
    assert records.train.draw(0, 0, 1) == Triplet("train/1.jpg", "train/2.jpg", ("is longer",))
    assert records.vocabulary_captions[:2] == ("is red", "is longer")
    for split in ("val", "test"):
        named, listed = records.evaluations[split]
        assert named.protocol.name == f"folder/{split}"
        assert named.galleries == {"all": tuple(f"{split}/{i}.jpg" for i in range(7))}
        assert listed.protocol.name == f"folder/{split}-gallery"
        assert len(listed.galleries["all"]) == 16
        assert named.queries == listed.queries
    query = records.evaluations["val"][0].queries[3]
    assert (query.reference, query.targets) == ("val/3.jpg", ("val/4.jpg",))
    assert query.captions == ("is darker and shiny",)
    assert all((tmp_path / image.path).is_file() for image in records.images.values())


def test_both_forms_give_the_same(tmp_path):
    one = folder.read(str(write(tmp_path / "one", "csv")))
    other = folder.read(str(write(tmp_path / "other", "jsonl")))
    fields = [f.name for f in dataclasses.fields(one)]
    for name in set(fields) - {"layout", "image_directory", "images"}:
        assert getattr(one, name) == getattr(other, name), name


def test_without_gallery_train_and_test(tmp_path):
    root = write(tmp_path, gallery=False)
    (root / "train.csv").unlink()
    (root / "test.csv").unlink()
    records = folder.read(str(root))
    assert len(records.train) == 0
    assert [e.protocol.name for e in records.evaluations["val"]] == ["folder/val"]
    assert list(records.evaluations) == ["val"]
    (root / "val.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no val\.csv or val\.jsonl, a table of reference"):
        folder.read(str(root))


def test_images_elsewhere(tmp_path):
    root = write(tmp_path / "tables")
    (root / "val").rename(tmp_path / "val")
    (root / "train.csv").unlink()
    (root / "test.csv").unlink()
    records = folder.read(str(root), str(tmp_path))
    assert records.images["val/1.jpg"].path == str(tmp_path / "val" / "1.jpg")


def test_two_captions_and_several_targets(pictures):
    records = _val(pictures, ("a/1.jpg", ["is red", "is long"], ["b/1.png", "b/3.jpg", "b/1.png"]))
    (evaluation,) = records.evaluations["val"]
    first, second = evaluation.queries
    assert first.captions == ("is red", "is long") == second.captions[::-1]
    assert first.targets == second.targets == ("b/1.png", "b/3.jpg")
    assert first.id != second.id
    assert first.annotation == second.annotation
    # The same text twice has one order.
    records = _val(pictures, ("a/1.jpg", ["is red", "is red"], "b/1.png"))
    assert len(records.evaluations["val"][0].queries) == 1


def test_text2_and_training_items(pictures):
    (pictures / "train.csv").write_bytes(
        b"\xef\xbb\xbfid,reference,text,text2,target\r\n"
        b'1,a/1.jpg,"is red, and ""long""",has dots,b/1.png\r\n'
        b"2,b/3.jpg,is blue,,a/1.jpg\r\n"
    )
    records = _val(pictures, ("a/1.jpg", "is red", "b/1.png"))
    items = [records.train.draw(0, 0, i) for i in range(len(records.train))]
    long = 'is red, and "long"'
    assert items == [
        Triplet("a/1.jpg", "b/1.png", (long, "has dots")),
        Triplet("a/1.jpg", "b/1.png", ("has dots", long)),
        Triplet("b/3.jpg", "a/1.jpg", ("is blue",)),
    ]
    assert records.vocabulary_captions == (long, "has dots", "is blue")


def test_blanks_after_the_comma(pictures):
    (pictures / "val.csv").write_text(
        "reference, text, text2 , target\n"
        "a/1.jpg, is red,  has dots, b/1.png\n"
        '  a/1.jpg, "is red, and ""long""", , b/3.jpg\n'
        "   \n"
        "4, is blue,is blue, b/3.jpg\n"
    )
    (evaluation,) = folder.read(str(pictures)).evaluations["val"]
    first, _, long, blue = evaluation.queries
    assert (first.reference, first.captions) == ("a/1.jpg", ("is red", "has dots"))
    assert first.targets == ("b/1.png",)
    assert (long.reference, long.captions) == ("a/1.jpg", ('is red, and "long"',))
    assert (blue.captions, blue.targets) == (("is blue", "is blue"), ("b/3.jpg",))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_rows_that_repeat_are_counted_and_said(tmp_path, suffix, caplog):
    root = write(tmp_path, suffix)
    assert "repeated_rows" not in folder.read(str(root)).facts
    assert not caplog.records
    for split, copies in (("train", (1, 1, 4)), ("val", (3,))):
        path = root / f"{split}.{suffix}"
        rows = path.read_text().splitlines()
        header = suffix == "csv"
        path.write_text("\n".join([*rows, *(rows[i + header] for i in copies)]) + "\n")
    records = folder.read(str(root))
    assert records.facts == {"repeated_rows": {"train": 3, "val": 1}}
    assert len(records.train) == 9  # each counts, as the table says
    assert [r.getMessage() for r in caplog.records] == [
        f"{root}/train.{suffix}: 3 rows repeat others; each counts again",
        f"{root}/val.{suffix}: 1 row repeats another; it counts again",
    ]
    found = {f.kind: f for f in doctor.examine("folder", str(root)).findings}["repeated_row"]
    assert found.title == "4 repeated rows (3 train, 1 val)"
    assert "train: train/1.jpg -> train/2.jpg: 3 times" in found.items
    assert len(found.items) == 3


def test_all_names_in_the_folder_that_is_given(pictures):
    """Where tables name ``a/1.jpg``, the folder of the images may be ``a`` itself."""
    (pictures / "val.csv").write_text("reference,text,target\na/1.jpg,is red,a/2\n")
    images = folder.read(str(pictures), str(pictures / "a")).images
    assert images["a/1.jpg"].path == f"{pictures}/a/1.jpg"
    assert images["a/2"].path == f"{pictures}/a/2.JPG"
    # Not where there is a folder of that name, nor for names that begin differently.
    (pictures / "a" / "a").mkdir()
    (pictures / "a" / "1.jpg").rename(pictures / "a" / "a" / "1.jpg")
    images = folder.read(str(pictures), str(pictures / "a")).images
    assert images["a/1.jpg"].path == f"{pictures}/a/a/1.jpg"
    (pictures / "val.csv").write_text("reference,text,target\na/2.JPG,is red,b/2\n")
    images = folder.read(str(pictures), str(pictures / "a")).images
    assert images["a/2.JPG"].path == f"{pictures}/a/a/2.JPG"


def test_names_of_images(pictures):
    rows = [("a/1", "is red", "a/2"), ("1.png", "is red", "3"), ("4", "is red", "nowhere/5")]
    images = _val(pictures, *rows).images
    found = {i: image.path.removeprefix(f"{pictures}/") for i, image in images.items()}
    assert found == {
        "a/1": "a/1.jpg",
        "a/2": "a/2.JPG",
        "1.png": "b/1.png",
        "3": "b/3.jpg",
        "4": "4.webp",
        "nowhere/5": "nowhere/5",
    }


def test_names_that_are_not_plain(pictures):
    name = "Bild\u202f1 Rücken\u3000.jpg"  # the space of a Mac's screenshots, among others
    write_image(pictures / "a" / name, 9)
    images = _val(pictures, (f"a/{name}", "is red", "a/1.jpg")).images
    assert images[f"a/{name}"].path == f"{pictures}/a/{name}"


def test_ambiguous_names_are_refused(pictures):
    with pytest.raises(
        DataError, match=r"line 1: '1' may be 'a/1\.jpg' or 'b/1\.png'; name it by its"
    ):
        _val(pictures, ("1", "is red", "4.webp"))
    one_name = (
        r"val\.jsonl, line 1: '4\.webp' is the image that is called '4' in val\.jsonl, line 1"
    )
    with pytest.raises(DataError, match=one_name):
        _val(pictures, ("4", "is red", "4.webp"))
    with pytest.raises(DataError, match=r"line 2: 'a/1\.jpg' is the image .* 'a/\./1\.jpg' in"):
        _val(pictures, ("a/./1.jpg", "is red", "4"), ("a/1.jpg", "is red", "4"))


def test_two_forms_of_a_table_are_refused(tmp_path):
    root = write(tmp_path)
    (root / "val.jsonl").write_text("")
    with pytest.raises(DataError, match=r"has both val\.csv and val\.jsonl; keep one"):
        folder.read(str(root))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"val\.csv, line 1: must have one column 'reference'; the header is empty"),
        ("reference,text\na,b\n", "line 1: must have one column 'target'; .*'reference', 'text'"),
        ("reference,text,target,text\na,b,c,d\n", "line 1: must have one column 'text'"),
        ("reference,text,target\n", r"val\.csv: no rows"),
        ("reference,text,target\na,b\n", "line 2: 2 fields; the header has 3"),
        ("reference,text,target\n\na,b,c,d\n", "line 3: 4 fields; the header has 3"),
        ('reference,text,target\na,"b,c\n', "line 2: not CSV: unexpected end of data"),
        ('reference,text,target\na,"b"x,c\n', "line 2: not CSV"),
        ('reference,text,target\na,"b\nb",\n', "line 2: an image is named by a text"),
        ('reference,text,target\n\na,"b,c\nd,e,f\n\n', "line 3: not CSV"),
        (f"reference,text,target\na,{'b' * 200_000},c\n", "line 2: not CSV: field larger"),
        ("reference,text,target\n/a,b,c\n", "line 2: '/a' is no path relative to"),
        ("reference,text,target\na,b,\n", "line 2: an image is named by a text, not by ''"),
    ],
)
def test_broken_csv_is_refused(tmp_path, content, message):
    (tmp_path / "val.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        folder.read(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON: Expecting property name"),
        ("[1]", "line 2 is not an object but a list of length 1"),
        ("[" * 100_000, "line 2: not JSON: .*recursion"),
        ("9" * 5_000, "line 2: not JSON: Exceeds the limit"),
        ('{"reference": "a", "text": "b"}', "line 2 must have a text or a list under 'target'"),
        ('{"reference": "a", "text": "b", "target": 3}', "under 'target'; it is 3"),
        ('{"reference": 3, "text": "b", "target": "c"}', "a list under 'reference'; it is 3"),
        ('{"reference": [], "text": "b", "target": "c"}', "line 2: no reference"),
        ('{"reference": "a", "text": [], "target": "c"}', "one caption or a list of two, not 0"),
        ('{"reference": "a", "text": ["b", "b", "b"], "target": "c"}', "a list of two, not 3"),
        (
            '{"reference": "a", "text": ["b", 1], "target": "c"}',
            "line 2: a caption is a text, not 1",
        ),
        ('{"reference": "a", "text": "b", "target": []}', "line 2: no target"),
        ('{"reference": "a", "text": "b", "target": [["c"]]}', "not by a list of length 1"),
        (
            '{"reference": "a", "text": "b", "target": "c", "wrong": ["d", "c"]}',
            "line 2: 'c' is both a target and wrong; take it out of one of them",
        ),
        (
            '{"reference": "a", "text": "b", "target": "c", "wrong": 3}',
            "line 2 must have a text or a list under 'wrong'; it is 3",
        ),
        (
            '{"reference": "a", "text": "b", "target": "c", "paraphrases": [[]]}',
            "line 2: a text is one caption or a list of two, not 0",
        ),
        (
            '{"reference": "a", "text": "b", "target": "c", "paraphrases": [1]}',
            "line 2: a caption is a text, not 1",
        ),
    ],
)
def test_broken_jsonl_is_refused(tmp_path, line, message):
    first = '{"reference": "a", "text": "b", "target": "c"}'
    (tmp_path / "val.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(DataError, match=message):
        folder.read(str(tmp_path))


def test_a_broken_gallery_is_refused(tmp_path):
    root = write(tmp_path)
    (root / "gallery.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"gallery\.txt: must list images, one a line"):
        folder.read(str(root))
    (root / "gallery.txt").write_text("val/1.jpg\r\n\r\n../1.jpg\r\n")
    with pytest.raises(DataError, match=r"gallery\.txt, line 3: '\.\./1\.jpg' climbs out"):
        folder.read(str(root))


def test_judgments(tmp_path):
    records = folder.read(str(judged_folder(tmp_path)))
    plain, listed, judged, _ = records.evaluations["val"]
    assert judged.protocol.captions == "paraphrases"
    assert plain.galleries == judged.galleries == {"all": tuple(judged.galleries["all"])}
    assert set(judged.galleries["all"]) == {f"{i}.jpg" for i in range(8)}  # wrong images as well
    assert len(listed.galleries["all"]) == 16
    # Both orders of two captions are queries of the plain protocol, and texts of the other one.
    assert [q.captions for q in plain.queries[:3]] == [
        ("is red",),
        ("is longer", "has a v"),
        ("has a v", "is longer"),
    ]
    assert not any(q.wrong for q in plain.queries)
    first = judged.queries[:3]
    assert [q.captions for q in first] == [("is red",), ("red",), ("has red", "is a red")]
    assert {(q.annotation, q.references, q.targets, q.wrong) for q in first} == {
        ("0", ("0.jpg", "1.jpg"), ("2.jpg", "3.jpg"), ("4.jpg",))
    }
    assert [q.annotation for q in judged.queries] == ["0", "0", "0", "1", "1", "2", "3", "3"]
    assert len({q.id for q in (*plain.queries, *judged.queries)}) == 5 + 8
    assert records.read_as == "upright"
    # A query without one of its references cannot be asked; without a wrong image it can.
    assert len(judged.without({"1.jpg"}).queries) == 8 - 3 - 2
    assert len(judged.without({"4.jpg"}).queries) == 8


def test_judgments_have_their_own_digests(tmp_path):
    """Other judgments are other queries; queries without any have the digest that they had."""
    root = judged_folder(tmp_path)
    one = folder.read(str(root)).evaluations["val"]
    table = root / "val.jsonl"
    table.write_text(table.read_text().replace('"wrong": ["4.jpg"]', '"wrong": ["4.jpg", "5.jpg"]'))
    other = folder.read(str(root)).evaluations["val"]
    assert one[0].conditions() == other[0].conditions()
    assert one[2].conditions()["queries"] != other[2].conditions()["queries"]
    plain = dataclasses.replace(one[0], queries=one[0].queries[1:2])
    old = [("1/0", "5.jpg", ("is longer", "has a v"), ("6.jpg",), ())]
    assert plain.conditions()["queries"] == digest_of(old)


def test_judgments_are_for_evaluation(tmp_path):
    root = judged_folder(tmp_path)
    row = {"reference": "0.jpg", "text": "is red", "target": "2.jpg"}
    for more, message in (
        ({"wrong": []}, r"train\.jsonl, line 1: 'wrong' and 'paraphrases' are for val\.jsonl"),
        ({"reference": ["0.jpg", "1.jpg"]}, r"train\.jsonl, line 1: 2 references; training reads"),
    ):
        (root / "train.jsonl").write_text(json.dumps(row | more))
        with pytest.raises(DataError, match=message):
            folder.read(str(root))
    (root / "train.jsonl").unlink()
    (root / "val.jsonl").unlink()
    (root / "val.csv").write_text("reference,text,target,wrong\n0.jpg,red,2.jpg,1.jpg\n")
    with pytest.raises(DataError, match=r"a column 'wrong' is a list, .*write .*val\.jsonl in pla"):
        folder.read(str(root))


def test_the_doctor_looks_at_judgments(tmp_path):
    root = judged_folder(tmp_path)
    found = {f.kind: f for f in doctor.examine("folder", str(root)).findings}
    assert found["judgments"].title == (
        "4 rows of folder/val-judged: 2 with several right images, 2 with explicit wrong images, "
        "1 with several references, 3 with paraphrases (1 to 3 texts a row)"
    )
    assert not {"wrong_is_reference", "wrong_not_in_gallery", "repeated_paraphrase"} & set(found)
    table = root / "val.jsonl"
    table.write_text(
        table.read_text().replace('["4.jpg"]', '["4.jpg", "1.jpg"]').replace('"red"', '"is red"')
    )
    (root / "gallery.txt").write_text("".join(f"{i}.jpg\n" for i in range(4)))
    found = {f.kind: f for f in doctor.examine("folder", str(root)).findings}
    assert found["wrong_is_reference"].items == ("0/text0: 0.jpg, wrong: 1.jpg",)
    assert found["wrong_not_in_gallery"].title.startswith("2 rows of folder/val-judged-gallery")
    assert found["wrong_not_in_gallery"].items[0] == "0/text0: 0.jpg, wrong: 4.jpg"
    assert found["repeated_paraphrase"].title.startswith("1 paraphrase of val")
    # An unread word of a paraphrase is seen as one of a text is.
    table.write_text(table.read_text().replace('"has red"', '" "'))
    found = {f.kind: f for f in doctor.examine("folder", str(root)).findings}
    assert found["empty_caption"].count == 1
