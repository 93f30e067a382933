r"""A stored config, a workdir's or a file like it, for overrides.

python main.py --mode=evaluate --workdir=runs/garments --config.eval.rankings=true
python main.py --mode=evaluate --workdir=runs/cirr --config=configs/circo.py \
    --config.data.directory=circo
python main.py --mode=describe --config=runs/garments/config.json
"""

import runpy

from ml_collections import ConfigDict

from cmap_jax.workdir import description as workdir
from configs import default


def get_config(argument: str) -> ConfigDict:
    """Return a stored config, its empty fields open to overrides of the right type.

    Args:
        argument: the workdir, or a JSON file; and, after a "|", a config file whose data set is to
            be evaluated on, where it is another one than the stored config's.

    Raises:
        ValueError: the stored config is broken; names the file.
    """
    source, _, other_file = argument.partition("|")
    is_file = source.endswith(".json")
    stored = workdir.read_config_file(source) if is_file else workdir.read_config(source)
    config = default.get_config()
    with config.unlocked():
        try:
            config.update(stored)
        except (TypeError, ValueError) as error:  # a value of another type
            raise ValueError(f"{source}: {error}") from error
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
