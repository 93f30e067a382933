"""`cmap convert`: from the authors' file to a workdir that evaluates, loads and is fine-tuned."""

import json
import os
import subprocess
import sys

import pytest
from command_line import ROOT, run
from fake_data import fashion200k as write_fashion200k
from fake_data import fashion_iq as write_fashion_iq
from optional import require

torch = require("torch")

import argparse  # noqa: E402

import numpy as np  # noqa: E402
import torch_reference as tr  # noqa: E402

import cmap_jax  # noqa: E402
from cmap_jax.cli import command  # noqa: E402
from cmap_jax.processing.tokenizer import Vocabulary  # noqa: E402
from cmap_jax.training.check import check_config  # noqa: E402
from input_pipeline import create_datasets  # noqa: E402
from input_pipeline.readers import fashion_iq  # noqa: E402


def _released(path, words: int, data_name: str | None = "fashionIQ"):
    torch.manual_seed(0)
    model = tr.ReferenceModel(
        depth=18, width=4, embed_dim=8, word_dim=6, vocabulary_size=words
    ).eval()
    arguments = argparse.Namespace(**({} if data_name is None else {"data_name": data_name}))
    content = {
        "args": arguments,
        "epoch": 3,
        "best_score": {"val": torch.tensor(42.68)},
        "model": model.state_dict(),
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
    }
    torch.save(content, path)
    return model


def _vocabulary(data) -> Vocabulary:
    return Vocabulary.build(fashion_iq.read(str(data)).vocabulary_captions)


