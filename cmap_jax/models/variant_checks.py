"""Checks that a method, its encoders and the halves of a query belong together."""

from typing import Any

from cmap_jax.models.composers import find_variant
from cmap_jax.models.encoders import (
    IMAGE_ENCODERS,
    TEXT_ENCODERS,
    image_entry,
    image_settings,
    text_entry,
)


def check_halves(variant: str, has_image: bool, has_text: bool) -> None:
    """Refuse a query that lacks a half which its method needs.

    Args:
        variant: name of the method.
        has_image: whether there are reference images.
        has_text: whether there are texts.

    Raises:
        ValueError: says which half is missing.
    """
    if not has_image and not has_text:
        raise ValueError("a query needs an image or a text")
    takes = find_variant(variant).takes
    if not (has_text or takes.image) or not (has_image or takes.text):
        forms = ("an image alone", "a text alone", "an image with a text")
        taken = [form for form, is_taken in zip(forms, takes, strict=True) if is_taken]
        missing = "texts" if has_image else "images"
        raise ValueError(
            f"the method {variant} composes {' or '.join(taken)}: a query without {missing} cannot "
            "be composed"
        )


def check_features(config: Any) -> None:
    """Refuse encoders whose own features a method cannot compose.

    Args:
        config: ``config.model`` of a method with ``on_features``.

    Raises:
        ValueError: there is no such feature, or it has another width than the embeddings.
    """
    method, entry = f"config.model.variant={config.variant}", image_entry(config)
    if entry.feature_width is None:
        others = [name for name, e in IMAGE_ENCODERS.items() if e.feature_width]
        raise ValueError(
            f"{method} composes the feature that an image encoder projects to, and "
            f"config.model.image.name={config.image.name} has none; choose {' or '.join(others)}"
        )
    width = entry.feature_width(image_settings(config))
    if config.embed_dim != width:
        raise ValueError(
            f"{method} has no heads: config.model.embed_dim must be {width}, the width that "
            f"config.model.image.name={config.image.name} projects to, not {config.embed_dim}"
        )
    wants_empty = find_variant(config.variant).without_text == "empty"
    if wants_empty and text_entry(config).empty_text is None:
        others = [name for name, e in TEXT_ENCODERS.items() if e.empty_text]
        raise ValueError(
            f"{method} embeds the empty text, which config.model.text.name={config.text.name} has "
            f"none of; choose {' or '.join(others)}"
        )
