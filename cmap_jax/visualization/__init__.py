"""Pictures for people: data sets and results at a glance."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.visualization import curves, grids, lettering

__all__ = ["curves", "grids", "lettering"]
