r"""The config of an existing workdir, for overrides in evaluate mode.

python main.py --mode=evaluate --workdir=runs/garments --config.eval.rankings=true
python main.py --mode=evaluate --workdir=runs/cirr --config=configs/circo.py \
    --config.data.directory=circo
"""

import runpy

from ml_collections import ConfigDict

from cmap_jax import workdir
from configs import default


def get_config(argument: str) -> ConfigDict:
    """Return a workdir's config, its empty fields open to overrides of the right type.

    Args:
        argument: the workdir; and, after a "|", a config file whose data set is to be evaluated
            on, where it is another one than the workdir's.
    """
    folder, _, other_file = argument.partition("|")
    config = default.get_config()
    with config.unlocked():
        config.update(workdir.read_config(folder))
    if other_file:
        path, _, other_argument = other_file.partition(":")
        use_data_set(config, runpy.run_path(path)["get_config"](other_argument).data.name)
    return config


def use_data_set(config: ConfigDict, name: str) -> None:
    """Point a config at another data set, whose folders are then to be given."""
    if name != config.data.name:
        config.data.name = name
        config.data.directory = None
        config.data.image_directory = None
