"""Foreign weights as our variables: torchvision's ResNets, the authors' files, word vectors.

    model_config, variables, vocabulary = load_reference_checkpoint("model_best.pth")
    model = CMAP.from_config(model_config)
    pyramid = model.apply(variables, images, method="encode_images")

PyTorch is needed for `.pth` files alone, and only to read them: ``pip install 'cmap_jax[torch]'``.
"""

import importlib
from typing import Any

_HOME = {
    "load_reference_checkpoint": "cmap_jax.convert.reference",
    "load_resnet": "cmap_jax.convert.torchvision",
    "load_release_vocabulary": "cmap_jax.convert.release_vocabulary",
    "load_word_vectors": "cmap_jax.convert.word_vectors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name or a module of the package at its first use (PEP 562)."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if f"{__name__}.{name}" in _HOME.values():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
