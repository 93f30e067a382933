"""Rendered garments: CMAP from scratch in minutes on two CPU cores, nothing to download.

python main.py --config=configs/garments.py
python main.py --config=configs/garments.py:debug      # 20 steps and all evaluations
python main.py --config=configs/garments.py:clip_vit_b32  # tiny towers of CLIP's kind
"""

from ml_collections import ConfigDict

from configs import default, towers


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; ``arg`` is empty, "debug", a tower, or both."""
    words = default.parse_argument(arg, "configs/garments.py", ("debug",))
    config = default.get_config()
    towers.use(config, words)
    default.shrink(config)
    config.eval.batch_size = 256

    config.data.name = "garments"
    config.data.directory = "data/garments"
    if "debug" in words:
        config.data.directory = "data/garments_debug"
        config.data.garments.train_triplets = 640
    return config
