"""The weights that a run starts from: a ResNet, word vectors, another model; and refusals."""

import logging
from types import SimpleNamespace

import flax
import jax
import numpy as np
import pytest
import safetensors.numpy
from fake_data import fashion_iq as write_fashion_iq
from optional import require
from small import small_config

from cmap_jax.cli import run
from cmap_jax.convert import fill_pretrained, load_hugging_face
from cmap_jax.convert.torchvision import resnet_name
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders import resnet
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.trained import load
from cmap_jax.training.initial_weights import (
    apply_initial_weights,
    fit_initial_weights,
    read_initial_weights,
)
from cmap_jax.training.train import train
from cmap_jax.workdir import description as workdir_lib
from input_pipeline import create_datasets

pytestmark = pytest.mark.usefixtures("shallow_module")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = small_config(image_frozen=True, text_frozen=True)
    config.model.text.vocabulary_size = None
    config.data.directory = str(write_fashion_iq(tmp_path_factory.mktemp("data")))
    config.data.resize, config.data.crop = 40, 32
    config.train.batch_size, config.train.epochs, config.eval.batch_size = 8, 1, 16
    return config


def _copy(config, **fields):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def first_stage(config, tmp_path_factory):
    """A ResNet file, a vector file, and the workdir of a stage that starts from both."""
    folder = tmp_path_factory.mktemp("first")
    model = CMAP.from_config(small_config())
    inputs = CMAP.example_inputs(config.data.crop)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
    rng = np.random.default_rng(3)
    backbone = {
        collection: jax.tree.map(
            lambda x: rng.uniform(0.1, 1, x.shape).astype(x.dtype),
            shapes[collection]["image_encoder"]["backbone"],
        )
        for collection in ("params", "batch_stats")
    }
    tensors = {}
    for path, array in flax.traverse_util.flatten_dict(backbone).items():
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        tensors[resnet_name(path[1:])] = np.ascontiguousarray(array)
    safetensors.numpy.save_file(tensors, folder / "resnet.safetensors")
    (folder / "vectors.txt").write_text("the 0 0 0 0 0 0\nred 1 2 3 4 5 6\n")
    staged = _copy(
        config,
        **{
            "model.image.init_from": str(folder / "resnet.safetensors"),
            "model.text.init_from": str(folder / "vectors.txt"),
        },
    )
    workdir = folder / "run"
    train(staged, create_datasets(staged), workdir)
    return staged, workdir, backbone


@pytest.mark.slow
def test_backbone_and_words_arrive_and_stay(first_stage):
    _, workdir, backbone = first_stage
    trained = load(workdir)
    params = trained.variables["params"]
    jax.tree.map(
        np.testing.assert_array_equal, params["image_encoder"]["backbone"], backbone["params"]
    )
    table = np.asarray(params["text_encoder"]["word_embedding"])
    row = trained.tokenizer.words.index("red")
    np.testing.assert_array_equal(table[row], [1, 2, 3, 4, 5, 6])
    others = np.delete(table, row, axis=0)
    assert 0.7 < others.std() < 1.3  # N(0, 1) where there is no vector


@pytest.mark.slow
def test_the_second_stage_starts_where_the_first_ended(config, first_stage, tmp_path):
    _, workdir, _ = first_stage
    second = _copy(
        config,
        **{
            "init_from": str(workdir),
            "model.image.frozen": False,
            "model.text.frozen": False,
            "optimizer.learning_rate": 0.0,
        },
    )
    initial = read_initial_weights(second)
    assert initial.tokenizer.words == load(workdir).tokenizer.words
    train(second, create_datasets(second, initial.tokenizer), tmp_path, initial)
    before, after = load(workdir), load(tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal, before.variables["params"], after.variables["params"]
    )
    # A finished stage can be evaluated and resumed without what it started from.
    assert workdir_lib.has_checkpoint(tmp_path)
    gone = _copy(second, init_from=str(workdir))
    train(gone, create_datasets(second, initial.tokenizer), tmp_path)


@pytest.mark.slow
def test_another_model_is_refused(config, first_stage):
    _, workdir, _ = first_stage
    for field, value in (("embed_dim", 16), ("variant", "tirg"), ("image.cross_level", "up")):
        other = _copy(config, **{"init_from": str(workdir), f"model.{field}": value})
        with pytest.raises(ValueError, match=rf"holds another model:\n  config\.model\.{field}"):
            read_initial_weights(other)


@pytest.mark.slow
def test_other_words_are_refused(config, first_stage):
    _, workdir, _ = first_stage
    other = _copy(config, init_from=str(workdir))
    initial = read_initial_weights(other)
    words = Vocabulary.build(["something else"])
    model = CMAP.from_config(load(workdir).config)
    with pytest.raises(ValueError, match="trained with other words"):
        fit_initial_weights(other, initial, model, SimpleNamespace(tokenizer=words, word_counts={}))


