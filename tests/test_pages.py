"""Commands in the documents: each is spelled as its parser wants it, and run or marked as not run.

A block of commands whose fence says `title="not run here"` is checked by the parsers alone. All
others in docs/ are run as they stand, here or in the test that `RUN_ELSEWHERE` names.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from absl import flags as absl_flags
from command_line import ROOT
from test_words import has_field

from cmap_jax.cli import command, flags
from cmap_jax.config_fields import FIELDS
from cmap_jax.protocols import PROTOCOLS
from configs import default
from input_pipeline.registry import DATA_SETS

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "CONTRIBUTING.md", "benchmarks/*.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
)
# The pages whose blocks run here, in this order and in one folder.
RUN_HERE = ("start", "data", "protocols", "configs", "heatmaps", "judged", "export")
RUN_ELSEWHERE = {"sweeps": "tests/cli/test_sweep.py"}
NOT_RUN = '```sh title="not run here"'
_OVERRIDE = re.compile(r"--config\.([\w.]+)=")


def blocks(text: str, languages: str = "sh") -> Iterator[tuple[str, str, str]]:
    """Yield language, the rest of the fence's line, and content of each block."""
    yield from re.findall(rf"^```({languages})\b(.*)\n((?s:.*?))^```", text, re.M)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each call of `cmap` or main.py in a block, its variables put in."""
    text = text.replace("\\\n", " ")
    variables = dict(re.findall(r'^(\w+)="(.*)"$', text, re.M))
    for name, value in variables.items():
        text = text.replace(f"${name}", value)
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        call: list[str] = []
        for word in (*lexer, ";"):
            if word and not set(word) - set("&;|"):
                yield from _known(call)
                call = []
            else:
                call.append(word)


def _known(call: list[str]) -> Iterator[list[str]]:
    for start in (["cmap"], ["python", "main.py"]):
        for i in range(len(call)):
            if call[i : i + len(start)] == start:
                yield [start[-1], *call[i + len(start) :]]
                return


def check(words: list[str]) -> None:
    """Refuse a command that its parser would refuse for its flags; no file needs to be there."""
    program, *rest = words
    if program == "main.py" or rest[:1] == ["train"]:
        check_flags(rest if program == "main.py" else rest[1:])
        return
    overrides = [word for word in rest if _OVERRIDE.match(word)]
    check_config(rest)
    plain = [word for word in rest if word not in overrides]
    assert plain[:1], "no subcommand"
    assert plain[0] in command._SUBCOMMANDS
    assert not overrides or plain[0] in command._TAKE_OVERRIDES
    command._parser(plain[:1]).parse_args(plain)


def check_flags(words: list[str]) -> None:
    """Refuse what main.py would refuse."""
    for word in words:
        if word in ("--help", "..."):
            continue
        name, _, value = word.removeprefix("--").partition("=")
        assert word.startswith("--"), f"{word}: no flag"
        if not name.startswith("config.") and name != "any.field":
            assert name in absl_flags.FLAGS, f"{word}: no such flag"
        if name == "mode":
            assert value in flags.MODES
    check_config(words)


def check_config(words: list[str]) -> None:
    """Refuse an unknown config file, an unknown word behind its colon, and unknown fields."""
    config = default.get_config()
    for word in words:
        file, _, argument = word.removeprefix("--config=").partition(":")
        if word.startswith("--config=configs/"):
            module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
            config = module.get_config(argument)
    for word in words:
        override = _OVERRIDE.match(word)
        if override and override[1] != "any.field":
            assert has_field(config, override[1]), f"{word}: no such field"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_are_spelled_as_their_parsers_want_them(document, capsys):
    offences = []
    for _, _, block in blocks((ROOT / document).read_text()):
        for words in commands(block):
            try:
                check(words)
            except (AssertionError, SystemExit, ValueError) as error:
                reason = str(error).partition("\n")[0]
                offences.append(f"{shlex.join(words)}: {reason} {capsys.readouterr().err[-200:]}")
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    ("block", "number", "fault"),
    [
        ("cmap evaluate runs/a --shortcut --x", 1, "x"),
        ("pip install -e . && python main.py --config=configs/garments.py:debg", 1, "debg"),
        (
            "A=1 cmap train --config=configs/shoes.py \\\n  --config.data.nme=a; cmap doctor",
            2,
            "nme",
        ),
        ("cmap compare runs/a   # cmap nothing --here", 1, None),
        ('F="--text red --k 3"\nfor i in 0 1; do cmap search I $F; done', 1, None),
    ],
)
def test_mistakes_are_found(block, number, fault):
    calls = list(commands(block))
    assert len(calls) == number
    if fault is None:
        check(calls[0])
    else:
        with pytest.raises((AssertionError, SystemExit, ValueError)):
            check(calls[0])


def test_every_command_is_run_or_marked():
    """A page with a block that no test runs must be marked, block by block."""
    marks = {"", NOT_RUN.removeprefix("```sh")}
    for document in DOCUMENTS:
        if not document.startswith("docs/"):
            continue
        name = document.removeprefix("docs/").removesuffix(".md")
        for _, mark, content in blocks((ROOT / document).read_text()):
            assert mark in marks, f"{document}: a mark has one form, {NOT_RUN}"
            if not mark:
                assert name in RUN_HERE or name in RUN_ELSEWHERE, f"{document}: {content}"


def test_the_config_of_the_page():
    text = (ROOT / "docs" / "configs.md").read_text()
    ((_, _, block),) = blocks(text, "python")
    names: dict = {}
    exec(compile(block, "docs/configs.md", "exec"), names)
    config = names["get_config"]("debug")
    assert config.model.variant == "artemis"
    assert config.data.directory == "data/garments_debug"


def test_the_table_of_fields(monkeypatch):
    """Each field has a row with its default, its comment, and its limits; parts have headings."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    tables = importlib.import_module("tables")
    text = tables.insert("Before.\n\n<!-- table: config -->\n\nAfter.\n")
    rows = {
        path: [cell.strip() for cell in rest.split(" | ")]
        for path, rest in re.findall(r"^\| `\w+`\{ #([\w.]+) \} \| (.*) \|$", text, re.M)
    }
    assert rows.keys() == FIELDS.keys()
    assert rows["train.batch_size"] == [
        "`128`",
        "triplets in the global batch; each has the others as negatives",
        "1 or more",
        "not when a run continues",
    ]
    assert rows["eval.captions"][::2] == ["none", "`one`, `concept`, or none"]
    assert rows["seed"][2] == "0 to 4,294,967,295"
    assert rows["loss.alpha"][1].startswith("Weight of the text in the preservation loss, 0 to 1;")
    assert "### `config.model.image.resnet`\n" in text
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    protocols = tables.insert("<!-- table: protocols -->")
    assert re.findall(r"^\| `(.+?)`", protocols, re.M) == list(PROTOCOLS)
    names = re.findall(r"^\| `(\w+)`", tables.insert("<!-- table: data sets -->"), re.M)
    assert names == list(DATA_SETS)
    with pytest.raises(KeyError, match="nothing"):
        tables.insert("<!-- table: nothing -->")


