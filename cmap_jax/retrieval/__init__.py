"""Search in galleries of any size."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.retrieval import (
        backends,
        batch_sizes,
        beam_indexing,
        blocks,
        catalogue,
        embedding,
        exact,
        filters,
        index_files,
        indexing,
        lists,
        pictures,
        placement,
        positions,
        queries,
        retriever,
        rounding_loss,
        scan,
    )

__all__ = [
    "backends",
    "batch_sizes",
    "beam_indexing",
    "blocks",
    "catalogue",
    "embedding",
    "exact",
    "filters",
    "index_files",
    "indexing",
    "lists",
    "pictures",
    "placement",
    "positions",
    "queries",
    "retriever",
    "rounding_loss",
    "scan",
]
