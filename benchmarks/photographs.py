r"""Recalls on photographs with a pretrained encoder: CMAP beside its rivals and the shortcuts.

cmap sweep --config=benchmarks/photographs.py --config.data.directory=FOLDER \
    --config.data.resize=146 --config.data.crop=128 --seeds 3 --workdir=runs/photographs

FOLDER is in Fashion200k's layout. Every run has the config of configs/fashion200k.py:pretrained. A
second stage, which trains the encoder too, starts from the runs of that sweep:

cmap sweep --config=benchmarks/photographs.py:pretrained,finetune \
    '--config.init_from=runs/photographs/{row}/seed-{seed}' --config.data.directory=FOLDER \
    --config.data.resize=146 --config.data.crop=128 --seeds 3 --workdir=runs/photographs-finetuned
"""

import pathlib
import runpy
from typing import Any

from ml_collections import ConfigDict

from configs import fashion200k

_GARMENTS = pathlib.Path(__file__).with_name("garments.py")


def get_config(arg: str = "pretrained") -> ConfigDict:
    """Return the config of all runs; ``arg`` as configs/fashion200k.py takes it."""
    return fashion200k.get_config(arg)


def get_hyper(hyper: Any) -> list[dict[str, Any]]:
    """Return a row for each method: those of the garments, and late fusion."""
    late_fusion = {"name": "late_fusion", "config.model.variant": "late_fusion"}
    # This folder is no package, from which a module could be imported.
    return [*runpy.run_path(str(_GARMENTS))["get_hyper"](hyper), late_fusion]
