"""Temporaries of processes that were killed are removed, and those of living ones are not."""

import os
import subprocess
import sys
import time

import pytest
from command_line import ROOT
from etils import epath

from cmap_jax import files, temporaries

# Begins a result in a temporary, says so, and waits to be killed.
_CHILD = """
import sys, time
from cmap_jax import files
make = {"file": files.scratch_file, "folder": files.complete_folder}[sys.argv[1]]
with make(sys.argv[2]) as scratch:
    if sys.argv[1] == "folder":
        files.write_text(scratch / "below" / "part", "half")
    print(scratch, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_process_leaves_nothing_for_ever(tmp_path, kind):
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, kind, str(tmp_path / "result")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    try:
        left = epath.Path(child.stdout.readline().strip())
        files.write_text(tmp_path / "other", "")
        assert left.exists()  # its process is at work
    finally:
        child.kill()
        child.communicate()
    assert left.exists()
    files.write_text(tmp_path / "other", "")
    assert sorted(os.listdir(tmp_path)) == ["other"]


def _of_another_machine(folder) -> epath.Path:
    path = epath.Path(folder) / ".cmap-00000000-01234567.tmp"
    path.mkdir()
    (path / "part").write_text("half")
    return path


def test_another_machines_are_left_in_peace_for_a_day(tmp_path):
    path = _of_another_machine(tmp_path)
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(path, (long_ago, long_ago))
    temporaries.remove_abandoned(tmp_path)
    assert path.exists()  # a part of it is new
    os.utime(path / "part", (long_ago, long_ago))
    temporaries.remove_abandoned(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("name", [".result.01234567.tmp", ".cmap-x.tmp", "a.tmp", ".cmap"])
def test_other_programs_files_are_never_touched(tmp_path, name):
    (tmp_path / name).write_text("")
    os.utime(tmp_path / name, (0, 0))
    temporaries.remove_abandoned(tmp_path)
    assert (tmp_path / name).exists()


def test_without_locks_age_decides(tmp_path, monkeypatch):
    """As on a file system or an operating system that has none."""

    def fail(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(temporaries.fcntl, "flock", fail)
    with files.scratch_file(tmp_path / "a") as scratch:
        files.write_text(tmp_path / "b", "")
        assert scratch.exists()
        os.utime(scratch, (0, 0))
        files.write_text(tmp_path / "b", "")
        assert not scratch.exists()
    monkeypatch.setattr(temporaries, "fcntl", None)
    files.write_text(tmp_path / "b", "new")
    assert os.listdir(tmp_path) == ["b"]


def test_one_that_another_takes_for_abandoned_is_made_again(tmp_path, monkeypatch):
    """Between its making and its lock, another process may remove it."""
    lock, removed = temporaries._lock, []

    def remove_first(path):
        if not removed:
            removed.append(path)
            path.unlink()
        return lock(path)

    monkeypatch.setattr(temporaries, "_lock", remove_first)
    files.write_text(tmp_path / "a", "text")
    assert len(removed) == 1
    assert (tmp_path / "a").read_text() == "text"


def test_an_error_leaves_nothing(tmp_path):
    for make in (files.complete_folder, files.scratch_file):
        with pytest.raises(ValueError, match="a fault"), make(tmp_path / "a"):
            raise ValueError("a fault")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_empty_is_not_replaced(tmp_path):
    files.write_text(tmp_path / "a" / "kept", "")
    with pytest.raises(OSError, match="a"), files.complete_folder(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path / "a") == ["kept"]
