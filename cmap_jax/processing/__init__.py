"""Preprocessing that a model depends on: texts to token ids, photographs to pixels."""

import importlib
from typing import Any

_MODULES = frozenset({"files", "images", "progress", "tokenizer"})


def __getattr__(name: str) -> Any:
    """Import a module of the package at its first use (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
