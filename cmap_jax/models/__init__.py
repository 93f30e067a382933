"""The networks, as pure-functional Flax linen modules (docs/method.md, section 1)."""

from cmap_jax.models.cmap import CMAP

__all__ = ["CMAP"]
