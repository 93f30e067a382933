"""The authors' checkpoints: the same values, no code run, errors that list what does not fit."""

import argparse
import os

import jax
import numpy as np
import pytest
from optional import require

torch = require("torch")

import torch_reference as tr  # noqa: E402

from cmap_jax import scoring  # noqa: E402
from cmap_jax.convert import load_reference_checkpoint  # noqa: E402
from cmap_jax.convert.reference import read_reference_checkpoint  # noqa: E402
from cmap_jax.convert.state_dict import WeightsError  # noqa: E402
from cmap_jax.models.cmap import CMAP  # noqa: E402

SIZES = {"vocabulary_size": 13, "width": 4, "embed_dim": 8, "word_dim": 6, "lstm_hidden": 7}


def release_file(path, *, parallel=False, namespace=None, **settings):
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
        "epoch": np.int64(7),
        "best_score": np.float64(42.5),
        "model": state,
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
    }
    torch.save(content, path)
    return model.eval(), content


@pytest.mark.parametrize("encoder", ["bigru", "lstm"])
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_the_same_model(tmp_path, encoder, depth):
    path = tmp_path / "model_best.pth"
    pooled = {"lstm_pool_padding": encoder == "lstm"}  # as released
    theirs, _ = release_file(path, depth=depth, text_encoder=encoder, **pooled)
    config, variables, vocabulary = load_reference_checkpoint(path)
    assert vocabulary is None
    assert (config.image.depth, config.image.width, config.embed_dim) == (depth, 4, 8)
    assert (config.text.encoder, config.text.vocabulary_size, config.text.word_dim) == (
        encoder,
        13,
        6,
    )
    assert config.text.lstm_pool_padding == (encoder == "lstm")
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
    release_file(tmp_path / "parallel.pth", depth=18, parallel=True, namespace=numbers)
    plain = read_reference_checkpoint(tmp_path / "plain.pth")
    parallel = read_reference_checkpoint(tmp_path / "parallel.pth")
    jax.tree.map(np.testing.assert_array_equal, plain.variables, parallel.variables)
    assert (plain.epoch, plain.best_score) == (7, 42.5)
    assert plain.arguments["data_name"] == "fashionIQ"
    assert parallel.arguments["seed"] == 1


class Malicious:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


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
