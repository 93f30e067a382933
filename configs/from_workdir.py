"""The config of an existing workdir, for overrides in evaluate mode.

python main.py --mode=evaluate --workdir=runs/garments --config.eval.rankings=true
"""

from ml_collections import ConfigDict

from cmap_jax import workdir
from configs import default


def get_config(folder: str) -> ConfigDict:
    """Return a workdir's config, its empty fields open to overrides of the right type."""
    config = default.get_config()
    with config.unlocked():
        config.update(workdir.read_config(folder))
    return config
