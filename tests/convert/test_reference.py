"""The authors' checkpoints: the same values, no code run, errors that list what does not fit."""

import argparse
import collections
import os
import pathlib
import zipfile

import jax
import numpy as np
import pytest
from optional import require

torch = require("torch")

import torch_reference as tr  # noqa: E402

from cmap_jax import scoring  # noqa: E402
from cmap_jax.convert import load_reference_checkpoint  # noqa: E402
from cmap_jax.convert.reference import read_reference_checkpoint  # noqa: E402
from cmap_jax.convert.state_dict import Foreign, WeightsError, read_torch_file  # noqa: E402
from cmap_jax.models.cmap import CMAP  # noqa: E402

SIZES = {"vocabulary_size": 13, "width": 4, "embed_dim": 8, "word_dim": 6, "lstm_hidden": 7}


def release_file(path, *, parallel=False, namespace=None, numpy_numbers=False, **settings):
    """Write a checkpoint as the release's training script does; return the torch model too."""
    torch.manual_seed(0)
    model = tr.ReferenceModel(**{"depth": 50} | SIZES | settings)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    state = model.state_dict()
    state["temperature"] = state["temperature"].reshape(1)
    width = SIZES["embed_dim"]
    state["Transform_attention.0.weight"] = torch.zeros(width, width)
    state["Transform_attention.0.bias"] = torch.zeros(width)
    if parallel:
        state = {f"module.{name}": value for name, value in state.items()}
    arguments = argparse.Namespace(data_name="fashionIQ", lr=5e-4, use_bert=False, crop=None)
    content = {
        "args": namespace or arguments,
        "epoch": np.int64(7) if numpy_numbers else 7,
        "best_score": np.float64(42.5) if numpy_numbers else {"val": torch.tensor(42.68)},
        "model": state,
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
    }
    torch.save(content, path)
    return model.eval(), content


