"""Files whose names differ from the annotations' only in the way they are written."""

import json
import pathlib
import unicodedata

import fake_data
import pytest

from configs import default
from input_pipeline import create_datasets, reading, storage
from input_pipeline.doctor import examine as doctor
from input_pipeline.images import near_names
from input_pipeline.images.check import check_images
from input_pipeline.records import DataError

# The name in the table, the name of the file, and the difference.
PAIRS = {
    "NFC": ("café 1.jpg", unicodedata.normalize("NFD", "café 1.jpg"), "Unicode form"),
    "NFD": (unicodedata.normalize("NFD", "café 1.jpg"), "café 1.jpg", "Unicode form"),
    "upper suffix": ("001.jpg", "001.JPG", "letter case"),
    "upper name": ("dress a.jpg", "Dress A.jpg", "letter case"),
    "extension": ("001.jpg", "001.png", "extension"),
    "phone": ("IMG_001.jpg", "IMG_001.HEIC", "extension"),
    "extension twice": ("001.jpg", "001.png.jpg", "extension"),
    "no extension there": ("001.jpg", "001", "extension"),
    "spreadsheet": ("3", "003.jpg", "leading zeros"),
    "inner number": ("img_03_7.jpg", "img_3_07.jpg", "leading zeros"),
    "all zeros": ("0.jpg", "000.jpg", "leading zeros"),
    "encoded file": ("a b&c.jpg", "a%20b%26c.jpg", "percent-encoding"),
    "encoded table": ("caf%C3%A9.jpg", "café.jpg", "percent-encoding"),
    "space after": ("001.jpg", "001.jpg ", "outer spaces"),
    "space before": (" 001.jpg", "001.jpg", "outer spaces"),
    "space inside": ("001.jpg", "001 .jpg", "outer spaces"),
    "two at once": ("001.jpg", "1.JPG", "letter case and leading zeros"),
}


def _write(root: pathlib.Path, named: str, file: str) -> pathlib.Path:
    """Write an own folder whose train and val name one image by another name than its file's."""
    root.mkdir()
    for number, name in enumerate(("other.jpg", "third.jpg", file)):
        fake_data.image(root / "plain.jpg", number)
        (root / "plain.jpg").rename(root / name)
    for split, target in (("train", "other.jpg"), ("val", "third.jpg")):
        row = {"reference": named, "text": "is red", "target": target}
        (root / f"{split}.jsonl").write_text(json.dumps(row))
    return root


def _errors(report: doctor.Report) -> dict[str, doctor.Finding]:
    return {f.kind: f for f in report.findings if f.severity == "error"}


@pytest.mark.parametrize("case", PAIRS)
def test_a_near_name_is_shown_and_accepted_on_demand(tmp_path, case):
    named, file, difference = PAIRS[case]
    root = _write(tmp_path / "own", named, file)
    records = reading.read_folder("folder", str(root))
    (reason,) = check_images(records).values()
    assert reason == f"missing, but there is {file!r}, which differs in {difference}"
    # The doctor shows both names, and one flag; nobody is asked to put files there.
    errors = _errors(doctor.examine("folder", str(root)))
    assert set(errors) == {"near_name"}
    assert errors["near_name"].items == (f"{root}/{named}: {reason}",)
    assert "--config.data.near_names=accept" in errors["near_name"].fix
    assert "put the files" not in errors["near_name"].fix
    # The flag works.
    accepted = reading.read_folder("folder", str(root), None, "accept")
    assert check_images(accepted) == {}
    assert accepted.images[named].path == str(root / file)
    assert accepted.near_names == (named,)
    report = doctor.examine("folder", str(root), near_names="accept")
    assert report.ready()
    assert "with --config.data.near_names=accept" in report.verdict()


def test_training_shows_both_names_and_the_flag(tmp_path):
    config = default.get_config()
    config.data.name, config.train.batch_size = "folder", 1
    config.data.directory = str(_write(tmp_path / "own", "001.jpg", "001.JPG"))
    with pytest.raises(DataError) as raised:
        create_datasets(config)
    message = str(raised.value)
    assert "001.jpg: missing, but there is '001.JPG', which differs in letter case" in message
    flag = "which --config.data.near_names=accept takes"
    assert f"For 1 of them there is a file with a near name, {flag}" in message
    config.data.near_names = "accept"
    datasets = create_datasets(config)
    assert datasets.facts.images_skipped == 0
    assert len(datasets.evaluations["val"].evaluations[0].galleries["all"]) == 2
    config.data.near_names = "yes"
    with pytest.raises(ValueError, match='near_names must be "fail" or "accept", not \'yes\''):
        create_datasets(config)


