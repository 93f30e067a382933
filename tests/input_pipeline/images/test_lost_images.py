"""Lost images: where they lie, and remedies that are followed and work."""

import pathlib
import shutil
import subprocess

import fake_data
import pytest

from input_pipeline.doctor import examine as doctor

LAYOUTS = {
    "fashion_iq": fake_data.fashion_iq,
    "shoes": fake_data.shoes,
    "fashion200k": fake_data.fashion200k,
    "cirr": fake_data.cirr,
    "circo": fake_data.circo,
    "folder": fake_data.folder,
}


def _errors(report: doctor.Report) -> dict[str, doctor.Finding]:
    return {f.kind: f for f in report.findings if f.severity == "error"}


def _follow(report: doctor.Report, name: str, root: pathlib.Path) -> doctor.Report:
    """Do what the remedy of misplaced images says, and look again."""
    (finding,) = _errors(report).values()
    assert finding.kind in ("misplaced", "link_out")
    if finding.fix.startswith("--config.data.image_directory="):
        folder = finding.fix.partition("=")[2].partition(" ")[0]
        return doctor.examine(name, str(root), folder)
    subprocess.run(["bash", "-ec", finding.fix], check=True)
    return doctor.examine(name, str(root))


@pytest.mark.parametrize(
    ("name", "what", "to", "flag"),
    [
        ("fashion_iq", "images", "elsewhere/pictures", "elsewhere/pictures"),
        ("fashion_iq", "images", "elsewhere/images", "elsewhere"),
        ("fashion200k", "women", "photos", "photos"),
        ("shoes", "womens_clogs", "backup/womens_clogs", None),
        ("cirr", "dev", "nlvr2/dev", None),
        ("circo", "COCO2017_unlabeled/unlabeled2017", "pictures", "pictures"),
        ("folder", "train", "old/train", None),
    ],
)
def test_moved_images_are_found(tmp_path, name, what, to, flag):
    root = LAYOUTS[name](tmp_path / "data set")
    (root / to).parent.mkdir(parents=True, exist_ok=True)
    (root / what).rename(root / to)
    report = doctor.examine(name, str(root))
    (finding,) = _errors(report).values()
    assert finding.kind == "misplaced"
    lost = finding.count
    assert report.images.total - report.images.usable == lost > 1
    if flag is None:
        assert not finding.fix.startswith("--config")
        subprocess.run(["bash", "-ec", finding.fix.partition("; and so on")[0]], check=True)
        after = doctor.examine(name, str(root))
        done = 3 if "and so on" in finding.fix else lost
        assert after.images.total - after.images.usable == lost - done
    else:
        assert f"--config.data.image_directory='{root / flag}' " in finding.fix
        assert doctor.examine(name, str(root), str(root / flag)).ready()


@pytest.mark.parametrize(
    ("layout", "flag"),
    [
        ("image_data/{category}/{id}.jpg", "image_data"),
        ("dataset/images/{category}/{id}.png", "dataset"),
        ("a/b/resized_image/{category}/{id}.jpg", "a/b"),
        ("all of them/{id}.jpeg", "all of them"),
    ],
)
def test_one_flag_for_images_in_many_folders(tmp_path, layout, flag):
    root = fake_data.fashion_iq(tmp_path / "data", layout=layout)
    # An id of two categories lies in both folders: that leaves no choice of a file, and needs none.
    if "{category}" in layout:
        name = layout.rpartition("/")[2].format(id="dval0")
        folders = [root / layout.rpartition("/")[0].format(category=c) for c in ("dress", "toptee")]
        shutil.copy(folders[0] / name, folders[1] / name)
    report = doctor.examine("fashion_iq", str(root))
    (finding,) = _errors(report).values()
    assert (finding.kind, finding.count) == ("misplaced", 30)
    value = f"'{root / flag}'" if " " in flag else root / flag
    here = f"(here: --images {value}) finds 30 of 30 images"
    assert finding.fix == f"--config.data.image_directory={value} {here}"
    assert doctor.examine("fashion_iq", str(root), str(root / flag)).ready()


def test_one_flag_where_most_images_lie(tmp_path):
    root = fake_data.fashion_iq(tmp_path, layout="image_data/{category}/{id}.jpg")
    folder = root / "image_data"
    (folder / "dress" / "dval1.jpg").unlink()  # nowhere
    (root / "old").mkdir()
    (folder / "dress" / "dval2.jpg").rename(root / "old" / "dval2.jpg")
    (root / "images").mkdir()
    (folder / "toptee" / "tval1.jpg").rename(root / "images" / "tval1.jpg")  # in its place today
    found = [f for f in doctor.examine("fashion_iq", str(root)).findings if f.severity == "error"]
    assert [(f.kind, f.count) for f in found] == [
        ("misplaced", 27),
        ("misplaced", 1),
        ("missing", 1),
    ]
    assert found[0].fix.startswith(f"--config.data.image_directory={folder} ")
    assert "finds 27 of 30 images" in found[0].fix
    # The second remedy is for the place where the first one lets images be looked for.
    subprocess.run(["bash", "-ec", found[1].fix], check=True)
    left = doctor.examine("fashion_iq", str(root), str(folder))
    assert {kind: f.count for kind, f in _errors(left).items()} == {
        "misplaced": 1,  # tval1
        "missing": 1,
    }


