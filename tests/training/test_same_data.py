"""A run goes on with its own data alone: triplets, queries, galleries and pictures."""

import dataclasses
import json
import pathlib
import shutil

import fake_data
import pytest
from small import small_config

from cmap_jax.facts import IMAGES
from cmap_jax.training.same_data import check_same_data, protocols_of
from cmap_jax.workdir import description as workdir_lib
from input_pipeline import create_datasets, digests


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Triplets of one text, whose words are numbered alike in any order."""
    root = fake_data.folder(tmp_path_factory.mktemp("data") / "data")
    for split in ("train", "val", "test"):
        _rows(root, split, lambda rows: [f"{row[0]},is red,{row[2]}" for row in rows])
    return root


@pytest.fixture
def root(original, tmp_path):
    return pathlib.Path(shutil.copytree(original, tmp_path / "data"))


def _datasets(root, **fields):
    config = small_config(image_name="cells")
    config.data.update(name="folder", directory=str(root), **fields)
    config.train.batch_size = 2
    return config, create_datasets(config)


def _begin(workdir, root, **fields):
    """Write what a run on the data writes at its start."""
    config, datasets = _datasets(root, **fields)
    config.model.text.vocabulary_size = len(datasets.tokenizer)
    workdir_lib.write_description(
        workdir,
        workdir_lib.Description(
            config=config,
            tokenizer=datasets.tokenizer,
            preprocessing=datasets.preprocessing,
            protocols=protocols_of(datasets),
            facts=datasets.facts.to_dict(),
        ),
    )


def _rows(root, split, change):
    """Change the rows of a table; none of them has another word."""
    file = root / f"{split}.csv"
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *change([row.split(",") for row in rows])]) + "\n")


def _reversed(rows):
    return [",".join(row) for row in rows[::-1]]


def _other_targets(rows):
    targets = [row[2] for row in rows]
    return [",".join([*row[:2], t]) for row, t in zip(rows, targets[1:] + targets[:1], strict=True)]


def _cut(rows):
    return [",".join(row) for row in rows[:3]]


def _other_pictures(root):
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        fake_data.image(path, 777 + number)


def _one_byte(root):
    path = root / "train" / "1.jpg"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _shorter_gallery(root):
    names = (root / "gallery.txt").read_text().splitlines()
    (root / "gallery.txt").write_text("\n".join([*names[:-9], *names[-8:]]) + "\n")


CHANGES = {
    "reversed": (lambda r: _rows(r, "train", _reversed), "the training triplets are others, or"),
    "targets": (lambda r: _rows(r, "train", _other_targets), "the training triplets are others"),
    "queries": (lambda r: _rows(r, "val", _cut), "the queries of folder/val are others"),
    "answers": (
        lambda r: _rows(r, "test", _other_targets),
        "the queries of folder/test are others",
    ),
    "gallery": (_shorter_gallery, "the gallery of folder/val-gallery is another"),
    "no gallery": (lambda r: (r / "gallery.txt").unlink(), "folder/val-gallery is no longer among"),
    "pictures": (_other_pictures, "the images' bytes differ"),
    "one byte": (_one_byte, "the images' bytes differ"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_on_other_data_is_not_continued(root, tmp_path, name):
    change, message = CHANGES[name]
    _begin(tmp_path / "run", root)
    check_same_data(_datasets(root)[1], tmp_path / "run")
    change(root)
    with pytest.raises(ValueError, match=rf"holds a run on other data: .*{message}.* Restore the"):
        check_same_data(_datasets(root)[1], tmp_path / "run")


def test_the_folder_may_move(root, tmp_path):
    _begin(tmp_path / "run", root)
    moved = root.rename(tmp_path / "elsewhere")
    check_same_data(_datasets(moved)[1], tmp_path / "run")


def test_a_run_whose_facts_have_no_digests_goes_on(root, tmp_path):
    _begin(tmp_path / "run", root)
    file = tmp_path / "run" / "model.json"
    about = json.loads(file.read_text())
    del about["facts"]["digests"]
    file.write_text(json.dumps(about))
    _other_pictures(root)
    _rows(root, "train", _reversed)
    check_same_data(_datasets(root)[1], tmp_path / "run")


def test_pictures_that_are_left_out_have_no_part_in_the_digest(root, tmp_path):
    (root / "train" / "1.jpg").write_bytes(b"no picture")
    skip = {"missing_images": "skip"}
    _begin(tmp_path / "run", root, **skip)
    (root / "train" / "1.jpg").write_bytes(b"no picture either")
    check_same_data(_datasets(root, **skip)[1], tmp_path / "run")
    fake_data.image(root / "train" / "1.jpg", 3)
    with pytest.raises(ValueError, match=r"skipped_images was \['train/1.jpg'\] and is \[\]"):
        check_same_data(_datasets(root, **skip)[1], tmp_path / "run")


def test_a_large_file_is_known_by_its_size_and_ends(tmp_path):
    content = bytes(range(256)) * 1024

    def digest(content):
        (tmp_path / "a").write_bytes(content)
        with open(tmp_path / "a", "rb") as file:
            return digests.of_file(file)

    def changed(at):
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    assert digest(content) == digest(changed(100_000))  # in neither end
    others = {changed(0), changed(32_767), changed(len(content) - 1), content + content[-256:]}
    assert digest(content) not in set(map(digest, others))
    small = content[:65_536]
    assert len({digest(small), digest(small[:-1] + b"!"), digest(small[:30_000] + small)}) == 3


def test_facts_of_other_kinds_are_named_with_both_values(root):
    facts = _datasets(root)[1].facts
    assert facts.differences(facts) == []
    fewer = dataclasses.replace(facts, training_items=3)
    assert facts.differences(fewer) == [f"training_items was {facts.training_items} and is 3"]
    without = dataclasses.replace(facts, digests={})
    assert IMAGES in facts.digests
    assert without.differences(facts) == []
