"""Comparisons of what may be compared, and refusals of the rest."""

import dataclasses
import json

import numpy as np
import pytest

from cmap_jax.cli import command
from cmap_jax.evaluation.compare import compare
from cmap_jax.evaluation.outcomes import Outcomes, summarize
from cmap_jax.evaluation.results import EvaluationFacts, ProtocolResult, Result
from cmap_jax.evaluation.results_file import StoredResults, read_results, with_intervals
from cmap_jax.facts import DataFacts
from cmap_jax.files import write_json
from cmap_jax.protocols import PROTOCOLS


def _write(path, seed=0, names=("shoes",), skipped=(), version=None, **conditions):
    """Write an evaluation.json of 200 annotations."""
    results = {}
    for name in names:
        version = version or PROTOCOLS[name].version
        protocol = dataclasses.replace(PROTOCOLS[name], version=version)
        ranks = np.random.default_rng(seed).integers(0, 30 * (seed + 1), 200)
        outcomes = Outcomes({"all": 200}, np.arange(200), ranks)
        results[name] = ProtocolResult(
            protocol=protocol,
            numbers=summarize(protocol, outcomes) | {"gallery_images": 50},
            outcomes=outcomes,
            conditions={"version": version, "gallery": "abc", "queries": "def", **conditions},
        )
    facts = EvaluationFacts(data_set=DataFacts(skipped_images=skipped))
    stored = StoredResults(7, with_intervals(Result(results)), facts)
    write_json(path, stored.to_dict())
    return path


def test_differences_and_table(tmp_path, capsys):
    a = _write(tmp_path / "a.json", 1, names=("shoes", "fashion200k"))
    b = _write(tmp_path / "b.json", 0)
    found = compare(read_results(a), read_results(b))["shoes"]["R@10"]
    assert found.first < found.second
    assert found.interval[0] < found.second - found.first < found.interval[1]
    assert found.is_significant()
    assert command.main(["compare", str(a), str(b)]) == 0
    printed = capsys.readouterr().out
    assert "shoes" in printed
    assert "Only a.json has fashion200k." in printed
    assert f"{found.second - found.first:+.2f}" in printed
    assert command.main(["compare", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shoes"]["R@10"]["second"] == found.second


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"names": ("fashion200k",)}, "share no protocol: shoes against fashion200k"),
        ({"gallery": "other"}, "shoes: different galleries"),
        ({"queries": "other"}, "shoes: different queries"),
        ({"skipped": ("x.jpg",)}, "different images were skipped, 0 against 1; .*x.jpg"),
        ({"version": 1}, r"shoes: measured under different rules \(versions 2 and 1\)"),
    ],
)
def test_refusals(tmp_path, second, message, capsys):
    a, b = _write(tmp_path / "a.json"), _write(tmp_path / "b.json", **second)
    with pytest.raises(ValueError, match=message):
        compare(read_results(a), read_results(b))
    assert command.main(["compare", str(a), str(b)]) == 1
    assert capsys.readouterr().out == ""


def test_results_of_old_rules_are_refused(tmp_path):
    """Files of before ties were counted can be read, and are refused by the protocol's name."""
    old = [_write(tmp_path / name, version=1) for name in ("a.json", "b.json")]
    for path in old:
        content = json.loads(path.read_text())
        del content["outcomes"]["shoes"]["tied"]
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="shoes: both measured under version 1 of its rules"):
        compare(*map(read_results, old))


def test_files_that_are_none(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"protocols": {"shoes": {}}}')
    for name, message in (("a.json", "no evaluation.json of this version"), ("b.json", "b.json")):
        assert command.main(["compare", str(tmp_path / name), str(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err


def _workdirs(tmp_path, *seeds):
    """Workdirs named a, b, ... with results of these seeds."""
    folders = []
    for name, seed in zip("abcd", seeds, strict=False):
        folders.append(str(tmp_path / name))
        (tmp_path / name).mkdir()
        _write(tmp_path / name / "evaluation.json", seed)
    return folders


def test_workdirs_or_files_two_or_more(tmp_path, capsys):
    folders = _workdirs(tmp_path, 1, 0, 2)
    file = _write(tmp_path / "a" / "evaluation-circo.json", 0, names=("shoes", "fashion200k"))
    assert command.main(["compare", *folders, str(file)]) == 0
    printed = capsys.readouterr().out
    header, *rows = printed.splitlines()
    last = "a/evaluation-circo.json"
    columns = ["shoes", "a"]
    for name in ("b", "c", last):
        columns += [name, "difference", "95%", "interval"]
    assert header.split() == columns
    (recall,) = (row.split() for row in rows if row.split()[:1] == ["R@10"])
    found = [read_results(f"{folder}/evaluation.json") for folder in folders]
    one = found[0].result.protocols["shoes"].numbers["R@10"]
    assert recall[1] == f"{one:.2f}"
    for other in found[1:]:  # each against the first
        number = other.result.protocols["shoes"].numbers["R@10"]
        at = recall.index(f"{number:.2f}")
        assert recall[at + 1] == f"{number - one:+.2f}"
        difference = compare(found[0], other)["shoes"]["R@10"]
        low, high = difference.interval
        assert recall[at + 2 : at + 4] == [f"{low:+.2f}", f"{high:+.2f}"]
    assert "Differences from a with" in printed
    assert f"Only {last} has fashion200k." in printed
    assert command.main(["compare", *folders, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert list(plain) == ["b", "c"]
    third = found[2].result.protocols["shoes"].numbers["R@10"]
    assert plain["c"]["shoes"]["R@10"]["second"] == third


def test_columns_are_told_apart(tmp_path, capsys):
    for seed, name in enumerate(("x/run", "y/run", "z")):
        (tmp_path / name).mkdir(parents=True)
        _write(tmp_path / name / "evaluation.json", seed)
    paths = [f"{tmp_path}/{name}" for name in ("x/run/", "y/run/evaluation.json", "z", "x/run")]
    assert command.main(["compare", *paths]) == 0
    header = capsys.readouterr().out.splitlines()[0]
    for name in ("x/run ", "y/run ", "z ", "x/run (2) "):
        assert f"  {name}" in header + " "


def test_missing_results_get_a_line_each(tmp_path, capsys):
    (run,) = _workdirs(tmp_path, 0)
    unevaluated, empty = tmp_path / "new", tmp_path / "empty"
    unevaluated.mkdir()
    (unevaluated / "config.json").write_text("{}")
    empty.mkdir()
    paths = [run, str(unevaluated), str(empty), f"{tmp_path}/nowhere"]
    assert command.main(["compare", *paths]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        f"cmap: {unevaluated} was not evaluated yet: cmap evaluate {unevaluated}",
        f"{empty} is not a workdir: it has no config.json and no evaluation.json",
        f"{tmp_path}/nowhere: no such workdir or file of results",
    ]


def test_a_refusal_names_the_pair(tmp_path, capsys):
    paths = _workdirs(tmp_path, 0, 1)
    paths.append(str(_write(tmp_path / "old.json", 0, version=1)))
    assert command.main(["compare", *paths]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a and old.json: these results cannot be compared:" in printed.err
    assert "shoes" in printed.err
    assert "version" in printed.err
