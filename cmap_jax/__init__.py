"""Composed image retrieval in JAX: a reference image and a text find the image they describe.

The public names are loaded on first use, so that importing the package stays light:

    from cmap_jax import CMAP, load

    trained = load("runs/garments")          # a workdir, and nothing else
    text = trained.encode_text(["is red and longer"])
    pyramid = trained.encode_images(["dress.jpg"])
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "CMAP": "cmap_jax.models.cmap",
    "load": "cmap_jax.trained",
}
_SUBPACKAGES = frozenset(
    {
        "convert",
        "evaluation",
        "losses",
        "models",
        "processing",
        "protocols",
        "scoring",
        "sharding",
        "trained",
        "training",
        "visualization",
        "workdir",
    }
)
__all__ = ["CMAP", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import a public name or a subpackage at its first use (PEP 562)."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"cmap_jax.{name}")
    raise AttributeError(f"module 'cmap_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES])
