"""torchvision's ResNet weights as variables of `cmap_jax.models.encoders.resnet.ResNet`."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np

from cmap_jax.convert.state_dict import check_names, check_numbers, read_state_dict
from cmap_jax.models.encoders.resnet import ResNet

# Our names of a layer's arrays, with torchvision's.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_STEM = {"stem_conv": "conv1", "stem_norm": "bn1"}
_LAYER = {"conv_shortcut": "downsample.0", "norm_shortcut": "downsample.1"}


def resnet_name(path: tuple[str, ...]) -> str:
    """Return torchvision's name of a variable of `ResNet`, given its path in the tree.

    ``("stage2_block1", "conv_shortcut", "kernel")`` is ``layer2.0.downsample.0.weight``.
    """
    *modules, leaf = path
    if len(modules) == 1:
        return f"{_STEM[modules[0]]}.{LEAVES[leaf]}"
    block, layer = modules
    stage, number = block.removeprefix("stage").split("_block")
    layer = _LAYER.get(layer) or layer.replace("norm", "bn")
    return f"layer{stage}.{int(number) - 1}.{layer}.{LEAVES[leaf]}"


def to_torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a variable of ours has in a torch state dict."""
    if path[-1] == "kernel" and len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])  # HWIO -> OIHW
    return shape[::-1] if _is_transposed(path) else shape


def to_our_layout(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """Return a torch tensor in the layout of our variable at ``path``."""
    if path[-1] == "kernel" and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if _is_transposed(path) else array


def _is_transposed(path: tuple[str, ...]) -> bool:
    return path[-1] in ("kernel", "weight_ih", "weight_hh")


def is_counter(name: str) -> bool:
    """Tell whether a name is that of batch-norm's count of batches, which is not used."""
    return name.endswith(".num_batches_tracked")


def translate(
    names: Mapping[tuple[str, ...], str],
    shapes: Mapping[tuple[str, ...], Any],
    state: Mapping[str, np.ndarray],
    path: str | os.PathLike,
) -> dict[str, Any]:
    """Return a state dict as our variables, or refuse one that does not fit.

    Args:
        names: torch's name of every variable, by its path (collection first).
        shapes: our variables, or their shapes, by path.
        state: the tensors by torch's name, without those to ignore.
        path: the file that they are from, for the message.

    Raises:
        WeightsError: lists missing, unexpected and misshapen names, and values that are not finite.
    """
    expected = {names[p]: to_torch_shape(p, shape.shape) for p, shape in shapes.items()}
    check_names(expected, state, path)
    check_numbers(state, path)
    return flax.traverse_util.unflatten_dict(
        {p: np.array(to_our_layout(p, state[names[p]]), order="C") for p in shapes}
    )


def load_network(
    network: nn.Module,
    name_of: Callable[[tuple[str, ...]], str],
    ignored: tuple[str, ...],
    path: str | os.PathLike,
) -> dict[str, Any]:
    """Read a state dict as the variables of a convolutional network.

    Args:
        network: called with images whose sides are multiples of 32, and ``train=``.
        name_of: from a variable's path, without its collection, to torch's name of it.
        ignored: beginnings of the names of tensors that are not used.
        path: a ``.safetensors`` file or a torch file.

    Returns:
        ``params`` and ``batch_stats``, float32.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: not such a file, or another network; lists the names that do not fit.
    """
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), images)
    shapes = flax.traverse_util.flatten_dict(variables)
    state = {
        name: array
        for name, array in read_state_dict(path).items()
        if not is_counter(name) and not name.startswith(ignored)
    }
    translated = translate({p: name_of(p[1:]) for p in shapes}, shapes, state, path)
    return jax.tree.map(lambda x: x.astype(np.float32), translated)


def under_backbone(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's variables, by collection, as those that belong under ``image_encoder``."""
    return {collection: {"backbone": values} for collection, values in variables.items()}


def load_resnet(path: str | os.PathLike, *, depth: int, width: int = 64) -> dict[str, Any]:
    """Read a torchvision ResNet (timm's files of ``resnet18/34/50`` use the same names).

    Args:
        path: a ``.safetensors`` file or a torch file with a state dict; ``fc`` is ignored.
        depth: 18, 34 or 50 layers.
        width: channels of the stem; 64 in the published files.

    Returns:
        ``params`` and ``batch_stats`` of `cmap_jax.models.encoders.resnet.ResNet`, float32.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: not such a file, or another network; lists the names that do not fit.
    """
    return load_network(ResNet(depth, width), resnet_name, ("fc.",), path)


def load_backbone(path: str | os.PathLike, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read what `load_resnet` reads, for the image encoder "resnet".

    Args:
        path: see `load_resnet`.
        settings: ``config.model.image.resnet``.

    Returns:
        ``params`` and ``batch_stats`` that belong under ``image_encoder``.
    """
    return under_backbone(load_resnet(path, depth=settings["depth"], width=settings["width"]))
