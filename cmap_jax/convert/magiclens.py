"""MagicLens' published weights as config fields and variables of ours.

    model = load_magiclens("magic_lens_clip_base.pkl")
    config.update_from_flattened_dict(model.changes)
    scores = CMAP.from_config(config).apply(model.variables, ...)

See docs/method.md, section 10. A file is a pickle of one bytes object, which is Flax's msgpack of a
nested dict of arrays; nothing in it is executed.
"""

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from cmap_jax.convert.bytes_pickle import read_bytes_pickle
from cmap_jax.convert.state_dict import WeightsError, check_names, check_numbers
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders.clip import LARGEST_ID
from configs import default

_TEMPERATURE = "clip/logit_scale"  # CLIP's, which MagicLens does not use
_ENCODER, _POOLER = "multimodal_encoder", "contrastive_multimodal_pooler"
_BLOCKS = "transformer/resblocks_"
# The released name of each of our modules or parameters, by the part of the model.
_BLOCK = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attention": "attn",
    "mlp/fc1": "mlp/c_fc",
    "mlp/fc2": "mlp/c_proj",
}
_VISION = {
    "patch_embedding": "conv1",
    "class_embedding": "class_embedding",
    "position_embedding": "positional_embedding",
    "pre_norm": "ln_pre",
    "post_norm": "ln_post",
    "projection": "proj",
}
_TEXT = {
    "token_embedding": "token_embedding/embedding",
    "position_embedding": "positional_embedding",
    "final_norm": "ln_final",
    "projection": "text_projection",
}
_TOWERS = {
    ("image_encoder", "backbone"): ("clip/visual", _VISION),
    ("text_encoder",): ("clip/text", _TEXT),
}
_LAYER = {
    "norm1": "layer_norm",
    "norm2": "ff_layer/layer_norm",
    "fc1/kernel": "ff_layer/ffn_layer1/linear/w",
    "fc1/bias": "ff_layer/ffn_layer1/bias/b",
    "fc2/kernel": "ff_layer/ffn_layer2/linear/w",
    "fc2/bias": "ff_layer/ffn_layer2/bias/b",
}
_ATTENTION = {
    **{
        f"{part}/{ours}": f"{part}/{theirs}"
        for part in ("query", "key", "value")
        for ours, theirs in (("kernel", "w"), ("bias", "b"))
    },
    "out_kernel": "post/w",
    "out_bias": "post/b",
    "dimension_scale": "per_dim_scale/per_dim_scale",
}


class MagicLensModel(NamedTuple):
    """A model read from a file.

    Attributes:
        changes: config fields by path, such as "model.image.clip.width" and "data.crop", for
            ``ConfigDict.update_from_flattened_dict``.
        variables: ``params`` of the whole model, float32.
    """

    changes: dict[str, Any]
    variables: dict[str, Any]


def load_magiclens(path: str | os.PathLike) -> MagicLensModel:
    """Read one of the published files, ``magic_lens_clip_base.pkl`` or ``..._large.pkl``.

    Sizes are inferred from the shapes. The temperature is that of a new model: the file's is CLIP's
    and plays no part.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: not such a file, or a damaged one; lists missing, unexpected and misshapen
            names, and those of weights that are not finite.
    """
    arrays = _read_arrays(path)
    changes = infer_fields(arrays, path)
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    try:
        shapes = parameter_shapes(CMAP.from_config(config), config.data.crop)
    except ValueError as error:  # sizes that do not fit one another
        raise WeightsError(f"{os.fspath(path)}: not MagicLens' weights: {error}") from error
    expected = released_arrays(shapes)
    check_names(expected, arrays, path)
    check_numbers(arrays, path)
    params = {}
    for name, shape in shapes.items():
        if name == ("logit_scale",):
            params[name] = np.asarray(config.model.logit_scale, np.float32)
            continue
        layers = [arrays[source] for source in released_names(name, shape)]
        array = np.stack(layers) if name_has_layers(name) else layers[0]
        params[name] = array.astype(np.float32)
    return MagicLensModel(changes, {"params": flax.traverse_util.unflatten_dict(params)})


def parameter_shapes(model: CMAP, image_size: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shapes of a model's parameters by path."""
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), **CMAP.example_inputs(image_size))
    )
    flat = flax.traverse_util.flatten_dict(shapes["params"])
    return {path: leaf.shape for path, leaf in flat.items()}


