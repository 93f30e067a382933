r"""The config file through which a stored config, in a workdir or a JSON file, takes overrides.

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
    """Return a stored config in which fields that are None take overrides of their type.

    Args:
        argument: path of the workdir or the JSON file. After a "|" there may be a --config value,
            whose data set replaces the stored one.

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
    """Set a config to another data set and unset its folders; the config's own changes nothing."""
    if name != config.data.name:
        config.data.name = name
        config.data.directory = None
        config.data.image_directory = None
        config.data.features = None
