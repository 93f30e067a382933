"""A run continues with its own config only, apart from fields of the environment."""

import json

import pytest
from small import small_config

from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.workdir.description import CONVERTED_FROM, Description, write_description
from cmap_jax.workdir.same_run import check_same_run, mark_of_run


def _write(folder, config, **facts):
    vocabulary = Vocabulary.build(["is red", "is long"])
    config = config.copy_and_resolve_references()
    config.model.text.vocabulary_size = len(vocabulary)
    description = Description(
        config=config,
        tokenizer=vocabulary,
        preprocessing=ImagePreprocessing(),
        protocols=(PROTOCOLS["shoes"],),
        facts=facts,
    )
    write_description(folder, description)
    return config


def _config():
    config = small_config(text_vocabulary_size=None)
    config.data.directory = "here"
    return config


def test_the_environment_may_change(tmp_path):
    config = _config()
    stored = _write(tmp_path, config, training_items=8)
    check_same_run(tmp_path / "new", config)
    check_same_run(tmp_path, config)  # the vocabulary's size is not known yet
    moved = stored.copy_and_resolve_references()
    moved.data.directory, moved.mesh.fsdp, moved.model.remat = "there", 2, "blocks"
    check_same_run(tmp_path, moved)
    assert mark_of_run(moved) == mark_of_run(stored)


def test_all_fields_that_differ_are_named(tmp_path):
    config = _config()
    stored = _write(tmp_path, config, training_items=8)
    config.seed, config.train.epochs, config.mesh.fsdp = 7, 99, 2
    message = (
        r"(?s)another config:\n  config\.seed: 0 there, 7 now\n  config\.train\.epochs: 16 .*set"
    )
    with pytest.raises(ValueError, match=message) as refused:
        check_same_run(tmp_path, config)
    assert "mesh" not in str(refused.value)
    assert mark_of_run(config) != mark_of_run(stored)


def test_a_run_of_before_a_field_existed_goes_on(tmp_path):
    """Its mark, which its checkpoints carry, is the one that it had."""
    config = _config()
    stored = _write(tmp_path, config, training_items=8)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    del content["data"]["augment"], content["data"]["features"]
    file.write_text(json.dumps(content))
    check_same_run(tmp_path, config)
    before = stored.copy_and_resolve_references()
    with before.unlocked():
        del before.data["augment"], before.data["features"]
    assert mark_of_run(before) == mark_of_run(stored)
    stored.data.augment = False
    with pytest.raises(ValueError, match=r"config\.data\.augment: True there, False now"):
        check_same_run(tmp_path, stored)
    assert mark_of_run(before) != mark_of_run(stored)


def test_a_converted_model_has_no_run(tmp_path):
    config = _write(tmp_path, _config(), **{CONVERTED_FROM: "model.pth"})
    with pytest.raises(ValueError, match=f"--config.init_from={tmp_path}"):
        check_same_run(tmp_path, config)
