"""CLIP and SigLIP as Hugging Face stores them, as config fields and variables of ours.

    changes, variables, folder = load_hugging_face("openai/clip-vit-base-patch32")
    config.update_from_flattened_dict(changes)
    model = CMAP.from_config(config)

See docs/method.md, section 9. PyTorch is not needed.
"""

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cmap_jax.convert.hugging_face_config import read_fields
from cmap_jax.convert.state_dict import (
    WeightsError,
    check_names,
    check_numbers,
    read_state_dict,
)
from cmap_jax.files import check_regular_file
from cmap_jax.models.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from cmap_jax.processing.hub import CONFIG, WEIGHTS, fetch, parts_of_index

# Hugging Face's name of each of our modules or parameters; a block's follow "encoder.layers.<i>.".
_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
_VISION = {
    "patch_embedding": "vision_model.embeddings.patch_embedding",
    "class_embedding": "vision_model.embeddings.class_embedding",
    "position_embedding": "vision_model.embeddings.position_embedding.weight",
    "pre_norm": "vision_model.pre_layrnorm",  # their spelling
    "post_norm": "vision_model.post_layernorm",
    "projection": "visual_projection",
    "pooling/probe": "vision_model.head.probe",
    "pooling/attention/query": "vision_model.head.attention.q_proj",
    "pooling/attention/key": "vision_model.head.attention.k_proj",
    "pooling/attention/value": "vision_model.head.attention.v_proj",
    "pooling/attention/out": "vision_model.head.attention.out_proj",
    "pooling/norm": "vision_model.head.layernorm",
    "pooling/mlp/fc1": "vision_model.head.mlp.fc1",
    "pooling/mlp/fc2": "vision_model.head.mlp.fc2",
}
_TEXT = {
    "token_embedding": "text_model.embeddings.token_embedding.weight",
    "position_embedding": "text_model.embeddings.position_embedding.weight",
    "final_norm": "text_model.final_layer_norm",
}
_TEXT_PROJECTION = {"clip": "text_projection", "siglip": "text_model.head"}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_IN_PROJECTION = "vision_model.head.attention.in_proj_"  # query, key and value in one array


class HuggingFaceModel(NamedTuple):
    """A CLIP or SigLIP, read from a folder.

    Attributes:
        changes: config fields by path, such as "model.image.clip.width" and "data.crop", for
            ``ConfigDict.update_from_flattened_dict``; see `read_fields`.
        variables: ``params`` of both towers, under ``image_encoder/backbone`` and
            ``text_encoder``, float32.
        folder: where the tokenizer's files are: the model's folder, or that of the cache.
    """

    changes: dict[str, Any]
    variables: dict[str, Any]
    folder: epath.Path


def load_hugging_face(folder_or_id: str | os.PathLike) -> HuggingFaceModel:
    """Read a CLIP or SigLIP of a fixed picture size; nothing that a file says is executed.

    Args:
        folder_or_id: a folder with ``config.json`` and ``model.safetensors`` or its parts (or
            ``pytorch_model.bin``); or an id of the hub, whose files are taken
            from the cache or downloaded.

    Raises:
        FileNotFoundError: no such folder, or a file in it is missing; names it.
        WeightsError: another model, or a damaged file; names it.
    """
    folder = fetch(folder_or_id, CONFIG, WEIGHTS)
    changes = read_fields(folder)
    model = _nested(changes)["model"]
    family, rows = model["image"]["name"], model["text"]["vocabulary_size"]
    state = _read_state(folder)
    image = _image_tower(family, model["image"][family], state, folder)
    text = _text_tower(family, model["text"][family], rows, state, folder)
    variables = {"image_encoder": {"backbone": image}, "text_encoder": text}
    return HuggingFaceModel(changes, {"params": variables}, folder)


def fill_pretrained(config: ConfigDict, typed: frozenset[str] = frozenset()) -> ConfigDict:
    """Return a config with ``config.model.pretrained`` replaced by the fields that it stands for.

    They are the fields of `read_fields` and both ``init_from``. Weights are not read. Where the
    config's image encoder is of that family already, ``config.data.fit`` and
    ``config.data.resampling`` are left as they are, since a config may choose others. A run that
    starts from a whole model, ``config.init_from``, has its weights from there: no ``init_from`` of
    an encoder is set.

    Args:
        config: a whole config; without ``config.model.pretrained`` it is returned unchanged.
        typed: paths of fields that keep their values, such as "data.fit".

    Raises:
        FileNotFoundError: no such folder or id.
        WeightsError: another model than a CLIP or SigLIP.
    """
    source = config.model.get("pretrained")
    if not source:
        return config
    changes = read_fields(fetch(source, CONFIG))
    if config.model.image.name == changes["model.image.name"]:
        typed = typed | {"data.fit", "data.resampling"}
    if config.init_from is None:
        changes |= {"model.image.init_from": source, "model.text.init_from": source}
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({k: v for k, v in changes.items() if k not in typed})
    config.model.pretrained = None
    return config