@pytest.mark.slow
def test_words_that_the_earlier_stage_does_not_know_are_said(config, first_stage, caplog):
    _, workdir, _ = first_stage
    other = _copy(config, init_from=str(workdir))
    initial = read_initial_weights(other)
    model = CMAP.from_config(load(workdir).config)
    counts = {"is": 7, "red": 1, "crimson": 5, "zebra": 7}
    data = SimpleNamespace(tokenizer=initial.tokenizer, word_counts=counts)
    with caplog.at_level(logging.WARNING):
        fit_initial_weights(other, initial, model, data)
    assert f"{workdir} does not know 60% of the words of the training captions" in caplog.text
    assert "most often zebra (7), crimson (5)" in caplog.text
    caplog.clear()
    data.word_counts = {"is": 7}
    fit_initial_weights(other, initial, model, data)
    assert not caplog.text


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"init_from": ""}, ValueError, "config.init_from is empty: this stage starts"),
        ({"init_from": "/nowhere"}, FileNotFoundError, "config.init_from: /nowhere: no such"),
        (
            {"init_from": "/", "model.image.init_from": "x"},
            ValueError,
            "leave config.model.image.init_from and",
        ),
        ({"model.image.init_from": "/nowhere.safetensors"}, FileNotFoundError, "no such file"),
        ({"model.text.init_from": "/nowhere"}, FileNotFoundError, "text.init_from: /nowhere"),
    ],
)
def test_what_is_not_there_is_named(config, fields, error, message):
    with pytest.raises(error, match=message.replace(".", r"\.")):
        read_initial_weights(_copy(config, **fields))


def test_training_without_pretrained_weights_warns_loudly(config, caplog):
    def warnings(**fields) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            read_initial_weights(_copy(config, **fields))
        return caplog.text

    text = warnings()
    assert "NO PRETRAINED WEIGHTS" in text
    assert "--config.model.image.init_from=resnet18.pth" in text
    assert "NO WORD VECTORS" in text
    unfrozen = {"model.image.frozen": False, "model.text.frozen": False}
    assert not warnings(**unfrozen)  # a small model that nothing is published for
    assert "trains from scratch" in warnings(**unfrozen, **{"model.image.resnet.width": 64})


def _release_file(folder):
    """One of the authors' files that fits the config, but for the number of its words."""
    require("torch")
    from convert.test_reference import release_file

    path = folder / "model.pth"
    release_file(path, depth=18)
    return {"init_from": str(path)}


def _vectors(folder, content="red 1 2 3 4 5 6 7\n"):
    (folder / "wide.txt").write_text(content)
    return {"model.text.init_from": str(folder / "wide.txt")}


def _resnet(folder):
    (folder / "resnet.safetensors").write_bytes(b"no weights")
    return {"model.image.init_from": str(folder / "resnet.safetensors")}


WRONG = {
    "vectors of another width": (_vectors, "wide.txt, line 1: 7 numbers"),
    "vectors broken far inside": (
        lambda folder: _vectors(folder, "the 1 2 3 4 5 6\n" * 9 + "red 1 2 x 4 5 6\n"),
        "wide.txt, line 10: not 6 numbers",
    ),
    "a release of other words": (_release_file, "model.pth does not fit"),
    "a workdir that is none": (lambda f: {"init_from": str(f)}, "is not a workdir"),
    "a resnet that is none": (_resnet, "not a safetensors file"),
    "another number of words": (
        lambda _: {"model.text.vocabulary_size": 7},
        "config.model.text.vocabulary_size is 7",
    ),
    "no data": (lambda _: {"data.directory": "/nowhere"}, "/nowhere: no such folder"),
    "no images": (lambda f: {"data.image_directory": str(f)}, "images cannot be used"),
    "a batch of more than all": (lambda _: {"train.batch_size": 32}, "only 24 training items"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_nothing_is_written_before_all_is_read(config, tmp_path, kind, monkeypatch):
    """The corrected command must not find a workdir with the config of the wrong one."""
    # The release's ResNet-18 is whole; nothing here is compiled.
    monkeypatch.setitem(resnet.DEPTHS, 18, ((2, 2, 2, 2), False))
    make, message = WRONG[kind]
    wrong = _copy(config, **make(tmp_path))
    workdir = tmp_path / "run"
    with pytest.raises((ValueError, OSError), match=message.replace(".", r"\.")):
        run.run(wrong, str(workdir), evaluate_only=False)
    assert not workdir.exists()


@pytest.mark.slow
def test_towers_arrive_from_a_folder(config, tmp_path):
    """Both towers of a small CLIP, and its folder is checked before data are read."""
    require("transformers")
    from foreign_towers import VOCABULARY, clip_config, foreign_model, save

    folder = save(foreign_model(clip_config()), tmp_path / "clip")
    config = config.copy_and_resolve_references()
    config.model.pretrained = str(folder)
    config = fill_pretrained(config)
    model = CMAP.from_config(config)
    variables = jax.jit(lambda: model.init(jax.random.key(0), **CMAP.example_inputs(24)))()
    datasets = SimpleNamespace(tokenizer=range(VOCABULARY), word_counts={})
    initial = fit_initial_weights(config, read_initial_weights(config), model, datasets)
    params = apply_initial_weights(initial, variables)["params"]
    expected = load_hugging_face(folder).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, params["text_encoder"], expected["text_encoder"])
    jax.tree.map(
        np.testing.assert_array_equal,
        params["image_encoder"]["backbone"],
        expected["image_encoder"]["backbone"],
    )
    config.model.image.init_from = None
    config.model.text.init_from = "nobody/nothing"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(require("huggingface_hub").constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(FileNotFoundError, match="hf download nobody/nothing"):
            read_initial_weights(config)
    (folder / "model.safetensors").unlink()
    config.model.text.init_from = str(folder)
    with pytest.raises(FileNotFoundError, match="clip: no weights"):
        read_initial_weights(config)


def test_a_folder_that_was_there_stays(config, tmp_path):
    wrong = _copy(config, **_vectors(tmp_path))
    workdir = tmp_path / "run"
    workdir.mkdir()
    with pytest.raises(ValueError, match="7 numbers"):
        run.run(wrong, str(workdir), evaluate_only=False)
    assert list(workdir.iterdir()) == []
