"""Evaluation by named protocols (SPEC 6)."""

import importlib
from typing import Any

_MODULES = frozenset(
    {
        "compare",
        "evaluator",
        "metrics",
        "outcomes",
        "pictures",
        "ranking",
        "results",
        "results_file",
        "submission",
        "workdir",
    }
)


def __getattr__(name: str) -> Any:
    """Import a module of the package at its first use (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
