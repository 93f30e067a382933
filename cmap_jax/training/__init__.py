"""Training: the state, the optimiser, the step, checkpoints and the loop (SPEC 2, 3)."""

import importlib
from typing import Any

_MODULES = frozenset({"check", "checkpointing", "optimizer", "train", "train_state", "train_step"})


def __getattr__(name: str) -> Any:
    """Import a module of the package at its first use (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
