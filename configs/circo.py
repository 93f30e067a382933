r"""CIRCO: queries with several targets each, among all of COCO's unlabelled images.

See docs/method.md, section 5.

CIRCO has no training split. Evaluate a model that was trained on another data set:

python main.py --config=configs/circo.py --mode=evaluate --workdir=runs/cirr \
    --config.data.directory=CIRCO

The folder holds `annotations` and `COCO2017_unlabeled`; images elsewhere:
`--config.data.image_directory=...`. `cmap submit circo` writes and checks files for the evaluation
server.
"""

from ml_collections import ConfigDict

from configs import default, towers


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; ``arg`` is empty, "debug" (a model for a CPU), a tower, or both."""
    words = default.parse_argument(arg, "configs/circo.py", ("debug",))
    config = default.get_config()
    config.data.name = "circo"
    towers.use(config, words)
    if "debug" in words:
        default.shrink(config)
    return config