def test_a_folder_with_a_few_images_is_not_advised(tmp_path):
    root = fake_data.fashion_iq(tmp_path)
    (root / "more").mkdir()
    for i in range(8):
        (root / "images" / f"dtrain{i}.jpg").rename(root / "more" / f"dtrain{i}.jpg")
    (finding,) = _errors(doctor.examine("fashion_iq", str(root))).values()
    assert finding.fix == f"mkdir -p {root}/images && cp -rn {root}/more/. {root}/images"


@pytest.mark.parametrize("short", ["train/{name}", "{name}"])
def test_cirr_without_its_numbered_folders(tmp_path, short):
    root = fake_data.cirr(tmp_path / "data")
    pictures = root / "nlvr2 pictures"
    for image in list(root.rglob("*.png")):
        inside = image.relative_to(root).parent
        place = short.format(name=image.name) if inside.parts[0] == "train" else inside / image.name
        (pictures / place).parent.mkdir(parents=True, exist_ok=True)
        image.rename(pictures / place)
    report = doctor.examine("cirr", str(root))
    (finding, *spare) = [f for f in report.findings if f.kind in ("misplaced", "missing")]
    assert finding.kind == "misplaced"
    assert {f.fix for f in spare} <= {finding.fix}
    assert finding.fix.startswith(f"--config.data.image_directory='{pictures}' ")
    assert "finds 31 of 31 images" in finding.fix
    assert doctor.examine("cirr", str(root), str(pictures)).ready()
    # In a place where CIRR's images are looked for no flag is needed.
    pictures.rename(root / "images")
    assert doctor.examine("cirr", str(root)).ready()


def test_another_suffix_elsewhere(tmp_path):
    root = fake_data.fashion_iq(tmp_path)
    (root / "new").mkdir()
    (root / "images" / "dval1.jpg").rename(root / "new" / "dval1.png")
    report = doctor.examine("fashion_iq", str(root))
    assert _errors(report)["misplaced"].count == 1
    assert _follow(report, "fashion_iq", root).ready()


def test_another_images_file_is_not_taken_for_a_lost_one(tmp_path):
    root = fake_data.fashion200k(tmp_path)
    (root / "women" / "dress" / "train" / "0" / "0_0.jpeg").unlink()  # top has such a name too
    assert set(_errors(doctor.examine("fashion200k", str(root)))) == {"missing"}


def test_links_that_lead_out(tmp_path):
    root = fake_data.fashion_iq(tmp_path / "data")
    (root / "images").rename(tmp_path / "pictures")
    (root / "images").symlink_to(tmp_path / "pictures")
    report = doctor.examine("fashion_iq", str(root))
    assert _errors(report)["link_out"].count == 30
    assert _follow(report, "fashion_iq", root).ready()


def _own_folder(root: pathlib.Path, *folders: str) -> pathlib.Path:
    """Write an own folder whose images are named by path, in folders that are links out of it."""
    pictures = root / "pictures"
    fake_data.folder(pictures, gallery=False)
    (root / "own").mkdir()
    for split in ("train", "val", "test"):
        table = (pictures / f"{split}.csv").read_text()
        if folders == ("images",):
            table = table.replace("\n", "\nimages/").replace(f",{split}", f",images/{split}")
        (root / "own" / f"{split}.csv").write_text(table.removesuffix("images/"))
    for folder in folders:
        target = pictures if folder == "images" else pictures / folder
        (root / "own" / folder).symlink_to(target)
    return root / "own"


def test_an_own_folder_whose_images_are_a_link(tmp_path):
    root = _own_folder(tmp_path, "images")
    report = doctor.examine("folder", str(root))
    assert set(_errors(report)) == {"link_out"}
    assert "--config.data.image_directory=" in _errors(report)["link_out"].fix
    assert _follow(report, "folder", root).ready()
    # The link itself is as good a name of that folder.
    assert doctor.examine("folder", str(root), str(root / "images")).ready()


def test_an_own_folder_of_several_links(tmp_path):
    root = _own_folder(tmp_path, "train", "val", "test")
    report = doctor.examine("folder", str(root))
    assert _follow(report, "folder", root).ready()  # the links' targets have one folder
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pictures" / "val").rename(tmp_path / "elsewhere" / "val")
    (root / "val").unlink()
    (root / "val").symlink_to(tmp_path / "elsewhere" / "val")
    (finding,) = _errors(doctor.examine("folder", str(root))).values()
    command, _, flag = finding.fix.partition(", which follows the links, and then ")
    subprocess.run(["bash", "-ec", command], check=True)
    folder = flag.partition("=")[2].partition(" ")[0]
    assert doctor.examine("folder", str(root), folder).ready()