@pytest.mark.endurance
def test_the_pages(tmp_path):
    """Each block of `RUN_HERE` is run in bash or Python; a model of garments has several names."""
    shim = tmp_path / "bin" / "cmap"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m cmap_jax.cli.command "$@"\n')
    shim.chmod(0o755)
    folder = tmp_path / "here"
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "PATH": f"{shim.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    for name in RUN_HERE:
        for language, mark, content in blocks((ROOT / f"docs/{name}.md").read_text(), "sh|python"):
            if mark:
                continue
            shell = ["bash", "-euo", "pipefail"] if language == "sh" else [sys.executable]
            done = subprocess.run(
                [*shell, "-c", content],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=1200,
            )
            assert done.returncode == 0, f"{name}: {content}\n{done.stdout}\n{done.stderr}"
        if name == "start":  # the names that later pages have for a model, its data and pictures
            (folder / "runs" / "garments").symlink_to("garments-debug")
            (folder / "runs" / "fashioniq").symlink_to("garments-debug")
            (folder / "data" / "garments").symlink_to("garments_debug")
            pictures = sorted((folder / "data" / "garments" / "images").iterdir())
            for picture, copy in zip(pictures, ("dress.jpg", "red.jpg"), strict=False):
                shutil.copy(picture, folder / copy)
    for file in ("grid.png", "explain.png", "hits.png", "triplets.png"):
        assert (folder / file).stat().st_size > 1000
    assert (folder / "runs" / "short" / "evaluation.json").exists()
    assert (folder / "garments-cmap" / "model.safetensors").exists()
