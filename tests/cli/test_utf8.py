"""Paths and texts of any language under an ASCII locale, and paths whose bytes are no UTF-8."""

import os
import subprocess
import sys

import pytest
from command_line import ROOT

from cmap_jax import files

_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("name", ["kleidung-\u00fc-\u670d", os.fsdecode(b"no-utf8-\xff")])
def test_a_command_prints_and_opens_any_path(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    command = [sys.executable, "-m", "cmap_jax.cli.command", "compare", name, name]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | _ASCII, capture_output=True)
    said = done.stderr.decode()
    assert done.returncode == 1
    shown = name if name.isprintable() else "no-utf8-\\udcff"
    assert f"{shown} was not evaluated yet: cmap evaluate '{shown}'" in said
    assert "Traceback" not in said


def test_json_keeps_paths_that_are_no_utf8(tmp_path):
    content = {"directory": os.fsdecode(b"/data/\xff"), "words": "r\u00f8d"}
    files.write_json(tmp_path / "a.json", content)
    assert files.read_json(tmp_path / "a.json") == content
