"""Configs of CLIP and SigLIP, as Hugging Face stores them, as config fields of ours.

See docs/method.md, section 9. A stored config leaves out the values that its class has by default.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from cmap_jax.convert.picture_processor import read_pictures
from cmap_jax.convert.state_dict import WeightsError
from cmap_jax.files import read_json
from cmap_jax.models.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from cmap_jax.models.encoders.entry import Setting

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_TOWER = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "epsilon": "layer_norm_eps",
}
_VISION = {"patch": "patch_size", "image_size": "image_size"}


@dataclasses.dataclass(frozen=True)
class _Family:
    """The meaning of one ``model_type``.

    Attributes:
        vision: default values of its ``vision_config``.
        text: default values of its ``text_config``.
        text_fields: further settings of the text tower, with Hugging Face's names.
    """

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    text_fields: Mapping[str, str]


FAMILIES = {
    "clip": _Family(
        vision={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 32,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        text={
            "vocab_size": 49408,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "eos_token_id": 49407,
        },
        text_fields={"positions": "max_position_embeddings", "end_token": "eos_token_id"},
    ),
    "siglip": _Family(
        vision={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 16,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "vision_use_head": True,
        },
        text={
            "vocab_size": 32000,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 64,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "pad_token_id": 1,
        },
        text_fields={"positions": "max_position_embeddings", "pad_token": "pad_token_id"},
    ),
}


def read_fields(folder: epath.Path) -> dict[str, Any]:
    """Return the config fields that a folder's ``config.json`` and picture processor determine.

    Returns:
        Values by path, such as "model.image.clip.width": both towers, the embeddings' width, the
        tokenizer, and under "data." how a picture becomes pixels.

    Raises:
        FileNotFoundError: the folder has no ``config.json``.
        ValueError: another kind of model, one with parts that the towers lack, or a picture
            processor that no config expresses; names the file.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no config.json: not a model as Hugging Face stores it")
    content = read_json(path)
    family = _family(content, path)
    known = FAMILIES[family]
    vision = _part(content, "vision_config", known.vision, path)
    text = _part(content, "text_config", known.text, path)
    if family == "clip":
        projection = _number({"projection_dim": 512, **content}, "projection_dim", path)
    else:
        name = "projection_size" if text.get("projection_size") else "hidden_size"
        projection = _number(text, name, path)
    _check_vision(vision, path)
    image = _tower(vision, _VISION, path) | {"map_blocks": _map_blocks(vision)}
    pictures = read_pictures(folder, family, image["image_size"])
    image |= {"mean": pictures.pop("mean"), "std": pictures.pop("std")}
    if family == "clip":
        image["projection"] = projection
    words = _tower(text, known.text_fields, path) | {"projection": projection}
    _check_settings(IMAGE_ENCODERS[family].settings, image, path)
    _check_settings(TEXT_ENCODERS[family].settings, words, path)
    return {
        "model.embed_dim": projection,
        "model.image.name": family,
        **{f"model.image.{family}.{name}": value for name, value in image.items()},
        "model.text.name": family,
        "model.text.tokenizer": family,
        "model.text.vocabulary_size": _number(text, "vocab_size", path),
        **{f"model.text.{family}.{name}": value for name, value in words.items()},
        **{f"data.{name}": value for name, value in pictures.items()},
    }


def _family(content: Any, path: epath.Path) -> str:
    name = content.get("model_type") if isinstance(content, dict) else None
    if name == "siglip2":
        raise WeightsError(
            f"{path}: a SigLIP 2 for pictures of any shape (NaFlex); take one of a fixed size, "
            "such as google/siglip2-base-patch16-224"
        )
    if name not in FAMILIES:
        raise WeightsError(
            f"{path}: model_type {name!r} is neither a whole CLIP nor a whole SigLIP, such as "
            "openai/clip-vit-base-patch32 and google/siglip-base-patch16-224"
        )
    return name


def _part(
    content: Mapping[str, Any], name: str, defaults: Mapping[str, Any], path: epath.Path
) -> dict[str, Any]:
    """Return the values of one tower; older files have them under a second name too."""
    values = dict(defaults)
    for key in (name, f"{name}_dict"):
        stored = content.get(key) or {}
        if not isinstance(stored, Mapping):
            raise WeightsError(f"{path}: {key} must be an object, not {str(stored)[:40]}")
        values |= stored
    return values


def _check_settings(
    rules: Mapping[str, Setting], values: Mapping[str, Any], path: epath.Path
) -> None:
    """Refuse values that no tower can have, with our names."""
    for name, value in values.items():
        try:
            rules[name].check(value, name)
        except ValueError as error:
            raise WeightsError(f"{path}: {error}. Fetch the file again") from error


def _check_vision(vision: Mapping[str, Any], path: epath.Path) -> None:
    if vision["num_channels"] != 3:
        raise WeightsError(f"{path}: num_channels is {vision['num_channels']}; pictures have 3")
    if not vision.get("vision_use_head", True):
        raise WeightsError(
            f"{path}: vision_use_head is false: it has no feature of a whole picture"
        )


def _tower(part: Mapping[str, Any], further: Mapping[str, str], path: epath.Path) -> dict[str, Any]:
    """Return a tower's settings, those of every tower and further ones."""
    activation = part["hidden_act"]
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise WeightsError(f"{path}: hidden_act must be one of {known}, not {activation!r}")
    settings = {name: _number(part, theirs, path) for name, theirs in {**_TOWER, **further}.items()}
    return settings | {"activation": ACTIVATIONS[activation]}


def _number(part: Mapping[str, Any], name: str, path: epath.Path) -> int | float:
    """Return a number; a list of equal ones, as sizes may be given, is one."""
    value = part[name]
    values = value if isinstance(value, list) else [value]
    if len(set(map(str, values))) != 1 or type(values[0]) not in (int, float):
        raise WeightsError(f"{path}: {name} must be a number, not {value!r:.40}")
    return values[0]


def _map_blocks(vision: Mapping[str, Any]) -> tuple[int, int]:
    """Return the blocks at three quarters and at half of the depth."""
    layers = vision["num_hidden_layers"]
    return max(1, layers * 3 // 4), max(1, layers // 2)
