"""The objective, as pure functions of arrays (docs/method.md, section 2)."""

from cmap_jax.losses.matching import matching_loss
from cmap_jax.losses.preservation import preservation_loss

__all__ = ["matching_loss", "preservation_loss"]
