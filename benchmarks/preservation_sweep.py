r"""Does the preservation loss help over a frozen encoder? On stored features, by the sweep command.

RUN="--config.data.directory=FOLDER --config.data.resize=128 --config.data.crop=128 \
    --config.data.augment=false"
cmap extract --config=configs/fashion200k.py:pretrained $RUN --out features
cmap sweep --config=benchmarks/preservation_sweep.py $RUN --config.data.features=features \
    --seeds 3 --workdir=runs/preservation

FOLDER holds photographs in Fashion200k's layout. The recalls are those of the last step. What came
out, and what `benchmarks/preservation.py` measures from scratch: docs/preservation_loss.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import fashion200k

_STEPS = 368  # A run has 16 epochs of 23 steps.
_NO_LOSS = {"config.loss.preservation_weights": (0.0, 0.0, 0.0)}
_QUARTER = {"config.loss.margins": (0.15, 0.1, 0.075)}
_MODIFICATION = {"config.loss.alpha": 0.0}
_DETACHED = {"config.loss.preservation_moves_text": False}
_MAXIMUM = {"config.loss.preservation_reversal": "maximum"}
_THRICE = {
    "config.train.epochs": 48,
    "config.optimizer.halve_every": 12,
    "config.optimizer.halve_faster_from": 60,
}


def get_config(arg: str = "pretrained") -> ConfigDict:
    """Return the config of all runs; ``arg`` as configs/fashion200k.py takes it."""
    config = fashion200k.get_config(arg)
    # The last step alone is evaluated, in the longest run too.
    config.eval.every_epochs = config.train.checkpoint_every_epochs = 48
    return config


def get_hyper(hyper: Any) -> list[dict[str, Any]]:
    """Return a row for each setting; the others are compared with the first."""
    del hyper

    def weight(factor: float) -> dict[str, Any]:
        return {"config.loss.preservation_weights": (factor, factor, factor / 2)}

    rows = {
        "none": _NO_LOSS,
        "released": {},
        "artemis": {"config.model.variant": "artemis"},
        "margin 1/4": _QUARTER,
        "late": {"config.loss.preservation_start_steps": _STEPS // 2},
        "ramped": {"config.loss.preservation_ramp_steps": _STEPS},
        "maximum, detached": _MAXIMUM | _DETACHED,
        "T, margin 1/4": _MODIFICATION | _QUARTER,
        "T, maximum, detached": _MODIFICATION | _MAXIMUM | _DETACHED,
        "weight 0.1": weight(0.1),
        "weight 0.01": weight(0.01),
        "none, x3": _NO_LOSS | _THRICE,
        "released, x3": _THRICE,
        "floor": {"config.loss.entropy_floor": 0.9},
        "T": _MODIFICATION,
        "detached": _DETACHED,
        "clipped": {"config.loss.preservation_reversal": "clipped"},
        "artemis, x3": _THRICE | {"config.model.variant": "artemis"},
    }
    return [{"name": name, **fields} for name, fields in rows.items()]
