"""The table of all config fields: when each may change, and which values it takes.

`configs/default.py` sets every field to its default and says in a comment what it does; this table
says what holds for any value. Whatever checks, compares or lists fields reads it here:

    check_values(config)              # raises ValueError for an impossible value
    FIELDS["model.remat"].kind        # Kind.ENVIRONMENT: may change when a run continues
    flatten(config)                   # {"seed": 0, "model.variant": "cmap", ...}

A field without limits here takes any value of its type, or has limits that another table or the
machine sets: composers (`cmap_jax.models.composers`), encoders (`cmap_jax.models.encoders`), data
sets (`input_pipeline.registry`), pictures (`cmap_jax.processing.images.ImagePreprocessing`), the
mesh (`cmap_jax.sharding.make_mesh`).
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# Nearly the largest number in single precision, the smallest above 0, and the largest below 1.
_LARGEST, _SMALLEST, _BELOW_ONE = 3e38, 1e-37, 1 - 1e-7


class Kind(enum.IntEnum):
    """The thing that a field describes; the order is that of how long its value is fixed.

    Attributes:
        ENVIRONMENT: where data lie and how results are computed; may change at every start.
        RUN: the data and the recipe of a run; may not change when the run continues.
        TRAINED: how a model was trained; may not change when the model is evaluated either.
        MODEL: the function that the weights compute; may not change in a run that starts from
            them either.
    """

    ENVIRONMENT = 0
    RUN = 1
    TRAINED = 2
    MODEL = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """The rules of one field.

    Attributes:
        kind: when its value may change.
        least: smallest number allowed.
        most: largest number allowed.
        choices: the only values allowed; empty: not restricted to a list.
        optional: whether None, for "not set", is allowed.
        is_path: whether it holds a path, in which ``~`` and variables are expanded.
        from_data: whether None is replaced by a value that the data determine.
        added: whether stored configs of earlier versions lack it. Its default in
            `configs/default.py` describes those versions, and their runs continue under it.
    """

    kind: Kind
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()
    optional: bool = False
    is_path: bool = False
    from_data: bool = False
    added: bool = False

    @property
    def has_limits(self) -> bool:
        """Whether not every value of its type is allowed."""
        return bool(self.choices) or self.least > -math.inf or self.most < math.inf

    def check(self, value: Any, name: str) -> None:
        """Refuse an impossible value.

        Args:
            value: the field's value.
            name: begins the error's message, such as "config.seed".

        Raises:
            ValueError: says which values are possible.
        """
        if not self.has_limits or (value is None and self.optional):
            return
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{name} must be {_either(self.choices)}, not {value!r}")
        elif value is None or not self.least <= value <= self.most:
            no_most = self.most >= _LARGEST
            limits = f"{self.least} or more" if no_most else f"{self.least} to {self.most}"
            raise ValueError(f"{name} must be {limits}, not {value}")


_environment, _run, _trained, _model = (functools.partial(Field, kind=kind) for kind in Kind)

FIELDS: Mapping[str, Field] = {
    "seed": _run(least=0, most=2**32 - 1),
    "init_from": _run(optional=True, is_path=True),
    "model.variant": _model(),
    "model.sum.text_weight": _model(added=True),
    "model.sum.normalize": _model(added=True),
    "model.magiclens.layers": _model(added=True),
    "model.magiclens.heads": _model(added=True),
    "model.embed_dim": _model(least=1),
    "model.logit_scale": _trained(least=-_LARGEST, most=_LARGEST),
    "model.dtype": _trained(choices=("float32", "bfloat16", "float64")),
    "model.remat": _environment(choices=("none", "products", "blocks")),
    "model.pretrained": _environment(optional=True, is_path=True, added=True),
    "model.image.name": _model(),
    "model.image.cross_level": _model(choices=("down", "up", "none")),
    "model.image.init_from": _trained(optional=True, is_path=True),
    "model.image.frozen": _trained(),
    "model.image.resnet.depth": _model(),
    "model.image.resnet.width": _model(),
    "model.image.resnet.frozen_batch_norm": _trained(),
    "model.image.resnet.batch_norm_groups": _trained(),
    "model.image.efficientnet_lite0.high": _model(added=True),
    "model.image.efficientnet_lite0.frozen_batch_norm": _trained(added=True),
    "model.image.efficientnet_lite0.batch_norm_groups": _trained(added=True),
    "model.image.clip.width": _model(added=True),
    "model.image.clip.layers": _model(added=True),
    "model.image.clip.heads": _model(added=True),
    "model.image.clip.mlp_width": _model(added=True),
    "model.image.clip.activation": _model(added=True),
    "model.image.clip.epsilon": _model(added=True),
    "model.image.clip.scan_layers": _environment(added=True),
    "model.image.clip.patch": _model(added=True),
    "model.image.clip.image_size": _model(added=True),
    "model.image.clip.interpolate_positions": _trained(added=True),
    "model.image.clip.map_blocks": _model(added=True),
    "model.image.clip.mean": _model(added=True),
    "model.image.clip.std": _model(added=True),
    "model.image.clip.projection": _model(added=True),
    "model.image.siglip.width": _model(added=True),
    "model.image.siglip.layers": _model(added=True),
    "model.image.siglip.heads": _model(added=True),
    "model.image.siglip.mlp_width": _model(added=True),
    "model.image.siglip.activation": _model(added=True),
    "model.image.siglip.epsilon": _model(added=True),
    "model.image.siglip.scan_layers": _environment(added=True),
    "model.image.siglip.patch": _model(added=True),
    "model.image.siglip.image_size": _model(added=True),
    "model.image.siglip.interpolate_positions": _trained(added=True),
    "model.image.siglip.map_blocks": _model(added=True),
    "model.image.siglip.mean": _model(added=True),
    "model.image.siglip.std": _model(added=True),
    "model.text.name": _model(),
    "model.text.tokenizer": _model(),
    # Two tokenizers are compared themselves, wherever their files lie.
    "model.text.tokenizer_path": _environment(optional=True, is_path=True, added=True),
    "model.text.vocabulary_size": _trained(least=1, optional=True, from_data=True),
    "model.text.init_from": _trained(optional=True, is_path=True),
    "model.text.frozen": _trained(),
    "model.text.gru.word_dim": _model(),
    "model.text.lstm.word_dim": _model(),
    "model.text.lstm.hidden": _model(),
    "model.text.lstm.dropout": _trained(),
    "model.text.lstm.pool_padding": _model(),
    "model.text.clip.width": _model(added=True),
    "model.text.clip.layers": _model(added=True),
    "model.text.clip.heads": _model(added=True),
    "model.text.clip.mlp_width": _model(added=True),
    "model.text.clip.activation": _model(added=True),
    "model.text.clip.epsilon": _model(added=True),
    "model.text.clip.scan_layers": _environment(added=True),
    "model.text.clip.positions": _model(added=True),
    "model.text.clip.projection": _model(added=True),
    "model.text.clip.end_token": _model(added=True),
    "model.text.siglip.width": _model(added=True),
    "model.text.siglip.layers": _model(added=True),
    "model.text.siglip.heads": _model(added=True),
    "model.text.siglip.mlp_width": _model(added=True),
    "model.text.siglip.activation": _model(added=True),
    "model.text.siglip.epsilon": _model(added=True),
    "model.text.siglip.scan_layers": _environment(added=True),
    "model.text.siglip.positions": _model(added=True),
    "model.text.siglip.projection": _model(added=True),
    "model.text.siglip.pad_token": _model(added=True),
    "loss.matching_weights": _run(),
    "loss.preservation_weights": _run(),
    "loss.margins": _run(),
    "loss.alpha": _run(least=0, most=1),
    "loss.preservation_reduction": _run(choices=("sum", "mean")),
    "loss.preservation_reversal": _run(choices=("released", "clipped", "maximum"), added=True),
    "loss.preservation_moves_text": _run(added=True),
    "loss.preservation_start_steps": _run(least=0, added=True),
    "loss.preservation_ramp_steps": _run(least=0, added=True),
    "loss.entropy_floor": _run(least=0, most=1, added=True),
    "loss.entropy_weight": _run(least=0, most=_LARGEST, added=True),
    "optimizer.learning_rate": _run(least=0, most=_LARGEST),
    "optimizer.b1": _run(least=0, most=_BELOW_ONE),
    "optimizer.b2": _run(least=0, most=_BELOW_ONE),
    "optimizer.eps": _run(least=_SMALLEST, most=_LARGEST),
    "optimizer.weight_decay": _run(least=0, most=_LARGEST),
    # The kinds are in `cmap_jax.training.parameter_groups`.
    "optimizer.undecayed": _run(added=True),
    "optimizer.groups.image.learning_rate": _run(least=1e-9, most=_LARGEST, added=True),
    "optimizer.groups.image.weight_decay": _run(least=0, most=_LARGEST, added=True),
    "optimizer.groups.image.layer_decay": _run(least=1e-9, most=1, added=True),
    "optimizer.groups.text.learning_rate": _run(least=1e-9, most=_LARGEST, added=True),
    "optimizer.groups.text.weight_decay": _run(least=0, most=_LARGEST, added=True),
    "optimizer.groups.text.layer_decay": _run(least=1e-9, most=1, added=True),
    "optimizer.groups.heads.learning_rate": _run(least=1e-9, most=_LARGEST, added=True),
    "optimizer.groups.heads.weight_decay": _run(least=0, most=_LARGEST, added=True),
    "optimizer.groups.heads.frozen": _run(added=True),
    "optimizer.clip_norm": _run(least=1e-9, optional=True),
    "optimizer.schedule": _run(choices=("stepped", "cosine")),
    "optimizer.halve_every": _run(least=1),
    "optimizer.halve_faster_from": _run(least=0),
    "optimizer.halve_faster_every": _run(least=1),
    "optimizer.warmup_steps": _run(least=0),
    "train.batch_size": _run(least=1),
    "train.micro_batch_size": _run(least=1, optional=True),
    "train.non_finite": _run(choices=("stop", "skip")),
    "train.epochs": _run(least=1),
    "train.ema_decay": _run(least=0, most=1 - 1e-9, added=True),
    "train.log_every_steps": _run(least=1),
    "train.checkpoint_every_epochs": _run(least=1),
    "train.checkpoints_to_keep": _run(least=1),
    "mesh.data": _environment(),
    "mesh.fsdp": _environment(),
    "distributed.heartbeat_timeout_seconds": _environment(least=1),
    "eval.every_epochs": _run(least=1),
    "eval.batch_size": _run(least=1),
    "eval.gallery_chunk": _run(least=1, optional=True),
    "eval.rankings": _run(),
    "eval.shortcuts": _run(),
    "eval.overlap": _environment(least=0, added=True),
    "eval.captions": _run(choices=("one", "concept"), optional=True, added=True),
    "data.name": _run(),
    # Whether data in another folder are the same, read in the same way, is checked by their words,
    # facts and preprocessing.
    "data.directory": _environment(optional=True, is_path=True),
    "data.image_directory": _environment(optional=True, is_path=True),
    "data.missing_images": _run(choices=("fail", "skip")),
    "data.unreadable_texts": _environment(choices=("fail", "allow")),
    "data.near_names": _environment(choices=("fail", "accept")),
    "data.cache_gb": _environment(least=0),
    "data.augment": _run(added=True),
    # Whether features in another folder are the same is checked by their checksum among the facts.
    "data.features": _environment(optional=True, is_path=True, added=True),
    "data.read_as": _environment(optional=True),
    "data.fit": _trained(),
    "data.resampling": _trained(),
    "data.scaling": _trained(added=True),
    "data.resize": _trained(),
    "data.crop": _trained(),
    "data.garments.seed": _run(),
    "data.garments.image_size": _run(),
    "data.garments.train_triplets": _run(),
}


def check_values(config: Any, part: str = "") -> None:
    """Refuse an impossible value of any field.

    Args:
        config: a whole config, or the part of one; anything with the fields as attributes.
        part: the part's name, such as "model"; empty for a whole config.

    Raises:
        ValueError: names the field and the values that are possible.
    """
    prefix = f"{part}." if part else ""
    for path, field in FIELDS.items():
        if path.startswith(prefix) and field.has_limits:
            names = path.removeprefix(prefix).split(".")
            field.check(functools.reduce(getattr, names, config), f"config.{path}")


def differences(old: Mapping, new: Mapping, fixed_from: Kind, part: str = "") -> list[str]:
    """Return a line for each field that differs between two configs and may not.

    A field that the table does not have, as a config of an earlier version may, is compared too. A
    field of ``new`` that is None and takes its value from the data does not differ.

    Args:
        old: a config as nested dicts, or the part of one.
        new: the config to compare with it, or the same part.
        fixed_from: fields of this kind and of those after it may not differ.
        part: the part's name, such as "model"; empty for whole configs.
    """
    olds, news = flatten(old, part), flatten(new, part)
    lines = []
    for path in dict.fromkeys([*olds, *news]):
        a, b = olds.get(path), news.get(path)
        field = FIELDS.get(path, Field(kind=Kind.MODEL))
        if a != b and field.kind >= fixed_from and not (b is None and field.from_data):
            lines.append(f"config.{path}: {a!r} there, {b!r} now")
    return lines


def flatten(config: Mapping | ConfigDict, part: str = "") -> dict[str, Any]:
    """Return the values of a nested config by path, such as "train.epochs".

    Args:
        config: a whole config, or the part of one.
        part: the part's name, which begins each path; empty for a whole config.
    """
    values: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{part}.{key}" if part else key
        nested = isinstance(value, Mapping | ConfigDict)
        values |= flatten(value, path) if nested else {path: value}
    return values


def _either(choices: tuple[str, ...]) -> str:
    """Return such as '"a", "b" or "c"'."""
    *others, last = (f'"{choice}"' for choice in choices)
    return f"{', '.join(others)} or {last}"
