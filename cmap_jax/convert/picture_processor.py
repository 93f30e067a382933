"""The picture processor of a Hugging Face folder, as fields of a config.

See docs/method.md, section 4, pictures of other encoders.

    read_pictures("clip-vit-base-patch32", "clip", 224)
    # {"fit": "crop", "resampling": "bicubic", "resize": 224, "crop": 224, "mean": ..., "std": ...}
"""

import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from cmap_jax.files import read_json
from cmap_jax.processing.images import ImagePreprocessing

# A processor's values where its file leaves them out; the size is the model's then.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip": {
        "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "siglip": {"do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}
_FILTERS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
_FILE, _OF_ALL = "preprocessor_config.json", "processor_config.json"
_PICTURE_FIELDS = ("fit", "resampling", "resize", "crop")


def read_pictures(folder: str | os.PathLike, family: str, side: int) -> dict[str, Any]:
    """Return the config fields under which pictures become those of a published processor.

    Args:
        folder: has ``preprocessor_config.json``, or ``processor_config.json`` as later versions
            write it; without either, the family's values hold.
        family: "clip" or "siglip".
        side: side of the model's pictures, pixels, where the file names none.

    Returns:
        "fit", "resampling", "resize" and "crop", values of the fields of ``config.data``, and
        "mean" and "std", three numbers each, as `Pictures` has them.

    Raises:
        ValueError: the file is damaged, or it asks for something that no config expresses; names
            the file, the field and the remedy.
    """
    path, stored = _read(epath.Path(folder))
    content = {**_DEFAULTS[family], **{k: v for k, v in stored.items() if v is not None}}
    try:
        fields = _geometry(content, side) | _normalization(content)
        ImagePreprocessing(**{name: fields[name] for name in _PICTURE_FIELDS})
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{os.fspath(path)}: {error}. Take the file that the model was published with"
        ) from error
    return fields


def _read(folder: epath.Path) -> tuple[epath.Path, Mapping[str, Any]]:
    """Return the file of the processor and its content, empty without a file."""
    path = folder / _FILE
    content = read_json(path) if path.exists() else None
    if content is None and (folder / _OF_ALL).exists():
        path = folder / _OF_ALL
        whole = read_json(path)
        content = whole.get("image_processor") if isinstance(whole, Mapping) else whole
    content = {} if content is None else content
    if not isinstance(content, Mapping):
        raise ValueError(f"{os.fspath(path)}: not a JSON object, but {str(content)[:40]}")
    return path, content


def _geometry(content: Mapping[str, Any], side: int) -> dict[str, Any]:
    """Return the fields of ``config.data``."""
    if not content.get("do_resize", True):
        raise ValueError("do_resize is false, so that pictures keep their sizes")
    if content.get("do_pad"):
        raise ValueError("do_pad is true; pictures are not padded after resizing")
    filter_ = content.get("resample", 3)
    if filter_ not in _FILTERS:
        raise ValueError(f"resample is {filter_!r}, neither 2, bilinear, nor 3, bicubic")
    size = content.get("size", side)
    whole = content["do_center_crop"] and not content.get("use_square_size")
    if isinstance(size, Mapping):
        whole = "shortest_edge" in size
        if whole and len(size) > 1:
            raise ValueError(f"size is {dict(size)}; shortest_edge must be alone")
    resize = _side(size, "size")
    crop = _side(content.get("crop_size", side), "crop_size")
    if not content["do_center_crop"]:
        if whole:
            raise ValueError("pictures keep their shape; do_center_crop must make them square")
        crop = resize
    if (resize - crop) % 2:
        raise ValueError(f"size {resize} less crop_size {crop} is odd, and has no one center")
    fit = "crop" if whole else "stretch"
    return {"fit": fit, "resampling": _FILTERS[filter_], "resize": resize, "crop": crop}


def _side(size: Any, name: str) -> int:
    """Return the side of a square, given as a number or by the names of its sides."""
    sides = set(size.values()) if isinstance(size, Mapping) else {size}
    if len(sides) != 1 or type(side := sides.pop()) is not int:
        raise ValueError(f"{name} is {size!r}, and must be a square's")
    return side


def _normalization(content: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Return the mean and the deviation of pixels in [0, 1]."""
    if (
        not content.get("do_rescale", True)
        or abs(content.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3
    ):
        raise ValueError("do_rescale and rescale_factor must scale pixels to [0, 1]")
    if not content.get("do_normalize", True):
        return {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    numbers = {}
    for name, field in (("mean", "image_mean"), ("std", "image_std")):
        values = content[field]
        values = [values] * 3 if isinstance(values, int | float) else values
        numbers[name] = tuple(float(value) for value in values)
        if len(numbers[name]) != 3:
            raise ValueError(f"{field} is {values!r}, and must have three numbers")
    if min(numbers["std"]) <= 0:
        raise ValueError(f"image_std is {content['image_std']!r}, and must be positive")
    return numbers
