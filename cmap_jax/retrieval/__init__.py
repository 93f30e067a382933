"""Search in galleries of any size."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.retrieval import (
        blocks,
        catalogue,
        exact,
        index_files,
        lists,
        placement,
        positions,
        scan,
    )

__all__ = [
    "blocks",
    "catalogue",
    "exact",
    "index_files",
    "lists",
    "placement",
    "positions",
    "scan",
]
