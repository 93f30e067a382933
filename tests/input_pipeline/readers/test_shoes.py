"""Shoes on disk -> records: raw lists and prepared files, counts, and what is refused."""

import json

import pytest
from fake_data import shoes as write

from cmap_jax.processing.tokenizer import SPECIAL_TOKENS, Vocabulary
from input_pipeline.readers import shoes
from input_pipeline.records import DataError, Triplet


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("folder", ["", "womens/"])
def test_layouts(tmp_path, prepared, folder):
    records = shoes.read(str(write(tmp_path, prepared, folder)))
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


def _break(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither relative_captions_shoes\.json nor"):
        shoes.read(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no such folder; set --config\.data\.directory"):
        shoes.read(str(tmp_path / "nowhere"))
    root = write(tmp_path / "raw")
    _break(root / "relative_captions_shoes.json", [{"ImageName": "a"}])
    with pytest.raises(DataError, match="entry 0 must have a text under 'ReferenceImageName'"):
        shoes.read(str(root))
    _break(root / "train_im_names.txt", "\n")
    with pytest.raises(DataError, match=r"train_im_names\.txt: must list image names"):
        shoes.read(str(root))
    _break(root / "train_im_names.txt", "womens_clogs/0/\n")
    with pytest.raises(DataError, match=r"train_im_names\.txt, line 1: .* names a folder"):
        shoes.read(str(root))
    root = write(tmp_path / "prepared", prepared=True)
    _break(root / "split.val.json", {"a": 1})
    with pytest.raises(DataError, match=r"split\.val\.json: must be a list"):
        shoes.read(str(root))


@pytest.mark.real_data
def test_counts(real_data):
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
