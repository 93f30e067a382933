"""Folders and files, on the disk and in TensorFlow's in-memory file system, behave the same."""

import os
import re
import subprocess
import sys
import uuid

import fake_data
import pytest
import tensorflow as tf

from input_pipeline import storage

FILES = {
    "a.txt": "é\n".encode(),
    "b/c.json": b'\xef\xbb\xbf{"a": [1, 2]}',
    "b/d/e.txt": b"\xff\xfe",
    "z.txt": b"not JSON",
}


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    """A folder with `FILES` in it, here or there."""
    bucket = f"ram://test-{uuid.uuid4().hex}"
    root = bucket if request.param == "bucket" else str(tmp_path)
    for name, content in FILES.items():
        tf.io.gfile.makedirs(f"{root}/{name}".rpartition("/")[0])
        with tf.io.gfile.GFile(f"{root}/{name}", "wb") as file:
            file.write(content)
    yield root
    if request.param == "bucket":
        tf.io.gfile.rmtree(root)


def test_join():
    assert storage.join("a", "b", "c.jpg") == "a/b/c.jpg"
    assert storage.join("a/", "b") == "a/b"
    assert storage.join("gs://a/", "b") == "gs://a/b"
    # Never out of the folder, as os.path.join would go.
    assert storage.join("a", "/b") == "a//b"


def test_folders(place):
    assert storage.names(place) == ["a.txt", "b", "z.txt"]
    assert storage.names(f"{place}/b/") == ["c.json", "d"]
    assert storage.names(f"{place}/none") == storage.names(f"{place}/a.txt") == []
    assert storage.walk(place) == sorted(FILES)
    assert storage.walk(f"{place}/") == sorted(FILES)
    assert storage.walk(f"{place}/b") == ["c.json", "d/e.txt"]
    assert storage.walk(f"{place}/none") == []
    for name, folder, exists in (("b", True, True), ("a.txt", False, True), ("no", False, False)):
        assert storage.is_folder(f"{place}/{name}") == folder
        assert storage.exists(f"{place}/{name}") == exists
    assert storage.is_folder(place)
    assert storage.is_folder(f"{place}/")


def test_files(place):
    assert storage.read_bytes(f"{place}/b/d/e.txt") == FILES["b/d/e.txt"]
    assert storage.read_text(f"{place}/a.txt") == "é\n"
    assert storage.read_json(f"{place}/b/c.json") == {"a": [1, 2]}
    with storage.open_file(f"{place}/a.txt") as file:
        file.seek(1, os.SEEK_END)
        assert file.read() == b""
        file.seek(0)
        assert file.read(1) == b"\xc3"


@pytest.mark.parametrize(
    ("read", "name", "error", "message"),
    [
        (storage.read_bytes, "none.txt", FileNotFoundError, r"No such file .*none\.txt'"),
        (storage.read_bytes, "b", OSError, r"not a file: '.*/b'"),
        (storage.read_text, "b/d/e.txt", ValueError, r"e\.txt: not UTF-8 at byte 0"),
        (storage.read_json, "z.txt", ValueError, r"z\.txt: not JSON at line 1, column 1"),
    ],
)
def test_what_cannot_be_read(place, read, name, error, message):
    with pytest.raises(error, match=message) as raised:
        read(f"{place}/{name}")
    assert f"{place}/{name}" in str(raised.value)


def test_check_image(place):
    assert storage.check_image(f"{place}/none.jpg") == "missing"
    assert storage.check_image(f"{place}/b") == "not a file"
    assert storage.check_image(f"{place}/a.txt").startswith("not an image: ")


def test_what_would_never_end_is_not_read(tmp_path):
    pipe, huge, loop = (tmp_path / name for name in ("pipe", "huge", "loop"))
    os.mkfifo(pipe)
    huge.touch()
    os.truncate(huge, 1 << 40)
    loop.symlink_to(loop)
    for place, message in (
        (pipe, "not a file"),
        (huge, "1099511627776 bytes, the largest file read is 268435456"),
        (loop, "Too many levels of symbolic links"),
        ("/dev/zero", "not a file"),
    ):
        with pytest.raises(OSError, match=rf"{message}: '{re.escape(str(place))}'"):
            storage.read_text(str(place))
        assert storage.check_image(str(place)) in (message, f"unreadable: {message}")


def test_a_walk_follows_no_links_to_folders(tmp_path):
    fake_data.image(tmp_path / "elsewhere" / "1.jpg", 0)
    fake_data.image(tmp_path / "data" / "2.jpg", 0)
    (tmp_path / "data" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
    assert storage.walk(str(tmp_path / "data")) == ["2.jpg"]


@pytest.mark.parametrize(
    "read", [storage.exists, storage.is_folder, storage.names, storage.read_text]
)
def test_errors_of_tensorflow_are_errors_of_the_system(read):
    with pytest.raises(OSError, match="scheme 'nowhere' not implemented") as raised:
        read("nowhere://bucket/a.txt")
    assert "'nowhere://bucket/a.txt'" in str(raised.value)


def test_a_servers_answer_becomes_a_line(monkeypatch):
    def stat(_):
        raise tf.errors.PermissionDeniedError(None, None, "denied:\n\t<html>\n" + "x" * 10_000)

    monkeypatch.setattr(tf.io.gfile, "stat", stat)
    with pytest.raises(OSError, match="denied: <html> xxx") as raised:
        storage.read_text("gs://bucket/a.txt")
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 300
    assert storage.check_image("gs://bucket/a.txt").startswith("unreadable: denied: <html>")


def test_local_folders_need_no_tensorflow(tmp_path):
    fake_data.fashion_iq(tmp_path)
    code = (
        "import sys; from input_pipeline.images import check; "
        "from input_pipeline.registry import DATA_SETS; "
        "records = DATA_SETS['fashion_iq'].read(sys.argv[1]); "
        "assert check.check_images(records) == {}; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    root = os.path.dirname(os.path.dirname(storage.__file__))
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, cwd=root, check=False).returncode == 0
