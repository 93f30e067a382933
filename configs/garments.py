"""Rendered garments: CMAP from scratch in minutes on two CPU cores, nothing to download.

python main.py --config=configs/garments.py
python main.py --config=configs/garments.py:debug      # the whole path in a minute
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; ``arg`` is empty or "debug"."""
    if arg not in ("", "debug"):
        raise ValueError(f'configs/garments.py takes no argument or "debug", not {arg!r}')
    config = default.get_config()
    debug = arg == "debug"

    default.shrink(config)
    config.eval.batch_size = 256

    config.data.name = "garments"
    config.data.directory = "data/garments"
    config.data.garments = ConfigDict()  # how the data are rendered
    config.data.garments.seed = 0
    config.data.garments.image_size = 72  # pixels
    config.data.garments.train_triplets = 20000  # each gives two items, one per caption order
    if debug:
        config.data.directory = "data/garments_debug"
        config.data.garments.train_triplets = 640
    return config
