"""A look at the whole config before any data are read."""

import functools
import math

from ml_collections import ConfigDict

from cmap_jax import sharding
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders import image_entry, image_settings
from cmap_jax.models.image_encoder import LEVELS
from cmap_jax.processing.images import RELEASED, ImagePreprocessing
from cmap_jax.training.optimizer import make_schedule

_LARGEST = 3e38  # in single precision

# The least and the most that a number may be.
_RANGES = {
    "seed": (0, 2**32 - 1),
    "model.embed_dim": (2, math.inf),
    "model.text.vocabulary_size": (1, math.inf),
    "loss.alpha": (0, 1),
    "model.logit_scale": (-_LARGEST, _LARGEST),
    "optimizer.learning_rate": (0, _LARGEST),
    "optimizer.b1": (0, 1 - 1e-9),
    "optimizer.b2": (0, 1 - 1e-9),
    "optimizer.eps": (0, _LARGEST),
    "optimizer.weight_decay": (0, _LARGEST),
    "optimizer.clip_norm": (1e-9, math.inf),
    "optimizer.halve_every": (1, math.inf),
    "optimizer.halve_faster_from": (0, math.inf),
    "optimizer.halve_faster_every": (1, math.inf),
    "optimizer.warmup_steps": (0, math.inf),
    "train.batch_size": (1, math.inf),
    "train.micro_batch_size": (1, math.inf),
    "train.epochs": (1, math.inf),
    "train.log_every_steps": (1, math.inf),
    "train.checkpoint_every_epochs": (1, math.inf),
    "train.checkpoints_to_keep": (1, math.inf),
    "eval.every_epochs": (1, math.inf),
    "eval.batch_size": (1, math.inf),
    "eval.gallery_chunk": (1, math.inf),
    "data.cache_gb": (0, math.inf),
    "distributed.heartbeat_timeout_seconds": (1, math.inf),
}


def check_config(config: ConfigDict, *, training: bool = True) -> None:
    """Refuse an impossible config before any data are read.

    Args:
        config: a whole config.
        training: whether a training step must fit the devices too.

    Raises:
        ValueError: names the field and what it may be.
    """
    for path, (least, most) in _RANGES.items():
        value = functools.reduce(lambda part, name: part[name], path.split("."), config)
        if value is not None and not least <= value <= most:
            limits = f"{least} or more" if most >= _LARGEST else f"{least} to {most}"
            raise ValueError(f"config.{path} must be {limits}, not {value}")
    devices = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp).size
    micro = config.train.micro_batch_size or config.train.batch_size
    settings, image = image_settings(config.model), f"config.model.image.{config.model.image.name}"
    for field, value, parts, what in (
        ("train.batch_size", config.train.batch_size, devices, "devices"),
        ("train.micro_batch_size", micro, devices, "devices"),
        *(
            ("train.micro_batch_size", micro, settings[name], f"parts of {image}.{name}")
            for name in image_entry(config.model).batch_parts
        ),
        ("eval.batch_size", config.eval.batch_size, devices, "devices"),
    ):
        if value % parts and (training or field == "eval.batch_size"):
            raise ValueError(f"config.{field}={value} is not a multiple of the {parts} {what}")
    if config.train.batch_size % micro:
        raise ValueError(
            f"config.train.batch_size={config.train.batch_size} is not a multiple of "
            f"config.train.micro_batch_size={micro}"
        )
    if config.train.non_finite not in ("stop", "skip"):
        raise ValueError(
            f'config.train.non_finite must be "stop" or "skip", not {config.train.non_finite!r}'
        )
    # One set of weights a level; a variant with fewer levels uses the first.
    for field in ("matching_weights", "preservation_weights", "margins"):
        numbers = config.loss[field]
        if len(numbers) != len(LEVELS) or not all(isinstance(n, int | float) for n in numbers):
            raise ValueError(
                f"config.loss.{field} must have {len(LEVELS)} numbers, for {', '.join(LEVELS)}"
            )
    if config.loss.preservation_reduction not in ("sum", "mean"):
        raise ValueError(
            'config.loss.preservation_reduction must be "sum" or "mean", not '
            f"{config.loss.preservation_reduction!r}"
        )
    try:
        ImagePreprocessing(
            resize=config.data.resize,
            crop=config.data.crop,
            read_as=config.data.read_as or RELEASED,
            fit=config.data.fit,
            resampling=config.data.resampling,
        )
    except ValueError as error:
        raise ValueError(f"config.data.{error}") from error
    make_schedule(config, steps_per_epoch=1)
    known = config.copy_and_resolve_references()
    known.model.text.vocabulary_size = known.model.text.vocabulary_size or 1
    CMAP.from_config(known)
