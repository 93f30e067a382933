"""The table of config fields: it has all of them, and its rules are those that the code follows."""

import pathlib
import re
from typing import get_args

import pytest
from ml_collections import ConfigDict

from cmap_jax.config_fields import FIELDS, Kind, check_values, differences, flatten
from cmap_jax.models.rematerialization import Remat
from configs import default

ROOT = pathlib.Path(__file__).parents[1]


def test_the_table_has_the_fields_of_the_default_config():
    config = default.get_config()
    defaults = flatten(config)
    assert set(FIELDS) == set(defaults)
    check_values(config)
    unset = {path for path, value in defaults.items() if value is None}
    assert unset == {path for path, field in FIELDS.items() if field.optional}


_GROUPS = "model|loss|optimizer|train|mesh|distributed|eval|data"
_NAMED = re.compile(rf"\bconfig\.((?:{_GROUPS})\.[a-z]\w*(?:\.[a-z]\w*)*)(?!\w*\()")  # no method
_SPELLED = re.compile(rf'^    "((?:{_GROUPS})\.[a-z_.]+)(?:=\w+)?": ', re.MULTILINE)


def test_fields_that_code_and_messages_name_exist():
    """Documents are checked in test_words.py."""
    groups = {path.rsplit(".", depth)[0] for path in FIELDS for depth in range(1, 3)}
    groups |= {"model.image.<name>", "model.text.<name>"}
    wrong = []
    for folder in ("benchmarks", "cmap_jax", "configs", "input_pipeline"):
        for file in (ROOT / folder).rglob("*.py"):
            if file.name == "renamed_fields.py":  # it lists the names of earlier versions
                continue
            names = {m[1] for p in (_NAMED, _SPELLED) for m in p.finditer(file.read_text())}
            wrong += [f"{file}: {name}" for name in names - FIELDS.keys() - groups]
    assert not wrong, wrong


def test_each_choice_is_accepted_and_no_other():
    assert FIELDS["model.remat"].choices == get_args(Remat)
    for path, field in FIELDS.items():
        config = default.get_config()
        for value in (*field.choices, "nonsense") if field.choices else ():
            config.update_from_flattened_dict({path: value})
            if value != "nonsense":
                check_values(config)
                continue
            with pytest.raises(ValueError, match=rf'^config\.{path} must be ".*" or ".*", not'):
                check_values(config)


def test_the_limits_themselves_are_possible():
    for path, field in FIELDS.items():
        for value in {field.least, field.most} - {float("inf"), -float("inf")}:
            field.check(value, path)
            below = value - 1 if value == field.least else value + 1
            if abs(value) < 1e30:
                with pytest.raises(ValueError, match=f"{path} must be {field.least} "):
                    field.check(below, path)


def test_a_field_that_must_be_set():
    with pytest.raises(ValueError, match=r"config\.train\.epochs must be 1 or more, not None"):
        FIELDS["train.epochs"].check(None, "config.train.epochs")
    FIELDS["train.micro_batch_size"].check(None, "config.train.micro_batch_size")


def test_a_part_of_a_config():
    config = default.get_config()
    config.model.dtype = "int8"
    check_values(config.data, "data")
    with pytest.raises(ValueError, match=r'^config\.model\.dtype must be "float32", "bfloat16" or'):
        check_values(config.model, "model")


@pytest.mark.parametrize(
    ("path", "value", "fixed_from"),
    [
        ("mesh.fsdp", 2, None),
        ("model.remat", "blocks", None),
        ("data.directory", "elsewhere", None),
        ("optimizer.learning_rate", 1.0, Kind.RUN),
        ("data.missing_images", "skip", Kind.RUN),
        ("model.dtype", "bfloat16", Kind.TRAINED),
        ("data.crop", 192, Kind.TRAINED),
        ("model.embed_dim", 64, Kind.MODEL),
    ],
)
def test_differences_by_kind(path, value, fixed_from):
    """A run continues, a model is evaluated, and weights are started from, each more freely."""
    old, new = default.get_config(), default.get_config()
    new.update_from_flattened_dict({path: value})
    line = f"config.{path}: {flatten(old)[path]!r} there, {value!r} now"
    for kind in (Kind.RUN, Kind.TRAINED, Kind.MODEL):
        expected = [line] if fixed_from is not None and kind <= fixed_from else []
        assert differences(old.to_dict(), new.to_dict(), kind) == expected


def test_fields_that_only_one_config_has_differ():
    old, new = {"model": {"gone": 1, "same": 2}}, {"model": {"same": 2, "added": 3}}
    assert differences(old, new, Kind.MODEL) == [
        "config.model.gone: 1 there, None now",
        "config.model.added: None there, 3 now",
    ]
    assert differences(old["model"], new["model"], Kind.MODEL, part="model") == differences(
        old, new, Kind.MODEL
    )


def test_a_value_that_the_data_determine_may_be_left_out():
    old, new = default.get_config(), default.get_config()
    old.model.text.vocabulary_size = 7
    assert not differences(old.to_dict(), new.to_dict(), Kind.RUN)
    new.model.text.vocabulary_size = 8
    assert differences(old.to_dict(), new.to_dict(), Kind.RUN)
    assert not differences(old.to_dict(), new.to_dict(), Kind.MODEL)


def test_flatten():
    nested = ConfigDict({"a": 1, "b": {"c": (2, 3), "d": {"e": None}}})
    flat = {"a": 1, "b.c": (2, 3), "b.d.e": None}
    assert flatten(nested) == flatten(nested.to_dict()) == flat
    assert flatten(nested.b, "b") == {"b.c": (2, 3), "b.d.e": None}
