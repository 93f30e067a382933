"""Recalls on the rendered garments: CMAP beside its ablations and the shortcuts, over seeds.

cmap sweep --config=benchmarks/garments.py --seeds 3 --workdir=runs/benchmark

Every run has the config of configs/garments.py. The figures are runs/benchmark/table.json.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import garments

METHODS: dict[str, dict[str, Any]] = {
    "cmap": {},
    "cmap, no preservation loss": {"config.loss.preservation_weights": (0.0, 0.0, 0.0)},
    "artemis": {"config.model.variant": "artemis"},
    "text_only": {"config.model.variant": "text_only"},
    "image_only": {"config.model.variant": "image_only"},
}


def get_config(arg: str = "") -> ConfigDict:
    """Return the config of all runs; ``arg`` as configs/garments.py takes it."""
    return garments.get_config(arg)


def get_hyper(hyper: Any) -> list[dict[str, Any]]:
    """Return a row for each method; the others are compared with the first."""
    return [{"name": name, **fields} for name, fields in METHODS.items()]