@pytest.mark.parametrize(
    ("encoder", "depth"),
    [
        *(("bigru", 18), ("lstm", 50)),
        *(
            pytest.param(encoder, depth, marks=pytest.mark.slow)
            for encoder, depth in (("bigru", 34), ("bigru", 50), ("lstm", 18), ("lstm", 34))
        ),
    ],
)
def test_the_same_model(tmp_path, encoder, depth):
    path = tmp_path / "model_best.pth"
    pooled = {"lstm_pool_padding": encoder == "lstm"}  # as released
    theirs, _ = release_file(path, depth=depth, text_encoder=encoder, **pooled)
    config, variables, vocabulary = load_reference_checkpoint(path)
    assert vocabulary is None
    assert (config.image.resnet.depth, config.image.resnet.width, config.embed_dim) == (depth, 4, 8)
    assert (config.text.name, config.text.vocabulary_size) == (encoder.removeprefix("bi"), 13)
    assert config.text[config.text.name].word_dim == 6
    assert config.text.lstm.pool_padding == (encoder == "lstm")
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype(np.float32)}

    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 64, 64, 3)).astype(np.float32)
    tokens = rng.integers(1, 13, (3, 5)).astype(np.int32)
    lengths = np.array([5, 2, 3], np.int32)
    model = CMAP.from_config(config)
    pyramid = model.apply(variables, images, method="encode_images")
    text = model.apply(variables, tokens, lengths, method="encode_text")
    query = model.apply(variables, pyramid, text, method="compose")
    with torch.no_grad():
        r = theirs.encode_images(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        m = theirs.encode_text(torch.from_numpy(tokens).long(), torch.from_numpy(lengths).long())
        expected = theirs.score(r, m, r)
    np.testing.assert_allclose(pyramid, r, atol=1e-5)
    np.testing.assert_allclose(text, m, atol=1e-5)
    np.testing.assert_allclose(scoring.score(query, pyramid), expected, atol=1e-5)
    assert float(variables["params"]["logit_scale"]) == pytest.approx(2.65926)


def test_dataparallel_and_numpy_numbers(tmp_path):
    release_file(tmp_path / "plain.pth", depth=18)
    numbers = argparse.Namespace(
        data_name="shoes", lr=np.float32(1e-3), steps=np.int32(3), seed=np.int64(1), on=np.bool_(1)
    )
    release_file(
        tmp_path / "parallel.pth", depth=18, parallel=True, namespace=numbers, numpy_numbers=True
    )
    plain = read_reference_checkpoint(tmp_path / "plain.pth")
    parallel = read_reference_checkpoint(tmp_path / "parallel.pth")
    jax.tree.map(np.testing.assert_array_equal, plain.variables, parallel.variables)
    assert (plain.epoch, plain.best_score) == (7, {"val": pytest.approx(42.68)})
    assert plain.left_out == parallel.left_out == ()
    assert (parallel.epoch, parallel.best_score) == (7, 42.5)
    assert plain.arguments["data_name"] == "fashionIQ"
    assert parallel.arguments["seed"] == 1


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The state dict of one of the authors' files."""
    return release_file(tmp_path_factory.mktemp("files") / "m.pth", depth=18)[1]["model"]


class Settings(dict):
    """An experiment library's arguments: a dict with attributes."""


class Recorder:
    """Something that a person's script kept beside the model."""

    def __init__(self):
        self.history = [1.0]


class Listed(list):
    """A subclass that torch's safe reader does not fill."""


_DATA_NAME = {"data_name": "shoes"}
_SETTINGS = Settings(_DATA_NAME)
_SETTINGS.frozen = True


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Missing, or of another form: nothing but the model is needed.
        (dict.fromkeys(("args", "epoch", "best_score", "optimizer")), ({}, None, None, 0)),
        ({"epoch": torch.tensor(3)}, (None, 3, None, 0)),
        ({"epoch": torch.ones(2), "best_score": torch.ones(2)}, (None, None, None, 0)),
        ({"epoch": "three", "best_score": "good"}, (None, None, None, 0)),
        ({"epoch": 10**400, "best_score": torch.tensor(1j)}, (None, None, None, 0)),
        ({"epoch": 2.0, "best_score": 41}, (None, 2, 41.0, 0)),
        ({"best_score": {"val": float("nan"), "test": 3, 0: [1]}}, (None, None, {"test": 3.0}, 0)),
        ({"best_score": {}}, (None, None, None, 0)),
        ({"args": dict(_DATA_NAME)}, (_DATA_NAME, None, None, 0)),
        # Classes of other programs: their items and attributes are read, nothing of them runs.
        ({"args": _SETTINGS}, ({**_DATA_NAME, "frozen": True}, None, None, 1)),
        ({"args": argparse.Namespace(out=pathlib.PurePosixPath("a"))}, (None, None, None, 1)),
        ({"args": collections.defaultdict(dict, _DATA_NAME)}, (_DATA_NAME, None, None, 2)),
        ({"recorder": Recorder(), "best_score": np.ones(2)}, (None, None, None, 3)),
    ],
)
def test_what_is_beside_the_model_does_not_matter(tmp_path, released, changes, expected):
    path = tmp_path / "model.pth"
    torch.save({**changes, "model": released}, path)
    found = read_reference_checkpoint(path)
    head = found.variables["params"]["image_encoder"]["head_high"]["kernel"]
    np.testing.assert_array_equal(head, released["img_enc.fc.weight"].T)
    arguments, epoch, best, left_out = expected
    assert (found.epoch, found.best_score, len(found.left_out)) == (epoch, best, left_out)
    if arguments is not None:
        assert found.arguments == arguments


def test_older_forms(tmp_path):
    """PyTorch's form before 1.6; and other protocols of pickle, which its safe reader lacks."""
    path = tmp_path / "model.pth"
    _, content = release_file(path, depth=18)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    found = read_reference_checkpoint(path)
    assert (found.epoch, found.best_score) == (7, {"val": pytest.approx(42.68)})
    content["args"].out = pathlib.PurePosixPath("a")
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(
        WeightsError, match=r"PurePosixPath was not an allowed .* tensors alone"
    ) as e:
        read_reference_checkpoint(path)
    assert "safe_globals" not in str(e.value)
    torch.save(content, path, pickle_protocol=4)
    with (
        pytest.warns(UserWarning, match="pickle protocol 4"),
        pytest.raises(
            WeightsError, match=r"operand 149\. Where you trust it, save its tensors alone"
        ),
    ):
        read_reference_checkpoint(path)


def test_what_stops_the_reader_is_named(tmp_path):
    path = tmp_path / "model.pth"
    _, content = release_file(path, depth=18)
    for changes, message in (
        (
            {"history": Listed([1])},
            "one that would run code: Can only .* lists.*save its tensors",
        ),
        ({"model": Recorder()}, r"model\.pth: .*Recorder. Save the state dict"),
        ({"model": {"img_enc.fc.weight": Recorder()}}, "holds other things than named tensors"),
    ):
        torch.save({**content, **changes}, path)
        with pytest.raises(WeightsError, match=message):
            load_reference_checkpoint(path)


