"""A new data set is one file, a protocol and a config: the smallest one, read, judged, prepared.

What stands between the two lines is all that such a data set needs.
"""

import ast
import pathlib

import fake_data
import pytest
import tensorflow_datasets as tfds
from small import small_config

from cmap_jax.cli import command
from cmap_jax.evaluation import submission
from cmap_jax.protocols import PROTOCOLS, AnswerFile, Protocol, Submission
from input_pipeline import create_datasets, prepared, storage
from input_pipeline.builders.base import ImageConfig, make_builder
from input_pipeline.doctor.examine import examine
from input_pipeline.readers.data_set import Count, DataSet
from input_pipeline.reading import read_folder
from input_pipeline.records import Evaluation, FixedTriplets, Image, Query, Records, Triplet
from input_pipeline.registry import DATA_SETS

# ------------------------------------------------------------------------------------------------
PROTOCOL = Protocol(
    name="squares",
    gallery="all squares",
    captions="one",
    correct="the row's target",
    metrics=("R@1",),
    headline=("R@1",),
)


def read(directory: str, image_directory: str | None = None) -> Records:
    """Read ``squares.txt``, a reference, a target and a text in each line."""
    file = storage.join(directory, "squares.txt")
    rows = [line.split(" ", 2) for line in storage.read_text(file).splitlines()]
    ids = tuple(dict.fromkeys(image for row in rows for image in row[:2]))
    queries = tuple(
        Query(
            id=str(number),
            reference=reference,
            captions=(text,),
            targets=(target,),
            category="all",
            annotation=str(number),
        )
        for number, (reference, target, text) in enumerate(rows)
    )
    return Records(
        name="squares",
        layout="squares.txt",
        image_directory=image_directory or directory,
        train=FixedTriplets(tuple(Triplet(*row[:2], (row[2],)) for row in rows)),
        evaluations={"val": (Evaluation(PROTOCOLS["squares"], {"all": ids}, queries),)},
        vocabulary_captions=tuple(row[2] for row in rows),
        images={i: Image(i, storage.join(image_directory or directory, i)) for i in ids},
    )


DATA_SET = DataSet(
    name="squares",
    aliases=("square",),
    read=read,
    description="Squares of random colors.",
    mark=r"squares\.txt",
    training_files="squares.txt",
    counts=lambda records, _: [Count.compare("rows", len(records.train), 7)],
    submission=Submission(
        split="val",
        server="https://squares.example",
        query="row",
        image_type=str,
        max_bytes=1_000,
        files=(
            AnswerFile(
                name="rows.json", header={}, ranking="top", count=2, candidates="of the squares"
            ),
        ),
    ),
)


def squares_config():
    """Return what ``configs/squares.py`` would."""
    config = small_config()
    config.data.name = "squares"
    config.data.resize, config.data.crop = 40, 32
    config.train.batch_size = config.eval.batch_size = 2
    return config


# ------------------------------------------------------------------------------------------------


OWN_FOLDERS = ("readers", "garments")  # with the files of single data sets


@pytest.fixture
def squares(tmp_path, monkeypatch):
    """A folder with the data set, which the table lists for one test."""
    monkeypatch.setitem(DATA_SETS, "squares", DATA_SET)
    monkeypatch.setitem(PROTOCOLS, "squares", PROTOCOL)
    folder = tmp_path / "data"
    for i in range(4):
        fake_data.image(folder / f"{i}.png", i)
    (folder / "squares.txt").write_text("0.png 1.png is red\n1.png 2.png is blue\n2.png 3.png is")
    return folder


def test_no_other_file_knows_a_data_set_by_name():
    """Texts of the code, apart from docstrings, name none; "folder" is a word as well."""
    root = pathlib.Path(storage.__file__).parents[1]
    files = [
        *(p for p in (root / "input_pipeline").rglob("*.py") if p.parent.name not in OWN_FOLDERS),
        *(root / "cmap_jax" / "evaluation").rglob("*.py"),
        *(root / "cmap_jax" / "cli" / f"{name}.py" for name in ("doctor", "submit", "show")),
    ]
    names = {*DATA_SETS, *(a for d in DATA_SETS.values() for a in d.aliases)} - {"folder"}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant):
                assert node.value not in names, f"{path}, line {node.lineno}"


def test_it_is_trained_and_evaluated_on(squares):
    config = squares_config()
    config.data.directory = str(squares)
    datasets = create_datasets(config)
    (batch,) = datasets.train.batches(0, 1)
    assert batch["reference_image"].shape == (2, 32, 32, 3)
    val = datasets.evaluations["val"]
    assert [e.protocol.name for e in val.evaluations] == ["squares"]
    assert sum(int(b["mask"].sum()) for b in val.image_batches()) == 4
    (squares / "squares.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"squares\.txt"):
        create_datasets(config)


def test_the_doctor_examines_it(squares, capsys):
    assert command.main(["doctor", "square", str(squares)]) == 0
    page = capsys.readouterr().out
    assert "squares in " in page
    assert "rows: 4 fewer." in page
    assert "3 of 3 triplets usable" in page
    (finding,) = examine("shoes", str(squares)).findings
    assert finding.fix == f"what lies there looks like cmap doctor squares {squares}"
    (squares / "3.png").write_bytes(b"")
    (finding,) = [f for f in examine("squares", str(squares)).findings if f.severity == "error"]
    assert finding.fix.startswith("download these files again")


def test_it_is_prepared(squares, tmp_path):
    builder = make_builder(DATA_SET)(
        data_dir=str(tmp_path / "prepared"),
        config=ImageConfig(name="small", encoding="png", resize=40),
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(squares))
    )
    assert builder.info.description == "Squares of random colors."
    raw = read_folder("squares", str(squares))
    found = prepared.read(str(builder.data_path), "squares")
    assert list(found.images) == list(raw.images)
    assert found.train == raw.train
    assert found.evaluations == raw.evaluations


def test_its_server_is_answered(squares, capsys):
    (evaluation,) = read_folder("squares", str(squares)).evaluations["val"]
    rankings = [{"query": q.id, "top": [*q.targets, "0.png"]} for q in evaluation.queries[1:]]
    rankings.append({"query": "0", "top": ["1.png", "2.png", "3.png"]})
    files = submission.make_submission(DATA_SET.submission, rankings)
    submission.write_submissions(squares / "out", files)
    check = ["submit", "squares", str(squares), "--check", str(squares / "out" / "rows.json")]
    assert command.main(check) == 0
    assert "answers all 3 queries of val, by the rules" in capsys.readouterr().out
    files["rows.json"]["1"] = ["1.png", "2.png"]
    with pytest.raises(ValueError, match=r"^row 1: has its own reference '1\.png'$"):
        submission.check_submission(DATA_SET.submission, files["rows.json"], evaluation)
