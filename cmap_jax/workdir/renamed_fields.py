"""Config fields with another name or default than in earlier versions, or that those did not have.

Configs that earlier versions stored are read by `translate`; an old name on the command line is
answered with the new one from `new_names`.
"""

import copy
import functools
import operator
from collections.abc import Mapping
from typing import Any

from cmap_jax.config_fields import FIELDS, Kind, flatten
from configs import default

# The old name of each field, with its names today.
_RENAMED = {
    "model.image.depth": ("model.image.resnet.depth",),
    "model.image.width": ("model.image.resnet.width",),
    "model.image.batch_norm_groups": ("model.image.resnet.batch_norm_groups",),
    "model.image.frozen_backbone_batch_norm": ("model.image.resnet.frozen_batch_norm",),
    "model.text.encoder": ("model.text.name",),
    "model.text.word_dim": ("model.text.gru.word_dim", "model.text.lstm.word_dim"),
    "model.text.word_vectors": ("model.text.init_from",),
    "model.text.lstm_hidden": ("model.text.lstm.hidden",),
    "model.text.dropout": ("model.text.lstm.dropout",),
    "model.text.lstm_pool_padding": ("model.text.lstm.pool_padding",),
}
# The same for fields of the environment, renamed since: runs that have the old name continue.
_RENAMED_ENVIRONMENT = {"model.text.tokenizer_files": ("model.text.tokenizer_path",)}
_RENAMED_VALUES = {("model.text.encoder", "bigru"): "gru"}
# The values, in versions that had the old names, of fields that did not exist then.
_ADDED = {
    "model.image.name": "resnet",
    "model.text.tokenizer": "words",
    "data.fit": "pad",
    "data.resampling": "bilinear",
}

# Old defaults that stand for None today. In earlier versions None was not possible.
_DEFAULTS = {"eval.gallery_chunk": 1024}


def new_names(name: str) -> tuple[str, ...]:
    """Return the names today of a field that was renamed, such as "model.image.depth"; or none."""
    return (_RENAMED | _RENAMED_ENVIRONMENT).get(name, ())


def has_old_names(content: Mapping[str, Any]) -> bool:
    """Tell whether a stored config has fields with old names."""
    return any(_has(content, name) for name in _RENAMED)


def translate(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config, nested, with the names of today and the fields that it lacks."""
    translated = copy.deepcopy(dict(content))
    if has_old_names(content):
        for name, value in _ADDED.items():
            _set(translated, name, value)
    for old, names in (_RENAMED | _RENAMED_ENVIRONMENT).items():
        if _has(translated, old):
            *parents, field = old.split(".")
            value = functools.reduce(operator.getitem, parents, translated).pop(field)
            for name in names:
                _set(translated, name, _RENAMED_VALUES.get((old, value), value))
    for name, value in (_added() | _environment()).items():
        if _lacks(translated, name):
            _set(translated, name, value)
    for name, value in _DEFAULTS.items():
        if flatten(translated).get(name) == value:
            _set(translated, name, None)
    return translated


def as_marked(name: str, value: Any) -> Any:
    """Return a field's value as earlier versions have it, whose runs' marks stay valid."""
    return _DEFAULTS.get(name, value) if value is None else value


def is_as_before(name: str, value: Any) -> bool:
    """Tell whether earlier versions lack a field, and a value of it describes what they do."""
    added = _added()
    return name in added and added[name] == value


@functools.cache
def _added() -> dict[str, Any]:
    """Return the fields that earlier versions lack, with their defaults."""
    defaults = flatten(default.get_config())
    return {name: defaults[name] for name, field in FIELDS.items() if field.added}


@functools.cache
def _environment() -> dict[str, Any]:
    """Return the fields that do not belong to a run, with their defaults.

    A stored config may lack any of them: each version has its own, and no model depends on them.
    """
    defaults = flatten(default.get_config())
    kind = Kind.ENVIRONMENT
    return {n: defaults[n] for n, field in FIELDS.items() if n in defaults and field.kind == kind}


def _has(content: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(content, Mapping) or part not in content:
            return False
        content = content[part]
    return True


def _lacks(content: Any, name: str) -> bool:
    """Tell whether a field is missing; False where its part is wrong, being no mapping."""
    *parents, field = name.split(".")
    for part in parents:
        if not isinstance(content, Mapping):
            return False
        content = content.get(part, {})
    return isinstance(content, Mapping) and field not in content


def _set(content: dict[str, Any], name: str, value: Any) -> None:
    *parents, field = name.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
    content[field] = value
