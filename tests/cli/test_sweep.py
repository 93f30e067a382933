"""`cmap sweep` on stand-ins for runs: tables, failed runs, settings, and mistakes."""

import json
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
from command_line import ROOT
from fake_results import random_ranks
from fake_sweep import MOST, starts_of, stored_of, sweep_in

from cmap_jax.cli import command
from cmap_jax.evaluation.over_seeds import SeededResults, compare_over_seeds


def _means():
    """Mean and half of the range of R@10 by variant, from the ranks themselves."""
    recalls = {
        v: [100 * np.mean(random_ranks(s + 10 * len(v), most) < 10) for s in range(3)]
        for v, most in MOST.items()
    }
    return {v: (np.mean(r), (max(r) - min(r)) / 2) for v, r in recalls.items()}


def test_a_sweep_and_its_table(results, tmp_path, capsys):
    folder = tmp_path / "sweep"
    assert sweep_in(folder) == 0
    printed = capsys.readouterr()
    assert "0 of 6 runs are complete" in printed.err
    assert printed.err.count("complete in") == 6
    assert set(starts_of(folder).values()) == {1}
    cells = {v: f"{mean:.1f} ± {half:.1f}" for v, (mean, half) in _means().items()}
    text = (folder / "table.md").read_text()
    head, _, first, second, oracle = text.splitlines()[:5]
    assert head == "| shoes | R@1 | R@10 | R@50 | mR | seeds | minutes |"
    assert first.split(" | ")[0:3:2] == ["| variant=cmap", cells["cmap"]]
    assert second.split(" | ")[0:3:2] == ["| variant=artemis", cells["artemis"]]
    assert second.split(" | ")[5] == "3"
    assert oracle.startswith("| (text oracle) |  | 12.5 |")
    methods = {}
    for variant in MOST:
        methods[variant] = SeededResults(variant)
        for seed in range(3):
            methods[variant].add(seed, stored_of(variant, seed))
    expected = compare_over_seeds(methods["cmap"], methods["artemis"])["shoes"]["R@10"]
    low, high = expected.interval
    gain = expected.second - expected.first
    assert f"| {gain:+.1f} ({low:+.1f} to {high:+.1f}) * |" in text
    figures = json.loads((folder / "table.json").read_text())
    row = figures["rows"][1]
    assert row["overrides"] == ["--config.model.variant=artemis"]
    assert row["differences"]["shoes"]["R@10"]["interval"] == list(expected.interval)
    assert row["numbers"]["shoes"]["R@10"]["mean"] == pytest.approx(_means()["artemis"][0])
    assert row["made_by"]["0"]["git_commit"] == "abc"
    assert 0 < row["seconds"]["0"] < 60
    assert figures["machine"]["devices"] == "1 x a processor"
    assert (folder / "plot.png").read_bytes() == b"2 rows"
    # The same command has nothing to do, and `cmap compare` prints the same table.
    assert sweep_in(folder) == 0
    again = capsys.readouterr()
    assert "6 of 6 runs are complete" in again.err
    assert set(starts_of(folder).values()) == {1}
    assert command.main(["compare", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == again.out.partition("\n\ntable.md")[0].strip()
    assert command.main(["compare", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == figures["rows"]
    # Two sweeps are one table, whose rows say from where they are.
    assert command.main(["compare", str(folder), str(folder)]) == 0
    assert "sweep (2)/variant=artemis" in capsys.readouterr().out
    for paths, message in (
        ([f"{folder}/variant=cmap/seed-0"], "with what?"),
        ([str(folder), f"{folder}/variant=cmap/seed-0"], "is no sweep, as the others are"),
    ):
        assert command.main(["compare", *paths]) == 1
        assert message in capsys.readouterr().err


def test_a_failed_run_does_not_hold_up_the_others(results, tmp_path, capsys):
    """It is named with its log's last line, and the same command takes it up again."""
    folder, missing = tmp_path / "sweep", results / "artemis-1.json"
    missing.rename(tmp_path / "kept.json")
    assert sweep_in(folder, "--seeds=2") == 1
    printed = capsys.readouterr()
    assert "failed: variant=artemis, seed 1: fake_run: no results for this run" in printed.err
    assert str(folder / "variant=artemis" / "seed-1.log") in printed.err
    assert "Not complete: variant=artemis, seed 1." in printed.out
    assert "A row has 1 seed" in printed.out
    (tmp_path / "kept.json").rename(missing)
    assert sweep_in(folder, "--seeds=2") == 0
    assert starts_of(folder) == {
        **{f"variant={v}/seed-0": 1 for v in MOST},
        **{"variant=cmap/seed-1": 1, "variant=artemis/seed-1": 2},
    }
    assert "Not complete" not in (folder / "table.md").read_text()
    # Rows and seeds can be added, and are not all run at once.
    capsys.readouterr()
    assert sweep_in(folder, "--only=variant=cmap") == 0
    assert "Not complete: variant=artemis, seed 2." in capsys.readouterr().out
    assert starts_of(folder)["variant=cmap/seed-2"] == 1
    assert sweep_in(folder, "--seeds=2") == 1
    assert "holds another sweep: seed is '2' there" in capsys.readouterr().err


_HYPER = """
from configs import garments

def get_config(arg=""):
    return garments.get_config(arg)

def get_hyper(hyper):
    weights = hyper.fixed("config.loss.preservation_weights", (0.0, 0.0, 0.0))
    without = hyper.product([hyper.fixed("name", "no loss"), weights])
    return hyper.chainit([hyper.fixed("name", "cmap"), without])
"""


def test_get_hyper_gives_the_rows(results, tmp_path, monkeypatch, capsys):
    file = tmp_path / "methods.py"
    file.write_text(_HYPER)
    monkeypatch.chdir(tmp_path)
    line = ["sweep", f"--config={file}:debug", "--seeds=1", "--vary=config.train.epochs=1,2"]
    assert command.main(line) == 0
    plan = json.loads((tmp_path / "runs" / "methods-debug-sweep" / "sweep.json").read_text())
    assert [row["name"] for row in plan["rows"]] == [
        *("cmap, epochs=1", "cmap, epochs=2"),
        *("no loss, epochs=1", "no loss, epochs=2"),
    ]
    flag = "--config.loss.preservation_weights=(0.0, 0.0, 0.0)"
    assert plan["rows"][2]["overrides"] == [flag, "--config.train.epochs=1"]
    for body, message in (
        ("return 3", "its get_hyper must return a list of dicts, not 3"),
        ("return hyper.nothing()", "raises AttributeError in line 8"),
        ("return [{}, {}]", "2 rows have the same name: methods"),
    ):
        capsys.readouterr()
        file.write_text(_HYPER.partition("    weights")[0] + f"    {body}\n")
        assert command.main(line[:3]) == 1
        assert message in capsys.readouterr().err


def test_the_commands_of_the_document(results, tmp_path, monkeypatch):
    """Each is run as it stands in docs/sweeps.md, and so is the config."""
    text = (ROOT / "docs" / "sweeps.md").read_text()
    monkeypatch.chdir(tmp_path)
    first, *compare = (
        shlex.split(line, comments=True)
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
        for line in block.splitlines()
    )
    assert first[:2] == ["cmap", "sweep"]
    assert command.main(first[1:]) == 0
    shutil.copytree("runs/garments-sweep", "runs/more-sweep")
    assert len(compare) == 3
    for line in compare:
        assert command.main(line[1:]) == 0, line
    pathlib.Path("mine.py").write_text(re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1])
    assert command.main(["sweep", "--config=mine.py", "--seeds=1", "--only=artemis"]) == 0
    plan = json.loads(pathlib.Path("runs/mine-sweep/sweep.json").read_text())
    assert [row["name"] for row in plan["rows"]] == [
        *("preservation_weights=(1.0, 1.0, 0.5), learning_rate=0.0005",),
        *("preservation_weights=(1.0, 1.0, 0.5), learning_rate=0.001",),
        *("preservation_weights=(0.0, 0.0, 0.0), learning_rate=0.0005",),
        *("preservation_weights=(0.0, 0.0, 0.0), learning_rate=0.001", "artemis"),
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds=0"], "--seeds must be 1 or more, not 0"),
        (["--config.seed=3"], "--seeds sets config.seed"),
        (["--vary=config.seed=1,2"], "config.seed is set by --seeds"),
        (["--vary=config.train.epoch=1"], "there is no field config.train.epoch; nearest"),
        (["--vary=config.train.epochs=1,x"], "variant=cmap, epochs=x, seed 0: config.train.epochs"),
        (["--vary=config.train.epochs=0"], "config.train.epochs must be 1 or more, not 0"),
        (["--config.model.variant=cmap"], "config.model.variant is varied: leave --config.model"),
        (["--only=cmap"], "--only 'cmap': there is no such row, but variant=cmap; variant=artemis"),
        (["--workdir=gs://bucket/sweep"], "a sweep's folder is on a disk of this machine"),
        (["--per-device"], "--per-device is for machines with GPUs or TPUs"),
    ],
)
def test_mistakes_are_answered_before_any_run(results, tmp_path, capsys, flags, message):
    folder = tmp_path / "sweep"
    assert sweep_in(folder, *flags) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not folder.exists()


def test_a_folder_of_something_else(results, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert sweep_in(tmp_path) == 1
    assert "holds a single run; name another folder" in capsys.readouterr().err
    sweep_folder = tmp_path / "sweep"
    (sweep_folder / "variant=cmap").mkdir(parents=True)
    (sweep_folder / "variant=cmap" / "seed-0.json").write_text('{"attempts": [3]}')
    assert sweep_in(sweep_folder) == 1
    assert "seed-0.json: is no record of a run" in capsys.readouterr().err