def test_weights_that_are_not_finite_are_named(tmp_path):
    path = tmp_path / "diverged.pth"
    _, content = release_file(path, depth=18)
    content["model"]["img_enc.fc.weight"][2, 3] = float("nan")
    content["model"]["img_enc.cnn.bn1.running_var"][:2] = float("inf")
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"diverged\.pth: weights that are NaN or inf") as error:
        load_reference_checkpoint(path)
    assert "2 (img_enc.cnn.bn1.running_var (2 of 4), img_enc.fc.weight (1 of 256))" in str(
        error.value
    ) or "2 (img_enc.fc.weight (1 of 256), img_enc.cnn.bn1.running_var (2 of 4))" in str(
        error.value
    )


class Malicious:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


class Evaluated(Malicious):
    """Code in a text, whose function's module torch does not block."""

    def __reduce__(self):
        return (eval, (f"__import__('os').makedirs({self.path!r}, exist_ok=True)",))


@pytest.mark.parametrize("place", ["args", "epoch", "best_score", "optimizer", "extra"])
def test_code_beside_the_model_does_not_run(tmp_path, released, place):
    path, mark = tmp_path / "bad.pth", tmp_path / "mark"
    content = {"model": released, place: Evaluated(mark)}
    torch.save(content, path)
    assert read_reference_checkpoint(path).left_out == ("builtins.eval",)
    assert not mark.exists()
    content["model"] = {**content["model"], "img_enc.fc.weight": Evaluated(mark)}
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"would run code: .* names builtins\.eval"):
        load_reference_checkpoint(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_stand_ins_change_no_class(tmp_path):
    """Beside a stand-in too, a file cannot set attributes of a class that it may name."""
    path = tmp_path / "bad.pth"
    # Protocol 2: the class Namespace itself, built with the slots {"reached": 1}; then the same
    # for a name that a stand-in takes.
    for name in (b"argparse\nNamespace", b"somewhere\nThing"):
        code = b"\x80\x02c" + name + b"\nN}X\x07\x00\x00\x00reachedK\x01s\x86b."
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("bad/data.pkl", code)
            archive.writestr("bad/version", "3")
        with pytest.raises(WeightsError, match=r"bad\.pth"):
            read_torch_file(path, [argparse.Namespace], ["somewhere.Thing"])
    assert not hasattr(argparse.Namespace, "reached")
    assert not hasattr(Foreign, "reached")


@pytest.mark.parametrize("place", ["args", "model", "epoch"])
def test_nothing_of_a_file_runs(tmp_path, place):
    _, content = release_file(tmp_path / "good.pth", depth=18)
    mark = tmp_path / "mark"
    content[place] = Malicious(mark)
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad\.pth: not a file of weights, or one that would"):
        load_reference_checkpoint(tmp_path / "bad.pth")
    assert not mark.exists()
    # The check itself: with care switched off, the same file does run.
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert mark.exists()


def test_what_does_not_fit_is_listed(tmp_path):
    path = tmp_path / "model.pth"
    _, content = release_file(path, depth=18)
    state = content["model"]
    del state["img_enc.fc_512.bias"]
    state["img_enc.extra.weight"] = torch.zeros(1)
    state["img_enc.fc.weight"] = torch.zeros(8, 5)
    torch.save(content, path)
    with pytest.raises(WeightsError) as error:
        load_reference_checkpoint(path)
    message = str(error.value)
    assert "missing: 1 (img_enc.fc_512.bias)" in message
    assert "unexpected: 1 (img_enc.extra.weight)" in message
    assert "of another shape: 1 (img_enc.fc.weight (8, 5), not (8, 32))" in message

    torch.save({"epoch": 1, "state_dict": {}}, path)
    with pytest.raises(WeightsError, match="'model' is missing among the keys epoch, state_dict"):
        load_reference_checkpoint(path)
    torch.save({f"layer{i}.weight": torch.ones(1) for i in range(500)}, path)
    with pytest.raises(WeightsError, match=r"layer7\.weight, \.\.\.\. \(A ResNet"):
        load_reference_checkpoint(path)
    torch.save({"model": {"a": 1}}, path)
    with pytest.raises(WeightsError, match="names with tensors are expected"):
        load_reference_checkpoint(path)
    torch.save({"model": {}}, path)
    with pytest.raises(WeightsError, match=r"missing: \d+ \(.*temperature|missing: \d+"):
        load_reference_checkpoint(path)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        load_reference_checkpoint(tmp_path / "none.pth")
    path = tmp_path / "model.pth"
    release_file(path, depth=18)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"model\.pth"):
            load_reference_checkpoint(path)
    path.write_bytes(os.urandom(1000))
    with pytest.raises(WeightsError, match=r"model\.pth"):
        load_reference_checkpoint(path)