@pytest.mark.parametrize(
    "form",
    [
        "folder",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("text", "pickle", "list", "object")),
    ],
)
def test_convert_evaluate_and_load(tmp_path, form, capsys):
    data = write_fashion_iq(tmp_path / "data")
    vocabulary = _vocabulary(data)
    theirs = _released(tmp_path / "model_best.pth", len(vocabulary))
    suffix = {"text": "txt", "pickle": "pkl"}.get(form, "json")
    words = data if form == "folder" else tmp_path / f"vocab.{suffix}"
    if form == "text":
        vocabulary.write_file(words)
    elif form == "list":
        words.write_text(json.dumps(list(vocabulary.words)))
    elif form == "object":
        ids = {word: i for i, word in enumerate(vocabulary.words)}
        words.write_text(json.dumps(dict(sorted(ids.items()))))
    elif form == "pickle":
        from convert.test_release_vocabulary import write_pickle

        write_pickle(words, vocabulary.words)
    workdir = tmp_path / "released"
    arguments = ["--vocab", str(words), "--out", str(workdir)]
    assert command.main(["convert", str(tmp_path / "model_best.pth"), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "model_best.pth (epoch 3, best score val 42.68).\n" in printed
    assert "--mode=evaluate --workdir=" in printed
    facts = json.loads((workdir / "model.json").read_text())["facts"]
    assert facts["best_score"] == {"val": pytest.approx(42.68)}

    trained = cmap_jax.load(workdir)
    assert trained.tokenizer.words == vocabulary.words
    assert trained.protocol.name == "fashioniq/original"
    text = trained.encode_text([("is red", "is longer")])
    tokens, lengths = vocabulary.encode_batch([("is red", "is longer")])
    with torch.no_grad():
        expected = theirs.encode_text(torch.tensor(tokens).long(), torch.tensor(lengths).long())
    np.testing.assert_allclose(text, expected, atol=1e-5)


@pytest.mark.endurance
def test_evaluated_from_the_command_line_and_fine_tuned(tmp_path):
    data = write_fashion_iq(tmp_path / "data")
    _released(tmp_path / "model_best.pth", len(_vocabulary(data)))
    command_line = [sys.executable, "-m", "cmap_jax.cli.command", "convert", "model_best.pth"]
    done = subprocess.run(
        [*command_line, "--vocab", "data", "--out", "released"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where = "--config.data.directory=data"
    done = run("--mode=evaluate", "--workdir=released", where, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fashioniq/original" in done.stdout
    evaluation = json.loads((tmp_path / "released" / "evaluation.json").read_text())
    assert evaluation["protocols"]["fashioniq/val"]["queries"] == 24

    # No run can continue in it, and its files stay unchanged.
    config = f"--config={ROOT / 'configs' / 'fashioniq.py'}"
    done = run(config, where, "--workdir=released", cwd=tmp_path)
    assert done.returncode == 1
    assert "holds a converted model and no run" in done.stderr
    assert cmap_jax.load(tmp_path / "released").step == 0

    # Fine-tuning starts from the workdir, and from the checkpoint itself.
    small = [
        *("--config.model.embed_dim=8", "--config.model.image.resnet.width=4"),
        *("--config.model.text.gru.word_dim=6", "--config.model.image.resnet.depth=18"),
        *("--config.train.batch_size=8", "--config.train.epochs=1"),
    ]
    for source in ("released", "model_best.pth"):
        done = run(
            *(f"{config}:finetune,debug", where, *small, f"--config.init_from={source}"),
            *("--config.optimizer.learning_rate=0.", f"--workdir=from-{source}"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        tuned = cmap_jax.load(tmp_path / f"from-{source}")
        start = cmap_jax.load(tmp_path / "released")
        np.testing.assert_array_equal(tuned.encode_text(["is red"]), start.encode_text(["is red"]))


def test_refusals(tmp_path, capsys):
    data = write_fashion_iq(tmp_path / "data")
    words = len(_vocabulary(data))
    path = tmp_path / "model_best.pth"

    def refused(*arguments: str) -> str:
        assert command.main(["convert", str(path), "--out", str(tmp_path / "out"), *arguments]) == 1
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".cmap*"))
        return capsys.readouterr().err

    assert "model_best.pth: no such file" in refused("--vocab", str(data))
    os.mkfifo(path)
    assert "model_best.pth: is a pipe, not a regular file" in refused("--vocab", str(data))
    path.unlink()
    nowhere = str(data / "captions" / "cap.dress.train.json" / "out")
    assert "is a file, not a folder" in refused("--vocab", str(data), "--out", nowhere)
    _released(path, words + 1)
    message = refused("--vocab", str(data))
    assert f"gives {words} words" in message
    assert f"has {words + 1} rows" in message
    _released(path, words, data_name=None)
    assert "its args.data_name is None, none of fashionIQ, shoes, fashion200K" in refused(
        "--vocab", str(data)
    )
    _released(path, words, data_name="fashion200K")
    message = refused("--vocab", str(write_fashion200k(tmp_path / "f200k")))
    assert "they do not belong together" in message
    alone = write_fashion_iq(tmp_path / "alone")  # a data set for evaluation only
    for captions in (alone / "captions").glob("*.train.json"):
        captions.unlink()
    _released(path, words)
    assert f"{alone}: no training captions there" in refused("--vocab", str(alone))
    (tmp_path / "taken").mkdir()
    arguments = ["convert", str(path), "--vocab", str(data), "--out", str(tmp_path / "taken")]
    assert command.main(arguments) == 1
    assert "taken exists; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("words.json", json.dumps({"words": ["red"] * 5000})),
        ("words.json", json.dumps([f"word{i}" for i in range(5000)])),
        ("words.json", json.dumps({f"word{i}": i for i in range(5000)})),
        ("words.json", json.dumps(["<pad>", "<start>", "<and>", "<end>", "<unk>", "a"] * 5000)),
        ("words.json", '{"red": 0,' * 3000),
        ("words.txt", "red " * 5000),
        ("words.txt", "<html>" + "x" * 5000),
        ("words.txt", "\x01" * 5000),
        ("words.pkl", "c" + "x" * 5000 + "\ny\n."),
    ],
)
def test_a_vocabulary_of_another_form_gets_a_short_error(tmp_path, capsys, name, content):
    _released(tmp_path / "m.pth", 8)
    (tmp_path / name).write_text(content)
    arguments = ["--vocab", str(tmp_path / name), "--out", str(tmp_path / "out")]
    assert command.main(["convert", str(tmp_path / "m.pth"), *arguments]) == 1
    message = capsys.readouterr().err
    assert name in message
    assert len(message) < len(str(tmp_path / name)) + 300
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data_name", ["fashionIQ", "shoes", "fashion200K"])
def test_each_data_set_has_its_config(tmp_path, data_name):
    words = ["<pad>", "<start>", "<and>", "<end>", "<unk>", "red"]
    Vocabulary(words).write_file(tmp_path / "vocab.txt")
    _released(tmp_path / "m.pth", len(words), data_name)
    arguments = ["--vocab", str(tmp_path / "vocab.txt"), "--out", str(tmp_path / "out")]
    assert command.main(["convert", str(tmp_path / "m.pth"), *arguments]) == 0
    config = cmap_jax.load(tmp_path / "out").config
    check_config(config)
    with pytest.raises((ValueError, OSError), match="directory"):
        create_datasets(config)  # the reader exists; no folder is named
