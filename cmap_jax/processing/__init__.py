"""Preprocessing that a model depends on: texts to token ids, photographs to pixels."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.processing import (
        clip_tokenizer,
        hub,
        image_files,
        images,
        padded_resize,
        pieces,
        published_files,
        siglip_tokenizer,
        subwords,
        tokenizer,
        tokenizers,
        tokenizing,
        unread_texts,
    )

__all__ = [
    "clip_tokenizer",
    "hub",
    "image_files",
    "images",
    "padded_resize",
    "pieces",
    "published_files",
    "siglip_tokenizer",
    "subwords",
    "tokenizer",
    "tokenizers",
    "tokenizing",
    "unread_texts",
]
