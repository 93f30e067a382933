r"""The config file through which a stored config, in a workdir or a JSON file, takes overrides.

python main.py --mode=evaluate --workdir=runs/garments --config.eval.rankings=true
python main.py --mode=evaluate --workdir=runs/cirr --config=configs/circo.py \
    --config.data.directory=circo
python main.py --mode=describe --config=runs/garments/config.json
"""

import json
import runpy

from etils import epath
from ml_collections import ConfigDict

from cmap_jax.workdir import description as workdir
from configs import default


def get_config(argument: str) -> ConfigDict:
    """Return what `read` returns.

    Args:
        argument: its first argument, or both as a JSON list, since a path may have any character.
            A path that begins as a list does is in a list.
    """
    return read(*(json.loads(argument) if argument.startswith("[") else [argument]))


def read(source: str, data_config: str | None = None) -> ConfigDict:
    """Return a stored config in which fields that are None take overrides of their type.

    Args:
        source: path of the workdir or the JSON file.
        data_config: a --config value, whose data set replaces the stored one; None to keep it.

    Raises:
        ValueError: the stored config is broken; names the file.
    """
    is_file = source.endswith(".json") and not epath.Path(source).is_dir()
    stored = workdir.read_config_file(source) if is_file else workdir.read_config(source)
    config = default.get_config()
    with config.unlocked():
        try:
            config.update(stored)
        except (TypeError, ValueError) as error:  # a value of another type
            raise ValueError(f"{source}: {error}") from error
    if data_config:
        path, _, other_argument = data_config.partition(":")
        use_data_set(config, runpy.run_path(path)["get_config"](other_argument).data.name)
    return config


def use_data_set(config: ConfigDict, name: str) -> None:
    """Set a config to another data set and unset its folders; the config's own changes nothing."""
    if name != config.data.name:
        config.data.name = name
        config.data.directory = None
        config.data.image_directory = None
        config.data.features = None
