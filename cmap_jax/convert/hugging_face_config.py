"""Configs of CLIP and SigLIP, as Hugging Face stores them, as config fields of ours.

See docs/method.md, section 9. A stored config leaves out the values that its class has by default.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from cmap_jax.convert.state_dict import WeightsError
from cmap_jax.files import read_json

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_RESAMPLINGS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
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
    """What one ``model_type`` stands for.

    Attributes:
        vision: default values of its ``vision_config``.
        text: default values of its ``text_config``.
        text_fields: further settings of the text tower, with Hugging Face's names.
        pictures: default values of its ``preprocessor_config.json``, the size left out.
    """

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    text_fields: Mapping[str, str]
    pictures: Mapping[str, Any]


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
        pictures={
            "do_center_crop": True,
            "resample": 3,
            "image_mean": (0.48145466, 0.4578275, 0.40821073),
            "image_std": (0.26862954, 0.26130258, 0.27577711),
        },
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
        pictures={
            "do_center_crop": False,
            "resample": 3,
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.5, 0.5, 0.5),
        },
    ),
}


def read_fields(folder: epath.Path) -> dict[str, Any]:
    """Return the config fields that a folder's ``config.json`` and picture processor determine.

    Returns:
        Values by path, such as "model.image.clip.width": both towers, the embeddings' width, the
        tokenizer, and under "data." how a picture becomes pixels.

    Raises:
        FileNotFoundError: the folder has no ``config.json``.
        WeightsError: another kind of model, or one with parts that the towers lack; names the file.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no config.json: not a model as Hugging Face stores it")
    content = read_json(path)
    family = _family(content, path)
    known = FAMILIES[family]
    vision, text = (
        {**defaults, **(content.get(part) or {}), **(content.get(f"{part}_dict") or {})}
        for part, defaults in (("vision_config", known.vision), ("text_config", known.text))
    )
    projection = content.get("projection_dim", 512)
    if family == "siglip":
        projection = text.get("projection_size") or text["hidden_size"]
    _check_vision(vision, path)
    image = _tower(vision, _VISION, path) | {"map_blocks": _map_blocks(vision)}
    pictures = _pictures(folder, known.pictures, image["image_size"])
    image |= {"mean": pictures.pop("mean"), "std": pictures.pop("std")}
    if family == "clip":
        image["projection"] = projection
    words = _tower(text, known.text_fields, path) | {"projection": projection}
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


def _pictures(folder: epath.Path, defaults: Mapping[str, Any], side: int) -> dict[str, Any]:
    """Return the fields of ``config.data`` for pictures, and their mean and deviation."""
    path, stored = _processor(folder)
    content = {**defaults, **{k: v for k, v in stored.items() if v is not None}}
    resample = content["resample"]
    if resample not in _RESAMPLINGS:
        raise WeightsError(f"{path}: resample {resample!r} is neither 2, bilinear, nor 3, bicubic")
    size = content.get("size", side)
    if isinstance(size, dict) and "shortest_edge" not in size:
        fit, resize = "stretch", _side(size, path)
    else:
        whole = "crop" if content["do_center_crop"] else "stretch"
        fit, resize = whole, size["shortest_edge"] if isinstance(size, dict) else size
    crop = _side(content.get("crop_size", resize), path) if content["do_center_crop"] else resize
    return {
        "fit": fit,
        "resampling": _RESAMPLINGS[resample],
        "resize": resize,
        "crop": crop,
        "mean": _colors(content["image_mean"], path),
        "std": _colors(content["image_std"], path),
    }


def _processor(folder: epath.Path) -> tuple[epath.Path, Mapping[str, Any]]:
    """Return the file of the picture processor and its content; empty without such a file."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return path, read_json(path)
    path = folder / "processor_config.json"  # transformers 5 stores a processor whole
    content = read_json(path) if path.is_file() else {}
    return path, content.get("image_processor") or {}


def _side(size: Any, path: epath.Path) -> int:
    sides = set(size.values()) if isinstance(size, dict) else {size}
    if len(sides) != 1:
        raise WeightsError(f"{path}: pictures of {size}; squares alone can be used")
    return sides.pop()


def _colors(values: Sequence[float], path: epath.Path) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise WeightsError(f"{path}: image_mean and image_std must have 3 numbers, not {values!r}")
    return tuple(map(float, values))
