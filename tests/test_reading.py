"""How pictures are read belongs to a model: it is stored, used, and nothing else is accepted."""

import dataclasses
import json
import shutil
import types

import fake_data
import numpy as np
import pytest
from PIL import Image
from small import init, small_config

from cmap_jax import load
from cmap_jax.cli import from_workdir
from cmap_jax.cli.run import evaluate, read_for_evaluation
from cmap_jax.facts import DataFacts
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.trained import write_model
from cmap_jax.training.check import check_config
from cmap_jax.training.same_data import check_same_data
from cmap_jax.workdir import description as workdir
from cmap_jax.workdir.same_run import check_same_run, mark_of_run
from input_pipeline import create_datasets


@pytest.fixture(scope="module")
def model():
    vocabulary = Vocabulary.build(["is red longer has a no"])
    config = small_config(text_vocabulary_size=len(vocabulary))
    config.data.name = "cirr"
    return config, vocabulary, *init(config)


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """From a way to read to a workdir with a model that was trained with it."""
    config, vocabulary, *weights = model

    def write(read_as):
        reading = ImagePreprocessing(config.data.resize, config.data.crop, read_as=read_as)
        folder = tmp_path_factory.mktemp("runs") / read_as
        protocols = (PROTOCOLS["cirr/val"],)
        write_model(
            folder, workdir.Description(config, vocabulary, reading, protocols, {}), *weights
        )
        return folder

    return {read_as: write(read_as) for read_as in ("released", "upright")}


@pytest.fixture(scope="module")
def sideways(tmp_path_factory):
    """A picture that EXIF turns, with a transparent ground; and what a person sees of it."""
    pixels = np.zeros((80, 50, 4), np.uint8)
    pixels[10:60, 10:30] = np.random.default_rng(0).integers(1, 256, (50, 20, 4))
    pixels[10:60, 10:30, 3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path_factory.mktemp("pictures") / "phone.png"
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(file, exif=exif)
    seen = np.where(pixels[..., 3:] > 0, pixels[..., :3], 255).astype(np.uint8)
    stored = np.ascontiguousarray(np.rot90(pixels)[..., :3])
    return file, seen, stored


def test_use_reads_as_the_model_was_trained(written, sideways):
    file, seen, stored = sideways
    for read_as, pixels in (("upright", seen), ("released", stored)):
        trained = load(written[read_as])
        assert trained.preprocessing.read_as == read_as
        from_file, from_pixels = (trained.encode_images([x]) for x in (file, pixels))
        np.testing.assert_array_equal(from_file, from_pixels)


def test_a_workdir_from_before_there_was_a_choice(written, tmp_path):
    folder = shutil.copytree(written["released"], tmp_path / "old")
    for name, part in ((workdir.MODEL, "preprocessing"), (workdir.CONFIG, "data")):
        content = json.loads((folder / name).read_text())
        del content[part]["read_as"]
        (folder / name).write_text(json.dumps(content))
    assert load(folder).preprocessing.read_as == "released"
    # It is the same run, too, as far as its config says.
    new = small_config(text_vocabulary_size=len(load(folder).tokenizer))
    new.data.name = "cirr"
    new.data.read_as = "released"
    check_same_run(folder, new)
    old = workdir.read_config(folder)
    assert mark_of_run(old) == mark_of_run(new)


def test_evaluation_reads_as_the_model_does(written, tmp_path):
    folder = str(written["upright"])
    config = from_workdir.get_config(folder)
    config.eval.batch_size = 8  # as many as the devices
    config.data.directory = str(fake_data.cirr(tmp_path / "data"))
    datasets = read_for_evaluation(config, folder)
    evaluate(config, folder, datasets)
    assert datasets.preprocessing.read_as == "upright"
    stored = json.loads((written["upright"] / "evaluation.json").read_text())
    assert stored["facts"]["data"]["read_as"] == "upright"
    config.data.read_as = "released"
    with pytest.raises(ValueError, match=r"trained on pictures read as upright, .* as released; "):
        read_for_evaluation(config, folder)


@pytest.mark.parametrize(
    ("name", "read_as", "expected"),
    [
        ("cirr", None, "released"),
        ("fashion_iq", None, "released"),
        ("folder", None, "upright"),
        ("folder", "released", "released"),
        ("cirr", "upright", "upright"),
    ],
)
def test_the_default_follows_the_data_set(tmp_path, name, read_as, expected):
    config = small_config()
    config.data.name, config.data.read_as = name, read_as
    config.data.directory = str(fake_data.DATA_SETS[name](tmp_path / "data"))
    config.train.batch_size = 2
    data = create_datasets(config)
    assert data.preprocessing.read_as == expected


def test_another_way_in_the_middle_of_a_run_is_refused(written):
    folder = written["released"]
    description = workdir.read_description(folder)
    datasets = types.SimpleNamespace(
        tokenizer=description.tokenizer,
        preprocessing=description.preprocessing,
        facts=DataFacts.from_dict(description.facts),
    )
    check_same_data(datasets, folder)
    datasets.preprocessing = dataclasses.replace(description.preprocessing, read_as="upright")
    with pytest.raises(ValueError, match=r"read as released, these as upright: --config\.data\.re"):
        check_same_data(datasets, folder)


def test_a_way_that_there_is_not():
    config = small_config()
    config.data.read_as = "sideways"
    with pytest.raises(ValueError, match=r"config\.data\.read_as must be released or upright"):
        check_config(config)
