"""Preprocessing that a model depends on: texts to token ids, photographs to pixels."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.processing import (
        hub,
        image_files,
        images,
        padded_resize,
        tokenizer,
        tokenizers,
        tokenizing,
    )

__all__ = ["hub", "image_files", "images", "padded_resize", "tokenizer", "tokenizers", "tokenizing"]
