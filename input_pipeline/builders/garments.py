"""The rendered garments as a TFDS data set; nothing is to be downloaded."""

import dataclasses
import os
from typing import ClassVar

import tensorflow_datasets as tfds

from input_pipeline.builders.base import ImageConfig, RecordsBuilder
from input_pipeline.garments import reader
from input_pipeline.records import Records

_SIDE = 72  # pixels, as configs/garments.py has them


@dataclasses.dataclass(eq=False, kw_only=True)
class GarmentsConfig(ImageConfig):
    """How garments are rendered: the fields of ``config.data.garments``; and how they are stored.

    Attributes:
        seed: of the pictures and captions.
        image_size: of the pictures, pixels.
        train_triplets: each gives two items, one per caption order.
    """

    resize: int = _SIDE
    seed: int = 0
    image_size: int = _SIDE
    train_triplets: int = 20_000

    def __post_init__(self):
        """Refuse impossible settings before any work.

        Raises:
            ValueError: names the field.
        """
        super().__post_init__()
        if self.image_directory:
            raise ValueError("image_directory: garments keep their images with them")


class Garments(RecordsBuilder):
    """Garments drawn by this library, with captions made from what differs."""

    DESCRIPTION = (
        "Composed image retrieval on rendered garments, one image a combination of attributes: "
        "two captions say what changes from the reference to the target."
    )
    BUILDER_CONFIGS: ClassVar[list[ImageConfig]] = [
        GarmentsConfig(name="jpeg", description=f"JPEG of quality 95, {_SIDE} pixels a side."),
        GarmentsConfig(
            name="png", description=f"Without loss, {_SIDE} pixels a side.", encoding="png"
        ),
    ]
    builder_config_cls = GarmentsConfig

    def _read(self, dl_manager: tfds.download.DownloadManager) -> Records:
        config = self.builder_config
        settings = {k: getattr(config, k) for k in ("seed", "image_size", "train_triplets")}
        folder = "-".join(["garments", *map(str, settings.values())])
        return reader.read(os.path.join(dl_manager.download_dir, folder), **settings)
