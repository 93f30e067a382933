"""`cmap index`: what it prints and writes, updates, refusals before any long work, and kills."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from command_line import QUICK_TO_COMPILE, ROOT
from fake_data import image as write_picture
from optional import require
from small import write_workdir

import cmap_jax
from cmap_jax.cli import command
from cmap_jax.cli import index as index_command
from cmap_jax.models.composers import Halves
from cmap_jax.retrieval.index_files.form import generations
from cmap_jax.retrieval.index_files.reading import StoredIndex

_COUNT = 12


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    return write_workdir(tmp_path_factory.mktemp("models") / "shop", "folder", "folder/val")


@pytest.fixture
def shop(tmp_path) -> pathlib.Path:
    for number in range(_COUNT):
        write_picture(tmp_path / "shop" / "sub" / f"{number:02}.jpg", number)
    return tmp_path / "shop"


def _index(*arguments) -> int:
    return command.main(["index", *map(str, arguments)])


def test_from_a_folder_to_an_index_and_an_update(workdir, shop, tmp_path, capsys):
    index = tmp_path / "index"
    (shop / "broken.png").write_text("no picture")
    assert _index("--model", workdir, "--images", shop, "--out", index, "--dtype", "int8") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"pictures   13 of {shop}"
    assert lines[1] == f"index      {index}: 12 images of 3 x 8 numbers as int8, 0.0 MB in all"
    assert lines[2].startswith("embedded   12 in ")
    assert lines[3].startswith("loss       rounded embeddings are off by 0.")
    report = f"{index}/generation-000001/unreadable.jsonl"
    assert lines[4] == (
        f"unreadable 1 of the pictures, which are not in the index; {report} has the reasons, such "
        f"as {shop}/broken.png: not an image: no known format"
    )
    assert lines[5] == f"next       cmap search {index} --image FILE --text CAPTION"
    assert len(lines) == 6
    halves = [Halves(image=True, text=True, both=True), Halves(image=True, text=False, both=False)]
    halves.append(Halves(image=False, text=True, both=False))
    shown = [index_command._next(takes, "my index") for takes in halves]
    assert shown == [
        f"cmap search 'my index' {query}"
        for query in ("--image FILE --text CAPTION", "--image FILE", "--text CAPTION")
    ]
    stored = StoredIndex(index)
    assert stored.manifest.model == str(workdir)
    stored.check_model(cmap_jax.load(workdir).fingerprint, "the same")
    # The model of an update is the index's own.
    (shop / "broken.png").unlink()
    (shop / "sub" / "03.jpg").unlink()
    write_picture(shop / "new.webp", 100)
    assert _index("--images", shop, "--out", index, "--update") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("embedded   1 in ")
    assert lines[2].endswith(", 11 known, 1 dropped")
    assert "unreadable" not in "".join(lines)
    ids = [item.id for item in StoredIndex(index).items]
    assert ids == ["new.webp", *(f"sub/{n:02}.jpg" for n in range(_COUNT) if n != 3)]


def test_a_list_with_metadata(workdir, shop, tmp_path, capsys):
    (tmp_path / "list.jsonl").write_text(
        '{"id": "b", "image": "sub/01.jpg", "color": "red"}\n{"id": "a", "image": "sub/00.jpg"}\n'
    )
    arguments = ("--model", workdir, "--list", tmp_path / "list.jsonl", "--images", shop)
    assert _index(*arguments, "--out", tmp_path / "index") == 0
    stored = StoredIndex(tmp_path / "index")
    assert [item.id for item in stored.items] == ["b", "a"]
    assert list(stored.column("color")) == ["red", None]
    # The folder alone has no metadata, and a list without the ids names other images.
    capsys.readouterr()
    update = ("--images", shop, "--out", tmp_path / "index", "--update")
    assert _index(*update) == 1
    error = capsys.readouterr().err
    assert f"index has color, which a list brought, and {shop} has none; give its own" in error
    (tmp_path / "other.csv").write_text("image,color\nsub/01.jpg,red\nsub/00.jpg,blue\n")
    assert _index(*update, "--list", tmp_path / "other.csv") == 1
    error += capsys.readouterr().err
    assert "has ids such as 'b' (of" in error
    assert "but such as 'sub/01.jpg'; give its own --list" in error
    assert error.count("\n") == 2
    assert StoredIndex(tmp_path / "index").manifest == stored.manifest
    assert _index(*update, "--list", tmp_path / "list.jsonl") == 0
    assert "embedded   0 in " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no pictures: give --images DIR, or --list FILE, or both"),
        (("--images", "{shop}"), "--model WORKDIR is needed"),
        (("--images", "{shop}", "x"), "unexpected 'x': pictures are named by --images"),
        (("--images", "{shop}", "--", "--region=x"), "unexpected '--region=x'"),
        (("--images", "{shop}", "--set", "a=1"), "--set is for the backend that --backend names"),
        (("--images", "{shop}", "--model", "{shop}"), "is not a workdir"),
        (("--images", "{shop}/none", "--model", "{model}"), "there is no such folder of pictures"),
        (("--list", "{shop}/x.csv", "--model", "{model}"), "x.csv: No such file"),
        (("--images", "{shop}", "--backend", "fast"), "there is no backend 'fast'"),
    ],
)
def test_mistakes(workdir, shop, tmp_path, capsys, arguments, message):
    arguments = [a.format(shop=shop, model=workdir) for a in arguments]
    needed = ["--model", workdir] if "--backend" in arguments else []
    # Flags of Beam come last.
    assert _index("--out", tmp_path / "index", *needed, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("cmap: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "index").exists()


def test_a_folder_of_other_files(workdir, shop, tmp_path, capsys):
    assert _index("--model", workdir, "--images", shop, "--out", shop) == 1
    assert "holds other files; name a new folder" in capsys.readouterr().err


def test_without_beam(workdir, shop, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "apache_beam"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    arguments = ("--model", workdir, "--images", shop, "--out", tmp_path / "index")
    assert _index(*arguments, "--runner", "DirectRunner") == 1
    assert "pip install 'cmap_jax[prepare]'" in capsys.readouterr().err


def _start(*arguments, **variables: str) -> subprocess.Popen:
    folders = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    environment = {**os.environ, "PYTHONPATH": folders, "XLA_FLAGS": QUICK_TO_COMPILE, **variables}
    # The module `small` registers the image encoder of the tests.
    code = "import sys, small; from cmap_jax.cli.command import main; sys.exit(main())"
    command_ = [sys.executable, "-c", code, "index", *map(str, arguments)]
    return subprocess.Popen(command_, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_runner_with_a_flag_of_its_own(tmp_path):
    """Without a network, the DirectRunner runs in this process, and not in one that it loads."""
    require("apache_beam")
    workdir = write_workdir(tmp_path / "model", "folder", "folder/val")
    for number in range(3):
        write_picture(tmp_path / "shop" / f"{number}.png", number)
    arguments = ("--model", workdir, "--images", tmp_path / "shop", "--out", tmp_path / "index")
    flags = ("--runner", "DirectRunner", "--", "--direct_running_mode=multi_threading")
    no_network = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "localhost"}
    no_network["HOME"] = str(tmp_path)  # where Beam keeps what it has loaded
    assert _start(*arguments, *flags, **no_network).wait(300) == 0
    stored = StoredIndex(tmp_path / "index")
    stored.verify()
    assert len(stored) == 3


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    """SIGKILL at several moments of an update: the old index is whole, and then the new one."""
    workdir = write_workdir(tmp_path / "model", "folder", "folder/val", image_name="resnet")
    shop, index = tmp_path / "shop", tmp_path / "index"
    for number in range(8):
        write_picture(shop / f"{number}.png", number)
    arguments = ("--model", workdir, "--images", shop, "--out", index, "--update")
    assert _start(*arguments).wait(300) == 0
    for number in range(8, 400):
        write_picture(shop / f"{number}.png", number)
    for seconds in (0.0, 0.3, 1.0):
        begun = len(generations(index))
        process = _start(*arguments)
        while len(generations(index)) == begun and process.poll() is None:
            time.sleep(0.02)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stored = StoredIndex(index)
        stored.verify()
        assert len(stored) in (8, 400)
    assert _start(*arguments).wait(300) == 0
    stored = StoredIndex(index)
    stored.verify()
    assert len(stored) == 400
    # The unfinished generations are gone; the one before the last is left for servers.
    assert len(generations(index)) <= 2
