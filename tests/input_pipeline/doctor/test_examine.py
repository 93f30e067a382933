"""The doctor: clean data of every layout, each kind of damage, and the real annotations."""

import json
import os
import pathlib
import shutil

import fake_data
import numpy as np
import pytest
from PIL import Image
from subword_files import write_clip_pairs, write_siglip_folder

from cmap_jax.processing.image_files import TRAITS
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.processing.tokenizers import TOKENIZERS
from configs import default
from input_pipeline import create_datasets
from input_pipeline.doctor import examine as doctor
from input_pipeline.doctor import published
from input_pipeline.readers.data_set import Count
from input_pipeline.reading import read_folder
from input_pipeline.records import DataError

LAYOUTS = {
    "fashion_iq": fake_data.fashion_iq,
    "shoes": fake_data.shoes,
    "fashion200k": fake_data.fashion200k,
    "cirr": fake_data.cirr,
    "circo": fake_data.circo,
    "folder": fake_data.folder,
}


def _garments(root: pathlib.Path) -> pathlib.Path:
    """Write a folder that passes for rendered garments, without rendering any."""
    fake_data.fashion_iq(root, categories=("garments",))
    captions = root / "captions" / "cap.garments.test.json"
    entries = json.loads(captions.read_text())
    captions.write_text(json.dumps([{**e, "target": "gtest7"} for e in entries]))
    ids = [f"g{split}{i}" for split in ("train", "val", "test") for i in range(8)]
    (root / "image_splits" / "split.garments.all.json").write_text(json.dumps(ids))
    settings = {"seed": 3, "image_size": 40, "train_triplets": 6}
    settings |= {"val_queries": 1_000, "test_queries": 2_000, "three_changes": 0.2}
    stamp = {"format_version": 1, "settings": settings, "oracles": {}}
    (root / "garments.json").write_text(json.dumps(stamp))
    return root


def _kinds(report: doctor.Report, severity: str | None = None) -> dict[str, doctor.Finding]:
    found = [f for f in report.findings if severity in (None, f.severity)]
    kinds = {f.kind: f for f in found}
    assert all(f.count >= 0 and f.title and f.fix and "\n" not in f.title for f in found)
    return kinds


@pytest.mark.parametrize("name", [*LAYOUTS, "garments"])
def test_clean_data_are_ready(tmp_path, name):
    root = {**LAYOUTS, "garments": _garments}[name](tmp_path / name)
    report = doctor.examine(name, str(root))
    assert _kinds(report, "error") == {}
    assert report.ready()
    assert report.verdict().startswith("ready for")
    assert report.images.usable == report.images.total >= report.needed.total > 0
    assert report.triplets.usable == report.triplets.total
    assert report.rate() > 0
    for protocol in report.protocols:
        assert protocol.queries.usable == protocol.queries.total > 0
        assert protocol.best == (None if protocol.name in ("cirr/test1", "circo/test") else 100)
    assert json.loads(json.dumps(report.to_dict()))["ready"] is True
    if name == "garments":
        assert "--config.data.garments.seed=3 " in _kinds(report)["garments_settings"].fix


def test_batch_larger_than_the_data(tmp_path):
    report = doctor.examine("shoes", str(fake_data.shoes(tmp_path)))
    assert _kinds(report, "warning")["few_items"].count == report.items.total == 6
    assert report.verdict() == "ready for training with --config.train.batch_size=6 or less"


def _zero(path: pathlib.Path):
    path.write_bytes(b"")


def _cut(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[:-200])


def _replace_by_page(path: pathlib.Path):
    path.write_text("<html>404</html>")


def _replace_by_folder(path: pathlib.Path):
    path.unlink()
    path.mkdir()


def _link_to_nothing(path: pathlib.Path):
    path.unlink()
    path.symlink_to(path.with_name("nothing"))


