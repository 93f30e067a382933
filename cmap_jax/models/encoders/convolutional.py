"""Pictures and batch-norm of convolutional image encoders, which were trained on ImageNet."""

from collections.abc import Mapping
from typing import Any

from cmap_jax.models.encoders.entry import Pictures, Setting

# Per channel, the mean and deviation of ImageNet's training images (docs/method.md, section 4).
IMAGENET = Pictures(multiple=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Settings that each of these encoders has.
BATCH_NORM_SETTINGS: Mapping[str, Setting] = {
    "frozen_batch_norm": Setting(choices=("batch", "running")),
    "batch_norm_groups": Setting(least=1),
}


def batch_norm_fields(settings: Mapping[str, Any], frozen: bool) -> dict[str, Any]:
    """Return a module's attributes ``normalize_by_batch`` and ``batch_norm_groups``.

    Args:
        settings: the sub-config.
        frozen: ``config.model.image.frozen``.
    """
    return {
        "normalize_by_batch": not frozen or settings["frozen_batch_norm"] == "batch",
        "batch_norm_groups": settings["batch_norm_groups"],
    }


def why_unsteady(family: str, settings: Mapping[str, Any]) -> str:
    """Return why a frozen encoder gives an image other maps in training; empty: it does not.

    Args:
        family: name of the sub-config.
        settings: the sub-config.
    """
    if settings["frozen_batch_norm"] == "running":
        return ""
    return (
        "in training the frozen network normalizes by each batch's statistics; "
        f"--config.model.image.{family}.frozen_batch_norm=running takes the running ones"
    )
