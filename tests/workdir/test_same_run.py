"""A run continues with its own config only, apart from fields of the environment."""

import hashlib
import json

import pytest
from small import small_config

from cmap_jax.config_fields import FIELDS, Kind, flatten
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.workdir import renamed_fields
from cmap_jax.workdir.description import (
    CONFIG,
    CONVERTED_FROM,
    Description,
    read_config,
    write_description,
)
from cmap_jax.workdir.same_run import check_same_run, mark_of_run
from configs import default


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


def test_a_run_of_a_version_with_fewer_fields_continues(tmp_path):
    """Under the defaults of the fields that it lacks, and with its own mark."""
    stored = _write(tmp_path, _config(), training_items=8)
    added = {path for path, field in FIELDS.items() if field.added}
    content = json.loads((tmp_path / CONFIG).read_text())
    for path in added:
        *parents, name = path.split(".")
        part = content
        for parent in parents:
            part = part[parent]
        del part[name]
    (tmp_path / CONFIG).write_text(json.dumps(content))
    assert read_config(tmp_path).to_dict() == stored.to_dict()
    check_same_run(tmp_path, stored)
    environment = {path for path, field in FIELDS.items() if field.kind == Kind.ENVIRONMENT}
    kept = {
        f"config.{path}": value
        for path, value in flatten(stored.to_dict()).items()
        if path not in environment | added
    } | {"config.eval.gallery_chunk": 1024}  # the default of that version
    old_mark = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
    assert mark_of_run(stored) == old_mark
    stored.train.ema_decay = 0.9
    assert mark_of_run(stored) != old_mark
    with pytest.raises(ValueError, match=r"config\.train\.ema_decay: 0\.0 there, 0\.9 now"):
        check_same_run(tmp_path, stored)


def test_a_part_that_is_no_mapping_stays_as_it_is():
    """A later check says where the mistake is."""
    assert renamed_fields.translate({"optimizer": 5})["optimizer"] == 5
    assert renamed_fields.translate({"optimizer": {"groups": [1]}})["optimizer"]["groups"] == [1]


def test_the_mark_of_the_defaults_stays():
    """Else no run of an earlier version continues: a new field is marked ``added`` in the table."""
    assert mark_of_run(default.get_config()) == "e01b4952f02454a0"


@pytest.mark.parametrize("chunk", [1024, 512])
def test_a_run_whose_galleries_were_scored_in_fixed_chunks_goes_on(tmp_path, chunk):
    """The old default stands for None, and another value stays; each with the mark that it had."""
    stored = _write(tmp_path, _config(), training_items=8)
    content = json.loads((tmp_path / CONFIG).read_text())
    content["eval"]["gallery_chunk"] = chunk
    (tmp_path / CONFIG).write_text(json.dumps(content))
    assert read_config(tmp_path).eval.gallery_chunk == (None if chunk == 1024 else chunk)
    marks = {}
    for value in (None, chunk):
        stored.eval.gallery_chunk = value
        marks[value] = mark_of_run(stored)
    check_same_run(tmp_path, stored)
    assert marks[chunk] == mark_of_run(read_config(tmp_path))
    assert (marks[chunk] == marks[None]) == (chunk == 1024)
    stored.eval.gallery_chunk = None
    if chunk == 1024:
        check_same_run(tmp_path, stored)
    else:
        with pytest.raises(ValueError, match=r"config\.eval\.gallery_chunk: 512 there, None now"):
            check_same_run(tmp_path, stored)


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