DAMAGES = {
    "missing": pathlib.Path.unlink,
    "zero_bytes": _zero,
    "truncated": _cut,
    "not_an_image": _replace_by_page,
    "not_a_file": _replace_by_folder,
    "broken_link": _link_to_nothing,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named(tmp_path, kind):
    root = fake_data.fashion_iq(tmp_path)
    clean = _kinds(doctor.examine("fashion_iq", str(root)))
    victims = [root / "images" / f"{i}.jpg" for i in ("dtrain1", "tval2")]
    for victim in victims:
        DAMAGES[kind](victim)
    report = doctor.examine("fashion_iq", str(root))
    errors = _kinds(report, "error")
    assert set(errors) == {kind}
    assert errors[kind].count == 2
    items = sorted(errors[kind].items)
    assert [item.partition(": ")[0] for item in items] == [str(v) for v in victims]
    assert set(_kinds(report)) - set(clean) == {kind}
    assert report.verdict() == f"training would fail: {errors[kind].title}"
    assert report.images == doctor.Share(30, 28)
    # dtrain1 is in two dress triplets of six; tval2 in two toptee queries of six.
    assert report.triplets == doctor.Share(12, 10)
    original = report.protocols[0]
    assert original.queries == doctor.Share(24, 20)
    assert original.gallery == doctor.Share(16, 15)
    assert original.best == pytest.approx(100 * (1 + 4 / 6) / 2)


def _pictures_as_people_have_them(root: pathlib.Path):
    """Replace images of a folder: two of phones, a cut-out, grey of 16 bits, CMYK, an animation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 4), np.uint8))
    colours = picture.convert("RGB")
    for number in (1, 2):
        colours.save(root / f"train/{number}.jpg", exif=exif, quality=90 + number)
    picture.save(root / "train/3.jpg", "PNG")
    deep = np.arange(600, dtype=np.uint16).reshape(30, 20) * 100
    Image.fromarray(deep).save(root / "train/4.jpg", "PNG")
    colours.convert("CMYK").save(root / "train/5.jpg")
    colours.save(root / "val/1.jpg", "GIF", save_all=True, append_images=[Image.new("RGB", (9, 9))])


@pytest.mark.parametrize("name", ["folder", "fashion_iq"])
def test_pictures_as_people_have_them(tmp_path, name):
    root = LAYOUTS[name](tmp_path)
    if name == "fashion_iq":
        for split in ("train", "val"):
            (root / split).mkdir()
    _pictures_as_people_have_them(root)
    if name == "fashion_iq":
        for file in root.glob("[tv]*/*.jpg"):
            file.rename(root / "images" / f"d{file.parent.name}{file.name}")
    report = doctor.examine(name, str(root))
    assert report.ready()
    found = {k: f for k, f in _kinds(report).items() if k in TRAITS}
    counts = {"turned": 2, "transparent": 1, "sixteen_bit": 1, "cmyk": 1, "frames": 1}
    assert {kind: f.count for kind, f in found.items()} == counts
    assert all(f.severity == "note" and len(f.items) == f.count for f in found.values())
    assert found["turned"].title == "2 images that EXIF says to turn"
    assert found["cmyk"].items[0].endswith("train/5.jpg" if name == "folder" else "dtrain5.jpg")
    if name == "folder":
        assert "are turned upright" in found["turned"].fix
        assert "laid on white" in found["transparent"].fix
    else:
        for kind in ("turned", "transparent"):
            assert "as in published protocols" in found[kind].fix
            assert "--config.data.read_as=upright" in found[kind].fix
    assert "scaled to 8 bits" in found["sixteen_bit"].fix
    assert "converted to RGB" in found["cmyk"].fix
    assert "first frame" in found["frames"].fix


def test_formats_and_pixels_that_cannot_be_read(tmp_path):
    root = fake_data.folder(tmp_path)
    for number in (1, 2):
        (root / f"train/{number}.jpg").write_bytes(b"\xff\x0a" + bytes(90))  # JPEG XL
    Image.new("F", (4, 4)).save(root / "train/3.jpg", "TIFF")
    Image.new("I", (4, 4)).save(root / "val/3.jpg", "TIFF")
    report = doctor.examine("folder", str(root))
    errors = _kinds(report, "error")
    assert {kind: f.count for kind, f in errors.items()} == {
        "unsupported_format": 2,
        "unsupported_pixels": 2,
    }
    assert errors["unsupported_format"].fix == (
        "pip install pillow-jxl-plugin, or convert it to JPEG or PNG"
    )
    assert "8 or 16 bits" in errors["unsupported_pixels"].fix
    assert "download" not in json.dumps(report.to_dict())
    assert "floating-point" in str(errors["unsupported_pixels"].items)
    config = default.get_config()
    config.data.name, config.data.directory = "folder", str(root)
    with pytest.raises(DataError, match=r"(?s)4 of 23 images cannot be used.*pillow-jxl-plugin"):
        create_datasets(config)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_misses_its_images(tmp_path, name):
    root = LAYOUTS[name](tmp_path / name)
    image = next(iter(read_folder(name, str(root)).images.values()))
    os.unlink(image.path)
    errors = _kinds(doctor.examine(name, str(root)), "error")
    assert [f.count for f in errors.values()] == [1]
    assert os.path.basename(image.path) in errors["missing"].items[0]


def test_images_for_submissions_only_are_a_warning(tmp_path):
    root = fake_data.cirr(tmp_path)
    (root / "test1" / "test1-3-img0.png").unlink()
    report = doctor.examine("cirr", str(root))
    assert report.ready()
    assert _kinds(report, "warning")["missing"].count == 1
    assert report.needed == doctor.Share(24 - 5, 24 - 5)  # cap.rc2.train names 7 of 12 images


@pytest.mark.parametrize("name", ["fashion_iq", "shoes", "fashion200k", "cirr", "folder"])
def test_a_folder_to_evaluate_on_alone(tmp_path, name):
    """Without its training files a data set is evaluated on as with them, and not trained on."""
    root = LAYOUTS[name](tmp_path / name)
    config = default.get_config()
    config.data.name, config.data.directory, config.train.batch_size = name, str(root), 2
    vocabulary = Vocabulary.build(["is red"])
    before = create_datasets(config, vocabulary, training=False).evaluations
    for path in list(root.rglob("*train*")):
        if path.is_file() and path.suffix in (".json", ".txt", ".csv"):
            path.unlink()
    after = create_datasets(config, vocabulary, training=False).evaluations
    assert after.keys() == before.keys()
    for split, data in before.items():
        assert after[split].evaluations == data.evaluations
    with pytest.raises(DataError, match=r"has nothing to train on there, no .*train"):
        create_datasets(config)
    report = doctor.examine(name, str(root))
    error = _kinds(report, "error")["nothing_to_train_on"]
    assert "train" in error.fix
    assert "--mode=evaluate" in error.fix
    assert [p.queries.usable for p in report.protocols if p.best] == [
        len(e.queries) for data in before.values() for e in data.evaluations
    ]


def test_shoes_prepared_to_evaluate_on_alone(tmp_path):
    root = fake_data.shoes(tmp_path, prepared=True)
    for kind in ("triplet", "split"):
        (root / f"{kind}.train.json").unlink()
    report = doctor.examine("shoes", str(root))
    assert set(_kinds(report, "error")) == {"nothing_to_train_on"}
    assert report.protocols[0].queries == doctor.Share(6, 6)


def test_a_category_to_evaluate_on_alone(tmp_path):
    root = fake_data.fashion_iq(tmp_path)
    (root / "captions" / "cap.toptee.train.json").unlink()
    report = doctor.examine("fashion_iq", str(root))
    assert report.ready()
    assert report.layout.endswith("to evaluate on alone: toptee")
    assert report.triplets.total == 6
    records = read_folder("fashion_iq", str(root))
    assert set(records.evaluations["val"][0].galleries) == {"dress", "toptee"}
    assert records.facts["categories_not_trained"] == ["toptee"]


def test_nothing_to_train_on(tmp_path):
    root = fake_data.cirr(tmp_path / "cirr")
    (root / "captions" / "cap.rc2.train.json").unlink()
    error = _kinds(doctor.examine("cirr", str(root)), "error")["nothing_to_train_on"]
    assert "cap.rc2.train.json" in error.fix
    assert doctor.examine("circo", str(fake_data.circo(tmp_path / "circo"))).verdict() == (
        "ready for evaluation"
    )


def test_a_remedy_for_own_tables_names_no_publisher(tmp_path):
    root = fake_data.folder(tmp_path / "own")
    (root / "train" / "1.jpg").write_bytes(b"")
    fix = _kinds(doctor.examine("folder", str(root)), "error")["zero_bytes"].fix
    assert "download" not in fix
    (root / "val.csv").write_text("reference,text,target\na,b\n")
    fix = _kinds(doctor.examine("folder", str(root)), "error")["annotations"].fix
    assert fix == "mend that place"
    published_set = fake_data.shoes(tmp_path / "shoes")
    (published_set / "relative_captions_shoes.json").write_text("[")
    fix = _kinds(doctor.examine("shoes", str(published_set)), "error")["annotations"].fix
    assert "publisher" in fix


def test_duplicates(tmp_path):
    root = fake_data.folder(tmp_path)  # every image is another
    assert not {"duplicate", "duplicate_across", "duplicate_pair"} & set(
        _kinds(doctor.examine("folder", str(root)))
    )
    shutil.copy(root / "train" / "0.jpg", root / "train" / "1.jpg")  # reference and target
    shutil.copy(root / "train" / "5.jpg", root / "val" / "3.jpg")
    shutil.copy(root / "train" / "5.jpg", root / "val" / "4.jpg")
    found = _kinds(doctor.examine("folder", str(root)))
    assert set(found["duplicate"].items) == {
        f"{root}/train/0.jpg = {root}/train/1.jpg",
        f"{root}/train/5.jpg = {root}/val/3.jpg = {root}/val/4.jpg",
    }
    assert found["duplicate"].severity == "note"
    assert found["duplicate_across"].count == 1
    assert found["duplicate_pair"].items == (
        "train: train/0.jpg -> train/1.jpg",
        "val: val/3.jpg -> val/4.jpg",
    )


def test_a_leaking_image_is_no_copy_of_itself(tmp_path):
    root = fake_data.folder(tmp_path, gallery=False)
    with (root / "val.csv").open("a") as stream:
        stream.write("train/1.jpg,the same,train/1.jpg\n")
    shutil.copy(root / "train" / "1.jpg", root / "test" / "1.jpg")
    found = [f for f in doctor.examine("folder", str(root)).findings if "duplicate_" in f.kind]
    assert [f.title for f in found] == ["1 group of images of the same bytes across train and test"]


def test_same_size_is_not_the_same_image(tmp_path):
    root = fake_data.folder(tmp_path)
    for name in ("0", "1"):
        path = root / "train" / f"{name}.jpg"
        path.write_bytes(path.read_bytes() + name.encode() * (5000 - path.stat().st_size))
    report = doctor.examine("folder", str(root))
    assert "duplicate" not in _kinds(report)
    assert report.ready()


def test_captions_are_counted_once_an_annotation(tmp_path):
    root = fake_data.fashion_iq(tmp_path, categories=("dress",))
    path = root / "captions" / "cap.dress.val.json"
    entries = json.loads(path.read_text())
    entries[0]["captions"] = ["2 !", " \t"]
    path.write_text(json.dumps(entries))
    found = _kinds(doctor.examine("fashion_iq", str(root)))
    assert found["empty_caption"].title == "5 captions empty (2 train, 3 val)"
    assert found["empty_caption"].items[0] == "train dress: dtrain3 -> dtrain4, caption 2: ''"
    assert found["wordless_caption"].items == ("val dress: dval0 -> dval1, caption 1: '2 !'",)


def test_an_annotation_given_twice_counts_twice(tmp_path):
    root = fake_data.fashion_iq(tmp_path, categories=("dress",))
    path = root / "captions" / "cap.dress.train.json"
    entry = {**json.loads(path.read_text())[0], "captions": ["", ""]}
    path.write_text(json.dumps([entry, entry]))
    report = doctor.examine("fashion_iq", str(root))
    assert report.triplets.total == 2
    assert _kinds(report)["empty_caption"].title == "6 captions empty (4 train, 2 val)"


def test_best_is_averaged_as_the_protocol_averages(tmp_path):
    root = fake_data.fashion_iq(tmp_path)
    path = root / "captions" / "cap.toptee.val.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))
    (root / "images" / "tval0.jpg").unlink()
    original = doctor.examine("fashion_iq", str(root)).protocols[0]
    assert original.queries == doctor.Share(16, 14)
    assert original.best == pytest.approx((100 + 50) / 2)


def test_reference_is_target(tmp_path):
    root = fake_data.folder(tmp_path, suffix="jsonl")
    for split in ("train", "val"):
        path = root / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[2]["target"] = rows[2]["reference"]
        path.write_text("\n".join(map(json.dumps, rows)))
    report = doctor.examine("folder", str(root))
    same = _kinds(report)["reference_is_target"]
    assert same.items == ("train: train/2.jpg -> train/2.jpg", "val: val/2.jpg -> val/2.jpg")
    val = report.protocols[0]
    assert val.queries == doctor.Share(6, 6)
    assert val.best == pytest.approx(100 * 5 / 6)  # the reference is excluded


def test_leaks(tmp_path):
    root = fake_data.fashion_iq(tmp_path)
    clean = _kinds(doctor.examine("fashion_iq", str(root)))
    assert not {"leak", "gallery_in_train"} & set(clean)
    path = root / "captions" / "cap.toptee.train.json"
    entries = json.loads(path.read_text())
    entries[0] |= {"candidate": "dval1", "target": "dval0"}  # a target and reference; a reference
    entries[1] |= {"candidate": "dval7"}  # in the gallery alone
    path.write_text(json.dumps(entries))
    leak = _kinds(doctor.examine("fashion_iq", str(root)), "warning")["leak"]
    assert leak.items == ("dval1",)
    assert leak.title.startswith("1 target, 2 references and 3 gallery images of val dress also")
    assert leak.title.endswith("in train triplets of toptee")

    entries[0] |= {"candidate": "dval7", "target": "dval0"}  # a reference alone
    path.write_text(json.dumps(entries))
    leak = _kinds(doctor.examine("fashion_iq", str(root)), "warning")["leak"]
    assert leak.items == ("dval0",)
    assert leak.title.startswith("0 targets, 1 reference and 2 gallery images of val dress")


def test_a_gallery_of_everything_is_no_leak(tmp_path):
    found = _kinds(doctor.examine("garments", str(_garments(tmp_path))))
    assert "leak" not in found
    assert found["gallery_in_train"].severity == "note"
    assert found["gallery_in_train"].count == 7  # images of the test gallery "all"


def test_words(tmp_path):
    root = fake_data.shoes(tmp_path / "shoes")
    path = root / "relative_captions_shoes.json"
    entries = json.loads(path.read_text())
    assert "val_5" not in str(entries[0])
    entries[0]["RelativeCaption"] = "zebra shiny zebra okapi"  # images of an eval pair
    path.write_text(json.dumps(entries))
    words = _kinds(doctor.examine("shoes", str(root)))["unknown_word"]
    assert words.severity == "note"
    assert words.items == ("zebra (2)", "okapi (1)")
    assert words.title.startswith("2 words of the val captions")

    vocabulary = Vocabulary.build(["is red zebra"])
    report = doctor.examine("shoes", str(root), vocabulary=vocabulary)
    train, val = [f for f in report.findings if f.kind == "unknown_word"]
    assert train.severity == val.severity == "error"  # a share of more than half
    assert "shiny (1)" in train.items
    assert "okapi (1)" in val.items
    assert not any(item.startswith("zebra") for item in val.items)


def _captioned(root: pathlib.Path, **captions: list[str]) -> pathlib.Path:
    """Write an own folder with these captions, a row each, by split."""
    fake_data.folder(root, gallery=False)
    for split in ("train", "val", "test"):
        path = root / f"{split}.csv"
        if split not in captions:
            path.unlink()
            continue
        rows = [
            f"{split}/{i % 8}.jpg,{c},{split}/{(i + 1) % 8}.jpg"
            for i, c in enumerate(captions[split])
        ]
        path.write_text("\n".join(["reference,text,target", *rows]) + "\n")
    return root


READABLE, LOST = "is red", "红色 长袖"


@pytest.mark.parametrize(
    ("lost", "severity"), [(0, None), (1, "note"), (2, "warning"), (10, "warning"), (11, "error")]
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_captions_that_lose_all_words(tmp_path, split, lost, severity):
    """For twenty captions 5% is a note, more a warning, more than half an error."""
    captions = {"train": [READABLE] * 20, "val": [READABLE] * 20}
    captions[split] = [LOST] * lost + [READABLE] * (20 - lost)
    report = doctor.examine("folder", str(_captioned(tmp_path, **captions)))
    finding = _kinds(report).get("wordless_caption")
    assert (finding and finding.severity) == severity
    assert report.ready() == (severity != "error")
    if severity in ("warning", "error"):
        assert f"{lost * 5}% of {split}" in finding.title
        assert "letters a to z" in finding.fix
        assert "--config.data.unreadable_texts=allow" in finding.fix
        assert repr(LOST) in finding.items[0]


def test_a_bracket_is_no_word(tmp_path):
    root = _captioned(tmp_path, train=["红色(长袖)"] * 4, val=[READABLE] * 4)
    report = doctor.examine("folder", str(root))
    assert _kinds(report, "error")["wordless_caption"].count == 4


@pytest.mark.parametrize(
    ("unknown", "severity"), [(0, None), (1, "note"), (4, "note"), (5, "warning"), (11, "error")]
)
def test_shares_of_unknown_words(tmp_path, unknown, severity):
    """For twenty words up to 20% a note, more a warning, more than half an error."""
    val = ["zebra"] * unknown + ["red"] * (20 - unknown)
    root = _captioned(tmp_path, train=["red"] * 20, val=val)
    finding = _kinds(doctor.examine("folder", str(root))).get("unknown_word")
    assert (finding and finding.severity) == severity
    if finding:
        assert f"({5 * unknown:.1f}%)" in finding.title
    given = Vocabulary.build(["red"])  # as that of another model
    found = _kinds(doctor.examine("folder", str(root), vocabulary=given)).get("unknown_word")
    assert (found and found.severity) == severity
    if severity in ("warning", "error"):
        assert "language and spelling" in finding.fix
        assert "config.init_from" in found.fix


def test_texts_are_checked_against_the_tokenizer_that_is_given(tmp_path):
    """CLIP reads every character and 75 pieces; SigLIP 63 pieces, and not every character."""
    clip = TOKENIZERS["clip"].from_data(str(write_clip_pairs(tmp_path)), (), ())
    siglip = TOKENIZERS["siglip"].from_data(str(write_siglip_folder(tmp_path / "s")), (), ())
    texts = ["red " * 15, "red " * 70, "red " * 80, LOST, "\U0001f457 is red"]
    root = _captioned(tmp_path / "data", train=[READABLE] * 40 + texts, val=[READABLE] * 10)

    found = _kinds(doctor.examine("folder", str(root), vocabulary=clip))
    assert found["long_text"].title == "1 text longer than 77 tokens (1 train)"
    assert found["long_text"].severity == "warning"
    assert found["long_text"].items[0].startswith("train: train/")
    assert not {"unknown_word", "wordless_caption"} & found.keys()

    found = _kinds(doctor.examine("folder", str(root), vocabulary=siglip))
    assert found["long_text"].count == 2
    (lost,) = found["wordless_caption"].items
    assert lost.endswith(f", caption 1: {LOST!r}")
    assert sorted(found["unknown_word"].items) == sorted(
        f"{word} (1)" for word in (*LOST.split(), "\U0001f457")
    )

    for tokenizer in (clip, siglip):
        root = _captioned(tmp_path / "lost", train=[LOST] * 9 + [READABLE], val=[READABLE])
        report = doctor.examine("folder", str(root), vocabulary=tokenizer)
        assert report.ready() == (tokenizer is clip)
    assert "the characters of its vocabulary" in _kinds(report, "error")["wordless_caption"].fix


def test_an_evaluation_alone_is_never_refused_for_its_texts(tmp_path):
    root = fake_data.circo(tmp_path)
    report = doctor.examine("circo", str(root), vocabulary=Vocabulary.build(["zebra"]))
    assert _kinds(report)["unknown_word"].severity == "warning"
    assert report.ready()


@pytest.mark.parametrize(
    ("captions", "vocabulary", "message"),
    [
        (
            {"train": [LOST] * 3 + [READABLE], "val": [READABLE]},
            None,
            r"3 of 4 train captions lose all their words in cleaning: '红色 长袖' is read as ''\. "
            r"Write them with the letters a to z.*--config\.data\.unreadable_texts=allow",
        ),
        (
            {"train": [READABLE] * 4, "val": [READABLE] * 2, "test": [LOST]},
            None,
            "1 of 1 test captions lose all their words",
        ),
        (
            {"train": [READABLE] * 4, "val": ["rot red lang"]},
            None,
            "2 of 3 words of the val captions are not in the vocabulary: 'rot red lang' is read as "
            "'<unk> red <unk>'. Write these captions in the language",
        ),
        (
            {"train": ["navy solid dress", READABLE], "val": [READABLE]},
            ["is dress"],
            "3 of 5 words of the train captions .*: 'navy solid dress' is read as '<unk> <unk> "
            "dress'. Train a model without config.init_from",
        ),
    ],
)
def test_training_refuses_texts_that_it_cannot_read(tmp_path, captions, vocabulary, message):
    """As the doctor does; "allow" trains, and an evaluation is made in any case."""
    root = _captioned(tmp_path, **captions)
    config = default.get_config()
    config.data.name, config.data.directory = "folder", str(root)
    config.train.batch_size = 1
    known = vocabulary and Vocabulary.build(vocabulary)
    assert not doctor.examine("folder", str(root), vocabulary=known).ready()
    with pytest.raises(DataError, match=message):
        create_datasets(config, known)
    create_datasets(config, known, training=False)
    config.data.unreadable_texts = "allow"
    assert create_datasets(config, known).train.steps_per_epoch == len(captions["train"])
    config.data.unreadable_texts = "warn"
    with pytest.raises(
        ValueError, match='unreadable_texts must be "fail" or "allow", not \'warn\''
    ):
        create_datasets(config, known)


def test_the_doctor_and_training_agree_at_the_border(tmp_path):
    config = default.get_config()
    config.data.name, config.train.batch_size = "folder", 1
    for lost in (2, 3):
        root = _captioned(
            tmp_path / str(lost), train=[LOST] * lost + [READABLE] * (4 - lost), val=[READABLE]
        )
        config.data.directory = str(root)
        report = doctor.examine("folder", str(root))
        if report.ready():
            create_datasets(config)
        else:
            with pytest.raises(DataError, match="lose all their words"):
                create_datasets(config)
        assert report.ready() == (lost == 2)  # half is not more than half


def test_words_without_training_captions(tmp_path):
    root = fake_data.circo(tmp_path)
    assert "--vocabulary" in _kinds(doctor.examine("circo", str(root)))["words_not_checked"].fix
    report = doctor.examine("circo", str(root), vocabulary=Vocabulary.build(["is"]))
    assert {f.title.split()[4] for f in report.findings if f.kind == "unknown_word"} == {
        *("val", "test")
    }


def test_marks_are_unknown_words_of_fashion200k(tmp_path):
    found = _kinds(doctor.examine("fashion200k", str(fake_data.fashion200k(tmp_path))))
    # "no. 1" is trained on as "nodotmark"; the published vocabulary has "no".
    assert found["unknown_word"].severity == "note"
    assert found["unknown_word"].items[0].startswith("nodotmark")


def test_queries_without_a_target_in_the_gallery(tmp_path):
    root = fake_data.folder(tmp_path)
    (root / "gallery.txt").write_text("val/1.jpg\nval/2.jpg\ntest/1.jpg\n")
    report = doctor.examine("folder", str(root))
    lost = [f for f in report.findings if f.kind == "no_target_in_gallery"]
    assert [f.count for f in lost] == [4, 5]
    assert lost[0].items[0] == "2/0: val/2.jpg -> val/3.jpg"
    assert [p.best for p in report.protocols] == pytest.approx([100, 100 * 2 / 6, 100, 100 / 6])


def _only_error(name: str, root: pathlib.Path, images: str | None = None) -> doctor.Finding:
    report = doctor.examine(name, str(root), images)
    (finding,) = report.findings
    assert (finding.kind, finding.severity) == ("annotations", "error")
    assert not report.ready()
    assert report.layout == ""
    return finding


def test_annotations_that_cannot_be_read(tmp_path):
    root = fake_data.fashion_iq(tmp_path / "data")
    error = _only_error("shoes", root)
    assert "not the layout of Shoes" in error.title
    assert error.fix == f"what lies there looks like cmap doctor fashion_iq {root}"
    assert f"cmap doctor fashion_iq {root}" in _only_error("fashion_iq", tmp_path).fix
    assert "no such folder" in _only_error("fashion_iq", tmp_path / "none").title
    assert "no such folder" in _only_error("fashion_iq", root, str(tmp_path / "none")).title
    (root / "image_splits" / "split.dress.val.json").unlink()
    error = _only_error("fashion_iq", root)
    assert "split.dress.val.json: " in error.title
    assert "looks like" not in error.fix
    (root / "captions" / "cap.dress.val.json").write_text("[{")
    assert "not JSON at line 1" in _only_error("fashion_iq", root).title
    with pytest.raises(ValueError, match="no data set 'moda'; there are fashion_iq"):
        doctor.examine("moda", str(root))


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("labels/dress_test_detect_all.txt", "women/x.jpeg 0.9 red dress", "line 7: expected path"),
        ("test_queries.txt", "dress/x.jpeg dress/y.jpeg", "x.jpeg' is in no test label file"),
    ],
)
def test_broken_lines(tmp_path, file, line, message):
    root = fake_data.fashion200k(tmp_path)
    with (root / file).open("a") as stream:
        stream.write(line + "\n")
    error = _only_error("fashion200k", root)
    assert message in error.title
    assert str(root / file) in error.title


def test_garments_are_not_rendered(tmp_path):
    error = _only_error("garments", tmp_path / "none")
    assert "garments.json" in error.title
    assert f"--config.data.directory={tmp_path / 'none'}" in error.fix
    assert list(tmp_path.iterdir()) == []
    root = _garments(tmp_path / "garments")
    assert "no other folder" in _only_error("garments", root, str(tmp_path)).title
    (root / "images" / "gval1.jpg").unlink()
    assert "delete" in _kinds(doctor.examine("garments", str(root)), "error")["missing"].fix
    stamp = root / "garments.json"
    stamp.write_text(stamp.read_text().replace('"val_queries": 1000', '"val_queries": 7'))
    assert "other settings" in _only_error("garments", root).title


@pytest.mark.parametrize("name", ["fashion_iq", "fashion200k", "shoes", "folder"])
def test_training_agrees(tmp_path, name):
    """The doctor says what training refuses, and leaves out and stamps under "skip"."""
    root = LAYOUTS[name](tmp_path)
    config = default.get_config()
    config.data.name, config.data.directory = name, str(root)
    config.data.resize, config.data.crop = 36, 32
    config.train.batch_size = 1
    assert doctor.examine(name, str(root)).ready()
    create_datasets(config)
    images = sorted(i.path for i in read_folder(name, str(root)).images.values())
    for path in images[::7]:
        pathlib.Path(path).write_bytes(b"")
    report = doctor.examine(name, str(root))
    assert not report.ready()
    with pytest.raises(DataError, match=rf"{len(images[::7])} of {len(images)} images"):
        create_datasets(config)
    config.data.missing_images = "skip"
    datasets = create_datasets(config)
    assert datasets.facts.images_skipped == report.needed.total - report.needed.usable
    assert datasets.facts.training_items == report.items.usable < report.items.total
    left = {
        e.protocol.name: (len(e.queries), e.skipped)
        for data in datasets.evaluations.values()
        for e in data.evaluations
    }
    assert left == {
        p.name: (p.queries.usable, p.queries.total - p.queries.usable) for p in report.protocols
    }
    assert any(skipped for _, skipped in left.values())


def test_counts_that_differ_from_the_published():
    same, other = Count("val queries", 3, 3), Count("train", 0, 5, "no train")
    assert list(published.count_findings("cirr", [same])) == []
    assert list(published.count_findings("garments", [])) == []
    (incomplete,) = published.count_findings("cirr", [same, other])
    assert (incomplete.kind, incomplete.severity) == ("count", "warning")
    assert incomplete.items == ("train: 0, published 5: no train",)
    (not_published,) = published.count_findings("cirr", [other])
    assert (not_published.kind, not_published.severity) == ("not_published", "note")


def _counts(report: doctor.Report) -> dict[str, tuple[int, int]]:
    return {c.what: (c.found, c.published) for c in report.counts}


@pytest.mark.real_data
def test_real_fashion_iq(real_data, tmp_path):
    report = doctor.examine("fashion_iq", str(real_data / "fashioniq"))
    assert len(report.counts) == 20
    assert all(c.agrees for c in report.counts)
    assert _counts(report)["entries of all split files"][0] == 77_683
    assert report.counts[-1].found == 74_381
    assert report.counts[-1].remark.startswith("3,302 ids stand in files of both")
    assert report.triplets == doctor.Share(18_000, 0)
    assert report.items.total == 36_000
    found = _kinds(report)
    assert set(_kinds(report, "error")) == {"missing"}
    assert found["empty_caption"].title == "15 captions empty (12 train, 3 val)"
    assert found["wordless_caption"].count == 6
    assert "reference_is_target" not in found
    leaks = {f.title.partition(" of ")[2]: f.count for f in report.findings if f.kind == "leak"}
    assert leaks == {
        "val toptee also in train triplets of shirt": 71,
        "val shirt also in train triplets of toptee": 72,
    }
    assert "gallery_in_train" not in found

    # Less than what was published: without the test split, and one category cut short.
    root = tmp_path / "cut"
    shutil.copytree(real_data / "fashioniq", root)
    (root / "image_splits" / "split.dress.test.json").unlink()
    path = root / "captions" / "cap.shirt.train.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-8]))
    items = _kinds(doctor.examine("fashion_iq", str(root)), "warning")["count"].items
    assert "shirt train triplets: 5,980, published 5,988: 8 fewer" in items
    assert any("no image_splits/split.dress.test.json" in item for item in items)
    assert len(items) == 4


@pytest.mark.real_data
def test_real_shoes_cirr_circo(real_data):
    shoes = doctor.examine("shoes", str(real_data / "shoes"))
    assert all(c.agrees for c in shoes.counts)
    assert _counts(shoes)["triplets with reference = target"] == (27, 27)
    same = _kinds(shoes)["reference_is_target"]
    assert same.title == "27 annotations with reference = target (26 train, 1 val)"
    cirr = doctor.examine("cirr", str(real_data / "cirr"))
    assert [c.what for c in cirr.counts if not c.agrees] == ["train triplets"]
    assert set(_kinds(cirr, "error")) == {"nothing_to_train_on", "missing"}
    circo = doctor.examine("circo", str(real_data / "circo"))
    assert [c.what for c in circo.counts if not c.agrees] == ["gallery images"]
    assert circo.counts[1].found == 916


@pytest.mark.real_data
def test_real_photographs_are_ready(real_data):
    report = doctor.examine("fashion200k", str(real_data / "garment_photos"))
    assert report.ready()
    assert set(_kinds(report)) == {"not_published"}
    assert report.images == doctor.Share(3_409, 3_409)
    assert report.triplets == doctor.Share(3_068, 3_068)
    assert report.protocols[0].queries == doctor.Share(1_200, 1_200)
    assert report.protocols[0].best == 100
