"""Search in galleries of any size."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.retrieval import (
        blocks,
        carry,
        exact,
        fast,
        margin,
        parts,
        placement,
        plan,
        positions,
        scan,
        scores,
    )

__all__ = [
    "blocks",
    "carry",
    "exact",
    "fast",
    "margin",
    "parts",
    "placement",
    "plan",
    "positions",
    "scan",
    "scores",
]
