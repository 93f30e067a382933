"""Search in galleries of any size."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.retrieval import (
        backends,
        batch_sizes,
        blocks,
        catalogue,
        exact,
        filters,
        index_files,
        lists,
        placement,
        positions,
        queries,
        retriever,
        scan,
    )

__all__ = [
    "backends",
    "batch_sizes",
    "blocks",
    "catalogue",
    "exact",
    "filters",
    "index_files",
    "lists",
    "placement",
    "positions",
    "queries",
    "retriever",
    "scan",
]