@pytest.mark.parametrize("name", ["abc", "é", "a.b", "", "0", "Straße", "%", "1.jpg.png"])
def test_the_shared_form_is_near_itself(name):
    assert near_names.shared_form(near_names.shared_form(name)) == near_names.shared_form(name)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("a.jpg", "b.jpg"),
        ("10.jpg", "1.jpg"),
        ("100.jpg", "10.jpg"),
        ("a b.jpg", "ab.jpg"),
        ("a-1.jpg", "a_1.jpg"),
        ("cafe.jpg", "café.jpg"),
        ("001.jpg", "001.txt"),
        ("v1.5", "v1.6"),
        ("image.jpg", ".jpg"),
    ],
)
def test_what_is_another_name(name, other):
    assert near_names.shared_form(name) != near_names.shared_form(other)
    assert near_names.difference(name, other) == ""


def test_an_uncertain_near_name_is_not_taken(tmp_path):
    root = _write(tmp_path / "own", "01.jpg", "1.png")
    fake_data.image(root / "001.jpg", 5)
    errors = _errors(doctor.examine("folder", str(root)))
    assert set(errors) == {"uncertain_name"}
    (item,) = errors["uncertain_name"].items
    assert item == f"{root}/01.jpg: missing; uncertain near names: '001.jpg', '1.png'"
    assert "put the files" not in errors["uncertain_name"].fix
    assert reading.read_folder("folder", str(root), None, "accept").near_names == ()


def test_a_file_is_no_second_image(tmp_path):
    """Neither an image's own file nor one that two missing ones are near to is taken."""
    root = _write(tmp_path / "own", "1.jpg", "01.jpg")
    for named in ("01.jpg", "0001.jpg"):
        row = {"reference": named, "text": "is red", "target": "other.jpg"}
        (root / "test.jsonl").write_text(json.dumps(row))
        errors = _errors(doctor.examine("folder", str(root)))
        assert set(errors) == {"uncertain_name"}
        assert "'01.jpg'" in errors["uncertain_name"].items[0]
        assert reading.read_folder("folder", str(root), None, "accept").near_names == ()


def test_folders_with_near_names(tmp_path):
    root = _write(tmp_path / "own", "Robe%20longue/1.jpg", "x.jpg")
    (root / "robe longue").mkdir()
    (root / "x.jpg").rename(root / "robe longue" / "01.jpg")
    (item,) = _errors(doctor.examine("folder", str(root)))["near_name"].items
    assert "missing, but there is 'robe longue/01.jpg', which differs in leading zeros" in item
    assert doctor.examine("folder", str(root), near_names="accept").ready()
    (root / "robe longue" / "01.jpg").rename(root / "robe longue" / "1.jpg")
    (item,) = _errors(doctor.examine("folder", str(root)))["near_name"].items
    assert item.endswith("'robe longue/1.jpg', which differs in percent-encoding and letter case")
    # A file of that name in a folder of another one is no near name.
    (root / "robe longue").rename(root / "jupe longue")
    assert not {"near_name"} & set(_errors(doctor.examine("folder", str(root))))


LAYOUTS = {
    "fashion_iq": lambda root: fake_data.fashion_iq(root, layout="{category}/{id}.jpg"),
    "shoes": fake_data.shoes,
    "fashion200k": fake_data.fashion200k,
    "cirr": fake_data.cirr,
    "circo": fake_data.circo,
    "folder": fake_data.folder,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(tmp_path, name):
    """Wherever a reader looks for images, it finds those with near names."""
    root = LAYOUTS[name](tmp_path / name)
    images = reading.read_folder(name, str(root)).images
    for image in images.values():
        path = pathlib.Path(image.path)
        path.rename(path.with_name(path.stem.upper() + ".Webp"))
    errors = _errors(doctor.examine(name, str(root)))
    assert errors["near_name"].count <= len(images)
    assert set(errors) == {"near_name"}
    report = doctor.examine(name, str(root), near_names="accept")
    assert report.ready()
    assert report.images.usable == len(images)


def test_near_names_elsewhere_take_two_flags(tmp_path):
    root = fake_data.fashion_iq(tmp_path / "data", layout="image_data/{category}/{id}.webp")
    (fix,) = {f.fix for f in _errors(doctor.examine("fashion_iq", str(root))).values()}
    folder = root / "image_data"
    flag = f"--config.data.image_directory={folder} --config.data.near_names=accept "
    assert fix.startswith(f"{flag}(here: --images {folder} --near-names) finds 30 of 30 images")
    assert doctor.examine("fashion_iq", str(root), str(folder), near_names="accept").ready()


def test_a_folder_is_listed_once(tmp_path, monkeypatch):
    """A network folder with a thousand missing images is not asked a thousand times."""
    root = fake_data.fashion_iq(tmp_path)
    for image in (root / "images").iterdir():
        image.rename(image.with_suffix(".tiff"))
    records = reading.read_folder("fashion_iq", str(root))
    listed = []
    names = storage.names
    monkeypatch.setattr(storage, "names", lambda folder: listed.append(folder) or names(folder))
    assert len(near_names.accept(records, records.images).near_names) == 30
    assert max(map(listed.count, listed)) == 1
