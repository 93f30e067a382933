"""Fashion200k: CMAP with a ResNet-50 on pairs sampled online, one text a query (SPEC 5).

python main.py --config=configs/fashion200k.py --config.data.directory=fashion200k
python main.py --config=configs/fashion200k.py:debug --config.data.directory=fashion200k

The folder holds `labels`, `test_queries.txt` and `women`; images elsewhere:
`--config.data.image_directory=...`. "debug" is a model for a CPU and two short epochs.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; ``arg`` is empty or "debug"."""
    if arg not in ("", "debug"):
        raise ValueError(f'configs/fashion200k.py takes no argument or "debug", not {arg!r}')
    config = default.get_config()
    config.data.name = "fashion200k"
    if arg == "debug":
        default.shrink(config)
    return config
