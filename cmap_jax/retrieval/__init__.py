"""Search in galleries of any size."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.retrieval import backends, blocks, exact, placement, positions, scan

__all__ = ["backends", "blocks", "exact", "placement", "positions", "scan"]
