"""`cmap doctor`: the page, the JSON and the exit status."""

import json

import fake_data
from subword_files import write_clip_pairs

from cmap_jax.cli import command
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.processing.tokenizers import TOKENIZERS


def test_page_of_clean_data(tmp_path, capsys):
    root = fake_data.fashion_iq(tmp_path)
    # The data set by its own name, and as the config file is called.
    for name in ("fashion_iq", "fashioniq"):
        assert command.main(["doctor", name, str(root)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"fashion_iq in {root}"
        assert "images    30 of 30 usable" in "\n".join(lines)
        assert lines[-1].startswith("ready for training")
        assert not any(line.startswith("error") for line in lines)
        assert any(line.startswith("Looked at 30 files in ") for line in lines)
        assert not any("skip would" in line for line in lines)


def test_page_of_damaged_data(tmp_path, capsys):
    root = fake_data.fashion_iq(tmp_path)
    for number in range(5):
        (root / "images" / f"dtrain{number}.jpg").write_bytes(b"")
    assert command.main(["doctor", "fashion_iq", str(root)]) == 1
    page = capsys.readouterr().out
    assert page.splitlines()[-1] == "training would fail: 5 images of zero bytes"
    assert f"{root}/images/dtrain0.jpg\n" in page
    assert "... and 2 more" in page
    assert "remedy: download these files again" in page
    assert "skip would leave out 5 images, 5 of 12 training triplets and the" in page
    # The worst comes first.
    severities = [line.split()[0] for line in page.splitlines() if "  " in line[:9]]
    order = [s for s in severities if s in ("error", "warning", "note")]
    assert order == sorted(order, key=("error", "warning", "note").index)


def test_json(tmp_path, capsys):
    root = fake_data.shoes(tmp_path)
    victim = root / "womens_clogs" / "0" / "img_womens_clogs_50.jpg"
    victim.unlink()
    vocabulary = tmp_path / "vocabulary.txt"
    Vocabulary.build(["is red"]).write_file(vocabulary)
    arguments = ["doctor", "shoes", str(root), "--json", "--vocabulary", str(vocabulary)]
    assert command.main(arguments) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] is False
    assert report["images"] == {"total": 17, "usable": 16}
    kinds = {finding["kind"]: finding for finding in report["findings"]}
    assert kinds["missing"]["items"][0].endswith(victim.name)
    assert len(kinds["unknown_word"]["items"]) == kinds["unknown_word"]["count"]
    assert report["protocols"][0]["name"] == "shoes"


def test_texts_are_checked_against_a_published_tokenizer(tmp_path, capsys):
    """Given as CLIP's file, or as the folder of a model that has it."""
    root = fake_data.shoes(tmp_path / "data")
    path = root / "relative_captions_shoes.json"
    entries = json.loads(path.read_text())
    entries[0]["RelativeCaption"] = "is red " * 60
    path.write_text(json.dumps(entries))
    source = write_clip_pairs(tmp_path)
    TOKENIZERS["clip"].from_data(str(source), (), ()).save(tmp_path / "run")
    stored = {"model": {"text": {"tokenizer": "clip"}}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    for given in (source, tmp_path / "run"):
        assert command.main(["doctor", "shoes", str(root), "--tokenizer", str(given)]) == 0
        page = capsys.readouterr().out
        assert "warning  1 text longer than 77 tokens" in page
        assert "not in the vocabulary" not in page


def test_images_elsewhere(tmp_path, capsys):
    root = fake_data.fashion_iq(tmp_path / "data")
    (root / "images").rename(tmp_path / "pictures")
    assert command.main(["doctor", "fashion_iq", str(root)]) == 1
    assert "--images DIR" in capsys.readouterr().out
    pictures = ["--images", str(tmp_path / "pictures")]
    assert command.main(["doctor", "fashion_iq", str(root), *pictures]) == 0


def test_unreadable_annotations(tmp_path, capsys):
    assert command.main(["doctor", "cirr", str(tmp_path / "none"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["findings"][0]["title"].endswith("no such folder; set the argument DIR")
    assert command.main(["doctor", "cirr", str(tmp_path)]) == 1
    page = capsys.readouterr().out.splitlines()
    assert page[0] == f"cirr in {tmp_path}"
    assert page[-1].startswith("training would fail: ")
    assert len(page) == 6


def test_wrong_arguments(tmp_path, capsys):
    assert command.main(["doctor", "moda", str(tmp_path)]) == 1
    assert "no data set 'moda'; there are fashion_iq" in capsys.readouterr().err
    root = fake_data.shoes(tmp_path)
    words = tmp_path / "words.txt"
    words.write_text("red\n")
    assert command.main(["doctor", "shoes", str(root), "--vocabulary", str(words)]) == 1
    assert f"{words}: not a vocabulary file" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_an_argument(capsys):
    assert command.main(["doctor", "shoes", "/nowhere"]) == 1
    printed = capsys.readouterr().out
    assert "error    /nowhere: no such folder; set the argument DIR\n" in printed
    assert "--config" not in printed
