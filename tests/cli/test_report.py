"""`cmap report`: evaluated where needed, complete, and without the data too."""

import json
import shutil

import pytest
from fake_data import cirr as write_cirr
from small import write_workdir

from cmap_jax.cli import command


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A workdir with its report, and the data."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_cirr(folder / "data")
    workdir = write_workdir(folder / "small", "cirr", "cirr/val")
    arguments = ["report", str(workdir), "--dir", str(data), "--count", "2"]
    assert command.main(arguments) == 0
    return workdir, data, (workdir / "report.html").read_text()


def test_a_report_has_all_of_its_parts(reported):
    workdir, data, page = reported
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    numbers = evaluation["protocols"]["cirr/val"]
    assert f"{numbers['R@5']:.2f}" in page
    for text in ("text alone", "image alone", "95% interval", "target_hard", "R_subset@3"):
        assert text in page
    assert "No published numbers are known to this library of cirr/val." in page
    assert "The workdir has no curves" in page
    assert f"The doctor&#x27;s verdict on {data}" in page
    assert "Heat maps of " in page
    overlap = evaluation["overlap"]["cirr/val"]
    assert f"{overlap['target_iou']:.3f}" in page
    assert page.count("data:image/jpeg;base64,") == 5
    assert "cpu" in page
    assert f"cmap evaluate {workdir} --dir {data} --shortcuts --rankings --overlap 64" in page
    names = {file.name for file in (workdir / "report").iterdir()}
    assert names == {"best.jpg", "worst.jpg", "random.jpg", "heatmap-1.jpg", "heatmap-2.jpg"}
    assert "![Queries of cirr/val" in (workdir / "report.md").read_text()


def test_complete_results_are_not_measured_again(reported, monkeypatch, capsys, tmp_path):
    workdir, data, _ = reported

    def evaluate(*_):
        raise AssertionError

    monkeypatch.setattr("cmap_jax.cli.run.evaluate", evaluate)
    out = tmp_path / "new" / "shown.html"
    arguments = ["report", str(workdir), "--dir", str(data), "--out", str(out)]
    assert command.main(arguments) == 0
    assert out.exists()
    assert (tmp_path / "new" / "shown" / "best.jpg").exists()
    # Rankings of another evaluation are not shown as those of this one.
    rankings = workdir / "rankings" / "cirr-val.jsonl"
    original = rankings.read_text()
    lines = [json.loads(line) for line in original.splitlines()]
    lines[0]["rank"] += 1
    rankings.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert command.main([*arguments, "--stored"]) == 0
    assert "There are no rankings of these results" in out.read_text()
    rankings.write_text(original)


def test_without_data_the_report_says_so(reported, capsys, tmp_path):
    workdir, *_ = reported
    out = tmp_path / "report.html"
    assert command.main(["report", str(workdir), "--out", str(out)]) == 0
    page = out.read_text()
    assert "The data could not be read when this report was written" in page
    assert "--dir" in page
    assert "data:image/jpeg" not in page
    assert "The data cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere is not a workdir"),
        (["RUN", "--out", "report.pdf"], "report.pdf: a report's name must end in .html"),
        (["RUN", "--dir", "/nowhere"], "/nowhere: no such folder"),
        (["RUN", "--count", "0"], "--count must be 1 or more"),
        (
            ["RUN", "--dir", "DATA", "--protocol", "shoes"],
            "--protocol shoes: this data set has cirr/val",
        ),
    ],
)
def test_refusals(reported, arguments, message, capsys):
    workdir, data, _ = reported
    names = {"RUN": str(workdir), "DATA": str(data)}
    assert command.main(["report", *(names.get(a, a) for a in arguments)]) == 1
    assert message in capsys.readouterr().err


def test_a_model_without_results_needs_an_evaluation(tmp_path, capsys):
    workdir = write_workdir(tmp_path / "small", "cirr", "cirr/val")
    arguments = ["report", str(workdir)]
    assert command.main([*arguments, "--stored"]) == 1
    assert "has no results of cirr yet: leave out --stored" in capsys.readouterr().err
    assert command.main(arguments) == 1
    assert "--dir" in capsys.readouterr().err
    assert not (workdir / "report.html").exists()


def test_results_of_other_data_are_measured_again(reported, tmp_path, capsys):
    workdir, data, _ = reported
    fewer = shutil.copytree(data, tmp_path / "fewer")
    (captions,) = fewer.rglob("cap*val*.json")
    captions.write_text(json.dumps(json.loads(captions.read_text())[:-2]))
    out = tmp_path / "shown.html"
    arguments = ["report", str(workdir), "--dir", str(fewer), "--out", str(out), "--count", "2"]
    assert command.main([*arguments, "--stored"]) == 0
    assert "Beware: the results of cirr/val are of other queries" in out.read_text()
    original = (workdir / "evaluation.json").read_bytes()
    assert command.main(arguments) == 0
    assert (
        "Evaluating, since the results of cirr/val are of other queries" in capsys.readouterr().out
    )
    (workdir / "evaluation.json").write_bytes(original)
