"""`cmap extract`, and runs on the features that it writes: the same losses, and refusals."""

import pathlib
import re
import shutil

import numpy as np
import pytest
from command_line import call
from fake_data import fashion_iq as write_fashion_iq
from stored_runs import assert_same, curves, results

import cmap_jax
from cmap_jax.cli import command, extract
from cmap_jax.cli.describe import step_flop_from_features
from cmap_jax.config_fields import FIELDS, Field, Kind
from configs import fashioniq
from input_pipeline.batching import TrainingData
from input_pipeline.features import description as description_lib
from input_pipeline.features.reading import FeatureFiles
from input_pipeline.features.writing import FeatureWriter

_CONFIG = """
from small import small_config

def get_config(argument=""):
    config = small_config(image_name="cells", image_frozen=True)
    config.model.text.vocabulary_size = None
    config.data.directory = "DIRECTORY"
    config.data.resize, config.data.crop = 40, 32
    config.data.augment = False
    config.train.epochs = 2
    config.train.log_every_steps = 1
    config.eval.batch_size = 16
    return config
"""


@pytest.fixture(scope="module", autouse=True)
def cells_fields():
    """Let the fields of the tests' own encoder be known to the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FIELDS, "model.image.cells.width", Field(kind=Kind.MODEL))
        patch.setattr(description_lib, "_MOST_ROWS", 10)
        yield


def _write_config(folder: pathlib.Path, data) -> str:
    path = folder / "config.py"
    path.write_text(_CONFIG.replace("DIRECTORY", str(data)))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_fashion_iq(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def config(data, tmp_path_factory):
    return _write_config(tmp_path_factory.mktemp("config"), data)


@pytest.fixture(scope="module")
def features(config, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("features") / "f32")
    arguments = ["extract", f"--config={config}", "--out", folder, "--dtype", "float32"]
    assert command.main(arguments) == 0
    return folder


@pytest.fixture(scope="module")
def from_pixels(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "pixels"
    done = call(f"--config={config}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def from_features(config, features, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "features"
    done = call(f"--config={config}", f"--workdir={workdir}", f"--config.data.features={features}")
    assert done.returncode == 0, done.stderr
    return workdir


def _losses(workdir) -> dict:
    return {
        key: values.pop() for key, values in curves(workdir).items() if key[0].startswith("loss/")
    }


def _assert_close(workdir, other, error: float) -> None:
    ours, theirs = _losses(workdir), _losses(other)
    assert ours.keys() == theirs.keys()
    assert {step for _, step in ours} == set(range(1, 7))
    for key, loss in ours.items():
        assert loss == pytest.approx(theirs[key], rel=error), key


@pytest.mark.slow
def test_losses_and_recalls_are_those_of_pixels(from_pixels, from_features):
    _assert_close(from_features, from_pixels, 2e-6)
    ours, theirs = results(from_features), results(from_pixels)
    assert ours["protocols"] == theirs["protocols"]
    assert "features" in ours["facts"]
    assert "features" not in theirs["facts"]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "error"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_losses_of_rounded_features_are_near(config, from_pixels, tmp_path, dtype, error):
    folder = f"{tmp_path}/features"
    assert command.main(["extract", f"--config={config}", "--out", folder, "--dtype", dtype]) == 0
    workdir = tmp_path / "run"
    flags = f"--config={config}", f"--workdir={workdir}", f"--config.data.features={folder}"
    assert call(*flags).returncode == 0
    _assert_close(workdir, from_pixels, error)


@pytest.mark.slow
def test_the_workdir_holds_a_whole_model(from_pixels, from_features, data, capsys):
    trained, other = cmap_jax.load(from_features), cmap_jax.load(from_pixels)
    images = [str(data / "images" / f"dval{i}.jpg") for i in range(3)]
    np.testing.assert_allclose(
        trained.encode_images(images), other.encode_images(images), atol=2e-5
    )
    before = results(from_features)
    assert command.main(["evaluate", str(from_features)]) == 0
    assert results(from_features)["protocols"] == before["protocols"]
    assert command.main(["evaluate", str(from_features), "--features="]) == 0
    assert "features" not in results(from_features)["facts"]
    assert results(from_features)["protocols"] == before["protocols"]


@pytest.mark.slow
def test_a_killed_run_on_features_ends_with_the_same_bits(
    config, features, from_features, tmp_path, monkeypatch
):
    whole = tmp_path / "whole"
    shutil.copytree(from_features, whole)
    shutil.copytree(features, tmp_path / "moved")
    batches = TrainingData.batches

    def killed(self, start, stop):
        for step, batch in enumerate(batches(self, start, stop), start):
            if step == 4:
                raise ValueError("killed")
            yield batch

    flags = (
        f"--config={config}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.features={tmp_path / 'moved'}",
    )
    with monkeypatch.context() as patch:
        patch.setattr(TrainingData, "batches", killed)
        assert "killed" in call(*flags).stderr
    other = tmp_path / "f16"
    arguments = ["extract", f"--config={config}", "--out", str(other), "--dtype", "float16"]
    assert command.main(arguments) == 0
    refused = call(*flags[:2], f"--config.data.features={other}")
    assert refused.returncode == 1
    assert re.search(r"run on other data: features was \w{8} and is \w{8}\. ", refused.stderr)
    assert call(*flags).returncode == 0
    command.main(["evaluate", str(tmp_path / "run")])
    command.main(["evaluate", str(whole)])
    assert_same(tmp_path / "run", whole)


def test_sizes_come_first_and_a_stopped_command_goes_on(
    config, features, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "features"
    arguments = ["extract", f"--config={config}", "--out", str(folder), "--dtype", "float32"]
    write, written = FeatureWriter.write, []

    def stopped(self, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, *rest)
        written.append(number)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "write", stopped)
        assert command.main(arguments) == 130
    shown = capsys.readouterr()
    # Two categories with 7 images in train and 8 in val; maps of 1 + 4 + 16 cells with 6 channels.
    assert "features  30 images of fashion_iq: high 1x1x6, mid 2x2x6, low 4x4x6, as fl" in shown.out
    assert "size      504 bytes an image, 15.1 kB in all; " in shown.out
    assert re.search(r"a training step of 8 triplets takes .* from them and .* as fast", shown.out)
    monkeypatch.setattr(
        FeatureWriter, "write", lambda self, n, *rest: (written.append(n), write(self, n, *rest))
    )
    assert command.main(arguments) == 0
    assert written == [0, 1, 2]
    out = capsys.readouterr().out
    assert f"--config.data.features={folder} --config.data.augment=false" in out
    assert FeatureFiles(str(folder)).identity == FeatureFiles(features).identity
    assert command.main(arguments) == 0
    assert written == [0, 1, 2]


def test_the_expected_speed_counts_every_step_of_a_loop():
    config = fashioniq.get_config("debug,clip_vit_b32")
    levels = {"high": (256,), "mid": (8, 8, 64), "low": (8, 8, 64)}
    flop = []
    config.model.text.clip.positions = 24  # fewer than the texts that are assumed else
    for config.model.text.clip.layers in (3, 30):
        flop.append(step_flop_from_features(config, levels))
    assert flop[1] > 2 * flop[0]


@pytest.mark.slow
def test_features_of_a_workdir(from_pixels, features, config, tmp_path, data, capsys):
    """Its frozen backbone is the one that the run started from."""
    folder = str(tmp_path / "features")
    arguments = ["extract", "--model", str(from_pixels), "--out", folder, "--dtype", "float32"]
    assert command.main(arguments) == 0
    assert FeatureFiles(folder).identity == FeatureFiles(features).identity
    assert f"Next: cmap evaluate {from_pixels} --features {folder}\n" in capsys.readouterr().out
    assert command.main(["evaluate", str(from_pixels), "--features", folder]) == 0
    assert results(from_pixels)["facts"]["features"] == FeatureFiles(folder).identity
    assert command.main(["evaluate", str(from_pixels)]) == 0


def test_images_that_fail_are_left_out(data, tmp_path, capsys):
    damaged = tmp_path / "data"
    shutil.copytree(data, damaged)
    file = damaged / "images" / "dtrain3.jpg"
    content = bytearray(file.read_bytes())
    counts = content.index(b"\xff\xc4") + 5  # a Huffman table, which only decoding reads
    content[counts : counts + 16] = b"\xff" * 16
    file.write_bytes(content)
    (damaged / "images" / "tval2.jpg").unlink()
    folder = str(tmp_path / "features")
    arguments = ["extract", f"--config={_write_config(tmp_path, damaged)}", "--out", folder]
    assert command.main(arguments) == 1
    assert "tval2.jpg: missing" in capsys.readouterr().err
    assert not pathlib.Path(folder).exists()
    assert command.main([*arguments, "--config.data.missing_images=skip"]) == 0
    files = FeatureFiles(folder)
    assert len(files.description.images) == 29
    assert set(files.description.images) - set(files.rows) == {"dtrain3"}
    assert "holds the features of 28 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.image.frozen=false"], "frozen=False trains the backbone"),
        (["--config.model.image.name=resnet"], "by each batch's statistics; --config.model.image"),
        (
            ["--config.model.image.depth=18"],
            "config.model.image.depth is now config.model.image.resnet.depth",
        ),
        (["--config.data.crop=abc"], "config.data.crop takes a whole number, not 'abc'"),
        (["--config.data.crop=33"], "config.data.crop must be a positive multiple of 32"),
        (["--config.init_from=/nowhere"], "config.init_from: /nowhere: no such workdir"),
        (["--config.data.directory=/nowhere"], "/nowhere"),
        (["--dtype=float8"], "invalid choice: 'float8'"),
        (["--outt=x"], "did you mean --out"),
    ],
)
def test_refusals(data, tmp_path, capsys, arguments, message):
    folder = tmp_path / "features"
    config = _write_config(tmp_path, data)
    line = ["extract", f"--config={config}", "--out", str(folder)]
    try:
        status = command.main([*line, *arguments])
    except SystemExit as ended:  # argparse
        status = ended.code
    assert status in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error
    assert not folder.exists()


def test_a_full_disk_and_a_folder_in_use_are_refused_first(config, tmp_path, capsys, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["extract", f"--config={config}", "--out"]
    assert command.main([*arguments, str(tmp_path)]) == 1
    assert "holds other files; name a new folder" in capsys.readouterr().err
    monkeypatch.setattr(extract, "_free", lambda folder: 1000)
    assert command.main([*arguments, str(tmp_path / "features")]) == 1
    error = capsys.readouterr().err
    assert "7.6 kB are still to be written, and 1.0 kB are free; name a folder on" in error
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.seed=1"], r"another image encoder; its weights is \w{16}, and this model's is"),
        (["--config.data.augment=true"], "set --config.data.augment=false"),
        (["--config.model.image.frozen=false"], "set --config.model.image.frozen=true"),
        (["--config.model.image.cells.width=7"], "its width is 6, and this model's is 7"),
    ],
)
def test_runs_that_do_not_fit_are_refused_before_data_are_read(
    config, features, tmp_path, monkeypatch, flags, message
):
    def create_datasets(*_, **__):
        raise AssertionError("data were read")

    monkeypatch.setattr("input_pipeline.create_datasets", create_datasets)
    workdir = tmp_path / "run"
    done = call(
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.data.features={features}",
        *flags,
    )
    assert done.returncode == 1
    assert re.search(message, done.stderr.strip().splitlines()[-1]), done.stderr
    assert not workdir.exists()


@pytest.mark.slow
def test_an_evaluation_on_features_of_other_weights_is_refused(
    from_pixels, config, tmp_path, capsys
):
    folder = str(tmp_path / "features")
    assert command.main(["extract", f"--config={config}", "--config.seed=1", "--out", folder]) == 0
    assert command.main(["evaluate", str(from_pixels), "--features", folder]) == 1
    assert "was made by another image encoder; its weights is" in capsys.readouterr().err
    assert command.main(["evaluate", str(from_pixels), "--features", "/nowhere"]) == 1
    error = capsys.readouterr().err
    assert "/nowhere holds no features" in error
    assert error.strip().endswith("or read the images with --features=")
