r"""TFDS builders of all data sets, over the same readers: for `tfds build`.

    tfds build fashion_iq/jpeg --imports=input_pipeline.builders --manual_dir=fashion-iq \\
        --data_dir=prepared

See `input_pipeline.prepared` for what is written, and `base.ImageConfig` for the settings: a config
of one's own is JSON, ``--config='{"name": "jpeg224", "resize": 224, "quality": 90}'``.
"""

from input_pipeline.builders.base import make_builder
from input_pipeline.registry import DATA_SETS

BUILDERS = {name: make_builder(data_set) for name, data_set in DATA_SETS.items()}

__all__ = ["BUILDERS"]
