"""`cmap submit`: from a workdir and a data set to checked files, or to nothing at all."""

import json

import numpy as np
import pytest
from fake_data import circo as write_circo
from fake_data import cirr as write_cirr
from fake_data import image as write_image
from small import write_workdir

import cmap_jax
from cmap_jax import files, scoring
from cmap_jax.cli import command
from cmap_jax.evaluation.evaluator import Evaluator
from input_pipeline.readers import cirr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with random weights, whose batch size eight devices cannot share evenly."""
    return write_workdir(
        tmp_path_factory.mktemp("runs") / "small", "cirr", "cirr/val", batch_size=5
    )


def _left(folder, *expected) -> bool:
    """Tell whether a folder holds nothing but what is expected, hidden files included."""
    return {path.name for path in folder.iterdir()} == set(expected)


def test_cirr_from_end_to_end(trained, tmp_path, capsys):
    data = write_cirr(tmp_path / "data")
    out = tmp_path / "out"
    arguments = ["submit", "cirr", str(data)]
    assert command.main([*arguments, "--workdir", str(trained), "--out", str(out)]) == 0
    assert "6 queries of test1" in capsys.readouterr().out
    assert _left(tmp_path, "data", "out")
    assert _left(out, "recall.json", "recall_subset.json")
    paths = [str(out / "recall.json"), str(out / "recall_subset.json")]
    recall, subset = (json.loads(files.read_text(path)) for path in paths)
    _check_order(trained, data, recall, subset)

    assert command.main([*arguments, "--check", *paths]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == paths
    # A check needs no images, and knows whose queries these are.
    for image in data.rglob("*.png"):
        image.unlink()
    assert command.main([*arguments, "--check", *paths]) == 0
    assert command.main([*arguments, "--check", *paths, "--split", "val"]) == 1
    message = capsys.readouterr().err
    assert f"{paths[0]}: 6 problems" in message
    assert "'test1-" in message
    subset["102"][0] = subset["102"][1]
    files.write_json(paths[1], subset)
    assert command.main([*arguments, "--check", *paths]) == 1
    assert f"{paths[1]}: pair 102: has {subset['102'][0]!r} 2 times" in capsys.readouterr().err


def _check_order(trained, data, recall: dict, subset: dict) -> None:
    """Score all pairs in one go, and find every list in the order of its scores."""
    model = cmap_jax.load(trained)
    records = cirr.read(str(data))
    evaluation = records.unlabelled["test1"]
    (gallery,) = evaluation.galleries.values()
    pyramid = model.encode_images([records.images[i].path for i in gallery])
    place = {image: i for i, image in enumerate(gallery)}
    references = [place[query.reference] for query in evaluation.queries]
    text = model.encode_text([query.captions for query in evaluation.queries])
    composed = model.model.apply(model.variables, pyramid[:, references], text, method="compose")
    scores = np.asarray(scoring.score(composed, pyramid))
    for query, row in zip(evaluation.queries, scores, strict=True):
        assert set(recall[query.id]) == set(gallery) - {query.reference}
        assert set(subset[query.id]) < set(query.subset) - {query.reference}
        assert len(subset[query.id]) == 3
        for answer in (recall[query.id], subset[query.id]):
            ordered = row[[place[image] for image in answer]]
            assert (np.diff(ordered) < 1e-4).all()
        others = set(query.subset) - {query.reference, *subset[query.id]}
        worst = row[place[subset[query.id][-1]]]
        assert max(row[place[image]] for image in others) < worst + 1e-4
        assert row.max() - row.min() > 1e-3  # an order at all


def test_circo_from_end_to_end(trained, tmp_path, capsys):
    data = write_circo(tmp_path / "data")
    for split, place in (("test", "out"), ("val", "tried")):
        out = tmp_path / place
        arguments = ["submit", "circo", str(data), "--split", split]
        assert command.main([*arguments, "--workdir", str(trained), "--out", str(out)]) == 0
        assert f"6 queries of {split}" in capsys.readouterr().out
        assert _left(out, "submission.json")
        content = json.loads((out / "submission.json").read_text())
        assert set(content) == set("012345")
        for answer in content.values():
            assert len(set(answer)) == len(answer) == 50
            assert set(answer) <= set(range(1, 61))
        assert command.main([*arguments, "--check", str(out / "submission.json")]) == 0
        capsys.readouterr()
    checked = ["--check", str(out / "submission.json"), "--captions", "one"]
    assert command.main(["submit", "circo", str(data), *checked]) == 1
    assert "--captions chooses the texts that --workdir answers" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_found_first(trained, tmp_path, capsys, monkeypatch):
    data = write_cirr(tmp_path / "data")
    monkeypatch.setattr(cmap_jax, "load", None)  # nothing is loaded before
    out = str(data / "captions" / "cap.rc2.val.json" / "out")
    arguments = ["submit", "cirr", str(data), "--workdir", str(trained), "--out", out]
    assert command.main(arguments) == 1
    assert "is a file, not a folder" in capsys.readouterr().err


def test_nothing_is_left_behind(trained, tmp_path, capsys, monkeypatch):
    data = write_cirr(tmp_path / "data")

    def refused(*arguments: str) -> str:
        written = ["--workdir", str(trained), "--out", str(tmp_path / "out")]
        assert command.main(["submit", "cirr", str(data), *(arguments or written)]) == 1
        assert _left(tmp_path, "data")
        return capsys.readouterr().err

    def search(found: list[dict]):
        monkeypatch.setattr(Evaluator, "search", lambda *_: {"cirr/test1": found})

    queries = cirr.read(str(data)).unlabelled["test1"].queries
    right = []
    for query in queries:
        others = [f"test1-{i}-img0" for i in range(12) if f"test1-{i}-img0" != query.reference]
        members = [i for i in query.subset if i != query.reference]
        right.append({"query": query.id, "top": others, "subset_top": members})
    search(right[:-1])
    assert "pair 105: missing" in refused()
    search([*right[:-1], {**right[-1], "subset_top": ["test1-0-img0", *members[:2]]}])
    assert "pair 105: has 'test1-0-img0', which is not among the 6 members of its set" in refused()
    search(right)
    write_text = files.write_text

    def full_disk(path, text):
        if path.name == "recall_subset.json":
            raise OSError("No space left on device")
        write_text(path, text)

    monkeypatch.setattr(files, "write_text", full_disk)
    assert "No space left on device" in refused()

    (data / "test1" / "test1-3-img0.png").unlink()
    message = refused()
    assert "1 of 12 images cannot be used" in message
    assert "test1-3-img0.png: missing" in message
    assert "--images" in message
    assert "--near-names" not in message
    fake = data / "test1" / "TEST1-3-img0.jpg"
    write_image(fake, 3)
    message = refused()
    assert (
        "missing, but there is 'TEST1-3-img0.jpg', which differs in letter case and ext" in message
    )
    assert "For 1 of them there is a file with a near name, which --near-names takes" in message
    fake.unlink()
    assert "--out names the folder" in refused("--workdir", str(trained))
    assert "--out names the folder" in refused("--check", "a.json", "--out", "out")
    assert "a.json" in refused("--check", str(tmp_path / "a.json"))
    new = ["--out", str(tmp_path / "out")]
    assert "their texts leave no choice: leave out --captions one" in refused(
        "--workdir", str(trained), *new, "--captions", "one"
    )
    assert "no such folder" in refused("--workdir", str(trained), "--images", "nowhere", *new)
    assert "has no unlabelled split 'test'" in refused(
        "--split", "test", *new, "--workdir", str(trained)
    )
    assert "is not a workdir" in refused("--workdir", str(tmp_path / "none"), *new)
    # Before anything is read.
    taken = ["--workdir", "nowhere", "--out", str(data)]
    assert "data exists; name a new folder with --out" in refused(*taken)


def test_circo_without_the_list_of_its_gallery(tmp_path, capsys):
    """Nobody has COCO's images at hand to look at a file: the list is asked for, by name."""
    data = write_circo(tmp_path / "data", listed=False)
    for image in (data / "COCO2017_unlabeled").rglob("*.jpg"):
        image.unlink()
    answers = {str(i): [str(1000 * i + k) for k in range(50)] for i in range(6)}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(answers))
    arguments = ["submit", "circo", str(data), "--check", str(file)]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    assert f"{file} answers all 6 queries of test, by the rules that can be checked here" in out
    assert "its ids are texts" in out
    assert f"{data}/annotations/image_info_unlabeled2017.json" in out
    # The rules that need no list are checked all the same.
    file.write_text(json.dumps({**answers, "3": answers["3"][:7]}))
    assert command.main(arguments) == 1
    assert "query 3: must have 50 images, not 7" in capsys.readouterr().err
    # With the list, ids are judged.
    file.write_text(json.dumps(answers))
    listed = data / "annotations" / "image_info_unlabeled2017.json"
    listed.write_text(json.dumps({"images": [{"id": i} for i in range(1, 3000)]}))
    assert command.main(arguments) == 1
    assert "4 problems" in capsys.readouterr().err  # 0 is none of them, nor those from 3000


@pytest.mark.real_data
def test_the_published_examples_of_circo(real_data, tmp_path, capsys):
    data = real_data / "circo"
    for split, queries in (("val", 220), ("test", 800)):
        example = data / "submission_examples" / f"submission_{split}.json"
        as_texts = tmp_path / f"{split}.json"
        content = json.loads(example.read_text())
        as_texts.write_text(json.dumps({q: list(map(str, ids)) for q, ids in content.items()}))
        checked = ["--split", split, "--check", str(example), str(as_texts)]
        assert command.main(["submit", "circo", str(data), *checked]) == 0
        out = capsys.readouterr().out
        assert out.count(f"answers all {queries} queries of {split}") == 2
        assert out.count("image_info_unlabeled2017.json") == 1
