r"""Does the preservation loss help? Some of its settings by the library's own command, on CPU too.

cmap sweep --config=benchmarks/preservation_sweep.py --config.data.directory=FOLDER --seeds 3 \
    --workdir=runs/preservation
cmap sweep --config=benchmarks/preservation_sweep.py:garments --seeds 3 \
    --workdir=runs/preservation-garments

FOLDER holds photographs in Fashion200k's layout. The recalls are those of the last step. What
`benchmarks/preservation.py` measures besides, on a GPU, and what came out of both:
docs/preservation_loss.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import fashion200k, garments

_SETS = ("photographs", "garments")
_NO_TEXT = {"config.loss.alpha": 0.0}
_QUARTER = {"config.loss.margins": (0.15, 0.1, 0.075)}


def get_config(arg: str = "photographs") -> ConfigDict:
    """Return the config of all runs; ``arg`` is "photographs" or "garments"."""
    if arg not in _SETS:
        raise ValueError(f"unknown data {arg!r}; known: {', '.join(_SETS)}")
    if arg == "garments":
        config = garments.get_config()
    else:
        config = fashion200k.get_config("debug")
        config.train.epochs = 24
    config.eval.every_epochs = config.train.epochs
    return config


def get_hyper(hyper: Any) -> list[dict[str, Any]]:
    """Return a row for each setting; "T" compares with the modification in place of the text."""
    del hyper
    reversed_by_maximum = {
        "config.loss.preservation_reversal": "maximum",
        "config.loss.preservation_moves_text": False,
    }
    return [
        {"name": "none", "config.loss.preservation_weights": (0.0, 0.0, 0.0)},
        {"name": "T, maximum, detached", **_NO_TEXT, **reversed_by_maximum},
        {"name": "T, margin 1/4", **_NO_TEXT, **_QUARTER},
        {"name": "weight 0.1", "config.loss.preservation_weights": (0.002, 0.002, 0.001)},
        {"name": "T", **_NO_TEXT},
    ]
