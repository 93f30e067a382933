r"""TFDS builders of all data sets, over the same readers: for `tfds build`.

    tfds build fashion_iq/jpeg --imports=input_pipeline.builders --manual_dir=fashion-iq \\
        --data_dir=prepared

See `input_pipeline.prepared` for what is written, and `base.ImageConfig` for the settings: a config
of one's own is JSON, ``--config='{"name": "jpeg224", "resize": 224, "quality": 90}'``.
"""

from input_pipeline.builders.circo import Circo
from input_pipeline.builders.cirr import Cirr
from input_pipeline.builders.fashion200k import Fashion200k
from input_pipeline.builders.fashion_iq import FashionIq
from input_pipeline.builders.folder import Folder
from input_pipeline.builders.garments import Garments
from input_pipeline.builders.shoes import Shoes

__all__ = ["Circo", "Cirr", "Fashion200k", "FashionIq", "Folder", "Garments", "Shoes"]
