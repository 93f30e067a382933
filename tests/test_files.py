"""Paths as people type them."""

import os
import pathlib
import re
import socket

import pytest
from etils import epath

from cmap_jax.files import (
    check_regular_file,
    check_regular_files,
    expand,
    is_remote,
    read_bytes,
    read_json,
    read_text,
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home and a variable, and the current folder elsewhere."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CMAP_TEST_DATA", "/data")
    monkeypatch.setenv("CMAP_TEST_INSIDE_HOME", "~/inside")
    monkeypatch.delenv("CMAP_TEST_UNSET", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return str(tmp_path / "home")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("~", "{home}"),
        ("~/runs/x", "{home}/runs/x"),
        ("$CMAP_TEST_DATA/fashion-iq", "/data/fashion-iq"),
        ("${CMAP_TEST_DATA}2/x", "/data2/x"),
        ("gs://bucket$CMAP_TEST_DATA", "gs://bucket/data"),
        ("$CMAP_TEST_INSIDE_HOME/x", "{home}/inside/x"),
        ("a/~/b", "a/~/b"),
        ("./~x", "./~x"),
        ("plain/100%", "plain/100%"),
        ("cost$", "cost$"),
        ("", ""),
    ],
)
def test_expand(home, path, expected):
    assert expand(path) == expected.format(home=home)
    assert expand(expand(path)) == expand(path)


def test_is_remote():
    assert is_remote("gs://a")
    assert is_remote(epath.Path("gs://a/b"))
    assert not is_remote("a/b")
    assert not is_remote(pathlib.Path("/a"))


def test_one_place_knows_what_is_remote():
    root = pathlib.Path(__file__).parents[1]
    sources = [p for part in ("cmap_jax", "input_pipeline") for p in (root / part).rglob("*.py")]
    knowing = [
        p.relative_to(root) for p in sources if re.search(r'"://"\s+(not )?in', p.read_text())
    ]
    assert knowing == [pathlib.Path("cmap_jax/files.py")]


def test_what_does_not_exist_is_named(home):
    with pytest.raises(ValueError, match=r"^\$CMAP_TEST_UNSET/x: the variable CMAP_TEST_UNSET is"):
        expand("$CMAP_TEST_UNSET/x")
    with pytest.raises(ValueError, match=r"the variable CMAP_TEST_UNSET is not set"):
        expand("${CMAP_TEST_UNSET}/x")
    with pytest.raises(ValueError, match="there is no user ~nobody-of-that-name"):
        expand("~nobody-of-that-name/x")


def test_a_file_that_is_called_so_is_meant(home):
    for name in ("$CMAP_TEST_UNSET", "~nobody-of-that-name"):
        pathlib.Path(name).touch()
        assert expand(name) == name
    # A mark that can be expanded is never taken literally, even where a folder "~" exists.
    os.makedirs("~/runs")
    assert expand("~/runs") == f"{home}/runs"


def _pipe(path):
    os.mkfifo(path)


def _device(path):
    path.symlink_to("/dev/zero")


def _socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)  # a socket's path must be short


@pytest.mark.parametrize(
    ("make", "kind"), [(_pipe, "a pipe"), (_device, "a device"), (_socket, "a socket")]
)
def test_only_regular_files_are_read(make, kind, tmp_path, monkeypatch):
    """Anything else could wait for ever, or have no end."""
    path = tmp_path / "below" / "file"
    path.parent.mkdir()
    monkeypatch.chdir(path.parent)
    make(path)
    for read in (check_regular_file, read_bytes, read_text, read_json):
        with pytest.raises(ValueError, match=f"{path}: is {kind}, not a regular file"):
            read(path)
    with pytest.raises(ValueError, match=f"{path}: is {kind}"):
        check_regular_files(tmp_path)


def test_links_to_regular_files_are_read(tmp_path):
    (tmp_path / "file").write_text("[1]")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nothing")
    assert read_json(tmp_path / "link") == [1]
    check_regular_files(tmp_path)
    for name in ("dangling", "nothing", "file/below"):
        with pytest.raises(OSError, match=name):
            read_bytes(tmp_path / name)
