"""The objective, as pure functions of arrays (docs/method.md, section 2)."""

from cmap_jax.losses.matching import matching_loss
from cmap_jax.losses.preservation import REVERSALS, entropy_shortfall, preservation_loss, ramp

__all__ = ["REVERSALS", "entropy_shortfall", "matching_loss", "preservation_loss", "ramp"]
