"""Pictures for people: data sets and results at a glance."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.visualization import colors, curves, grids, heatmaps, lettering, overlays

__all__ = ["colors", "curves", "grids", "heatmaps", "lettering", "overlays"]
