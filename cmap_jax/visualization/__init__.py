"""Pictures for people: data sets and results at a glance."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.visualization import colors, grids, heatmaps, lettering, overlays

__all__ = ["colors", "grids", "heatmaps", "lettering", "overlays"]