def load_image_tower(source: str | os.PathLike, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read a vision tower, for the image encoders "clip" and "siglip".

    Args:
        source: see `load_hugging_face`.
        settings: the encoder's sub-config.

    Returns:
        ``params`` that belong under ``image_encoder``.

    Raises:
        FileNotFoundError, WeightsError: as `load_hugging_face`, or another architecture.
    """
    folder, stored = _open_tower("image", source, settings)
    tower = _image_tower(stored["name"], settings, _read_state(folder), folder)
    return {"params": {"backbone": tower}}


def load_text_tower(
    source: str | os.PathLike, settings: Mapping[str, Any], tokenizer: Any, *_: Any
) -> dict[str, Any]:
    """Read a text tower, for the text encoders "clip" and "siglip".

    Args:
        source: see `load_hugging_face`.
        settings: the encoder's sub-config.
        tokenizer: must have as many ids as the token embedding has rows.

    Returns:
        ``params`` that belong under ``text_encoder``.

    Raises:
        FileNotFoundError, WeightsError: as `load_hugging_face`, or another architecture or number
            of ids.
    """
    folder, stored = _open_tower("text", source, settings)
    rows = stored["vocabulary_size"]
    if len(tokenizer) != rows:
        raise WeightsError(
            f"{folder / 'config.json'}: vocab_size is {rows}, but the tokenizer has "
            f"{len(tokenizer)} ids: take the tokenizer files that belong to these weights"
        )
    return {"params": _text_tower(stored["name"], settings, rows, _read_state(folder), folder)}


def check_image_tower(source: str | os.PathLike, settings: Mapping[str, Any]) -> None:
    """Raise what `load_image_tower` will raise, but for the weights themselves."""
    _weight_files(_open_tower("image", source, settings)[0])


def check_text_tower(source: str | os.PathLike, settings: Mapping[str, Any]) -> None:
    """Raise what `load_text_tower` will raise, but for the weights themselves and the tokenizer."""
    _weight_files(_open_tower("text", source, settings)[0])


def _open_tower(
    part: str, source: str | os.PathLike, settings: Mapping[str, Any]
) -> tuple[epath.Path, dict[str, Any]]:
    """Return a model's folder and its ``config.model.image`` or ``config.model.text``.

    Raises:
        WeightsError: ``settings`` are those of another architecture.
    """
    folder = fetch(source, CONFIG, WEIGHTS)
    stored = _nested(read_fields(folder))["model"][part]
    family = stored["name"]
    different = [
        f"config.model.{part}.{family}.{name} is {settings.get(name)!r}, there {value!r}"
        for name, value in stored[family].items()
        if name != "map_blocks" and _plain(settings.get(name)) != _plain(value)
    ]
    if different:
        raise WeightsError(
            f"{folder / 'config.json'}: weights of another model: {'; '.join(different)}. "
            f"--config.model.pretrained={source} sets all fields"
        )
    return folder, stored


def _image_tower(
    family: str,
    settings: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    folder: epath.Path,
) -> dict[str, Any]:
    settings = {"interpolate_positions": False, "scan_layers": True, **settings}
    tower = IMAGE_ENCODERS[family].build(settings, False, "none", np.float32)
    side = settings["image_size"]
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    shapes = jax.eval_shape(lambda x: tower.init(jax.random.key(0), x, train=False), images)
    state = {k: v for k, v in state.items() if k.startswith(("vision_model.", "visual_"))}
    return _translate(_VISION, "vision_model", shapes["params"], _split_projection(state), folder)


def _text_tower(
    family: str,
    settings: Mapping[str, Any],
    vocabulary_size: int,
    state: Mapping[str, np.ndarray],
    folder: epath.Path,
) -> dict[str, Any]:
    settings = {"scan_layers": True, **settings}
    tower = TEXT_ENCODERS[family].build(
        settings, vocabulary_size, settings["projection"], "none", np.float32
    )
    tokens = jax.ShapeDtypeStruct((1, settings["positions"]), np.int32)
    lengths = jax.ShapeDtypeStruct((1,), np.int32)
    shapes = jax.eval_shape(
        lambda *x: tower.init(jax.random.key(0), *x, train=False), tokens, lengths
    )
    state = {k: v for k, v in state.items() if k.startswith(("text_model.", "text_projection"))}
    names = {**_TEXT, "projection": _TEXT_PROJECTION[family]}
    return _translate(names, "text_model", shapes["params"], state, folder)


def _translate(
    names: Mapping[str, str],
    prefix: str,
    shapes: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    folder: epath.Path,
) -> dict[str, Any]:
    """Return a tower's tensors as our parameters, or refuse tensors that do not fit.

    Args:
        names: Hugging Face's name of each module or parameter outside the blocks.
        prefix: the beginning of a block's names.
        shapes: our parameters, or their shapes.
        state: the tower's tensors by name.
        folder: the model's, for the message.
    """
    flat = flax.traverse_util.flatten_dict(shapes)
    sources = {path: _sources(path, names, prefix, leaf.shape) for path, leaf in flat.items()}
    expected = {
        name: _their_shape(path, flat[path].shape)
        for path, theirs in sources.items()
        for name in theirs
    }
    check_names(expected, state, folder)
    check_numbers({name: state[name] for name in expected}, folder)
    ours = {}
    for path, theirs in sources.items():
        layers = [_our_layout(path, state[name]) for name in theirs]
        ours[path] = np.stack(layers).reshape(flat[path].shape).astype(np.float32)
    return flax.traverse_util.unflatten_dict(ours)


def _sources(
    path: tuple[str, ...], names: Mapping[str, str], prefix: str, shape: tuple[int, ...]
) -> list[str]:
    """Return the names of the tensors that make a parameter, one for each block."""
    *modules, leaf = path
    if path[0] == "blocks":
        name = f"{_BLOCK['/'.join(modules[1:])]}.{_LEAVES[leaf]}"
        return [f"{prefix}.encoder.layers.{layer}.{name}" for layer in range(shape[0])]
    whole = "/".join(path)
    return [names[whole] if whole in names else f"{names['/'.join(modules)]}.{_LEAVES[leaf]}"]


def _their_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a tensor of theirs, given the path and the shape of our parameter."""
    if path[0] == "blocks":
        shape = shape[1:]
    if path[-1] == "probe":
        return (1, 1, *shape)
    if path[-1] == "bias":
        return (math.prod(shape),)
    if path[-1] != "kernel":
        return shape
    if path[0] == "patch_embedding":
        return (shape[3], shape[2], shape[0], shape[1])
    inputs = len(shape) - 1 if path[-2] == "out" else 1
    return (math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def _our_layout(path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    """Return a tensor of theirs in our order of axes; heads are not split yet."""
    if path[-1] != "kernel":
        return tensor
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _split_projection(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a vision tower's tensors with those of the pooling's query, key and value apart."""
    apart = {}
    for name, tensor in state.items():
        if not name.startswith(_IN_PROJECTION):
            apart[name] = tensor
            continue
        leaf = name.removeprefix(_IN_PROJECTION)
        for letter, third in zip("qkv", np.split(tensor, 3), strict=True):
            apart[f"vision_model.head.attention.{letter}_proj.{leaf}"] = third
    return apart


def _read_state(folder: epath.Path) -> dict[str, np.ndarray]:
    """Return the tensors of a folder by name, without buffers that are no weights."""
    state = {}
    for path in _weight_files(folder):
        state |= read_state_dict(path)
    return {name: value for name, value in state.items() if not name.endswith(".position_ids")}


def _weight_files(folder: epath.Path) -> list[epath.Path]:
    """Return the files of a folder's weights.

    Raises:
        FileNotFoundError: none, or not all that the index lists.
    """
    for name in WEIGHTS:
        check_regular_file(folder / name)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder}: no weights: neither {WEIGHTS[0]} nor {WEIGHTS[1]} with its parts"
        )
    if not path.name.endswith(".index.json"):
        return [path]
    parts = [folder / part for part in parts_of_index(path)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise FileNotFoundError(
            f"{path} lists {', '.join(missing)}, and the folder lacks "
            f"{'them' if len(missing) > 1 else 'it'}: fetch the whole folder again"
        )
    return parts


def _plain(value: Any) -> Any:
    """Return a value with lists, as JSON has them, for tuples."""
    return list(value) if isinstance(value, tuple) else value


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.unflatten_dict(changes, sep=".")
