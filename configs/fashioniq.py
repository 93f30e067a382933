"""FashionIQ as in the paper: one CMAP with a ResNet-50 for dress, shirt and toptee (SPEC 3).

python main.py --config=configs/fashioniq.py --config.data.directory=fashion-iq
python main.py --config=configs/fashioniq.py:debug --config.data.directory=fashion-iq

The folder holds `captions`, `image_splits` and the images; images elsewhere:
`--config.data.image_directory=...`. "debug" is a model for a CPU and two short epochs.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; ``arg`` is empty or "debug"."""
    if arg not in ("", "debug"):
        raise ValueError(f'configs/fashioniq.py takes no argument or "debug", not {arg!r}')
    config = default.get_config()
    config.data.name = "fashion_iq"
    if arg == "debug":
        default.shrink(config)
    return config
