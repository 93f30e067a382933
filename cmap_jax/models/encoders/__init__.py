"""The tables of encoders, by ``config.model.image.name`` and ``config.model.text.name``.

A new family is a file here with a module and an entry (see `cmap_jax.models.encoders.entry`), a
line in its table, and a sub-config, ``config.model.image.<name>`` or ``config.model.text.<name>``.
"""

from collections.abc import Mapping
from typing import Any

from cmap_jax.models.encoders import clip, efficientnet_lite0, gru, lstm, resnet, siglip
from cmap_jax.models.encoders.entry import ImageEntry, TextEntry, check_settings

IMAGE_ENCODERS: dict[str, ImageEntry] = {
    "resnet": resnet.ENTRY,
    "efficientnet_lite0": efficientnet_lite0.ENTRY,
    "clip": clip.ENTRY,
    "siglip": siglip.ENTRY,
}
TEXT_ENCODERS: dict[str, TextEntry] = {
    "gru": gru.ENTRY,
    "lstm": lstm.ENTRY,
    "clip": clip.TEXT_ENTRY,
    "siglip": siglip.TEXT_ENTRY,
}


def image_entry(model_config: Any) -> ImageEntry:
    """Return the entry of a config's image encoder, given its ``config.model``.

    Raises:
        ValueError: there is none of this name; names those that there are.
    """
    return _entry(IMAGE_ENCODERS, model_config.image.name, "image")


def text_entry(model_config: Any) -> TextEntry:
    """Return the entry of a config's text encoder, given its ``config.model``.

    Raises:
        ValueError: there is none of this name; names those that there are.
    """
    return _entry(TEXT_ENCODERS, model_config.text.name, "text")


def image_settings(model_config: Any) -> dict[str, Any]:
    """Return the sub-config of a config's image encoder, with every value allowed.

    Raises:
        ValueError: no such encoder, or a field that is missing, unknown or impossible; names it.
    """
    return _settings(model_config.image, image_entry(model_config), "image")


def text_settings(model_config: Any) -> dict[str, Any]:
    """Return the sub-config of a config's text encoder, with every value allowed.

    Raises:
        ValueError: no such encoder, or a field that is missing, unknown or impossible; names it.
    """
    return _settings(model_config.text, text_entry(model_config), "text")


def _entry(table: Mapping[str, Any], name: str, part: str) -> Any:
    if name not in table:
        raise ValueError(
            f"config.model.{part}.name must be one of {', '.join(table)}; got {name!r}"
        )
    return table[name]


def _settings(config: Any, entry: ImageEntry | TextEntry, part: str) -> dict[str, Any]:
    return check_settings(config, config.name, entry.settings, f"config.model.{part}")