def released_arrays(
    shapes: Mapping[tuple[str, ...], tuple[int, ...]],
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all arrays in the released file of a model, by name.

    Args:
        shapes: those of our parameters by path; see `parameter_shapes`.
    """
    return {
        name: shape[1:] if name_has_layers(path) else shape
        for path, shape in shapes.items()
        for name in released_names(path, shape)
    }


def released_names(path: tuple[str, ...], shape: tuple[int, ...]) -> list[str]:
    """Return the released names of a parameter of ours, one for each layer that it stacks."""
    if path == ("logit_scale",):
        return [_TEMPERATURE]
    for ours, (prefix, names) in _TOWERS.items():
        if path[: len(ours)] == ours:
            return _tower_names(prefix, names, path[len(ours) :], shape)
    return [_composer_name(*path[1:])]


def name_has_layers(path: tuple[str, ...]) -> bool:
    """Tell whether a parameter of ours stacks those of all layers."""
    return "blocks" in path


def _tower_names(
    prefix: str, names: Mapping[str, str], path: tuple[str, ...], shape: tuple[int, ...]
) -> list[str]:
    if path[0] != "blocks":
        return [f"{prefix}/{_renamed(path, names)}"]
    name = _renamed(path[1:], _BLOCK)
    return [f"{prefix}/{_BLOCKS}{layer}/{name}" for layer in range(shape[0])]


def _composer_name(module: str, *path: str) -> str:
    if module == "pooling_query":
        return f"{_POOLER}/pooling_attn_query"
    if module == "pooler_norm":
        return f"{_POOLER}/pool_attn_ln/{path[0]}"
    if module == "pooler":
        return f"{_POOLER}/pool_attn/{_ATTENTION['/'.join(path)]}"
    layer = f"{_ENCODER}/x_layers_{int(module.removeprefix('layer')) - 1}"
    if path[0] == "attention":
        return f"{layer}/self_attention/{_ATTENTION['/'.join(path[1:])]}"
    return f"{layer}/{_renamed(path, _LAYER)}"


def _renamed(path: tuple[str, ...], names: Mapping[str, str]) -> str:
    """Return a path with the longest beginning that has another name replaced by it."""
    for end in range(len(path), 0, -1):
        start = "/".join(path[:end])
        if start in names:
            return "/".join([names[start], *path[end:]])
    raise KeyError("/".join(path))


def infer_fields(arrays: Mapping[str, np.ndarray], path: str | os.PathLike) -> dict[str, Any]:
    """Return the config fields of a file's model, by path.

    Args:
        arrays: the file's arrays by name.
        path: the file, for the message.

    Raises:
        WeightsError: arrays that show a size are missing, empty or have another number of axes.
    """

    def size(name: str, axis: int, axes: int) -> int:
        array = arrays.get(name)
        if array is None or array.ndim != axes or not array.size:
            state = "is missing" if array is None else f"is of the shape {array.shape}"
            raise WeightsError(
                f"{os.fspath(path)}: not MagicLens' weights: {name} {state}. Give "
                "magic_lens_clip_base.pkl or magic_lens_clip_large.pkl"
            )
        return array.shape[axis]

    def layers(prefix: str) -> int:
        names = [n.removeprefix(prefix) for n in arrays if n.startswith(prefix)]
        return len({name.partition("/")[0] for name in names})

    def tower(part: str, prefix: str) -> dict[str, Any]:
        first = f"{prefix}/{_BLOCKS}0"
        return {
            f"{part}.width": size(f"{first}/attn/query/kernel", 0, 3),
            f"{part}.layers": layers(f"{prefix}/{_BLOCKS}"),
            f"{part}.heads": size(f"{first}/attn/query/kernel", 1, 3),
            f"{part}.mlp_width": size(f"{first}/mlp/c_fc/kernel", 1, 2),
            f"{part}.activation": "quick_gelu",
            f"{part}.epsilon": 1e-5,
        }

    patch = size("clip/visual/conv1/kernel", 0, 4)
    side = patch * math.isqrt(size("clip/visual/positional_embedding", 0, 2) - 1)
    width = size("clip/visual/proj/kernel", 1, 2)
    return {
        "model.variant": "magiclens",
        "model.embed_dim": width,
        "model.magiclens.layers": layers(f"{_ENCODER}/x_layers_"),
        "model.magiclens.heads": size(f"{_ENCODER}/x_layers_0/self_attention/query/w", 1, 3),
        "model.image.name": "clip",
        **tower("model.image.clip", "clip/visual"),
        "model.image.clip.patch": patch,
        "model.image.clip.image_size": side,
        "model.image.clip.map_blocks": (),
        "model.image.clip.projection": width,
        "model.text.name": "clip",
        "model.text.tokenizer": "clip",
        "model.text.vocabulary_size": size("clip/text/token_embedding/embedding", 0, 2),
        **tower("model.text.clip", "clip/text"),
        "model.text.clip.positions": size("clip/text/positional_embedding", 0, 2),
        "model.text.clip.projection": width,
        "model.text.clip.end_token": LARGEST_ID,
        "data.fit": "stretch",
        "data.resampling": "bilinear",
        "data.resize": side,
        "data.crop": side,
        "data.scaling": "own_maximum",
    }


def _read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return a file's arrays by name, such as "clip/visual/conv1/kernel"."""
    content = read_bytes_pickle(path)
    try:
        tree = flax.serialization.msgpack_restore(content)
        arrays = flax.traverse_util.flatten_dict(tree.get("params", tree), sep="/")
        for name, array in arrays.items():
            if not jnp.issubdtype(getattr(array, "dtype", np.void), jnp.floating):
                raise TypeError(f"{name} is no array of floating-point numbers")
        return {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    except Exception as error:  # damaged bytes lead the reader anywhere
        raise WeightsError(
            f"{os.fspath(path)}: not Flax's arrays, or truncated: {str(error)[:200]}. Fetch it "
            "again"
        ) from error
