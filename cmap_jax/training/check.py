"""Validation of a whole config, before any data are read."""

from ml_collections import ConfigDict

from cmap_jax import sharding
from cmap_jax.config_fields import check_values
from cmap_jax.evaluation.overlap import check_parts, has_preservation
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders import image_entry, image_settings
from cmap_jax.models.image_encoder import LEVELS
from cmap_jax.processing.images import RELEASED, ImagePreprocessing
from cmap_jax.training.parameter_groups import check_groups


def check_config(
    config: ConfigDict, *, training: bool = True, device_count: int | None = None
) -> None:
    """Refuse an impossible config before any data are read.

    Args:
        config: a whole config.
        training: False for an evaluation, which ignores whether the training batch can be split
            over the devices.
        device_count: number of devices that batches are split over; None: those of the mesh.

    Raises:
        ValueError: names the field and the values that are possible.
    """
    check_values(config)
    devices = device_count or sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp).size
    micro = config.train.micro_batch_size or config.train.batch_size
    settings, image = image_settings(config.model), f"config.model.image.{config.model.image.name}"
    for field, value, parts, unit in (
        ("train.batch_size", config.train.batch_size, devices, "devices"),
        ("train.micro_batch_size", micro, devices, "devices"),
        *(
            ("train.micro_batch_size", micro, settings[name], f"parts of {image}.{name}")
            for name in image_entry(config.model).batch_parts
        ),
        ("eval.batch_size", config.eval.batch_size, devices, "devices"),
    ):
        if value % parts and (training or field == "eval.batch_size"):
            raise ValueError(f"config.{field}={value} is not a multiple of the {parts} {unit}")
    if config.train.batch_size % micro:
        raise ValueError(
            f"config.train.batch_size={config.train.batch_size} is not a multiple of "
            f"config.train.micro_batch_size={micro}"
        )
    if training and config.train.batch_size == 1:
        raise ValueError(
            "config.train.batch_size is 1, and a batch's other targets are what a query is told "
            "from: nothing would be learned; set it to 2 or more"
        )
    # One number a level, high to low; a variant with one level uses the first.
    for field in ("matching_weights", "preservation_weights", "margins"):
        numbers = config.loss[field]
        if len(numbers) != len(LEVELS) or not all(isinstance(n, int | float) for n in numbers):
            raise ValueError(
                f"config.loss.{field} must have {len(LEVELS)} numbers, for {', '.join(LEVELS)}"
            )
    check_groups(config)
    try:
        ImagePreprocessing(
            resize=config.data.resize,
            crop=config.data.crop,
            read_as=config.data.read_as or RELEASED,
            fit=config.data.fit,
            resampling=config.data.resampling,
            scaling=config.data.scaling,
        )
    except ValueError as error:
        raise ValueError(f"config.data.{error}") from error
    known = config.copy_and_resolve_references()
    known.model.text.vocabulary_size = known.model.text.vocabulary_size or 1
    model = CMAP.from_config(known)
    if config.eval.overlap:
        check_parts(model)
    if config.loss.entropy_floor and not has_preservation(model):
        raise ValueError(
            "config.loss.entropy_floor is of the preservation attention, which "
            f"config.model.variant={config.model.variant} lacks: set it to 0"
        )
