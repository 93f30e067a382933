"""A trained model in the forms that others take: tensors, a model card, StableHLO programs."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.exporting import folder, model_card, programs

__all__ = ["folder", "model_card", "programs"]
