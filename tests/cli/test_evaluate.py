"""`cmap evaluate`, and evaluation on another data set than the model's own."""

import dataclasses
import json
import shutil

import pytest
from fake_data import circo as write_circo
from fake_data import cirr as write_cirr
from fake_data import fashion_iq as write_fashion_iq
from PIL import Image
from small import write_workdir

from cmap_jax.cli import command, flags, from_workdir
from cmap_jax.cli.results_table import results_table
from cmap_jax.evaluation.results import Result
from cmap_jax.evaluation.results_file import StoredResults, read_results
from cmap_jax.facts import DataFacts, UnreadTexts
from cmap_jax.visualization import grids
from cmap_jax.workdir import description as workdir


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_workdir(tmp_path_factory.mktemp("runs") / "small", "cirr", "cirr/val")


def test_table_file_and_picture(trained, tmp_path, capsys, monkeypatch):
    data = write_cirr(tmp_path / "data")
    drawn = []
    draw = grids.results_grid
    titles = []

    def results_grid(rows, title):
        drawn.extend(rows)
        titles.append(title)
        return draw(rows, title)

    monkeypatch.setattr("cmap_jax.evaluation.pictures.results_grid", results_grid)
    arguments = ["evaluate", str(trained), "--dir", str(data)]
    grid = tmp_path / "pictures" / "grid.png"
    assert command.main([*arguments, "--shortcuts", "--grid", str(grid), "--count", "3"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((trained / "evaluation.json").read_text())
    numbers = found["protocols"]["cirr/val"]
    assert f"{numbers['mean(R@5, R_subset@1)']:.2f}" in printed
    for text in ("R_subset@3", "95% interval", "text alone", "image alone"):
        assert text in printed
    assert found["shortcuts"]["cirr/val"].keys() == {"text", "image"}
    # Its vocabulary has "is red longer has a no" of the 15 words.
    unknown = ("v", "neck", "darker", "and", "shiny", "sleeves")
    assert found["facts"]["unread_texts"]["cirr/val"] == {
        "unknown_words_percent": pytest.approx(40),
        "most_frequent_unknown": dict.fromkeys(unknown, 1),
        "wordless_captions_percent": 0,
    }
    assert "cirr/val: the model does not know 40% of the words, such as v, neck, dark" in printed
    low, high = found["intervals"]["cirr/val"]["R@5"]
    assert low <= numbers["R@5"] <= high

    with Image.open(grid) as picture:
        assert picture.width > 500
    headline = ", ".join(
        f"{name} {numbers[name]:.2f}" for name in ("R@5", "R_subset@1", "mean(R@5, R_subset@1)")
    )
    assert titles == [f"small (cmap, step 0) · cirr/val · {headline}"]
    records = [
        json.loads(line)
        for line in (trained / "rankings" / "cirr-val.jsonl").read_text().split("\n")[:-1]
    ]
    assert len(drawn) == 3
    for row in drawn:
        record = next(r for r in records if r["reference"] == row.names[0])
        assert list(row.names[1:]) == record["top"][:8]
        assert [right for _, right in row.results] == [
            i in record["targets"] for i in record["top"][:8]
        ]
        assert row.rank == record["rank"]

    # Asked again without shortcuts: those of the same variables and data are kept.
    assert command.main(arguments) == 0
    assert "text alone" in capsys.readouterr().out
    again = json.loads((trained / "evaluation.json").read_text())
    assert again["shortcuts"] == found["shortcuts"]

    # On another data set: beside, not over.
    data = write_circo(tmp_path / "circo")
    before = (trained / "evaluation.json").read_bytes()
    assert command.main(["evaluate", str(trained), "--data", "circo", "--dir", str(data)]) == 0
    assert "circo/val" in capsys.readouterr().out
    assert (trained / "evaluation.json").read_bytes() == before
    other = json.loads((trained / "evaluation-circo.json").read_text())
    assert list(other["protocols"]) == ["circo/val"]
    assert other["facts"]["data"]["directory"] == str(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere is not a workdir"),
        (["RUN", "--data", "coco"], "no data set 'coco'; there are fashion_iq"),
        (["RUN", "--data", "circo"], "config.data.directory is not set"),
        (["RUN", "--data", "circo"], "annotations, --dir ..."),
        (["RUN", "--dir", "/nowhere"], "/nowhere: no such folder; set --dir"),
        (["RUN", "--protocol", "cirr/val"], "give --grid FILE too"),
        (["RUN", "--grid", "g.png", "--protocol", "cirr"], "called 'cirr', but fashioniq/original"),
        (["RUN", "--grid", "grid.gif"], "grid.gif"),
        (["RUN", "--dir", "CIRR", "--captions", "one"], "leave out --captions one"),
        (["RUN", "--grid", "grid.png", "--count", "0"], "--count must be 1 or more"),
    ],
)
def test_refusals(trained, arguments, message, capsys, tmp_path):
    if "CIRR" in arguments:
        write_cirr(tmp_path)
    names = {"RUN": str(trained), "CIRR": str(tmp_path)}
    arguments = [names.get(a, a) for a in arguments]
    assert command.main(["evaluate", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_near_names_are_as_in_the_config_or_accepted(trained, monkeypatch):
    asked = []

    def evaluate(config, workdir):
        asked.append(config.data.near_names)
        raise ValueError("stop here")

    monkeypatch.setattr("cmap_jax.cli.run.read_for_evaluation", evaluate)
    for flags_ in ([], ["--near-names"]):
        assert command.main(["evaluate", str(trained), *flags_]) == 1
    assert asked == ["fail", "accept"]


def test_main_takes_the_data_set_of_a_config_beside_a_workdir(trained):
    from command_line import ROOT

    circo = ROOT / "configs" / "circo.py"
    argv = ["main.py", "--mode=evaluate", f"--config={circo}", f"--workdir={trained}"]
    (config,) = (a for a in flags._with_workdir_config(argv) if a.startswith("--config="))
    config = from_workdir.get_config(config.partition(":")[2])
    assert config.data.name == "circo"
    assert config.data.directory is None
    assert config.model.embed_dim == from_workdir.get_config(str(trained)).model.embed_dim
    # The workdir's own data set keeps its folder.
    own = from_workdir.read(str(trained), str(ROOT / "configs" / "cirr.py"))
    assert own.data == from_workdir.get_config(str(trained)).data


def test_what_was_left_out_is_printed(trained):
    stored = read_results(trained / "evaluation.json")
    cirr = stored.result.protocols["cirr/val"]
    cirr = dataclasses.replace(
        cirr, numbers={**cirr.numbers, "skipped": 2}, shortcuts={**cirr.shortcuts, "text": None}
    )
    unread = {
        name: UnreadTexts(
            unknown_words_percent=percent,
            most_frequent_unknown={"navy": 2},
            wordless_captions_percent=lost,
        )
        for name, percent, lost in (("a/val", 0.0, 0.0), ("b/x", 1.01, 60.0), ("b/y", 1.01, 0.0))
    }
    facts = dataclasses.replace(
        stored.facts,
        data_set=DataFacts(skipped_images=("a", "b", "c"), categories_missing=("shirt",)),
        unread_texts=unread,
    )
    printed = results_table(StoredResults(stored.step, Result({"cirr/val": cirr}), facts))
    assert "b/x, b/y: the model does not know 1% of the words, such as navy: it" in printed
    assert "b/x: no word is left of 60% of the captions" in printed
    assert "a/val" not in printed
    assert "3 images were unusable and left out" in printed
    assert "cirr/val: 2 queries have no image to find" in printed
    assert "No shirt: means over the other categories" in printed
    (row,) = (line for line in printed.splitlines() if "text alone" in line)
    assert set(row.split()) == {"text", "alone", "-"}


def test_a_grid_of_any_protocol_and_images_left_out(tmp_path, capsys, monkeypatch):
    run = write_workdir(tmp_path / "run", "fashion_iq", "fashioniq/original")
    data = write_fashion_iq(tmp_path / "data")
    titles = []
    monkeypatch.setattr(
        "cmap_jax.cli.evaluate.queries_grid", lambda _, __, title: titles.append(title)
    )
    monkeypatch.setattr("cmap_jax.cli.evaluate.save", lambda *_: None)
    (data / "images" / "dval0.jpg").unlink()
    arguments = ["evaluate", str(run), "--dir", str(data), "--grid", str(tmp_path / "g.png")]
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert "set --images to the folder" in error
    assert "leave these out with --skip-unusable." in error
    assert "--config" not in error
    assert command.main([*arguments, "--protocol", "cirr/val", "--skip-unusable"]) == 1
    assert "this data set has fashioniq/original, fashioniq/val," in capsys.readouterr().err
    assert not (run / "evaluation.json").exists()
    joined = "fashioniq/original-joined"
    assert command.main([*arguments, "--protocol", joined, "--skip-unusable"]) == 0
    printed = capsys.readouterr().out
    assert f"queries under {joined} with" in printed
    assert "1 images were unusable and left out" in printed
    numbers = json.loads((run / "evaluation.json").read_text())["protocols"][joined]
    (title,) = titles
    assert title.startswith(f"run (cmap, step 0) · {joined} · R@10 {numbers['R@10']:.2f}, ")
    assert title.endswith(f", mR {numbers['mR']:.2f}")


def test_an_unfinished_run_says_where_it_stands(trained, tmp_path, monkeypatch):
    """And one that has saved nothing is refused before its data are read."""
    assert workdir.unfinished(trained) is None  # no run
    run = shutil.copytree(trained, tmp_path / "run")
    about = json.loads((run / "model.json").read_text())
    about["facts"] = {"training_items": 41}
    (run / "model.json").write_text(json.dumps(about))
    config = workdir.read_config(run)
    config.train.epochs, config.train.batch_size = 3, 8
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    monkeypatch.setattr(workdir, "saved_steps", lambda *_: [10, 5])
    assert workdir.unfinished(run) == (10, 15)  # five batches an epoch, of 41 items
    monkeypatch.setattr(workdir, "saved_steps", lambda *_: [10, 15])
    assert workdir.unfinished(run) is None


def test_a_run_that_has_saved_nothing(trained, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "best")
    monkeypatch.setattr("input_pipeline.datasets.read_records", lambda _: pytest.fail("was read"))
    assert command.main(["evaluate", str(run), "--dir", str(tmp_path)]) == 1
    assert f"{run} has no checkpoint yet: its run has not reached" in capsys.readouterr().err
