"""`cmap evaluate`, and evaluation on another data set than the model's own."""

import json

import pytest
from fake_data import circo as write_circo
from fake_data import cirr as write_cirr
from PIL import Image
from small import write_workdir

from cmap_jax.cli import command, flags, tables
from cmap_jax.visualization import grids
from configs import from_workdir


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_workdir(tmp_path_factory.mktemp("runs") / "small", "cirr", "cirr/val")


def test_table_file_and_picture(trained, tmp_path, capsys, monkeypatch):
    data = write_cirr(tmp_path / "data")
    drawn = []
    draw = grids.results_grid
    monkeypatch.setattr(
        "cmap_jax.cli.evaluate.results_grid",
        lambda rows, title: drawn.extend(rows) or draw(rows, title),
    )
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
    low, high = found["intervals"]["cirr/val"]["R@5"]
    assert low <= numbers["R@5"] <= high

    with Image.open(grid) as picture:
        assert picture.width > 500
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
        (["RUN", "--grid", "grid.gif"], "grid.gif"),
        (["RUN", "--grid", "grid.png", "--count", "0"], "--count must be 1 or more"),
    ],
)
def test_refusals(trained, arguments, message, capsys):
    arguments = [str(trained) if a == "RUN" else a for a in arguments]
    assert command.main(["evaluate", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_near_names_are_as_in_the_config_or_accepted(trained, monkeypatch):
    asked = []

    def evaluate(config, workdir):
        asked.append(config.data.near_names)
        raise ValueError("stop here")

    monkeypatch.setattr("cmap_jax.cli.run.evaluate", evaluate)
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
    own = from_workdir.get_config(f"{trained}|{ROOT / 'configs' / 'cirr.py'}")
    assert own.data == from_workdir.get_config(str(trained)).data


def test_what_was_left_out_is_printed(trained):
    content = json.loads((trained / "evaluation.json").read_text())
    content["facts"] |= {"images_skipped": 3, "categories_missing": ["shirt"]}
    content["protocols"]["cirr/val"]["skipped"] = 2
    content["shortcuts"]["cirr/val"]["text"] = None
    printed = tables.results(content)
    assert "3 images were unusable and left out" in printed
    assert "cirr/val: 2 queries have no image to find" in printed
    assert "No shirt: means over the other categories" in printed
    (row,) = (line for line in printed.splitlines() if "text alone" in line)
    assert set(row.split()) == {"text", "alone", "-"}
